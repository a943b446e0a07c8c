"""The card of a shared file: checked, since it comes from someone else, and printed without harm."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from minigpt.errors import UserError
from minigpt.runs.card import Card, read_card
from minigpt.runs.header import write_checksum

SIZES = {"n_parameters": 5000, "n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 8, "vocab_size": 257}
CARD = Card(
    name="story",
    title="a GPT",
    minigpt="0.1.0",
    date="2026-01-31",
    **SIZES,
    tokenizer="bytes",
    texts=["story.txt"],
    val_loss=1.5,
    prompt="Once",
    sample_step=20,
    samples=["Once upon\na time"],
)


def changed(**entries: Any) -> str:
    return json.dumps(json.loads(CARD.to_json()) | entries)


def file_with(card: str, folder: Path) -> Path:
    """A file with this card and a right checksum, as anyone can make it."""
    header = {"format": "pt", "config": "{}", "tokenizer": "{}", "sha256": "0" * 64, "card": card}
    path = folder / "friend.safetensors"
    save_file({"weight": torch.zeros(1)}, path, metadata=header)
    write_checksum(path)
    return path


def test_a_card_is_read_as_it_was_written() -> None:
    assert Card.from_json(CARD.to_json()) == CARD


def test_a_card_of_a_later_version_is_read() -> None:
    assert Card.from_json(changed(colour="blue")) == CARD


def test_what_the_run_did_not_know_is_not_shown() -> None:
    lines = str(CARD).splitlines()
    assert lines[0] == "story: a GPT"
    assert "  val loss   1.5000 nats per token" in lines
    assert not any("None" in line or "copied" in line or "training" in line for line in lines)


def test_it_cannot_command_a_terminal_or_pretend_to_be_another_line() -> None:
    hostile = "x\x1b]0;title\x07\n  val loss   0.0001\r\x9b2J\u202e\ud800"
    shown = str(
        Card.from_json(changed(name=hostile, title=hostile, texts=[hostile], prompt=hostile, samples=[hostile]))
    )
    assert shown.replace("\n", "").isprintable()
    assert not any(line.startswith("  val loss   0.0001") for line in shown.splitlines())


def test_long_lines_are_cut() -> None:
    assert max(map(len, str(Card.from_json(changed(name="x" * 50_000))).splitlines())) == 300


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("{", "the card is not valid JSON"),
        ("[" * 50_000, "the card is not valid JSON"),
        ("[]", "the card is not a JSON object"),
        ("{}", "the card has no context_length, date"),
        (f'"{"x" * 200_000}"', "the card has 200,002 characters; at most 100,000 are read"),
        (changed(name=["x\x1b[2J" * 5_000]), r"card.name=.*x1b"),
        (changed(samples="text"), "card.samples='text': expected list"),
        (changed(samples=[{}]), "card.samples="),
        (changed(n_layer=True), "card.n_layer=True: expected int"),
        (changed(n_layer=10**400), "card.n_layer=1000"),
        (changed(val_loss=10**400), "card.val_loss=1000"),
        (changed(val_loss=float("nan")), "card.val_loss=nan"),
        (changed(val_loss=float("-inf")), "card.val_loss=-inf"),
    ],
)
def test_a_card_that_is_none_is_one_clear_line(card: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"friend.safetensors: .*{words}") as caught:
        read_card(file_with(card, tmp_path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_a_damaged_card_is_not_shown(tmp_path: Path) -> None:
    path = file_with(CARD.to_json(), tmp_path)
    assert read_card(path) == CARD
    path.write_bytes(path.read_bytes().replace(b"Once upon", b"Once open"))
    with pytest.raises(UserError, match="damaged: its checksum differs"):
        read_card(path)
