"""Read the folder of a W&B run, offline or online, for its report. minigpt's own run folder is not needed.

W&B's own tool reads the log (`wandb leet inspect`); tables, pictures and pages are in files/media. All of them are
untrusted: paths in the log are followed only inside the folder.
"""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from minigpt.errors import UserError
from minigpt.pages.attention import renew_page
from minigpt.pages.run_record import Picture, RunRecord, Sample, curves_of, duration

STEP = "trainer/global_step"
"""Lightning's key for the optimizer step; runs of other programs have only W&B's own step, which counts rows."""
PAGE = "attn/page"
MOST_BYTES = 32_000_000
"""Larger tables, pictures and pages are not shown."""


class HistoryRow(NamedTuple):
    """One logged row."""

    folder: Path
    """Folder of its media."""
    step: int
    item: dict[str, Any]

    def media(self, kind: str) -> Iterator[str]:
        """Names of the row's values of one W&B media type."""
        return (name.removesuffix("._type") for name, value in self.item.items() if value == kind)


def read_wandb_run(path: str | Path) -> RunRecord:
    """Read what W&B has logged of a run so far.

    Args:
        path: the run's folder, or the `run-*.wandb` file in it.

    Raises:
        UserError: the path is no W&B run, or wandb is not installed.
        OSError: a file cannot be read.
    """
    path = Path(path)
    about: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    rows: list[HistoryRow] = []
    seconds = 0.0
    for file in _parts(path):
        part = []
        for record in _records(file):
            content = record[record["type"]]
            if record["type"] == "history":
                part.append(_row(file.parent / "files", content["item"]))
            else:  # run or config
                about = content | about  # a resumed run keeps its first start time
                settings |= (content.get("config") or content).get("update") or {}
        seconds += max((row.item.get("_runtime", 0) for row in part), default=0)
        # A resumed run starts again at its last checkpoint, so its rows replace later ones.
        begin = min((row.step for row in part), default=sys.maxsize)
        rows = [row for row in rows if row.step < begin] + part
    if not about and not rows:
        raise UserError(f"{path}: nothing has been logged in it yet")
    settings.pop("_wandb", None)
    return _record(about, settings, rows, seconds)


def _record(about: dict[str, Any], settings: dict[str, Any], rows: list[HistoryRow], seconds: float) -> RunRecord:
    media = _Media()
    page = _page(rows, media)
    return RunRecord(
        name=str(about.get("display_name") or about.get("run_id") or "W&B run"),
        settings=settings,
        facts={
            "began": str(about.get("start_time", ""))[:16].replace("T", " ") + " UTC",
            "time": f"{duration(seconds)} from the start to the last logged row",
        },
        curves=curves_of((row.step, _numbers(row.item)) for row in rows),
        samples=[sample for row in rows for name in row.media("table-file") for sample in media.samples(row, name)],
        page=page,
        pictures=_pictures(rows, media, without_attention=page is not None),
        missing=media.missing(),
    )


def _parts(path: Path) -> list[Path]:
    """All logs of the run, oldest first: W&B makes another folder each time a run is resumed."""
    file = (path if path.is_file() else min(path.glob("*.wandb"))).resolve()
    run_id = file.stem.removeprefix("run-")
    # Where two parts began in the same second, a folder's name ends in -1.
    parts = file.parent.parent.glob(f"*run-*-{glob.escape(run_id)}*/{glob.escape(file.name)}")
    return sorted({file, *parts}, key=lambda part: part.parent.name.removeprefix("offline-"))


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """Records of settings and history, read by W&B's tool, also from a log that is still being written."""
    # -P ignores a wandb.py in the current folder. Without the variable the tool looks for a service.
    command = [sys.executable, "-P", "-m", "wandb", "leet", "inspect", "--json", str(file)]
    environment = os.environ | {"WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", env=environment, check=False
    )
    if "No module named wandb" in done.stderr:
        raise UserError(f"{file}: reading a W&B run needs W&B's own tool: pip install wandb")
    if "No such command" in done.stderr or "No such option" in done.stderr:
        raise UserError(f"{file}: the installed wandb cannot read it: pip install -U 'wandb>=0.31'")
    if done.returncode:
        why = (done.stderr.strip() or "the wandb tool failed").splitlines()[-1].removeprefix("Error: ")
        raise UserError(f"{file}: not a W&B run that can be read ({why})")
    wanted = tuple(f'"type":"{kind}"' for kind in ("run", "config", "history"))
    for line in done.stdout.splitlines():
        if any(kind in line[:80] for kind in wanted):  # most lines are of other types, and parsing is slow
            yield json.loads(line)


