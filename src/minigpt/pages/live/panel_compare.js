// Before and after the interventions, side by side: the next tokens of the selected position, and the loss of the text.
const COMPARED = 12;                      // next tokens listed
const MOST_CHANGE = 4;                    // bits of surprise from which on the tint of a token is strongest
const signedText = (value, digits) => `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(digits)}`;

function compareRow(cells, attributes = {}) {
  const row = make("tr", {}, attributes);
  row.append(...cells.map((content) => {
    const cell = make("td");
    cell.append(content);
    return cell;
  }));
  return row;
}

// Change of a probability in percentage points.
const pointsOf = (change) => signedText(100 * change, Math.abs(change) < 0.0995 ? 2 : 1);
const likeliestOf = (rows, run) => rows.reduce((best, row) => (row[run] > best[run] ? row : best), rows[0]);

// Both distributions at the selected position, sorted by the larger probability of each token.
function drawCompared(rows, isChanged) {
  const most = rows.reduce((limit, { base, changed: after }) => Math.max(limit, base, after), 0);    // the longest bar
  $("compared").replaceChildren(...rows.map(({ token, label, base, changed }) => compareRow(
    [make("bdi", { textContent: label }), bars(...(isChanged ? [base / most, changed / most] : [base / most])), percentOf(base),
      ...(isChanged ? [percentOf(changed), pointsOf(changed - base)] : [])],
    { "data-token": token })));
  document.querySelectorAll(".compared .after").forEach((head) => { head.hidden = !isChanged; });
  $("compare-before").textContent = isChanged ? "before" : "probability";
  const [first, second] = ["base", "changed"].map((run) => likeliestOf(rows, run));
  const before = `The model expects \u201c${first.label}\u201d (${percentOf(first.base)})`;
  $("compare-words").textContent = !isChanged ? `${before}. Change something above to see what it expects then.`
    : first.token === second.token ? `${before}, and still does after the changes (${percentOf(second.changed)}).`
      : `${before}; after the changes \u201c${second.label}\u201d (${percentOf(second.changed)}).`;
  Object.assign(root.dataset, { expected: first.label, expectedChanged: isChanged ? second.label : "" });
}

function drawLosses() {
  const { base, changed } = state.loss, has = changed !== null && Number.isFinite(base);
  $("losses").textContent = !Number.isFinite(base) ? "The text has one token: there is nothing to predict yet."
    : `${base.toFixed(3)} nats per token${has ? ` before, ${changed.toFixed(3)} after (${signedText(changed - base, 3)})` : ""}.`;
  $("loss-tokens").hidden = $("loss-scale").hidden = !has;
  root.dataset.lossChange = has ? (changed - base).toFixed(6) : "";
  if (!has) return;
  $("loss-tokens").replaceChildren(...state.labels.map((label, i) => {
    const before = state.surprise.base[i], after = state.surprise.changed[i], difference = i ? after - before : 0;
    const title = i ? `${before.toFixed(2)} \u2192 ${after.toFixed(2)} bits` : "the first token has no surprise";
    const span = make("span", { className: `token change${difference < 0 ? " less" : ""}`, textContent: writtenText(label), title });
    span.style.setProperty("--share", (0.85 * clamp(Math.abs(difference) / MOST_CHANGE, 0, 1)).toFixed(3));
    span.classList.toggle("selected", i === state.selected);
    span.addEventListener("click", () => change({ selected: i }));
    return span;
  }));
}

function drawCompare(changed) {
  if (!changed.has("numbers") && !changed.has("selected")) return;
  drawLosses();
  $("compare-title").replaceChildren("Next token after ", make("bdi", { textContent: tokenWords(state.selected, state.labels) }));
  const isChanged = state.interventions !== null;
  ask("compare", "compare", { position: state.selected, count: COMPARED }, (rows) => {
    if (rows.length) drawCompared(rows, isChanged);
  });
}
