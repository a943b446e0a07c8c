"""The live page's tokenizers (tokenizer.js) against those of data/tokenizers, and what they refuse."""

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
import tokenizer_families as families
from live_texts import PIECES, hard_texts
from node import run_node
from scripts import ROOT
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

from minigpt.data.tokenizers.base import BytesTokenizer, CharsTokenizer, Tokenizer, decode
from minigpt.data.tokenizers.bpe import SPLIT_PATTERN, SPLITS, BPETokenizer, well_formed
from minigpt.data.tokenizers.huggingface import HuggingFaceTokenizer
from minigpt.errors import UserError
from minigpt.pages.live.split_patterns import javascript_pattern
from minigpt.pages.live.tokenizer_data import tokenizer_data
from minigpt.pages.tokens import label

SCRIPTS = [ROOT / "src" / "minigpt" / "pages" / "live" / "tokenizer.js"]
TEXTS = hard_texts(300)
MORE_TEXTS = hard_texts(2000, seed=1)
DEEPSEEK = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]


@functools.cache
def trained() -> BPETokenizer:
    return BPETokenizer.train([families.TEXT, *PIECES[:-1], *TEXTS[:100]], 500)


def bpe(name: str) -> BPETokenizer:
    ranks = trained().ranks
    return BPETokenizer(SPLITS[name], ranks, trained().special_tokens | {"<|user|>": len(ranks) + 1})


def splitting(*steps: Any, **settings: Any) -> dict[str, Any]:
    """A byte-level BPE with these steps before ByteLevel."""
    bytes_step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Sequence([*steps, bytes_step])
    return families.byte_level(split, last=families.special("<|endoftext|>"), **settings)


def with_added_tokens() -> dict[str, Any]:
    """Added tokens that overlap, that need normalising, and that a special token hides."""
    names = ["ab", "aba", "e\u0301", "<|user", "|>", "  "]
    tokens = [AddedToken(name, normalized=i % 2 == 0) for i, name in enumerate(names)]
    return families.byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        normalizer=normalizers.NFC(),
        last=[*families.special("<|endoftext|>", "<|user|>"), *tokens],
    )


def metaspace(scheme: str) -> dict[str, Any]:
    split = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
    return families.fallback(None, split, strip=True, added=["<table>", "▁▁"])


HUGGING_FACE: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: functools.partial(families.family, name) for name in families.BYTE_LEVEL | families.SENTENCEPIECE},
    "DeepSeek": lambda: splitting(*(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in DEEPSEEK)),
    "o200k": lambda: splitting(pre_tokenizers.Split(Regex(SPLITS["o200k_base"]), "isolated")),
    "digits together": lambda: splitting(pre_tokenizers.Digits(False), ignore_merges=True),
    "joined to the next": lambda: splitting(pre_tokenizers.Split(" ", "merged_with_next")),
    "not matched": lambda: splitting(pre_tokenizers.Split(Regex(r"\s"), "contiguous", invert=True)),
    "space in front": lambda: families.byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=True), last=families.special("<|endoftext|>")
    ),
    "added tokens": with_added_tokens,
    "words of Metaspace": lambda: metaspace("always"),
    "first word of Metaspace": lambda: metaspace("first"),
}
KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": BytesTokenizer,
    "chars": lambda: CharsTokenizer.of([*TEXTS, *MORE_TEXTS]),
    **{f"bpe {name}": functools.partial(bpe, name) for name in SPLITS},
    **{name: lambda make=make: HuggingFaceTokenizer(make()) for name, make in HUGGING_FACE.items()},  # type: ignore[misc]
}
_ALL = """
return data.tokenizers.map(({ data: packed, drawn }) => {
  const tokenizer = makeTokenizer(packed), all = Array.from({ length: tokenizer.vocabSize }, (_, id) => id);
  const cut = data.texts.map((text) => tokenizer.encodeWithOffsets(text));
  return { ids: cut.map((tokens) => tokens.map((token) => token.id)),
    places: cut.map((tokens) => tokens.map(({ start, end }) => [start, end])), bytes: all.map(tokenizer.bytes),
    labels: [...all, all.length].map(tokenizer.label), beyond: tokenizer.bytes(all.length),
    texts: drawn.map(tokenizer.decode),
    ends: [tokenizer.endOfText, tokenizer.beginOfText], encoded: tokenizer.encode(data.texts[5]) };
});
"""


@functools.cache
def tokenizers() -> dict[str, Tokenizer]:
    return {name: make() for name, make in KINDS.items()}


def drawn(tokenizer: Tokenizer) -> list[list[int]]:
    """Random tokens, as a model writes them: also parts of characters."""
    chance = random.Random(0)
    return [[chance.randrange(tokenizer.vocab_size) for _ in range(6)] for _ in range(200)]


@functools.cache
def in_javascript() -> dict[str, Any]:
    """What the scripts say, of all tokenizers in one process of Node."""
    sent = [{"data": tokenizer_data(tokenizer), "drawn": drawn(tokenizer)} for tokenizer in tokenizers().values()]
    return dict(zip(tokenizers(), run_node(SCRIPTS, _ALL, {"texts": TEXTS, "tokenizers": sent}), strict=True))


@pytest.mark.slow
def test_2000_texts_have_the_ids_that_python_gives_them() -> None:
    code = "return data.all.map(makeTokenizer).map((each) => data.texts.map((text) => each.encode(text)));"
    packed = [tokenizer_data(tokenizer) for tokenizer in tokenizers().values()]
    found = run_node(SCRIPTS, code, {"texts": MORE_TEXTS, "all": packed})
    for tokenizer, ids in zip(tokenizers().values(), found, strict=True):
        assert ids == [tokenizer.encode(text) for text in MORE_TEXTS]


