"""A tokenizer -> tokenizer.json and tokenizer_config.json of Hugging Face, which AutoTokenizer and others open.

The ids are the same, in both directions. A name such as <|endoftext|> in a text is text here; there it becomes the
special id unless `split_special_tokens=True`.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from minigpt.data.tokenizers.base import BytesTokenizer, CharsTokenizer, Tokenizer
from minigpt.data.tokenizers.bpe import END_OF_TEXT, BPETokenizer, byte_symbols
from minigpt.data.tokenizers.huggingface import HuggingFaceTokenizer
from minigpt.errors import UserError

_BEGINS_OF_TEXT = ("<s>", "<bos>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>")
"""Names of the token that Llama, Gemma, Llama 3 and DeepSeek put before a text."""
_STAND_INS = {byte: character for character, byte in byte_symbols().items()}
_ANY_CHARACTER = r"[\s\S]"
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def hugging_face_files(tokenizer: Tokenizer, context_length: int) -> dict[str, dict[str, Any]]:
    """The files of a tokenizer: name -> JSON content.

    Args:
        tokenizer: any of minigpt's.
        context_length: of the model.

    Raises:
        UserError: the tokenizer is of a kind that has no counterpart.
    """
    content, end, begin = _content(tokenizer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": end,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }
    return {"tokenizer.json": content, "tokenizer_config.json": config}


def _content(tokenizer: Tokenizer) -> tuple[dict[str, Any], str, str]:
    """Content of tokenizer.json, end-of-text token, and the token that a text begins with."""
    match tokenizer:
        case BytesTokenizer():
            return _byte_level(byte_symbols(), [], {END_OF_TEXT: tokenizer.end_of_text}, []), END_OF_TEXT, END_OF_TEXT
        case CharsTokenizer():
            return _chars(tokenizer), END_OF_TEXT, END_OF_TEXT
        case BPETokenizer():
            return _bpe(tokenizer), END_OF_TEXT, END_OF_TEXT
        case HuggingFaceTokenizer():
            content: dict[str, Any] = tokenizer.to_dict()["tokenizer"]
            names = {token["content"]: token["id"] for token in content["added_tokens"]}
            end = next(name for name, token in names.items() if token == tokenizer.end_of_text)
            begin = next((name for name, token in names.items() if token == tokenizer.begin_of_text), None)
            return content, end, begin or next((name for name in _BEGINS_OF_TEXT if name in names), end)
    raise UserError(f"a tokenizer of the kind {type(tokenizer).__name__} has no tokenizer.json")


def _bpe(tokenizer: BPETokenizer) -> dict[str, Any]:
    names = list(map(stand_ins, tokenizer.ranks))
    pairs = last_pairs(tokenizer)
    merges = [[stand_ins(first), stand_ins(second)] for first, second in filter(None, pairs)]
    split = {
        "type": "Split",
        "pattern": {"Regex": _for_oniguruma(tokenizer.pattern)},
        "behavior": "Isolated",
        "invert": False,
    }
    content = _byte_level({name: i for i, name in enumerate(names)}, merges, tokenizer.special_tokens, [split])
    # tiktoken looks up a whole word first. It matters only for tokens that no merge makes.
    content["model"]["ignore_merges"] = None in pairs
    return content


def stand_ins(token: bytes) -> str:
    """A token as GPT-2 writes it: a printable character for each byte."""
    return token.decode("latin-1").translate(_STAND_INS)


def last_pairs(tokenizer: BPETokenizer) -> list[tuple[bytes, bytes] | None]:
    """The last pair of each token of several bytes, in the order of ranks: the merges of the BPE."""
    ranks = {token: rank for rank, token in enumerate(tokenizer.ranks)}
    return [_last_pair(token, ranks) for token in tokenizer.ranks if len(token) > 1]


def _last_pair(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that BPE joins last to make this one; None if it never does.

    tiktoken keeps ranks, not merges: it joins the neighbours whose bytes together have the lowest rank. Inside a token
    the order of these joins is the same in every text, so there is one last pair.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    nowhere = len(ranks)
    found = [ranks.get(token[i : i + 2], nowhere) for i in range(len(token) - 1)]  # ranks of neighbouring parts
    while len(parts) > 2:  # two are left
        lowest = min(found)
        if lowest == nowhere:
            return None
        i = found.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del found[i]
        if i < len(found):
            found[i] = ranks.get(parts[i] + parts[i + 1], nowhere)
        if i > 0:
            found[i - 1] = ranks.get(parts[i - 1] + parts[i], nowhere)
    return parts[0], parts[1]


def _for_oniguruma(pattern: str) -> str:
    r"""A pattern of SPLITS for the engine of `tokenizers`, in which `{1,3}+` is not possessive and `$` ends a line.

    No pattern needs its possessive quantifiers: see `_grouped` of bpe.py.
    """
    for quantifier in ("+", "?", "*", "{1,3}"):
        pattern = pattern.replace(quantifier + "+", quantifier)
    return pattern.replace("$", r"\z")


def _chars(tokenizer: CharsTokenizer) -> dict[str, Any]:
    """One token a character. A WordLevel model refuses unknown characters as we do; a BPE would drop them."""
    vocab = {character: i for i, character in enumerate(tokenizer.alphabet)}
    split = {"type": "Split", "pattern": {"Regex": _ANY_CHARACTER}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    return _file(model, {END_OF_TEXT: tokenizer.end_of_text}, split, {"type": "Fuse"})


def chars_of(content: dict[str, Any]) -> CharsTokenizer | None:
    """The character tokenizer whose `hugging_face_files` has this tokenizer.json, if there is one."""
    model = content.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) and model.get("type") == "WordLevel" else None
    if not isinstance(vocab, dict) or not all(len(name) == 1 for name in vocab):
        return None
    tokenizer = CharsTokenizer("".join(vocab))
    # transformers adds a post_processor, which concerns only the special tokens that it may put around a text.
    return tokenizer if _chars(tokenizer) == {**content, "post_processor": None} else None


def _byte_level(
    vocab: dict[str, int], merges: list[list[str]], special: dict[str, int], splits: list[dict[str, Any]]
) -> dict[str, Any]:
    model = {"type": "BPE", "vocab": vocab, "merges": merges}
    return _file(model, special, {"type": "Sequence", "pretokenizers": [*splits, _BYTE_LEVEL]}, _BYTE_LEVEL)


def _file(
    model: dict[str, Any], special: dict[str, int], pre_tokenizer: dict[str, Any], decoder: dict[str, Any]
) -> dict[str, Any]:
    settings = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": token, "content": name} | settings for name, token in sorted(special.items(), key=itemgetter(1))]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
