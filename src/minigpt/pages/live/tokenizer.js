// Text <-> token ids: the tokenizers of data/tokenizers, with the data of tokenizer_data.py.
// A text that is cut is a list of {id, start, end}, with places in UTF-16 units as JavaScript counts them.
const END_OF_TEXT = "<|endoftext|>";
const UTF8 = new TextEncoder();

function makeTokenizer(data) {
  const kinds = { bytes: bytesTokenizer, chars: charsTokenizer, bpe: bpeTokenizer, huggingface: huggingFaceTokenizer };
  const { cut, bytesOfToken } = kinds[data.kind](data);
  // A model may have more rows than its tokenizer has tokens; such a token has no text.
  const bytes = (id) => (id < data.vocab_size ? bytesOfToken(id) : new Uint8Array(0));
  // As in Python, half of a surrogate pair is encoded as "?".
  const encodeWithOffsets = (text) => cut(text.replace(/\p{Cs}/gu, "?"));
  return {
    vocabSize: data.vocab_size, endOfText: data.end_of_text, beginOfText: data.begin_of_text, bytes, encodeWithOffsets,
    encode: (text) => encodeWithOffsets(text).map((token) => token.id),
    decode: (ids) => textOfBytes(ids.flatMap((id) => [...bytes(id)])),
    label: (id) => (id === data.end_of_text ? "\u2039end of text\u203a"
      : id >= data.vocab_size ? `\u2039${id}, no text\u203a` : labelOfBytes(bytes(id)) || "\u2205"),
  };
}

function bytesTokenizer(data) {
  const cut = (text) => unitsOf(text, 0).flatMap(({ text, start, end }) =>
    [...UTF8.encode(text)].map((id) => ({ id, start, end })));
  return { cut, bytesOfToken: (id) => (id === data.end_of_text ? UTF8.encode(END_OF_TEXT) : Uint8Array.of(id)) };
}

function charsTokenizer(data) {
  const symbols = [...data.alphabet, END_OF_TEXT];
  const ids = new Map([...data.alphabet].map((character, id) => [character, id]));
  const cut = (text) => unitsOf(text, 0).map(({ text, start, end }, place) => {
    if (!ids.has(text)) {
      const point = text.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      throw new Error(`character '${markOf(text) || text}' (U+${point}) at position ${place} is not among the ` +
        `${ids.size} characters of this tokenizer: remove it`);
    }
    return { id: ids.get(text), start, end };
  });
  return { cut, bytesOfToken: (id) => UTF8.encode(symbols[id]) };
}

// Byte-level BPE as tiktoken does it: bytes are merged in the order of the merged tokens' ids.
function bpeTokenizer(data) {
  const tokens = binaryTokens(data), ranks = new Map(tokens.map((token, id) => [token, id]));
  const pattern = new RegExp(data.pattern, "gu"), rankOf = (left, right) => ranks.get(tokens[left] + tokens[right]);
  const idsOf = (word) => {
    const bytes = binaryOf(word), whole = ranks.get(bytes);
    return whole === undefined ? mergePairs(Array.from(bytes, (byte) => ranks.get(byte)), rankOf, (id) => id) : [whole];
  };
  const bytesOfToken = (id) => (id < tokens.length ? bytesOfBinary(tokens[id]) : UTF8.encode(data.special[id - tokens.length]));
  const cut = (text) => {
    const ids = [...text.matchAll(pattern)].flatMap(([word]) => idsOf(word));
    return placed(ids.map((id) => ({ id, size: tokens[id].length })), unitsOf(text, 0));
  };
  return { cut, bytesOfToken };
}

// Bytes as a string with a character of code 0 to 255 for each: what a Map can find.
const binaryOf = (text) => Array.from(UTF8.encode(text), (byte) => String.fromCharCode(byte)).join("");
const bytesOfBinary = (binary) => Uint8Array.from(binary, (byte) => byte.charCodeAt(0));

function binaryTokens({ bytes, lengths }) {
  const all = atob(bytes);
  let end = 0;
  return lengths.map((length) => all.slice(end, end += length));
}

