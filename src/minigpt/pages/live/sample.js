// Logits of the next token -> the token drawn: the filters of generation/sampling.py in their order.

// The tokens left after each filter, first all of them. `seen` are the tokens that repetition_penalty applies to.
function candidates(logits, settings, seen = []) {
  const V = logits.length, { temperature, top_k, top_p, min_p, repetition_penalty } = settings;
  const stages = [{ name: "permitted", tokens: new Int32Array(V).map((_, i) => i), logits: new Float64Array(logits) }];
  const last = () => stages[stages.length - 1];
  const change = (name, f) => stages.push({ ...last(), name, logits: last().logits.map(f) });
  const keep = (name, least) => stages.push({ name, ...keptFrom(last(), least) });
  if (isSet(repetition_penalty) && repetition_penalty !== 1) {
    // Keskar et al. 2019 (arXiv:1909.05858): divided if positive, multiplied if negative, so always less likely.
    const repeated = new Set(seen);
    change("repetition_penalty", (logit, token) => (!repeated.has(token) ? logit
      : logit > 0 ? logit / repetition_penalty : logit * repetition_penalty));
  }
  if (temperature === 0) {   // greedy: the likeliest, the first of equals; draws from one token are certain
    const token = last().logits.indexOf(largest(last().logits));
    stages.push({ name: "temperature", tokens: Int32Array.of(token), logits: last().logits.slice(token, token + 1) });
    return { stages };
  }
  if (isSet(temperature) && temperature !== 1) change("temperature", (logit) => logit / temperature);
  // By value, not by place: ties with the k-th token stay, whichever comes first in the vocabulary.
  if (isSet(top_k) && top_k < V) keep("top_k", descending(last().logits)[top_k - 1]);
  if (isSet(top_p) && top_p < 1) keep("top_p", nucleusThreshold(last().logits, top_p));
  if (min_p) keep("min_p", largest(last().logits) + Math.log(min_p));   // ratios of probabilities: differences of logits
  return { stages };
}

const isSet = (value) => value !== undefined && value !== null;
const largest = (values) => values.reduce((most, value) => Math.max(most, value), -Infinity);
const descending = (values) => values.slice().sort().reverse();

function keptFrom({ tokens, logits }, least) {
  return { tokens: tokens.filter((_, i) => logits[i] >= least), logits: logits.filter((logit) => logit >= least) };
}

// The smallest logit of the nucleus, the likeliest tokens whose probabilities add up to top_p (Holtzman et al. 2019,
// arXiv:1904.09751).
function nucleusThreshold(logits, top_p) {
  const likeliest = descending(logits), exps = likeliest.map((logit) => Math.exp(logit - likeliest[0]));
  const total = exps.reduce((sum, value) => sum + value, 0);
  let i = 0;
  for (let sum = exps[0]; sum / total < top_p && i < likeliest.length - 1; sum += exps[i]) i++;
  return likeliest[i];
}

// The softmax over a stage's tokens.
function probabilities(stage) {
  const most = largest(stage.logits), exps = stage.logits.map((logit) => Math.exp(logit - most));
  const total = exps.reduce((sum, value) => sum + value, 0);
  return exps.map((value) => value / total);
}

// Draws one token of a stage, usually the last, by inverse transform sampling. Of one token, no number is drawn.
function draw(stage, random) {
  const { tokens, logits } = stage, most = largest(logits);
  if (tokens.length === 1) return tokens[0];
  let sum = 0;
  const cumulative = logits.map((logit) => sum += Math.exp(logit - most));
  const target = random.uniform() * (1 - 2 ** -52) * sum;   // below the sum: never a token of probability 0
  return tokens[cumulative.findIndex((value) => value > target)];
}

// Uniform numbers in [0, 1) of 53 bits, the same for the same seed: mulberry32 (Tommy Ettinger 2017). Not torch's.
class Random {
  constructor(seed) { this.state = seed >>> 0; }

  uniform() { return ((this.next() >>> 5) * 2 ** 26 + (this.next() >>> 6)) / 2 ** 53; }

  next() {
    this.state = this.state + 0x6d2b79f5 >>> 0;
    let x = this.state;
    x = Math.imul(x ^ x >>> 15, x | 1);
    x ^= x + Math.imul(x ^ x >>> 7, x | 61);
    return (x ^ x >>> 14) >>> 0;
  }
}
