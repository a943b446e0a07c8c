// What the panels measure on the text: the statistics of each head, the loss without each part.

// Statistics of a row of weights, as in inspection/statistics.py; they need a query after the first token.
const STATISTICS = {
  entropy: (weights, query) => weights.reduce((sum, weight) => sum - (weight > 0 ? weight * Math.log(weight) : 0), 0) / Math.log(query + 1),
  previous_token: (weights, query) => weights[query - 1],
  current_token: (weights, query) => weights[query],
  first_token: (weights) => weights[0],
  mean_distance: (weights, query) => weights.reduce((sum, weight, key) => sum + weight * (query - key), 0),
};

// Mean of a statistic over the queries of a head, from the second on; null for a single token. weightsOf(query): the row of weights.
function meanStatistic(name, n, weightsOf) {
  let sum = 0;
  for (let query = 1; query < n; query++) sum += STATISTICS[name](weightsOf(query), query);
  return n > 1 ? sum / (n - 1) : null;
}

// Of each head, "1.0": the mean of each statistic over the text; null for a single token.
Session.prototype.scores = function () {
  const { trace, tokens } = this.base, { n_layer, n_head } = this.model.config, found = {};
  for (let layer = 0; layer < n_layer; layer++) {
    for (let head = 0; head < n_head; head++) {
      const mean = (name) => meanStatistic(name, tokens.length, (query) => trace.weights(layer, head, query));
      found[`${layer}.${head}`] = Object.fromEntries(Object.keys(STATISTICS).map((name) => [name, mean(name)]));
    }
  }
  return found;
};

// The parts of a model and the interventions that take them away: {"1.0": spec, "attn1": ..., "mlp1": ..., "layer1": ...}.
function partSpecs({ n_layer, n_head }, kind) {
  const specs = {}, head = kind === "mean" ? { mean: true } : { scale: 0 };
  for (let layer = 0; layer < n_layer; layer++) {
    for (let h = 0; h < n_head; h++) specs[`${layer}.${h}`] = { heads: { [`${layer}.${h}`]: head } };
    for (const [name, part] of [["attn", "attentions"], ["mlp", "mlps"], ["layer", "layers"]]) {
      specs[name + layer] = { [part]: { [layer]: kind } };
    }
  }
  return specs;
}

// Reads the text without each part (kind "zero" or "mean"; only some `parts`): name -> measure(reading). A forward pass for each
// part, so other calls are answered in between; null if the text changes.
Session.prototype.withoutEachPart = async function (kind, measure, parts = null) {
  const { base } = this, tokens = [...base.tokens], means = kind === "mean" ? base.means() : null, found = {};
  for (const [name, interventions] of Object.entries(partSpecs(this.model.config, kind))) {
    if (parts && !parts.includes(name)) continue;
    const reading = new Reading(this.model, { interventions, means });
    const isStale = () => tokens.length !== base.tokens.length || tokens.some((token, i) => token !== base.tokens[i]);
    if (!await reading.read(tokens, isStale)) return null;
    found[name] = measure(reading);
    await pause();
  }
  return found;
};

// Change of the text's loss in nats per token without each part: above zero the part helps. As `ablation` of inspection/ablation.py.
Session.prototype.ablations = async function ({ kind, parts = null }) {
  const whole = this.base.loss();
  return whole === null ? {} : this.withoutEachPart(kind, (reading) => reading.loss() - whole, parts);
};
