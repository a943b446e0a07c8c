// The model at work: one text, read without and with interventions, and what the panels ask about it. It runs in a Web Worker
// or, where none can be made, on the page's thread. No DOM here.

const CHUNK_WEIGHTS = 1e8;                // tokens times weights read at once, about 0.2 s; then a newer text can take over

// Lets the messages in that arrived meanwhile.
const pause = () => new Promise((resolve) => { setTimeout(resolve, 0); });

// Tokens read at once: a multiple of 4, as the kernels take them.
function chunkOf({ n_layer, n_embd, mlp_width, vocab_size }) {
  const weights = n_layer * n_embd * (4 * n_embd + 3 * mlp_width) + vocab_size * n_embd;
  return Math.min(64, 4 * Math.max(1, Math.floor(CHUNK_WEIGHTS / weights / 4)));
}

// Log of the sum of exponentials of a row of logits.
function logSumExp(logits) {
  let most = -Infinity, sum = 0;
  for (const logit of logits) most = Math.max(most, logit);
  for (const logit of logits) sum += Math.exp(logit - most);
  return most + Math.log(sum);
}

// Bits of surprise of a token, given the logits before it.
const bitsOf = (logits, token) => (logSumExp(logits) - logits[token]) / Math.LN2;

// Tokens as one reading of the model saw them: keys and values, activations and surprise, kept as far as two texts agree.
class Reading {
  constructor(model, options = {}) {      // options: {interventions, means} of model.forward
    this.model = model;
    this.options = options;
    this.cache = model.cache();
    this.trace = new Trace(model.config);
    this.tokens = [];
    this.surprise = [];                   // bits; null for the first token
  }

  forget(n) {
    this.cache.truncate(n);
    this.trace.truncate(n);
    this.tokens.length = this.surprise.length = n;
  }

  // Reads tokens, from the first that differ on. Stops early, with false, when isStale() between two chunks.
  async read(tokens, isStale = () => false) {
    let same = 0;
    while (same < Math.min(tokens.length, this.tokens.length) && tokens[same] === this.tokens[same]) same++;
    this.forget(same);
    const chunk = chunkOf(this.model.config);
    while (this.tokens.length < tokens.length) {
      this.append(tokens.slice(this.tokens.length, this.tokens.length + chunk));
      if (this.tokens.length < tokens.length) await pause();
      if (isStale()) return false;
    }
    return true;
  }

  append(tokens) {
    const { model, cache, trace, options } = this, start = this.tokens.length, V = model.config.vocab_size;
    this.surprise.push(start ? bitsOf(this.logits(start - 1), tokens[0]) : null);
    const isOne = tokens.length === 1;    // whose own logits nobody needs yet
    const logits = model.forward(tokens, { cache, trace, ...options, logits: isOne ? "none" : "all" });
    for (let i = 1; i < tokens.length; i++) this.surprise.push(bitsOf(logits.subarray((i - 1) * V, i * V), tokens[i]));
    this.tokens.push(...tokens);
  }

  // Logits of the token after a position, from the last residual stream.
  logits(position) {
    const rows = this.trace.residual;
    return this.model.lens(rows[rows.length - 1][position]);
  }

  // Mean outputs of the parts over the positions that predict a token of the text, as inspection/ablation.py has them.
  means() { return meansOf(this.trace, Math.max(1, this.tokens.length - 1)); }

  // Mean loss of the text in nats per token; null for fewer than two tokens.
  loss() {
    const bits = this.surprise.slice(1);
    return bits.length ? bits.reduce((sum, bit) => sum + bit, 0) / bits.length * Math.LN2 : null;
  }
}

class Session {
  constructor() {
    this.newest = new Map();              // of text and interventions: the newest call's arguments; older calls stop
  }

  async init({ config, header, chunks, tokenizer }) {
    this.tokenizer = makeTokenizer(tokenizer);
    this.model = new GPT(config, await loadTensors(header, chunks));
    this.base = new Reading(this.model);
    this.changed = null;                  // a Reading with interventions, or null without
    this.spec = null;
    return { limit: this.limit, vocabSize: this.tokenizer.vocabSize };
  }

  get limit() { return this.model.config.context_length; }

