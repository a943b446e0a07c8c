// Causal multi-head self-attention: project, rotate, extend the cache, attend, and mix the heads (model/attention.py).

// What a product of query and key is multiplied with, where the score is such a product.
const SCALES = {
  scaled_dot: (D, config) => 1 / (Math.sqrt(D) * config.softmax_temperature),
  hopfield: (D, config) => config.hopfield_beta ?? 1 / Math.sqrt(D),
};
SCALES.symmetric = SCALES.scaled_dot;                                 // queries are the keys
SCALES.hard = SCALES.scaled_dot;                                      // its weights are not a softmax

// score(query, i, key, j, head) of two vectors of D numbers at i and j; model/variants/similarities.py explains them.
const SIMILARITIES = {
  cosine: (D, logTemperature) => {
    const norm = (x, i) => Math.max(Math.sqrt(dot(x, i, x, i, D)), 1e-6);
    const temperatures = Array.from(logTemperature, (x) => Math.max(Math.exp(x), 0.01));
    return (query, i, key, j, head) => dot(query, i, key, j, D) / (norm(query, i) * norm(key, j) * temperatures[head]);
  },
  gaussian: (D, logWidth) => {
    const precisions = Array.from(logWidth, (x) => Math.exp(-2 * x));
    return (query, i, key, j, head) => {
      let square = 0;
      for (let n = 0; n < D; n++) square += (query[i + n] - key[j + n]) ** 2;
      return (-square / 2) * precisions[head];
    };
  },
  uniform: () => () => 0,
  linear: (D) => {
    const feature = (x) => (x > 0 ? x + 1 : Math.exp(x));
    return (query, i, key, j) => {
      let sum = 0;
      for (let n = 0; n < D; n++) sum += feature(query[i + n]) * feature(key[j + n]);
      return sum;
    };
  },
};

class Attention {
  constructor(config, layer, get) {
    const name = `blocks.${layer}.attn`, data = (end) => get(`${name}.${end}`)?.data;
    const { n_head: H, kv_heads, width_per_head: D, similarity } = config;
    this.config = config;
    this.layer = layer;
    this.window = config.windows[layer] ?? Infinity;
    this.qkv = { weight: get(`${name}.qkv.weight`), bias: data("qkv.bias") };
    this.proj = { weight: get(`${name}.proj.weight`), bias: data("proj.bias") };
    this.qNorm = { weight: data("q_norm.weight"), bias: data("q_norm.bias") };
    this.kNorm = { weight: data("k_norm.weight"), bias: data("k_norm.bias") };
    // A similarity has no weights for what it does not read.
    this.nQuery = similarity === "symmetric" || similarity === "uniform" ? 0 : H;
    this.nKey = similarity === "uniform" ? 0 : kv_heads;
    const scale = this.scale = SCALES[similarity]?.(D, config) ?? null;
    this.score = scale !== null ? (query, i, key, j) => scale * dot(query, i, key, j, D)
      : SIMILARITIES[similarity](D, data("similarity.log_temperature") ?? data("similarity.log_width"));
    this.steps = similarity === "hopfield" ? config.hopfield_steps : 1;
  }

  // x (T, C), the normalised stream -> (T, C). Adds keys and values to the cache; writes weights and z into the trace.
  forward(x, run) {
    const { T, cache, trace, plan } = run, { n_head: H, width_per_head: D } = this.config;
    const { query, key, value } = this.project(x, run);
    cache.extend(this.layer, key, value);
    const values = cache.layers[this.layer].value, z = new Float64Array(T * H * D);
    for (let t = 0; t < T; t++) {
      const position = cache.position + t, pattern = trace && new Float32Array(H * (position + 1));
      for (let h = 0; h < H; h++) {
        const at = (t * H + h) * D;
        const weights = this.weights(query, at, h, position, cache);
        plan?.changePattern(this.layer, h, position, weights, cache.documents[position]);
        weighOneHead(weights, values, this.kvHead(h), cache.width, z, at, D);
        pattern?.set(weights, h * (position + 1));
      }
      trace?.patterns[this.layer].push(pattern);
    }
    plan?.changeHeads(this.layer, z, T);
    trace?.add("z", this.layer, z, T);
    return linear(z, this.proj);
  }

  // Query (T, H, D), key and value (T, H_kv, D): normalised where qk_norm is on, and rotated; values are not.
  project(x, { T, cache }) {
    const { n_head: H, kv_heads, width_per_head: D, qk_norm } = this.config;
    const { nQuery, nKey } = this, qkv = linear(x, this.qkv);
    let query = columns(qkv, T, 0, nQuery * D), key = columns(qkv, T, nQuery * D, nKey * D);
    const value = columns(qkv, T, (nQuery + nKey) * D, kv_heads * D);
    const plain = { query, key };                   // as projected, for `explain`
    // Per head the norm's weight has D numbers, else H D: `normalise` goes by them.
    if (qk_norm && nQuery) query = normalise(query, this.qNorm, this.config);
    if (qk_norm && nKey) key = normalise(key, this.kNorm, this.config);
    if (!nKey) key = new Float64Array(T * kv_heads * D);
    if (!nQuery) query = nKey ? key : new Float64Array(T * H * D);
    if (!nQuery) plain.query = nKey ? plain.key : query;
    const { rotary } = this.config;
    if (rotary) {
      query = rotate(query, T, D, rotary, cache);
      key = rotate(key, T, D, rotary, cache);
    }
    return { query, key, value, plain };
  }

