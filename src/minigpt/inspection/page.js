// The attention page: snapshots (the JSON in #data) -> what is drawn. page.py writes this into page.html; no libraries.
"use strict";
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const { tokens, n_layer: L, n_head: H, n_tokens: T } = data;
const [A] = data.runs, { steps } = A, names = data.score_names;
const TRIANGLE = T * (T + 1) / 2;         // levels of one head: row i has i + 1 of them and starts at i * (i + 1) / 2
const LISTED = 8;                         // tokens in each ranked list
const FRAME_MS = 700;                     // pause between two steps while playing
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const state = { frame: steps.length - 1, layer: 0, head: 0, token: T - 1, direction: "from", scale: "sqrt", hide: false,
  score: names.length ? 0 : -1, order: "place", minimum: 0 };     // score: place in names; minimum: percent of its range
let levels;                               // Uint8Array of all frames, after decoding
let hover = null;                         // [query, key] under the pointer
let pointed = -1;                         // head whose curve is under the pointer
let timer = 0;

// ---- the numbers -------------------------------------------------------------------------------------------------

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// Undoes encode_frames of packing.py: base64, raw deflate, then each frame is a difference from the one before.
async function decode() {
  const stream = new Blob([bytesOf(A.levels)]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const all = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = L * H * TRIANGLE;
  for (let i = size; i < all.length; i++) all[i] += all[i - size];    // a Uint8Array wraps at 256, as it must
  return all;
}

const start = (layer, head) => ((state.frame * L + layer) * H + head) * TRIANGLE;
const levelAt = (layer, head, query, key) => levels[start(layer, head) + query * (query + 1) / 2 + key];
const WEIGHT = Float64Array.from({ length: 256 }, (_, q) => (q / 255) ** 2);
const weightAt = (layer, head, query, key) => WEIGHT[levelAt(layer, head, query, key)];

// A scale is a table from the stored level to a colour from 0 to 255. The stored level is the square root already.
const SCALES = {
  sqrt: { table: (q) => q, ticks: [0, 0.01, 0.1, 0.3, 0.6, 1] },
  linear: { table: (q) => 255 * WEIGHT[q], ticks: [0, 0.2, 0.4, 0.6, 0.8, 1] },
  log: { table: (q) => 255 * Math.max(0, 1 + Math.log10(WEIGHT[q] || 1e-9) / 4), ticks: [0.0001, 0.001, 0.01, 0.1, 1] },
  row: { table: (q) => q, ticks: [0, 0.01, 0.1, 0.3, 0.6, 1] },
};
const TABLES = Object.fromEntries(Object.entries(SCALES).map(([name, scale]) =>
  [name, Uint8Array.from({ length: 256 }, (_, q) => Math.round(scale.table(q)))]));

// ---- the maps ----------------------------------------------------------------------------------------------------

const colours = bytesOf(data.colours);    // 256 times red, green, blue
const PALETTE = Uint32Array.from({ length: 256 }, (_, i) =>   // as one little-endian word: alpha, blue, green, red
  0xff000000 | colours[3 * i + 2] << 16 | colours[3 * i + 1] << 8 | colours[3 * i]);

// Paints one head. Where the canvas has fewer pixels than tokens, a pixel takes the largest of its cells: an average
// would wash out a diagonal that is one token wide.
function paint(canvas, layer, head, cssPixels) {
  const n = Math.max(1, Math.min(T, Math.round(cssPixels * devicePixelRatio)));
  const table = TABLES[state.scale], first = state.hide ? 1 : 0;
  const shades = new Int16Array(n * n).fill(-1);              // -1: above the diagonal or hidden, stays transparent
  const pixel = Uint32Array.from({ length: T }, (_, i) => Math.floor(i * n / T));
  let at = start(layer, head);
  for (let i = 0; i < T; at += ++i) {
    let top = 255;
    if (state.scale === "row") {
      top = 1;
      for (let j = first; j <= i; j++) if (levels[at + j] > top) top = levels[at + j];
    }
    const row = pixel[i] * n;
    for (let j = first; j <= i; j++) {
      const shade = top === 255 ? table[levels[at + j]] : Math.round(255 * levels[at + j] / top);
      if (shade > shades[row + pixel[j]]) shades[row + pixel[j]] = shade;
    }
  }
  canvas.width = canvas.height = n;
  const context = canvas.getContext("2d"), image = context.createImageData(n, n);
  const words = new Uint32Array(image.data.buffer);
  for (let i = 0; i < shades.length; i++) if (shades[i] >= 0) words[i] = PALETTE[shades[i]];
  context.putImageData(image, 0, 0);
}

const thumbs = [];

function drawGrid() {
  arrange();
  $("grid").classList.toggle("compact", $("grid").clientWidth / H < 56);
  const size = Math.max(...thumbs.map((thumb) => thumb.clientWidth));     // one that is left out has no width
  thumbs.forEach((thumb, i) => { if (!thumb.hidden) paint(thumb.firstChild, Math.floor(i / H), i % H, size); });
}

function drawBar() {
  const context = $("bar").getContext("2d"), image = context.createImageData(256, 1);
  new Uint32Array(image.data.buffer).set(PALETTE);
  context.putImageData(image, 0, 0);
  $("ticks").replaceChildren(...SCALES[state.scale].ticks.map((weight) => {
    const tick = make("span", { textContent: weight });
    tick.style.left = `${TABLES[state.scale][Math.round(255 * Math.sqrt(weight))] / 2.55}%`;
    return tick;
  }));
}

// ---- the words: token text comes from a data set and reaches the page by textContent alone ----------------------------

function make(tag, properties = {}, attributes = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// Line breaks and tabs become visible; so do other control characters, as the pictures Unicode has for them.
const visible = (text, ifEmpty = "\u2205") => text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u2192")
  .replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0))) || ifEmpty;
