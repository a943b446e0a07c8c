// Computes the answers to the questions of questions.py, on the text as it is and without interventions.
const QUESTION_ANSWERS = {
  score: (session, { score }) => Object.entries(session.scores()).map(([name, scores]) => [name, scores[score]]),
  // Change of the text's loss without each head, or each of the choices, in nats per token.
  ablation: async (session, { choices }) => {
    const { n_layer, n_head } = session.model.config, heads = Array.from({ length: n_layer * n_head }, (_, i) => `${Math.floor(i / n_head)}.${i % n_head}`);
    const changes = await session.ablations({ kind: "zero", parts: choices?.map(({ name }) => name) ?? heads });
    return changes && Object.entries(changes);
  },
  // Change of each token's loss without a part, in nats.
  loss: async ({ model, base }, { part }) => {
    const without = new Reading(model, { interventions: partSpecs(model.config, "zero")[part] }), before = [...base.surprise];
    await without.read(base.tokens);
    return before.map((bits, i) => [`${i}`, bits === null ? -Infinity : (without.surprise[i] - bits) * Math.LN2]);
  },
  key: ({ base }, { part, position }) => Array.from(base.trace.weights(...part.split(".").map(Number), position), (weight, key) => [`${key}`, weight]),
  next: ({ base }, { position, choices }) => {
    const logits = base.logits(position), total = logSumExp(logits);
    return choices.map(({ name }) => [name, Math.exp(logits[name] - total)]);
  },
};

// [[name, value], ...], the answer first: names of heads ("1.0"), positions, or names of choices. null if the text changes meanwhile.
Session.prototype.check = async function (question) {
  const values = await QUESTION_ANSWERS[question.kind](this, question);
  return values && values.sort((a, b) => b[1] - a[1]);
};
