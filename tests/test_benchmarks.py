"""What the benchmarks share: contenders take turns, and results are kept part by part."""

import dataclasses
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import contenders
import harness
import nanogpt
import numpy as np
import pytest
import quick
import summary
import time_to_loss
import training
from harness import Block, Bound, Spread, Table, Turn

from minigpt.errors import UserError


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


def test_a_bound_is_judged_by_its_median_and_its_better_quartile_and_comes_back_from_json() -> None:
    verdicts = {
        "pass, at most 1.15": Bound("a", [1.0, 1.1, 1.2], at_most=1.15),
        "within the noise, at most 1.07": Bound("a", [1.0, 1.1, 1.2], at_most=1.07),
        "missed, at most 1": Bound("a", [1.0, 1.1, 1.2], at_most=1.0),
        "within the noise, at least 1.13": Bound("a", [1.0, 1.1, 1.2], at_least=1.13),
        "missed, at least 1.2": Bound("a", [1.0, 1.1, 1.2], at_least=1.2),
        "missed, at most 0.6 s": Bound("a", 0.7, at_most=0.6, unit="s", limited_by="imports"),
    }
    for text, bound in verdicts.items():
        assert bound == text
        known = json.loads(json.dumps(bound.plain()))
        assert known.pop("text") == text
        again = Bound(**known)
        assert (again, vars(again)) == (bound, vars(bound))
    with pytest.raises(ValueError, match="either"):
        Bound("a", 1.0)


def test_contenders_work_in_turns_each_in_its_own_process(tmp_path: Path) -> None:
    workers = {name: partial(worker, tmp_path / "log" / name) for name in ("a", "b")}
    (tmp_path / "log").mkdir()
    first, taken = harness.turns(workers, n_rounds=2, n_pieces=3)
    assert set(first) == {"a", "b"}
    assert {name: len(each) for name, each in taken.items()} == {"a": 2, "b": 2}
    assert all(0 < seconds < 1 for each in taken.values() for seconds in each)
    logs = [(tmp_path / "log" / name).read_text().split() for name in "ab"]
    assert [len(log) for log in logs] == [2 * 9, 2 * 9], "three rounds of three chunks"
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


HERE, ELSEWHERE = "EPYC, 2 cores, 2 threads; torch 2; 2026-01-01; commit a", "Xeon, 2 cores, 2 threads; torch 2"


@pytest.mark.parametrize(
    ("now", "kept", "where", "verdict", "is_lost"),
    [
        ([1.2, 1.3, 1.4], [1.1, 1.2, 1.3], HERE, "kept", False),
        ([0.8, 0.85, 0.89], [1.1, 1.2, 1.3], HERE, "LOST", True),
        ([0.8, 0.85, 0.95], [1.1, 1.2, 1.3], HERE, "noise", False),
        ([0.8, 0.85, 0.89], [1.1, 1.2, 1.3], ELSEWHERE, "LOST", True),
        ([0.1, 0.2, 0.3], [0.8, 0.9, 1.3], HERE, "open", False),
        ([0.1, 0.2, 0.3], None, HERE, "new", False),
    ],
)
def test_a_bound_is_lost_where_it_was_kept_and_is_missed_by_more_than_the_noise(
    now: list[float], kept: list[float] | None, where: str, verdict: str, is_lost: bool
) -> None:
    """The kept quartiles are 0.1 apart, and the upper quartile of the rounds counts."""
    before = None if kept is None else (Bound("a", kept, at_least=0.5), where)
    found, line = quick.lost(Bound("a", now, at_least=1.0), before, HERE)
    assert (found, line.split()[0]) == (is_lost, verdict)
    # the same as times, which are to be small
    before = None if kept is None else (Bound("a", [-value for value in kept], at_most=0.0), where)
    found, line = quick.lost(Bound("a", [-value for value in now], at_most=-1.0, unit="s"), before, HERE)
    other = where == ELSEWHERE
    assert (found, line.split()[0]) == ((False, "skipped") if other else (is_lost, verdict))


