// The heads: all as small maps, the selected one large with the tokens on its axes, and the strongest keys of the selected token.
const MAP_COLOURS = paletteOf(data.colours);
const KEY_COUNT = 6;                      // strongest keys listed
const AXIS_PIXELS = 12;                   // along the large map for the text of a token
const SLICE = 12;                         // milliseconds
let patterns = { n: 0, weights: new Float32Array(0) };      // see Session.patterns
const thumbs = [];                        // buttons of the small maps, layer after layer

// ---- the numbers -------------------------------------------------------------------------------------------------

const rowSize = (n) => n * (n + 1) / 2;   // cells in the rows 0 to n - 1
const weightAt = (layer, head, query, key) =>
  patterns.weights[(layer * N_HEAD + head) * rowSize(patterns.n) + rowSize(query) + key];

// Keys of a query in a head, strongest first: [key, weight].
const strongest = (weigh, query) => Array.from({ length: query + 1 }, (_, key) => [key, weigh(query, key)]).sort((a, b) => b[1] - a[1]);
const weighHead = (query, key) => weightAt(state.layer, state.head, query, key);

function weighAll(query, key) {
  let sum = 0;
  for (let layer = 0; layer < N_LAYER; layer++) for (let head = 0; head < N_HEAD; head++) sum += weightAt(layer, head, query, key);
  return sum / (N_LAYER * N_HEAD);
}

// The selected query, or none while the maps are those of a shorter text.
const shownQuery = () => (state.selected < patterns.n ? state.selected : -1);

// ---- painting ------------------------------------------------------------------------------------------------------

// Paints one head: colours go with the square root of a weight. Where the canvas has fewer pixels than tokens, a pixel takes the
// largest of its cells: an average would wash out a diagonal that is one token wide.
function paintHead(canvas, layer, head, cssPixels) {
  const n = patterns.n, side = clamp(Math.round(cssPixels * devicePixelRatio), 1, n);
  const words = new Uint32Array(side * side), most = new Float32Array(side * side).fill(-1);
  const pixel = Uint32Array.from({ length: n }, (_, i) => Math.floor(i * side / n));
  let at = (layer * N_HEAD + head) * rowSize(n);
  for (let query = 0; query < n; query++) {
    for (let key = 0; key <= query; key++, at++) {
      const weight = patterns.weights[at], place = pixel[query] * side + pixel[key];
      if (weight <= most[place]) continue;
      most[place] = weight;
      words[place] = MAP_COLOURS[Math.round(255 * Math.sqrt(Math.min(1, weight)))];
    }
  }
  putPixels(canvas, side, words);
}

let painting = 0;                         // number of the newest call of drawMaps

// The large map at once, the small ones in slices of a few milliseconds, so that a model of many heads does not stop the typing.
function drawMaps() {
  if (!patterns.n) return;
  paintHead($("large"), state.layer, state.head, $("large").clientWidth);
  const mine = ++painting, width = thumbs[0].clientWidth;
  const paintFrom = (i) => {
    const end = performance.now() + SLICE;
    for (; i < thumbs.length && performance.now() < end; i++) paintHead(thumbs[i].firstChild, Math.floor(i / N_HEAD), i % N_HEAD, width);
    if (i < thumbs.length) setTimeout(() => { if (mine === painting) paintFrom(i); }, 0);
  };
  paintFrom(0);
}

// The texts of the tokens along an axis: as many as fit, and the marked one instead of its neighbours.
function drawAxis(axis, marked, pixels) {
  const { n } = patterns, every = Math.max(1, Math.ceil(n * AXIS_PIXELS / Math.max(pixels, 1)));
  const isShown = (i) => i === marked || (i % every === 0 && (marked < 0 || Math.abs(i - marked) >= every));
  axis.replaceChildren(...Array.from({ length: n }, (_, i) => i).filter(isShown).map((i) => {
    const text = make("span", { textContent: state.labels[i], className: i === marked ? "marked" : "" });
    text.style.setProperty("--at", `${100 * (i + 0.5) / n}%`);
    return text;
  }));
}

function placeMark(mark, [row, column, rows, columns]) {
  const { style } = mark;
  [style.top, style.left, style.height, style.width] = [row, column, rows, columns].map((x) => `${100 * x / patterns.n}%`);
}

// The cell in the state, if it is of the selected token, or else the strongest key of that token.
function shownCell() {
  const query = shownQuery(), { cell } = state;
  if (cell && cell.query === query && cell.key <= query) return [query, cell.key];
  return [query, strongest(weighHead, query)[0][0]];
}

function tellCell([query, key]) {
  $("readout").replaceChildren(quotedLabel(query), ` #${query} attends to `, quotedLabel(key), ` #${key} with weight `,
    make("b", { textContent: short(weighHead(query, key)) }));
}

function drawLarge() {
  const query = shownQuery();
  $("map-title").textContent = `Head ${headName(state.layer, state.head)}`;
  if (query < 0) return;
  const cell = shownCell(), isChosen = state.cell !== null && cell[1] === state.cell.key && query === state.cell.query;
  drawAxis($("rows"), query, $("large").clientHeight);
  drawAxis($("columns"), isChosen ? cell[1] : -1, $("large").clientWidth);
  placeMark($("row-mark"), [query, 0, 1, query + 1]);
  placeMark($("cell-mark"), [query, cell[1], 1, 1]);
  $("cell-mark").hidden = !isChosen;
  $("large").setAttribute("aria-label", `attention weights of head ${headName(state.layer, state.head)}; arrows choose a cell`);
  tellCell(cell);
}