// Merges pairs of neighbours: always the pair of the lowest rank, and the leftmost of these. `rankOf(left, right)` is
// undefined for a pair that is not merged; `mergedOf(rank)` is the token that it becomes.
function mergePairs(symbols, rankOf, mergedOf) {
  const ids = [...symbols], n = ids.length, queue = [];
  const next = ids.map((_, i) => i + 1), previous = ids.map((_, i) => i - 1);
  const offer = (i) => {
    const rank = i < 0 || next[i] >= n ? undefined : rankOf(ids[i], ids[next[i]]);
    if (rank !== undefined) pushLeast(queue, rank * 2 ** 32 + i);   // one number orders by rank, then by place
  };
  for (let i = 0; i < n; i++) offer(i);
  while (queue.length) {
    const least = popLeast(queue), i = least % 2 ** 32, id = mergedOf(Math.floor(least / 2 ** 32)), right = next[i];
    // Since it was offered, the left one may have gone into another, or got another neighbour.
    const rank = ids[i] < 0 || right >= n ? undefined : rankOf(ids[i], ids[right]);
    if (rank === undefined || mergedOf(rank) !== id) continue;
    ids[i] = id;
    ids[right] = -1;
    next[i] = next[right];
    if (next[i] < n) previous[next[i]] = i;
    offer(previous[i]);
    offer(i);
  }
  return ids.filter((id) => id >= 0);
}

// A binary heap of numbers: each is at most those at twice its place plus one and plus two.
function pushLeast(heap, value) {
  let i = heap.length;
  for (; i && heap[i - 1 >> 1] > value; i = i - 1 >> 1) heap[i] = heap[i - 1 >> 1];
  heap[i] = value;
}

function popLeast(heap) {
  const least = heap[0], last = heap.pop(), n = heap.length;
  for (let i = 0, child = 1; n; i = child, child = 2 * i + 1) {
    if (child + 1 < n && heap[child + 1] < heap[child]) child++;
    if (child >= n || heap[child] >= last) { heap[i] = last; break; }
    heap[i] = heap[child];
  }
  return least;
}

// The characters of a text, with their places in the text that it is part of.
function unitsOf(text, start) {
  let end = start;
  return Array.from(text, (character) => ({ text: character, start: end, end: end += character.length }));
}

function sizeInBytes(text) {
  let size = 0;
  for (const character of text) {
    const point = character.codePointAt(0);
    size += point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
  }
  return size;
}

// Gives each token {id, size in bytes} its place: that of the units that its bytes are from. A unit is never cut, so the
// tokens of one character all have the character's place.
function placed(tokens, units) {
  let unit = 0, stop = units.length ? sizeInBytes(units[0].text) : 0, read = 0;
  const at = (byte) => {
    while (byte >= stop && unit + 1 < units.length) stop += sizeInBytes(units[++unit].text);
    return units[unit];
  };
  return tokens.map(({ id, size }) => {
    const start = at(read).start;
    read += size;
    return { id, start, end: size ? at(read - 1).end : start };
  });
}

function textOfBytes(bytes) {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
}

// The twin of pages/tokens.py: marks for invisible characters, bytes of half a character in angle quotes.
const MARKS = { "\n": "\u21b5", "\t": "\u2192", " ": "\u2423", "\x7f": "\u2421" };

function markOf(character) {
  const point = character.codePointAt(0);
  if (MARKS[character] !== undefined) return MARKS[character];
  if (point < 0x20) return String.fromCodePoint(0x2400 + point);   // Unicode has a picture of each control character
  const invisible = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Zs}]/u.test(character);
  return invisible ? `\u2039U+${point.toString(16).toUpperCase().padStart(4, "0")}\u203a` : null;
}

function labelOfBytes(bytes) {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }), parts = [];
  for (let i = 0; i < bytes.length;) {
    const size = bytes[i] < 0x80 ? 1 : bytes[i] < 0xe0 ? 2 : bytes[i] < 0xf0 ? 3 : 4;
    try {
      const character = decoder.decode(bytes.slice(i, i + size));
      parts.push(markOf(character) || character);
      i += size;
    } catch {   // no character begins here
      parts.push(`\u2039${bytes[i++].toString(16).padStart(2, "0")}\u203a`);
    }
  }
  return parts.join("");
}
