// The live page: its state, the text and its tokens, tabs and links. The panels hang on change, onChange, addTab and shared.
const data = JSON.parse($("data").textContent);
const N_LAYER = data.config.n_layer, N_HEAD = data.config.n_head;
// numbers counts the engine's answers: it is in the set of changed names whenever what the model computed is new. drawn is the
// number of the answer whose attention patterns the maps show.
const state = { text: "", tokens: [], labels: [], offsets: null, n: 0, total: 0, limit: data.config.context_length,
  surprise: { base: [], changed: null }, loss: { base: null, changed: null }, numbers: 0, drawn: 0,
  selected: 0, layer: 0, head: 0, cell: null, interventions: null, measures: 0, tab: "" };
// Of what is typed or linked: browsers need minutes to lay out half a megabyte of combining characters. 30 a token are plenty.
const MOST_CHARACTERS = Math.max(1000, 30 * data.config.context_length, data.text.length);
const engine = new EngineClient();

// ---- state ---------------------------------------------------------------------------------------------------------

const drawers = [];

// Calls draw(set of the names that changed) after each change of the state.
const onChange = (draw) => { drawers.push(draw); };

// Sets what is known and draws it.
function update(partial) {
  Object.assign(state, partial);
  state.selected = clamp(state.selected, 0, Math.max(0, state.n - 1));
  const { n, selected, layer, head, tab, numbers, drawn } = state;
  const losses = { loss: state.loss.base ?? "", changedLoss: state.loss.changed ?? "" };
  Object.assign(root.dataset, { n, selected, layer, head, tab, numbers, drawn, ...losses });
  const changed = new Set(Object.keys(partial));
  for (const draw of drawers) draw(changed);
}

// Changes the state. A new text (or new tokens) and new interventions go to the engine; its answer is drawn when it comes.
async function change(partial) {
  const { text, tokens, ...rest } = partial, isText = text !== undefined || tokens !== undefined, { selected } = rest;
  if (isText) delete rest.selected;       // a position in the text to come
  if (Object.keys(rest).length) update(rest);
  const calls = "interventions" in partial ? [compute("interventions", partial.interventions)] : [];
  if (isText) calls.push(compute("text", tokens ? { tokens: [...tokens] } : { text }, selected));
  await Promise.all(calls);
}

const asked = new Map();                  // name -> number of its newest call
let pending = 0;                          // calls that change the numbers and have no answer yet

// Asks the engine; show(answer) is called unless the same asker has asked again since, and an error is shown.
async function ask(asker, name, args, show) {
  const number = (asked.get(asker) ?? 0) + 1, isNewest = () => asked.get(asker) === number;
  asked.set(asker, number);
  const answer = await engine.call(name, args).catch((error) => {
    if (isNewest()) $("problem").textContent = error.message;
    return null;
  });
  if (isNewest() && answer !== null) show(answer);
}

async function compute(name, args, selected) {
  root.dataset.busy = ++pending;
  await ask(name, name, args, (answer) => {
    $("problem").textContent = "";
    const follows = name === "text" && state.selected >= state.n - 1;        // who types at the end stays there
    update({ selected: selected ?? (follows ? answer.n - 1 : state.selected), ...answer, numbers: state.numbers + 1 });
  });
  root.dataset.busy = --pending || "";
}

// ---- words ---------------------------------------------------------------------------------------------------------

const headName = (layer, head) => `${layer}.${head}`;
const quotedLabel = (position) => make("bdi", { textContent: `\u201c${state.labels[position] ?? ""}\u201d` });
const surpriseShown = () => state.surprise.changed ?? state.surprise.base;

// ---- the text and its tokens -----------------------------------------------------------------------------------------

function tokenSpan(position) {
  return make("span", {}, { role: "button", "data-position": position });
}

