// The lesson's figures: formulas, vectors and matrices as heat maps, small tables with their numbers.
const ROW_OF_VECTOR = 64;                 // numbers of a long vector in one row of its picture
const WARM = [222, 90, 50], COLD = [50, 120, 220];             // above and below zero; the paler, the closer to it

const numberText = (x, digits = 2) => (x === -Infinity ? "\u2212\u221e" : `${x < 0 ? "\u2212" : ""}${Math.abs(x).toFixed(digits)}`);
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

// "s_{ij} = q_{i}^{2}" with subscripts and superscripts as elements.
const mathNodes = (text) => text.split(/([_^]\{[^}]*\})/).map((part) => {
  const tag = { _: "sub", "^": "sup" }[part[0]];
  return tag && part[1] === "{" ? make(tag, { textContent: part.slice(2, -1) }) : part;
});

// Each formula of a list stays on one line where it fits.
function formulaLine(formulas) {
  const line = make("p", { className: "formula" });
  for (const formula of formulas) line.appendChild(make("span")).append(...mathNodes(formula));
  return line;
}

// A word about a token: its text in quotes, and its position.
function tokenNodes(position) {
  return [quotedLabel(position), make("small", { textContent: ` #${position}` })];
}

function sentence(...parts) {
  const line = make("p");
  line.append(...parts.flat());
  return line;
}

// ---- heat maps -----------------------------------------------------------------------------------------------------

const colourWord = (share) => {           // -1 to 1 -> alpha, blue, green, red; zero is the page's own colour
  const [red, green, blue] = share < 0 ? COLD : WARM;
  return (Math.round(255 * Math.min(1, Math.abs(share))) << 24 | blue << 16 | green << 8 | red) >>> 0;
};

// A heat map with a row of its own for what the pointer or the arrows are on. rows: arrays of numbers of one length, or a typed
// array for each. cellName(row, column) names a cell; names: text of each row, or none; marks: [[row, column]] to outline; a power
// below 1 makes small numbers visible beside large ones; isPrinted writes the numbers into the cells, where there is room.
function heatFigure(title, rows, { cellName, names = null, marked = -1, marks = [], height = 14, power = 0.5, isPrinted = false }) {
  const width = rows[0].length, flat = rows.flatMap((row) => [...row]);
  const low = Math.min(...flat), high = Math.max(...flat), most = Math.max(-low, high) || 1;
  const figure = make("figure", { className: "heat" }), canvas = make("canvas", { tabIndex: 0 }, { role: "img" });
  const said = `${title}: ${rows.length > 1 ? `${rows.length} rows of ${width}` : plural(width, "number")}, ${numberText(low)} to ${numberText(high)}`;
  const caption = make("figcaption"), readout = make("span", { textContent: `${numberText(low)} to ${numberText(high)}` }, { "aria-live": "polite" });
  canvas.setAttribute("aria-label", `${said}; arrows read single numbers`);
  putPixels(canvas, width, Uint32Array.from(flat, (x) => colourWord(Math.sign(x) * (Math.abs(x) / most) ** power)));
  canvas.style.height = `${height * rows.length}px`;
  caption.append(make("b", { textContent: title }), " ", readout);
  const picture = make("div", { className: "picture" }), frame = make("div", { className: "cells" });
  frame.append(canvas, ...(isPrinted ? [printedNumbers(flat, width, height)] : []), ...marks.map(([row, column], i) => markOf(row, column, rows.length, width, i)));
  if (names) picture.append(rowNames(names, marked, height));
  picture.append(frame);
  figure.append(caption, picture);
  tellCells(canvas, rows, (row, column) => { readout.textContent = `${cellName(row, column)}: ${numberText(rows[row][column])}`; });
  return figure;
}

function printedNumbers(flat, width, height) {
  const grid = make("div", { className: "printed" }, { "aria-hidden": "true" });
  grid.style.gridTemplate = `repeat(${flat.length / width}, ${height}px) / repeat(${width}, minmax(0, 1fr))`;
  grid.append(...flat.map((x) => make("span", { textContent: numberText(x, 1) })));
  return grid;
}

