"""Hugging Face's tokenizer.json of a byte-level or SentencePiece-style BPE, run by the `tokenizers` library.

Such a file can describe other tokenizers and is untrusted. On opening, a tokenizer is refused, with the reason, if it
may lose text, decode to other bytes, or take unbounded time: see huggingface_checks.py.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from minigpt.cores import in_threads
from minigpt.data.sources.chunking import grouped
from minigpt.data.tokenizers.bpe import MAX_VOCAB_SIZE, byte_symbols, unused_token, well_formed
from minigpt.data.tokenizers.huggingface_checks import (
    BYTE_TOKENS,
    check_model,
    check_steps,
    fallback_bytes,
    keeping_unmatched,
    read_vocabulary,
    uses_byte_fallback,
    without_merges_to,
)
from minigpt.errors import UserError

ENDS_OF_TEXT = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<eos>",
    "<EOS>",
    "[EOS]",
    "<|eot_id|>",
    "<|im_end|>",
)
"""Names of the end-of-text token, in order of preference. Those that end a turn of a conversation come last, as most
files with them have another one too."""

CALL_CHARACTERS = 1 << 18
"""Characters per call into the library, which signals cannot interrupt: 0.1 to 1 second."""
_GAVE_UP = "the split pattern of the tokenizer gave up on a text"
_PROBE = "Hello  World's 12345 ?!\r\n\t" + "".join(f"{c * 40}!" for c in "a0 .\n") + "naïve 東京 🙂\0" + "ab 1\t" * 20
"""Test text, encoded on opening: every kind of character, and runs that make a bad split pattern fail."""
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
"""Settings of an added token that is found in a text as it is."""


class HuggingFaceTokenizer:
    """BPE from a tokenizer.json, run by `tokenizers`: GPT-2, GPT-NeoX, Llama, Mistral, Gemma, Qwen and similar."""

    def __init__(
        self, saved: dict[str, Any], end_of_text: str | int | None = None, vocab_size: int | None = None
    ) -> None:
        """Read the parsed content of the file.

        Args:
            saved: the content.
            end_of_text: name or id of the end-of-text token, used if the file has no token of ENDS_OF_TEXT.
            vocab_size: of the model. Models often have more rows than their tokenizer has tokens; the ids without a
                token are then named by `unused_token`. Special tokens with ids beyond the rows are dropped.

        Raises:
            UserError: it is neither a byte-level nor a SentencePiece-style BPE, or is damaged or harmful.
        """
        from tokenizers import Tokenizer  # only here: the other tokenizers do not need it

        try:
            saved = {**saved, "pre_tokenizer": keeping_unmatched(saved.get("pre_tokenizer"))}
            vocab, added = read_vocabulary(saved)
            end = _end_of_text(vocab, added, end_of_text)
            added = _within(added, vocab_size, end)
            # Special in any case, so that no text is encoded to it.
            added[end] = _PLAIN | added.get(end, {"id": vocab.get(end), "content": end}) | {"special": True}
            tokens = list(added.values())
            special = {token["content"] for token in tokens if token["special"]}
            fallback = uses_byte_fallback(saved)
            model = without_merges_to(saved["model"], special) if fallback else saved["model"]
            self._saved = {**saved, "added_tokens": tokens, "model": model, "truncation": None, "padding": None}
            check_model(model, vocab, special | BYTE_TOKENS if fallback else special)
            plain = [token for token in tokens if not token["special"]]
            self.lossless = check_steps(saved) and not any(t.get("lstrip") or t.get("rstrip") for t in plain)
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"not a Hugging Face tokenizer.json ({type(error).__name__}: {error})") from None
        with _its_errors("refused by the tokenizers library"):
            self._tokenizer = Tokenizer.from_str(json.dumps(self._saved))
        self._tokenizer.encode_special_tokens = True  # despite its name: encode their names as plain text
        ids = vocab | {name: token["id"] for name, token in added.items()}
        if self._tokenizer.get_vocab(with_added_tokens=True) != ids:
            raise UserError("the tokenizers library gives its added tokens other ids than the file")
        self.end_of_text = ids[end]
        self._given = {"end_of_text": end_of_text if end not in ENDS_OF_TEXT else None, "vocab_size": vocab_size}
        needed = max(ids.values()) + 1
        self.vocab_size = needed if vocab_size is None else vocab_size
        if self.vocab_size < needed:
            raise UserError(f"has ids up to {needed - 1}, but vocab_size is {vocab_size}: needs at least {needed}")
        self._bytes = _bytes_of_tokens(ids, self.vocab_size, set(added), fallback=fallback)
        self.begin_of_text = self._begin_of_text({token["id"] for token in tokens if token["special"]})
        restored = self.decode_bytes(self.encode(_PROBE))
        if restored != _PROBE.encode() and (self.lossless or (not plain and restored != b" " + _PROBE.encode())):
            raise UserError("decoding does not restore the encoded text")

    def _begin_of_text(self, special: set[int]) -> int | None:
        """What the file's post_processor puts before a text; other programs begin each prompt with it."""
        with _its_errors("the post_processor of the tokenizer fails"):
            tokens = self._tokenizer.encode("a", add_special_tokens=True).ids
        # Its ids are the file's own claim: they may be beyond the vocabulary.
        return tokens[0] if tokens[0] in special else None

    def encode(self, text: str) -> list[int]:
        with _its_errors(_GAVE_UP):
            return self._tokenizer.encode(well_formed(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        groups = list(grouped(texts, len, CALL_CHARACTERS))
        return list(chain.from_iterable(in_threads(self._encode_all, groups)))

    def _encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        with _its_errors(_GAVE_UP):
            encodings = self._tokenizer.encode_batch_fast(list(map(well_formed, texts)), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        return b"".join([self._bytes[token] for token in tokens])

    def to_dict(self) -> dict[str, Any]:
        given = {name: value for name, value in self._given.items() if value is not None}
        return {"kind": "huggingface", "tokenizer": self._saved, **given}


def _end_of_text(vocab: dict[str, int], added: dict[str, dict[str, Any]], given: str | int | None) -> str:
    """The name of the end-of-text token: one of ENDS_OF_TEXT if the file adds one, else the given name or id."""
    if known := next((name for name in ENDS_OF_TEXT if name in added), None):
        return known
    if given is None:
        raise UserError(f"has no end-of-text token; known names are {', '.join(ENDS_OF_TEXT)}")
    ids = vocab | {name: token["id"] for name, token in added.items()}
    found = next((name for name, token in ids.items() if given in (name, token)), None)
    if found is None or isinstance(given, bool):
        raise UserError(f"has no token {given!r:.40}, which is to be its end-of-text token")
    return found


def _within(added: dict[str, dict[str, Any]], vocab_size: int | None, end: str) -> dict[str, dict[str, Any]]:
    """The added tokens without the special ones for which the model has no row, such as Gemma 3's image token."""
    if vocab_size is None:
        return dict(added)
    if type(vocab_size) is not int or not 0 < vocab_size <= MAX_VOCAB_SIZE:
        raise UserError(f"vocab_size is {vocab_size!r:.40}: needs an integer from 1 to {MAX_VOCAB_SIZE}")
    kept = {name: token for name, token in added.items() if token["id"] < vocab_size or not token["special"]}
    return kept | {name: token for name, token in added.items() if name == end}


def _bytes_of_tokens(ids: dict[str, int], vocab_size: int, added: set[str], *, fallback: bool) -> list[bytes]:
    """UTF-8 bytes of each id."""
    symbols = byte_symbols()
    found = [unused_token(token).encode() for token in range(vocab_size)]
    for name, token in ids.items():
        if fallback:
            found[token] = fallback_bytes(name)
        else:
            found[token] = name.encode() if name in added else bytes(symbols[character] for character in name)
    return found


@contextlib.contextmanager
def _its_errors(what: str) -> Iterator[None]:
    """Turn any error of the library into a UserError of one line."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of its Rust code is not an Exception
        raise UserError(f"{what} ({(str(error) or type(error).__name__).splitlines()[0]:.200})") from None
