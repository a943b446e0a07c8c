"""Hugging Face's tokenizer.json of a byte-level BPE, run by the `tokenizers` library.

Such a file can describe other tokenizers and is untrusted. On opening, a tokenizer is refused, with the reason, if it
may lose text, decode to other bytes, or take unbounded time.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from minigpt.cores import in_threads
from minigpt.data.sources.chunking import grouped
from minigpt.data.tokenizers.bpe import MAX_VOCAB_SIZE, byte_symbols, unused_token, well_formed
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
_MAX_PATTERN = 10_000
_GAVE_UP = "the split pattern of the tokenizer gave up on a text"
_PROBE = "Hello  World's 12345 ?!\r\n\t" + "".join(f"{c * 40}!" for c in "a0 .\n") + "naïve 東京 🙂\0" + "ab 1\t" * 20
"""Test text, encoded on opening: every kind of character, and runs that make a bad split pattern fail."""


class HuggingFaceTokenizer:
    """Byte-level BPE from a tokenizer.json, run by `tokenizers`: GPT-2, Llama 3, Qwen and similar."""

    def __init__(self, saved: dict[str, Any]) -> None:
        """Args: saved, the parsed content of the file.

        Raises:
            UserError: it is not a byte-level BPE, or is damaged or harmful.
        """
        from tokenizers import Tokenizer  # only here: the other tokenizers do not need it

        try:
            vocab, added = _vocabulary(saved)
            end = next((name for name in ENDS_OF_TEXT if name in added), None)
            if end is None:
                raise UserError(f"has no end-of-text token; known names are {', '.join(ENDS_OF_TEXT)}")
            # Special in any case, so that no text is encoded to it.
            tokens = [token | {"special": True} if token["content"] == end else token for token in added.values()]
            self._saved = {**saved, "added_tokens": tokens, "truncation": None, "padding": None}
            _check_model(saved["model"], vocab, {token["content"] for token in tokens if token["special"]})
            self.lossless = _check_steps(saved) and not any(
                token.get("lstrip") or token.get("rstrip") for token in tokens if not token["special"]
            )
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"not a Hugging Face tokenizer.json ({type(error).__name__}: {error})") from None
        with _its_errors("refused by the tokenizers library"):
            self._tokenizer = Tokenizer.from_str(json.dumps(self._saved))
        self._tokenizer.encode_special_tokens = True  # despite its name: encode their names as plain text
        ids = vocab | {name: token["id"] for name, token in added.items()}
        if self._tokenizer.get_vocab(with_added_tokens=True) != ids:
            raise UserError("the tokenizers library gives its added tokens other ids than the file")
        self.end_of_text = ids[end]
        self.vocab_size = max(ids.values()) + 1
        symbols = byte_symbols()
        self._bytes = [unused_token(token).encode() for token in range(self.vocab_size)]
        for name, token in ids.items():
            whole = name in added
            self._bytes[token] = name.encode() if whole else bytes(symbols[character] for character in name)
        if self.decode_bytes(self.encode(_PROBE)) != _PROBE.encode() and self.lossless:
            raise UserError("decoding does not restore the encoded text")

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
        return {"kind": "huggingface", "tokenizer": self._saved}


def _vocabulary(saved: dict[str, Any]) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
    """The model's tokens with their ids, and the added tokens by content; checks that ids are unique."""
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
    symbols = byte_symbols()
    if missing := symbols.keys() - vocab.keys():
        byte = min(symbols[character] for character in missing)
        raise UserError(f"has no token for the byte 0x{byte:02x}: it is not a byte-level BPE")
    for name in vocab.keys() - added.keys():
        if not symbols.keys() >= set(name):
            raise UserError(f"the token {name!r:.40} is not made of bytes: it is not a byte-level BPE")
    return vocab, added


def _check_model(model: dict[str, Any], vocab: dict[str, int], special: set[str]) -> None:
    """Refuse invalid merges, BPE dropout, word affixes, and special tokens that text could be encoded to."""
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UserError(f"its model has {name}={model[name]!r:.40}, which does not decode to exact bytes")
    made = set()
    for merge in model["merges"]:
        pair = merge.split(" ") if isinstance(merge, str) else merge  # a string in files before 2024, a list since
        if len(pair) != 2:
            raise UserError(f"the merge {merge!r:.40} does not join two tokens")
        if unknown := [name for name in (*pair, pair[0] + pair[1]) if name not in vocab]:
            raise UserError(f"a merge names {unknown[0]!r:.40}, which is not in the vocabulary")
        made.add(pair[0] + pair[1])
    for name in special & vocab.keys():
        if len(name) == 1 or name in made or model.get("ignore_merges"):
            raise UserError(f"the special token {name!r:.40} could be encoded from text")


def _check_steps(saved: dict[str, Any]) -> bool:
    """Refuse normalizers and pre-tokenizers that may lose text. Returns whether they leave text unchanged."""
    normalizers = list(_flat(saved.get("normalizer"), "normalizers"))
    for step in normalizers:
        if step["type"] != "NFC":
            raise UserError(f"its normalizer {step['type']!r:.40} changes text irreversibly; only NFC is supported")
    splits = list(_flat(saved.get("pre_tokenizer"), "pretokenizers"))
    byte_level = [step for step in splits if step["type"] == "ByteLevel"]
    if len(byte_level) != 1:
        raise UserError("its pre_tokenizer needs exactly one ByteLevel step: it is not a byte-level BPE")
    for step in splits:
        if step["type"] not in ("ByteLevel", "Split", "Digits", "Punctuation") or step.get("behavior") == "Removed":
            raise UserError(f"its pre_tokenizer {step['type']!r:.40} may drop characters")
        pattern = step.get("pattern", {}).get("Regex", "")
        if len(pattern) > _MAX_PATTERN:
            raise UserError(f"its split pattern has {len(pattern)} characters, more than {_MAX_PATTERN}")
        if _may_explode(pattern):
            raise UserError(f"its split pattern {pattern!r:.60} has nested quantifiers, which may never end")
    return not normalizers and not byte_level[0].get("add_prefix_space", True)


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


@contextlib.contextmanager
def _its_errors(what: str) -> Iterator[None]:
    """Turn any error of the library into a UserError of one line."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of its Rust code is not an Exception
        raise UserError(f"{what} ({(str(error) or type(error).__name__).splitlines()[0]:.200})") from None
