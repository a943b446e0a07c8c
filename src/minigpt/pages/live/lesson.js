// The lesson: one forward pass in steps, with the real numbers of the selected token and head. Each step has a title, a formula,
// sentences, and figures; they are drawn from Session.lesson (lesson_numbers.js).
const LESSON_CONFIG = data.config;
const lesson = { step: 0, numbers: null };

const isPostNorm = LESSON_CONFIG.block === "post_norm", isUniform = LESSON_CONFIG.similarity === "uniform";
const isSymmetric = LESSON_CONFIG.similarity === "symmetric";
const whatIsRead = (i) => (isPostNorm ? `x_{${i}}` : `norm(x_{${i}})`);
const whatIsAdded = (update) => (isPostNorm ? `norm(${update})` : update);
const SCORE_FORMULAS = {
  scaled_dot: "s_{ij} = q_{i} \u00b7 k_{j} / \u221aD", symmetric: "s_{ij} = k_{i} \u00b7 k_{j} / \u221aD", hard: "s_{ij} = q_{i} \u00b7 k_{j} / \u221aD",
  hopfield: "s_{ij} = \u03b2 q_{i} \u00b7 k_{j}", cosine: "s_{ij} = cos(q_{i}, k_{j}) / \u03c4", gaussian: "s_{ij} = \u2212|q_{i} \u2212 k_{j}|^{2} / 2w^{2}",
  uniform: "s_{ij} = 0", linear: "s_{ij} = \u03c6(q_{i}) \u00b7 \u03c6(k_{j})",
};
const SOFTMAX_FORMULA = "a_{ij} = exp(s_{ij}) / \u03a3_{j} exp(s_{ij})";
const WEIGHT_FORMULAS = { linear: "a_{ij} = s_{ij} / \u03a3_{j} s_{ij}", hard: "a_{ij} = 1 for the key with the largest score, else 0" };
const WEIGHT_WORDS = {
  linear: "Linear attention has no softmax: its scores are positive, and each is divided by their sum over the keys.",
  hard: "Hard attention gives all weight to the key with the largest score.",
};
const MLP_FORMULAS = {
  swiglu: "MLP(x) = W_{down} (silu(W_{gate} x) * W_{up} x)", gelu: "MLP(x) = W_{down} gelu(W_{up} x)", gelu_exact: "MLP(x) = W_{down} gelu(W_{up} x)",
};

// A line of a table for each shown token that `keep` accepts.
const shownLines = ({ shown }, cells, keep = () => true) => shown.map((position, i) => ({ position, i })).filter(({ position }) => keep(position))
  .map(({ position, i }) => ({ position, cells: cells(position, i) }));

// The other token that the lesson compares with: the key with the most weight but the token itself; -1 for the first token.
function partnerOf({ weights: { data: weights }, position }) {
  let best = -1;
  for (let key = 0; key < position; key++) if (best < 0 || weights[key] > weights[best]) best = key;
  return best;
}

const isAllowed = ({ position, firstKey }, key) => key >= firstKey && key <= position;
const shareOf = (weight) => ({ text: short(weight), share: weight });

// ---- from the token to the query -----------------------------------------------------------------------------------

function tokenStep(numbers) {
  const { position, token, n } = numbers;
  return { formula: "text \u2192 token ids", parts: [
    sentence(`The tokenizer has cut your text into ${plural(n, "token")}. Token #${position} is `, quotedLabel(position),
      `, number ${token.toLocaleString("en")} of a vocabulary of ${LESSON_CONFIG.vocab_size.toLocaleString("en")}. The model reads only these numbers.`),
    lessonTable(["token", "id"], shownLines(numbers, (key) => [state.tokens[key].toLocaleString("en")]), position)] };
}

