// The numbers of one head at one position, from token to logits, for the lesson (lesson.js). They come from what a reading of
// the text has kept, keys, values and activations, so a step costs a few vectors and not a forward pass.
const LESSON_TOKENS = 10;                 // tokens of the text that the lesson shows at once
const LESSON_LATER = 3;                   // of them after the position, which the mask removes
const LESSON_NEXT = 8;                    // likeliest next tokens

// run: "base" or "changed". null where the text has no such position, or not yet.
Session.prototype.lesson = function ({ layer, head, position, run = "base" }) {
  const reading = this.reading(run), { model, tokens, trace } = reading, { n_head: H, width_per_head: D } = model.config;
  if (position >= tokens.length) return null;
  const weights = trace.weights(layer, head, position), shown = lessonTokens(weights, position, tokens.length);
  const z = trace.z[layer][position];
  return { layer, head, position, n: tokens.length, shown, weights, heads: z, z: z.subarray(head * D, (head + 1) * D), shape: { H, D },
    ...lessonInput(reading, layer, position), ...lessonScores(reading, layer, head, position, shown),
    ...lessonOutput(reading, layer, position), next: this.next({ position, run, count: LESSON_NEXT }).map((each) => (
      { ...each, logit: reading.logits(position)[each.token] })) };
};

// The tokens around a position: some before it, itself, some after it, and the keys with the most weight.
function lessonTokens(weights, position, n) {
  const later = Math.min(LESSON_LATER, n - 1 - position), before = LESSON_TOKENS - later - 1;
  const strongest = [...weights.keys()].filter((key) => key < position).sort((a, b) => weights[b] - weights[a]).slice(0, Math.ceil(before / 2));
  const shown = new Set(strongest);
  for (let key = position - 1; key >= 0 && shown.size < before; key--) shown.add(key);
  for (let key = position; key <= position + later; key++) shown.add(key);
  return [...shown].sort((a, b) => a - b);
}

// What attention or the MLP of a block reads of a row of the stream.
const readByPart = (block, norm, row) => (block.config.block === "post_norm" ? row : normalise(row, block[norm], block.config));

function lessonInput({ model, tokens, trace }, layer, position) {
  const { config } = model, embedding = new Float64Array(config.n_embd), stream = trace.residual[layer][position];
  addRow(model.tokenEmbedding, tokens[position], embedding, 0);
  return { token: tokens[position], embedding, stream, normed: readByPart(model.blocks[layer], "attnNorm", stream),
    start: trace.residual[0][position] };
}

// Query, key and value of one position in one head; query and key also before the rotation.
function lessonVectors({ model, trace, cache }, layer, head, position) {
  const { n_head, kv_heads, width_per_head: D } = model.config, block = model.blocks[layer];
  const x = readByPart(block, "attnNorm", trace.residual[layer][position]);
  const { query, key, value, plain } = block.attn.project(x, { T: 1, cache: { position, documents: cache.documents } });
  const kv = Math.floor(head / (n_head / kv_heads)), of = (row, h) => row.slice(h * D, (h + 1) * D);
  return { query: of(query, head), key: of(key, kv), value: of(value, kv), plainQuery: of(plain.query, head), plainKey: of(plain.key, kv) };
}

// What the product of query and key is multiplied by, where a score is that.
function lessonScale({ similarity, hopfield_beta, softmax_temperature, width_per_head: D }) {
  if (similarity === "hopfield") return hopfield_beta ?? D ** -0.5;
  return ["scaled_dot", "symmetric", "hard"].includes(similarity) ? D ** -0.5 / softmax_temperature : null;
}

// Scores of the position for every key of the text, those that the mask removes too; and of all pairs of the shown tokens.
function lessonScores(reading, layer, head, position, shown) {
  const { model, cache } = reading, { attn } = model.blocks[layer], n = reading.tokens.length;
  const vectors = shown.map((each) => lessonVectors(reading, layer, head, each)), own = vectors[shown.indexOf(position)];
  let { query } = own;
  for (let step = 1; step < attn.steps; step++) {     // Hopfield: the weighted sum of keys is the next query
    const first = attn.firstKey(position, cache);
    query = attn.retrieved(attn.normalised(attn.scores(query, 0, head, first, position, cache), first), head, cache);
  }
  const scores = attn.scores(query, 0, head, 0, n - 1, cache), scale = lessonScale(model.config);
  const row = (asks) => Float64Array.from(attn.scores(asks, 0, head, 0, n - 1, cache).filter((_, key) => shown.includes(key)));
  return { scores, query, plainQuery: own.plainQuery, firstKey: attn.firstKey(position, cache), scale,
    products: scale === null ? null : vectors.map(({ key }) => dot(query, 0, key, 0, query.length)),
    keys: vectors.map(({ key }) => key), plainKeys: vectors.map(({ plainKey }) => plainKey), values: vectors.map(({ value }) => value),
    pairs: vectors.map((each) => row(each.query)), unmasked: attn.normalised(scores.slice(), 0) };
}

// From the heads on: what each adds to the stream, the MLP, and the stream before the output head.
function lessonOutput({ model, trace }, layer, position) {
  const { config, blocks, finalNorm } = model, { n_head: H, width_per_head: D } = config, block = blocks[layer];
  const stream = trace.residual[layer][position], attnOut = trace.attnOut[layer][position], z = trace.z[layer][position];
  const afterAttention = stream.map((x, i) => x + attnOut[i]);
  const mlpReads = readByPart(block, "mlpNorm", config.block === "parallel" ? stream : afterAttention);
  const written = Array.from({ length: H }, (_, h) => {
    const alone = new Float64Array(H * D);
    alone.set(z.subarray(h * D, (h + 1) * D), h * D);
    return Math.hypot(...linear(alone, { weight: block.attn.proj.weight }));
  });
  const last = trace.residual[blocks.length][position];
  return { attnOut, afterAttention, written, hidden: block.mlp.hidden(mlpReads, 1), mlpOut: trace.mlpOut[layer][position],
    after: trace.residual[layer + 1][position], finalNormed: normalise(last, finalNorm, config) };
}
