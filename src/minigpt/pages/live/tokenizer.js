// Text <-> token ids: the tokenizers of data/tokenizers, with the data of tokenizer_data.py.
// A text that is cut is a list of {id, start, end}, with places in UTF-16 units as JavaScript counts them.
const END_OF_TEXT = "<|endoftext|>";
const SPACE_MARK = "\u2581";   // SentencePiece's character for a space
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
      throw new Error(`character '${visibleMark(text) || text}' (U+${point}) at position ${place} is not among the ` +
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
  const bytesOfToken = (id) =>
    (id < tokens.length ? bytesOfBinary(tokens[id]) : UTF8.encode(data.special[id - tokens.length]));
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

// Hugging Face's byte-level and SentencePiece-style BPE as the `tokenizers` library cuts text: added tokens are found
// first, then the text is normalised, split into words, and merged.
function huggingFaceTokenizer(data) {
  const { idsOf, bytesOfToken } = (data.byte_fallback ? fallbackTokens : byteLevelTokens)(data);
  // The text that a decoded token has for a normalised one.
  const decoded = (text) => (data.byte_fallback ? text.replaceAll(SPACE_MARK, " ") : text);
  const steps = data.steps.map((step) => ({ ...step, regex: step.pattern && new RegExp(step.pattern, "gu") }));
  const added = addedFinder(data.added), addedNormalised = addedFinder(data.added_normalised);
  const cutWord = (word) => idsOf(word.text).map((id, i) =>
    ({ id, size: bytesOfToken(id).length - (i === 0 ? word.extra : 0) }));
  const cutPart = (part, start) => {
    const units = normalisedUnits(part, start, data.normalizers);
    const pieces = addedNormalised(units.map((unit) => unit.text).join(""));
    const tokens = pieces.flatMap(({ id, text, start: inside }) => {
      if (id !== undefined) return [{ id, size: sizeInBytes(decoded(text)) }];
      const words = [{ text, extra: 0, first: start === 0 && inside === 0 }];
      return steps.reduce((all, step) => all.flatMap((word) => steppedWord(word, step)), words).flatMap(cutWord);
    });
    return placed(tokens, units.map((unit) => ({ ...unit, text: decoded(unit.text) })));
  };
  const cut = (whole) => added(whole).flatMap(({ id, text, start }) =>
    (id === undefined ? cutPart(text, start) : [{ id, start, end: start + text.length }]));
  return { cut, bytesOfToken };
}

function byteLevelTokens(data) {
  const tokens = binaryTokens(data), { vocabulary, merge } = mergeTables(data, tokens);
  const idsOf = (word) => {
    const bytes = binaryOf(word), whole = data.ignore_merges ? vocabulary.get(bytes) : undefined;
    return whole === undefined ? merge(Array.from(bytes, (byte) => vocabulary.get(byte))) : [whole];
  };
  return { idsOf, bytesOfToken: (id) => bytesOfBinary(tokens[id]) };
}

// Tokens are text. A character without a token becomes the tokens <0x00> to <0xFF> of its bytes.
function fallbackTokens(data) {
  const tokens = binaryTokens(data).map((token) => textOfBytes(bytesOfBinary(token)));
  const { vocabulary, merge } = mergeTables(data, tokens);
  const byteToken = (byte) => vocabulary.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
  const symbols = (character) => vocabulary.get(character) ?? Array.from(UTF8.encode(character), byteToken);
  const idsOf = (word) => {
    const whole = data.ignore_merges ? vocabulary.get(word) : undefined;
    return whole === undefined ? merge(Array.from(word, symbols).flat()) : [whole];
  };
  const bytesOfToken = (id) => {
    const byte = /^<0x([0-9A-F]{2})>$/.exec(tokens[id]);
    return byte ? Uint8Array.of(parseInt(byte[1], 16)) : UTF8.encode(tokens[id].replaceAll(SPACE_MARK, " "));
  };
  return { idsOf, bytesOfToken };
}

// The merges, in order, as pairs of ids of three bytes each; a pair's token is that of both texts together.
function mergeTables(data, tokens) {
  const outside = new Set(data.outside), packed = bytesOfBinary(atob(data.merges));
  const ranks = new Map(), vocabulary = new Map();
  tokens.forEach((token, id) => { if (!outside.has(id)) vocabulary.set(token, id); });
  const idAt = (i) => packed[i] | packed[i + 1] << 8 | packed[i + 2] << 16;
  const key = (left, right) => left * 2 ** 24 + right;
  for (let i = 0; i < packed.length; i += 6) ranks.set(key(idAt(i), idAt(i + 3)), i / 6);
  const mergedOf = (rank) => vocabulary.get(tokens[idAt(6 * rank)] + tokens[idAt(6 * rank + 3)]);
  return { vocabulary, merge: (ids) => mergePairs(ids, (left, right) => ranks.get(key(left, right)), mergedOf) };
}

// A function that cuts a text at the added tokens that it has: parts {text, start, id of an added token}.
function addedFinder({ pattern, ids }) {
  const regex = new RegExp(pattern, "gu"), idOf = new Map(ids);
  return (text) => {
    const parts = [];
    let end = 0;
    const textUntil = (stop) => { if (stop > end) parts.push({ text: text.slice(end, stop), start: end }); };
    for (const { 0: name, index } of text.matchAll(regex)) {
      if (!idOf.has(name)) continue;   // special tokens are text, but no other token is found inside of their names
      textUntil(index);
      parts.push({ text: name, start: index, id: idOf.get(name) });
      end = index + name.length;
    }
    textUntil(text.length);
    return parts;
  };
}

// Units with the normalised text of a part that begins at `start`. Where NFC changes a run of characters, they are one
// unit: it joins no ASCII character with what is before it, so each run from one to the next is normalised by itself.
function normalisedUnits(text, start, normalizers) {
  const runs = normalizers.includes("NFC") ? text.match(/[\0-\x7f][^\0-\x7f]*|[^\0-\x7f]+/gu) || [] : [text];
  let end = start;
  const units = runs.flatMap((run) => {
    const from = end, normalised = normalizers.includes("NFC") ? run.normalize("NFC") : run;
    end += run.length;
    return normalised === run ? unitsOf(run, from) : [{ text: normalised, start: from, end }];
  });
  if (normalizers.includes("Replace")) for (const unit of units) unit.text = unit.text.replaceAll(" ", SPACE_MARK);
  if (normalizers.includes("Prepend") && units.length) units.unshift({ text: SPACE_MARK, start, end: start });
  return units;
}

// One step of the pre-tokenizer. A word is {text, extra, first}: `extra` characters in front are not of the text, and
// `first` is whether the text begins with it.
function steppedWord(word, step) {
  if (step.kind === "replace") return [{ ...word, text: word.text.replaceAll(" ", SPACE_MARK) }];
  if (step.kind === "split") return splitWord(word, step);
  if (word.text.startsWith(step.prefix) || (step.only_first && !word.first)) return [word];
  return [{ ...word, text: step.prefix + word.text, extra: 1 }];
}

function splitWord({ text, extra, first }, { regex, behavior, invert }) {
  const parts = [], joined = [];
  let end = 0;
  const add = (stop, matched) => {
    if (stop > end) parts.push({ text: text.slice(end, stop), matched: matched !== invert });
    end = stop;
  };
  for (const match of text.matchAll(regex)) {
    add(match.index, false);
    add(match.index + match[0].length, true);
  }
  add(text.length, false);
  parts.forEach((part, i) => {
    const before = i > 0 && parts[i - 1].matched;
    const joins = { Isolated: false, Contiguous: part.matched === before, MergedWithPrevious: part.matched && !before,
      MergedWithNext: before && !part.matched }[behavior];
    if (joins && i > 0) joined[joined.length - 1] += part.text;
    else joined.push(part.text);
  });
  return joined.map((part, i) => ({ text: part, extra: i ? 0 : extra, first: first && i === 0 }));
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

function visibleMark(character) {
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
      parts.push(visibleMark(character) || character);
      i += size;
    } catch {   // no character begins here
      parts.push(`\u2039${bytes[i++].toString(16).padStart(2, "0")}\u203a`);
    }
  }
  return parts.join("");
}
