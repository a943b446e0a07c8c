// The attention page's data: the snapshots of #data (JSON), the state, and the weights that the maps show.
const data = JSON.parse($("data").textContent);
const { tokens, n_layer: L, n_head: H, n_tokens: T } = data;
const [A, B] = data.runs, { steps } = A, names = data.score_names, TERMS = new Map(data.glossary);
const S = data.n_keys ?? T, isCausal = data.triangle ?? true, keyTokens = data.keys ?? tokens;
// Levels of one head, row after row: in a causal map row i has i + 1 of them, otherwise one for each key.
const CELLS = isCausal ? T * (T + 1) / 2 : T * S;
const SIZE = L * H * CELLS;               // levels of one step
const LARGEST = data.largest ?? 1;        // value of the largest level
const LISTED = 8;                         // tokens in each ranked list
const state = { frame: steps.length - 1, layer: 0, head: 0, token: T - 1, direction: "from", scale: "sqrt", hide: false,
  score: names.length ? 0 : -1, order: "place", minimum: 0,       // score: place in names; minimum: percent of its range
  values: false, view: "a", relation: -1,                         // view: a, b or diff; relation: place in data.links
  panel: "keys",                                                  // or a name in CAUSES
  picture: "map", several: false, heads: [] };                    // picture: map or lines; heads: overlaid ones, if several
let shown;                                // weights that the maps show, see look()
let under = null;                         // under the pointer: { token } of the text, or { cell } of the large map;
                                          // { cell, link } where a chosen relation put it
let pointed = -1;                         // head whose curve is under the pointer

// Undoes encode_frames of packing.py: after inflating, each frame is the difference from the previous one.
async function framesOf(base64, size) {
  const all = await inflate(base64);
  for (let i = size; i < all.length; i++) all[i] += all[i - size];    // a Uint8Array wraps at 256, as it must
  return all;
}

// Undoes encode_earlier of packing.py: all steps of a run, given the levels of its last one. The bins of a step are in the
// order of the levels of the step after, so each place in it is found by counting.
async function earlierOf(base64, last, frames) {
  const bytes = await inflate(base64), all = new Uint8Array(frames * SIZE), TOP = 14;
  all.set(last, (frames - 1) * SIZE);
  let at = 0;
  for (let frame = frames - 2; frame >= 0; frame--) {
    const step = all.subarray(frame * SIZE, (frame + 1) * SIZE), after = all.subarray((frame + 1) * SIZE);
    const begin = new Uint32Array(257), table = bytes.subarray(at, at += 16 * L * H);
    const bins = bytes.subarray(at, at += (SIZE + 1) >> 1);
    for (let i = 0; i < SIZE; i++) begin[after[i] + 1]++;
    for (let level = 1; level < 256; level++) begin[level] += begin[level - 1];
    for (let i = 0; i < SIZE; i++) {
      const place = begin[after[i]]++, bin = bins[place >> 1] >> 4 * (place & 1) & 15;
      step[i] = bin === TOP ? bytes[at++] : table[16 * Math.floor(i / CELLS) + bin];
    }
  }
  return all;
}

async function decode() {
  for (const run of data.runs) {
    const levels = await framesOf(run.levels, SIZE);
    run.levels = run.earlier ? await earlierOf(run.earlier, levels, run.steps.length) : levels;
    Object.assign(run, JSON.parse(new TextDecoder().decode(await inflate(run.details))));
    if (run.norms) run.norms = await framesOf(run.norms, L * H * T);
    if (run.causes) await decodeCauses(run.causes);
    // The slider has the steps of A: for each of them the index of this run's nearest step.
    run.nearest = steps.map((step) => run.steps.reduce((best, other, i) =>
      (Math.abs(other - step) < Math.abs(run.steps[best] - step) ? i : best), 0));
  }
}

const frameOf = (run, frame = state.frame) => (run === A ? frame : run.nearest[frame]);
const LENGTH = Float64Array.from({ length: 256 }, (_, q) => q && 1e-4 ** ((255 - q) / 254));       // expand_lengths

// The value of each level: signed values have 128 for 0, and 0 for what is masked.
const VALUE = WEIGHT.map((weight, q) => LARGEST * (!data.signed ? weight : q ? Math.sign(q - 128) * ((q - 128) / 127) ** 2 : NaN));

// One run's weights at the current step: the levels to paint, and a function from a level's index to its weight.
function weigh(run) {
  const frame = frameOf(run), levels = run.levels.subarray(frame * SIZE, (frame + 1) * SIZE);
  if (!state.values) return { levels, at: (i) => VALUE[levels[i]] };
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
const isSigned = () => isDifference() || Boolean(data.signed);

function look() {
  const key = [state.frame, state.values, state.view].join();
  if (shown?.key === key) return;                       // slow on a large page, so only when something changed
  shown = isDifference() ? difference(weigh(A), weigh(B)) : weigh(state.view === "b" ? B : A);
  shown.key = key;
}

const beginOf = (layer, head) => (layer * H + head) * CELLS;
const rowOf = (query) => (isCausal ? query * (query + 1) / 2 : query * S);      // where it begins in a map
const lengthOf = (query) => (isCausal ? query + 1 : S);                         // how many keys it has
const firstOf = (key) => (isCausal ? key : 0);                                  // the first query that has the key
const placeOf = (layer, head, query, key) => beginOf(layer, head) + rowOf(query) + key;
const isMasked = (level) => level === 0 && Boolean(data.signed);                // a score of minus infinity
const levelAt = (...cell) => shown.levels[placeOf(...cell)];
const weightAt = (layer, head, query, key) => shown.at(placeOf(layer, head, query, key));
