// The curves of the chosen score over the training steps.
const EDGE = 7, LEFT = 40;                // margins of the chart in pixels; the range is written at the left

// Least range of the y axis, so that noise looks small: scores are shares, ablation is in nats.
const leastSpan = () => (inNats(state.score) ? 0.01 : 0.1);

// The y axis: the range of the scores, widened to the least span, but not across zero.
function axis() {
  const [low, high] = range(), missing = Math.max(0, leastSpan() - (high - low));
  const below = low >= 0 ? Math.min(low, missing / 2) : high <= 0 ? Math.max(missing / 2, missing + high) : missing / 2;
  return [low - below, high + missing - below];
}

// Positions of steps and scores on the chart, in CSS pixels.
function chart() {
  const { clientWidth: width, clientHeight: height } = $("curve"), [low, high] = axis();
  const first = steps[0], span = steps[steps.length - 1] - first || 1;
  return {
    width, height, low, high,
    x: (frame) => LEFT + (width - LEFT - EDGE) * (steps[frame] - first) / span,
    y: (value) => height - EDGE - (height - 2 * EDGE) * (value - low) / (high - low),
  };
}

function drawCurve() {
  $("curves").hidden = state.score < 0 || steps.length === 1;
  if ($("curves").hidden) return;
  const measured = steps.filter((_, frame) => thumbs.some((_, i) => scoreAt(frame, state.score, i) !== null)), isCurve = measured.length > 1;
  for (const part of document.querySelectorAll("#curves > :not(#curve-note)")) part.hidden = !isCurve;
  if (!isCurve) {
    const name = scoreWords(names[state.score]);
    return tell({ "curve-note": measured.length ? `${name}: measured at step ${measured[0]} only` : `${name}: not measured` });
  }
  const { width, height, low, high, x, y } = chart(), canvas = $("curve"), context = canvas.getContext("2d");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  canvas.width = Math.round(width * devicePixelRatio);
  canvas.height = Math.round(height * devicePixelRatio);
  context.scale(devicePixelRatio, devicePixelRatio);
  const stroke = (name, thickness, opacity, dashes, path) => {
    Object.assign(context, { strokeStyle: colour(name), lineWidth: thickness, globalAlpha: opacity, lineJoin: "round" });
    context.setLineDash(dashes);
    context.beginPath();
    path();
    context.stroke();
  };
  const line = (i) => () => {
    let drawing = false;                                  // a step without the score is a gap
    steps.forEach((_, frame) => {
      const value = scoreAt(frame, state.score, i);
      if (value !== null) context[drawing ? "lineTo" : "moveTo"](x(frame), y(value));
      drawing = value !== null;
    });
  };
  const straight = (x0, y0, x1, y1) => () => { context.moveTo(x0, y0); context.lineTo(x1, y1); };
  if (low < 0 && high > 0) stroke("--line", 1, 1, [], straight(LEFT, y(0), width, y(0)));
  stroke("--muted", 1, 0.8, [2, 3], straight(x(state.frame), 0, x(state.frame), height));
  thumbs.forEach((thumb, i) => stroke("--muted", 1, thumb.classList.contains("low") ? 0.15 : 0.55, [], line(i)));
  if (pointed >= 0) stroke("--ink", 2, 1, [5, 3], line(pointed));
  stroke("--accent", 2.5, 1, [], line(selected()));
  const value = current(selected());
  if (value !== null) stroke("--accent", 2.5, 1, [], () => context.arc(x(state.frame), y(value), 3, 0, 2 * Math.PI));
  tellCurve(low, high);
}

function tellCurve(low, high) {
  const i = pointed >= 0 ? pointed : selected(), frame = pointed >= 0 ? pointedFrame : state.frame;
  const told = (k, head) => `${shownScore(scoreAt(k, state.score, head), state.score)} at step ${steps[k]}`;
  tell({ "curve-title": `${scoreWords(names[state.score])} of every head, over the steps`,
    "curve-low": shownScore(low, state.score), "curve-high": shownScore(high, state.score),
    "curve-first": `step ${steps[0]}`, "curve-last": steps[steps.length - 1], "curve-note": `${nameOf(i)}: ${told(frame, i)}` });
  const values = steps.map((_, k) => told(k, selected())).join(", ");
  $("curve").setAttribute("aria-label", `${scoreWords(names[state.score])} of ${nameOf(selected())}: ${values}`);
}

let pointedFrame = 0;                     // step nearest to the pointer

// Finds the curve vertically nearest to the pointer; the selected head wins ties.
function pointCurve(event) {
  const box = $("curve").getBoundingClientRect(), { x, y } = chart();
  const across = event.clientX - box.left, down = event.clientY - box.top;
  const frames = steps.map((_, frame) => frame);
  pointedFrame = frames.reduce((a, b) => (Math.abs(x(b) - across) < Math.abs(x(a) - across) ? b : a));
  const before = Math.max(0, frames.findLastIndex((frame) => x(frame) <= across));
  const after = Math.min(before + 1, steps.length - 1);
  const share = clamp((across - x(before)) / (x(after) - x(before) || 1), 0, 1);
  let best = Infinity;
  pointed = -1;
  for (const i of [selected(), ...thumbs.keys()]) {
    const left = scoreAt(before, state.score, i), right = scoreAt(after, state.score, i);
    if (left === null && right === null) continue;
    const distance = Math.abs(y(left ?? right) * (1 - share) + y(right ?? left) * share - down);
    if (distance < best - 1e-9) [best, pointed] = [distance, i];
  }
  drawCurve();
}
