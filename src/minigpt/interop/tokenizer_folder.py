"""The tokenizer of a model folder of another program: tokenizer.json, vocab.json and merges.txt, or tokenizer.model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt.data.tokenizers.base import MAX_FILE_BYTES, Tokenizer
from minigpt.data.tokenizers.huggingface import HuggingFaceTokenizer
from minigpt.errors import UserError
from minigpt.interop.sentencepiece_model import sentencepiece_content
from minigpt.interop.tensor_files import read_bounded, read_json
from minigpt.interop.tokenizer_files import chars_of

_GPT2_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")
_GPT2_MODELS = ("gpt2", "gpt_neo")


def read_tokenizer(folder: Path, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer in a folder of Hugging Face's layout.

    Args:
        folder: with tokenizer.json, or vocab.json and merges.txt of GPT-2, or tokenizer.model of SentencePiece: the
            first of these that exists. Its end-of-text token is the one whose name is known; else the one that
            tokenizer_config.json, generation_config.json or config.json names as eos.
        vocab_size: rows of the model's embedding, often more than the tokenizer has tokens.

    Raises:
        UserError: none of the files is there, or one is too large, damaged or of a kind that is not supported.
    """
    readers: dict[str, Callable[[Path], dict[str, Any]]] = {
        "tokenizer.json": _json,
        "vocab.json": _gpt2_content,
        "tokenizer.model": _sentencepiece_content,
    }
    path = next((folder / name for name in readers if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder}: has no tokenizer: needs {', '.join(readers)} (with merges.txt beside vocab.json)")
    content = readers[path.name](path)
    end = _eos(folder)
    if path.name != "tokenizer.json":
        content["post_processor"] = _begin(folder, content)
    try:
        if (chars := chars_of(content)) is not None:
            if vocab_size not in (None, chars.vocab_size):
                raise UserError(f"has {chars.vocab_size} characters, but the model has {vocab_size} rows")
            return chars
        return HuggingFaceTokenizer(content, end, vocab_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _eos(folder: Path) -> str | int | None:
    """Name or id of the token that the folder's configs call eos; None if they name none."""
    for name, key in (
        ("tokenizer_config.json", "eos_token"),
        ("generation_config.json", "eos_token_id"),
        ("config.json", "eos_token_id"),
    ):
        value = _optional_json(folder / name).get(key)
        if isinstance(value, list):  # Llama 3's chat models list the end of a text before the ends of turns
            value = value[0] if value else None
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str | int) and not isinstance(value, bool):
            return value
        if value is not None:
            raise UserError(f"{folder / name}: {key} is {value!r:.40}: needs the name or id of a token")
    return None


def _begin(folder: Path, content: dict[str, Any]) -> dict[str, Any] | None:
    """The post_processor for add_bos_token. transformers ignores that setting where there is a tokenizer.json."""
    config = _optional_json(folder / "tokenizer_config.json")
    name = config.get("bos_token")
    name = name.get("content") if isinstance(name, dict) else name
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    if config.get("add_bos_token") is not True or not isinstance(name, str) or name not in added:
        return None
    bos, text = {"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    ids = {name: {"id": name, "ids": [added[name]], "tokens": [name]}}
    return {"type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text, text], "special_tokens": ids}


def _gpt2_content(path: Path) -> dict[str, Any]:
    """A tokenizer.json from GPT-2's two files."""
    folder = path.parent
    settings = _optional_json(folder / "tokenizer_config.json")
    kind, model = settings.get("tokenizer_class"), _optional_json(folder / "config.json").get("model_type")
    if kind not in (None, *_GPT2_CLASSES) or (kind is None and model not in (None, *_GPT2_MODELS)):
        raise UserError(
            f"{path}: is read as GPT-2's, but belongs to {kind or model!r:.40}, which splits text in another way: "
            "save its tokenizer.json with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    vocab, merges_path = _json(path), folder / "merges.txt"
    try:
        lines = read_bounded(merges_path, MAX_FILE_BYTES).decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{merges_path}: is not UTF-8") from None
    merges = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    byte_level = {"type": "ByteLevel", "add_prefix_space": settings.get("add_prefix_space") is True}
    byte_level |= {"trim_offsets": True, "use_regex": True}
    end = "<|endoftext|>"
    added = {"id": vocab.get(end), "content": end, "single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "added_tokens": [added | {"normalized": False, "special": True}] if end in vocab else [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def _sentencepiece_content(path: Path) -> dict[str, Any]:
    try:
        return sentencepiece_content(read_bounded(path, MAX_FILE_BYTES))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _optional_json(path: Path) -> dict[str, Any]:
    return _json(path) if path.is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, MAX_FILE_BYTES)
