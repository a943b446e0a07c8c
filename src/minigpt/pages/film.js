// Film of a run: shows one checkpoint's text at a time, by slider, arrow keys or play button. documents.py inlines this into
// film.html; without JavaScript all texts show one below the other.
"use strict";
const $ = (id) => document.getElementById(id);
const FRAME_MS = 900;                    // pause between two steps while playing
const frames = [...document.querySelectorAll(".frame")];
let at = frames.length - 1, timer = 0;

function show(frame) {
  at = Math.min(Math.max(frame, 0), frames.length - 1);
  const { step } = frames[at].dataset;
  frames.forEach((each, i) => { each.hidden = i !== at && !$("all").checked; });
  if ($("all").checked) frames[at].scrollIntoView({ block: "nearest" });
  $("slider").value = at;
  $("slider").setAttribute("aria-valuetext", `step ${step}`);
  $("step").textContent = step;
  document.documentElement.dataset.step = step;          // for tests and other programs
}

function play(on) {
  clearInterval(timer);
  timer = 0;
  if (on) {
    if (at === frames.length - 1) show(0);
    timer = setInterval(() => {
      show(at + 1);
      if (at === frames.length - 1) play(false);
    }, FRAME_MS);
  }
  $("play").textContent = on ? "\u23f8\ufe0e pause" : "\u25b6\ufe0e play";
  $("play").setAttribute("aria-label", on ? "pause" : "play the training steps");
}

document.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: frames.length - 1 };
  if (!(event.key in moves) || event.metaKey || event.ctrlKey || event.altKey || event.shiftKey) return;
  play(false);
  show(moves[event.key]);
  event.preventDefault();
});
$("slider").addEventListener("input", () => { play(false); show(Number($("slider").value)); });
$("play").addEventListener("click", () => play(!timer));
$("all").addEventListener("change", () => show(at));
$("slider").max = frames.length - 1;
$("tools").hidden = frames.length === 1;
show(at);
document.documentElement.dataset.ready = "1";
