// Draws the explanation of a generated text from its record in #data (JSON): the panel of the selected token, the strips of
// the heads, the tints of the text, which explanation.html has itself.
const data = JSON.parse($("data").textContent);
const { n_prompt: P, n_layer: L, n_head: H, steps, starts, stages } = data;
const spans = [...document.querySelectorAll("#text .token")];     // the prompt's tokens, then one for each step
const LISTED = 10;                        // strongest keys
const ALL = -1;                           // as layer: all heads; as head: all of the layer
const mostSurprising = steps.reduce((best, step, i) => (step.bits > steps[best].bits ? i : best), 0);
const state = { step: mostSurprising, layer: ALL, head: ALL, shade: "surprise" };
const sizes = starts.map((start, step) => P + step - start);      // keys at each step
const begins = [];                        // where each step begins in a head's levels
const perHead = sizes.reduce((sum, size) => { begins.push(sum); return sum + size; }, 0);
const buttons = [];
let levels;

// ---- the numbers -------------------------------------------------------------------------------------------------

const PALETTE = paletteOf(data.colours);

// Levels of one head at the selected step, one for each token from starts[step] on.
function levelsOf(layer, head) {
  const begin = (layer * H + head) * perHead + begins[state.step];
  return levels.subarray(begin, begin + sizes[state.step]);
}

// The mean weight of the heads that a layer and a head stand for.
function weightsOf(layer, head) {
  const sum = new Float64Array(sizes[state.step]);
  let n = 0;
  for (let l = 0; l < L; l++) {
    for (let h = 0; h < H; h++) {
      if ((layer !== ALL && l !== layer) || (head !== ALL && h !== head)) continue;
      levelsOf(l, h).forEach((level, i) => { sum[i] += WEIGHT[level]; });
      n++;
    }
  }
  return sum.map((x) => x / n);
}

// ---- text -------------------------------------------------------------------------------------------------------

const quoted = (token) => make("bdi", { textContent: `\u201c${data.labels[token]}\u201d`, title: `token ${token}: ${data.labels[token]}` });
const percent = (p) => (p === 0 ? "0 %" : percentOf(p));
const nameOf = (layer, head) => (layer === ALL ? `mean of all ${L * H} heads`
  : head === ALL ? `mean of layer ${layer}` : `layer ${layer}, head ${head}`);
// Title and note of a stage of the sampler.
const WORDS = {
  permitted: ["constraints", "spaces at the prompt's end are generated again; no end of text before min_new_tokens"],
};

// ---- the selected token ------------------------------------------------------------------------------------------

function drawToken() {
  const { token, rank, bits, entropy, alternatives } = steps[state.step];
  const [, chance, after] = alternatives.find(([other]) => other === token);
  const isEnd = data.ended === "end_of_text" && state.step === steps.length - 1;
  $("which").textContent = `Token ${state.step + 1} of ${steps.length}${isEnd ? ": end of text" : ""}`;
  $("token").replaceChildren(quoted(token));
  const facts = [[percent(chance), "by the model"], [percent(after), "when drawn"], [`#${rank}`, "in the model's order"],
    [bits.toFixed(2), "bits of surprise"], [`${entropy[0].toFixed(2)} \u2192 ${entropy[1].toFixed(2)}`, "bits expected (entropy), by the model \u2192 when drawn"]];
  $("facts").replaceChildren(...facts.map(([number, words]) => {
    const fact = make("span");
    fact.append(make("b", { textContent: number }), ` ${words}`);
    return fact;
  }));
}

function row(className, name, chance, after, note) {
  const item = make("li", { className });
  item.append(name, bars(chance, after), make("span", { className: "number", textContent: percent(chance) }),
    make("span", { className: "number after", textContent: percent(after) }), make("span", { className: "note", textContent: note }));
  return item;
}

