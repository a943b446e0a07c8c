// The panel of the logit lens: what each layer's residual stream would predict, before and after the interventions.

// Rows of the lens: the embedding, then the stream after each layer; the last is the model's output.
const lensRowName = (row, n) => (row === 0 ? "embedding" : `after layer ${row - 1}${row === n - 1 ? " (output)" : ""}`);

function lensCells({ label, probability, targetProbability }, hasTarget) {
  const bar = make("td", { className: "lens-top" });
  bar.style.setProperty("--share", `${(100 * probability).toFixed(1)}%`);
  bar.append(make("bdi", { textContent: label }), make("small", { textContent: ` ${percentOf(probability)}` }));
  return [bar, ...(hasTarget ? [make("td", { textContent: percentOf(targetProbability), className: "number" })] : [])];
}

function drawLensTable({ base, changed }, target) {
  const n = base.length, runs = changed ? ["before: likeliest", "after: likeliest"] : ["likeliest"];
  const heads = ["stream", ...runs.flatMap((name) => (target === null ? [name] : [name, "target"]))];
  const top = make("tr");
  top.append(...heads.map((textContent) => make("th", { textContent, scope: "col" })));
  $("lens-head").replaceChildren(top);
  $("lens-rows").replaceChildren(...base.map((reading, row) => {
    const line = make("tr", {}, { "data-row": row });
    line.append(make("th", { textContent: lensRowName(row, n), scope: "row" }), ...lensCells(reading, target !== null));
    if (changed) line.append(...lensCells(changed[row], target !== null));
    return line;
  }));
}

// Where the model makes up its mind: the first layer from which on the likeliest token stays the output's.
function lensWords(rows) {
  const last = rows.at(-1).token;
  let row = rows.length - 1;
  while (row > 0 && rows[row - 1].token === last) row--;
  const from = row === 0 ? "from the embedding on" : row === rows.length - 1 ? "only after the last layer" : `from layer ${row - 1} on`;
  return `\u201c${rows.at(-1).label}\u201d is the likeliest ${from}`;
}

function drawLens(changed) {
  if (!changed.has("numbers") && !changed.has("selected")) return;
  const position = state.selected, target = state.labels[position + 1] ?? null;
  ask("lens", "lens", { position }, (found) => { if (found.base.length) drawReadings(found, position, target); });
}

function drawReadings(found, position, target) {
  $("lens-title").replaceChildren("After ", make("bdi", { textContent: tokenWords(position, state.labels) }));
  const after = found.changed ? `; after the changes, ${lensWords(found.changed)}` : "";
  $("lens-words").textContent = `The model\u2019s token ${lensWords(found.base)}${after}.`;
  $("lens-target").textContent = target === null ? "This is the last token of the text: there is no target."
    : `Target: the text\u2019s next token \u201c${target}\u201d.`;
  drawLensTable(found, target);
  root.dataset.lens = found.base.map(({ token }) => token).join(" ");
}

addTab("lens", "Logit lens", drawLens);