// ---- the selected head -----------------------------------------------------------------------------------------------

function drawThumbs() {
  thumbs.forEach((thumb, i) => {
    const isChosen = i === state.layer * N_HEAD + state.head;
    thumb.setAttribute("aria-pressed", isChosen);
    thumb.tabIndex = isChosen ? 0 : -1;   // Tab passes the heads in one stop, arrows move among them
  });
}

function fillKeys(list, query, weigh) {
  list.replaceChildren(...strongest(weigh, query).slice(0, KEY_COUNT).map(([key, weight]) => {
    const button = make("button", { type: "button", className: "put", title: "select this token" });
    button.append(quotedLabel(key));
    button.addEventListener("click", () => select(key));
    return listItem(weight, button, `#${key}`, short(weight), { "data-key": key });
  }));
}

// The lists, and a line under each token of the text: the more weight it has, the stronger.
function drawKeys() {
  const query = shownQuery();
  if (query < 0) return;
  $("keys-title").replaceChildren("What ", quotedLabel(query), " attends to");
  $("one-title").textContent = `Head ${headName(state.layer, state.head)}`;
  fillKeys($("keys-one"), query, weighHead);
  fillKeys($("keys-all"), query, weighAll);
  for (const [i, span] of [...$("tokens").children].entries()) {
    span.style.setProperty("--weight", i <= query ? Math.sqrt(weighHead(query, i)).toFixed(3) : 0);
  }
  root.dataset.key = $("keys-one").firstChild.dataset.key;
}

function drawHeads(changed) {
  const isHead = changed.has("layer") || changed.has("head"), isPlace = changed.has("selected") || changed.has("cell");
  if (isHead) drawThumbs();
  if (changed.has("numbers")) ask("patterns", "patterns", { run: shownRun() }, takePatterns);
  else if (patterns.n && (isHead || isPlace)) {
    if (isHead) paintHead($("large"), state.layer, state.head, $("large").clientWidth);
    drawLarge();
    drawKeys();
  }
}

function takePatterns(answer) {
  if (answer.n !== state.n) return;       // an answer for an earlier text; a newer one follows
  patterns = answer;
  $("heads").hidden = !answer.n;
  drawMaps();
  drawLarge();
  drawKeys();
  update({ drawn: state.numbers });
}

const selectHead = (layer, head) => change({ layer, head });

function onGridKey(event) {
  const arrow = ARROWS[event.key];
  if (!arrow || !isPlainKey(event)) return;
  event.preventDefault();
  selectHead(clamp(state.layer + arrow[0], 0, N_LAYER - 1), clamp(state.head + arrow[1], 0, N_HEAD - 1));
  thumbs[state.layer * N_HEAD + state.head].focus();
}

// ---- cells of the large map ------------------------------------------------------------------------------------------

// [query, key] under the pointer, or null above the diagonal, where nothing may attend.
function cellUnder(event) {
  const box = $("large").getBoundingClientRect(), { n } = patterns;
  const query = clamp(Math.floor((event.clientY - box.top) / box.height * n), 0, n - 1);
  const key = clamp(Math.floor((event.clientX - box.left) / box.width * n), 0, n - 1);
  return key <= query ? [query, key] : null;
}

const selectCell = (query, key) => change({ selected: query, cell: { query, key } });

function onMapKey(event) {
  const arrow = ARROWS[event.key];
  if (!arrow || !isPlainKey(event) || shownQuery() < 0) return;
  event.preventDefault();
  const [query, key] = shownCell(), next = clamp(query + arrow[0], 0, patterns.n - 1);
  selectCell(next, clamp(key + arrow[1], 0, next));
}

function listenToMap() {
  const large = $("large");
  large.addEventListener("pointermove", (event) => {
    const cell = cellUnder(event);
    if (cell) tellCell(cell);
  });
  large.addEventListener("pointerleave", drawLarge);
  large.addEventListener("click", (event) => {
    const cell = cellUnder(event);
    if (cell) selectCell(...cell);
  });
  large.addEventListener("keydown", onMapKey);
}

function buildMaps() {
  const grid = $("grid");
  grid.style.setProperty("--heads", N_HEAD);
  for (let layer = 0; layer < N_LAYER; layer++) {
    for (let head = 0; head < N_HEAD; head++) {
      const name = headName(layer, head);
      const thumb = make("button", { type: "button", className: "thumb", title: `layer ${layer}, head ${head}` });
      thumb.append(make("canvas"), make("span", { className: "tag", textContent: `${name} ` }));
      thumb.addEventListener("click", () => selectHead(layer, head));
      thumbs.push(thumb);
      grid.append(thumb);
    }
  }
  grid.addEventListener("keydown", onGridKey);
  listenToMap();
  onChange(drawHeads);
  onResize(() => { drawMaps(); drawLarge(); });
}

buildMaps();
