// The panel of interventions: switch off, scale or redirect parts of the model. What comes of it is drawn by panel_compare.js.
const partButtons = [];                   // {button, part, key, layer, name}
const MEASURE_BUTTONS = ["measure", "why-measure"];
const measured = { tokens: null, position: 0, effects: {} };             // see Session.partEffects

const offKind = () => document.querySelector("input[name=off]:checked").value;
const offValue = (part) => (part === "heads" ? (offKind() === "mean" ? { mean: true } : { scale: 0 }) : offKind());
const intervene = (spec) => change({ interventions: spec });
const selectedHead = () => headName(state.layer, state.head);
const headChange = () => state.interventions?.heads?.[selectedHead()] ?? null;
const isHeadOff = (value) => Boolean(value?.mean) || value?.scale === 0;
const selectedCell = () => ({ layer: state.layer, head: state.head, query: state.selected, key: Number($("cell-key").value) });

// ---- the parts of the model: a row of buttons for each layer ------------------------------------------------------

function isPartOff(part, key) {
  const value = state.interventions?.[part]?.[key];
  return part === "heads" ? isHeadOff(value) : value !== undefined;
}

function togglePart(part, key) {
  intervene(withPart(state.interventions, part, key, isPartOff(part, key) ? null : offValue(part)));
}

function partButton(part, key, text, name) {
  const button = make("button", { type: "button", textContent: text, className: "part" }, { "data-part": `${part} ${key}` });
  button.addEventListener("click", () => togglePart(part, key));
  partButtons.push({ button, part, key, name });
  return button;
}

function buildParts() {
  for (let layer = 0; layer < N_LAYER; layer++) {
    const row = make("div", { className: "parts-row" }, { role: "group", "aria-label": `layer ${layer}` });
    row.append(partButton("layers", `${layer}`, `Layer ${layer}`, `layer${layer}`));
    for (let head = 0; head < N_HEAD; head++) {
      const name = headName(layer, head);
      row.append(partButton("heads", name, name, name));
    }
    row.append(partButton("attentions", `${layer}`, "Attention", `attn${layer}`));
    row.append(partButton("mlps", `${layer}`, "MLP", `mlp${layer}`));
    $("parts").append(row);
  }
}

// What was measured without a part, where it was on this text.
const effectOf = (name) => (measured.tokens === state.tokens ? measured.effects[name] : undefined);

function effectWords({ loss, label, isOther, probability }) {
  const then = isOther ? `expects \u201c${label}\u201d instead (its own token: ${percentOf(probability)})`
    : `still expects the same token (${percentOf(probability)})`;
  return `: without it the loss changes by ${signedText(loss, 3)} nats per token; after #${measured.position} the model ${then}`;
}

function drawParts() {
  const most = Math.max(...Object.values(measured.effects).map(({ loss }) => Math.abs(loss)), 1e-9);
  for (const { button, part, key, name } of partButtons) {
    const effect = effectOf(name), words = `switch off ${partName(part, key)}${effect ? effectWords(effect) : ""}`;
    button.setAttribute("aria-pressed", isPartOff(part, key));
    button.setAttribute("aria-label", words);
    button.title = words;
    button.style.setProperty("--effect", effect ? (Math.abs(effect.loss) / most).toFixed(3) : 0);
    Object.assign(button.dataset, { changed: part === "heads" && state.interventions?.heads?.[key] ? "1" : "",
      sign: effect?.loss < 0 ? "less" : "more", other: effect?.isOther ? "1" : "" });
  }
  $("measured").hidden = measured.tokens !== state.tokens;
}

// Asks the engine what each part is for. One forward pass a part, so only when asked for.
async function measureParts() {
  const { tokens, selected: position } = state, kind = offKind();
  Object.assign(measured, { tokens, position, effects: {} });
  for (const id of MEASURE_BUTTONS) $(id).disabled = true;
  $("why-words").textContent = "Measuring: one forward pass for each part \u2026";
  $("measured").textContent = "Measuring: one forward pass for each part \u2026";
  drawParts();
  await ask("measure", "partEffects", { kind, position }, tellMeasured);
  if (!Object.keys(measured.effects).length) $("measured").textContent = "";      // an error, or there is no such text now
  for (const id of MEASURE_BUTTONS) $(id).disabled = false;
  update({ measures: state.measures + 1 });
}

function tellMeasured(effects) {
  measured.effects = effects;
  const heads = Object.keys(effects).filter((name) => name.includes("."));
  const name = heads.reduce((best, each) => (effects[each].loss > effects[best].loss ? each : best));
  const hasOthers = Object.values(effects).some(({ isOther }) => isOther);
  $("measured").textContent = `Of all heads, this text needs ${name} most: without it the loss changes by ${signedText(effects[name].loss, 3)} nats `
    + "per token. Orange: the loss rises without the part; blue: it falls. "
    + `${hasOthers ? "\u2260: without the part the model expects another token" : "No part alone changes which token the model expects"} after `
    + `${tokenWords(measured.position, state.labels)}. Measured on the model as it was trained.`;
  root.dataset.measured = name;
  drawParts();
}

