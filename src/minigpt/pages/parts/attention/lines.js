// Instead of the large map: the queries at the left, the keys at the right, and lines from the selected token.
const LINE_PIXELS = 16;                   // height of a token
const LEAST_LINE = 0.03;                  // fainter lines are not drawn
const lineColumns = [];                   // the tokens at the left and at the right

function buildLines() {
  for (const [id, texts] of [["left-tokens", tokens], ["right-tokens", keyTokens]]) {
    const items = texts.map((text, i) => make("bdi", { textContent: visible(text), title: `#${i}` }));
    $(id).append(...items);
    lineColumns.push(items);
  }
}

const middleOf = (token) => (token + 0.5) * LINE_PIXELS;

// The lines of the selected token, of each head that is shown: [other token, share from -1 to 1, colour].
function lineList() {
  const heads = overlaid();
  return (heads.length ? heads : [selected()]).flatMap((i) => tinted(i)
    .filter(([, share]) => Math.abs(share) >= LEAST_LINE)
    .map(([other, share]) => [other, share, heads.length ? css(colourOf(i)) : ""]));
}

function drawStrands(list, isFrom) {
  const svg = $("strands"), height = Math.max(T, S) * LINE_PIXELS;
  svg.setAttribute("viewBox", `0 0 100 ${height}`);
  svg.style.height = `${height}px`;
  svg.replaceChildren(...list.map(([other, share, colour]) => {
    const [y1, y2] = (isFrom ? [state.token, other] : [other, state.token]).map(middleOf);
    const line = document.createElementNS(svg.namespaceURI, "line");
    for (const [name, value] of Object.entries({ x1: 0, y1, x2: 100, y2 })) line.setAttribute(name, value);
    line.style.strokeOpacity = Math.abs(share).toFixed(3);
    line.style.stroke = colour;                           // that of the style sheet where empty
    line.classList.toggle("less", share < 0);
    return line;
  }));
}

let scrolledTo = -1;

function drawLines() {
  const isLines = state.picture === "lines", { token } = state, isFrom = state.direction === "from";
  $("lines").hidden = !isLines;
  $("axes").hidden = isLines;
  if (!isLines) { scrolledTo = -1; return; }
  const list = lineList(), ends = new Map();
  for (const [other, share] of list) ends.set(other, Math.max(Math.abs(share), ends.get(other) ?? 0));
  drawStrands(list, isFrom);
  lineColumns.forEach((items, side) => items.forEach((item, i) => {
    const isOwnSide = (side === 0) === isFrom;
    item.classList.toggle("own", isOwnSide && i === token);
    item.style.setProperty("--share", isOwnSide ? 0 : (0.85 * (ends.get(i) ?? 0)).toFixed(3));
  }));
  $("lines").setAttribute("aria-label", `lines from the ${isFrom ? "query" : "key"} ${quotedSelected()} to ${ends.size} tokens`);
  if (scrolledTo !== token) $("lines").scrollTop = middleOf(token) - $("lines").clientHeight * (isFrom ? 0.75 : 0.25);
  scrolledTo = token;
}

// A query shows what it attends to, a key what attends to it.
function listenToLines() {
  lineColumns.forEach((items, side) => items.forEach((item, token) =>
    item.addEventListener("click", () => set({ token, direction: side ? "to" : "from" }))));
}