function embeddingStep({ token, embedding, streamBefore, start, layer }) {
  const added = { learned: "plus a learned vector of the position", sinusoidal: "plus sines and cosines of the position" }[LESSON_CONFIG.position];
  const parts = [sentence(`Row ${token.toLocaleString("en")} of the embedding matrix E: ${plural(embedding.data.length, "number")}, learned in training, that stand for `
      + `this token wherever it occurs${added ? `, ${added}` : ""}.`), vectorFigure("embedding", embedding.data)];
  if (added) parts.push(vectorFigure("with its position", start));
  if (layer > 0) {
    const earlier = layer === 1 ? "Layer 0 has" : `Layers 0 to ${layer - 1} have`;
    parts.push(sentence(`${earlier} added to these numbers. The sum is the residual stream, which layer ${layer} reads:`),
      vectorFigure(`stream before layer ${layer}`, streamBefore.data));
  }
  return { formula: added ? "x_{i} = E[id_{i}] + P[i]" : "x_{i} = E[id_{i}]", parts };
}

function queryStep(numbers) {
  const { attnInput, query, queryBefore, keys } = numbers, isRotary = LESSON_CONFIG.position === "rotary";
  if (isUniform) {
    return { formula: `v_{j} = W_{V} ${whatIsRead("j")}`, parts: [
      sentence("This model's attention has neither queries nor keys: every token takes the mean of all values that it may see.")] };
  }
  const two = isSymmetric ? "This model uses one matrix for both: what a token looks for is what it offers."
    : "W_{Q} and W_{K} are two different matrices: what a token looks for is not what it offers. So who attends to whom has a direction.";
  const parts = [sentence(isSymmetric ? "" : "A query is what a token looks for, a key is what a token offers. ", ...mathNodes(two)),
    vectorFigure(isPostNorm ? "what the head reads: the stream" : "what the head reads: the stream, normalised", attnInput.data)];
  if (isRotary) parts.push(vectorFigure("query before its rotation", queryBefore.data));
  parts.push(vectorFigure(isRotary ? "query, rotated" : "query", query.data), tokensFigure(isRotary ? "keys, rotated" : "keys", keys, numbers));
  if (isRotary) {
    parts.push(sentence("Rotary positions (RoPE) turn pairs of these numbers by angles that grow with the position, so the score of a pair can depend on "
      + "its distance."));
  }
  if (LESSON_CONFIG.qk_norm) parts.push(sentence("Queries and keys are normalised first (QK-norm), so no score can grow only because the vectors are long."));
  return { formula: isSymmetric ? [`k_{j} = W_{K} ${whatIsRead("j")}`, "q_{i} = k_{i}"]
    : [`q_{i} = W_{Q} ${whatIsRead("i")}`, `k_{j} = W_{K} ${whatIsRead("j")}`], parts };
}

// ---- from scores to weights ----------------------------------------------------------------------------------------

function scoreExample({ position, shown, products, scale, scoresBeforeMask, pairs }, partner) {
  const i = shown.indexOf(partner), there = scoresBeforeMask.data[partner], back = pairs[i][shown.indexOf(position)], parts = [];
  if (scale !== null) {
    parts.push(sentence("The query of ", tokenNodes(position), " times the key of ", tokenNodes(partner),
      `: q \u00b7 k = ${numberText(products.data[partner])}. Times ${scale.toFixed(3)} it is ${numberText(products.data[partner] * scale)}.`));
  }
  const why = isSymmetric ? "Both are equal, because queries are keys here." : "The two differ, because query and key are different projections.";
  parts.push(sentence("Row ", tokenNodes(position), ", column ", tokenNodes(partner), `: ${numberText(there)}. `, "The other way round, row ", tokenNodes(partner), ", column ",
    tokenNodes(position), `: ${numberText(back)}. ${why}`));
  return parts;
}

function pairFigure({ position, shown, pairs }, partner) {
  const at = (key) => shown.indexOf(key), label = (key) => `\u201c${state.labels[key]}\u201d #${key}`;
  return heatFigure("scores of all pairs: rows are queries, columns are keys", pairs, { names: shown.map((key) => state.labels[key]), marked: at(position),
    cellName: (row, column) => `query ${label(shown[row])}, key ${label(shown[column])}`, height: 20, power: 1, isPrinted: true,
    marks: partner < 0 ? [] : [[at(position), at(partner)], [at(partner), at(position)]] });
}

