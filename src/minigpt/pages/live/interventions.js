// Interventions: heads, MLPs and layers switched off or scaled, and patterns changed, while the model runs. They are plain
// data: {heads: {"1.0": {scale: 0}}, mlps: {"0": "mean"}, attentions, layers, cells: [{layer, head, query, key, weight}]}.

// The mean over the first n positions of what each part puts out, in a run without interventions: what "mean" puts in its
// place. `ablation` of inspection/ablation.py has no use for the text's last token: for its numbers, n is one less.
function meansOf(trace, n = trace.length) {
  const mean = (rows) => {
    const sum = new Float64Array(rows[0].length);
    for (let t = 0; t < n; t++) addTo(sum, rows[t]);
    return sum.map((x) => x / n);
  };
  return { z: trace.z.map(mean), attnOut: trace.attnOut.map(mean), mlpOut: trace.mlpOut.map(mean) };
}

// Whether a specification needs the means of the text.
const needsMeans = ({ heads = {}, mlps = {}, attentions = {}, layers = {} }) =>
  Object.values(heads).some((head) => head.mean) || [mlps, attentions, layers].some((parts) => Object.values(parts).includes("mean"));

// What a forward pass asks at each place; null when there is nothing to change.
function planOf(spec, means, config) {
  if (!spec) return null;
  const { heads = {}, mlps = {}, attentions = {}, layers = {}, cells = [] } = spec;
  const outputs = { attnOut: { ...attentions, ...layers }, mlpOut: { ...mlps, ...layers } };
  if (needsMeans(spec) && !means) throw new Error("an intervention replaces by the mean: give forward the means of meansOf(trace)");
  return new Plan(heads, outputs, cells, means, config);
}

class Plan {
  constructor(heads, outputs, cells, means, config) {
    Object.assign(this, { heads, outputs, means, D: config.width_per_head, H: config.n_head });
    this.cells = cells;
  }

  // Weights of the keys 0..query, in place. A head that is forced never leaves the document of its query.
  changePattern(layer, head, query, weights, documentStart) {
    const attend = this.heads[`${layer}.${head}`]?.attend;
    if (attend) weights.fill(0)[attend === "first" ? documentStart : Math.max(query - 1, documentStart)] = 1;
    const isHere = (cell) => cell.layer === layer && cell.head === head && cell.query === query && cell.key <= query;
    const cells = this.cells.filter(isHere);
    if (cells.length) setCells(weights, cells, documentStart);
  }

  // z (T, H, D), in place, before the output projection.
  changeHeads(layer, z, T) {
    const { H, D } = this;
    for (let h = 0; h < H; h++) {
      const { mean = false, scale = 1 } = this.heads[`${layer}.${h}`] ?? {};
      if (!mean && scale === 1) continue;
      for (let t = 0; t < T; t++) {
        for (let i = 0; i < D; i++) {
          const at = (t * H + h) * D + i;
          z[at] = scale * (mean ? this.means.z[layer][h * D + i] : z[at]);
        }
      }
    }
  }

  // What attention or the MLP adds to the stream, (T, C), in place.
  changeOutput(part, layer, update, T) {
    const kind = this.outputs[part][layer];
    if (kind === "zero") update.fill(0);
    if (kind === "mean") for (let t = 0; t < T; t++) update.set(this.means[part][layer], (t * update.length) / T);
  }
}

// Sets the weights of some keys; those of the other keys are rescaled, so that the row still sums to 1.
function setCells(weights, cells, documentStart) {
  const wanted = new Map(cells.map(({ key, weight }) => [key, weight])), isFree = (s) => s >= documentStart && !wanted.has(s);
  const total = [...wanted.values()].reduce((sum, weight) => sum + weight, 0);
  let others = 0, n = 0;
  for (let s = 0; s < weights.length; s++) if (isFree(s)) { others += weights[s]; n++; }
  const left = Math.max(0, 1 - total);
  for (let s = 0; s < weights.length; s++) {
    // Other keys whose weights are all 0 share the rest evenly. With no other keys, or above 1, the set ones are rescaled.
    if (isFree(s)) weights[s] = others > 0 ? (weights[s] * left) / others : left / n;
    else if (wanted.has(s)) weights[s] = n === 0 || total > 1 ? wanted.get(s) / (total || 1) : wanted.get(s);
  }
}