function drawAlternatives() {
  const { token, alternatives, rest: [n, chance, after] } = steps[state.step];
  const head = make("li", { className: "head" }, { "aria-hidden": "true" });
  head.append(...["token", "", "by the model", "when drawn", ""].map((textContent) => make("span", { textContent })));
  const rows = alternatives.map(([other, before, left, by]) => {
    const removed = by < 0 ? "" : `\u2212 ${WORDS[stages[by]]?.[0] ?? stages[by]}`;
    return row(other === token ? "drawn" : removed && "removed", quoted(other), before, left, other === token ? "drawn" : removed);
  });
  const others = make("span", { textContent: `${n.toLocaleString("en")} others` });
  $("alternatives").replaceChildren(head, ...rows, ...(n ? [row("rest", others, chance, after, "")] : []));
}

function drawStages() {
  const rows = stages.map((name, i) => [name, ...steps[state.step].removals[i]])
    .filter(([name, removed]) => name !== "permitted" || removed);
  $("stages").replaceChildren(...rows.map(([name, removed, mass, moved]) => {
    const [title, note] = WORDS[name] ?? [name, ""], line = make("tr"), first = make("td", { textContent: title });
    if (note) first.append(make("small", { textContent: note }));
    line.append(first, ...[removed ? removed.toLocaleString("en") : "\u2013", removed ? percent(mass) : "\u2013", percent(moved)]
      .map((textContent) => make("td", { textContent })));
    return line;
  }));
  if (!rows.length) {
    const line = make("tr");
    line.append(make("td", { textContent: "none is on: drawn from the model's own probabilities" }, { colspan: 4 }));
    $("stages").append(line);
  }
}

// ---- attention ---------------------------------------------------------------------------------------------------

// One row of colours; a pixel shows the largest weight of its tokens.
function paint(canvas, weights) {
  const n = clamp(Math.round(canvas.clientWidth * devicePixelRatio), 1, weights.length);
  const most = new Float64Array(n);
  weights.forEach((weight, i) => { const x = Math.floor(i * n / weights.length); most[x] = Math.max(most[x], weight); });
  putPixels(canvas, n, Uint32Array.from(most, (weight) => PALETTE[Math.round(255 * Math.sqrt(weight))]));
}

function drawHeads() {
  for (const { button, layer, head } of buttons) {
    const isChosen = layer === state.layer && head === state.head;
    paint(button.lastChild, weightsOf(layer, head));
    button.setAttribute("aria-pressed", isChosen);
    button.tabIndex = isChosen ? 0 : -1;                // Tab passes the grid in one stop, arrows move inside it
  }
  $("heads-title").replaceChildren("What the token before ", quoted(steps[state.step].token), " attended to");
}

function drawSources(weights) {
  const start = starts[state.step];
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, LISTED);
  $("sources-title").textContent = `Strongest keys, ${nameOf(state.layer, state.head)}`;
  $("sources").replaceChildren(...order.map((i) => {
    const at = start + i, note = `${at < P ? "prompt " : ""}#${at}`;
    return listItem(weights[i], quoted(data.tokens[at]), note, short(weights[i]), { "data-token": at });
  }));
}

function drawText(weights) {
  const start = starts[state.step], selected = P + state.step, isLook = state.shade === "look";
  $("text").classList.toggle("look", isLook);
  spans.forEach((span, i) => {
    const weight = i < selected ? weights[i - start] ?? 0 : 0;
    span.style.setProperty("--weight", (0.85 * Math.sqrt(weight)).toFixed(3));
    span.classList.toggle("unread", i < start || i > selected);
    span.classList.toggle("reader", i === selected - 1);
    if (i < P) return;
    span.setAttribute("aria-pressed", i === selected);
    span.tabIndex = i === selected ? 0 : -1;
  });
  $("text-title").textContent = isLook ? `The text, tinted by attention: ${nameOf(state.layer, state.head)}` : "The text, tinted by surprise";
  $("surprise-scale").hidden = isLook;
  $("look-scale").hidden = !isLook;
  for (const radio of document.getElementsByName("shade")) radio.checked = radio.value === state.shade;
}

