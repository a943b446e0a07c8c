// Paints weights: scales from levels to colours, the small maps and the colour bar.
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
  const signed = isSigned(), zero = signed ? 128 : 0, full = signed ? 127 : 255;
  const table = (signed ? SIGNED : PLAIN)[state.scale], colours = signed ? DIFFERENCE : PALETTE;
  const shade = (level, most) => (most === full ? table[level] : zero + Math.round(full * (level - zero) / most));
  return { zero, full, table, colours, shade, byRow: state.scale === "row" };
}

const PALETTE = paletteOf(data.colours), DIFFERENCE = paletteOf(data.difference);

// Indices of the colour map for a picture of a head, n high and m wide; -1 where nothing is or it is hidden or masked, which
// stays transparent.
// Where there are fewer pixels than tokens, a pixel takes the largest of its cells: an average would wash out a diagonal
// that is one token wide.
function shadesOf(layer, head, n, m) {
  const { levels } = shown, first = state.hide ? 1 : 0, { zero, full, shade, byRow } = shading();
  const shades = new Int16Array(n * m).fill(-1);
  const pixel = Uint32Array.from({ length: S }, (_, j) => Math.floor(j * m / S));
  for (let i = 0; i < T; i++) {
    const at = beginOf(layer, head) + rowOf(i), length = lengthOf(i), row = Math.floor(i * n / T) * m;
    let most = full;
    if (byRow) {
      most = 1;
      for (let j = first; j < length; j++) if (!isMasked(levels[at + j])) most = Math.max(most, Math.abs(levels[at + j] - zero));
    }
    for (let j = first; j < length; j++) {
      if (isMasked(levels[at + j])) continue;
      const value = shade(levels[at + j], most), cell = row + pixel[j];
      if (shades[cell] < 0 || Math.abs(value - zero) > Math.abs(shades[cell] - zero)) shades[cell] = value;
    }
  }
  return shades;
}

// Height and width of a picture: at most a pixel for each cell.
const pixelsOf = (cssPixels) => [T, S].map((count) => Math.max(1, Math.min(count, Math.round(cssPixels * devicePixelRatio))));

function paint(canvas, layer, head, cssPixels) {
  const [n, m] = pixelsOf(cssPixels), { colours } = shading();
  putPixels(canvas, m, Uint32Array.from(shadesOf(layer, head, n, m), (value) => (value < 0 ? 0 : colours[value])));
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
  const levelOf = (weight) => (isSigned() ? 128 + Math.sign(weight) * Math.round(127 * Math.sqrt(Math.abs(weight)))
    : Math.round(255 * Math.sqrt(weight)));
  const shownTicks = isSigned() ? [...few.map((x) => -x).reverse(), 0, ...few] : ticks;
  $("ticks").replaceChildren(...shownTicks.map((weight) => {
    const tick = make("span", { textContent: LARGEST === 1 ? weight : Number((LARGEST * weight).toPrecision(2)) });
    tick.style.left = `${table[levelOf(weight)] / 2.55}%`;
    return tick;
  }));
  $("bar-note").hidden = !isDifference();
}
