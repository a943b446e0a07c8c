"""What a tokenizer.json must be before it is run: it loses no text, says which bytes a token has, and ends in time.

Two kinds of BPE pass. Byte-level (GPT-2, GPT-NeoX, Llama 3, Qwen, OLMo 2): each byte is a printable symbol.
SentencePiece-style (Llama 2, TinyLlama, Mistral, Gemma): tokens are text with "▁" for a space, and a character without
a token becomes the tokens <0x00> to <0xFF> of its bytes (`byte_fallback`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from minigpt.data.tokenizers.bpe import MAX_VOCAB_SIZE, byte_symbols, well_formed
from minigpt.errors import UserError

SPACE = "▁"
"""U+2581, SentencePiece's character for a space."""
BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))
"""The tokens of single bytes in a SentencePiece-style BPE."""
_NOT_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
"""Bytes that no text has in UTF-8; GPT-NeoX has no tokens for some."""
_MAX_PATTERN = 10_000


def fallback_bytes(name: str) -> bytes:
    """Bytes of a token of a SentencePiece-style BPE: one byte for <0x0A>, else its text with spaces for "▁"."""
    if name in BYTE_TOKENS:
        return bytes([int(name[3:5], 16)])
    return name.replace(SPACE, " ").encode()


def uses_byte_fallback(saved: dict[str, Any]) -> bool:
    """Whether a parsed tokenizer.json is SentencePiece-style, not byte-level."""
    return saved["model"].get("byte_fallback") is True


def read_vocabulary(saved: dict[str, Any]) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
    """The model's tokens with their ids, and the added tokens by content.

    Raises:
        UserError: it is not a BPE, ids are not unique, or some text could not be encoded.
    """
    vocab: dict[str, int] = saved["model"]["vocab"]
    added = {token["content"]: {"special": False} | token for token in saved.get("added_tokens") or []}
    if saved["model"].get("type", "BPE") != "BPE":  # old files do not say
        raise UserError(f"its model is {saved['model']['type']!r:.40}: only BPE is supported")
    if len(added) < len(saved.get("added_tokens") or []):
        raise UserError("an added token appears twice")
    ids = [*vocab.items(), *((name, token["id"]) for name, token in added.items())]
    for name, token in ids:
        if type(token) is not int or not 0 <= token < MAX_VOCAB_SIZE:
            raise UserError(f"the id of {name!r:.40} is {token!r:.40}: needs an integer from 0 to {MAX_VOCAB_SIZE - 1}")
        if not isinstance(name, str) or not name or well_formed(name) != name:
            raise UserError(f"the token with id {token} is not text")
    owner: dict[int, str] = {}
    for name, token in ids:
        if owner.setdefault(token, name) != name or vocab.get(name, token) != token:
            raise UserError(f"the tokens {name!r:.40} and {owner[token]!r:.40} share an id, or one of them has two")
    if uses_byte_fallback(saved):
        if missing := BYTE_TOKENS - vocab.keys():
            raise UserError(f"has no token {min(missing)}: its byte_fallback would lose characters")
    else:
        _check_byte_symbols(vocab, added)
    return vocab, added


def _check_byte_symbols(vocab: dict[str, int], added: dict[str, dict[str, Any]]) -> None:
    symbols = byte_symbols()
    missing = {symbols[character] for character in symbols.keys() - vocab.keys()} - _NOT_IN_UTF8
    if missing:
        raise UserError(f"has no token for the byte 0x{min(missing):02x}: it is not a byte-level BPE")
    for name in vocab.keys() - added.keys():
        if not symbols.keys() >= set(name):
            raise UserError(f"the token {name!r:.40} is not made of bytes: it is not a byte-level BPE")


def without_merges_to(model: dict[str, Any], special: set[str]) -> dict[str, Any]:
    """A SentencePiece-style model that makes no special token, and no byte such as <0x0A>, of their names in a text.

    SentencePiece never does. Converted files list a merge wherever two tokens together are a third.
    """
    merges = [merge for merge in model["merges"] if "".join(_pair(merge)) not in special | BYTE_TOKENS]
    return {**model, "merges": merges}


def _pair(merge: Any) -> list[str]:
    """The two tokens of a merge: in one string in files before 2024, a list since."""
    pair: list[str] = merge.split(" ") if isinstance(merge, str) else merge
    if len(pair) != 2:
        raise UserError(f"the merge {merge!r:.40} does not join two tokens")
    return pair


def check_model(model: dict[str, Any], vocab: dict[str, int], special: set[str]) -> None:
    """Refuse invalid merges, BPE dropout, word affixes, and special tokens that text could be encoded to."""
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UserError(f"its model has {name}={model[name]!r:.40}, which does not decode to exact bytes")
    made = set()
    for merge in model["merges"]:
        pair = _pair(merge)
        if unknown := [name for name in (*pair, pair[0] + pair[1]) if name not in vocab]:
            raise UserError(f"a merge names {unknown[0]!r:.40}, which is not in the vocabulary")
        made.add(pair[0] + pair[1])
    for name in special & vocab.keys():
        if len(name) == 1 or name in made or model.get("ignore_merges"):
            raise UserError(f"the special token {name!r:.40} could be encoded from text")