// What else becomes of a score, by the model's settings.
function scoreNotes({ similarity, softmax_temperature, logit_softcap, position }) {
  const notes = [];
  if (SCORE_FORMULAS[similarity].includes("\u221aD")) notes.push(" Divided by \u221aD, the scores of wide heads are as small as those of narrow ones.");
  if (softmax_temperature !== 1) notes.push(` It is also divided by the temperature ${softmax_temperature}.`);
  if (logit_softcap) notes.push(` A tanh keeps it between \u2212${logit_softcap} and ${logit_softcap}.`);
  if (position === "alibi") notes.push(" ALiBi adds a bias that favours near keys.");
  return notes;
}

function scoreStep(numbers) {
  const { position, products, scale, scoresBeforeMask: { data: scores } } = numbers, partner = partnerOf(numbers), isProduct = scale !== null;
  const formula = SCORE_FORMULAS[LESSON_CONFIG.similarity];
  if (isUniform) return { formula, parts: [sentence("Without queries and keys, every score is 0.")] };
  const lines = shownLines(numbers, (key) => [...(isProduct ? [numberText(products.data[key])] : []), numberText(scores[key])]);
  return { formula, parts: [sentence("The score says how well a key fits a query.", ...scoreNotes(LESSON_CONFIG)),
    lessonTable(["key j", ...(isProduct ? ["q_{i} \u00b7 k_{j}"] : []), "score s_{ij}"], lines, position), pairFigure(numbers, partner),
    ...(partner < 0 ? [sentence("Select a later token to compare a pair in both directions.")] : scoreExample(numbers, partner))] };
}

function maskStep(numbers) {
  const { position, n, firstKey, scoresBeforeMask: { data: scores }, unmasked } = numbers, limit = LESSON_CONFIG.windows[numbers.layer];
  let lost = 0;
  for (let key = 0; key < n; key++) if (!isAllowed(numbers, key)) lost += unmasked[key];
  const later = n - 1 - position, rule = firstKey > 0 ? (limit ? `, at most ${limit - 1} back` : ", in the same document") : "";
  const isShown = shownLines(numbers, (key) => (isAllowed(numbers, key) ? [numberText(scores[key]), numberText(scores[key]), short(unmasked[key])]
    : [numberText(scores[key]), { text: numberText(-Infinity), isOut: true }, { text: short(unmasked[key]), isOut: true }]));
  return { formula: ["s_{ij} = \u2212\u221e", `for j > i${limit ? ` or j \u2264 i \u2212 ${limit}` : ""}`], parts: [
    sentence("Token ", tokenNodes(position), ` may attend to itself and to earlier tokens${rule}. `
      + "The mask sets all other scores to \u2212\u221e, so that their weight becomes 0. The model learns to predict the next token, so it must not see it."),
    sentence(later || firstKey > 0 ? `Without the mask, the tokens that it removes would have got ${percentOf(lost)} of the weight.`
      : "This is the last token: nothing comes after it. Click an earlier one in the text to see what the mask removes."),
    lessonTable(["key j", "score", "after the mask", "weight without mask"], isShown, position)] };
}

function softmaxStep(numbers) {
  const { position, scores: { data: scores }, weights: { data: weights }, shown } = numbers;
  const isSoft = !(LESSON_CONFIG.similarity in WEIGHT_FORMULAS), allowed = (key) => isAllowed(numbers, key);
  let most = -Infinity, others = 1;
  for (let key = 0; key <= position; key++) if (allowed(key)) most = Math.max(most, scores[key]);
  for (const key of shown) if (key <= position) others -= weights[key];
  const lines = shownLines(numbers, (key) => [numberText(scores[key]), ...(isSoft ? [short(Math.exp(scores[key] - most))] : []), shareOf(weights[key])], allowed);
  const left = position + 1 - numbers.firstKey - lines.length;
  if (left > 0) lines.push({ text: plural(left, "other key"), cells: ["", ...(isSoft ? [""] : []), shareOf(Math.max(0, others))] });
  return { formula: WEIGHT_FORMULAS[LESSON_CONFIG.similarity] ?? SOFTMAX_FORMULA, parts: [
    sentence(WEIGHT_WORDS[LESSON_CONFIG.similarity] ?? "The softmax runs over the keys.", " The weights of one query add up to 1, "
      + "so attention to one key is taken from the others. A row of a head's map is such a row of weights."),
    lessonTable(["key j", "score", ...(isSoft ? ["exp(s \u2212 largest)"] : []), "weight a_{ij}"], lines, position)] };
}

