// Draws the attention page from the snapshots in #data (JSON).
const data = JSON.parse($("data").textContent);
const { tokens, n_layer: L, n_head: H, n_tokens: T } = data;
const [A, B] = data.runs, { steps } = A, names = data.score_names, MEANING = new Map(data.glossary);
const TRIANGLE = T * (T + 1) / 2;         // levels of one head: row i has i + 1 of them and starts at i * (i + 1) / 2
const SIZE = L * H * TRIANGLE;            // levels of one step
const LISTED = 8;                         // tokens in each ranked list
const state = { frame: steps.length - 1, layer: 0, head: 0, token: T - 1, direction: "from", scale: "sqrt", hide: false,
  score: names.length ? 0 : -1, order: "place", minimum: 0,       // score: place in names; minimum: percent of its range
  values: false, view: "a", relation: -1,                         // view: a, b or diff; relation: place in data.links
  panel: "keys" };                                                // or a name in CAUSES
let shown;                                // weights that the maps show, see look()
let under = null;                         // under the pointer: { token } of the text, or { cell } of the large map;
                                          // { cell, link } where a chosen relation put it
let pointed = -1;                         // head whose curve is under the pointer

// ---- the numbers -------------------------------------------------------------------------------------------------

// Undoes encode_frames of packing.py: after inflating, each frame is the difference from the previous one.
async function framesOf(base64, size) {
  const all = await inflate(base64);
  for (let i = size; i < all.length; i++) all[i] += all[i - size];    // a Uint8Array wraps at 256, as it must
  return all;
}

async function decode() {
  for (const run of data.runs) {
    run.levels = await framesOf(run.levels, SIZE);
    if (run.norms) run.norms = await framesOf(run.norms, L * H * T);
    if (run.causes) await decodeCauses(run.causes);
    // The slider has the steps of A: for each of them the index of this run's nearest step.
    run.nearest = steps.map((step) => run.steps.reduce((best, other, i) =>
      (Math.abs(other - step) < Math.abs(run.steps[best] - step) ? i : best), 0));
  }
}

const frameOf = (run, frame = state.frame) => (run === A ? frame : run.nearest[frame]);
const LENGTH = Float64Array.from({ length: 256 }, (_, q) => q && 1e-4 ** ((255 - q) / 254));       // expand_lengths

// One run's weights at the current step: the levels to paint, and a function from a level's index to its weight.
function weigh(run) {
  const frame = frameOf(run), levels = run.levels.subarray(frame * SIZE, (frame + 1) * SIZE);
  if (!state.values) return { levels, at: (i) => WEIGHT[levels[i]] };
  const weights = new Float32Array(SIZE), painted = new Uint8Array(SIZE);
  for (let head = 0, at = 0; head < L * H; head++) {
    const lengths = (frame * L * H + head) * T;
    for (let i = 0; i < T; at += ++i) {
      let sum = 0;
      for (let j = 0; j <= i; j++) sum += weights[at + j] = WEIGHT[levels[at + j]] * LENGTH[run.norms[lengths + j]];
      for (let j = 0; j <= i; j++) {
        weights[at + j] /= sum || 1;
        painted[at + j] = Math.round(255 * Math.sqrt(weights[at + j]));
      }
    }
  }
  return { levels: painted, at: (i) => weights[i] };
}

// The difference of two: levels from 1 to 255, 128 for no difference, again evenly spaced in the square root.
function difference(a, b) {
  const levels = new Uint8Array(SIZE), at = (i) => a.at(i) - b.at(i);
  for (let i = 0; i < SIZE; i++) {
    const change = at(i);
    levels[i] = 128 + Math.sign(change) * Math.round(127 * Math.sqrt(Math.abs(change)));
  }
  return { levels, at, parts: [a, b] };
}

const isDifference = () => state.view === "diff";

function look() {
  const key = [state.frame, state.values, state.view].join();
  if (shown?.key === key) return;                       // slow on a large page, so only when something changed
  shown = isDifference() ? difference(weigh(A), weigh(B)) : weigh(state.view === "b" ? B : A);
  shown.key = key;
}

