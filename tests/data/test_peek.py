"""The page that says what is in prepared data: its numbers are right, and nothing on it breaks a line."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minigpt.config import Config, DataConfig, GPTConfig
from minigpt.data.peek import END, PADDING, peek
from minigpt.data.prepare import prepare
from minigpt.data.shards import PreparedData
from minigpt.errors import UserError

TEXTS = [f"{'ab' * (i + 1)}\n\t{i} \x1b[31m" for i in range(20)]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Twenty small documents, in windows of eight tokens."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    data = DataConfig(source=str(path), tokenizer="bytes", val_fraction=0.2, batch_size=4, dir=str(tmp_path / "data"))
    return Config(data=data, model=GPTConfig(context_length=8))


def page(config: Config) -> tuple[PreparedData, str]:
    data = prepare(config.data, quiet=True)
    return data, peek(data, config)


def rows(text: str, word: str) -> list[list[str]]:
    """The tokens of each row of the batch that is shown."""
    return [line.split(maxsplit=1)[1].split("|") for line in text.splitlines() if line.startswith(f"  {word} ")]


def test_the_counts_are_those_of_the_documents(config: Config) -> None:
    data, text = page(config)
    assert f"folder     {data.folder}" in text
    assert "tokenizer  bytes: 257 tokens, stored as uint16" in text
    for name, split in (("train", data.train), ("val", data.val)):
        n_tokens, starts = len(split.tokens), split.document_starts
        lengths = np.diff([*starts, n_tokens]) - 1
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
        assert f"{len(starts)} documents, 0.00 MB, {n_tokens:,} tokens, 1.00 bytes per token" in line
        assert f"documents have {lengths.min()} to {lengths.max()} tokens" in text
        assert f"tokens, {int(np.median(lengths))} in the median" in text


def test_a_single_document_has_one_length(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("It was a dark and stormy night. " * 50)
    data = DataConfig(source=str(path), tokenizer="bytes", batch_size=4, dir=str(tmp_path / "data"))
    _, text = page(Config(data=data, model=GPTConfig(context_length=8)))
    lengths = [line.strip() for line in text.splitlines() if "one document of" in line]
    assert len(lengths) == 2  # train and val
    assert "median" not in text


def test_the_most_frequent_tokens_come_first_with_their_share(config: Config) -> None:
    data, text = page(config)
    tokens = data.train.tokens.read(0, len(data.train.tokens))
    (first, second) = re.findall(r"^ +([\d.]+) %  (\S+)$", text, flags=re.MULTILINE)[:2]
    share = f"{100 * (tokens == ord('a')).mean():.2f}"
    assert (first, second) == ((share, "a"), (share, "b"))
    assert f"the most frequent of {len(set(tokens.tolist()))} tokens that occur" in text


def test_a_row_predicts_what_it_reads_next(config: Config) -> None:
    _, text = page(config)
    reads, predicts = rows(text, "reads"), rows(text, "predicts")
    assert len(reads) == len(predicts) == 2
    for row, targets in zip(reads, predicts, strict=True):
        assert len(row) == len(targets) == 8
        assert row[1:] == targets[:-1]
    assert "the first batch has 4 rows of 8 tokens; 2 of them" in text


def test_examples_are_shown_with_their_padding_and_ends(config: Config) -> None:
    # Long and short texts in one batch, which sorting by length cannot avoid when there is but one.
    few = replace(config.data, mode="examples", batch_size=16, max_documents=18)
    _, text = page(replace(config, data=few, model=replace(config.model, context_length=128)))
    reads, predicts = rows(text, "reads"), rows(text, "predicts")
    padded = [row for row in reads if PADDING in row]
    assert padded
    for row, targets in zip(reads, predicts, strict=True):
        n = row.index(PADDING) if PADDING in row else len(row)
        assert row[0] == END
        assert targets[n - 1] == END
        assert row[1:n] == targets[: n - 1]
        assert set(row[n:]) <= {PADDING}
        assert set(targets[n:]) <= {"–"}


def test_no_token_breaks_a_line_or_colours_the_terminal(config: Config) -> None:
    _, text = page(config)
    assert not re.search(r"[^\n -~–·⟨⟩-]", text.replace("–", ""))
    assert r"\n" in text
    assert r"\x1b" in text


def test_a_mixture_says_what_each_source_gives(config: Config, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": f"other text {i}"}) + "\n" for i in range(60)))
    mixed = replace(config.data, source=[str(config.data.source), str(other)], weights=[1.0, 3.0])
    data, text = page(replace(config, data=mixed))
    shares = dict(re.findall(r"^ +([\d.]+) % from (.*?), ", text, flags=re.MULTILINE))
    assert shares == {"25.0": str(config.data.source), "75.0": str(other)}
    for part in data.train.sources:
        share = f"{100 * part.n_tokens / len(data.train.tokens):.1f} % {part.name}: {part.n_documents} documents"
        assert share in text


def test_what_was_left_out_is_said(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.txt").write_text(f"a text of number {i}")
    (folder / "broken.txt").write_bytes(b"\xff")
    held = tmp_path / "held.jsonl"
    held.write_text('{"text": "a text of number 3"}\n{"text": "new"}\n')
    data = replace(config.data, source=str(folder), val_source=str(held), encoding_errors="skip")
    _, text = page(replace(config, data=data))
    assert "1 documents of val are left out, as train has them too" in text
    assert "broken.txt" in text


def test_a_text_shorter_than_a_window_is_refused(config: Config) -> None:
    with pytest.raises(UserError, match=r"needs 5001: give more text or a shorter context"):
        page(replace(config, model=replace(config.model, context_length=5000)))
