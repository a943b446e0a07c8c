// The decoder-only transformer, from token ids to logits, in the order and with the names of model/gpt.py.

class MLP {
  constructor(config, layer, get) {
    const name = `blocks.${layer}.mlp`, first = config.mlp === "swiglu" ? "gate_up" : "up";
    this.isGated = config.mlp === "swiglu";
    this.activation = ACTIVATIONS[config.mlp];
    this.up = { weight: get(`${name}.${first}.weight`), bias: get(`${name}.${first}.bias`)?.data };
    this.proj = { weight: get(`${name}.proj.weight`), bias: get(`${name}.proj.bias`)?.data };
  }

  // (T, C) -> (T, mlp_width): what the output layer reads.
  hidden(x, T) {
    const up = linear(x, this.up);
    if (!this.isGated) return up.map(this.activation);
    const width = up.length / T / 2, y = new Float64Array(T * width);
    for (let t = 0; t < T; t++) {
      const gate = 2 * t * width;                   // the gate's columns, then those that it lets through
      for (let i = 0; i < width; i++) y[t * width + i] = this.activation(up[gate + i]) * up[gate + width + i];
    }
    return y;
  }

  // (T, C) -> (T, C)
  forward(x, T) {
    return linear(this.hidden(x, T), this.proj);
  }
}

class Block {
  constructor(config, layer, get) {
    const data = (name) => get(`blocks.${layer}.${name}`)?.data;
    const norm = (name) => ({ weight: data(`${name}.weight`), bias: data(`${name}.bias`) });
    this.config = config;
    this.layer = layer;
    this.attnNorm = norm("attn_norm");
    this.attn = new Attention(config, layer, get);
    this.mlpNorm = norm("mlp_norm");
    this.mlp = new MLP(config, layer, get);
  }

  // What attention adds to the stream x, (T, C): of a normalised copy, or with post_norm normalised itself.
  attnOut(x, run) {
    const isPost = this.config.block === "post_norm", normed = isPost ? x : normalise(x, this.attnNorm, this.config);
    const update = this.attn.forward(normed, run);
    return this.changed("attnOut", isPost ? normalise(update, this.attnNorm, this.config) : update, run);
  }

  mlpOut(x, run) {
    const isPost = this.config.block === "post_norm", normed = isPost ? x : normalise(x, this.mlpNorm, this.config);
    const update = this.mlp.forward(normed, run.T);
    return this.changed("mlpOut", isPost ? normalise(update, this.mlpNorm, this.config) : update, run);
  }

  changed(part, update, { T, plan, trace }) {
    plan?.changeOutput(part, this.layer, update, T);
    trace?.add(part, this.layer, update, T);
    return update;
  }

  // Adds both updates to the stream, (T, C). In a parallel block the MLP does not read what attention has added.
  forward(x, run) {
    if (this.config.block === "parallel") {
      const attnOut = this.attnOut(x, run);
      return addTo(addTo(x, this.mlpOut(x, run)), attnOut);
    }
    addTo(x, this.attnOut(x, run));
    return addTo(x, this.mlpOut(x, run));
  }
}

class GPT {
  // config: live_config of weights.py, GPTConfig with its defaults filled in. tensors: of loadTensors.
  constructor(config, tensors) {
    const get = (name) => tensors.get(name);
    this.config = config;
    this.tokenEmbedding = get("token_embedding.weight");
    this.positionEmbedding = config.position === "sinusoidal" ? sinusoidalTable(config) : get("position_embedding.weight");
    this.blocks = config.windows.map((_, layer) => new Block(config, layer, get));
    this.finalNorm = { weight: get("final_norm.weight").data, bias: get("final_norm.bias")?.data };
    this.lmHead = { weight: config.tie_embeddings ? this.tokenEmbedding : get("lm_head.weight") };
  }

  cache() {
    return new KVCache(this.config);
  }

  // Logits of the next token, (T, V), after each of the T tokens that follow those in the cache; (1, V) for "last".
  forward(tokens, { cache = this.cache(), interventions = null, means = null, trace = null, logits = "all" } = {}) {
    const T = tokens.length, plan = planOf(interventions, means, this.config);
    if (T === 0) return new Float32Array(0);
    cache.begin(tokens);
    const x = this.embed(tokens, cache), run = { T, cache, trace, plan };
    for (const block of this.blocks) {
      trace?.add("residual", block.layer, x, T);
      block.forward(x, run);
    }
    trace?.add("residual", this.blocks.length, x, T);
    cache.position += T;
    if (trace) trace.length = cache.position;
    if (logits === "none") return new Float32Array(0);
    return this.lens(logits === "last" ? x.subarray(x.length - this.config.n_embd) : x);
  }

  // Token embedding plus, where there is one, position embedding: (T, C). Positions count from a document's start.
  embed(tokens, cache) {
    const C = this.config.n_embd, x = new Float64Array(tokens.length * C);
    for (let t = 0; t < tokens.length; t++) {
      const position = cache.position + t;
      addRow(this.tokenEmbedding, tokens[t], x, t * C);
      if (this.positionEmbedding) addRow(this.positionEmbedding, position - cache.documents[position], x, t * C);
    }
    return x;
  }

  // Final norm and output head of rows of the residual stream, (T, C) -> (T, V).
  lens(x) {
    return Float32Array.from(linear(normalise(x, this.finalNorm, this.config), this.lmHead));
  }
}

// Adds row `row` of a table to x, from `at` on.
function addRow({ data, scales, shape: [, C] }, row, x, at) {
  const scale = scales ? scales[row] : 1;
  for (let i = 0; i < C; i++) x[at + i] += data[row * C + i] * scale;
}

// Sines in the even channels, cosines in the odd ones; `sinusoidal_table` of positions.py.
function sinusoidalTable({ context_length, n_embd: C }) {
  const wave = (t, i) => (i % 2 ? Math.cos : Math.sin)(t * 10000 ** (-(i - (i % 2)) / C));
  const data = Float32Array.from({ length: context_length * C }, (_, n) => 0.02 * Math.SQRT2 * wave(Math.floor(n / C), n % C));
  return { data, shape: [context_length, C] };
}