const inText = (text) => text.split("\n").map((part) => part && visible(part)).join("\u21b5\n") || "\u2205";
const quoted = (i) => `\u201c${visible(tokens[i])}\u201d`;
const short = (weight) => (weight > 0 && weight < 0.001 ? "<0.001" : weight.toFixed(3));

// The tokens that can be related to the selected one, each with its level in the selected head.
function related(weigh) {
  const { token, direction, hide } = state;
  const list = [];
  if (direction === "from") for (let k = hide ? 1 : 0; k <= token; k++) list.push([k, weigh(token, k)]);
  else for (let q = token; q < T; q++) list.push([q, weigh(q, token)]);
  return list;
}

const spans = [];

function drawText() {
  const { layer, head, token, direction, scale } = state;
  const list = related((q, k) => levelAt(layer, head, q, k));
  const top = scale === "row" ? Math.max(1, ...list.map(([, level]) => level)) : 255;
  const shade = new Map(list.map(([i, level]) => [i, scale === "row" ? level / top : TABLES[scale][level] / 255]));
  spans.forEach((span, i) => {
    span.style.setProperty("--share", (0.85 * (shade.get(i) ?? 0)).toFixed(3));
    span.classList.toggle("deaf", direction === "from" ? i > token : i < token);
    span.setAttribute("aria-pressed", i === token);
    span.tabIndex = i === token ? 0 : -1;
  });
  $("text-title").replaceChildren(direction === "from" ? "What " : "Who listens to ",
    make("bdi", { className: "label", textContent: quoted(token) }), direction === "from" ? " listens to" : "");
}

function fill(list, ranking) {
  ranking.sort((a, b) => b[1] - a[1]);
  list.replaceChildren(...ranking.slice(0, LISTED).map(([i, weight]) => {
    const item = make("li", {}, { "data-token": i });
    item.style.setProperty("--share", `${(100 * weight).toFixed(1)}%`);
    item.append(make("bdi", { className: "label", textContent: quoted(i) }),
      make("span", { className: "value", textContent: short(weight) }));
    item.lastChild.prepend(make("small", { textContent: `#${i} ` }));
    return item;
  }));
}

function drawRanking() {
  const { layer, head } = state;
  $("rank-title").textContent = state.direction === "from" ? "Strongest sources" : "Strongest listeners";
  $("one-title").textContent = `layer ${layer}, head ${head}`;
  $("all-title").textContent = `mean of all ${L * H} heads`;
  fill($("one"), related((q, k) => weightAt(layer, head, q, k)));
  fill($("all"), related((q, k) => {
    let sum = 0;
    for (let l = 0; l < L; l++) for (let h = 0; h < H; h++) sum += weightAt(l, h, q, k);
    return sum / (L * H);
  }));
}