def _row(folder: Path, item: dict[str, Any]) -> HistoryRow:
    step = item.get(STEP, item.get("_step", 0))
    return HistoryRow(folder, int(step) if isinstance(step, int | float) else 0, item)


def _numbers(item: dict[str, Any]) -> dict[str, float]:
    """The scalars of a row, without W&B's own about media, such as the size of a table."""
    own = tuple(name.removesuffix("_type") for name in item if name.endswith("._type"))
    return {
        name: value
        for name, value in item.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not name.startswith(("_", STEP, *own))
    }


def _page(rows: list[HistoryRow], media: _Media) -> str | None:
    """The newest attention page; pages of other programs are named, never shown."""
    page = None
    for name, row in _newest(rows, "html-file").items():
        content = media.read(row, row.item.get(f"{name}.path"))
        renewed = renew_page(content.decode("utf-8", "replace")) if content and name == PAGE else None
        page = page or renewed
        if content and not renewed:
            origin = "was made by another version of minigpt" if name == PAGE else "is not minigpt's"
            media.notes.append(f"The page {name} {origin}: open {row.item[f'{name}.path']} by itself.")
    return page


def _pictures(rows: list[HistoryRow], media: _Media, without_attention: bool) -> list[Picture]:
    """The newest picture of each name; attention pictures are redundant beside the attention page."""
    pictures = []
    for kind in ("image-file", "images/separated"):
        for name, row in _newest(rows, kind).items():
            if not (without_attention and name.startswith("attn/")):
                files = row.item.get(f"{name}.filenames") or [row.item.get(f"{name}.path")]
                contents = [media.read(row, file) for file in files]
                pictures += [Picture(name, row.step, content) for content in contents if content]
    return pictures


def _newest(rows: list[HistoryRow], kind: str) -> dict[str, HistoryRow]:
    return {name: row for row in rows for name in row.media(kind)}


class _Media:
    """Reads media files of a run, and remembers those that it could not read."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.absent: list[str] = []

    def read(self, row: HistoryRow, path: object) -> bytes | None:
        folder = row.folder.resolve()
        try:
            file = (folder / str(path)).resolve()
            if file.is_relative_to(folder) and file.is_file() and file.stat().st_size <= MOST_BYTES:
                return file.read_bytes()
        except (OSError, ValueError):  # ValueError: a NUL in the name
            pass
        self.absent.append(str(path))
        return None

    def samples(self, row: HistoryRow, name: str) -> list[Sample]:
        """Samples in a table that has a column `text`; minigpt's has step, prompt and text."""
        content = self.read(row, row.item.get(f"{name}.path"))
        if content is None:
            return []
        try:
            table = json.loads(content)
            lines = [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            self.absent.append(str(row.item.get(f"{name}.path")))
            return []
        return [Sample(row.step, str(line.get("prompt", "")), str(line["text"])) for line in lines if "text" in line]

    def missing(self) -> list[str]:
        others = f" and {len(self.absent) - 1} more" if len(self.absent) > 1 else ""
        absent = [f"{self.absent[0]}{others}: missing, too large or damaged."] if self.absent else []
        return [*self.notes, *absent]
