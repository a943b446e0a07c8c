// Hugging Face's byte-level and SentencePiece-style BPE, as the `tokenizers` library cuts text: added tokens are found
// first, then the text is normalised, split into words, and merged.
const SPACE_MARK = "\u2581";   // SentencePiece's character for a space

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
  const outside = new Set(data.outside), packed = bytesOfBinary(atob(data.merges)), ranks = new Map(), vocabulary = new Map();
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
