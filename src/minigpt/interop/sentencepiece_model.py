"""SentencePiece's tokenizer.model -> the content of a tokenizer.json, without any library.

The file is a protocol buffer, `ModelProto` of sentencepiece_model.proto (github.com/google/sentencepiece). It is
untrusted: every length is checked, and a tokenizer that may lose text is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from minigpt.data.tokenizers.huggingface_checks import SPACE
from minigpt.errors import UserError

# Field numbers of the messages, and values of their enums.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_MODEL_TYPE, _BPE = 3, 2
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_SPACES, _ESCAPE_SPACES = 2, 3, 4, 5
_SUFFIX = 24

_LONGEST_PIECE = 128
"""Longer pieces are refused: time is quadratic in their length. SentencePiece's own limit is 16 unless changed."""


def sentencepiece_content(file: bytes) -> dict[str, Any]:
    """A tokenizer.json with the same tokens, for a BPE with byte fallback such as Llama 2's.

    Args:
        file: the bytes of tokenizer.model.

    Raises:
        UserError: the file is damaged, is not such a BPE, or changes text irreversibly.
    """
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(file):
            if number == _PIECES:
                fields = dict(_fields(value))
                pieces.append((fields[_PIECE].decode(), 0.0 + fields.get(_SCORE, 0.0), 0 + fields.get(_TYPE, _NORMAL)))
            elif number == _TRAINER:
                trainer |= dict(_fields(value))
            elif number == _NORMALIZER:
                normalizer |= dict(_fields(value))
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError, struct.error):
        raise UserError("not a tokenizer.model of SentencePiece, or damaged") from None
    _check(pieces, trainer, normalizer)
    return _content(pieces, prefix=bool(normalizer.get(_DUMMY_PREFIX, 1)))


def _check(pieces: list[tuple[str, float, int]], trainer: dict[int, Any], normalizer: dict[int, Any]) -> None:
    if not pieces:
        raise UserError("not a tokenizer.model of SentencePiece: it has no pieces")
    if trainer.get(_MODEL_TYPE, 1) != _BPE:
        raise UserError("its model is not BPE, the only one that is supported")
    if len({piece for piece, _, _ in pieces}) < len(pieces):
        raise UserError("a piece appears twice")
    if normalizer.get(_CHARSMAP):
        raise UserError("its normalizer changes characters irreversibly; train with normalization_rule_name=identity")
    if normalizer.get(_EXTRA_SPACES, 1):
        raise UserError("its normalizer removes spaces; train with remove_extra_whitespaces=false")
    if not normalizer.get(_ESCAPE_SPACES, 1) or trainer.get(_SUFFIX):
        raise UserError(f"it does not write spaces as {SPACE!r} in front of words")
    if sum(kind == _BYTE for _, _, kind in pieces) != 256:  # one for each byte
        raise UserError("it has no byte fallback and would lose characters; train with byte_fallback=true")
    if any(len(piece) > _LONGEST_PIECE for piece, _, kind in pieces if kind == _NORMAL):
        raise UserError(f"a piece has more than {_LONGEST_PIECE} characters")
    marked = [piece for piece, _, kind in pieces if kind == _USER_DEFINED]
    if marked and (normalizer.get(_DUMMY_PREFIX, 1) or any(SPACE in piece for piece in marked)):
        raise UserError(
            f"it has the user-defined symbol {marked[0]!r:.40}, beside which SentencePiece treats spaces otherwise "
            "than for `tokenizers`: save a tokenizer.json with transformers"
        )
    known = {_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE}
    if other := next((piece for piece, _, kind in pieces if kind not in known), None):
        raise UserError(f"the piece {other!r:.40} is of a type that is not supported")


def _content(pieces: list[tuple[str, float, int]], *, prefix: bool) -> dict[str, Any]:
    vocab = {piece: token for token, (piece, _, _) in enumerate(pieces)}
    normal = {piece: score for piece, score, kind in pieces if kind == _NORMAL}
    added = [
        {
            **{"id": vocab[piece], "content": piece, "single_word": False, "lstrip": False, "rstrip": False},
            **{"normalized": False, "special": kind != _USER_DEFINED},
        }
        for piece, _, kind in pieces
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    back += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    start = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [*start, replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": {"type": "BPE", "vocab": vocab, "merges": _merges(normal, vocab), "byte_fallback": True},
    }


def _merges(scores: dict[str, float], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, in SentencePiece's order: the highest score first."""
    found = []
    for piece, score in scores.items():
        for i in range(1, len(piece)):
            first, second = piece[:i], piece[i:]
            if first in scores and second in scores:
                found.append((-score, vocab[first], vocab[second], first, second))
    return [(first, second) for *_, first, second in sorted(found)]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protocol buffer: int, float, or bytes."""
    i = 0
    while i < len(message):
        key, i = _varint(message, i)
        match key & 7:
            case 0:
                value, i = _varint(message, i)
                yield key >> 3, value
            case 1:
                yield key >> 3, struct.unpack_from("<d", message, i)[0]
                i += 8
            case 2:
                length, i = _varint(message, i)
                if length > len(message) - i:
                    raise ValueError("a field is longer than its message")
                yield key >> 3, message[i : i + length]
                i += length
            case 5:
                yield key >> 3, struct.unpack_from("<f", message, i)[0]
                i += 4
            case _:
                raise ValueError("an unknown type of field")


def _varint(message: bytes, i: int) -> tuple[int, int]:
    """An integer of at most ten bytes, seven bits in each, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[i]
        value |= (byte & 0x7F) << shift
        i += 1
        if byte < 0x80:  # the last byte has no high bit
            return value, i
    raise ValueError("an integer has more than ten bytes")
