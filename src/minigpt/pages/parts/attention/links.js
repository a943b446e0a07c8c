// Relations between tokens, and the likeliest next tokens.
const pairsOf = () => data.links[state.relation]?.[1] ?? [];        // [query, key] of the chosen relation

// Shows a relation at its first link in the text, on the map too.
function chooseRelation(relation) {
  state.relation = relation;
  const first = pairsOf().reduce((a, b) => (b[0] < a[0] ? b : a), pairsOf()[0]);
  if (!first) return set({ relation });
  const [query, key] = first;
  set({ token: state.direction === "from" ? query : key });
  point({ cell: first, link: true });
}

// Outlines the cells of the chosen relation: a dark line with a light one inside shows on every colour.
function drawLinks() {
  const canvas = $("links"), side = $("large").clientWidth, scale = devicePixelRatio, context = canvas.getContext("2d");
  canvas.width = canvas.height = Math.round(side * scale);
  const cell = side * scale / T, size = Math.max(cell, 7 * scale);  // never too small to be seen
  const begin = (i) => clamp((i + 0.5) * cell - size / 2, 1.5 * scale, canvas.width - size - 1.5 * scale);
  for (const [colour, width] of [["#000", 3], ["#fff", 1]]) {
    Object.assign(context, { strokeStyle: colour, lineWidth: width * scale });
    for (const [query, key] of pairsOf()) context.strokeRect(begin(key), begin(query), size, size);
  }
}

// Underlines the tokens linked to the selected one, and shows their weights.
function drawLinked() {
  const { layer, head, token, direction } = state;
  const pairs = pairsOf().filter(([query, key]) => (direction === "from" ? query : key) === token);
  const ends = new Set(pairs.map(([query, key]) => (direction === "from" ? key : query)));
  spans.forEach((span, i) => span.classList.toggle("target", ends.has(i)));
  $("linked").hidden = state.relation < 0;
  if (state.relation < 0) return;
  const told = pairs.flatMap(([query, key]) => {
    const end = direction === "from" ? key : query;
    const weight = key > query ? "comes later" : toldWeight(weightAt(layer, head, query, key));
    return [" ", label(quoted(end)), make("small", { textContent: ` #${end} ` }),
      make("b", { textContent: weight })];
  });
  $("linked").replaceChildren(make("bdi", { textContent: words(data.links[state.relation][0]) }),
    ...(told.length ? [":", ...told] : [": nothing is linked to this token"]));
}

// A run's likeliest tokens after the selected one: [text, probability], best first.
function expected(run) {
  const flat = run.next[frameOf(run)]?.[state.token] ?? [], pairs = [];
  for (let i = 0; i < flat.length; i += 2) pairs.push([data.texts[flat[i]], flat[i + 1]]);
  return pairs;
}

function drawNext() {
  const runs = isDifference() ? [A, B] : [state.view === "b" ? B : A];
  const lists = runs.map((run) => [run, expected(run)]).filter(([, pairs]) => pairs.length);
  $("next").hidden = lists.length === 0;
  $("why").hidden = !causesShown();
  $("next-title").replaceChildren("Expected after ", label(quotedSelected()));
  $("next-lists").replaceChildren(...lists.map(([run, pairs]) => {
    const column = make("div"), list = make("ol", { className: "list" });
    if (isDifference()) column.append(make("h3", { textContent: run === A ? "A" : "B" }));
    list.append(...pairs.map(([text, share]) => listItem(share, label(`\u201c${visible(text)}\u201d`),
      text === tokens[state.token + 1] && "comes next", short(share))));
    column.append(list);
    return column;
  }));
}