def check_steps(saved: dict[str, Any]) -> bool:
    """Refuse normalizers and pre-tokenizers that may lose text. Returns whether they leave text unchanged."""
    if uses_byte_fallback(saved):
        _check_normalizers(saved, ("NFC", "Prepend", "Replace"))
        _check_splits(saved, ("Metaspace", "Split", "Digits", "Punctuation"))
        _check_fallback_decoder(saved)
        return False  # "▁" in a text comes back as a space
    steps = _flat(saved.get("pre_tokenizer"), "pretokenizers")
    byte_level = [step for step in steps if step["type"] == "ByteLevel"]
    if len(byte_level) != 1:
        raise UserError(
            "its pre_tokenizer needs exactly one ByteLevel step, or its model byte_fallback: "
            "only byte-level and SentencePiece-style BPE are supported"
        )
    _check_splits(saved, ("ByteLevel", "Split", "Digits", "Punctuation"))
    return not _check_normalizers(saved, ("NFC",)) and not byte_level[0].get("add_prefix_space", True)


def keeping_unmatched(step: Any) -> Any:
    """A pre-tokenizer in which a Split that removes what its pattern does not match keeps it as a word of its own.

    OLMo 2's tokenizer.json is such, as tiktoken does the same. Their patterns match all text, so no id changes.
    """
    match step:
        case {"type": "Sequence"}:
            return {**step, "pretokenizers": [keeping_unmatched(part) for part in step["pretokenizers"]]}
        case {"type": "Split", "behavior": "Removed", "invert": True}:
            return {**step, "behavior": "Isolated", "invert": False}
    return step


def _check_normalizers(saved: dict[str, Any], known: tuple[str, ...]) -> int:
    """The number of normalizers. Prepend and Replace may only write "▁" in front, and for spaces."""
    steps = list(_flat(saved.get("normalizer"), "normalizers"))
    for step in steps:
        if step["type"] not in known:
            raise UserError(
                f"its normalizer {step['type']!r:.40} changes text irreversibly; supported here: {', '.join(known)}"
            )
        if step["type"] == "Prepend" and step["prepend"] != SPACE:
            raise UserError(f"its normalizer prepends {step['prepend']!r:.40} to every text, not {SPACE!r}")
        if step["type"] == "Replace" and (step["pattern"], step["content"]) != ({"String": " "}, SPACE):
            raise UserError(f"its normalizer replaces {step['pattern']!r:.60}; only spaces by {SPACE!r} are supported")
    return len(steps)


def _check_splits(saved: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuse pre-tokenizers that drop characters or may take unbounded time."""
    for step in _flat(saved.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] not in known or step.get("behavior") == "Removed":
            raise UserError(f"its pre_tokenizer {step['type']!r:.40} may drop characters")
        if step["type"] == "Metaspace" and step["replacement"] != SPACE:
            raise UserError(f"its pre_tokenizer writes {step['replacement']!r:.40} for spaces, not {SPACE!r}")
        pattern = step.get("pattern", {}).get("Regex", "")
        if len(pattern) > _MAX_PATTERN:
            raise UserError(f"its split pattern has {len(pattern)} characters, more than {_MAX_PATTERN}")
        if _may_explode(pattern):
            raise UserError(f"its split pattern {pattern!r:.60} has nested quantifiers, which may never end")


def _check_fallback_decoder(saved: dict[str, Any]) -> None:
    """Refuse a decoder by which tokens have other bytes than `fallback_bytes` says, but for a space in front."""
    for step in _flat(saved.get("decoder"), "decoders"):
        match step:
            case {"type": "ByteFallback" | "Fuse"} | {"type": "Metaspace", "replacement": "▁"}:
                pass
            case {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}:
                pass
            case {"type": "Strip", "content": " ", "start": 0 | 1, "stop": 0}:
                pass
            case _:
                raise UserError(f"its decoder {step['type']!r:.40} changes text in a way that minigpt does not know")


def _flat(step: dict[str, Any] | None, parts: str) -> Iterator[dict[str, Any]]:
    """The steps of a possibly nested Sequence."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for part in step[parts]:
            yield from _flat(part, parts)
    else:
        yield step


def _may_explode(pattern: str) -> bool:
    """Whether a regex may backtrack exponentially: it repeats a group that contains a quantifier or alternatives.

    Oniguruma, which `tokenizers` uses, stops after ten million steps, a quarter of a second, but at each position of a
    text. Known tokenizers repeat no groups. Backreferences and group calls are refused too.
    """
    plain = re.sub(r"\\[pP]\{[^}]*\}", "x", pattern)
    if re.search(r"(?<!\\)(?:\\\\)*\\[1-9gk]", plain):
        return True
    plain = re.sub(r"\\.", "x", plain, flags=re.DOTALL)
    while plain != (inner := re.sub(r"\[\^?[^\[\]]+\]", "x", plain)):  # classes may hold classes
        plain = inner
    # For each open group, whether it can match in several ways.
    varies = [False]
    for i, character in enumerate(plain):
        if character == "(":
            varies.append(False)
        elif character == ")" and len(varies) > 1:
            inside = varies.pop()
            if inside and plain[i + 1 : i + 2] in ("*", "+", "{"):
                return True
            varies[-1] |= inside
        elif character in "*+|" or (character == "?" and plain[i - 1 : i] != "("):
            varies[-1] = True
        elif character == "{":
            varies[-1] |= re.match(r"\d+\}", plain[i + 1 :]) is None  # {3} has a fixed length
    return False
