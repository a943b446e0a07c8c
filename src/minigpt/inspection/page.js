// The attention page: snapshots (the JSON in #data) -> what is drawn. page.py writes this into page.html; no libraries.
"use strict";
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const { tokens, n_layer: L, n_head: H, n_tokens: T } = data;
const [A] = data.runs, { steps } = A;
const TRIANGLE = T * (T + 1) / 2;         // levels of one head: row i has i + 1 of them and starts at i * (i + 1) / 2
const LISTED = 8;                         // tokens in each ranked list
const FRAME_MS = 700;                     // pause between two steps while playing
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const state = { frame: steps.length - 1, layer: 0, head: 0, token: T - 1, direction: "from", scale: "sqrt", hide: false };
let levels;                               // Uint8Array of all frames, after decoding
let hover = null;                         // [query, key] under the pointer
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
  $("grid").classList.toggle("compact", $("grid").clientWidth / H < 56);
  const size = thumbs[0].clientWidth;
  thumbs.forEach((thumb, i) => paint(thumb.firstChild, Math.floor(i / H), i % H, size));
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
const visible = (text) => text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u2192")
  .replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0))) || "\u2205";
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

// ---- what happens when ---------------------------------------------------------------------------------------------

// For whoever reads the page with a program: what is selected stands in data attributes of the root element.
function describe() {
  const { layer, head, token, direction, scale, hide, frame } = state;
  Object.assign(document.documentElement.dataset, { layer, head, token, direction, scale, hide, frame, step: steps[frame] });
}

function drawHead() {
  const { layer, head } = state;
  paint($("large"), layer, head, $("large").clientWidth);
  $("large").setAttribute("aria-label", `attention weights of layer ${layer}, head ${head}, step ${steps[state.frame]}`);
  thumbs.forEach((thumb, i) => {
    const selected = i === layer * H + head;
    thumb.setAttribute("aria-pressed", selected);
    thumb.tabIndex = selected ? 0 : -1;               // Tab passes the grid in one stop, arrows move inside it
  });
  drawText();
  drawRanking();
  drawReadout();
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
  if ("frame" in changes || "scale" in changes || "hide" in changes) drawAll(); else drawHead();
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
    set({ layer: clamp(state.layer + arrow[0], 0, L - 1), head: clamp(state.head + arrow[1], 0, H - 1) });
    if (document.activeElement.classList.contains("thumb")) thumbs[state.layer * H + state.head].focus();
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
  const grid = $("grid"), corner = make("div", { className: "corner" });
  grid.style.gridTemplateColumns = `auto repeat(${H}, minmax(0, max(30px, min(200px, (100vh - 140px) / ${L}))))`;   // deep models: smaller, not longer
  corner.append("head \u2192", make("br"), "layer \u2193");
  grid.append(corner);
  const heading = (word, i) => {
    const element = make("div");
    element.append(make("span", { className: "word", textContent: `${word} ` }), `${i}`);
    return element;
  };
  for (let h = 0; h < H; h++) grid.append(heading("head", h));
  for (let l = 0; l < L; l++) {
    grid.append(heading("layer", l));
    for (let h = 0; h < H; h++) {
      const thumb = make("button", { type: "button", className: "thumb" }, { "aria-label": `layer ${l}, head ${h}` });
      thumb.append(make("canvas"), make("span", { textContent: `${l}.${h}` }));
      thumb.addEventListener("click", () => set({ layer: l, head: h }));
      thumbs.push(thumb);
      grid.append(thumb);
    }
  }
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
