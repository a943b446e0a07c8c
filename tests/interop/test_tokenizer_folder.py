"""Tokenizers in folders of other programs: which file is read, which token ends a text, and what is refused."""

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_families import family, family_text, gpt2_tables, trained_sentencepiece

from minigpt.data.tokenizers.base import MAX_FILE_BYTES
from minigpt.data.tokenizers.huggingface import HuggingFaceTokenizer
from minigpt.errors import UserError
from minigpt.interop.sentencepiece_model import sentencepiece_content
from minigpt.interop.tokenizer_folder import read_tokenizer


def folder_of(folder: Path, **files: Any) -> Path:
    """Files by their name without its ending: dicts as JSON, bytes as they are."""
    for name, content in files.items():
        ending = {"tokenizer_model": "tokenizer.model", "merges": "merges.txt"}.get(name, f"{name}.json")
        (folder / ending).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def gpt2_files() -> dict[str, bytes]:
    merges, vocab = sorted(gpt2_tables().values(), key=lambda table: table.startswith(b"{"))
    return {"vocab": vocab, "merges": merges}


# --- which file ---------------------------------------------------------------------------------------------------


def test_gpt2s_two_files_have_its_published_ids(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(folder_of(tmp_path, **gpt2_files(), config={"model_type": "gpt2"}))
    assert (tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.lossless) == (50257, 50256, True)
    assert tokenizer.encode("Hello world") == [15496, 995]


def test_tokenizer_json_is_preferred_to_older_files(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tokenizer=family("Llama 3"), vocab=b"{", tokenizer_model=b"?")
    assert read_tokenizer(folder).encode("return") == HuggingFaceTokenizer(family("Llama 3")).encode("return")


def test_rows_of_the_model_without_a_token_get_a_name(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(folder_of(tmp_path, tokenizer=family("Qwen")), vocab_size=512)
    assert tokenizer.vocab_size == 512
    assert tokenizer.decode_bytes([511]) == b"<|unused_511|>"


# --- the end of a text --------------------------------------------------------------------------------------------


def without_known_end() -> dict[str, Any]:
    saved = family("Qwen")
    for token, name in zip(saved["added_tokens"], ("<|doc|>", "<|turn|>", "<|other|>"), strict=True):
        token["content"] = name
    return saved


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config": {"eos_token": "<|turn|>"}}, "<|turn|>"),
        ({"tokenizer_config": {"eos_token": {"content": "<|turn|>", "special": True}}}, "<|turn|>"),
        ({"generation_config": {"eos_token_id": [0, 1]}}, "<|doc|>"),
        ({"config": {"eos_token_id": 1}}, "<|turn|>"),
        ({"tokenizer_config": {"eos_token": None}, "config": {"eos_token_id": 2}}, "<|other|>"),
        ({"tokenizer_config": {"eos_token": "<|doc|>"}, "config": {"eos_token_id": 2}}, "<|doc|>"),
    ],
)
def test_the_end_of_text_is_what_the_configs_call_eos(files: dict[str, Any], expected: str, tmp_path: Path) -> None:
    saved = without_known_end()
    first = saved["added_tokens"][0]["id"]

    def shifted(value: Any) -> Any:
        if isinstance(value, list):
            return [shifted(part) for part in value]
        return value + first if isinstance(value, int) else value

    files = {name: {key: shifted(value) for key, value in content.items()} for name, content in files.items()}
    tokenizer = read_tokenizer(folder_of(tmp_path, tokenizer=saved, **files))
    assert tokenizer.decode_bytes([tokenizer.end_of_text]).decode() == expected
    assert tokenizer.end_of_text not in tokenizer.encode(expected)


