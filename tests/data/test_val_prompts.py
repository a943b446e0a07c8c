"""Prompts of the val text: every tokenizer knows them, every model has room for them, every shell takes them."""

import json
from pathlib import Path

import pytest

from minigpt.config import DataConfig
from minigpt.data.prepare import prepare
from minigpt.data.shards import PreparedData
from minigpt.data.val_prompts import LONGEST, val_prompts

TEXTS = {
    "Cyrillic": "Однажды в студёную зимнюю пору я из лесу вышел;\nбыл сильный мороз.\n" * 60,
    "Chinese": "　　道可道，非常道。名可名，非常名。\n無名天地之始。\n" * 60,
    "DNA": "ACGTTGCAACCGT" * 400,
    "numbers": "\n".join(str(i * 7919 % 1000003) for i in range(900)),
    "quotes": '"it\'s" $(rm -rf x) `y` -z\n\n\n' * 80,
    "escapes": "\x1b[31mred\x1b[0m\ttext\r\n" * 80,
    "nothing printable": "\x01\x02\n" * 900,
}


def prepared(folder: Path, text: str, tokenizer: str) -> PreparedData:
    (folder / "text.txt").write_text(text, encoding="utf-8", newline="")
    config = DataConfig(
        source=str(folder / "text.txt"), tokenizer=tokenizer, val_fraction=0.3, dir=str(folder / "data")
    )
    return prepare(config, quiet=True)


def documents(folder: Path, texts: list[str]) -> PreparedData:
    """Of which all are held out; the train text has their characters."""
    (folder / "train.txt").write_text(f"to train on: {''.join(texts)}")
    (folder / "val.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources = {"source": str(folder / "train.txt"), "val_source": str(folder / "val.jsonl")}
    return prepare(DataConfig(**sources, tokenizer="chars", dir=str(folder / "data")), quiet=True)


@pytest.mark.parametrize("tokenizer", ["chars", "bytes", "bpe:300"])
@pytest.mark.parametrize("name", TEXTS)
def test_prompts_of_any_text_are_printable_differ_and_leave_room_to_write(
    name: str, tokenizer: str, tmp_path: Path
) -> None:
    data = prepared(tmp_path, TEXTS[name], tokenizer)
    for context_length in (1, 8, 64):
        prompts = val_prompts(data, context_length)
        assert 1 <= len(prompts) <= 3
        assert len(set(prompts)) == len(prompts)
        for prompt in prompts:
            assert prompt.isprintable()
            assert len(prompt) <= LONGEST
            assert len(data.tokenizer.encode(prompt)) <= context_length // 4
            assert prompt in TEXTS[name]
    assert ("" in prompts) == (name == "nothing printable")


def test_prompts_are_the_first_words_of_documents(tmp_path: Path) -> None:
    data = documents(tmp_path, [f"document {i} of many documents that are much longer than a prompt" for i in range(9)])
    assert val_prompts(data, 128) == [f"document {i} of many" for i in range(3)]
    assert val_prompts(data, 40) == [f"document {i}" for i in range(3)]


def test_words_come_before_marks(tmp_path: Path) -> None:
    data = documents(
        tmp_path, ['"""A docstring that is quite long."""', "import sys, and a long line", "# A comment, too"]
    )
    assert val_prompts(data, 128, documents_only=True) == ["import sys,", '"""A docstring', "# A"]


def test_of_a_short_document_half_is_left_to_write(tmp_path: Path) -> None:
    data = documents(tmp_path, ["12+34=46", "50+50=100", "12+34=64"])
    assert val_prompts(data, 32, documents_only=True) == ["12+3", "50+5"]


def test_where_documents_are_few_lines_are_taken_but_not_for_models_of_whole_documents(tmp_path: Path) -> None:
    data = documents(tmp_path, ["first line of all\n" + "".join(f"line {i} here\n" for i in range(500))])
    assert all(prompt.startswith("line ") for prompt in val_prompts(data, 64))
    assert len(val_prompts(data, 64)) == 3
    assert val_prompts(data, 64, documents_only=True) == ["first line of"]
