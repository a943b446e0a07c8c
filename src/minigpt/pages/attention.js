// The attention page: what is drawn when, and its controls. Its other scripts are in parts/attention, see documents.py.
function describe() {
  const { layer, head, token, direction, scale, hide, frame, order, values, view, relation } = state;
  Object.assign(root.dataset, { layer, head, token, direction, scale, hide, frame, step: steps[frame],
    score: names[state.score] ?? "", order, minimum: least() ?? "", values, view,
    otherStep: B ? B.steps[frameOf(B)] : "", relation: data.links[relation]?.[0] ?? "",
    panel: state.panel, picture: state.picture, signed: isSigned(), overlaid: overlaid().map(shortName).join(" ") });
}

function drawLarge() {
  const { layer, head } = state, heads = overlaid(), side = $("large").clientWidth;
  if (heads.length) paintOverlay($("large"), heads, side); else paint($("large"), layer, head, side);
  const what = heads.length ? `heads ${heads.map(shortName).join(", ")}` : nameOf(selected());
  $("large").setAttribute("aria-label", `attention weights of ${what}, step ${steps[state.frame]}${
    { a: "", b: ", run B", diff: ", run A minus run B" }[state.view]}`);
}

function drawHead() {
  drawOverlay();
  drawLines();
  drawLarge();
  const order = inOrder(), stop = order.includes(selected()) ? selected() : order[0], heads = overlaid();
  thumbs.forEach((thumb, i) => {
    thumb.setAttribute("aria-pressed", i === selected() || heads.includes(i));
    thumb.classList.toggle("selected", i === selected());
    thumb.tabIndex = i === stop ? 0 : -1;             // Tab passes the grid in one stop, arrows move inside it
  });
  drawText();
  drawRanking();
  drawReadout();
  drawScores();
  drawLinks();
  drawLinked();
  drawNext();
  drawCauses();
  describe();
}

function drawAll() {
  look();
  tellStep(state.frame, steps[state.frame]);
  $("other-step").textContent = B ? [[A, "A"], [B, "B"]].map(([run, name]) => [name, run.steps[frameOf(run)]])
    .filter(([name, step]) => step && (name === "B" || steps.length === 1))    // A's step is at the slider; 0: unknown
    .map(([name, step]) => `${name}: step ${step}`).join(", ") : "";
  drawGrid();
  drawBar();
  drawSummary();
  drawHead();
}

function set(changes) {
  Object.assign(state, changes);
  if (under?.link && "token" in changes) under = null;
  const ofOneHead = ["layer", "head", "token", "direction", "relation", "panel", "picture", "several", "heads"];
  if (Object.keys(changes).every((name) => ofOneHead.includes(name))) drawHead(); else drawAll();
}

// Selects a head; among overlaid ones it takes the place of the one that was selected.
function choose(i) {
  const others = state.heads.filter((head) => head !== i && head !== selected());
  set({ ...placed(i), heads: state.several ? [...others, i] : [] });
}

// Arrows move over layers and heads, or over the ranking, which is H wide too.
function move([rows, columns]) {
  const { layer, head } = state;
  if (!isRanked()) return choose(clamp(layer + rows, 0, L - 1) * H + clamp(head + columns, 0, H - 1));
  const order = inOrder(), place = order.indexOf(selected()), next = place < 0 ? 0 : place + rows * H + columns;
  if (next in order) choose(order[next]);
}

const toFrame = (frame) => set({ frame: clamp(frame, 0, steps.length - 1) });

function onKey(event) {
  // On many keyboards [ and ] are typed with AltGr, which browsers report as Ctrl and Alt together.
  if (event.metaKey || (event.ctrlKey && !event.altKey)) return;
  const arrow = ARROWS[event.key];
  if (arrow) {
    if (event.altKey || event.shiftKey || event.target.closest("input, select")) return;    // those use the arrows
    move(arrow);
    if (document.activeElement.classList.contains("thumb")) thumbs[selected()].focus();
  } else if (event.key === "," || event.key === ".") toFrame(state.frame + (event.key === "." ? 1 : -1));
  else if (event.key === "[" || event.key === "]") {
    set({ token: clamp(state.token + (event.key === "]" ? 1 : -1), 0, selectedSpans().length - 1) });
    if (selectedSpans().includes(document.activeElement)) selectedSpans()[state.token].focus();
  } else return;
  event.preventDefault();
}

// Where the pointer is on the large map: [query, key].
function cellUnder(event) {
  const box = $("large").getBoundingClientRect();
  return [[(event.clientY - box.top) / box.height, T], [(event.clientX - box.left) / box.width, S]]
    .map(([x, count]) => clamp(Math.floor(x * count), 0, count - 1));
}

function point(at) {
  under = at;
  drawReadout();
}