// Where nothing is hovered, the readout tells the strongest pair of the selected token.
function drawReadout() {
  const { layer, head, token, direction } = state;
  let pair = hover;
  if (!pair) {
    const list = related((q, k) => levelAt(layer, head, q, k));
    const best = list.reduce((a, b) => (b[1] > a[1] ? b : a), list[0] ?? [0, 0])[0];
    pair = direction === "from" ? [token, best] : [best, token];
  }
  const [query, key] = pair;
  $("readout-head").textContent = `layer ${layer}, head ${head}`;
  $("readout-row").textContent = `#${query}`;
  $("readout-column").textContent = `#${key}`;
  $("readout-query").textContent = quoted(query);
  $("readout-key").textContent = quoted(key);
  $("readout-weight").textContent = short(weightAt(layer, head, query, key));
  place($("line-mark"), direction === "from" ? [token, 0, 1, token + 1] : [token, token, T - token, 1]);
  $("cell-mark").hidden = !hover;
  if (hover) place($("cell-mark"), [query + 0.5, key + 0.5, 1, 1]);
}

function place(mark, [row, column, rows, columns]) {
  const { style } = mark;
  [style.top, style.left, style.height, style.width] = [row, column, rows, columns].map((x) => `${100 * x / T}%`);
}

// ---- the scores: what is known of each head beside its map -----------------------------------------------------------

const nameOf = (i) => `layer ${Math.floor(i / H)}, head ${i % H}`;
const words = (name) => visible(name.replaceAll("_", " "));
const selected = () => state.layer * H + state.head;
const labelOf = (i) => data.labels?.[state.frame][i] ?? "";

// The score of a head at a step, or null where it is not known.
const scoreAt = (frame, score, i) => A.scores[frame][score]?.[i] ?? null;
const current = (i) => scoreAt(state.frame, state.score, i);

function number(x, signed = false) {
  if (x === null) return "\u2013";
  const size = Math.abs(x), plus = signed && x > 0 ? "+" : "";
  return plus + (size > 0 && size < 0.001 ? x.toExponential(1) : x.toFixed(size >= 100 ? 0 : size >= 1 ? 2 : 3));
}

const isChange = (score) => names[score] === "ablation";
const shownScore = (x, score) => number(x, isChange(score));

// Smallest and largest value of the chosen score, of all heads at all steps: one range for the slider and the curves.
function range() {
  let low = Infinity, high = -Infinity;
  steps.forEach((_, frame) => thumbs.forEach((_, i) => {
    const value = scoreAt(frame, state.score, i);
    if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
  }));
  return low <= high ? [low, high] : [0, 0];
}

// Written so that at 100 percent it is the largest value itself, whatever the rounding.
function least() {
  const [low, high] = range();
  return state.score < 0 || state.minimum === 0 ? null : high - (high - low) * (1 - state.minimum / 100);
}

const isRanked = () => state.score >= 0 && state.order !== "place";

// Heads as they stand in the grid, without those that are left out of a ranking.
function inOrder() {
  const heads = thumbs.map((_, i) => i);
  if (!isRanked()) return heads;
  const sign = state.order === "high" ? -1 : 1;
  return heads.filter((i) => !thumbs[i].hidden).sort((a, b) =>
    (current(a) === null) - (current(b) === null) || sign * (current(a) - current(b)) || a - b);
}

// Writes score and label on each small map, dims or hides those below the minimum, and puts the maps in order.
function arrange() {
  const ranked = isRanked(), minimum = least();
  $("grid").classList.toggle("ranked", ranked);
  thumbs.forEach((thumb, i) => {
    const value = current(i), low = minimum !== null && !(value !== null && value >= minimum);
    const shown = state.score < 0 ? "" : shownScore(value, state.score);
    thumb.classList.toggle("low", low);
    thumb.hidden = low && ranked;
    thumb.querySelector(".value").textContent = shown;
    thumb.querySelector(".kind").textContent = visible(labelOf(i), "");
    const said = [nameOf(i), shown && `${words(names[state.score])} ${shown}`, visible(labelOf(i), ""), low && "below the minimum"];
    thumb.setAttribute("aria-label", said.filter(Boolean).join(", "));
    thumb.title = thumb.getAttribute("aria-label");
    thumb.style.gridArea = "";
  });
  if (ranked) inOrder().forEach((i, place) => { thumbs[i].style.gridArea = `${2 + Math.floor(place / H)} / ${2 + place % H}`; });
  $("order").disabled = $("minimum").disabled = state.score < 0;
  $("minimum").value = state.minimum;
  $("minimum-value").textContent = minimum === null ? "any" : shownScore(minimum, state.score);
}

