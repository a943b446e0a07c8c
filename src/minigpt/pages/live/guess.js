// Guess first: the questions of questions.py, one at a time. A head is guessed by selecting it in the maps, a token by selecting
// it in the text; the engine computes the answer (questions_check.js).
const GUESS_LISTED = 5;                   // best answers shown with their numbers
const guess = { index: 0, results: data.questions.map(() => null), picked: data.questions.map(() => null) };

// Of each score: what its number is, and what such a head is good for.
const SCORE_ANSWERS = {
  previous_token: ["Mean weight on the previous token", "Later layers can build on it: an induction head needs one to find what followed a token before."],
  first_token: ["Mean weight on the first token", "Heads that find nothing to attend to often put their weight there: an attention sink."],
  current_token: ["Mean weight on the token itself", "Such a head works on each token alone, as an MLP does."],
  mean_distance: ["Mean distance from query to key, in tokens", "It collects from the whole text more than from neighbours."],
  entropy: ["Evenness of the weights: 1 is the same for all keys, 0 all on one", "Its output is close to the mean of all values that it may see."],
};
const GUESS_WORDS = {
  score: ({ score }) => SCORE_ANSWERS[score],
  ablation: () => ["Loss of the text without it minus the loss with it, in nats per token",
    "A small change does not prove that a part is unused: others may take its place."],
  loss: ({ part }) => [`Loss of each token without head ${part} minus the loss with it, in nats`, "A head can be for a few places only, and its mean effect small."],
  key: ({ part }) => [`Weight of each key in head ${part}`, "In the head's map, the row of the query has its brightest cell in this column."],
  next: () => ["Probability of the next token", "It is what the model learned from its own text, and need not be how this text goes on."],
};

const question = () => data.questions[guess.index];
const headOfName = (name) => ({ layer: Number(name.split(".")[0]), head: Number(name.split(".")[1]) });
const isFirstText = () => state.text === data.text;

// A head or token that is selected is the guess, but not what was selected before the question, nor the end of a new text.
function followSelection(changed) {
  const { pick } = question(), has = (...names) => names.some((name) => changed.has(name));
  if (has("tab", "numbers") || guess.results[guess.index]) return;
  if (pick === "head" && has("layer", "head")) guess.picked[guess.index] = headName(state.layer, state.head);
  if (pick === "token" && has("selected")) guess.picked[guess.index] = `${state.selected}`;
}

// A name of an answer in words.
function answerNodes({ pick, choices }, name) {
  if (pick === "head") return [`head ${name}`];
  if (pick === "token") return tokenNodes(Number(name));
  return [make("bdi", { textContent: choices.find((choice) => choice.name === name).label })];
}

// ---- asking --------------------------------------------------------------------------------------------------------

function choiceButtons({ choices }) {
  return choices.map(({ name, label }) => {
    const text = make("label"), radio = make("input", { type: "radio", name: "guess-choice", value: name, checked: guess.picked[guess.index] === name });
    radio.addEventListener("change", () => { guess.picked[guess.index] = name; drawGuess(); });
    text.append(radio, make("bdi", { textContent: label }));
    return text;
  });
}

// Built once for each question, so that a radio button keeps the focus while one chooses.
function askQuestion() {
  const { ask: text, pick } = question(), isChoice = pick === "choice";
  $("guess-ask").textContent = text;
  $("guess-choices").hidden = !isChoice;
  $("guess-choices").replaceChildren(...(isChoice ? choiceButtons(question()) : []));
  drawGuess();
}

function drawGuess() {
  const { results, index } = guess, { pick } = question(), result = results[index], picked = guess.picked[index];
  const answered = results.filter(Boolean), right = answered.filter(({ isRight }) => isRight).length;
  $("guess-count").textContent = `Question ${index + 1} of ${results.length}${answered.length ? `; ${right} of ${answered.length} right` : ""}`;
  const how = { head: "Select a head in the maps", token: "Select a token in the text", choice: "Choose one" }[pick];
  $("guess-pick").replaceChildren(`${how}. Your guess: `, ...(picked === null ? ["none yet"] : answerNodes(question(), picked)));
  $("guess-pick").hidden = result !== null;
  for (const radio of $("guess-choices").querySelectorAll("input")) radio.disabled = result !== null;
  $("guess-check").disabled = picked === null || !isFirstText();
  $("guess-check").hidden = result !== null;
  $("guess-other").hidden = isFirstText();
  $("guess-back").disabled = index === 0;
  $("guess-next").disabled = index === results.length - 1;
  const hides = !result && question().kind === "score" ? "scores" : "";                  // the maps' numbers would tell
  if (root.dataset.guessHides !== hides) {
    root.dataset.guessHides = hides;
    if (patterns.n) drawScores();
  }
  drawResult(result);
  const verdict = result ? (result.isRight ? "right" : "wrong") : "";
  Object.assign(root.dataset, { guess: index, guessPicked: picked ?? "", guessResult: verdict, guessBest: result?.best ?? "" });
}

