// The text, the strongest pairs of the selected token and what is under the pointer.
// Makes line breaks, tabs and other control characters visible (U+2400 to U+241F).
const visible = (text, ifEmpty = "\u2205") => text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u2192")
  .replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0))) || ifEmpty;
const inText = (text) => text.split("\n").map((part) => part && visible(part)).join("\u21b5\n") || "\u2205";
const label = (textContent) => make("bdi", { className: "label", textContent });
const quoted = (i) => `\u201c${visible(tokens[i])}\u201d`;
const quotedKey = (i) => `\u201c${visible(keyTokens[i])}\u201d`;
const quotedSelected = () => (state.direction === "from" ? quoted : quotedKey)(state.token);
const quotedOther = (i) => (state.direction === "from" ? quotedKey : quoted)(i);
// A weight, or a difference of two with its sign, but no negative zero.
const toldWeight = (weight) => (Number.isNaN(weight) ? "masked"
  : isSigned() ? number(weight, true) : LARGEST > 1 ? number(weight) : short(weight));

// The tokens that the selected one can attend to, or that can attend to it, each with weigh(query, key).
function related(weigh) {
  const { token, direction, hide } = state;
  const list = [];
  const add = (other, query, key) => { if (!isMasked(levelAt(state.layer, state.head, query, key))) list.push([other, weigh(query, key)]); };
  if (direction === "from") for (let k = hide ? 1 : 0; k < lengthOf(token); k++) add(k, token, k);
  else for (let q = firstOf(token); q < T; q++) add(q, q, token);
  return list;
}

const spans = [], keySpans = data.keys ? [] : spans;      // of the queries and of the keys, which may be one text
const selectedSpans = () => (state.direction === "from" ? spans : keySpans);
const otherSpans = () => (state.direction === "from" ? keySpans : spans);

// One text, or two of which each weight connects a token of the first and one of the second.
function buildText() {
  const spanOf = (text, i) => make("span", { textContent: inText(text) },
    { role: "button", "data-token": i, "aria-label": `${i}: ${visible(text)}` });
  spans.push(...tokens.map(spanOf));
  // Words of a user's own may come without the spaces between them.
  $("tokens").classList.toggle("apart", Boolean(data.intro) && [...tokens, ...keyTokens].every((text) => text === text.trim()));
  if (keySpans === spans) return $("tokens").append(...spans);
  keySpans.push(...keyTokens.map(spanOf));
  const group = (title, list) => {
    const box = make("div", {}, { role: "group", "aria-label": title });
    box.append(make("h3", { textContent: title }), ...list);
    return box;
  };
  $("tokens").append(group("queries (rows)", spans), group("keys (columns)", keySpans));
}

// A token of the second text is selected as a key.
const directionOf = (span) => (keySpans === spans ? state.direction : keySpans.includes(span) ? "to" : "from");

// Whether there is a weight between the selected token and this one.
function canReach(i) {
  const { layer, head, token, direction } = state, [query, key] = direction === "from" ? [token, i] : [i, token];
  return key < lengthOf(query) && !isMasked(levelAt(layer, head, query, key));
}

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
  const { token, direction } = state, shades = tints(), own = selectedSpans(), others = otherSpans();
  for (const group of new Set([own, others])) group.forEach((span, i) => {
    const { share = 0, colour } = (group === others && shades.get(i)) || {};
    span.style.setProperty("--share", (0.85 * Math.abs(share)).toFixed(3));
    span.style.setProperty("--tint", colour ? colour.map(Math.round).join(" ") : "var(--glow)");
    span.classList.toggle("less", share < 0);
    span.classList.toggle("masked", group === others && !canReach(i));
    span.setAttribute("aria-pressed", group === own && i === token);
    span.tabIndex = i === (group === own ? token : 0) ? 0 : -1;
  });
  for (const radio of document.getElementsByName("direction")) radio.checked = radio.value === direction;
  $("text-title").replaceChildren(direction === "from" ? "What " : "What attends to ",
    label(quotedSelected()), (direction === "from" ? " attends to" : "") + (isDifference() ? ", A \u2212 B" : ""));
}

function fill(list, ranking) {
  ranking.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  list.replaceChildren(...ranking.slice(0, LISTED).map(([i, weight]) => {
    const item = listItem(Math.abs(weight) / LARGEST, label(quotedOther(i)), `#${i}`, toldWeight(weight), { "data-token": i });
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
  $("all").parentElement.hidden = L * H === 1;
  fill($("all"), related((q, k) => {
    let sum = 0;
    for (let l = 0; l < L; l++) for (let h = 0; h < H; h++) sum += weightAt(l, h, q, k) || 0;      // NaN: masked
    return sum / (L * H);
  }));
}

// [query, key] under the pointer, for the selected token; null where there is no weight.
function hovered() {
  const { token, direction, hide } = state;
  if (!under) return null;
  if (under.token === 0 && hide && direction === "from") return null;
  const [query, key] = under.cell ?? (direction === "from" ? [token, under.token] : [under.token, token]);
  return key < lengthOf(query) ? [query, key] : null;
}

// Shows the pair under the pointer, or else the strongest pair of the selected token.
function drawReadout() {
  const { layer, head, token, direction } = state, hover = hovered();
  let pair = hover;
  if (!pair) {
    const list = related((q, k) => levelAt(layer, head, q, k));
    const { zero } = shading(), size = ([, level]) => Math.abs(level - zero);
    const best = list.reduce((a, b) => (size(b) > size(a) ? b : a), list[0] ?? [0, zero])[0];
    pair = direction === "from" ? [token, best] : [best, token];
  }
  const [query, key] = pair;
  const [a, b] = (shown.parts ?? []).map((part) => short(part.at(placeOf(layer, head, query, key))));
  const ofOthers = overlaid().map((i) => `${shortName(i)} ${toldWeight(weightAt(Math.floor(i / H), i % H, query, key))}`).join(", ");
  tell({
    "readout-head": nameOf(selected()), "readout-row": `#${query}`, "readout-column": `#${key}`,
    "readout-query": quoted(query), "readout-key": quotedKey(key),
    "readout-means": `${isDifference() ? "A \u2212 B" : state.values ? "weight" : "with weight"}${
      state.values ? " \u00d7 value" : ""}`,
    "readout-weight": toldWeight(weightAt(layer, head, query, key)), "readout-both": a ? `A ${a}, B ${b}` : ofOthers,
  });
  place($("line-mark"), direction === "from" ? [token, 0, 1, lengthOf(token)]
    : [firstOf(token), token, T - firstOf(token), 1]);
  drawAxes(query, key);
  $("cell-mark").hidden = !hover;
  if (hover) place($("cell-mark"), [query + 0.5, key + 0.5, 1, 1]);
}

function place(mark, [row, column, rows, columns]) {
  const { style } = mark;
  [style.top, style.height] = [row, rows].map((x) => `${100 * x / T}%`);
  [style.left, style.width] = [column, columns].map((x) => `${100 * x / S}%`);
}
