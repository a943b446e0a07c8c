// The sentence on what the heads do, with buttons that select them, and the steps at which heads got their labels.
const SAID = new Map([                    // label -> what one head does, what several do
  ["previous token", ["attends", "attend", "to the previous token"]],
  ["current token", ["attends", "attend", "to the token itself"]],
  ["first token", ["attends", "attend", "to the first token, where heads without a match put their weight"]],
  ["duplicate token", ["attends", "attend", "to earlier copies of the token"]],
  ["induction", ["attends", "attend", "to what followed an earlier copy of the token (induction)"]],
]);
const NAMED = 4;                          // heads of a label that are named
const LEAST_CHANGE = 0.05;                // smaller ones are not told
const CHANGING = [...PATTERNS, ...["current_token", "first_token"].map((name) => names.indexOf(name)).filter((score) => score >= 0)];

const shortName = (i) => `${Math.floor(i / H)}.${i % H}`;

function headButton(i, changes = {}) {
  const button = make("button", { type: "button", className: "head", textContent: shortName(i) }, { "aria-label": `select ${nameOf(i)}` });
  button.addEventListener("click", () => { Object.assign(state, changes); choose(i); drawAll(); });
  return button;
}

const listed = (parts) => parts.flatMap((part, k) => [...(k ? [k === parts.length - 1 ? " and " : ", "] : []), part]);

function labelSentences() {
  const found = labelled(), labels = [...new Set(found.map(([, name]) => name))];
  const said = labels.flatMap((name) => {
    const heads = found.filter((each) => each[1] === name).map(([i]) => i), score = scoreOfLabel(name);
    const [one, several, rest] = SAID.get(name) ?? ["follows", "follow", `the relation \u201c${visible(name)}\u201d`];
    const parts = heads.slice(0, NAMED).map((i) => headButton(i, score < 0 ? {} : { score, minimum: 0 }));
    if (heads.length > NAMED) parts.push(`${heads.length - NAMED} more`);
    return [...listed(parts), ` ${heads.length > 1 ? several : one} ${rest}. `];
  });
  const left = L * H - found.length;
  if (!found.length) return ["No head has a clear pattern. "];
  return left ? [...said, `The other ${left > 1 ? `${left} have` : "one has"} no clear pattern. `] : said;
}

function effectSentence() {
  const score = names.indexOf("ablation"), [first, second] = byScore(score).filter(([, value]) => value > 0.0005);
  if (!first) return [];
  const button = ([i]) => headButton(i, { score, minimum: 0 }), spread = current(first[0], names.indexOf("ablation_spread"));
  // An effect within its spread may be none, so a second one is not worth a name.
  const more = spread >= first[1] ? [`, which may be noise: the spread over parts of the text is ${number(spread)}`]
    : second ? [", then without ", button(second), ` (${number(second[1], true)})`] : [];
  return ["Without ", button(first), ` the loss of the text rises most: ${number(first[1], true)} nats`, ...more, ". "];
}

// What changed most since the first step, one pattern for each head.
function changeSentence() {
  if (!state.frame) return [];
  const measured = thumbs.flatMap((_, i) => CHANGING.map((score) => ({ i, score, before: scoreAt(0, score, i), now: current(i, score) }))
    .filter(({ before, now }) => before !== null && now !== null).map((each) => ({ ...each, size: Math.abs(each.now - each.before) }))
    .sort((a, b) => b.size - a.size).slice(0, 1));
  const changes = measured.filter(({ size }) => size >= LEAST_CHANGE).sort((a, b) => b.size - a.size);
  if (!changes.length) return measured.length ? [`Since step ${steps[0]} no pattern has changed by ${number(LEAST_CHANGE)} or more. `] : [];
  const parts = changes.slice(0, 2).map(({ i, score, before, now }) => {
    const part = make("span");
    part.append(headButton(i, { score, minimum: 0 }), ` (${scoreWords(names[score])} ${number(before)} \u2192 ${number(now)})`);
    return part;
  });
  return [`Changed most since step ${steps[0]}: `, ...listed(parts), ". "];
}

// Where two runs are compared: the head whose weights differ most.
function differenceSentence() {
  const sizes = thumbs.map((_, i) => {
    let sum = 0;
    for (let q = 0; q < T; q++) for (let k = 0; k < lengthOf(q); k++) sum += Math.abs(weightAt(Math.floor(i / H), i % H, q, k));
    return sum / (2 * T);
  });
  const i = sizes.indexOf(Math.max(...sizes));
  return ["A and B differ most in ", headButton(i), `: ${number(sizes[i])} of a row's weight is on other tokens, mean of the rows.`];
}

let summarised = "";

function drawSummary() {
  const key = [state.frame, state.view].join();
  if (summarised === key) return;                        // a button that was pressed keeps its focus
  summarised = key;
  const run = B && !isDifference() ? `${state.view.toUpperCase()}: ` : "", at = [run, steps.length > 1 ? `At step ${steps[state.frame]}: ` : ""];
  const isLabelled = data.labels && state.view === "a";
  const parts = isDifference() ? differenceSentence() : [...(isLabelled ? labelSentences() : []), ...effectSentence(), ...changeSentence()];
  $("summary").hidden = parts.length === 0;
  $("summary").replaceChildren(...at, ...parts);
}

// A tick on the slider at each step where heads got labels or something happened in training, with a title that says it.
function buildEvents() {
  const said = steps.map(() => []);
  (data.labels ?? []).forEach((labels, frame) => {
    const before = frame ? data.labels[frame - 1] : [];
    const news = labels.map((name, i) => [i, name]).filter(([i, name]) => frame && name && name !== before[i]);
    if (news.length) said[frame].push(`step ${steps[frame]}: ${news.map(([i, name]) => `${shortName(i)} ${visible(name)}`).join(", ")}`);
  });
  for (const [step, text] of data.events) {              // at the first maps that were recorded after it
    const frame = steps.findIndex((each) => each >= step);
    said[frame < 0 ? steps.length - 1 : frame].push(`step ${step}: ${visible(text)}`);
  }
  said.forEach((texts, frame) => {
    if (!texts.length || steps.length === 1) return;
    const tick = make("button", { type: "button", className: "event", title: texts.join("\n") }, { "aria-label": texts.join("; ") });
    tick.style.left = `calc(8px + (100% - 16px) * ${frame / (steps.length - 1)})`;     // as the slider's thumb, 16 px wide
    tick.addEventListener("click", () => toFrame(frame));
    $("events").append(tick);
  });
  $("events").hidden = !$("events").children.length;
}
