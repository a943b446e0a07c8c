"""A tokenizer in llama.cpp's terms: token strings, their types, merges, and the name of the pattern that splits text.

llama.cpp knows split patterns by name only, so a tokenizer with another pattern is refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minigpt.data.tokenizers.base import BytesTokenizer, CharsTokenizer, Tokenizer
from minigpt.data.tokenizers.bpe import END_OF_TEXT, SPLITS, BPETokenizer, unused_token
from minigpt.data.tokenizers.huggingface import HuggingFaceTokenizer
from minigpt.errors import UserError
from minigpt.files import note
from minigpt.interop.tokenizer_files import last_pairs, stand_ins

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""llama.cpp's types of tokens: from text; special; found in text before it is split; without use."""

_QWEN2 = SPLITS["bpe"].replace(r"\p{N}{1,3}", r"\p{N}")
PRE_TOKENIZERS = {
    SPLITS["bpe"]: "llama-bpe",
    SPLITS["gpt2"]: "gpt-2",
    SPLITS["cl100k_base"]: "llama-bpe",
    SPLITS["o200k_base"]: "gpt-4o",
    _QWEN2: "qwen2",
}
"""Split pattern -> llama.cpp's name for it. Llama 3's pattern is that of `bpe`."""

DIFFERENCES = {
    SPLITS["cl100k_base"]: "white space with a line break at the end of a text",
    SPLITS["o200k_base"]: "words with capitals outside ASCII, and combining marks",
}
"""Split pattern -> where llama.cpp's version of it cuts elsewhere."""

_UNREACHABLE = f"{END_OF_TEXT} {END_OF_TEXT}"
"""A merge that no text reaches. llama.cpp needs a list of merges, and a GGUF has no empty lists."""


class Vocabulary(NamedTuple):
    """What a GGUF says about a tokenizer."""

    pre: str
    """Name of the split pattern."""
    tokens: list[str]
    """In order of ids: GPT-2's printable stand-ins for bytes, but special and added tokens as text."""
    types: list[int]
    merges: list[str]
    """Two tokens with a space between them, first merges first."""


def vocabulary(tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    """A tokenizer in llama.cpp's terms, padded to the rows of the model's embedding.

    Raises:
        UserError: llama.cpp would split text otherwise, two tokens look alike there, or the model has fewer rows than
            the tokenizer has tokens.
    """
    match tokenizer:
        case BytesTokenizer():
            found = _of_bytes()
        case CharsTokenizer():
            found = _of_characters(tokenizer.alphabet)
        case BPETokenizer():
            found = _of_bpe(tokenizer)
        case HuggingFaceTokenizer():
            found = _of_huggingface(tokenizer)
        case _:
            raise UserError(f"data.tokenizer: llama.cpp has no counterpart of {type(tokenizer).__name__}")
    if len(found.tokens) > vocab_size:
        raise UserError(f"model.vocab_size={vocab_size}: the tokenizer has {len(found.tokens)} tokens")
    padding = range(len(found.tokens), vocab_size)
    found = found._replace(
        tokens=[*found.tokens, *map(unused_token, padding)],
        types=[*found.types, *(UNUSED for _ in padding)],
        merges=found.merges or [_UNREACHABLE],
    )
    if len(set(found.tokens)) < vocab_size:  # llama.cpp aborts
        twice = next(token for i, token in enumerate(found.tokens) if token in found.tokens[:i])
        raise UserError(f"the tokenizer has two tokens that a GGUF writes as {twice!r:.60}: train with another one")
    return found


def _of_bytes() -> Vocabulary:
    """Each byte's stand-in, and no merges. Any split pattern does; llama.cpp does not tidy spaces with Qwen2's."""
    symbols = stand_ins(bytes(range(256)))
    return Vocabulary("qwen2", [*symbols, END_OF_TEXT], [NORMAL] * 256 + [CONTROL], [])


def _of_characters(alphabet: str) -> Vocabulary:
    """Merges put the bytes of each character together, from its first byte on, and nothing else.

    No pattern splits a character, and no merge crosses from one into the next: a character never begins with a
    continuation byte. llama.cpp drops characters outside the alphabet.
    """
    tokens = [stand_ins(character.encode()) for character in alphabet]
    steps = {(token[:i], token[i]): None for token in tokens for i in range(1, len(token))}
    types = [NORMAL] * len(tokens) + [CONTROL]
    return Vocabulary("qwen2", [*tokens, END_OF_TEXT], types, [" ".join(step) for step in steps])


def _of_bpe(tokenizer: BPETokenizer) -> Vocabulary:
    pre = _pre_tokenizer(tokenizer.pattern)
    special = sorted(tokenizer.special_tokens, key=tokenizer.special_tokens.__getitem__)
    tokens = [*map(stand_ins, tokenizer.ranks), *special]
    # A token that no merge makes is reached as a whole word only: tiktoken looks words up first, and so does llama-bpe.
    # GPT-2's tables have no such tokens.
    merges = [f"{stand_ins(left)} {stand_ins(right)}" for left, right in filter(None, last_pairs(tokenizer))]
    return Vocabulary(pre, tokens, [NORMAL] * len(tokenizer.ranks) + [CONTROL] * len(special), merges)


def _of_huggingface(tokenizer: HuggingFaceTokenizer) -> Vocabulary:
    saved = tokenizer.to_dict()["tokenizer"]
    pre = _pre_tokenizer(_pattern(saved.get("pre_tokenizer")))
    if saved.get("normalizer"):
        note("note: llama.cpp does not normalize text to NFC, as this tokenizer does; text in NFC is the same")
    tokens = list(map(unused_token, range(tokenizer.vocab_size)))
    types = [UNUSED] * tokenizer.vocab_size
    for name, token in saved["model"]["vocab"].items():
        tokens[token], types[token] = name, NORMAL
    for added in saved.get("added_tokens") or []:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in saved["model"]["merges"]]
    return Vocabulary(pre, tokens, types, merges)


def _pattern(pre_tokenizer: Any) -> str:
    """The pattern of a tokenizer.json that splits text with one pattern only.

    Raises:
        UserError: it has several steps.
    """
    match pre_tokenizer:
        case {"type": "ByteLevel"} if pre_tokenizer.get("use_regex", True):
            return SPLITS["gpt2"]
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"},
                {"type": "ByteLevel", "use_regex": False},
            ],
        } if not pre_tokenizer["pretokenizers"][0].get("invert"):
            return pattern
    raise UserError("the tokenizer's pre_tokenizer is none of those that llama.cpp has a name for")


def _pre_tokenizer(pattern: str) -> str:
    """llama.cpp's name for a split pattern, with a note where its version of it cuts elsewhere.

    Raises:
        UserError: it has no name for it.
    """
    if pattern not in PRE_TOKENIZERS:
        raise UserError(
            f"the tokenizer splits text by {pattern!r:.80}, which llama.cpp has no name for: train with a tokenizer of "
            "GPT-2, Llama 3 or Qwen, or with data.tokenizer bpe:N"
        )
    if pattern in DIFFERENCES:
        note(f"note: llama.cpp may split {DIFFERENCES[pattern]} otherwise; other texts are the same")
    return PRE_TOKENIZERS[pattern]
