"""What the benchmarks share: contenders take turns, and results are kept part by part."""

import json
import os
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import harness
import pytest
from harness import Block, Spread, Table, Turn

from minigpt.config import UserError


def worker(log: Path, turn: Turn) -> None:
    while True:
        turn()
        with log.open("a") as file:
            file.write(f"{log.stem} {os.getpid()}\n")


def quitter(turn: Turn) -> None:
    turn()


def parts_that_are(**values: float) -> dict[str, harness.Part]:
    def part(value: float, chosen: Namespace) -> Iterator[Block]:
        assert chosen.folder.is_dir()
        yield Table(f"a | b {value}", ["name", "ms"], [["x", Spread([value, value, 2 * value])]], runs=[value])

    return {name: partial(part, value) for name, value in values.items()}


def test_a_spread_reads_as_median_and_quartiles_and_keeps_its_values() -> None:
    assert Spread([3.0, 1.0, 2.0, 4.0, 5.0]) == "3.000 (2.000 to 4.000)"
    assert Spread([30.0, 10.0]).values == [30.0, 10.0]
    assert Spread([2000.0, 2000.0]) == "2000 (2000 to 2000)"


def test_contenders_work_in_turns_each_in_its_own_process(tmp_path: Path) -> None:
    contenders = {name: partial(worker, tmp_path / "log" / name) for name in ("a", "b")}
    (tmp_path / "log").mkdir()
    first, taken = harness.turns(contenders, n_rounds=2, n_pieces=3)
    assert set(first) == {"a", "b"}
    assert {name: len(each) for name, each in taken.items()} == {"a": 2, "b": 2}
    assert all(0 < seconds < 1 for each in taken.values() for seconds in each)
    logs = [(tmp_path / "log" / name).read_text().split() for name in "ab"]
    assert [len(log) for log in logs] == [2 * 9, 2 * 9], "three rounds of three pieces"
    assert not set(logs[0][1::2]) & set(logs[1][1::2])


def test_a_contender_that_ends_is_named() -> None:
    with pytest.raises(UserError, match="quitter: ended before it was measured"):
        harness.turns({"quitter": quitter}, 1)


def test_a_part_that_is_measured_again_leaves_the_others_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    measure = partial(harness.main, name="fake", title="Fake")
    measure(["--write"], parts_that_are(one=1.0, two=2.0))
    measure(["one", "--write"], parts_that_are(one=5.0, two=6.0))
    text = (tmp_path / "fake_cpu.md").read_text()
    assert text.index("## one") < text.index(r"**a | b 5.0**") < text.index("## two") < text.index("a | b 2.0")
    assert "| x | 5.000 (5.000 to 7.500) |" in text
    assert "1.0" not in text.split("**")[1]
    values = json.loads((tmp_path / "fake_cpu.json").read_text())
    assert list(values) == ["one", "two"]
    machine, table, *_ = values["one"]
    assert "threads" in machine
    assert "commit" in machine
    assert table["rows"] == [["x", {"text": "5.000 (5.000 to 7.500)", "values": [5.0, 5.0, 10.0]}]]
    assert table["runs"] == [5.0]
    assert values["two"][1]["runs"] == [2.0]


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert r"| a \| b |" in str(Table("title", ["x"], [["a | b"]]))


def test_mistakes_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"--against": {"type": harness.checkout}}
    measure = partial(
        harness.main, parts=parts_that_are(one=1.0), name="fake", title="Fake", options=options,
        needs={"one": ["against"]},
    )  # fmt: skip
    for arguments, message in {
        ("--quick", "--write"): "--write keeps full measurements only: leave out --quick",
        ("three",): "argument part: invalid choice: 'three'",
        ("--against", str(tmp_path)): "holds no model.py; name a checkout of nanoGPT",
        ("one",): "one: needs --against",
    }.items():
        with pytest.raises(UserError, match=message):
            measure(list(arguments))
    measure([])
    assert "left out; one: needs --against" in capsys.readouterr().out