def test_the_quick_run_fails_where_a_bound_is_lost_and_names_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speed = {"one": 2.0, "two": 2.0}

    def part(name: str, chosen: Namespace) -> Iterator[Block]:
        yield Table("t", ["bound"], [[Bound(name, [speed[name]] * 3, at_least=1.0)]])

    def measure(arguments: list[str]) -> list[Bound]:
        return harness.main(arguments, {name: partial(part, name) for name in speed}, name="fake", title="Fake")

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    monkeypatch.setattr(quick, "BUDGET", {"fake": {"one": 100}})
    monkeypatch.setitem(sys.modules, "fake", Namespace(main=measure))
    measure(["--write"])
    assert "| one | 2 | at least 1 | pass |" in summary.figures()
    quick.main([])
    out = capsys.readouterr().out
    assert "kept     one: 2, at least 1; kept 2\nleft out two" in out
    speed["one"] = 0.9
    with pytest.raises(SystemExit, match="1"):
        quick.main([])
    assert "LOST     one: 0.9, at least 1; kept 2" in capsys.readouterr().out


def test_the_quick_run_fits_five_minutes_and_its_parts_are_there() -> None:
    assert sum(seconds for parts in quick.BUDGET.values() for seconds in parts.values()) <= 300
    for name, parts in quick.BUDGET.items():
        source = (contenders.ROOT / "benchmarks" / f"{name}.py").read_text()
        assert all(f'"{part}"' in source for part in parts)


def test_the_page_of_the_benchmarks_has_the_kept_figures() -> None:
    text = summary.README.read_text()
    assert text == summary.renewed(text), "renew it: python benchmarks/summary.py"


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


def test_nanogpts_learning_rate_warms_up_and_falls_to_its_share() -> None:
    recipe = nanogpt.Recipe()
    rates = [nanogpt.learning_rate(recipe, step) for step in (0, 100, 1050, 2000)]
    assert rates == pytest.approx([1e-3 / 101, 1e-3, 5.5e-4, 1e-4])


FAKE = """
import torch
class GPTConfig:
    def __init__(self, **sizes): vars(self).update(sizes)
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)
    def forward(self, tokens, targets):
        logits = self.table(tokens)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    def configure_optimizers(self, weight_decay, learning_rate, betas, device):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas, weight_decay=weight_decay)
"""
"""A checkout's model.py, as far as it is used."""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nanogpt").mkdir()
    (tmp_path / "nanogpt" / "model.py").write_text(FAKE)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "model", raising=False)
    return tmp_path / "nanogpt"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.bin"
    np.tile(np.arange(5, dtype=np.uint16), 100).tofile(path)
    return path


def test_nanogpts_loop_learns_and_counts_its_steps(checkout: Path, tokens: Path) -> None:
    recipe = nanogpt.Recipe(context_length=8, vocab_size=5, max_steps=30, learning_rate=0.1, warmup_steps=2)
    losses, numbers = [], []
    for number, model in nanogpt.training(checkout, recipe, tokens):
        numbers.append(number)
        losses.append(model(*nanogpt.random_windows(tokens, recipe))[1].item())
    assert numbers == list(range(31))
    assert losses[-1] < losses[0] / 2


