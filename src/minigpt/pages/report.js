// The report's charts: shows the values at a step, by pointer or arrow keys. Everything else shows without JavaScript.
const WIDTH = 2000, HEIGHT = 1000;       // of the drawings, as in charts.py

// Index of the value nearest to x in a sorted list; the earlier one of two.
function nearest(list, x) {
  const after = list.findIndex((other) => other >= x);
  if (after <= 0) return after < 0 ? list.length - 1 : 0;
  return x - list[after - 1] <= list[after] - x ? after - 1 : after;
}

function listen(figure, { limits: [first, last, bottom, top], lines }) {
  const plot = figure.querySelector(".lines"), values = [...figure.querySelectorAll(".value")];
  const latest = values.map((value) => value.textContent), spoken = plot.getAttribute("aria-valuetext");
  const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  let at = steps.length - 1;             // index in steps
  const x = (step) => Math.round((step - first) / (last - first) * WIDTH);
  const y = (value) => Math.round((top - value) / (top - bottom) * HEIGHT);

  function draw(cursor, dots) {
    plot.querySelector(".cursor").setAttribute("d", cursor);
    plot.querySelector(".cursor-dots").setAttribute("d", dots);
  }

  function tell(place) {
    at = clamp(place, 0, steps.length - 1);
    const points = lines.map((line) => {
      const i = nearest(line.steps, steps[at]);
      return [line.name, line.steps[i], line.values[i]];
    });
    points.forEach(([, step, value], i) => { values[i].textContent = `${value} at step ${step}`; });
    plot.setAttribute("aria-valuenow", steps[at]);
    plot.setAttribute("aria-valuetext", points.map(([name, step, value]) => `${name} ${value} at step ${step}`).join("; "));
    draw(`M${x(steps[at])} 0V${HEIGHT}`, points.map(([, step, value]) => `M${x(step)} ${y(Number(value))}h0`).join(""));
  }

  function rest() {                      // back to the last values
    at = steps.length - 1;
    values.forEach((value, i) => { value.textContent = latest[i]; });
    plot.setAttribute("aria-valuenow", steps[at]);
    plot.setAttribute("aria-valuetext", spoken);
    draw("", "");
  }

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    tell(nearest(steps, first + (event.clientX - box.left) / box.width * (last - first)));
  });
  plot.addEventListener("pointerleave", rest);
  plot.addEventListener("blur", rest);
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - 10,
      PageUp: at + 10, Home: 0, End: steps.length - 1 };
    if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
    tell(moves[event.key]);
    event.preventDefault();
  });
}

// The attention page tells its height, see page.js: its frame is as high, borders included.
addEventListener("message", (event) => {
  const frame = document.querySelector("iframe"), height = Number(event.data?.minigptHeight);
  if (frame && event.source === frame.contentWindow && height > 0) frame.style.height = `${height + frame.offsetHeight - frame.clientHeight}px`;
});

JSON.parse($("data").textContent).forEach((chart, number) => listen($(`chart-${number}`), chart));
root.dataset.ready = "1";
