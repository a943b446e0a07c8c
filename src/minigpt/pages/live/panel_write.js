// The panel that writes on from the text: step by step or at speed, with the alternatives of each drawn token, and a tree
// of the branches left when a token was replaced.
const writing = { tree: null, node: null, run: 0, isBusy: false };
// Of a setting: whether an empty field is allowed (the filter is off), and the values that the field takes.
const WRITE_FIELDS = {
  temperature: { least: 0, most: 100 }, top_k: { isOptional: true, least: 1, most: 1e9, isWhole: true },
  top_p: { isOptional: true, least: 1e-6, most: 1 }, min_p: { isOptional: true, least: 0, most: 1 },
  repetition_penalty: { least: 1e-3, most: 1e3 }, seed: { least: 0, most: 2 ** 32 - 1, isWhole: true },
  count: { least: 1, most: 1e5, isWhole: true },
};

// ---- settings ------------------------------------------------------------------------------------------------------

// The value of a field, null for an empty one; undefined, and a message, if it is none that the setting takes.
function fieldValue(name) {
  const { isOptional, least, most, isWhole } = WRITE_FIELDS[name], field = $(`write-${name}`), text = field.value.trim();
  const value = text === "" && !field.validity.badInput ? null : Number(text || NaN);
  const isGood = value === null ? isOptional : value >= least && value <= most && (!isWhole || Number.isInteger(value))
    && (name !== "temperature" || value === 0 || value >= 1e-30);
  field.setAttribute("aria-invalid", !isGood);
  if (isGood) return value;
  const kind = isWhole ? "a whole number" : "a number";
  $("write-message").textContent = `${name.replace("_", "-")}: takes ${kind} from ${least} to ${most}${isOptional ? ", or nothing" : ""}.`;
  return undefined;
}

// The settings of the sampler, or null with a message.
function writeSettings() {
  $("write-message").textContent = "";
  const values = Object.fromEntries(Object.keys(WRITE_FIELDS).map((name) => [name, fieldValue(name)]));
  return Object.values(values).includes(undefined) ? null : values;
}

// ---- writing -------------------------------------------------------------------------------------------------------

// The tree of the text on the page; a new one where the text is another.
function writeTree() {
  const isSame = writing.tree && writing.tree.tokens.length === state.tokens.length
    && writing.tree.tokens.every((token, i) => token === state.tokens[i]);
  if (!isSame) {
    writing.tree = new WriteTree(state.tokens);
    writing.node = null;
    stopWriting();
  }
  return writing.tree;
}

function stopWriting() {
  writing.run++;
  writing.isBusy = false;
}

const canWrite = () => state.tokens.length > 0 && writing.tree.sequence().length < state.limit;

// Writes up to `count` tokens after the tip of the tree; another run, or a new text, ends it.
async function writeTokens(count) {
  const settings = writeSettings(), tree = writeTree();
  if (!settings) return;
  const mine = ++writing.run;
  writing.isBusy = true;
  drawWrite();
  try {
    for (let i = 0; i < count && canWrite(); i++) {
      const tokens = tree.sequence();
      const step = await engine.call("writeStep", { tokens, settings, position: tree.tip.depth });
      if (mine !== writing.run) return;
      writing.node = tree.add(step);
      drawWritten();
      if (step.isEnd) break;                             // the next token begins another text: "step" writes it
    }
  } catch (error) {
    if (mine === writing.run) $("write-message").textContent = error.message;
  }
  if (mine !== writing.run) return;
  stopWriting();
  drawWrite();
}

// Another token in the place of the selected one; the text goes on from there, the old branch stays in the tree.
function replaceToken(alternative) {
  stopWriting();
  writing.node = writing.tree.replace(writing.node, alternative);
  drawWrite();
  $("alternatives").querySelector("[aria-pressed=true]")?.focus();
}

// To the end of a branch: the last token written in it.
function returnTo(node) {
  stopWriting();
  writing.tree.tip = node;
  writing.node = node;
  drawWrite();
}

// The written text becomes the text of the page.
function keepWritten() {
  stopWriting();
  const tokens = writing.tree.sequence();
  change({ tokens, selected: tokens.length - 1 });
}

// ---- drawing -------------------------------------------------------------------------------------------------------

