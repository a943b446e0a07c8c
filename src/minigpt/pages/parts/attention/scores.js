// The scores of each head: on the small maps, as a ranking, and all of the selected head's.
const nameOf = (i) => `layer ${Math.floor(i / H)}, head ${i % H}`;
const words = (name) => visible(name.replaceAll("_", " "));
// Zero ablation unless another kind is named, as its meaning says.
const scoreWords = (name) => words(
  name === "ablation" && data.ablation_kind !== "zero" ? `ablation (${data.ablation_kind})` : name);
const selected = () => state.layer * H + state.head;
const labelOf = (i) => (state.view === "b" ? "" : data.labels?.[state.frame][i] ?? "");    // B has no labels

// The score of a head at a step, or null where there is none.
function scoreAt(frame, score, i) {
  const of = (run) => run.scores[frameOf(run, frame)][score]?.[i] ?? null;
  if (!isDifference()) return of(state.view === "b" ? B : A);
  return of(A) === null || of(B) === null ? null : of(A) - of(B);
}
const current = (i, score = state.score) => scoreAt(state.frame, score, i);

// Three decimals for every number of the page, fewer from 10 on. What rounds to zero has no sign.
function number(x, signed = false) {
  if (x === null) return "\u2013";
  const size = Math.abs(x);
  if (size < 0.0005) return "0.000";
  return (signed && x > 0 ? "+" : "") + x.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
}

// Two decimals, for narrow maps.
function brief(x, signed) {
  const size = Math.abs(x ?? 0);
  if (size < 0.005) return x === null ? number(x) : "0.00";
  return (signed && x > 0 ? "+" : "") + x.toFixed(size >= 10 ? 0 : 2);
}

const inNats = (score) => ["ablation", "ablation_repeated"].includes(names[score]);
const isChange = (score) => isDifference() || inNats(score);
const shownScore = (x, score) => number(x, isChange(score));

// Range of the chosen score over all heads and steps, for both the slider and the curves.
function range() {
  let low = Infinity, high = -Infinity;
  steps.forEach((_, frame) => thumbs.forEach((_, i) => {
    const value = scoreAt(frame, state.score, i);
    if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
  }));
  return low <= high ? [low, high] : [0, 0];
}

// In this form 100 percent gives exactly the largest value, without rounding.
function least() {
  const [low, high] = range();
  return state.score < 0 || state.minimum === 0 ? null : high - (high - low) * (1 - state.minimum / 100);
}

const isRanked = () => state.score >= 0 && state.order !== "place";

// Heads in the order of the grid, without those hidden in a ranking.
function inOrder() {
  const heads = thumbs.map((_, i) => i);
  if (!isRanked()) return heads;
  const sign = state.order === "high" ? -1 : 1;
  return heads.filter((i) => !thumbs[i].hidden).sort((a, b) =>
    (current(a) === null) - (current(b) === null) || sign * (current(a) - current(b)) || a - b);
}

// Writes score and label on each small map, dims or hides those below the minimum, and puts the maps in order.
function arrange() {
  const ranked = isRanked(), minimum = least(), compact = $("grid").classList.contains("compact");
  $("grid").classList.toggle("ranked", ranked);
  thumbs.forEach((thumb, i) => {
    const value = current(i), low = minimum !== null && !(value !== null && value >= minimum);
    const shown = state.score < 0 ? "" : shownScore(value, state.score);
    thumb.classList.toggle("low", low);
    thumb.hidden = low && ranked;
    thumb.querySelector(".value").textContent = shown && (compact ? brief(value, isChange(state.score)) : shown);
    thumb.querySelector(".kind").textContent = visible(labelOf(i), "");
    const said = [nameOf(i), shown && `${scoreWords(names[state.score])} ${shown}`, visible(labelOf(i), "")];
    if (low) said.push("below the minimum");
    thumb.setAttribute("aria-label", said.filter(Boolean).join(", "));
    thumb.title = thumb.getAttribute("aria-label");
    thumb.style.gridArea = "";
  });
  if (ranked) inOrder().forEach((i, k) => { thumbs[i].style.gridArea = `${2 + Math.floor(k / H)} / ${2 + k % H}`; });
  $("score").title = $("curve-title").title = meaningOf(names[state.score]);
  $("order").disabled = $("minimum").disabled = state.score < 0;
  $("score").value = state.score;
  $("minimum").value = state.minimum;
  $("minimum-value").textContent = minimum === null ? "any" : shownScore(minimum, state.score);
}

function drawScores() {
  const i = selected(), loss = names.indexOf("ablation"), change = scoreAt(state.frame, loss, i);
  $("readout-label").textContent = visible(labelOf(i), "");
  $("readout-ablation").hidden = change === null;
  $("readout-means-loss").textContent = `loss without it (${data.ablation_kind})`;
  $("readout-loss").textContent = `${number(change, true)} nats`;
  drawTable();
  drawCurve();
}
