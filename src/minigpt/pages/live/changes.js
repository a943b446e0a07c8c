// The interventions as the page keeps them (the plain object that interventions.js takes, or null): set, take out, name.
const CHANGE_PARTS = ["heads", "mlps", "attentions", "layers"];
const MOST_SCALE = 3;                     // of the slider of a head
const WAYS_OF_ATTENDING = { previous: "the previous token", first: "the first token" };

// The spec with one part changed; value null takes the part out. Specs are never modified.
function withPart(spec, part, key, value) {
  const { [key]: _, ...others } = spec?.[part] ?? {};
  return tidySpec({ ...spec, [part]: value === null ? others : { ...others, [key]: value } });
}

// The spec with the weight of one cell set; weight null gives the cell its own weight back.
function withCell(spec, { layer, head, query, key }, weight) {
  const cells = (spec?.cells ?? []).filter((cell) =>
    cell.layer !== layer || cell.head !== head || cell.query !== query || cell.key !== key);
  return tidySpec({ ...spec, cells: weight === null ? cells : [...cells, { layer, head, query, key, weight }] });
}

// Without empty parts; null if nothing is left.
function tidySpec(spec) {
  const full = Object.entries(spec).filter(([, changed]) => Object.keys(changed).length > 0);
  return full.length ? Object.fromEntries(full) : null;
}

const cellWeight = (spec, { layer, head, query, key }) => (spec?.cells ?? []).find((cell) =>
  cell.layer === layer && cell.head === head && cell.query === query && cell.key === key)?.weight ?? null;

// What a spec changes, in the order of the layers: {words, without}, the second being the spec without that change.
function changesOf(spec, labels) {
  const found = [];
  for (const part of CHANGE_PARTS) {
    for (const [key, value] of Object.entries(spec?.[part] ?? {})) {
      const layer = Number(key.split(".")[0]);
      found.push({ layer, words: partWords(part, key, value), without: withPart(spec, part, key, null) });
    }
  }
  for (const cell of spec?.cells ?? []) {
    const [query, key] = [cell.query, cell.key].map((position) => tokenWords(position, labels));
    const words = `head ${cell.layer}.${cell.head}: ${query} attends to ${key} with weight ${cell.weight.toFixed(2)}`;
    found.push({ layer: cell.layer, words, without: withCell(spec, cell, null) });
  }
  return found.sort((a, b) => a.layer - b.layer);
}

const tokenWords = (position, labels) => (position < labels.length ? `#${position} \u201c${labels[position]}\u201d` : `#${position}`);

const partName = (part, key) => ({ heads: `head ${key}`, mlps: `MLP of layer ${key}`, attentions: `attention of layer ${key}`,
  layers: `layer ${key} (attention and MLP)` })[part];

function partWords(part, key, value) {
  const name = partName(part, key);
  if (value.attend) return `${name}: attends to ${WAYS_OF_ATTENDING[value.attend]} only`;
  if (value.scale) return `${name}: output times ${value.scale.toFixed(2)}`;
  return value === "mean" || value.mean ? `${name}: its mean output at every position` : `${name}: switched off (zero)`;
}

const isIndex = (number, size) => Number.isInteger(number) && number >= 0 && number < size;
const isWithin = (number, most) => Number.isFinite(number) && number >= 0 && number <= most;

// One change of a head, or null; a scale of 1 is none.
function checkedHead(value) {
  if (Object.hasOwn(WAYS_OF_ATTENDING, value?.attend)) return { attend: value.attend };
  return value?.mean === true ? { mean: true } : isWithin(value?.scale, MOST_SCALE) && value.scale !== 1 ? { scale: value.scale } : null;
}

// Keys as the page writes them: a head "00.1" would be listed, and change nothing.
const LAYER_NAME = /^(0|[1-9]\d*)$/, HEAD_NAME = /^(0|[1-9]\d*)\.(0|[1-9]\d*)$/;

// A spec from a link, which is untrusted: without the parts that the model lacks.
function checkedSpec(spec, { n_layer: nLayer, n_head: nHead, context_length }) {
  const entries = (part) => Object.entries(spec?.[part] ?? {});
  const isHead = (key) => HEAD_NAME.test(key) && isIndex(Number(key.split(".")[0]), nLayer) && isIndex(Number(key.split(".")[1]), nHead);
  const isCell = (cell) => isIndex(cell?.layer, nLayer) && isIndex(cell.head, nHead) && isIndex(cell.query, context_length)
    && isIndex(cell.key, cell.query + 1) && isWithin(cell.weight, 1);
  const good = { heads: {} };
  for (const [key, value] of entries("heads")) if (isHead(key) && checkedHead(value)) good.heads[key] = checkedHead(value);
  for (const part of ["mlps", "attentions", "layers"]) {
    good[part] = Object.fromEntries(entries(part).filter(([key, value]) =>
      LAYER_NAME.test(key) && isIndex(Number(key), nLayer) && (value === "zero" || value === "mean")));
  }
  // As JSON would have it: only the last weight of a cell counts.
  const cells = new Map(entries("cells").map(([, cell]) => cell).filter(isCell).map(({ layer, head, query, key, weight }) =>
    [`${layer}.${head}.${query}.${key}`, { layer, head, query, key, weight }]));
  return tidySpec({ ...good, cells: [...cells.values()] });
}