function drawTokens(changed) {
  if (!changed.has("numbers") && !changed.has("selected")) return;
  const box = $("tokens"), bits = surpriseShown(), hadFocus = box.contains(document.activeElement);
  while (box.children.length > state.n) box.lastChild.remove();
  while (box.children.length < state.n) box.append(tokenSpan(box.children.length));
  for (const [i, span] of [...box.children].entries()) {
    const level = bits[i] === null ? 0 : clamp(Math.round(bits[i]), 0, 10);
    span.className = `token bits-${level}`;
    if (span.textContent !== state.labels[i]) span.textContent = state.labels[i];
    span.title = bits[i] === null ? `#${i}, the first token` : `#${i}, ${bits[i].toFixed(2)} bits of surprise`;
    span.setAttribute("aria-pressed", i === state.selected);
    span.tabIndex = i === state.selected ? 0 : -1;
  }
  if (hadFocus) box.children[state.selected]?.focus({ preventScroll: true });
}

function drawStatus(changed) {
  if (!changed.has("numbers")) return;
  const { n, total, limit, loss } = state, nats = (value) => value.toFixed(3);
  $("count").textContent = `${n} of at most ${limit} tokens`;
  $("loss").textContent = loss.base === null ? "" : loss.changed === null ? `loss ${nats(loss.base)} nats per token`
    : `loss ${nats(loss.base)} \u2192 ${nats(loss.changed)} nats per token`;
  $("too-long").textContent = total > limit ? `The model reads the first ${limit} tokens; ${total - limit} more are left out.` : "";
}

// The text area shows the text of the engine's answer, unless somebody types in it.
function drawTextArea(changed) {
  const area = $("area");
  if (changed.has("text") && area.value !== state.text && pendingText === null) area.value = state.text;
}

let pendingText = null;                   // what was typed and is not answered yet

async function typed() {
  const text = $("area").value;
  pendingText = text;
  await change({ text });
  if (pendingText === text) pendingText = null;
}

function select(position) {
  change({ selected: clamp(position, 0, Math.max(0, state.n - 1)) });
}

// Puts a token after the selected position: at the end it goes on with the text, else it takes the next token's place.
function putToken(token) {
  const { tokens, selected } = state;
  change({ tokens: [...tokens.slice(0, selected + 1), token, ...tokens.slice(selected + 2)], selected: selected + 1 });
}

const isPlainKey = (event) => !(event.metaKey || event.ctrlKey || event.altKey || event.shiftKey);

function onTokenKey(event) {
  const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
  if (!isPlainKey(event)) return;
  if (event.key in moves) select(state.selected + moves[event.key]);
  else return;
  event.preventDefault();
}

// ---- tabs ------------------------------------------------------------------------------------------------------------

const tabs = new Map();                   // id -> {button, panel, draw}

// A tab with a panel (the element panel-ID of live.html, or a new one), which it returns. draw(changed) is called after each
// change while the tab is shown, and when it is opened, with a set of all names.
function addTab(id, title, draw) {
  const panel = $(`panel-${id}`) ?? $("panels").appendChild(make("section", { id: `panel-${id}` }));
  const button = make("button", { type: "button", id: `tab-${id}`, textContent: title }, { role: "tab", "aria-controls": panel.id });
  panel.setAttribute("role", "tabpanel");
  panel.setAttribute("aria-labelledby", button.id);
  button.addEventListener("click", () => change({ tab: id }));
  $("tabs").append(button);
  tabs.set(id, { button, panel, draw });
  return panel;
}

function drawTabs(changed) {
  const isOpened = changed.has("tab");
  for (const [id, { button, panel, draw }] of tabs) {
    const isShown = id === state.tab;
    panel.hidden = !isShown;
    button.setAttribute("aria-selected", isShown);
    button.tabIndex = isShown ? 0 : -1;
    if (isShown) draw(isOpened ? new Set(Object.keys(state)) : changed);
  }
}

function onTabKey(event) {
  const step = ARROWS[event.key]?.[1], ids = [...tabs.keys()];
  if (!step || !isPlainKey(event)) return;
  const id = ids[(ids.indexOf(state.tab) + step + ids.length) % ids.length];
  change({ tab: id });
  tabs.get(id).button.focus();
  event.preventDefault();
}

// ---- the link ----------------------------------------------------------------------------------------------------------

const links = new Map();                  // name -> {read, write}

// Keeps a part of the state in the link: write() is its text, or null for nothing; read(text) is the partial state for change,
// of a text that anybody may have written.
const shared = (name, { read, write }) => { links.set(name, { read, write }); };

