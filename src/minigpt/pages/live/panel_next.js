// The tab of the next token: what the model expects after the selected position. A click on a token puts it into the text.
const NEXT_COUNT = 10;                    // tokens listed

const shownRun = () => (state.interventions ? "changed" : "base");

function nextItem({ label, token, probability }, actual) {
  const button = make("button", { type: "button", className: "put", title: "put this token here" });
  button.append(make("bdi", { textContent: label }));
  button.addEventListener("click", () => putToken(token));
  return listItem(probability, button, token === actual ? "in the text" : "", percentOf(probability),
    { "data-token": token, ...(token === actual ? { "aria-current": "true" } : {}) });
}

function drawNext(changed) {
  if (!["numbers", "selected", "interventions"].some((name) => changed.has(name))) return;
  const { selected, n, tokens, labels } = state;
  if (!n) return $("next").replaceChildren();
  const actual = selected + 1 < n ? tokens[selected + 1] : null, bits = surpriseShown()[selected + 1];
  ask("next", "next", { position: selected, run: shownRun(), count: NEXT_COUNT }, (candidates) => {
    const isListed = candidates.some(({ token }) => token === actual);
    const rest = actual === null || isListed ? [] : [{ token: actual, label: labels[selected + 1], probability: 2 ** -bits }];
    $("next-title").replaceChildren("After ", quotedLabel(selected), " the model expects", state.interventions ? ", with your changes" : "");
    $("next").replaceChildren(...[...candidates, ...rest].map((each) => nextItem(each, actual)));
    $("next-note").textContent = actual === null ? "Click a token to go on with it."
      : "Click a token to put it in the place of the text\u2019s next one.";
    root.dataset.next = candidates[0]?.token ?? "";
  });
}

addTab("next", "Next token", (changed) => { drawNext(changed); drawWhy(changed); });
