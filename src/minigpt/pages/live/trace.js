// What a forward pass leaves for the page to look at. It grows with each call, as the cache does.

class Trace {
  constructor(config) {
    const layers = (n) => Array.from({ length: n }, () => []);
    this.length = 0;
    this.patterns = layers(config.n_layer);         // [layer][query]: H rows of query + 1 weights
    this.z = layers(config.n_layer);                // [layer][position]: H x D, the weighted sums of values
    this.attnOut = layers(config.n_layer);          // [layer][position]: C, what attention adds to the stream
    this.mlpOut = layers(config.n_layer);
    this.residual = layers(config.n_layer + 1);     // [layer][position]: C, the stream before each block, and after the last
  }

  // The weights of the keys 0..query.
  weights(layer, head, query) {
    return this.patterns[layer][query].subarray(head * (query + 1), (head + 1) * (query + 1));
  }

  // Forgets the tokens from position n on.
  truncate(n) {
    for (const part of [this.patterns, this.z, this.attnOut, this.mlpOut, this.residual]) {
      for (const rows of part) rows.length = Math.min(rows.length, n);
    }
    this.length = Math.min(this.length, n);
  }

  // Adds the rows of an activation, (T, width), to those of a layer.
  add(part, layer, x, T) {
    const width = x.length / T;
    for (let t = 0; t < T; t++) this[part][layer].push(Float32Array.from(x.subarray(t * width, (t + 1) * width)));
  }
}
