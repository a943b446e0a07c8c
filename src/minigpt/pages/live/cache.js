// The KV cache: keys and values of the tokens read so far, so that a new token costs one step (model/cache.py).

class KVCache {
  constructor(config) {
    this.config = config;
    this.position = 0;                              // tokens read so far
    this.documents = [];                            // where the document of each token begins; all 0 without document_mask
    this.width = config.kv_heads * config.width_per_head;
    this.layers = config.windows.map(() => ({ key: new Float32Array(0), value: new Float32Array(0) }));
  }

  // Forgets the tokens from position n on.
  truncate(n) {
    this.position = Math.min(this.position, n);
    this.documents.length = this.position;
  }

  // Makes room for tokens that are about to be read, and finds where their documents begin.
  begin(tokens) {
    const { context_length, document_mask, end_of_text } = this.config, stop = this.position + tokens.length;
    if (stop > context_length) throw new Error(`${stop} tokens do not fit the context of ${context_length}`);
    for (let t = this.position; t < stop; t++) {
      // An end-of-text token begins the document after it.
      const begins = document_mask && tokens[t - this.position] === end_of_text;
      this.documents[t] = begins ? t : (this.documents[t - 1] ?? 0);
    }
    if (stop * this.width <= this.layers[0].key.length) return;
    const n = Math.min(context_length, Math.max(64, 2 * stop)) * this.width;
    for (const layer of this.layers) {
      for (const name of ["key", "value"]) {
        const longer = new Float32Array(n);
        longer.set(layer[name].subarray(0, this.position * this.width));
        layer[name] = longer;
      }
    }
  }

  // Keys (already rotated) and values of the new tokens, (T, H_kv, D) each.
  extend(layer, key, value) {
    this.layers[layer].key.set(key, this.position * this.width);
    this.layers[layer].value.set(value, this.position * this.width);
  }
}
