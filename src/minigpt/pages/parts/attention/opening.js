// Where the page opens: at the head and the token with the clearest pattern or the largest effect.
const KEYS = new Map([                    // label -> the keys in which it shows, of a query
  ["previous token", (query) => (query ? [query - 1] : [])], ["current token", (query) => [query]], ["first token", () => [0]],
]);
const PLAIN_LABELS = ["first token", "current token"];              // labels of many heads, the least worth seeing
const PATTERNS = ["induction", "duplicate_token", "previous_token", ...names.filter((name) => name.startsWith("relation: "))]
  .map((name) => names.indexOf(name)).filter((score) => score >= 0);
const scoreOfLabel = (label) => [label.replaceAll(" ", "_"), `relation: ${label}`].map((name) => names.indexOf(name))
  .find((score) => score >= 0) ?? -1;

// Heads that have a label at the current step: [head, label, its score], the most worth seeing first.
function labelled() {
  const isPlain = ([, name]) => PLAIN_LABELS.includes(name);
  return thumbs.map((_, i) => [i, labelOf(i)]).filter(([, name]) => name)
    .map(([i, name]) => [i, name, scoreAt(state.frame, scoreOfLabel(name), i)])
    .sort((a, b) => isPlain(a) - isPlain(b) || (b[2] ?? 0) - (a[2] ?? 0) || a[0] - b[0]);
}

// Heads in the order of a score at the current step: [head, score], the highest first.
const byScore = (score) => thumbs.map((_, i) => [i, current(i, score)]).filter(([, value]) => value !== null)
  .sort((a, b) => b[1] - a[1] || a[0] - b[0]);

// The head whose rows are the least even, not counting the first token.
function sharpest() {
  const focus = thumbs.map((_, i) => {
    let sum = 0;
    for (let q = 0; q < T; q++) for (let k = 1; k < lengthOf(q); k++) sum += (weightAt(Math.floor(i / H), i % H, q, k) || 0) ** 2;
    return sum;
  });
  return focus.indexOf(Math.max(...focus));
}

function clearestHead() {
  const [label] = labelled(), ablation = names.indexOf("ablation");
  if (label) return { head: label[0], score: Math.max(Math.min(0, names.length - 1), scoreOfLabel(label[1])) };
  const [needed] = byScore(ablation);
  if (needed?.[1] > 0) return { head: needed[0], score: ablation };
  const best = PATTERNS.map((score) => [score, byScore(score)[0]]).filter(([, found]) => found).sort((a, b) => b[1][1] - a[1][1])[0];
  return best ? { head: best[1][0], score: best[0] } : { head: sharpest(), score: Math.min(0, names.length - 1) };
}

// The last of the values that are the largest.
const lastMost = (values) => values.reduce((best, value, i) => (value >= values[best] ? i : best), 0);

// The token whose loss rises most without the head, or the one whose weight is the furthest above an even share where the
// head's label looks.
function clearestToken(i) {
  const { causes } = A, name = labelOf(i);
  if (!name && causes?.ablation && causes.step === steps[state.frame]) {
    const effects = tokens.map((_, token) => causes.ablation(i, token)), best = lastMost(effects);
    if (effects[best] > 0) return best;
  }
  const others = (query) => Array.from({ length: lengthOf(query) }, (_, key) => key).filter((key) => key && (data.keys || key !== query));
  const keysOf = KEYS.get(name) ?? others;
  const most = (query) => Math.max(0, ...keysOf(query).map((key) => Math.abs(weightAt(Math.floor(i / H), i % H, query, key)) || 0));
  return lastMost(tokens.map((_, query) => most(query) - 1 / lengthOf(query)));
}

function openAtTheClearest() {
  look();
  const { head, score } = clearestHead();
  Object.assign(state, { layer: Math.floor(head / H), head: head % H, score });
  state.token = clearestToken(head);
}