function writtenToken(node, i) {
  const isChosen = node === writing.node, { probability } = node.alternatives.find(({ token }) => token === node.token) ?? {};
  const title = probability === undefined ? "your choice" : `${percentOf(probability)} by the model`;
  const button = make("button", { type: "button", className: "token drawn", textContent: writtenText(node.label), title },
    { "aria-pressed": isChosen, "aria-label": `token ${i + 1}: ${node.label}` });
  button.tabIndex = isChosen ? 0 : -1;                   // Tab passes the text in one stop, arrows move inside it
  button.addEventListener("click", () => { writing.node = node; drawWritten(); $("written").children[i + 1].focus(); });
  return button;
}

function drawWritten() {
  const { tree, node } = writing, path = tree.path();
  const before = make("span", { className: "before", textContent: state.labels.map(writtenText).join("") });
  $("written").replaceChildren(before, ...path.map(writtenToken));
  drawAlternatives(node);
  drawBranches();
  const left = state.limit - tree.sequence().length;
  $("write-room").textContent = left ? `${path.length} written, room for ${left} more.`
    : `The context is full: the model reads ${state.limit} tokens. Shorten the text, or go back in the tree.`;
  Object.assign(root.dataset, { written: path.map(({ token }) => token).join(" "), branches: leavesOf(tree.segments()).length });
}

function drawAlternatives(node) {
  $("alternatives-title").textContent = node ? `Instead of \u201c${node.label}\u201d` : "Alternatives";
  $("alternatives-words").textContent = node
    ? "Click a token: the text goes on from there. Bars: its probability by the model, and when drawn, after the filters."
    : "Write a token to see what else could have been drawn.";
  $("alternatives").replaceChildren(...(node?.alternatives ?? []).map((alternative) => {
    const { token, label, probability, drawn } = alternative, isDrawn = token === node.token;
    const button = make("button", { type: "button", className: "alternative" }, { "aria-pressed": isDrawn, "data-token": token });
    button.append(make("bdi", { textContent: label }), bars(probability, drawn), ...[percentOf(probability), drawn ? percentOf(drawn) : "filtered"]
      .map((textContent) => make("span", { className: "number", textContent })));
    button.addEventListener("click", () => replaceToken(alternative));
    const item = make("li");
    item.append(button);
    return item;
  }));
}

const leavesOf = (segments) => segments.flatMap(({ nodes, next }) => (next.length ? leavesOf(next) : [nodes.at(-1)]));

function branchList(segments, path) {
  const list = make("ul");
  list.append(...segments.map(({ nodes, next }) => {
    const item = make("li"), isCurrent = path.has(nodes.at(-1)) || nodes.includes(writing.tree.tip);
    const textContent = nodes.map(({ label }) => writtenText(label)).join("").replaceAll("\n", "");
    const button = make("button", { type: "button", className: "branch", textContent }, { "aria-current": isCurrent });
    button.addEventListener("click", () => returnTo(next.length ? leavesOf(next).at(-1) : nodes.at(-1)));
    item.append(button);
    if (next.length) item.append(branchList(next, path));
    return item;
  }));
  return list;
}

function drawBranches() {
  const segments = writing.tree.segments();
  $("branches").replaceChildren(branchList(segments, new Set(writing.tree.path())));
  $("tree").hidden = leavesOf(segments).length < 2;
}

function drawWrite() {
  writeTree();
  const isFull = !canWrite();
  $("write-step").disabled = $("write-many").disabled = writing.isBusy || isFull;
  $("write-stop").disabled = !writing.isBusy;
  $("write-keep").disabled = writing.isBusy || !writing.tree.tip.parent;
  $("write-changes").hidden = state.interventions === null;
  drawWritten();
}

function onWriteKey(event) {
  const arrow = ARROWS[event.key]?.[1], path = writing.tree.path(), at = path.indexOf(writing.node) + (arrow ?? 0);
  if (!arrow || !isPlainKey(event) || !path[at]) return;
  event.preventDefault();
  writing.node = path[at];
  drawWritten();
  $("written").children[at + 1].focus();
}

function startWrite() {
  $("write-step").addEventListener("click", () => writeTokens(1));
  $("write-many").addEventListener("click", () => writeTokens(Number($("write-count").value)));
  $("write-stop").addEventListener("click", () => { stopWriting(); drawWrite(); });
  $("write-keep").addEventListener("click", keepWritten);
  $("written").addEventListener("keydown", onWriteKey);
}

startWrite();
addTab("write", "Write", drawWrite);