  // First key that a position attends to: keys before its document or its window are masked.
  firstKey(position, cache) {
    return Math.max(cache.documents[position], position - this.window + 1);
  }

  // The weights of the keys 0..position for the query at `at`, of one head: they sum to 1.
  weights(query, at, head, position, cache) {
    const first = this.firstKey(position, cache), last = this.lastQuery(query, at, head, first, position, cache);
    return this.normalised(this.scores(last.query, last.at, head, first, position, cache), first);
  }

  // Hopfield: all but the last step replace the query by the weighted sum of keys.
  lastQuery(query, at, head, first, position, cache) {
    for (let step = 1; step < this.steps; step++) {
      const weights = this.normalised(this.scores(query, at, head, first, position, cache), first);
      query = new Float64Array(this.config.width_per_head);
      at = 0;
      weighOneHead(weights, cache.layers[this.layer].key, this.kvHead(head), cache.width, query, at, query.length);
    }
    return { query, at };
  }

  // The key and value head that a query head reads.
  kvHead(head) {
    return Math.floor((head * this.config.kv_heads) / this.config.n_head);
  }

  // The scores of the keys first..last; -Infinity before.
  scores(query, at, head, first, last, cache) {
    const { width_per_head: D, logit_softcap: cap, slopes } = this.config;
    const keys = cache.layers[this.layer].key, column = this.kvHead(head) * D;
    const scores = new Float64Array(last + 1).fill(-Infinity, 0, first);
    for (let s = first; s <= last; s++) {
      const score = this.score(query, at, keys, s * cache.width + column, head);
      // The cap comes before ALiBi's bias, which it would otherwise flatten at long distances.
      scores[s] = (cap ? cap * Math.tanh(score / cap) : score) + (slopes ? slopes[head] * s : 0);
    }
    return scores;
  }

  // Scores -> weights, in place.
  normalised(scores, first) {
    const { similarity } = this.config;
    if (similarity === "hard") return oneHot(scores);
    return similarity === "linear" ? shares(scores, first) : softmax(scores);
  }

  // What `explain` asks: the query, as projected and after norm and rotation, of the stream at one position.
  queryAt(stream, { attnNorm }, position, { documents }) {
    const isPost = this.config.block === "post_norm", x = Float64Array.from(stream);
    return this.project(isPost ? x : normalise(x, attnNorm, this.config), { T: 1, cache: { position, documents } });
  }

  // The cached keys or values that a head reads, (S, D).
  rowsOf(rows, head, cache) {
    const D = this.config.width_per_head, from = this.kvHead(head) * D;
    return columns(rows.subarray(0, cache.position * cache.width), cache.position, from, D);
  }
}

// z[at..at + D] += the sum of the rows of one key/value head, each times its weight.
function weighOneHead(weights, rows, kv, width, z, at, D) {
  for (let s = 0; s < weights.length; s++) {
    const weight = weights[s], from = s * width + kv * D;
    if (weight === 0) continue;
    for (let i = 0; i < D; i++) z[at + i] += weight * rows[from + i];
  }
}

function softmax(scores) {
  let largest = -Infinity, sum = 0;
  for (let s = 0; s < scores.length; s++) if (scores[s] > largest) largest = scores[s];
  for (let s = 0; s < scores.length; s++) sum += scores[s] = Math.exp(scores[s] - largest);
  for (let s = 0; s < scores.length; s++) scores[s] /= sum;
  return scores;
}

// Linear attention: the features' products over their sum.
function shares(products, first) {
  products.fill(0, 0, first);
  const sum = products.reduce((total, product) => total + product, 0);
  return products.map((product) => product / Math.max(sum, 2 ** -126));
}

// Hard attention: all weight on the largest score, the first of equals.
function oneHot(scores) {
  const best = scores.indexOf(scores.reduce((a, b) => Math.max(a, b)));
  return scores.fill(0).fill(1, best, best + 1);
}

// Columns from..from + width of the rows of x.
function columns(x, T, from, width) {
  const all = x.length / T, y = new Float64Array(T * width);
  for (let t = 0; t < T; t++) y.set(x.subarray(t * all + from, t * all + from + width), t * width);
  return y;
}

// Rotary positions: channel pair (i, i + D/2) of each head turns by frequencies[i] radians per token; pairs without a frequency
// do not turn. `length` is YaRN's factor. No table of all positions: a context of 128,000 would take 130 MB.
function rotate(x, T, D, { frequencies, length }, cache) {
  const y = x.slice(), width = x.length / T, n = frequencies.length;
  const cos = new Float64Array(n), sin = new Float64Array(n);
  for (let t = 0; t < T; t++) {
    const position = cache.position + t - cache.documents[cache.position + t];
    for (let i = 0; i < n; i++) {
      cos[i] = length * Math.cos(position * frequencies[i]);
      sin[i] = length * Math.sin(position * frequencies[i]);
    }
    for (let at = t * width; at < (t + 1) * width; at += D) {
      for (let i = 0; i < n; i++) {
        const a = x[at + i], b = x[at + i + D / 2];
        y[at + i] = a * cos[i] - b * sin[i];
        y[at + i + D / 2] = b * cos[i] + a * sin[i];
      }
    }
  }
  return y;
}
