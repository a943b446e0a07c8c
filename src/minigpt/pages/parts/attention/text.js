// The text, the strongest pairs of the selected token and what is under the pointer.
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

// The related tokens with their shares of the strongest colour, from -1 to 1, by a head: [[token, share]].
function tinted(i) {
  const { zero, full, shade, byRow } = shading(), list = related((q, k) => levelAt(Math.floor(i / H), i % H, q, k));
  const most = byRow ? Math.max(1, ...list.map(([, level]) => Math.abs(level - zero))) : full;
  return list.map(([token, level]) => [token, (shade(level, most) - zero) / full]);
}

// Colour and share of each related token, of all overlaid heads or of the selected one, whose colour is the style sheet's.
function tints() {
  const heads = overlaid();
  if (!heads.length) return new Map(tinted(selected()).map(([i, share]) => [i, { share }]));
  const lists = heads.map((head) => tinted(head));
  return new Map(lists[0].map(([i], k) => [i, mixed(heads.map((head, n) => [head, lists[n][k][1]]))]));
}

function drawText() {
  const { token, direction } = state, shades = tints();
  spans.forEach((span, i) => {
    const { share = 0, colour } = shades.get(i) ?? {};
    span.style.setProperty("--share", (0.85 * Math.abs(share)).toFixed(3));
    span.style.setProperty("--tint", colour ? colour.map(Math.round).join(" ") : "var(--glow)");
    span.classList.toggle("less", share < 0);
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
  const ofOthers = overlaid().map((i) => `${shortName(i)} ${short(weightAt(Math.floor(i / H), i % H, query, key))}`).join(", ");
  tell({
    "readout-head": nameOf(selected()), "readout-row": `#${query}`, "readout-column": `#${key}`,
    "readout-query": quoted(query), "readout-key": quoted(key),
    "readout-means": `${isDifference() ? "A \u2212 B" : state.values ? "weight" : "with weight"}${
      state.values ? " \u00d7 value" : ""}`,
    "readout-weight": toldWeight(weightAt(layer, head, query, key)), "readout-both": a ? `A ${a}, B ${b}` : ofOthers,
  });
  place($("line-mark"), direction === "from" ? [token, 0, 1, token + 1] : [token, token, T - token, 1]);
  drawAxes(query, key);
  $("cell-mark").hidden = !hover;
  if (hover) place($("cell-mark"), [query + 0.5, key + 0.5, 1, 1]);
}

function place(mark, [row, column, rows, columns]) {
  const { style } = mark;
  [style.top, style.left, style.height, style.width] = [row, column, rows, columns].map((x) => `${100 * x / T}%`);
}
