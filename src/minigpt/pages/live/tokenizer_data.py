"""A tokenizer -> what tokenizer.js needs to give the same ids: plain types for the page's data."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from minigpt.data.tokenizers.base import BytesTokenizer, CharsTokenizer, Tokenizer
from minigpt.data.tokenizers.bpe import BPETokenizer
from minigpt.data.tokenizers.huggingface import HuggingFaceTokenizer
from minigpt.errors import UserError
from minigpt.pages.live.split_patterns import javascript_pattern, literal_pattern

_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What the pre-tokenizer ByteLevel splits by: GPT-2's pattern."""
_OPTIONS = ("single_word", "lstrip", "rstrip")
"""Of added tokens, which models of today do not use."""


def tokenizer_data(tokenizer: Tokenizer) -> dict[str, Any]:
    """The data of a tokenizer.

    Raises:
        UserError: JavaScript cannot cut text exactly as this tokenizer does.
    """
    return {
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "begin_of_text": tokenizer.begin_of_text,
        **_of_kind(tokenizer),
    }


def _of_kind(tokenizer: Tokenizer) -> dict[str, Any]:
    match tokenizer:
        case BytesTokenizer():
            return {"kind": "bytes"}
        case CharsTokenizer():
            return {"kind": "chars", "alphabet": tokenizer.alphabet}
        case BPETokenizer():
            return _bpe(tokenizer)
        case HuggingFaceTokenizer():
            return _huggingface(tokenizer)
    raise _refusal(f"is a {type(tokenizer).__name__}")


def _refusal(reason: str) -> UserError:
    return UserError(
        f"the tokenizer {reason}, which the live page cannot run: look into this model with `minigpt inspect`"
    )


def _bpe(tokenizer: BPETokenizer) -> dict[str, Any]:
    """The bytes of all tokens in merge order, one after the other, and the names of the special tokens after them."""
    special = tokenizer.special_tokens
    return {
        "kind": "bpe",
        "pattern": javascript_pattern(tokenizer.pattern, oniguruma=False),
        **_packed(tokenizer.ranks),
        "special": sorted(special, key=special.__getitem__),
    }


def _packed(tokens: list[bytes]) -> dict[str, Any]:
    return {"bytes": base64.b64encode(b"".join(tokens)).decode(), "lengths": [len(token) for token in tokens]}


def _huggingface(tokenizer: HuggingFaceTokenizer) -> dict[str, Any]:
    """The bytes of all tokens (of names, with byte_fallback), merges as pairs of ids, and the steps before merging."""
    from tokenizers import Tokenizer as Library  # only here: the other tokenizers do not need it

    library = Library.from_str(json.dumps(tokenizer.to_dict()["tokenizer"]))
    saved = json.loads(library.to_str())  # with all that older files leave out
    model = saved["model"]
    vocab: dict[str, int] = model["vocab"]
    names = library.get_vocab(with_added_tokens=True)
    tokens = [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size)]
    if model["byte_fallback"]:
        for name, token in names.items():
            tokens[token] = name.encode()
    ids = np.array([[vocab[name] for name in pair] for pair in model["merges"]], np.uint32).reshape(-1, 1)
    added = saved["added_tokens"]
    return {
        "kind": "huggingface",
        **_packed(tokens),
        "outside": sorted(set(range(tokenizer.vocab_size)) - set(vocab.values())),
        "merges": base64.b64encode(ids.astype("<u4").view(np.uint8)[:, :3].tobytes()).decode(),
        "ignore_merges": model["ignore_merges"],
        "byte_fallback": model["byte_fallback"],
        "normalizers": [step["type"] for step in _flat(saved["normalizer"], "normalizers")],
        "steps": [made for step in _flat(saved["pre_tokenizer"], "pretokenizers") for made in _steps(step)],
        "added": _added(token for token in added if not token["normalized"]),
        "added_normalised": _added(
            {**token, "content": library.normalizer.normalize_str(token["content"])} if library.normalizer else token
            for token in added
            if token["normalized"]
        ),
    }


def _flat(step: dict[str, Any] | None, parts: str) -> Iterator[dict[str, Any]]:
    """The steps of a possibly nested Sequence."""
    if step is not None and step["type"] == "Sequence":
        for part in step[parts]:
            yield from _flat(part, parts)
    elif step is not None:
        yield step


def _added(tokens: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A pattern that finds added tokens, longest first, and the ids of those that a text may be encoded to."""
    found = sorted(tokens, key=lambda token: len(token["content"]), reverse=True)
    for token in found:
        if not token["special"] and (option := next((o for o in _OPTIONS if token[o]), None)):
            raise _refusal(f"has an added token {token['content']!r:.40} with {option}")
    return {
        "pattern": "|".join(literal_pattern(token["content"]) for token in found) or "(?!)",
        "ids": [[token["content"], token["id"]] for token in found if not token["special"]],
    }


def _steps(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A pre-tokenizer in the terms of tokenizer.js."""
    match step:
        case {"type": "ByteLevel"}:
            if step["add_prefix_space"]:
                yield {"kind": "prefix", "prefix": " ", "only_first": False}
            if step["use_regex"]:
                yield _split(javascript_pattern(_WORDS, oniguruma=True))
        case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme}:
            yield {"kind": "replace"}
            if scheme != "never":
                yield {"kind": "prefix", "prefix": mark, "only_first": scheme == "first"}
            if step["split"]:
                yield _split(literal_pattern(mark), "MergedWithNext")
        case {"type": "Split", "pattern": {"String": text}}:
            yield _split(literal_pattern(text), step["behavior"], invert=step["invert"])
        case {"type": "Split", "pattern": {"Regex": pattern}}:
            yield _split(javascript_pattern(pattern, oniguruma=True), step["behavior"], invert=step["invert"])
        case {"type": "Digits", "individual_digits": individual}:
            yield _split(r"\p{N}", "Isolated" if individual else "Contiguous")
        case _:
            raise _refusal(f"has the pre_tokenizer {step['type']!r}")


def _split(pattern: str, behavior: str = "Isolated", *, invert: bool = False) -> dict[str, Any]:
    return {"kind": "split", "pattern": pattern, "behavior": behavior, "invert": invert}
