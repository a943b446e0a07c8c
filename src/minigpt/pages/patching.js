// Draws the heat maps of patches from their record in #data (JSON).
const data = JSON.parse($("data").textContent);
const MIDDLE = 127;                       // row of the colours that is zero, see colormap.py
const state = { map: 0, row: 0, column: 0, range: "shared" };
const canvases = [];
const PALETTE = paletteOf(data.colours);  // of 255 colours; the last word stays black
const differs = (i) => data.clean[i] !== data.corrupted[i];
const most = (effects) => effects.reduce((limit, effect) => Math.max(limit, Math.abs(effect ?? 0)), 0);
const shared = data.maps.reduce((limit, { effects }) => Math.max(limit, most(effects)), 0);
const limitOf = ({ effects }) => (state.range === "shared" ? shared : most(effects)) || 1;
const signed = (value) => `${value < 0 ? "\u2212" : ""}${Math.abs(value).toFixed(3)}`;

// ---- words -------------------------------------------------------------------------------------------------------

function token(i) {
  return differs(i) ? `\u201c${data.clean[i]}\u201d, corrupted \u201c${data.corrupted[i]}\u201d` : `\u201c${data.clean[i]}\u201d`;
}

// Name of a cell, as HeatMap.cell of patching.py.
function cellName({ axes, rows, columns }, row, column) {
  if (axes[0] === "layer" && axes[1] === "head") return `head ${rows[row]}.${columns[column]}`;
  return `${axes[0]} ${rows[row]}, ${axes[1]} ${axes[1] === "position" ? `${column} ${token(column)}` : columns[column]}`;
}

function cellNumbers({ columns, effects, values }, row, column) {
  const at = row * columns.length + column;
  return effects[at] === null ? "no such patch" : `effect ${signed(effects[at])}, ${data.metric} ${signed(values[at])}`;
}

function drawPrompts() {
  for (const which of ["clean", "corrupted"]) {
    $(which).replaceChildren(...data[which].map((textContent, i) => make("span", { textContent, title: `position ${i}`,
      className: `token${differs(i) ? " differs" : ""}${i === data.position ? " read" : ""}` })));
  }
}

// ---- maps --------------------------------------------------------------------------------------------------------

function paint() {
  data.maps.forEach((map, m) => {
    const limit = limitOf(map);
    putPixels(canvases[m], map.columns.length, Uint32Array.from(map.effects, (effect) =>
      effect === null ? 0 : PALETTE[MIDDLE + Math.round(MIDDLE * clamp(effect / limit, -1, 1))]));
  });
  const limit = limitOf(data.maps[state.map]);
  tell({ low: signed(-limit), high: signed(limit) });
}

function build(map, m) {
  const n = map.columns.length, isTokens = map.axes[1] === "position", upright = isTokens || n > 16;
  const section = make("section", { className: "map" }), frame = make("div", { className: "frame" });
  const grid = make("div", { className: "grid" }), rows = make("div", { className: "rows" });
  const columns = make("div", { className: `columns${upright ? " upright" : ""}` });
  const canvas = make("canvas", { tabIndex: 0 }, { role: "img", "aria-label": `${map.title}: ${map.axes[0]} by ${map.axes[1]}` });
  grid.style.setProperty("--width", `${clamp(Math.floor(560 / n), 15, 34)}px`);
  grid.style.setProperty("--height", `${map.rows.length > 40 ? 13 : 18}px`);
  grid.style.setProperty("--n", n);
  grid.style.setProperty("--m", map.rows.length);
  rows.append(...map.rows.map((textContent) => make("span", { textContent })));
  columns.append(...map.columns.map((textContent, i) => (isTokens
    ? make("span", { textContent: differs(i) ? `${data.clean[i]} | ${data.corrupted[i]}` : data.clean[i], title: `position ${i}: ${token(i)}`,
      className: `token${differs(i) ? " differs" : ""}` })
    : make("span", { textContent }))));
  grid.append(rows, canvas, make("div", { className: "corner", textContent: map.axes[0] }), columns);
  frame.append(grid);
  section.append(make("h2", { textContent: map.title }), make("p", { textContent: `${map.note} A row for each ${map.axes[0]}, a column for each ${map.axes[1]}.` }), frame);
  canvases.push(canvas);
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    show(m, Math.floor((event.clientY - box.top) / box.height * map.rows.length), Math.floor((event.clientX - box.left) / box.width * n));
    placeTip(event.clientX, event.clientY);
  });
  canvas.addEventListener("pointerleave", () => { $("tip").hidden = true; });
  canvas.addEventListener("blur", () => { $("tip").hidden = true; });
  canvas.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key];
    if (!arrow || event.metaKey || event.ctrlKey || event.altKey || event.shiftKey) return;
    event.preventDefault();
    if (state.map === m) show(m, state.row + arrow[0], state.column + arrow[1]);
    else show(m, 0, 0);
    const box = canvas.getBoundingClientRect();
    placeTip(box.left + (state.column + 1) / n * box.width, box.top + (state.row + 1) / map.rows.length * box.height);
  });
  $("maps").append(section);
}

// Tells what a cell is, in the tip and in the line above the maps.
function show(m, row, column) {
  const map = data.maps[m];
  Object.assign(state, { map: m, row: clamp(row, 0, map.rows.length - 1), column: clamp(column, 0, map.columns.length - 1) });
  const name = cellName(map, state.row, state.column), numbers = cellNumbers(map, state.row, state.column);
  const limit = limitOf(map);
  tell({ tip: `${name}\n${numbers}`, readout: `${map.title}, ${name}: ${numbers}`, low: signed(-limit), high: signed(limit) });
  Object.assign(root.dataset, state);
}

function placeTip(x, y) {
  const tip = $("tip");
  tip.hidden = false;
  tip.style.left = `${clamp(x + 14, 0, Math.max(0, innerWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${y + 16 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 10 : y + 16}px`;
}

start(async () => {
  for (const id of ["prompts", "tools"]) $(id).hidden = false;
  drawPrompts();
  data.maps.forEach(build);
  putPixels($("scale"), 2 * MIDDLE + 1, PALETTE.slice(0, 2 * MIDDLE + 1));
  paint();
  onChoice("range", (range) => { state.range = range; root.dataset.range = range; paint(); });
});