const beginOf = (layer, head) => (layer * H + head) * TRIANGLE;
const placeOf = (layer, head, query, key) => beginOf(layer, head) + query * (query + 1) / 2 + key;
const levelAt = (...cell) => shown.levels[placeOf(...cell)];
const weightAt = (layer, head, query, key) => shown.at(placeOf(layer, head, query, key));

// A scale: a table from stored levels to indices of the colour map, the ticks of the colour bar, and fewer ticks for the
// two sides of a difference. Stored levels are square roots already.
const ROOTS = { table: (q) => q, ticks: [0, 0.01, 0.1, 0.3, 0.6, 1], few: [0.1, 0.4, 1] };
const SCALES = {
  sqrt: ROOTS, row: ROOTS,
  linear: { table: (q) => 255 * WEIGHT[q], ticks: [0, 0.2, 0.4, 0.6, 0.8, 1], few: [0.5, 1] },
  log: {
    table: (q) => 255 * Math.max(0, 1 + Math.log10(WEIGHT[q] || 1e-9) / 4),
    ticks: [0.0001, 0.001, 0.01, 0.1, 1], few: [0.01, 0.1, 1],
  },
};
const tablesOf = (shade) => Object.fromEntries(Object.entries(SCALES).map(([name, scale]) =>
  [name, Uint8Array.from({ length: 256 }, (_, q) => shade(q, (level) => Math.round(scale.table(level))))]));
const PLAIN = tablesOf((q, table) => table(q));
// For differences: the same on both sides of 128.
const SIGNED = tablesOf((q, table) => {
  const size = Math.min(255, Math.round(255 / 127 * Math.abs(q - 128)));      // level 0 does not occur
  return 128 + Math.sign(q - 128) * Math.round(127 / 255 * table(size));
});

// Maps a level to an index of the colour map; `most` is the largest level of its row if the scale is by row.
function shading() {
  const signed = isDifference(), zero = signed ? 128 : 0, full = signed ? 127 : 255;
  const table = (signed ? SIGNED : PLAIN)[state.scale], colours = signed ? DIFFERENCE : PALETTE;
  const shade = (level, most) => (most === full ? table[level] : zero + Math.round(full * (level - zero) / most));
  return { zero, full, table, colours, shade, byRow: state.scale === "row" };
}

// ---- the maps ----------------------------------------------------------------------------------------------------

const PALETTE = paletteOf(data.colours), DIFFERENCE = paletteOf(data.difference);

// Paints one head. Where the canvas has fewer pixels than tokens, a pixel takes the largest of its cells: an average
// would wash out a diagonal that is one token wide.
function paint(canvas, layer, head, cssPixels) {
  const n = Math.max(1, Math.min(T, Math.round(cssPixels * devicePixelRatio)));
  const { levels } = shown, first = state.hide ? 1 : 0, { zero, full, colours, shade, byRow } = shading();
  const shades = new Int16Array(n * n).fill(-1);              // -1: above the diagonal or hidden, stays transparent
  const pixel = Uint32Array.from({ length: T }, (_, i) => Math.floor(i * n / T));
  let at = beginOf(layer, head);
  for (let i = 0; i < T; at += ++i) {
    let most = full;
    if (byRow) {
      most = 1;
      for (let j = first; j <= i; j++) most = Math.max(most, Math.abs(levels[at + j] - zero));
    }
    const row = pixel[i] * n;
    for (let j = first; j <= i; j++) {
      const value = shade(levels[at + j], most), cell = row + pixel[j];
      if (shades[cell] < 0 || Math.abs(value - zero) > Math.abs(shades[cell] - zero)) shades[cell] = value;
    }
  }
  putPixels(canvas, n, Uint32Array.from(shades, (value) => (value < 0 ? 0 : colours[value])));
}

const thumbs = [];

