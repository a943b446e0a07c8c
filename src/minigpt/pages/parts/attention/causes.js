// The lists of causes: why the model predicts what follows the selected token.
const EFFECTS = 12;                       // components or heads in a list

// Undoes _signed of causes.py: [index, token] -> value.
async function signedOf({ scales, levels }) {
  const numbers = new Int16Array((await inflate(levels)).buffer);
  return (i, token) => numbers[i * scales.length + token] * scales[token];
}

async function decodeCauses(causes) {
  causes.attribution = await signedOf(causes.attribution);
  if (causes.ablation) causes.ablation = await signedOf(causes.ablation);
}

const causesShown = () => (isDifference() ? null : (state.view === "b" ? B : A).causes);

// A line of each list: a bar, a name, texts of tokens, a value. A head's line selects the head.
function causeItem(share, name, parts, value, head = null) {
  const what = make("span", { className: "what" });
  what.append(head === null ? make(parts.length ? "small" : "span", { textContent: name })
    : make("button", { type: "button", className: "head", textContent: name }), ...parts);
  const item = listItem(share, what, "", value, head === null ? {} : { "data-head": head });
  if (head === selected()) item.setAttribute("aria-current", "true");
  return item;
}

function lensItems(causes, token) {
  return causes.best.map((layer, i) => {
    const text = make("bdi", { className: "label", textContent: `\u201c${visible(data.texts[layer[token]])}\u201d` });
    text.classList.toggle("hit", layer[token] === causes.targets[token]);
    const likeliest = make("small", { textContent: ` ${short(causes.bestShares[i][token])}` }), share = causes.targetShares[i][token];
    return causeItem(share, i ? `layer ${i - 1} ` : "embedding ", [text, likeliest], short(share));
  });
}

// The largest effects, the selected head among them, and the sum of the others.
function effectItems(effects, isSum) {
  const most = Math.max(...effects.map(([, value]) => Math.abs(value)), 1e-9);
  const line = ([name, value, head]) => {
    const item = causeItem(Math.abs(value) / most, name, [], number(value, true), head);
    item.classList.toggle("less", value < 0);
    return item;
  };
  const sorted = [...effects].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const rest = sorted.slice(EFFECTS), own = rest.find(([, , head]) => head === selected());
  const left = rest.filter((effect) => effect !== own), items = [...sorted.slice(0, EFFECTS), ...(own ? [own] : [])].map(line);
  if (left.length && isSum) {
    const sum = left.reduce((total, [, value]) => total + value, 0);
    items.push(causeItem(0, `${left.length} ${left.length > 1 ? "others" : "other"} together`, [], number(sum, true)));
  } else if (left.length) items.push(causeItem(0, left.length > 1 ? `${left.length} others change it less` : "1 other changes it less", [], ""));
  return items;
}

const headOf = (name) => {
  const found = /^(\d+)\.(\d+)$/.exec(name);
  return found ? Number(found[1]) * H + Number(found[2]) : null;
};

const CAUSES = {
  lens: (causes, token) => [lensItems(causes, token),
    ["Likeliest token in each layer, and at the right the probability of ", label(targetOf(causes, token)), "."]],
  attribution: (causes, token) => {
    const effects = causes.components.map((name, i) => {
      const head = headOf(name);
      return [head === null ? visible(name) : nameOf(head), causes.attribution(i, token), head];
    });
    const sum = effects.reduce((total, [, value]) => total + value, 0);
    return [effectItems(effects, true), [`Nats that each part adds to the loss; below zero it helps. The entropy of the prediction, ${
      number(causes.entropy[token])}, and all parts, ${number(sum, true)}, add up to the loss.`]];
  },
  ablation: (causes, token) => (causes.ablation
    ? [effectItems(thumbs.map((_, i) => [nameOf(i), causes.ablation(i, token), i]), false),
      ["Nats: the loss of ", label(targetOf(causes, token)),
        " with each head's output zeroed, minus its loss; above zero the head helps. Others may compensate."]]
    : [[], ["Not computed: the model is large for a CPU."]]),
};

const targetOf = (causes, token) => `\u201c${visible(data.texts[causes.targets[token]])}\u201d`;

const command = (text) => make("code", { textContent: text });

// What the list shows instead where there are no causes: [title, note].
function withoutCauses() {
  if (state.panel === "patching") {
    return ["Patching: which part carries what differs between two prompts", [
      "It copies an activation from a run of one prompt into a run of another, so it needs two prompts of as many tokens, and ",
      "has a page of its own. For the selected token: ", command("minigpt patch RUN --clean TEXT --corrupted TEXT --answer TOKEN"),
      ". The clean text ends with the selected token, the corrupted one has a word changed, and the answer is the next token."]];
  }
  if (isDifference()) return ["Choose A or B: causes are of one model", []];
  return ["Not measured on this page", [command("minigpt inspect RUN"), " makes a page that has it."]];
}

function drawCauses() {
  const isOffered = names.length > 0 || data.runs.some((run) => run.causes), panel = isOffered ? state.panel : "keys";
  $("panels").hidden = !isOffered;
  $("keys").hidden = panel !== "keys";
  $("causes").hidden = panel === "keys";
  if (panel === "keys") return;
  const causes = panel === "patching" ? null : causesShown(), { token } = state;
  $("causes-list").hidden = !causes;
  if (!causes) {
    const [title, note] = withoutCauses();
    $("causes-title").textContent = title;
    $("causes-note").replaceChildren(...note);
    $("causes-list").replaceChildren();
    return;
  }
  const [items, note] = CAUSES[panel](causes, token), isChoice = causes.open && token === T - 1;
  $("causes-title").replaceChildren(isChoice ? "Why the model would write " : "Predicting ", label(targetOf(causes, token)),
    " after ", label(quoted(token)), `: loss ${number(causes.losses[token])} nats${steps.length > 1 ? `, at step ${causes.step}` : ""}`);
  $("causes-note").replaceChildren(...note);
  $("causes-list").replaceChildren(...items);
}

function listenToCauses() {
  for (const [panel, name] of [["lens", "logit_lens"], ["attribution", "loss_attribution"], ["ablation", "ablation"]]) {
    if (TERMS.has(name)) document.querySelector(`#panels [value=${panel}]`).parentElement.title = meaningOf(name);
  }
  onChoice("panel", (value) => set({ panel: value }));
  $("why").addEventListener("click", () => {
    const tab = document.querySelector("#panels [value=attribution]");
    tab.checked = true;
    set({ panel: tab.value });
    tab.focus();                                         // the button is hidden now
  });
  $("causes-list").addEventListener("click", (event) => {
    const head = event.target.closest("li")?.dataset.head;
    if (head === undefined) return;
    const byKey = event.target.classList.contains("head");
    choose(Number(head));
    if (byKey) $("causes-list").querySelector("[aria-current] button").focus();      // the list is new
  });
}