  // Tokens of a text, with the token that begins one where the model was trained with it, as `minigpt sample` does.
  encode(text) {
    const { beginOfText, endOfText } = this.tokenizer, cut = this.tokenizer.encodeWithOffsets(text);
    const first = beginOfText ?? (cut.length ? null : endOfText);
    return first === null || first === undefined ? cut : [{ id: first, start: 0, end: 0 }, ...cut];
  }

  // The text of tokens, without what encode puts before it.
  decode(tokens) {
    const { beginOfText, endOfText } = this.tokenizer, isAlone = tokens.length === 1;
    return this.tokenizer.decode(tokens[0] === (beginOfText ?? (isAlone ? endOfText : null)) ? tokens.slice(1) : tokens);
  }

  isStale(name, args) { return this.newest.has(name) && this.newest.get(name) !== args; }

  // Reads {text} or {tokens}. null when a newer call came meanwhile.
  async text(asked) {
    const isStale = () => this.isStale("text", asked);
    if (isStale()) return null;
    const cut = asked.tokens ? null : this.encode(asked.text.slice(0, 400 * this.limit));
    const all = asked.tokens ?? cut.map(({ id }) => id), tokens = all.slice(0, this.limit);
    if (!await this.base.read(tokens, isStale)) return null;
    if (this.spec && needsMeans(this.spec)) this.setChanged();
    if (this.changed && !await this.changed.read(tokens, isStale)) return null;
    return { tokens, labels: tokens.map((token) => this.tokenizer.label(token)),
      offsets: cut && cut.slice(0, this.limit).map(({ start, end }) => [start, end]), n: tokens.length, total: all.length,
      limit: this.limit, text: asked.tokens ? this.decode(tokens) : asked.text, ...this.numbers() };
  }

  numbers() {
    const of = (reading) => reading && [...reading.surprise], loss = (reading) => reading && reading.loss();
    return { surprise: { base: of(this.base), changed: of(this.changed) }, loss: { base: loss(this.base), changed: loss(this.changed) } };
  }

  setChanged() {
    const means = this.spec && needsMeans(this.spec) && this.base.tokens.length ? this.base.means() : null;
    this.changed = this.spec && new Reading(this.model, { interventions: this.spec, means });
  }

  // Reads the text again with a specification of interventions (see interventions.js), or with none. null when a newer call came.
  async interventions(spec) {
    const isStale = () => this.isStale("interventions", spec);
    if (isStale()) return null;
    this.spec = spec;
    this.setChanged();
    if (this.changed && !await this.changed.read(this.base.tokens, isStale)) return null;
    return this.numbers();
  }

  reading(run) { return (run === "changed" && this.changed) || this.base; }

  // The likeliest tokens after a position.
  next({ position, run = "base", count = 12 }) {
    const reading = this.reading(run);
    if (position < 0 || position >= reading.tokens.length) return [];
    const logits = reading.logits(position), total = logSumExp(logits);
    return topOf(logits, count).map((token) => this.candidate(token, Math.exp(logits[token] - total)));
  }

  candidate(token, probability) {
    return { token, label: this.tokenizer.label(token), probability };
  }

  // Attention weights of all heads: of each its rows one after the other, row i with i + 1 keys.
  patterns({ run = "base" } = {}) {
    const { trace, tokens } = this.reading(run), { n_layer, n_head } = this.model.config, n = tokens.length;
    const weights = new Float32Array(n_layer * n_head * n * (n + 1) / 2);
    let at = 0;
    for (let layer = 0; layer < n_layer; layer++) {
      for (let head = 0; head < n_head; head++) {
        for (let query = 0; query < n; at += ++query) weights.set(trace.weights(layer, head, query), at);
      }
    }
    return { n, weights };
  }
}

const IN_BACKGROUND = new Set(["ablations", "partEffects", "check"]);      // long calls that others need not wait for

// Answers calls {id, name, args} one after the other with post({id, result} or {id, error}).
function serveSession(post) {
  const session = new Session();
  let queue = Promise.resolve();
  return ({ id, name, args }) => {
    const answer = async () => {
      try {
        post({ id, result: await session[name](args) });
      } catch (error) {
        post({ id, error: error.message });
      }
    };
    if (name === "text" || name === "interventions") session.newest.set(name, args);
    queue = queue.then(() => { const done = answer(); return IN_BACKGROUND.has(name) ? null : done; });
  };
}