function drawGrid() {
  const width = $("grid").clientWidth / H;
  for (const [name, least] of [["tight", 72], ["compact", 56], ["tiny", 30]]) {    // less room, fewer words on a map
    $("grid").classList.toggle(name, width < least);
  }
  arrange();
  const size = Math.max(...thumbs.map((thumb) => thumb.clientWidth));     // a hidden one has no width
  thumbs.forEach((thumb, i) => { if (!thumb.hidden) paint(thumb.firstChild, Math.floor(i / H), i % H, size); });
}

function drawBar() {
  const { table, colours } = shading();
  putPixels($("bar"), 256, colours);
  const { ticks, few } = SCALES[state.scale];
  const levelOf = (weight) => (isDifference() ? 128 + Math.sign(weight) * Math.round(127 * Math.sqrt(Math.abs(weight)))
    : Math.round(255 * Math.sqrt(weight)));
  const shownTicks = isDifference() ? [...few.map((x) => -x).reverse(), 0, ...few] : ticks;
  $("ticks").replaceChildren(...shownTicks.map((weight) => {
    const tick = make("span", { textContent: weight });
    tick.style.left = `${table[levelOf(weight)] / 2.55}%`;
    return tick;
  }));
  $("bar-note").hidden = !isDifference();
}

// ---- text -------------------------------------------------------------------------------------------------------

// Makes line breaks, tabs and other control characters visible (U+2400 to U+241F).
const visible = (text, ifEmpty = "\u2205") => text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u2192")
  .replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0))) || ifEmpty;
const inText = (text) => text.split("\n").map((part) => part && visible(part)).join("\u21b5\n") || "\u2205";
const label = (textContent) => make("bdi", { className: "label", textContent });
const quoted = (i) => `\u201c${visible(tokens[i])}\u201d`;
// A weight, or a difference of two with its sign, but no negative zero.
const toldWeight = (weight) => (isDifference() ? number(Math.abs(weight) < 0.0005 ? 0 : weight, true) : short(weight));

// The tokens that the selected one can attend to, or that can attend to it, each with weigh(query, key).
function related(weigh) {
  const { token, direction, hide } = state;
  const list = [];
  if (direction === "from") for (let k = hide ? 1 : 0; k <= token; k++) list.push([k, weigh(token, k)]);
  else for (let q = token; q < T; q++) list.push([q, weigh(q, token)]);
  return list;
}

const spans = [];

function drawText() {
  const { layer, head, token, direction } = state, { zero, full, shade, byRow } = shading();
  const list = related((q, k) => levelAt(layer, head, q, k));
  const most = byRow ? Math.max(1, ...list.map(([, level]) => Math.abs(level - zero))) : full;
  const shades = new Map(list.map(([i, level]) => [i, (shade(level, most) - zero) / full]));
  spans.forEach((span, i) => {
    span.style.setProperty("--share", (0.85 * Math.abs(shades.get(i) ?? 0)).toFixed(3));
    span.classList.toggle("less", shades.get(i) < 0);
    span.classList.toggle("masked", direction === "from" ? i > token : i < token);
    span.setAttribute("aria-pressed", i === token);
    span.tabIndex = i === token ? 0 : -1;
  });
  $("text-title").replaceChildren(direction === "from" ? "What " : "What attends to ",
    label(quoted(token)), (direction === "from" ? " attends to" : "") + (isDifference() ? ", A \u2212 B" : ""));
}

function fill(list, ranking) {
  ranking.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  list.replaceChildren(...ranking.slice(0, LISTED).map(([i, weight]) => {
    const item = listItem(Math.abs(weight), label(quoted(i)), `#${i}`, toldWeight(weight), { "data-token": i });
    item.classList.toggle("less", weight < 0);
    return item;
  }));
}

