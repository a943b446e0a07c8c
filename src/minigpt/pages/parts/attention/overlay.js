// Several heads at once, each in a colour of its own.
// Okabe and Ito 2008, "Color Universal Design": told apart without full colour vision.
const HEAD_COLOURS = [[0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [230, 159, 0], [86, 180, 233]];

// The overlaid heads; none where one is shown, or signed weights and differences, whose colours tell the signs.
const overlaid = () => (state.several && !isSigned() && state.heads.length > 1 ? state.heads : []);
const isDark = matchMedia("(prefers-color-scheme: dark)");
// A head's colour, lighter on a dark page.
const colourOf = (i) => HEAD_COLOURS[state.heads.indexOf(i) % HEAD_COLOURS.length].map((x) => (isDark.matches ? x + 0.35 * (255 - x) : x));
const css = (colour) => `rgb(${colour.map(Math.round).join(" ")})`;
const placed = (i) => ({ layer: Math.floor(i / H), head: i % H });

// The mean colour of some heads by their shares, as strong as the largest: [[head, share from 0 to 1]] -> { colour, share }.
function mixed(shares) {
  const sum = shares.reduce((total, [, share]) => total + share, 0) || 1;
  const colour = [0, 1, 2].map((c) => shares.reduce((total, [i, share]) => total + share * colourOf(i)[c], 0) / sum);
  return { colour, share: Math.max(...shares.map(([, share]) => share)) };
}

function paintOverlay(canvas, heads, cssPixels) {
  const [n, m] = pixelsOf(cssPixels), { full } = shading();
  const layers = heads.map((i) => [i, shadesOf(Math.floor(i / H), i % H, n, m)]);
  putPixels(canvas, m, Uint32Array.from({ length: n * m }, (_, cell) => {
    if (layers[0][1][cell] < 0) return 0;
    const { colour: [red, green, blue], share } = mixed(layers.map(([i, shades]) => [i, shades[cell] / full]));
    return Math.round(255 * share) << 24 | blue << 16 | green << 8 | red;
  }));
}

// A click on a small map: selects the head, or adds it to the overlaid ones or takes it away.
function pick(i, adds) {
  if (isSigned() || !(adds || state.several)) return choose(i);
  const heads = state.several ? state.heads : [selected()], left = heads.filter((head) => head !== i);
  if (left.length === heads.length) return set({ several: true, heads: [...heads, i].slice(-HEAD_COLOURS.length), ...placed(i) });
  return left.length ? set({ several: true, heads: left, ...placed(left[left.length - 1]) }) : undefined;
}

function drawOverlay() {
  const heads = overlaid();
  $("several").checked = state.several;
  $("several").disabled = isSigned();
  $("bar-box").hidden = heads.length > 0;
  $("overlay").hidden = !state.several || isSigned();
  $("overlay").replaceChildren(...heads.map((i) => {
    const chip = make("button", { type: "button", className: "chip", textContent: shortName(i), title: "take it away" }, { "aria-label": `take away ${nameOf(i)}` });
    chip.style.setProperty("--own", css(colourOf(i)));
    chip.addEventListener("click", () => pick(i, true));
    return chip;
  }), heads.length ? "the stronger a head\u2019s colour, the larger its weight" : "choose further heads on the small maps");
  thumbs.forEach((thumb, i) => {
    const isChosen = heads.includes(i);
    thumb.classList.toggle("chosen", isChosen);
    if (isChosen) thumb.style.setProperty("--own", css(colourOf(i)));
  });
}
