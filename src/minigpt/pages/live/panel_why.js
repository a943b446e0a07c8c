// Why the model expects its token, under the list of next tokens: its probability without each part. A click switches a part off.
const WHY_COUNT = 6;                      // parts listed

const isMeasuredHere = () => measured.tokens === state.tokens && measured.position === state.selected && Object.keys(measured.effects).length > 0;

// Heads, MLPs and layers; first those without which another token is expected, then by the change of the probability.
const strongestParts = (whole) => partButtons.filter(({ part }) => part !== "attentions")
  .map(({ part, key, name }) => ({ part, key, effect: measured.effects[name] }))
  .sort((a, b) => b.effect.isOther - a.effect.isOther || Math.abs(b.effect.probability - whole) - Math.abs(a.effect.probability - whole))
  .slice(0, WHY_COUNT);

function whyItem({ part, key, effect: { isOther, label, probability } }) {
  const isOff = isPartOff(part, key), name = `${part} ${key}`;
  const button = make("button", { type: "button", className: "put", textContent: `without ${partName(part, key)}` },
    { "aria-pressed": isOff, title: `switch it ${isOff ? "on" : "off"}` });
  button.addEventListener("click", () => {
    togglePart(part, key);
    $("why-parts").querySelector(`[data-why="${name}"] button`)?.focus();
  });
  const item = listItem(probability, button, isOther ? " " : "", percentOf(probability), { "data-why": name, "data-expects": isOther ? label : "" });
  if (isOther) item.querySelector("small").replaceChildren("expects ", make("bdi", { textContent: `\u201c${label}\u201d` }), " ");
  return item;
}

function drawWhy(changed) {
  if (!["numbers", "selected", "interventions", "measures"].some((name) => changed.has(name))) return;
  $("why").hidden = !state.n;
  ask("why", "next", { position: state.selected, run: "base", count: 1 }, ([expected]) => {
    if (expected) drawReasons(expected);
  });
}

function drawReasons({ label, probability }) {
  const isKnown = isMeasuredHere(), token = () => make("bdi", { textContent: `\u201c${label}\u201d` });
  $("why-title").replaceChildren("Why ", token(), "?");
  $("why-words").replaceChildren(...(isKnown
    ? ["The whole model gives ", token(), ` ${percentOf(probability)}. Without one part it gives the number on the right. Click a part to switch it off.`]
    : ["See what becomes of ", token(), " when one head, MLP or layer is taken away."]));
  $("why-measure").hidden = isKnown;
  $("why-parts").replaceChildren(...(isKnown ? strongestParts(probability).map(whyItem) : []));
}