function drawRanking() {
  const { layer, head } = state;
  const what = state.direction === "from" ? "keys" : "queries";
  tell({ "rank-title": isDifference() ? `Largest differences of ${what}, A \u2212 B` : `Strongest ${what}`,
    "one-title": nameOf(selected()), "all-title": `mean of all ${L * H} heads` });
  fill($("one"), related((q, k) => weightAt(layer, head, q, k)));
  fill($("all"), related((q, k) => {
    let sum = 0;
    for (let l = 0; l < L; l++) for (let h = 0; h < H; h++) sum += weightAt(l, h, q, k);
    return sum / (L * H);
  }));
}

// [query, key] under the pointer, for the selected token; null where there is no weight.
function hovered() {
  const { token, direction, hide } = state;
  if (!under) return null;
  if (under.token === 0 && hide && direction === "from") return null;
  const [query, key] = under.cell ?? (direction === "from" ? [token, under.token] : [under.token, token]);
  return key <= query ? [query, key] : null;
}

// Shows the pair under the pointer, or else the strongest pair of the selected token.
function drawReadout() {
  const { layer, head, token, direction } = state, hover = hovered();
  let pair = hover;
  if (!pair) {
    const list = related((q, k) => levelAt(layer, head, q, k));
    const { zero } = shading(), size = ([, level]) => Math.abs(level - zero);
    const best = list.reduce((a, b) => (size(b) > size(a) ? b : a), list[0] ?? [0, 0])[0];
    pair = direction === "from" ? [token, best] : [best, token];
  }
  const [query, key] = pair;
  const [a, b] = (shown.parts ?? []).map((part) => short(part.at(placeOf(layer, head, query, key))));
  tell({
    "readout-head": nameOf(selected()), "readout-row": `#${query}`, "readout-column": `#${key}`,
    "readout-query": quoted(query), "readout-key": quoted(key),
    "readout-means": `${isDifference() ? "A \u2212 B" : state.values ? "weight" : "with weight"}${
      state.values ? " \u00d7 value" : ""}`,
    "readout-weight": toldWeight(weightAt(layer, head, query, key)), "readout-both": a ? `A ${a}, B ${b}` : "",
  });
  place($("line-mark"), direction === "from" ? [token, 0, 1, token + 1] : [token, token, T - token, 1]);
  $("cell-mark").hidden = !hover;
  if (hover) place($("cell-mark"), [query + 0.5, key + 0.5, 1, 1]);
}

function place(mark, [row, column, rows, columns]) {
  const { style } = mark;
  [style.top, style.left, style.height, style.width] = [row, column, rows, columns].map((x) => `${100 * x / T}%`);
}

// ---- the scores of each head -----------------------------------------------------------------------------------------

const nameOf = (i) => `layer ${Math.floor(i / H)}, head ${i % H}`;
const words = (name) => visible(name.replaceAll("_", " "));
// Zero ablation unless another kind is named, as its meaning says.
const scoreWords = (name) => words(
  name === "ablation" && data.ablation_kind !== "zero" ? `ablation (${data.ablation_kind})` : name);
const selected = () => state.layer * H + state.head;
const labelOf = (i) => (state.view === "b" ? "" : data.labels?.[state.frame][i] ?? "");    // B has no labels

// The score of a head at a step, or null where there is none.
function scoreAt(frame, score, i) {
  const of = (run) => run.scores[frameOf(run, frame)][score]?.[i] ?? null;
  if (!isDifference()) return of(state.view === "b" ? B : A);
  return of(A) === null || of(B) === null ? null : of(A) - of(B);
}
const current = (i) => scoreAt(state.frame, state.score, i);

function number(x, signed = false) {
  if (x === null) return "\u2013";
  const size = Math.abs(x), plus = signed && x > 0 ? "+" : "";
  return plus + (size > 0 && size < 0.001 ? x.toExponential(1) : x.toFixed(size >= 100 ? 0 : size >= 1 ? 2 : 3));
}

// Two decimals, for narrow maps.
function brief(x, signed) {
  const size = Math.abs(x ?? 0);
  if (size >= 0.0095) return (signed && x > 0 ? "+" : "") + x.toFixed(size >= 10 ? 0 : 2);
  return size ? x.toExponential(0) : number(x).slice(0, 1);
}

