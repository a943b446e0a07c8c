// The numbers of one head at one position, from token to logits, as the lesson shows them (lesson.js). They come from what a
// reading of the text has kept, keys, values and activations, so a step costs a few vectors and not a forward pass.
const LESSON_TOKENS = 10;                 // tokens of the text that the lesson shows at once
const LESSON_LATER = 3;                   // of them after the position, which the mask removes
const LESSON_NEXT = 8;                    // likeliest next tokens

// model.explain cut to the shown tokens, with their scores in all pairs, what all keys would get without the mask, and what each
// head adds. run: "base" or "changed". null where the text has no such position, or not yet.
Session.prototype.lesson = function ({ layer, head, position, run = "base" }) {
  const reading = this.reading(run), { model, tokens, trace, cache } = reading;
  if (position >= tokens.length) return null;
  const found = model.explain(tokens, layer, head, position, null, { cache, trace });
  const shown = lessonTokens(found.weights.data, position, tokens.length), { attn } = model.blocks[layer];
  return { ...found, n: tokens.length, shown, start: trace.residual[0][position], written: headLengths(model, layer, found.z.data),
    pairs: shown.map((query) => cutTo(shown, model.explainScores(layer, head, query, cache, trace).scoresBeforeMask)[0]),
    unmasked: attn.normalised(Float64Array.from(found.scoresBeforeMask.data), 0), keys: cutTo(shown, found.keys),
    values: cutTo(shown, found.values),
    top: found.top.slice(0, LESSON_NEXT).map((each) => ({ ...each, label: this.tokenizer.label(each.token) })) };
};

// Rows of the shown tokens of {shape: [T, D], data}; of {shape: [T], data} one row with their numbers.
function cutTo(shown, { shape: [, D], data }) {
  return D === undefined ? [Float32Array.from(shown, (key) => data[key])] : shown.map((key) => data.slice(key * D, (key + 1) * D));
}

// The tokens around a position: some before it, itself, some after it, and the keys with the most weight.
function lessonTokens(weights, position, n) {
  const later = Math.min(LESSON_LATER, n - 1 - position), before = LESSON_TOKENS - later - 1;
  const earlier = Array.from({ length: position }, (_, key) => key).sort((a, b) => weights[b] - weights[a]);
  const shown = new Set(earlier.slice(0, Math.ceil(before / 2)));
  for (let key = position - 1; key >= 0 && shown.size < before; key--) shown.add(key);
  for (let key = position; key <= position + later; key++) shown.add(key);
  return [...shown].sort((a, b) => a - b);
}

// Length of what each head adds to the stream, of z (H, D). The update of attention is the sum of all, plus the bias if there is one.
function headLengths({ config: { n_head: H, width_per_head: D }, blocks }, layer, z) {
  return Array.from({ length: H }, (_, h) => {
    const alone = new Float64Array(H * D);
    alone.set(z.subarray(h * D, (h + 1) * D), h * D);
    return Math.hypot(...linear(alone, { weight: blocks[layer].attn.proj.weight }));
  });
}
