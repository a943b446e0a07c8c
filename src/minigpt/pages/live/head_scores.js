// What each head does on the text, in numbers: one statistic on the small maps, all of them in a sentence for the selected head.
const SCORE_WORDS = {                     // names of STATISTICS
  previous_token: ["previous token", "share of the weight on the token before"],
  first_token: ["first token", "share of the weight on the first token of the text"],
  current_token: ["token itself", "share of the weight on the token itself"],
  entropy: ["entropy", "0 when one token has all the weight, 1 when all have the same"],
  mean_distance: ["distance", "how many tokens back, weighted"],
};
let isOpening = true;                     // until a head has been chosen, by a link or for the first view

function headScore(name, layer, head) {
  const { n, weights } = patterns, begin = (layer * N_HEAD + head) * rowSize(n);
  return meanStatistic(name, n, (query) => weights.subarray(begin + rowSize(query), begin + rowSize(query + 1)));
}

const scoreText = (name, value) => (value === null ? "" : value.toFixed(name === "mean_distance" ? 1 : 2));
const scoresOf = (name) => thumbs.map((_, i) => headScore(name, Math.floor(i / N_HEAD), i % N_HEAD));

function selectBest(scores) {
  const best = scores.indexOf(Math.max(...scores));
  if (best >= 0) selectHead(Math.floor(best / N_HEAD), best % N_HEAD);
}

// Whether a question asks for what the maps' scores would tell; live.css hides them then.
const areScoresHidden = () => state.tab === "guess" && root.dataset.guessHides === "scores";

function drawScores() {
  const name = $("score").value, scores = scoresOf(name), isHidden = areScoresHidden();
  thumbs.forEach((thumb, i) => {
    const text = scoreText(name, scores[i]);
    thumb.querySelector(".score").textContent = text;
    thumb.setAttribute("aria-label", `head ${headName(Math.floor(i / N_HEAD), i % N_HEAD)}${isHidden ? "" : `, ${SCORE_WORDS[name][0]} ${text}`}`);
  });
  $("score").title = SCORE_WORDS[name][1];
}

function tellHead() {
  const { layer, head } = state, of = (name) => scoreText(name, headScore(name, layer, head));
  const weights = `${of("previous_token")} of its weight to the previous token, ${of("current_token")} to the token itself`;
  const words = [`On this text head ${headName(layer, head)} gives ${weights} and ${of("first_token")} to the first;`,
    `on average it looks ${of("mean_distance")} tokens back. Entropy ${of("entropy")}: ${SCORE_WORDS.entropy[1]}.`];
  $("head-words").textContent = patterns.n < 2 ? "" : words.join(" ");
}

function drawHeadScores(changed) {
  if (changed.has("layer")) isOpening = false;
  if (!patterns.n) return;
  if (changed.has("drawn") || changed.has("tab")) drawScores();
  if (["drawn", "layer", "head"].some((name) => changed.has(name))) tellHead();
  // The first view shows the head that most looks at the previous token, since head 0.0 is often noise.
  if (isOpening && changed.has("drawn")) {
    selectBest(scoresOf("previous_token"));
  }
}

function buildScores() {
  $("score").append(...Object.entries(SCORE_WORDS).map(([value, [textContent, title]]) => make("option", { value, textContent, title })));
  $("score").addEventListener("change", drawScores);
  $("best").addEventListener("click", () => selectBest(scoresOf($("score").value)));
  for (const thumb of thumbs) thumb.querySelector(".tag").append(make("span", { className: "score" }));
  onChange(drawHeadScores);
}

buildScores();