// ---- updates and events ------------------------------------------------------------------------------------------

function draw() {
  const weights = weightsOf(state.layer, state.head);
  drawToken();
  drawAlternatives();
  drawStages();
  drawHeads();
  drawSources(weights);
  drawText(weights);
  Object.assign(root.dataset, { ...state, token: steps[state.step].token });
}

function set(changes) {
  Object.assign(state, changes);
  draw();
}

// Selects a generated token and scrolls it into view.
function toStep(step) {
  const hadFocus = spans.includes(document.activeElement);
  set({ step: clamp(step, 0, steps.length - 1) });
  if (hadFocus) spans[P + state.step].focus({ preventScroll: true });
  const box = $("text").getBoundingClientRect(), own = spans[P + state.step].getBoundingClientRect();
  if (own.top < box.top) $("text").scrollTop += own.top - box.top - 8;
  else if (own.bottom > box.bottom) $("text").scrollTop += own.bottom - box.bottom + 8;
}

function moveHead(rows, columns) {                     // row 0 is all heads, column 0 the mean of a layer
  const layer = clamp(state.layer + rows, ALL, L - 1), head = layer === ALL ? ALL : clamp(state.head + columns, ALL, H - 1);
  set({ layer, head, shade: "look" });
  buttons.find((each) => each.layer === layer && each.head === head).button.focus();
}

function onKey(event) {
  if (event.metaKey || event.ctrlKey || event.altKey || event.shiftKey || event.target.closest("input")) return;
  const arrow = ARROWS[event.key];
  if (arrow && event.target.closest("#grid")) moveHead(...arrow);
  else if (arrow?.[1]) toStep(state.step + arrow[1]);
  else if (event.key === "Home") toStep(0);
  else if (event.key === "End") toStep(steps.length - 1);
  else if ((event.key === "Enter" || event.key === " ") && spans.includes(event.target)) toStep(spans.indexOf(event.target) - P);
  else return;
  event.preventDefault();
}

function addHead(layer, head, text, className) {
  const button = make("button", { type: "button", className: `head-button ${className}` }, { "aria-label": nameOf(layer, head) });
  button.append(make("span", { textContent: text }), make("canvas"));
  button.addEventListener("click", () => set({ layer, head, shade: "look" }));
  buttons.push({ button, layer, head });
  $("grid").append(button);
  return button;
}

function build() {
  $("grid").style.gridTemplateColumns = `minmax(64px, 1.2fr) repeat(${H}, minmax(0, 1fr))`;
  addHead(ALL, ALL, `all ${L * H} heads`, "mean").style.gridColumn = "1 / -1";
  for (let l = 0; l < L; l++) {
    addHead(l, ALL, `layer ${l}`, "mean");
    for (let h = 0; h < H; h++) addHead(l, h, `${l}.${h}`, "");
  }
  spans.slice(P).forEach((span) => span.setAttribute("role", "button"));
  $("look-scale").append(make("span", { textContent: "weight" }), ...[0, 0.01, 0.05, 0.1, 0.3, 0.6, 1].map((weight) => {
    const tick = make("span", { textContent: weight });
    tick.style.background = `rgb(var(--look) / ${0.85 * Math.sqrt(weight)})`;
    return tick;
  }), make("span", { textContent: "underlined: the query" }));
  for (const id of ["why", "heads", "attended", "shade"]) $(id).hidden = false;
}

function listen() {
  $("text").addEventListener("click", (event) => {
    const i = spans.indexOf(event.target.closest(".token"));
    if (i >= P && getSelection().isCollapsed) toStep(i - P);      // marking text to copy it selects no token
  });
  onChoice("shade", (shade) => set({ shade }));
  document.addEventListener("keydown", onKey);
  onResize(drawHeads);
}

start(async () => {
  levels = await inflate(data.levels);
  build();
  toStep(state.step);
  listen();
});
