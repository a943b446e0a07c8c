"""A W&B run is read from its folder alone: of any program, resumed, damaged, or made to do harm."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attention_pages import history
from scripts import run_script

from minigpt.errors import UserError
from minigpt.pages import wandb_run
from minigpt.pages.attention import render_page
from minigpt.pages.run_record import Sample
from minigpt.pages.wandb_run import read_wandb_run

HOSTILE = "</script><img src=x onerror=alert(1)>"
OTHER_PROGRAM = f"""
import numpy, wandb
run = wandb.init(mode="offline", project="other", name="a <b>run</b>", config={{"net": {{"depth": 3}}}},
                 settings=wandb.Settings(silent=True))
run.config.update({{"late": "<i>"}})
for i in range(30):
    run.log({{"loss": 1 / (i + 1), "strange": float("nan"), "deep": {{"a": i}}, "flag": True, "word": "hello"}})
table = wandb.Table(columns=["prompt", "text"], data=[["a", "{HOSTILE}"], ["b", "c"]])
run.log({{"written": table, "numbers": wandb.Table(columns=["n"], data=[[1]]), "h": wandb.Histogram([1, 2]),
         "img": wandb.Image(numpy.zeros((4, 4, 3), numpy.uint8)), "attn/page": wandb.Html("{HOSTILE}", inject=False)}})
run.finish()
"""


@pytest.fixture(scope="module")
def other_program(tmp_path_factory: pytest.TempPathFactory, bare_environment: dict[str, str]) -> Path:
    """The folder of an offline run that knows nothing of minigpt."""
    folder = tmp_path_factory.mktemp("other")
    local = {f"WANDB_{kind}_DIR": str(folder / "local") for kind in ("DATA", "CACHE", "CONFIG")}
    run_script("-c", OTHER_PROGRAM, cwd=folder, env=bare_environment | local, check=True)
    (run,) = (folder / "wandb").glob("offline-run-*")
    return run


def test_a_run_of_another_program_gives_what_it_has(other_program: Path) -> None:
    record = read_wandb_run(other_program)
    assert record.name == "a <b>run</b>"
    assert record.settings == {"net": {"depth": 3}, "late": "<i>"}
    assert set(record.curves) == {"loss", "deep.a"}
    assert record.curves["loss"] == {i: pytest.approx(1 / (i + 1)) for i in range(30)}
    assert record.samples == [Sample(30, "a", HOSTILE), Sample(30, "b", "c")]
    assert [(picture.name, picture.step) for picture in record.pictures] == [("img", 30)]


def test_a_page_that_is_not_ours_is_named_and_never_kept(other_program: Path) -> None:
    record = read_wandb_run(other_program)
    assert record.page is None
    (sentence,) = record.missing
    assert sentence.startswith("The page attn/page was made by another version of minigpt: open media/html/attn/page_")


@pytest.mark.parametrize("way", ["folder", "file", "link", "online"])
def test_a_run_is_named_by_its_folder_or_its_file(way: str, other_program: Path, tmp_path: Path) -> None:
    (file,) = other_program.glob("*.wandb")
    path = {"folder": other_program, "file": file, "link": tmp_path / "latest-run", "online": tmp_path / "run-1-abc"}[
        way
    ]
    if way == "link":
        path.symlink_to(other_program)
    elif way == "online":
        shutil.copytree(other_program, path)
    assert len(read_wandb_run(path).curves["loss"]) == 30


def test_half_of_a_log_gives_half_of_a_run(other_program: Path, tmp_path: Path) -> None:
    (file,) = other_program.glob("*.wandb")
    half = tmp_path / file.name
    half.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    record = read_wandb_run(half)
    assert 3 <= len(record.curves["loss"]) < 30
    assert record.curves["loss"][2] == pytest.approx(1 / 3)


def test_a_log_without_its_files_says_so(other_program: Path, tmp_path: Path) -> None:
    (file,) = other_program.glob("*.wandb")
    shutil.copy(file, tmp_path)
    record = read_wandb_run(tmp_path / file.name)
    assert len(record.curves["loss"]) == 30
    (sentence,) = record.missing
    assert sentence.endswith(" and 3 more: missing, too large or damaged.")


def test_a_log_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "run-abc.wandb"
    file.write_bytes(b"no log of W&B's at all")
    with pytest.raises(UserError, match=r"run-abc.wandb: not a W&B run that can be read \(.*invalid"):
        read_wandb_run(file)
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"run-abc.wandb: nothing has been logged in it yet"):
        read_wandb_run(file)


@pytest.mark.parametrize(
    ("complaint", "advice"),
    [
        ("/usr/bin/python: No module named wandb", "pip install wandb"),
        ("Error: No such command 'leet'.", r"pip install -U 'wandb>=0.31'"),
        ("Error: No such option: --json", r"pip install -U 'wandb>=0.31'"),
    ],
)
def test_without_the_tool_that_reads_logs_one_is_told_to_install_it(
    complaint: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "{complaint}" >&2\nexit 1\n')
    python.chmod(0o755)
    (tmp_path / "run-abc.wandb").write_bytes(b"")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match=advice):
        read_wandb_run(tmp_path / "run-abc.wandb")


class Log:
    """What W&B's tool would tell of logs in one folder, for what no logger writes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.records = folder, dict[str, list[dict[str, Any]]]()

    def add(self, part: str, *items: dict[str, Any]) -> Path:
        file = self.folder / part / "run-abc.wandb"
        (file.parent / "files").mkdir(parents=True)
        file.write_bytes(b"")
        run = {"type": "run", "run": {"run_id": "abc", "start_time": f"2026-01-0{len(self.records) + 1}T10:00:00Z"}}
        rows = [{"type": "history", "history": {"item": item}} for item in items]
        self.records[part] = [run, *rows]
        return file.parent

    def read(self, file: Path) -> Iterator[dict[str, Any]]:
        return iter(self.records[file.parent.name])


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log(tmp_path)
    monkeypatch.setattr(wandb_run, "_records", log.read)
    return log