function drawScores() {
  const i = selected(), loss = names.indexOf("ablation"), change = scoreAt(state.frame, loss, i);
  $("head-scores").replaceChildren(...names.map((name, score) => {
    const item = make("span");
    item.append(make("bdi", { textContent: words(name) }), " ",
      make("b", { textContent: shownScore(scoreAt(state.frame, score, i), score) }), " ");
    return item;
  }));
  $("readout-label").textContent = visible(labelOf(i), "");
  $("readout-ablation").hidden = change === null;
  $("readout-loss").textContent = number(change, true);
  drawCurve();
}

// ---- the curves of the chosen score over the training steps ------------------------------------------------------------

const EDGE = 7, LEFT = 40;                // pixels between the chart's border and its lines; the range stands at the left

// Where a step and a score lie on the chart, in CSS pixels.
function chart() {
  const { clientWidth: width, clientHeight: height } = $("curve"), [low, high] = range();
  const first = steps[0], span = steps[steps.length - 1] - first || 1;
  return {
    width, height, low, high,
    x: (frame) => LEFT + (width - LEFT - EDGE) * (steps[frame] - first) / span,
    y: (value) => height - EDGE - (height - 2 * EDGE) * (high > low ? (value - low) / (high - low) : 0.5),
  };
}

function drawCurve() {
  $("curves").hidden = state.score < 0 || steps.length === 1;
  if ($("curves").hidden) return;
  const { width, height, low, high, x, y } = chart(), canvas = $("curve"), context = canvas.getContext("2d");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  canvas.width = Math.round(width * devicePixelRatio);
  canvas.height = Math.round(height * devicePixelRatio);
  context.scale(devicePixelRatio, devicePixelRatio);
  const stroke = (name, thickness, opacity, dashes, path) => {
    Object.assign(context, { strokeStyle: colour(name), lineWidth: thickness, globalAlpha: opacity, lineJoin: "round" });
    context.setLineDash(dashes);
    context.beginPath();
    path();
    context.stroke();
  };
  const line = (i) => () => {
    let drawing = false;                                  // a step without the score is a gap
    steps.forEach((_, frame) => {
      const value = scoreAt(frame, state.score, i);
      if (value !== null) context[drawing ? "lineTo" : "moveTo"](x(frame), y(value));
      drawing = value !== null;
    });
  };
  const straight = (x0, y0, x1, y1) => () => { context.moveTo(x0, y0); context.lineTo(x1, y1); };
  if (low < 0 && high > 0) stroke("--line", 1, 1, [], straight(LEFT, y(0), width, y(0)));
  stroke("--muted", 1, 0.8, [2, 3], straight(x(state.frame), 0, x(state.frame), height));
  thumbs.forEach((thumb, i) => stroke("--muted", 1, thumb.classList.contains("low") ? 0.15 : 0.55, [], line(i)));
  if (pointed >= 0) stroke("--ink", 2, 1, [5, 3], line(pointed));
  stroke("--accent", 2.5, 1, [], line(selected()));
  const value = current(selected());
  if (value !== null) stroke("--accent", 2.5, 1, [], () => context.arc(x(state.frame), y(value), 3, 0, 2 * Math.PI));
  tellCurve(low, high);
}

function tellCurve(low, high) {
  const i = pointed >= 0 ? pointed : selected(), frame = pointed >= 0 ? pointedFrame : state.frame;
  $("curve-title").textContent = `${words(names[state.score])} of every head, over the steps`;
  $("curve-low").textContent = shownScore(low, state.score);
  $("curve-high").textContent = shownScore(high, state.score);
  $("curve-first").textContent = `step ${steps[0]}`;
  $("curve-last").textContent = steps[steps.length - 1];
  $("curve-note").textContent = `${nameOf(i)}: ${shownScore(scoreAt(frame, state.score, i), state.score)} at step ${steps[frame]}`;
  const values = steps.map((step, k) => `${shownScore(scoreAt(k, state.score, selected()), state.score)} at step ${step}`);
  $("curve").setAttribute("aria-label", `${words(names[state.score])} of ${nameOf(selected())}: ${values.join(", ")}`);
}

let pointedFrame = 0;                     // step nearest to the pointer