function linkText() {
  const parts = new URLSearchParams();
  for (const [name, { write }] of links) {
    const text = write();
    if (text !== null) parts.set(name, text);
  }
  return `#${parts}`;
}

// What the link asks for, but for parts that are wrong.
function linkState() {
  const found = {};
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    try {
      Object.assign(found, links.get(name)?.read(text) ?? {});
    } catch { /* somebody else's link: the rest of it still counts */ }
  }
  return found;
}

let linkTimer = 0;

function drawLink() {
  clearTimeout(linkTimer);
  linkTimer = setTimeout(() => {
    try {
      history.replaceState(null, "", linkText());
    } catch { /* a sandboxed frame has no address of its own */ }
  }, 300);
}

// A number below `size`, written as the page writes it: Number takes "" and "0x3" too.
const whole = (text, size) => {
  if (!/^\d+$/.test(text) || Number(text) >= size) throw new RangeError(text);
  return Number(text);
};

// The layer and the head of "1.0".
function headOf(text) {
  const [layer, head, ...others] = text.split(".");
  if (others.length) throw new RangeError(text);
  return { layer: whole(layer, N_LAYER), head: whole(head, N_HEAD) };
}

function shareCore() {
  shared("text", { read: (text) => ({ text: text.slice(0, MOST_CHARACTERS) }), write: () => state.text });
  // Tokens that were chosen, not cut from a text: the same text may be cut otherwise.
  shared("tokens", { read: (text) => ({ tokens: text.split(".").map((id) => whole(id, data.config.vocab_size)) }),
    write: () => (state.n && state.offsets === null ? state.tokens.join(".") : null) });
  shared("at", { read: (text) => ({ selected: whole(text, state.limit) }), write: () => `${state.selected}` });
  shared("head", { read: headOf, write: () => headName(state.layer, state.head) });
  shared("tab", { read: (tab) => (tabs.has(tab) ? { tab } : {}), write: () => state.tab });
}

async function copyLink() {
  if (location.protocol === "about:") {
    $("copied").textContent = "a page in a frame has no address: open it by itself";
    return;
  }
  const link = `${location.href.split("#")[0]}${linkText()}`;
  try {
    await navigator.clipboard.writeText(link);
    $("copied").textContent = "copied";
  } catch {
    $("copied").textContent = "not allowed here: copy it from the address bar";
  }
}

// ---- the page --------------------------------------------------------------------------------------------------------

function drawFacts() {
  const lines = Object.entries(data.facts).filter(([, text]) => text);
  $("facts").append(...lines.flatMap(([name, text]) => [make("dt", { textContent: name }), make("dd", { textContent: text })]));
  $("about").hidden = !Object.keys(data.facts).length;
}

function listenToPage() {
  $("area").addEventListener("input", typed);
  $("tokens").addEventListener("click", (event) => {
    const span = event.target.closest("[data-position]");
    if (span) select(Number(span.dataset.position));
  });
  $("tokens").addEventListener("keydown", onTokenKey);
  $("tabs").addEventListener("keydown", onTabKey);
  $("copy-link").addEventListener("click", copyLink);
  addEventListener("hashchange", () => { change(linkState()); });
}

async function loadModel() {
  const chunks = [...document.querySelectorAll("script.weights")].map((element) => element.textContent);
  await engine.call("init", { config: data.config, header: data.header, chunks, tokenizer: data.tokenizer });
}

start(async () => {
  await null;                             // the page's other files run first: their panels are there then
  shareCore();
  drawFacts();
  listenToPage();
  for (const draw of [drawTokens, drawStatus, drawTextArea, drawTabs, drawLink]) onChange(draw);
  const { text, tokens, selected, interventions, ...wanted } = { text: data.text, tab: [...tabs.keys()][0], ...linkState() };
  $("area").maxLength = MOST_CHARACTERS;
  $("area").value = text;
  $("main").hidden = false;
  const loaded = loadModel();             // before what the panels ask
  update(wanted);
  await loaded;
  await change({ text, tokens, selected, ...(interventions ? { interventions } : {}) });
});