def losses(**values: float) -> list[dict[str, Any]]:
    return [
        {"trainer/global_step": int(step[1:]), "train/loss": loss, "_runtime": 100, "_step": 7}
        for step, loss in values.items()
    ]


def test_the_parts_of_a_resumed_run_are_one_run(log: Log) -> None:
    first = log.add("offline-run-20260101_100000-abc", *losses(s10=5.0, s20=4.0, s30=3.9))
    second = log.add("run-20260102_100000-abc", *losses(s30=3.5, s40=3.0))
    log.add("offline-run-20260103_100000-abd", *losses(s10=1.0))
    for part in (first, second):
        record = read_wandb_run(part)
        assert record.curves == {"train/loss": {10: 5.0, 20: 4.0, 30: 3.5, 40: 3.0}}
        assert record.facts["began"] == "2026-01-01 10:00 UTC"
        assert record.facts["time"].startswith("3 min 20 s")


def test_what_was_logged_after_the_checkpoint_that_a_run_resumes_from_does_not_count(log: Log) -> None:
    media = {"samples._type": "table-file", "samples.path": "gone.json"}
    first = log.add("offline-run-20260101_100000-abc", *losses(s10=5.0, s25=9.0), {"trainer/global_step": 30} | media)
    log.add("offline-run-20260102_100000-abc", *losses(s20=4.0, s40=3.0))
    record = read_wandb_run(first)
    assert record.curves == {"train/loss": {10: 5.0, 20: 4.0, 40: 3.0}}
    assert record.missing == []


@pytest.mark.parametrize("path", ["../secret.json", "/etc/passwd", "link.json", "nul\0", "x" * 5000, "", 7, None])
def test_a_path_in_a_log_leads_nowhere_outside_of_the_folder(path: Any, log: Log) -> None:
    row = {"trainer/global_step": 1, "samples._type": "table-file", "samples.path": path}
    folder = log.add("offline-run-20260101_100000-abc", row)
    secret = folder / "secret.json"
    secret.write_text(json.dumps({"columns": ["text"], "data": [["secret"]]}))
    (folder / "files" / "link.json").symlink_to(secret)
    record = read_wandb_run(folder)
    assert record.samples == []
    assert len(record.missing) == 1


@pytest.mark.parametrize(
    "table", ["", "[]", "{}", '{"columns": ["text"], "data": [[1, 2]]}', '{"columns": 3, "data": 3}', "[" * 100_000]
)
def test_a_damaged_table_is_named(table: str, log: Log) -> None:
    row = {"trainer/global_step": 1, "samples._type": "table-file", "samples.path": "t.json"}
    folder = log.add("offline-run-20260101_100000-abc", row)
    (folder / "files" / "t.json").write_text(table)
    record = read_wandb_run(folder)
    assert record.samples == []
    assert record.missing == ["t.json: missing, too large or damaged."]


def test_of_pages_the_newest_is_shown_and_its_pictures_are_not(log: Log) -> None:
    pages = [render_page(history()[:n], title="x") for n in (1, 2)]
    rows = [
        {"trainer/global_step": n, "attn/page._type": "html-file", "attn/page.path": f"{n}.html",
         "attn/grid._type": "image-file", "attn/grid.path": "g.png", "attn/grid.width": 30}
        for n in (1, 2)
    ]  # fmt: skip
    folder = log.add("offline-run-20260101_100000-abc", *rows)
    for n, page in enumerate(pages, start=1):
        (folder / "files" / f"{n}.html").write_text(page)
    (folder / "files" / "g.png").write_bytes(b"\x89PNG")
    record = read_wandb_run(folder)
    assert record.page == pages[1]
    assert (record.pictures, record.missing, record.curves) == ([], [], {})
    (folder / "files" / "2.html").unlink()
    assert [picture.name for picture in read_wandb_run(folder).pictures] == ["attn/grid"]
