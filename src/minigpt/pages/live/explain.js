// One head at one position, step by step, with every number on the way: what the page's lesson draws.

const shaped = (data, ...shape) => ({ shape, data: Float32Array.from(data) });

// Names in the order of the pass; each array is {shape, data}, T the tokens of the whole text, also those after `position`.
// run: {cache, trace} of a forward pass of `tokens` that was made already, and the means for its interventions.
GPT.prototype.explain = function (tokens, layer, head, position, interventions = null, run = {}) {
  const { cache = this.cache(), trace = new Trace(this.config), means = null } = run;
  if (cache.position < tokens.length) {
    this.forward(tokens.slice(cache.position), { cache, trace, interventions, means, logits: "none" });
  }
  return {
    tokens: Array.from(tokens), layer, head, position, token: tokens[position],
    ...this.explainInput(tokens[position], layer, position, trace),
    ...this.explainScores(layer, head, position, cache, trace),
    ...this.explainValues(layer, head, position, cache, trace),
    ...this.explainMLP(layer, position, trace),
    ...this.explainLogits(position, trace),
  };
};

// Token -> its row of the embedding, the stream before the layer, and what attention reads of it.
GPT.prototype.explainInput = function (token, layer, position, trace) {
  const C = this.config.n_embd, embedding = new Float64Array(C), { block } = this.config, { attnNorm } = this.blocks[layer];
  addRow(this.tokenEmbedding, token, embedding, 0);
  const stream = trace.residual[layer][position];
  const input = block === "post_norm" ? stream : normalise(stream, attnNorm, this.config);
  return {
    embedding: shaped(embedding, C),
    streamBefore: shaped(stream, C), attnInput: shaped(input, C),
  };
};

// Query and keys -> products -> scores of all T keys, as if nothing were masked, and after the mask -> weights.
// scale is null where it is not one number: cosine divides by lengths too, gaussian has distances, uniform and linear no scale.
GPT.prototype.explainScores = function (layer, head, position, cache, trace) {
  const { attn } = this.blocks[layer], { width_per_head: D, slopes } = this.config, T = cache.position;
  const { query: projected, plain } = attn.queryAt(trace.residual[layer][position], this.blocks[layer], position, cache);
  const first = attn.firstKey(position, cache);
  const { query, at } = attn.lastQuery(projected, head * D, head, first, position, cache);
  const all = attn.scores(query, at, head, 0, T - 1, cache), keys = attn.rowsOf(cache.layers[layer].key, head, cache);
  const weights = new Float32Array(T);
  weights.set(trace.weights(layer, head, position));
  return {
    queryBefore: shaped(plain.query.subarray(head * D, (head + 1) * D), D),           // as projected: no norm, no rotation
    query: shaped(query.subarray(at, at + D), D), keys: shaped(keys, T, D),
    products: shaped(Array.from({ length: T }, (_, s) => dot(query, at, keys, s * D, D)), T),
    scale: attn.scale, bias: slopes && shaped(Array.from({ length: T }, (_, s) => slopes[head] * s), T),
    scoresBeforeMask: shaped(all, T),
    scores: shaped(all.map((score, s) => (s < first || s > position ? -Infinity : score)), T),
    firstKey: first, weights: shaped(weights, T),
  };
};

// Weighted sum of the values -> all heads together -> what they add to the stream.
GPT.prototype.explainValues = function (layer, head, position, cache, trace) {
  const { attn } = this.blocks[layer], { n_embd: C, n_head: H, width_per_head: D } = this.config, T = cache.position;
  const z = trace.z[layer][position], attnOut = trace.attnOut[layer][position];
  return {
    values: shaped(attn.rowsOf(cache.layers[layer].value, head, cache), T, D),
    weightedSum: shaped(z.subarray(head * D, (head + 1) * D), D), z: shaped(z, H, D),
    attnOut: shaped(attnOut, C),
    streamAfterAttn: shaped(trace.residual[layer][position].map((x, i) => x + attnOut[i]), C),
  };
};

GPT.prototype.explainMLP = function (layer, position, trace) {
  const { n_embd: C, block } = this.config, { mlp, mlpNorm } = this.blocks[layer], before = trace.residual[layer][position];
  const attnOut = trace.attnOut[layer][position];
  const stream = block === "parallel" ? before : before.map((x, i) => x + attnOut[i]);
  const input = block === "post_norm" ? Float64Array.from(stream) : normalise(stream, mlpNorm, this.config);
  const hidden = mlp.hidden(input, 1);
  return {
    mlpHidden: shaped(hidden, hidden.length),
    mlpOut: shaped(trace.mlpOut[layer][position], C), streamAfter: shaped(trace.residual[layer + 1][position], C),
  };
};

// The stream after the last layer -> logits -> the ten likeliest next tokens.
GPT.prototype.explainLogits = function (position, trace) {
  const C = this.config.n_embd, stream = trace.residual[this.blocks.length][position], logits = this.lens(stream);
  const probabilities = softmax(Float64Array.from(logits));
  return {
    finalNormed: shaped(normalise(stream, this.finalNorm, this.config), C),
    top: topOf(logits, 10).map((token) => ({ token, logit: logits[token], probability: probabilities[token] })),
  };
};