// ---- the selected head, and one cell of its pattern ----------------------------------------------------------------

function drawSelectedHead() {
  const value = headChange(), scale = value?.scale ?? (value?.mean ? 0 : 1), name = selectedHead();
  $("chosen-head").textContent = `Head ${name}`;
  for (const button of document.querySelectorAll(".head-off")) {
    button.textContent = isHeadOff(value) ? "Switch this head on" : "Switch this head off";
    button.setAttribute("aria-pressed", isHeadOff(value));
  }
  $("head-scale").value = scale;
  $("head-scale-value").textContent = `\u00d7 ${scale.toFixed(2)}`;
  for (const way of Object.keys(WAYS_OF_ATTENDING)) $(`head-${way}`).setAttribute("aria-pressed", value?.attend === way);
}

const setHead = (value) => intervene(withPart(state.interventions, "heads", selectedHead(), value));

// The keys that the selected token can attend to; the cell marked in the large map is chosen, or else the strongest.
function drawCell() {
  const query = state.selected, key = shownQuery() === query ? shownCell()[1] : 0;
  const keys = state.labels.slice(0, query + 1).map((_, i) => make("option", { value: i, textContent: tokenWords(i, state.labels) }));
  $("cell-key").replaceChildren(...keys);
  $("cell-key").value = key;
  $("cell-query").textContent = tokenWords(query, state.labels);
  drawCellWeight();
}

function drawCellWeight() {
  const cell = selectedCell(), set = cellWeight(state.interventions, cell);
  const isKnown = cell.query < patterns.n, weight = set ?? (isKnown ? weightAt(cell.layer, cell.head, cell.query, cell.key) : 0);
  $("cell-weight").value = weight;
  $("cell-weight-value").textContent = `${weight.toFixed(2)}${set === null ? "" : ", set by you"}`;
  $("cell-undo").disabled = set === null;
}

// ---- what is changed -----------------------------------------------------------------------------------------------

function drawChanges() {
  const found = changesOf(state.interventions, state.labels);
  $("changes").replaceChildren(...found.map(({ words, without }) => {
    const item = make("li"), undo = make("button", { type: "button", textContent: "Undo" }, { "aria-label": `undo: ${words}` });
    undo.addEventListener("click", () => { intervene(without); ($("changes").querySelector("button") ?? $("head-off")).focus(); });
    item.append(make("bdi", { textContent: words }), undo);
    return item;
  }));
  $("unchanged").hidden = found.length > 0;
  $("reset-all").disabled = !found.length;
  root.dataset.changes = found.length;
}

function drawInterventions(changed) {
  drawParts();
  drawCell();
  drawChanges();
  drawCompare(changed);
}

// What is shown whichever tab is open: the button above the large map, and marks on the small maps of changed heads.
function drawChangedHeads(changed) {
  if (!["layer", "head", "interventions"].some((name) => changed.has(name))) return;
  drawSelectedHead();
  $("map-reset").hidden = state.interventions === null;
  thumbs.forEach((thumb, i) => {
    const layer = Math.floor(i / N_HEAD), isChanged = (part, key) => state.interventions?.[part]?.[key] !== undefined;
    const isWhole = isChanged("attentions", layer) || isChanged("layers", layer);
    thumb.classList.toggle("changed", isWhole || isChanged("heads", headName(layer, i % N_HEAD)));
  });
}

function startInterventions() {
  buildParts();
  for (const button of document.querySelectorAll(".head-off")) button.addEventListener("click", () => togglePart("heads", selectedHead()));
  $("head-scale").addEventListener("input", () => {
    const scale = Number($("head-scale").value);
    setHead(scale === 1 ? null : { scale });
  });
  for (const way of Object.keys(WAYS_OF_ATTENDING)) {
    $(`head-${way}`).addEventListener("click", () => setHead(headChange()?.attend === way ? null : { attend: way }));
  }
  $("cell-key").addEventListener("change", () => selectCell(state.selected, Number($("cell-key").value)));
  $("cell-weight").addEventListener("input", () => {
    const cell = selectedCell(), { query, key } = cell;   // stays the chosen one, whichever key is the strongest then
    change({ cell: { query, key }, interventions: withCell(state.interventions, cell, Number($("cell-weight").value)) });
  });
  $("cell-undo").addEventListener("click", () => intervene(withCell(state.interventions, selectedCell(), null)));
  for (const id of ["reset-all", "map-reset"]) $(id).addEventListener("click", () => intervene(null));
  for (const id of MEASURE_BUTTONS) $(id).addEventListener("click", measureParts);
  onChoice("off", drawParts);
}

shared("changes", { read: (text) => ({ interventions: checkedSpec(JSON.parse(text), data.config) }),
  write: () => state.interventions && JSON.stringify(state.interventions) });
startInterventions();
onChange(drawChangedHeads);
addTab("change", "Change the model", drawInterventions);