const inNats = (score) => ["ablation", "ablation_repeated"].includes(names[score]);
const isChange = (score) => isDifference() || inNats(score);
const shownScore = (x, score) => number(x, isChange(score));

// Range of the chosen score over all heads and steps, for both the slider and the curves.
function range() {
  let low = Infinity, high = -Infinity;
  steps.forEach((_, frame) => thumbs.forEach((_, i) => {
    const value = scoreAt(frame, state.score, i);
    if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
  }));
  return low <= high ? [low, high] : [0, 0];
}

// In this form 100 percent gives exactly the largest value, without rounding.
function least() {
  const [low, high] = range();
  return state.score < 0 || state.minimum === 0 ? null : high - (high - low) * (1 - state.minimum / 100);
}

const isRanked = () => state.score >= 0 && state.order !== "place";

// Heads in the order of the grid, without those hidden in a ranking.
function inOrder() {
  const heads = thumbs.map((_, i) => i);
  if (!isRanked()) return heads;
  const sign = state.order === "high" ? -1 : 1;
  return heads.filter((i) => !thumbs[i].hidden).sort((a, b) =>
    (current(a) === null) - (current(b) === null) || sign * (current(a) - current(b)) || a - b);
}

// Writes score and label on each small map, dims or hides those below the minimum, and puts the maps in order.
function arrange() {
  const ranked = isRanked(), minimum = least(), compact = $("grid").classList.contains("compact");
  $("grid").classList.toggle("ranked", ranked);
  thumbs.forEach((thumb, i) => {
    const value = current(i), low = minimum !== null && !(value !== null && value >= minimum);
    const shown = state.score < 0 ? "" : shownScore(value, state.score);
    thumb.classList.toggle("low", low);
    thumb.hidden = low && ranked;
    thumb.querySelector(".value").textContent = shown && (compact ? brief(value, isChange(state.score)) : shown);
    thumb.querySelector(".kind").textContent = visible(labelOf(i), "");
    const said = [nameOf(i), shown && `${scoreWords(names[state.score])} ${shown}`, visible(labelOf(i), "")];
    if (low) said.push("below the minimum");
    thumb.setAttribute("aria-label", said.filter(Boolean).join(", "));
    thumb.title = thumb.getAttribute("aria-label");
    thumb.style.gridArea = "";
  });
  if (ranked) inOrder().forEach((i, k) => { thumbs[i].style.gridArea = `${2 + Math.floor(k / H)} / ${2 + k % H}`; });
  $("score").title = $("curve-title").title = MEANING.get(names[state.score]) ?? "";
  $("order").disabled = $("minimum").disabled = state.score < 0;
  $("minimum").value = state.minimum;
  $("minimum-value").textContent = minimum === null ? "any" : shownScore(minimum, state.score);
}

function drawScores() {
  const i = selected(), loss = names.indexOf("ablation"), change = scoreAt(state.frame, loss, i);
  $("head-scores").replaceChildren(...names.map((name, score) => {
    const item = make("span", { title: MEANING.get(name) ?? "" });
    item.append(make("bdi", { textContent: scoreWords(name) }), " ",
      make("b", { textContent: shownScore(scoreAt(state.frame, score, i), score) }), " ");
    return item;
  }));
  $("readout-label").textContent = visible(labelOf(i), "");
  $("readout-ablation").hidden = change === null;
  $("readout-means-loss").textContent = `loss without it (${data.ablation_kind})`;
  $("readout-loss").textContent = `${number(change, true)} nats`;
  drawCurve();
}

// ---- the curves of the chosen score over the training steps ------------------------------------------------------------

const EDGE = 7, LEFT = 40;                // margins of the chart in pixels; the range is written at the left

// Least range of the y axis, so that noise looks small: scores are shares, ablation is in nats.
const leastSpan = () => (inNats(state.score) ? 0.01 : 0.1);

