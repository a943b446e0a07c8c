// Unpacks the weights that weights.py packed: base64 of deflated bytes -> a tensor for each name of the state_dict.

// Bytes of a chunk, which weights.py deflated without a header.
async function inflateChunk(base64) {
  const text = atob(base64.trim()), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// A 16-bit float: sign, 5 bits of exponent, 10 of fraction. float32 holds each exactly.
function halfToNumber(half) {
  const sign = half & 0x8000 ? -1 : 1, exponent = (half >> 10) & 31, fraction = half & 1023;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function halvesToFloats(halves) {
  const table = new Float32Array(65536), floats = new Float32Array(halves.length);
  for (let half = 0; half < table.length; half++) table[half] = halfToNumber(half);
  for (let i = 0; i < halves.length; i++) floats[i] = table[halves[i]];
  return floats;
}

// Map of name -> {shape, data, scales}: data is a Float32Array, or an Int8Array whose row o is to be multiplied with
// scales[o]. int8 stays as it is: a model of 124 million parameters then takes 124 MB, not 500.
async function loadTensors(header, chunks) {
  const bytes = new Uint8Array(header.n_bytes);
  let at = 0;
  for (const chunk of chunks) {                     // one after another: each is up to 12 MB
    const part = await inflateChunk(chunk);
    bytes.set(part, at);
    at += part.length;
  }
  if (at !== header.n_bytes) {
    throw new Error(`the weights have ${at} bytes, not ${header.n_bytes}: the page is not complete`);
  }
  const tensors = new Map();
  for (const { name, shape, kind, offset, scales } of header.tensors) {
    const n = shape.reduce((product, size) => product * size, 1);
    const view = (type, start, length) => new type(bytes.buffer, start, length);
    const data = kind === "int8" ? view(Int8Array, offset, n)
      : kind === "float16" ? halvesToFloats(view(Uint16Array, offset, n)) : view(Float32Array, offset, n);
    tensors.set(name, kind === "int8" ? { shape, data, scales: view(Float32Array, scales, shape[0]) } : { shape, data });
  }
  return tensors;
}