// ---- from values to logits -----------------------------------------------------------------------------------------

function valueStep(numbers) {
  const { position, weights: { data: weights }, values, weightedSum } = numbers, best = weights.indexOf(Math.max(...weights));
  return { formula: [`v_{j} = W_{V} ${whatIsRead("j")}`, "z_{i} = \u03a3_{j} a_{ij} v_{j}"], parts: [
    sentence("A value is what a token passes on to those that attend to it. The head's output is the sum of the values, each times its weight. ", "Here ", tokenNodes(best),
      ` has the largest weight, ${short(weights[best])}.`),
    lessonTable(["key j", "weight a_{ij}"], shownLines(numbers, (key) => [shareOf(weights[key])], (key) => isAllowed(numbers, key)), position),
    tokensFigure("values", values, numbers), vectorFigure("weighted sum of the values", weightedSum.data)] };
}

function headsStep({ layer, head, z: { shape: [H, D], data: z }, written, attnOut, streamAfterAttn }) {
  const rows = Array.from({ length: H }, (_, h) => z.slice(h * D, (h + 1) * D)), names = rows.map((_, h) => headName(layer, h)), most = Math.max(...written, 1e-9);
  return { formula: `x_{i} \u2190 x_{i} + ${whatIsAdded("W_{O} [z^{0}; z^{1}; \u2026]")}`, parts: [
    sentence(`Each head of layer ${layer} has done the same with matrices of its own. Their sums are put side by side, and the output matrix turns them into one `
      + "update of the residual stream."),
    heatFigure(`the heads' sums, ${H} of ${D} numbers`, rows, { names, marked: head, cellName: (row, column) => `head ${names[row]}, number ${column}` }),
    lessonTable(["head", `length of what it adds${isPostNorm ? ", before the norm" : ""}`],
      written.map((length, h) => ({ text: names[h], cells: [{ text: numberText(length), share: length / most }] }))),
    vectorFigure("update by attention", attnOut.data), vectorFigure("stream after attention", streamAfterAttn.data)] };
}

function mlpStep({ layer, mlpHidden: { data: hidden }, mlpOut, streamAfter }) {
  const others = { parallel: "the stream before attention, normalised", post_norm: "the stream after attention" };
  const reads = others[LESSON_CONFIG.block] ?? "the stream after attention, normalised";
  return { formula: [`x_{i} \u2190 x_{i} + ${whatIsAdded(`MLP(${whatIsRead("i")})`)}`, MLP_FORMULAS[LESSON_CONFIG.mlp]], parts: [
    sentence(`The MLP reads ${reads}. It widens it to ${plural(hidden.length, "number")}, applies a nonlinear function, `
      + "and adds the result to the stream. No token sees another one here."),
    vectorFigure("hidden numbers", hidden), vectorFigure("update by the MLP", mlpOut.data), vectorFigure(`stream after layer ${layer}`, streamAfter.data)] };
}