@pytest.mark.parametrize("name", KINDS)
def test_texts_have_the_ids_that_python_gives_them(name: str) -> None:
    tokenizer, found = tokenizers()[name], in_javascript()[name]
    for text, ids in zip(TEXTS, found["ids"], strict=True):
        assert ids == tokenizer.encode(text), ascii(text)
    assert found["encoded"] == found["ids"][5]
    assert found["ends"] == [tokenizer.end_of_text, tokenizer.begin_of_text]


@pytest.mark.parametrize("name", KINDS)
def test_tokens_have_the_bytes_labels_and_texts_that_python_gives_them(name: str) -> None:
    tokenizer, found = tokenizers()[name], in_javascript()[name]
    all_tokens = range(tokenizer.vocab_size)
    assert [bytes(each) for each in found["bytes"]] == [tokenizer.decode_bytes([token]) for token in all_tokens]
    assert found["labels"] == [label(tokenizer, token) for token in [*all_tokens, tokenizer.vocab_size]]
    assert found["beyond"] == []
    assert found["texts"] == [decode(tokenizer, tokens) for tokens in drawn(tokenizer)]


@pytest.mark.parametrize("name", KINDS)
def test_tokens_lie_in_the_text_one_after_the_other_and_those_of_one_character_together(name: str) -> None:
    tokenizer, found = tokenizers()[name], in_javascript()[name]
    for text, ids, places in zip(TEXTS, found["ids"], found["places"], strict=True):
        units = well_formed(text).encode("utf-16-le")
        covered, inside = 0, b""
        for token, (start, end) in zip(ids, places, strict=True):
            if start >= covered and tokenizer.lossless:  # the tokens so far end with a character
                assert inside == units[: 2 * covered].decode("utf-16-le").encode(), ascii(text)
            assert start <= covered <= end, ascii(text)
            covered, inside = max(covered, end), inside + tokenizer.decode_bytes([token])
        assert 2 * covered == len(units), ascii(text)


def test_a_character_outside_the_alphabet_is_named_as_python_names_it() -> None:
    tokenizer = CharsTokenizer("ab🙂")
    message = run_node(
        SCRIPTS,
        "try { makeTokenizer(data).encode('a\\u{1f642}b\\u00e9'); } catch (error) { return error.message; }",
        tokenizer_data(tokenizer),
    )
    with pytest.raises(UserError) as python:
        tokenizer.encode("a🙂bé")
    assert str(python.value).startswith(message)
    assert message.startswith("character 'é' (U+00E9) at position 3 ")


PATTERNS = [
    *(r"a++|b", r"(?:a|ab)++b|.", r"[a-c\d]+", r"\p{Lu}\p{Ll}+?", r"[\-\]^]|\r?\n", r"(ab)+|a?"),
    *(
        r"[^\S\r\n]+|\D",
        r"\p{N}{2}|\p{N}{1,}",
        r" ?(?=\p{L})\p{M}*",
        r"é+|[А-я一-龥]",
        r"a*?b",
        r"\.|\/|\'|\$",
        *(r"(?i:'[stk]|LL)|\S", SPLIT_PATTERN),
    ),
]


def test_a_split_pattern_cuts_as_in_the_tokenizers_library() -> None:
    texts = [well_formed(text) for text in [*TEXTS[:200], "aab", "a1.b/'$^-]", "Éé 'K 'ſ"]]
    sent = [javascript_pattern(pattern, oniguruma=True) for pattern in PATTERNS]
    code = """return data.patterns.map((pattern) => data.texts.map((text) => splitWord({ text },
      { regex: new RegExp(pattern, "gu"), behavior: "Isolated", invert: false }).map((word) => word.text)));"""
    for pattern, cut in zip(PATTERNS, run_node(SCRIPTS, code, {"patterns": sent, "texts": texts}), strict=True):
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        for text, words in zip(texts, cut, strict=True):
            assert words == [word for word, _ in split.pre_tokenize_str(text)] or not text, (pattern, ascii(text))


REFUSED = [
    *(
        r"\w+",
        r"\bx",
        r"^a",
        r"a$",
        r"(?<=a)b",
        r"(?<name>a)",
        r"(?>a)",
        r"(?i)a",
        r"[[:alpha:]]",
        r"[a&&b]",
        r"[a[b]]",
    ),
    *(r"\p{Greek}", r"\x41", r"a{1,3}+", r"a{,3}", r"a{2}?", "a**", "*a", "a|*", "(a", "a)", "[a", "[]a]"),
    *(r"(?i:ss)", r"(?i:é)", r"(?i:[a-c])", r"(?i:\p{L})", "a\\"),
]


@pytest.mark.parametrize("pattern", REFUSED)
def test_a_pattern_that_may_mean_another_thing_in_javascript_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match="cannot say in JavaScript"):
        javascript_pattern(pattern, oniguruma=True)


def test_a_step_or_token_that_the_page_does_not_know_is_refused() -> None:
    punctuation = HuggingFaceTokenizer(splitting(pre_tokenizers.Punctuation()))
    with pytest.raises(UserError, match="has the pre_tokenizer 'Punctuation'"):
        tokenizer_data(punctuation)
    saved = with_added_tokens()
    saved["added_tokens"][-1]["lstrip"] = True
    with pytest.raises(UserError, match="added token '  ' with lstrip"):
        tokenizer_data(HuggingFaceTokenizer(saved))