// The y axis: the range of the scores, widened to the least span, but not across zero.
function axis() {
  const [low, high] = range(), missing = Math.max(0, leastSpan() - (high - low));
  const below = low >= 0 ? Math.min(low, missing / 2) : high <= 0 ? Math.max(missing / 2, missing + high) : missing / 2;
  return [low - below, high + missing - below];
}

// Positions of steps and scores on the chart, in CSS pixels.
function chart() {
  const { clientWidth: width, clientHeight: height } = $("curve"), [low, high] = axis();
  const first = steps[0], span = steps[steps.length - 1] - first || 1;
  return {
    width, height, low, high,
    x: (frame) => LEFT + (width - LEFT - EDGE) * (steps[frame] - first) / span,
    y: (value) => height - EDGE - (height - 2 * EDGE) * (value - low) / (high - low),
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
  const told = (k, head) => `${shownScore(scoreAt(k, state.score, head), state.score)} at step ${steps[k]}`;
  tell({ "curve-title": `${scoreWords(names[state.score])} of every head, over the steps`,
    "curve-low": shownScore(low, state.score), "curve-high": shownScore(high, state.score),
    "curve-first": `step ${steps[0]}`, "curve-last": steps[steps.length - 1], "curve-note": `${nameOf(i)}: ${told(frame, i)}` });
  const values = steps.map((_, k) => told(k, selected())).join(", ");
  $("curve").setAttribute("aria-label", `${scoreWords(names[state.score])} of ${nameOf(selected())}: ${values}`);
}

let pointedFrame = 0;                     // step nearest to the pointer

// Finds the curve vertically nearest to the pointer; the selected head wins ties.
function pointCurve(event) {
  const box = $("curve").getBoundingClientRect(), { x, y } = chart();
  const across = event.clientX - box.left, down = event.clientY - box.top;
  const frames = steps.map((_, frame) => frame);
  pointedFrame = frames.reduce((a, b) => (Math.abs(x(b) - across) < Math.abs(x(a) - across) ? b : a));
  const before = Math.max(0, frames.findLastIndex((frame) => x(frame) <= across));
  const after = Math.min(before + 1, steps.length - 1);
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

// ---- relations between tokens, and likeliest next tokens -------------------------------------------------------------

const pairsOf = () => data.links[state.relation]?.[1] ?? [];        // [query, key] of the chosen relation

// Shows a relation at its first link in the text, on the map too.
function chooseRelation(relation) {
  state.relation = relation;
  const first = pairsOf().reduce((a, b) => (b[0] < a[0] ? b : a), pairsOf()[0]);
  if (!first) return set({ relation });
  const [query, key] = first;
  set({ token: state.direction === "from" ? query : key });
  point({ cell: first, link: true });
}

// Outlines the cells of the chosen relation: a dark line with a light one inside shows on every colour.
function drawLinks() {
  const canvas = $("links"), side = $("large").clientWidth, scale = devicePixelRatio, context = canvas.getContext("2d");
  canvas.width = canvas.height = Math.round(side * scale);
  const cell = side * scale / T, size = Math.max(cell, 7 * scale);  // never too small to be seen
  const begin = (i) => clamp((i + 0.5) * cell - size / 2, 1.5 * scale, canvas.width - size - 1.5 * scale);
  for (const [colour, width] of [["#000", 3], ["#fff", 1]]) {
    Object.assign(context, { strokeStyle: colour, lineWidth: width * scale });
    for (const [query, key] of pairsOf()) context.strokeRect(begin(key), begin(query), size, size);
  }
}

// Underlines the tokens linked to the selected one, and shows their weights.
function drawLinked() {
  const { layer, head, token, direction } = state;
  const pairs = pairsOf().filter(([query, key]) => (direction === "from" ? query : key) === token);
  const ends = new Set(pairs.map(([query, key]) => (direction === "from" ? key : query)));
  spans.forEach((span, i) => span.classList.toggle("target", ends.has(i)));
  $("linked").hidden = state.relation < 0;
  if (state.relation < 0) return;
  const told = pairs.flatMap(([query, key]) => {
    const end = direction === "from" ? key : query;
    const weight = key > query ? "comes later" : toldWeight(weightAt(layer, head, query, key));
    return [" ", label(quoted(end)), make("small", { textContent: ` #${end} ` }),
      make("b", { textContent: weight })];
  });
  $("linked").replaceChildren(make("bdi", { textContent: words(data.links[state.relation][0]) }),
    ...(told.length ? [":", ...told] : [": nothing is linked to this token"]));
}

// A run's likeliest tokens after the selected one: [text, probability], best first.
function expected(run) {
  const flat = run.next[frameOf(run)]?.[state.token] ?? [], pairs = [];
  for (let i = 0; i < flat.length; i += 2) pairs.push([data.texts[flat[i]], flat[i + 1]]);
  return pairs;
}

function drawNext() {
  const runs = isDifference() ? [A, B] : [state.view === "b" ? B : A];
  const lists = runs.map((run) => [run, expected(run)]).filter(([, pairs]) => pairs.length);
  $("next").hidden = lists.length === 0;
  $("next-title").replaceChildren("Expected after ", label(quoted(state.token)));
  $("next-lists").replaceChildren(...lists.map(([run, pairs]) => {
    const column = make("div"), list = make("ol", { className: "list" });
    if (isDifference()) column.append(make("h3", { textContent: run === A ? "A" : "B" }));
    list.append(...pairs.map(([text, share]) => listItem(share, label(`\u201c${visible(text)}\u201d`),
      text === tokens[state.token + 1] && "comes next", short(share))));
    column.append(list);
    return column;
  }));
}

// ---- updates and events --------------------------------------------------------------------------------------------

function describe() {
  const { layer, head, token, direction, scale, hide, frame, order, values, view, relation } = state;
  Object.assign(root.dataset, { layer, head, token, direction, scale, hide, frame, step: steps[frame],
    score: names[state.score] ?? "", order, minimum: least() ?? "", values, view,
    otherStep: B ? B.steps[frameOf(B)] : "", relation: data.links[relation]?.[0] ?? "",
    panel: state.panel });
}

function drawHead() {
  const { layer, head } = state;
  paint($("large"), layer, head, $("large").clientWidth);
  $("large").setAttribute("aria-label", `attention weights of layer ${layer}, head ${head}, step ${steps[state.frame]}${
    { a: "", b: ", run B", diff: ", run A minus run B" }[state.view]}`);
  const order = inOrder(), stop = order.includes(selected()) ? selected() : order[0];
  thumbs.forEach((thumb, i) => {
    thumb.setAttribute("aria-pressed", i === selected());
    thumb.tabIndex = i === stop ? 0 : -1;             // Tab passes the grid in one stop, arrows move inside it
  });
  drawText();
  drawRanking();
  drawReadout();
  drawScores();
  drawLinks();
  drawLinked();
  drawNext();
  drawCauses();
  describe();
}

function drawAll() {
  look();
  tellStep(state.frame, steps[state.frame]);
  $("other-step").textContent = B ? [[A, "A"], [B, "B"]].map(([run, name]) => [name, run.steps[frameOf(run)]])
    .filter(([name, step]) => step && (name === "B" || steps.length === 1))    // A's step is at the slider; 0: unknown
    .map(([name, step]) => `${name}: step ${step}`).join(", ") : "";
  drawGrid();
  drawBar();
  drawHead();
}

function set(changes) {
  Object.assign(state, changes);
  if (under?.link && "token" in changes) under = null;
  const ofOneHead = ["layer", "head", "token", "direction", "relation", "panel"];
  if (Object.keys(changes).every((name) => ofOneHead.includes(name))) drawHead(); else drawAll();
}

const choose = (i) => set({ layer: Math.floor(i / H), head: i % H });

// Arrows move over layers and heads, or over the ranking, which is H wide too.
function move([rows, columns]) {
  const { layer, head } = state;
  if (!isRanked()) return set({ layer: clamp(layer + rows, 0, L - 1), head: clamp(head + columns, 0, H - 1) });
  const order = inOrder(), place = order.indexOf(selected()), next = place < 0 ? 0 : place + rows * H + columns;
  if (next in order) choose(order[next]);
}

const toFrame = (frame) => set({ frame: clamp(frame, 0, steps.length - 1) });

function onKey(event) {
  // On many keyboards [ and ] are typed with AltGr, which browsers report as Ctrl and Alt together.
  if (event.metaKey || (event.ctrlKey && !event.altKey)) return;
  const arrow = ARROWS[event.key];
  if (arrow) {
    if (event.altKey || event.shiftKey || event.target.closest("input, select")) return;    // those use the arrows
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

function point(at) {
  under = at;
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
  names.forEach((name, score) => $("score").append(make("option", { value: score, textContent: scoreWords(name) })));
  $("legend").hidden = MEANING.size === 0;
  for (const [name, meaning] of MEANING) {
    $("legend").lastElementChild.append(make("dt", { textContent: scoreWords(name) }), make("dd", { textContent: meaning }));
  }
  $("score").value = state.score;
  data.links.forEach(([name], i) => $("relation").append(make("option", { value: i, textContent: words(name) })));
  $("relation-label").hidden = data.links.length === 0;
  $("ranking").hidden = $("head-scores").hidden = names.length === 0;
  tokens.forEach((text, i) => {
    spans.push(make("span", { textContent: inText(text) }, { role: "button", "data-token": i, "aria-label": `${i}: ${visible(text)}` }));
  });
  $("tokens").append(...spans);
}

function listen() {
  const tokenOf = (event) => (event.target.dataset.token === undefined ? null : Number(event.target.dataset.token));
  const select = (event) => {
    if (tokenOf(event) === null) return;
    under = null;                                        // the pointer is on the selected token: show its strongest pair
    set({ token: tokenOf(event) });
  };
  $("tokens").addEventListener("click", select);
  $("tokens").addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(event); }
  });
  $("tokens").addEventListener("pointerover", (event) => {
    const token = tokenOf(event);
    point(token === null ? null : { token });
  });
  $("large").addEventListener("pointermove", (event) => point({ cell: cellUnder(event) }));
  $("large").addEventListener("click", (event) => {
    const [query, key] = cellUnder(event);
    set({ token: state.direction === "from" ? query : key });
  });
  for (const id of ["large", "tokens"]) $(id).addEventListener("pointerleave", () => point(null));
  const onInput = (id, changes) => $(id).addEventListener("input", () => set(changes($(id))));
  onInput("scale", ({ value }) => ({ scale: value }));
  onInput("hide", ({ checked }) => ({ hide: checked }));
  onInput("score", ({ value }) => ({ score: Number(value), minimum: 0 }));
  onInput("order", ({ value }) => ({ order: value }));
  onInput("minimum", ({ value }) => ({ minimum: Number(value) }));
  $("relation").addEventListener("input", () => chooseRelation(Number($("relation").value)));
  onInput("values", ({ checked }) => ({ values: checked }));
  for (const name of ["direction", "view"]) onChoice(name, (value) => set({ [name]: value }));
  listenToCauses();
  $("curve").addEventListener("pointermove", pointCurve);
  $("curve").addEventListener("pointerleave", () => { pointed = -1; drawCurve(); });
  $("curve").addEventListener("click", (event) => {
    pointCurve(event);
    if (pointed >= 0) choose(pointed);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCurve);
  document.addEventListener("keydown", onKey);
  onResize(drawAll);
}

start(async () => {
  await decode();
  document.querySelector("main").hidden = false;
  $("time").hidden = $("step-keys").hidden = steps.length === 1;
  $("rounding").textContent = data.rounding;
  $("values-label").hidden = !A.norms;
  $("compare").hidden = !B;
  build();
  stepper(steps.length, 700, () => state.frame, toFrame);
  drawAll();
  listen();
});