// Finds the curve nearest to the pointer, above or below it; of equal ones the selected head's.
function pointCurve(event) {
  const box = $("curve").getBoundingClientRect(), { x, y } = chart();
  const across = event.clientX - box.left, down = event.clientY - box.top;
  const frames = steps.map((_, frame) => frame);
  pointedFrame = frames.reduce((a, b) => (Math.abs(x(b) - across) < Math.abs(x(a) - across) ? b : a));
  const before = Math.max(0, frames.findLastIndex((frame) => x(frame) <= across)), after = Math.min(before + 1, steps.length - 1);
  const share = clamp((across - x(before)) / (x(after) - x(before) || 1), 0, 1);
  let best = Infinity;
  pointed = -1;
  for (const i of [selected(), ...thumbs.keys()]) {
    const left = scoreAt(before, state.score, i), right = scoreAt(after, state.score, i);
    if (left === null && right === null) continue;
    const distance = Math.abs(y(left ?? right) * (1 - share) + y(right ?? left) * share - down);
    if (distance < best - 1e-9) [best, pointed] = [distance, i];
  }
  drawCurve();
}

// ---- what happens when ---------------------------------------------------------------------------------------------

// For whoever reads the page with a program: what is selected stands in data attributes of the root element.
function describe() {
  const { layer, head, token, direction, scale, hide, frame, order } = state;
  Object.assign(document.documentElement.dataset, { layer, head, token, direction, scale, hide, frame, step: steps[frame],
    score: names[state.score] ?? "", order, minimum: least() ?? "" });
}

function drawHead() {
  const { layer, head } = state;
  paint($("large"), layer, head, $("large").clientWidth);
  $("large").setAttribute("aria-label", `attention weights of layer ${layer}, head ${head}, step ${steps[state.frame]}`);
  const order = inOrder(), stop = order.includes(selected()) ? selected() : order[0];
  thumbs.forEach((thumb, i) => {
    thumb.setAttribute("aria-pressed", i === selected());
    thumb.tabIndex = i === stop ? 0 : -1;             // Tab passes the grid in one stop, arrows move inside it
  });
  drawText();
  drawRanking();
  drawReadout();
  drawScores();
  describe();
}

function drawAll() {
  $("slider").value = state.frame;
  $("slider").setAttribute("aria-valuetext", `step ${steps[state.frame]}`);
  $("step").textContent = steps[state.frame];
  drawGrid();
  drawBar();
  drawHead();
}

function set(changes) {
  Object.assign(state, changes);
  const ofOneHead = ["layer", "head", "token", "direction"];
  if (Object.keys(changes).every((name) => ofOneHead.includes(name))) drawHead(); else drawAll();
}

const choose = (i) => set({ layer: Math.floor(i / H), head: i % H });

// Arrows follow what is seen: the layers and heads, or the ranking, which is H wide too.
function move([rows, columns]) {
  if (!isRanked()) return set({ layer: clamp(state.layer + rows, 0, L - 1), head: clamp(state.head + columns, 0, H - 1) });
  const order = inOrder(), place = order.indexOf(selected()), next = place < 0 ? 0 : place + rows * H + columns;
  if (next in order) choose(order[next]);
}

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const toFrame = (frame) => set({ frame: clamp(frame, 0, steps.length - 1) });

function play(on) {
  clearInterval(timer);
  timer = 0;
  if (on) {
    if (state.frame === steps.length - 1) toFrame(0);
    timer = setInterval(() => {
      toFrame(state.frame + 1);
      if (state.frame === steps.length - 1) play(false);
    }, FRAME_MS);
  }
  $("play").textContent = on ? "\u23f8\ufe0e pause" : "\u25b6\ufe0e play";
  $("play").setAttribute("aria-label", on ? "pause" : "play the training steps");
}

function onKey(event) {
  // On many keyboards [ and ] are typed with AltGr, which browsers report as Ctrl and Alt together.
  if (event.metaKey || (event.ctrlKey && !event.altKey)) return;
  const arrow = ARROWS[event.key];
  if (arrow) {
    if (event.altKey || event.shiftKey || event.target.closest("input, select")) return;    // those have their own arrows
    move(arrow);
    if (document.activeElement.classList.contains("thumb")) thumbs[selected()].focus();
  } else if (event.key === "," || event.key === ".") toFrame(state.frame + (event.key === "." ? 1 : -1));
  else if (event.key === "[" || event.key === "]") {
    set({ token: clamp(state.token + (event.key === "]" ? 1 : -1), 0, T - 1) });
    if (spans.includes(document.activeElement)) spans[state.token].focus();
  } else return;
  event.preventDefault();
}

// Where the pointer is on the large map: [query, key].
function cellUnder(event) {
  const box = $("large").getBoundingClientRect();
  return [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width]
    .map((x) => clamp(Math.floor(x * T), 0, T - 1));
}

