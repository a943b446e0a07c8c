// Film of a run: shows one checkpoint's text at a time, by slider, arrow keys or play button. Without JavaScript all texts show
// one below the other.
const frames = [...document.querySelectorAll(".frame")];
let at = frames.length - 1;

function show(frame) {
  at = clamp(frame, 0, frames.length - 1);
  const { step } = frames[at].dataset;
  frames.forEach((each, i) => { each.hidden = i !== at && !$("all").checked; });
  if ($("all").checked) frames[at].scrollIntoView({ block: "nearest" });
  tellStep(at, step);
  root.dataset.step = step;
}

const play = stepper(frames.length, 900, () => at, show);

document.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: frames.length - 1 };
  if (!(event.key in moves) || event.metaKey || event.ctrlKey || event.altKey || event.shiftKey) return;
  play(false);
  show(moves[event.key]);
  event.preventDefault();
});
$("all").addEventListener("change", () => show(at));
$("tools").hidden = frames.length === 1;
show(at);
root.dataset.ready = "1";
