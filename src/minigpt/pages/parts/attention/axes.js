// The texts of the tokens along the axes of the large map, as many as fit.
const LABEL_PIXELS = 12;                  // height of a label

// Tokens whose labels fit beside a side of so many pixels: those of `always`, and others at equal distances.
function fitting(side, count, always) {
  const cell = side / count, every = Math.max(1, Math.ceil(LABEL_PIXELS / cell));
  const isFree = (i) => always.every((other) => i === other || Math.abs(i - other) * cell >= LABEL_PIXELS);
  return [...new Set([...always, ...Array.from({ length: Math.ceil(count / every) }, (_, i) => i * every).filter(isFree)])];
}

// Marks the query and the key that the readout tells.
function drawAxes(query, key) {
  const side = $("large").clientWidth;
  for (const [id, texts, own, edge] of [["row-labels", tokens, query, "top"], ["column-labels", keyTokens, key, "left"]]) {
    $(id).replaceChildren(...fitting(side, texts.length, [own]).map((i) => {
      const text = make("bdi", { className: i === own ? "own" : "", textContent: visible(texts[i]) });
      text.style[edge] = `${100 * (i + 0.5) / texts.length}%`;
      return text;
    }));
  }
}
