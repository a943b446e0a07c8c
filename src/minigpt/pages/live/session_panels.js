// What the panels ask of the session: both distributions of a next token, the logit lens, and tokens to write.

// Probabilities of all tokens.
const softmaxOf = (logits) => softmax(Float64Array.from(logits));

// Whether there is a reading, and it has come to a position: one that a newer text interrupted has not.
const hasRead = (reading, position) => reading !== null && position >= 0 && position < reading.tokens.length;

// The likeliest tokens after a position with their probabilities without and with the interventions, by the larger of them.
Session.prototype.compare = function ({ position, count }) {
  if (!hasRead(this.base, position)) return [];
  const after = hasRead(this.changed, position) ? this.changed : this.base;
  const [base, changed] = [this.base, after].map((reading) => softmaxOf(reading.logits(position)));
  const larger = (token) => Math.max(base[token], changed[token]);
  return [...new Set([...topOf(base, count), ...topOf(changed, count)])].sort((a, b) => larger(b) - larger(a)).slice(0, count)
    .map((token) => ({ token, label: this.tokenizer.label(token), base: base[token], changed: changed[token] }));
};

// What each part is for: without it, the change of the text's loss in nats per token, the likeliest token after a position, and
// the probability of the token that the whole model expects there.
Session.prototype.partEffects = function ({ kind, position }) {
  if (!hasRead(this.base, position)) return null;
  const whole = this.base.loss(), [expected] = topOf(this.base.logits(position), 1);
  return this.withoutEachPart(kind, (reading) => {
    const probability = softmaxOf(reading.logits(position)), [token] = topOf(probability, 1);
    const loss = whole === null ? 0 : reading.loss() - whole;
    return { loss, token, label: this.tokenizer.label(token), probability: probability[expected], isOther: token !== expected };
  });
};

// What the final norm and the head read from the residual stream at a position: before the first layer, then after each
// (nostalgebraist 2020, "interpreting GPT: the logit lens"). target: the text's next token; probability null at its end.
Session.prototype.lens = function ({ position }) {
  if (!hasRead(this.base, position)) return { base: [], changed: null };
  const target = this.base.tokens[position + 1];
  const read = (reading) => hasRead(reading, position) && reading.trace.residual.map((rows) => {
    const probabilities = softmaxOf(this.model.lens(rows[position])), [token] = topOf(probabilities, 1);
    const targetProbability = target === undefined ? null : probabilities[target];
    return { ...this.candidate(token, probabilities[token]), targetProbability };
  });
  return { base: read(this.base), changed: read(this.changed) || null };
};

// Draws the token after `tokens`, with the interventions. Draw number `position` of a seed is always the same number, so one
// path of the tree and one seed give the same text again. Alternatives: probability by the model; drawn: after the filters.
Session.prototype.writeStep = async function ({ tokens, settings, position, count = 12 }) {
  const { options } = this.changed ?? this.base;
  if (this.writer?.options !== options) this.writer = new Reading(this.model, options);
  await this.writer.read(tokens);
  const logits = this.writer.logits(tokens.length - 1), last = candidates(logits, settings, tokens).stages.at(-1);
  const token = draw(last, randomAt(settings.seed, position)), probability = softmaxOf(logits), drawn = new Map();
  probabilities(last).forEach((share, i) => drawn.set(last.tokens[i], share));
  const shown = topOf(probability, count);
  if (!shown.includes(token)) shown.splice(-1, 1, token);
  return { token, label: this.tokenizer.label(token), isEnd: token === this.tokenizer.endOfText,
    alternatives: shown.map((each) => ({ ...this.candidate(each, probability[each]), drawn: drawn.get(each) ?? 0 })) };
};

// The generator of a seed, after the numbers of earlier draws.
function randomAt(seed, position) {
  const random = new Random(seed);
  for (let i = 0; i < position; i++) random.uniform();
  return random;
}