// Room beside and under the large map for the longest token; the style sheet has the most.
function makeRoomForLabels() {
  const widths = [...tokens, ...keyTokens].map((text) => [...visible(text)].reduce((sum, c) => sum + (c < "\u2e80" ? 6.1 : 10.2), 8));
  document.querySelector(".frame").style.setProperty("--longest", `${Math.ceil(widths.reduce((a, b) => Math.max(a, b)))}px`);
}

function build() {
  const grid = $("grid"), corner = make("div", { className: "heading corner" });
  grid.style.gridTemplateColumns = `auto repeat(${H}, minmax(0, max(30px, min(200px, (var(--screen, 100vh) - 140px) / ${L}))))`;   // deep models: smaller, not longer
  corner.append("head \u2192", make("br"), "layer \u2193");
  grid.append(corner);
  const heading = (word, i) => {
    const element = make("div", { className: "heading" });
    element.append(make("span", { className: "word", textContent: `${word} ` }), `${i}`);
    return element;
  };
  for (let h = 0; h < H; h++) grid.append(heading("head", h));
  for (let l = 0; l < L; l++) {
    grid.append(heading("layer", l));
    for (let h = 0; h < H; h++) {
      const thumb = make("button", { type: "button", className: "thumb" }), tag = make("span", { className: "tag" });
      tag.append(make("span", { className: "name", textContent: `${l}.${h}` }), make("span", { className: "value" }),
        make("bdi", { className: "kind" }));
      thumb.append(make("canvas"), tag);
      thumb.addEventListener("click", (event) => pick(l * H + h, event.shiftKey || event.ctrlKey || event.metaKey));
      thumbs.push(thumb);
      grid.append(thumb);
    }
  }
  names.forEach((name, score) => $("score").append(make("option", { value: score, textContent: scoreWords(name) })));
  data.links.forEach(([name], i) => $("relation").append(make("option", { value: i, textContent: words(name) })));
  $("relation-label").hidden = data.links.length === 0;
  $("ranking").hidden = names.length === 0;
  makeRoomForLabels();
  buildText();
  buildTable();
  buildLines();
  buildEvents();
}

function listen() {
  const tokenOf = (event) => (event.target.dataset.token === undefined ? null : Number(event.target.dataset.token));
  const select = (event) => {
    if (tokenOf(event) === null) return;
    under = null;                                        // the pointer is on the selected token: show its strongest pair
    set({ token: tokenOf(event), direction: directionOf(event.target) });
  };
  $("tokens").addEventListener("click", select);
  listenToLines();
  $("tokens").addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(event); }
  });
  $("tokens").addEventListener("pointerover", (event) => {
    const token = tokenOf(event);
    point(token === null || !otherSpans().includes(event.target) ? null : { token });
  });
  $("large").addEventListener("pointermove", (event) => point({ cell: cellUnder(event) }));
  $("large").addEventListener("click", (event) => {
    const [query, key] = cellUnder(event);
    set({ token: state.direction === "from" ? query : key });
  });
  for (const id of ["large", "tokens"]) $(id).addEventListener("pointerleave", () => point(null));
  const onInput = (id, changes) => $(id).addEventListener("input", () => set(changes($(id))));
  onInput("scale", ({ value }) => ({ scale: value }));
  onInput("hide", ({ checked }) => ({ hide: checked }));
  onInput("score", ({ value }) => ({ score: Number(value), minimum: 0 }));
  onInput("order", ({ value }) => ({ order: value }));
  onInput("minimum", ({ value }) => ({ minimum: Number(value) }));
  $("relation").addEventListener("input", () => chooseRelation(Number($("relation").value)));
  onInput("values", ({ checked }) => ({ values: checked }));
  onInput("several", ({ checked }) => ({ several: checked, heads: checked ? [selected()] : [] }));
  for (const name of ["view", "picture"]) onChoice(name, (value) => set({ [name]: value }));
  onChoice("direction", (direction) => set({ direction, token: Math.min(state.token, (direction === "from" ? T : S) - 1) }));
  listenToCauses();
  $("curve").addEventListener("pointermove", pointCurve);
  $("curve").addEventListener("pointerleave", () => { pointed = -1; drawCurve(); });
  $("curve").addEventListener("click", (event) => {
    pointCurve(event);
    if (pointed >= 0) choose(pointed);
  });
  isDark.addEventListener("change", drawAll);
  document.addEventListener("keydown", onKey);
  onResize(drawAll);
}

start(async () => {
  await decode();
  const main = document.querySelector("main");
  main.hidden = false;
  main.classList.toggle("masked", !isCausal && Boolean(data.signed) && A.levels.includes(0));
  $("time").hidden = $("step-keys").hidden = steps.length === 1;
  $("rounding").textContent = data.rounding;
  if (data.intro) $("intro").textContent = data.intro;
  if (!isCausal) document.querySelector(".frame").prepend($("readout"));      // no free corner above the diagonal
  $("values-label").hidden = !A.norms;
  $("compare").hidden = !B;
  build();
  openAtTheClearest();
  stepper(steps.length, 700, () => state.frame, toFrame);
  drawAll();
  listen();
});