function point(pair) {
  hover = pair && pair[1] <= pair[0] ? pair : null;     // above the diagonal there is nothing to tell
  drawReadout();
}

function build() {
  const grid = $("grid"), corner = make("div", { className: "heading corner" });
  grid.style.gridTemplateColumns = `auto repeat(${H}, minmax(0, max(30px, min(200px, (100vh - 140px) / ${L}))))`;   // deep models: smaller, not longer
  corner.append("head \u2192", make("br"), "layer \u2193");
  grid.append(corner);
  const heading = (word, i) => {
    const element = make("div", { className: "heading" });
    element.append(make("span", { className: "word", textContent: `${word} ` }), `${i}`);
    return element;
  };
  for (let h = 0; h < H; h++) grid.append(heading("head", h));
  for (let l = 0; l < L; l++) {
    grid.append(heading("layer", l));
    for (let h = 0; h < H; h++) {
      const thumb = make("button", { type: "button", className: "thumb" }), tag = make("span", { className: "tag" });
      tag.append(make("span", { className: "name", textContent: `${l}.${h}` }), make("span", { className: "value" }),
        make("bdi", { className: "kind" }));
      thumb.append(make("canvas"), tag);
      thumb.addEventListener("click", () => set({ layer: l, head: h }));
      thumbs.push(thumb);
      grid.append(thumb);
    }
  }
  names.forEach((name, score) => $("score").append(make("option", { value: score, textContent: words(name) })));
  $("score").value = state.score;
  $("ranking").hidden = $("head-scores").hidden = names.length === 0;
  tokens.forEach((text, i) => {
    spans.push(make("span", { textContent: inText(text) }, { role: "button", "data-token": i, "aria-label": `${i}: ${visible(text)}` }));
  });
  $("tokens").append(...spans);
}

function listen() {
  const tokenOf = (event) => (event.target.dataset.token === undefined ? null : Number(event.target.dataset.token));
  const select = (event) => { if (tokenOf(event) !== null) set({ token: tokenOf(event) }); };
  $("tokens").addEventListener("click", select);
  $("tokens").addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(event); }
  });
  $("tokens").addEventListener("pointerover", (event) => {
    const other = tokenOf(event), { token, direction, hide } = state;
    if (other === null || (hide && direction === "from" && other === 0)) point(null);
    else point(direction === "from" ? [token, other] : [other, token]);
  });
  $("large").addEventListener("pointermove", (event) => point(cellUnder(event)));
  $("large").addEventListener("click", (event) => {
    const [query, key] = cellUnder(event);
    set({ token: state.direction === "from" ? query : key });
  });
  for (const id of ["large", "tokens"]) $(id).addEventListener("pointerleave", () => point(null));
  $("slider").addEventListener("input", () => { play(false); toFrame(Number($("slider").value)); });
  $("play").addEventListener("click", () => play(!timer));
  $("scale").addEventListener("change", () => set({ scale: $("scale").value }));
  $("hide").addEventListener("change", () => set({ hide: $("hide").checked }));
  $("score").addEventListener("change", () => set({ score: Number($("score").value), minimum: 0 }));
  $("order").addEventListener("change", () => set({ order: $("order").value }));
  $("minimum").addEventListener("input", () => set({ minimum: Number($("minimum").value) }));
  $("curve").addEventListener("pointermove", pointCurve);
  $("curve").addEventListener("pointerleave", () => { pointed = -1; drawCurve(); });
  $("curve").addEventListener("click", (event) => {
    pointCurve(event);
    if (pointed >= 0) choose(pointed);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCurve);
  for (const radio of document.getElementsByName("direction")) {
    radio.addEventListener("change", () => set({ direction: radio.value }));
  }
  document.addEventListener("keydown", onKey);
  let waiting = 0;                                       // many resize events make one drawing
  new ResizeObserver(() => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(drawAll);
  }).observe(document.body);
}

async function main() {
  levels = await decode();
  document.querySelector("main").hidden = false;
  $("slider").max = steps.length - 1;
  $("time").hidden = $("step-keys").hidden = steps.length === 1;
  build();
  drawAll();
  listen();
  document.documentElement.dataset.ready = "1";
}

main().catch((error) => {
  $("intro").textContent = `This browser could not draw the page (${error.message}). Chrome 105, Firefox 121, Safari 16.4 or newer can.`;
});