// ---- the answer ----------------------------------------------------------------------------------------------------

async function checkGuess() {
  const { index } = guess, asks = question(), picked = guess.picked[index];
  $("guess-check").disabled = true;
  $("guess-verdict").textContent = "computing \u2026";
  try {
    await ask("guess", "check", asks, (values) => {
      const best = values[0][0], rank = values.findIndex(([name]) => name === picked);
      guess.results[index] = { values, best, picked, rank, isRight: rank === 0 };
      if (asks.kind === "key") change({ ...headOfName(asks.part), selected: asks.position, cell: { query: asks.position, key: Number(best) } });
    });
  } catch (error) {
    $("problem").textContent = error.message;
  }
  drawGuess();
}

// A probability, a weight or score, or a change with its sign.
function valueText({ kind, score }, value) {
  if (kind === "next") return percentOf(value);
  if (kind === "ablation" || kind === "loss") return `${value > 0 ? "+" : ""}${numberText(value, 3)}`;
  return score === "mean_distance" ? numberText(value, 1) : short(value);
}

function answerItem(asks, [name, value], { values, picked }) {
  const most = values[0][1], words = make("span");
  if (asks.pick === "choice") words.append(...answerNodes(asks, name));
  else {
    const button = make("button", { type: "button", className: "put", title: "show it" });
    button.append(...answerNodes(asks, name));
    button.addEventListener("click", () => change(asks.pick === "head" ? headOfName(name) : { selected: Number(name) }));
    words.append(button);
  }
  return listItem(clamp(value / most, 0, 1), words, name === picked ? "your guess" : "", valueText(asks, value), { "data-name": name });
}

function drawResult(result) {
  $("guess-answer").hidden = result === null;
  if (result === null) return $("guess-verdict").replaceChildren();
  const asks = question(), { values, best, picked, rank, isRight } = result, [what, why] = GUESS_WORDS[asks.kind](asks);
  const place = rank < 0 ? ", comes later, so it cannot be attended to." : `, is number ${rank + 1} of ${values.length}.`;
  $("guess-verdict").replaceChildren(...(isRight ? ["Right: ", ...answerNodes(asks, best), "."]
    : ["It is ", ...answerNodes(asks, best), ". Your guess, ", ...answerNodes(asks, picked), place]));
  const listed = values.slice(0, GUESS_LISTED);
  if (rank >= GUESS_LISTED) listed.push(values[rank]);
  $("guess-what").textContent = `${what}${state.interventions ? ", without your changes" : ""}:`;
  $("guess-list").replaceChildren(...listed.map((each) => answerItem(asks, each, result)));
  $("guess-why").textContent = why;
}

// ---- the panel -----------------------------------------------------------------------------------------------------

const guessButton = (id, textContent, act) => {
  const button = make("button", { type: "button", id, textContent });
  button.addEventListener("click", act);
  return button;
};

function goToQuestion(index) {
  guess.index = clamp(index, 0, data.questions.length - 1);
  askQuestion();
}

function buildGuess(panel) {
  const answer = make("div", { id: "guess-answer" }), other = make("p", { id: "guess-other" }), nav = make("div", { className: "lesson-nav" });
  other.append("The questions are about the text that the page opened with. ", guessButton("guess-restore", "Go back to it", () => change({ text: data.text })));
  answer.append(make("h3", { id: "guess-what" }), make("ol", { id: "guess-list", className: "list" }), make("p", { id: "guess-why" }));
  nav.append(guessButton("guess-back", "\u2190 Previous question", () => goToQuestion(guess.index - 1)),
    guessButton("guess-next", "Next question \u2192", () => goToQuestion(guess.index + 1)));
  const choices = make("div", { id: "guess-choices" }, { role: "radiogroup", "aria-label": "answers" });
  panel.append(make("p", { id: "guess-count" }), make("h2", { id: "guess-ask" }), choices, other);
  panel.append(make("p", { id: "guess-pick" }, { "aria-live": "polite" }), guessButton("guess-check", "Check", checkGuess), make("p", { id: "guess-verdict" }, { role: "status" }), answer, nav);
}

// A model without a clear answer to any question has no such tab.
if (data.questions.length) {
  buildGuess(addTab("guess", "Guess first", (changed) => {
    if (changed.has("tab") && !$("guess-ask").textContent) askQuestion();
    else {
      followSelection(changed);
      drawGuess();
    }
  }));
}
