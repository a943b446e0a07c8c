// Products of matrices, norms, activations and the largest logits. Activations are Float64Arrays: V8 computes in double precision, and would
// convert a Float32Array at each access.

// y = x W' + b, as nn.Linear: x (T, I), W (O, I), one row for each output -> (T, O).
function linear(x, { weight, bias }) {
  const { data, scales, shape: [O, I] } = weight, T = x.length / I, y = new Float64Array(T * O);
  let t = 0;
  for (; t + 4 <= T; t += 4) timesFourVectors(data, O, I, x, t, y);
  for (; t < T; t++) timesVector(data, O, I, x, t, y);
  if (!scales && !bias) return y;
  for (t = 0; t < T; t++) {
    for (let o = 0; o < O; o++) {
      const sum = scales ? y[t * O + o] * scales[o] : y[t * O + o];
      y[t * O + o] = bias ? sum + bias[o] : sum;
    }
  }
  return y;
}

// Four rows of W at once: four sums that do not wait for each other, and one access to x for all.
function timesVector(data, O, I, x, t, y) {
  const at = t * I, to = t * O;
  let o = 0;
  for (; o + 4 <= O; o += 4) {
    const a = o * I, b = a + I, c = b + I, d = c + I;
    let p = 0, q = 0, r = 0, s = 0;
    for (let i = 0; i < I; i++) {
      const v = x[at + i];
      p += data[a + i] * v;
      q += data[b + i] * v;
      r += data[c + i] * v;
      s += data[d + i] * v;
    }
    y[to + o] = p;
    y[to + o + 1] = q;
    y[to + o + 2] = r;
    y[to + o + 3] = s;
  }
  for (; o < O; o++) {
    let sum = 0;
    for (let i = 0; i < I; i++) sum += data[o * I + i] * x[at + i];
    y[to + o] = sum;
  }
}

// Four tokens and two rows of W at once: six accesses to memory for eight products. 1.5 times as fast as one row at once.
function timesFourVectors(data, O, I, x, t, y) {
  const a = t * I, b = a + I, c = b + I, d = c + I;
  for (let o = 0; o < O; o += 2) {
    const at = o * I, isLast = o + 1 === O, next = isLast ? at : at + I, to = t * O + o;
    let p = 0, q = 0, r = 0, s = 0, p2 = 0, q2 = 0, r2 = 0, s2 = 0;
    for (let i = 0; i < I; i++) {
      const w = data[at + i], w2 = data[next + i], xa = x[a + i], xb = x[b + i], xc = x[c + i], xd = x[d + i];
      p += w * xa;
      q += w * xb;
      r += w * xc;
      s += w * xd;
      p2 += w2 * xa;
      q2 += w2 * xb;
      r2 += w2 * xc;
      s2 += w2 * xd;
    }
    y[to] = p;
    y[to + O] = q;
    y[to + 2 * O] = r;
    y[to + 3 * O] = s;
    if (isLast) return;
    y[to + 1] = p2;
    y[to + O + 1] = q2;
    y[to + 2 * O + 1] = r2;
    y[to + 3 * O + 1] = s2;
  }
}

// a[i..i + n] . b[j..j + n]
function dot(a, i, b, j, n) {
  let sum = 0;
  for (let k = 0; k < n; k++) sum += a[i + k] * b[j + k];
  return sum;
}

function addTo(x, update) {
  for (let i = 0; i < x.length; i++) x[i] += update[i];
  return x;
}

// LayerNorm (with a mean to subtract) or RMSNorm of each row of weight.length numbers; `make_norm` of gpt.py.
function normalise(x, { weight, bias }, { norm, eps }) {
  const width = weight.length, y = new Float64Array(x.length);
  for (let at = 0; at < x.length; at += width) {
    let mean = 0, square = 0;
    if (norm === "layernorm") {
      for (let i = 0; i < width; i++) mean += x[at + i];
      mean /= width;
    }
    for (let i = 0; i < width; i++) square += (x[at + i] - mean) ** 2;
    const scale = 1 / Math.sqrt(square / width + eps);
    for (let i = 0; i < width; i++) y[at + i] = (x[at + i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
  }
  return y;
}

// The error function, to within 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26): JavaScript has none.
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const sum = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - sum * Math.exp(-x * x));
}

const ACTIVATIONS = {
  gelu: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  gelu_exact: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  swiglu: (x) => x / (1 + Math.exp(-x)),            // silu, of the gate
};

// Ids of the largest logits, largest first.
function topOf(logits, count) {
  const best = [];
  for (let token = 0; token < logits.length; token++) {
    if (best.length === count && logits[token] <= logits[best[count - 1]]) continue;
    let at = best.length;
    while (at > 0 && logits[best[at - 1]] < logits[token]) at--;
    best.splice(at, 0, token);
    if (best.length > count) best.pop();
  }
  return best;
}