def test_a_known_name_in_the_tokenizer_goes_before_the_eos_of_a_chat_model(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tokenizer=family("Qwen"), tokenizer_config={"eos_token": "<|im_end|>"})
    tokenizer = read_tokenizer(folder)
    assert tokenizer.decode_bytes([tokenizer.end_of_text]) == b"<|endoftext|>"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "has no end-of-text token"),
        ({"eos_token_id": 10**9}, "has no token 1000000000"),
        ({"eos_token_id": "no such"}, "has no token 'no such'"),
        ({"eos_token_id": True}, "eos_token_id is True: needs the name or id of a token"),
        ({"eos_token_id": 1.5}, "eos_token_id is 1.5"),
        ({"eos_token_id": [[1]]}, r"eos_token_id is \[1\]"),
        ({"eos_token_id": 64}, "could be encoded from text"),
    ],
)
def test_an_eos_that_cannot_be_is_refused(config: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        read_tokenizer(folder_of(tmp_path, tokenizer=without_known_end(), config=config))
    assert str(tmp_path) in str(caught.value)


# --- SentencePiece ------------------------------------------------------------------------------------------------


@functools.cache
def of_sentencepiece(**settings_of: Any) -> tuple[HuggingFaceTokenizer, sentencepiece.SentencePieceProcessor]:
    model = trained_sentencepiece(**settings_of)
    ours = HuggingFaceTokenizer(sentencepiece_content(model))
    return ours, sentencepiece.SentencePieceProcessor(model_proto=model)


def check_sentencepiece(text: str) -> None:
    ours, theirs = of_sentencepiece()
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode_bytes(ours.encode(text)).decode() == (" " + text if text else text).replace("▁", " ")
    ours, theirs = of_sentencepiece(add_dummy_prefix=False, user_defined_symbols="<table>")
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode_bytes(ours.encode(text)).decode() == text.replace("▁", " ")


@settings(max_examples=200, deadline=None)
@given(text=family_text)
def test_a_model_of_sentencepiece_has_the_ids_of_its_library(text: str) -> None:
    check_sentencepiece(text)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(text=family_text)
def test_a_model_of_sentencepiece_has_the_ids_of_its_library_for_two_thousand_texts(text: str) -> None:
    check_sentencepiece(text)


def test_a_folder_with_a_model_of_sentencepiece_is_read(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(folder_of(tmp_path, tokenizer_model=trained_sentencepiece()), vocab_size=400)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=trained_sentencepiece())
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (400, theirs.eos_id())
    assert tokenizer.encode("return 1") == theirs.encode("return 1")


@pytest.mark.parametrize(
    ("settings_of", "expected"),
    [
        ({"model_type": "unigram", "vocab_size": 292}, "is not BPE"),
        ({"byte_fallback": False, "vocab_size": 60}, "no byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "changes characters irreversibly"),
        ({"remove_extra_whitespaces": True}, "removes spaces"),
        ({"treat_whitespace_as_suffix": True}, "in front of words"),
        ({"user_defined_symbols": "<table>"}, "the user-defined symbol '<table>'"),
        ({"user_defined_symbols": "▁▁", "add_dummy_prefix": False}, "the user-defined symbol '▁▁'"),
    ],
)
def test_a_model_of_sentencepiece_that_may_lose_text_is_refused(
    settings_of: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        read_tokenizer(folder_of(tmp_path, tokenizer_model=trained_sentencepiece(**settings_of)))
    assert "tokenizer.model: " in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_model_of_sentencepiece_ends_in_a_refusal_or_a_tokenizer(data: st.DataObject) -> None:
    model = bytearray(trained_sentencepiece())
    for _ in range(data.draw(st.integers(1, 4))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(model)))
    with contextlib.suppress(UserError):
        HuggingFaceTokenizer(sentencepiece_content(bytes(model[:cut])))


# --- hostile and incomplete folders -------------------------------------------------------------------------------


def test_a_tokenizer_of_another_class_with_gpt2s_file_names_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, **gpt2_files(), tokenizer_config={"tokenizer_class": "Qwen2Tokenizer"})
    with pytest.raises(UserError, match="belongs to 'Qwen2Tokenizer', which splits text in another way"):
        read_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(UserError, match="belongs to 'roberta'"):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: None, "has no tokenizer: needs tokenizer.json, vocab.json, tokenizer.model"),
        (lambda folder: folder_of(folder, vocab=gpt2_files()["vocab"]), "merges.txt: no such file"),
        (lambda folder: folder_of(folder, vocab={}, merges=b"\xff"), "merges.txt: is not UTF-8"),
        (lambda folder: folder_of(folder, vocab={}, merges=b"#version"), "no end-of-text token|no token for the byte"),
        (lambda folder: folder_of(folder, tokenizer=b"[]"), "tokenizer.json: is not a JSON object"),
        (lambda folder: folder_of(folder, tokenizer=b"[" * 100_000), "tokenizer.json: not a JSON file"),
        (lambda folder: folder_of(folder, tokenizer=b"{}"), "tokenizer.json: not a Hugging Face tokenizer.json"),
        (lambda folder: folder_of(folder, tokenizer={"model": {"type": "WordLevel", "vocab": []}}), "only BPE"),
        (
            lambda folder: folder_of(folder, tokenizer={"model": {"type": "WordLevel", "vocab": {"\ud800": 0}}}),
            "lone surrogate",
        ),
        (lambda folder: folder_of(folder, tokenizer=family("Qwen"), config=b"{"), "config.json: not a JSON file"),
        (lambda folder: folder_of(folder, tokenizer_model=b""), "it has no pieces"),
        (lambda folder: folder_of(folder, tokenizer_model=b"\x0a\xff\xff\xff\xff\x7f"), "or damaged"),
    ],
)
def test_a_folder_without_a_usable_tokenizer_is_refused_in_one_line(
    make: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=expected) as caught:
        read_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json"])
def test_a_file_that_is_too_large_is_refused_unread(name: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(UserError, match="larger than 64 MiB"):
        read_tokenizer(tmp_path)
