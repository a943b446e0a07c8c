// The table of scores: of the selected head, with what each one means.
function meaningOf(name) {
  const term = TERMS.get(name);
  return term ? `${term.sentence} Range: ${term.range}. Higher means ${term.higher}. ${term.differs} ${term.note}`.trim() : "";
}

// Place of a head among all heads by a score, from 1; heads with equal scores share it.
function placeAmongHeads(score, i) {
  const own = scoreAt(state.frame, score, i);
  return own === null ? null : 1 + thumbs.filter((_, k) => (scoreAt(state.frame, score, k) ?? -Infinity) > own).length;
}

const scoreRows = [];                     // of each score: its cells that change

function buildTable() {
  $("scores").hidden = names.length === 0;
  names.forEach((name, score) => {
    const term = TERMS.get(name), row = make("tr"), head = make("th", { scope: "row" }), what = make("td");
    const button = make("button", { type: "button", className: "rank-by", title: "show it on the small maps, and all about it here" });
    button.append(make("bdi", { textContent: scoreWords(name) }));
    button.addEventListener("click", () => set({ score, minimum: 0 }));
    head.append(button);
    what.append(term?.sentence ?? "");
    if (term?.note) what.append(" ", make("small", { textContent: term.note }));
    if (term?.differs) what.append(" ", make("small", { className: "differs", textContent: term.differs }));
    const cells = { button, value: make("td", { className: "value" }), place: make("td", { className: "value" }) };
    row.append(head, cells.value, cells.place, make("td", { textContent: term?.range ?? "" }), what,
      make("td", { textContent: term?.higher ?? "" }));
    scoreRows.push(cells);
    $("head-scores").tBodies[0].append(row);
  });
}

function drawTable() {
  const i = selected(), at = steps.length > 1 ? `, step ${steps[state.frame]}` : "";
  $("scores-title").textContent = `Scores of ${nameOf(i)}${at}${{ a: "", b: ", run B", diff: ", A \u2212 B" }[state.view]}`;
  scoreRows.forEach(({ button, value, place }, score) => {
    const rank = placeAmongHeads(score, i);
    value.textContent = shownScore(scoreAt(state.frame, score, i), score);
    place.textContent = rank === null ? "\u2013" : `${rank} of ${L * H}`;
    button.setAttribute("aria-pressed", score === state.score);
  });
}