function markOf(row, column, rows, columns, i) {
  const mark = make("div", { className: `cell-mark mark-${i}` });
  Object.assign(mark.style, { top: `${100 * row / rows}%`, left: `${100 * column / columns}%`, height: `${100 / rows}%`, width: `${100 / columns}%` });
  return mark;
}

function rowNames(names, marked, height) {
  const list = make("div", { className: "row-names" }, { "aria-hidden": "true" });
  list.append(...names.map((textContent, i) => make("bdi", { textContent, className: i === marked ? "marked" : "" })));
  list.style.setProperty("--height", `${height}px`);
  return list;
}

// tell(row, column) of the cell under the pointer, or of that to which the arrows go.
function tellCells(canvas, rows, tell) {
  const width = rows[0].length, at = { row: 0, column: -1 };
  const move = (row, column) => {
    Object.assign(at, { row: clamp(row, 0, rows.length - 1), column: clamp(column, 0, width - 1) });
    tell(at.row, at.column);
  };
  const onPointer = (event) => {
    const box = canvas.getBoundingClientRect();
    move(Math.floor((event.clientY - box.top) / box.height * rows.length), Math.floor((event.clientX - box.left) / box.width * width));
  };
  canvas.addEventListener("pointermove", onPointer);
  canvas.addEventListener("pointerdown", onPointer);
  canvas.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key];
    if (!arrow || !isPlainKey(event)) return;
    event.preventDefault();
    event.stopPropagation();              // the lesson's own arrows go to another step
    move(at.row + arrow[0], at.column + arrow[1]);
  });
}

// One vector, wrapped into rows.
function vectorFigure(title, vector, name = "number") {
  const width = Math.min(ROW_OF_VECTOR, vector.length), rows = [];
  for (let at = 0; at < vector.length; at += width) rows.push(vector.slice(at, at + width));
  const last = rows[rows.length - 1];     // filled up with zeros, which have no colour
  if (last.length < width) rows[rows.length - 1] = Float64Array.from({ length: width }, (_, i) => last[i] ?? 0);
  return heatFigure(`${title}, ${plural(vector.length, "number")}`, rows, { cellName: (row, column) => `${name} ${row * width + column}`, height: rows.length > 1 ? 9 : 18 });
}

// One row for each shown token.
function tokensFigure(title, rows, { shown, position }) {
  return heatFigure(`${title}, ${rows.length} tokens of ${rows[0].length} numbers`, rows, { names: shown.map((key) => state.labels[key]),
    marked: shown.indexOf(position), cellName: (row, column) => `\u201c${state.labels[shown[row]]}\u201d #${shown[row]}, number ${column}` });
}

// ---- tables --------------------------------------------------------------------------------------------------------

// A cell of a table: a text, or {text, share} with a bar behind it, or {text, isOut} crossed out.
function tableCell(cell) {
  const { text, share, isOut } = typeof cell === "string" ? { text: cell } : cell;
  const element = make("td", { textContent: text, className: isOut ? "out" : "" });
  if (share !== undefined) {
    element.classList.add("bar-cell");
    element.style.setProperty("--share", `${(100 * clamp(share, 0, 1)).toFixed(1)}%`);
  }
  return element;
}

// A row for each line {position, cells} or {text, cells}.
function lessonTable(columns, lines, marked) {
  const table = make("table", { className: "numbers" }), head = make("thead").appendChild(make("tr")), body = make("tbody");
  head.append(...columns.map((name) => {
    const cell = make("th", {}, { scope: "col" });
    cell.append(...mathNodes(name));
    return cell;
  }));
  for (const { position, text, cells } of lines) {
    const row = make("tr", { className: position !== undefined && position === marked ? "marked" : "" }), name = make("th", {}, { scope: "row" });
    name.append(...(position === undefined ? [text] : tokenNodes(position)));
    row.append(name, ...cells.map(tableCell));
    body.append(row);
  }
  table.append(head.parentNode, body);
  return table;
}