function logitStep({ layer, position, finalNormed, top }) {
  const left = LESSON_CONFIG.n_layer - 1 - layer;
  const way = left ? `${plural(left, "more layer")} ${left === 1 ? "does" : "do"} the same. Then the` : "This was the last layer. The";
  const lines = top.map(({ label, logit, probability }) => ({ text: make("bdi", { textContent: label }),
    cells: [numberText(logit), { text: percentOf(probability), share: probability }] }));
  return { formula: ["logits = W_{head} norm(x_{i})", "p = softmax(logits)"], parts: [
    sentence(`${way} output head gives each token of the vocabulary a number, its logit, and a softmax over the vocabulary `
      + "makes probabilities of them: what the model expects after ", tokenNodes(position), "."),
    vectorFigure("stream after the final norm", finalNormed.data), lessonTable(["next token", "logit", "probability"], lines)] };
}

const LESSON_STEPS = [["Token", tokenStep], ["Embedding", embeddingStep], ["Query and keys", queryStep], ["Scores", scoreStep], ["Mask", maskStep],
  ["Softmax", softmaxStep], ["Weighted values", valueStep], ["Heads together", headsStep], ["MLP", mlpStep], ["Logits", logitStep]];

// ---- the panel -------------------------------------------------------------------------------------------------------

function buildLesson(panel) {
  const nav = make("div", { className: "lesson-nav" }, { role: "group", "aria-label": "steps of the forward pass; arrows go back and on" });
  const step = (id, textContent, by) => {
    const button = make("button", { type: "button", id, textContent });
    button.addEventListener("click", () => goToStep(state.lessonStep + by));
    return button;
  };
  const dots = make("span", { id: "lesson-dots" });
  dots.append(...LESSON_STEPS.map(([title], i) => {
    const dot = make("button", { type: "button", textContent: title, title }, { "aria-label": `step ${i + 1}: ${title}` });
    dot.addEventListener("click", () => goToStep(i));
    return dot;
  }));
  nav.append(step("lesson-back", "\u2190 Back", -1), step("lesson-on", "Next \u2192", 1), dots);
  panel.append(nav, make("h2", { id: "lesson-title" }, { "aria-live": "polite" }), make("p", { id: "lesson-where" }), make("div", { id: "lesson-body" }));
  panel.addEventListener("keydown", (event) => {
    const arrow = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!arrow || !isPlainKey(event)) return;
    event.preventDefault();
    goToStep(state.lessonStep + arrow);
  });
}

const goToStep = (step) => change({ lessonStep: clamp(step, 0, LESSON_STEPS.length - 1) });

function drawStep() {
  const { numbers } = lesson, [title, stepOf] = LESSON_STEPS[state.lessonStep], { formula, parts } = stepOf(numbers);
  $("lesson-title").textContent = `${state.lessonStep + 1} of ${LESSON_STEPS.length}: ${title}`;
  $("lesson-where").replaceChildren(`Token i is `, ...tokenNodes(numbers.position), `; head ${headName(numbers.layer, numbers.head)}`,
    state.interventions ? ", with your changes" : "", ". Select others in the text and in the maps.");
  $("lesson-body").replaceChildren(formulaLine([formula].flat()), ...parts);
  [...$("lesson-dots").children].forEach((dot, i) => dot.setAttribute("aria-current", i === state.lessonStep ? "step" : "false"));
  $("lesson-back").disabled = state.lessonStep === 0;
  $("lesson-on").disabled = state.lessonStep === LESSON_STEPS.length - 1;
  Object.assign(root.dataset, { lessonStep: state.lessonStep, lessonOf: `${numbers.layer}.${numbers.head} ${numbers.position} ${numbers.n}` });
}

function drawLesson(changed) {
  const isNew = ["numbers", "selected", "layer", "head"].some((name) => changed.has(name));
  if (!state.n) return;
  if (isNew || !lesson.numbers) {
    ask("lesson", "lesson", { layer: state.layer, head: state.head, position: state.selected, run: shownRun() }, (numbers) => {
      lesson.numbers = numbers;
      drawStep();
    });
  } else if (changed.has("lessonStep")) drawStep();
}

state.lessonStep = 0;
shared("step", { read: (text) => ({ lessonStep: whole(text, LESSON_STEPS.length) }), write: () => (state.lessonStep ? `${state.lessonStep}` : null) });
buildLesson(addTab("lesson", "Step by step", drawLesson));
