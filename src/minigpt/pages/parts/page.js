// What the pages share; documents.py puts it before each page's own script.
"use strict";
const $ = (id) => document.getElementById(id);
const root = document.documentElement;    // its data attributes tell tests and other programs the page's state
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const WEIGHT = Float64Array.from({ length: 256 }, (_, q) => (q / 255) ** 2);                       // expand of packing.py
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const percentOf = (p) => (p < 0.0001 ? "<0.01 %" : `${(100 * p).toFixed(p < 0.1 ? 2 : 1)} %`);
const short = (weight) => (weight > 0 && weight < 0.001 ? "<0.001" : weight.toFixed(3));

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// Undoes the base64 and raw deflate of packing.py.
async function inflate(base64) {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Puts texts into elements, by their ids. Tokens are untrusted, so they enter a page as textContent only.
function tell(texts) {
  for (const [id, text] of Object.entries(texts)) $(id).textContent = text;
}

function make(tag, properties = {}, attributes = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// A line of a ranked list: a bar, a token, a note in small letters, a value.
function listItem(share, token, note, value, attributes) {
  const item = make("li", {}, attributes), number = make("span", { className: "value", textContent: value });
  if (note) number.prepend(make("small", { textContent: `${note} ` }));
  item.style.setProperty("--share", `${(100 * share).toFixed(1)}%`);
  item.append(token, number);
  return item;
}

// Bars one below the other, each as long as its share.
function bars(...shares) {
  const all = make("span", { className: "bars" }, { "aria-hidden": "true" });
  all.append(...shares.map((share) => {
    const bar = make("i");
    bar.style.setProperty("--length", `${(100 * share).toFixed(2)}%`);
    return bar;
  }));
  return all;
}

// 256 times red, green, blue -> 256 little-endian words: alpha, blue, green, red
function paletteOf(base64) {
  const colours = bytesOf(base64);
  return Uint32Array.from({ length: 256 }, (_, i) =>
    0xff000000 | colours[3 * i + 2] << 16 | colours[3 * i + 1] << 8 | colours[3 * i]);
}

// Fills a canvas with such words, row after row.
function putPixels(canvas, width, words) {
  canvas.width = width;
  canvas.height = words.length / width;
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  new Uint32Array(image.data.buffer).set(words);
  context.putImageData(image, 0, 0);
}

// The slider and the play button of a page with `count` steps. `current()` is the index of the shown one, `show(i)` shows
// another; returns a function that starts or stops playing.
function stepper(count, milliseconds, current, show) {
  let timer = 0;
  const play = (on) => {
    clearInterval(timer);
    timer = 0;
    if (on) {
      if (current() === count - 1) show(0);
      timer = setInterval(() => {
        show(current() + 1);
        if (current() === count - 1) play(false);
      }, milliseconds);
    }
    $("play").textContent = on ? "\u23f8\ufe0e Pause" : "\u25b6\ufe0e Play";
    $("play").setAttribute("aria-label", on ? "pause" : "play the training steps");
  };
  $("slider").max = count - 1;
  $("slider").addEventListener("input", () => { play(false); show(Number($("slider").value)); });
  $("play").addEventListener("click", () => play(!timer));
  return play;
}

function tellStep(index, step) {
  $("slider").value = index;
  $("slider").setAttribute("aria-valuetext", `step ${step}`);
  $("step").textContent = step;
}

function onChoice(name, choose) {
  for (const radio of document.getElementsByName(name)) radio.addEventListener("change", () => choose(radio.value));
}

// Draws again when the page changes its size, once for many such events.
function onResize(draw) {
  let waiting = 0;
  new ResizeObserver(() => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(draw);
  }).observe(document.body);
}

// The frame around the page in a notebook or a report follows its height, see documents.py and report.js. What is as high as
// the window elsewhere takes a fixed share there: the window would grow with it.
if (parent !== window) {
  root.style.setProperty("--screen", "800px");
  new ResizeObserver(() => parent.postMessage({ minigptHeight: Math.ceil(root.getBoundingClientRect().height) }, "*")).observe(root);
}

// Runs main. An open document in a frame delays the load event, for which programs that print or capture a page wait.
function start(main) {
  const frame = document.body.appendChild(make("iframe", { hidden: true }));
  frame.contentDocument?.open();                         // null inside a sandbox
  main().then(() => { root.dataset.ready = "1"; }).finally(() => frame.remove()).catch((error) => {
    $("intro").textContent = `This browser cannot draw the page (${error.message}): use Chrome 105, Firefox 121, Safari 16.4 or newer.`;
  });
}