class Enough:
    """Lets so many chunks of work be done."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self) -> None:
        if self.left == 0:
            raise SystemExit(0)
        self.left -= 1


@pytest.mark.parametrize("terminal", [False, True])
def test_a_contender_that_trains_is_train_py_step_by_step(tmp_path: Path, terminal: bool) -> None:
    changes = [f"config={contenders.ROOT}/configs/tiny.yaml", f"data.dir={tmp_path}/data", f"runs_dir={tmp_path}/runs"]
    changes += [*contenders.ENDLESS, "compile=false", "trainer.logger=false", "trainer.log_every_n_steps=1"]
    with pytest.raises(SystemExit):
        contenders.ours(changes, terminal, Enough(3))
    rows = (tmp_path / "runs" / "tiny" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "1", "2", "3"]
    if not terminal:
        with pytest.raises(SystemExit):
            contenders.raw(changes, Enough(3))


def test_shapes_are_such_as_train_py_takes(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    chosen = Namespace(folder=tmp_path, text=text)
    for name, variants in training.shapes(chosen).items():
        assert len({contenders.parse(changes).model.n_embd for changes in variants.values()}) == 1
        known = {label + suffix for label in (*variants, training.THEIRS) for suffix in ("", training.COMPILED)}
        assert {each for label, other, _ in training.SPEEDS[name] for each in (label, other)} <= {
            *known,
            training.BEFORE,
        }
    assert str(contenders.characters(chosen)) == str(text)
    random = contenders.characters(Namespace(folder=tmp_path, text=None)).read_text()
    assert len(set(random)) == 65


@pytest.mark.parametrize("name", list(training.SPEEDS))
@pytest.mark.parametrize("is_quick", [False, True])
def test_steps_judge_the_contenders_that_their_bounds_name(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_quick: bool
) -> None:
    def turns(every: dict[str, Any], n_rounds: int, n_pieces: int) -> tuple[dict[str, float], dict[str, list[float]]]:
        seconds = {label: 1.0 if "minigpt" in label and training.COMPILED in label else 1.5 for label in every}
        return dict.fromkeys(every, 9.0), {label: [each] * n_rounds for label, each in seconds.items()}

    def prepared(changes: list[str], folder: Path) -> tuple[Any, Path]:
        config = contenders.parse(changes)
        return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=66)), folder

    monkeypatch.setattr(training, "turns", turns)
    monkeypatch.setattr("minigpt.training.compile_choice.why_no_compiler", lambda: None)
    monkeypatch.setattr(training, "prepared", prepared)
    chosen = Namespace(folder=tmp_path, text=None, against=checkout, before=tmp_path, quick=is_quick)
    table, *others = training.steps(name, chosen)
    assert isinstance(table, Table)
    assert {"nanoGPT", "minigpt, gpt2 family"} <= {row[0] for row in table.rows}
    assert ["8.0", "8.0"] in [row[-2:] for row in table.rows] or is_quick
    bounds = [row[-1] for block in others if isinstance(block, Table) for row in block.rows]
    wanted = [each for each in training.SPEEDS[name] if not (is_quick and each[1] == "nanoGPT, compiled")]
    assert [(bound.values[0], bound.at_least) for bound in bounds] == [(1.5, least) for *_, least in wanted]
    assert all(bound.startswith("pass") and "matrix products: " in bound.limited_by for bound in bounds)


def a_run(checkout: Path, tokens: Path, **others: Any) -> time_to_loss.Run:
    files = {"checkout": str(checkout), "tokens": str(tokens), "val": str(tokens)}
    known = {"name": "nanoGPT", "seed": 1, "max_steps": 20, "n_points": 2, "cost": 1.0, "vocab_size": 5}
    return time_to_loss.Run(**(known | files | others))


def test_a_run_is_kept_until_something_that_decides_it_changes(
    checkout: Path, tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(checkout, tokens)
    digest = run.digest
    made = time_to_loss.train_theirs(run)
    assert [step for step, *_ in made["curve"]] == [10, 20]
    assert made["seconds"] > 0
    time_to_loss.kept(tmp_path / f"nanoGPT-seed1-{run.digest}.json", lambda: made)
    ((_, again),) = time_to_loss.results([run], tmp_path)
    assert again == json.loads(json.dumps(made))
    assert "training" not in capsys.readouterr().out
    assert a_run(checkout, tokens, cost=2.0).digest == digest, "what a step costs does not change where it leads"
    tokens.write_bytes(tokens.read_bytes()[2:])
    assert a_run(checkout, tokens).digest != digest


def test_the_halves_of_a_val_split_are_measured_apart(tokens: Path) -> None:
    run = a_run(tokens, tokens)
    np.r_[np.zeros(32), np.ones(33)].astype(np.uint16).tofile(tokens)
    always_zero = partial(torch_logits, [9.0, -9.0])
    first, second = time_to_loss.halves(always_zero, run, 8)
    assert first == pytest.approx((31 * 0.0 + 18.0) / 32, abs=1e-4)
    assert second == pytest.approx(18.0, abs=1e-4)


def torch_logits(row: list[float], tokens: Any) -> Any:
    return tokens.float().new_tensor(row).expand(*tokens.shape, len(row))


def test_the_table_says_what_is_reached_in_which_time(tmp_path: Path) -> None:
    theirs = time_to_loss.Run("nanoGPT", 1, 2000, 1, 1.0, vocab_size=5, checkout="x")
    ours = time_to_loss.Run("recipe", 1, 200, 1, 2.0, vocab_size=5)
    results = {"seconds": 9.0, "parameters": 1000}
    done = [(theirs, results | {"curve": [(2000, 1.8, 2.0)]}), (ours, results | {"curve": [(200, 1.7, 1.9)]})]
    table = time_to_loss.loss_table(done, {"recipe, 200 steps": 1 / 6})
    assert table.rows[1][1:5] == ["1,000", "200", "2.00", "20"]
    assert table.rows[1][6:] == [
        "1.8000 (1.8000 to 1.8000)", "1.7000 (1.7000 to 1.7000)", "1.9000 (1.9000 to 1.9000)", "pass, at most 2 nats",
    ]  # fmt: skip
    time_to_loss.draw(done, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
