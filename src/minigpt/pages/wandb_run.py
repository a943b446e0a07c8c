"""A W&B run's folder, offline or online -> what is known of the run. The run's own folder may be long gone.

W&B's own tool reads the log (`wandb leet inspect`); tables, pictures and pages lie beside it, in files/media. All of
them may come from anybody: paths in the log are followed inside of the folder only.
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
"""Lightning's step; a run of another program has W&B's own count of rows instead."""
PAGE = "attn/page"
MOST_BYTES = 32_000_000
"""A larger table, picture or page is not shown."""


class Row(NamedTuple):
    """What was logged at once."""

    folder: Path
    """Where its media lie."""
    step: int
    item: dict[str, Any]

    def media(self, kind: str) -> Iterator[str]:
        """Names of what was logged as one type of W&B's."""
        return (name.removesuffix("._type") for name, value in self.item.items() if value == kind)


def read_wandb_run(path: str | Path) -> RunRecord:
    """What W&B logged of a run up to now.

    Args:
        path: the run's folder, or the `run-*.wandb` file in it.

    Raises:
        UserError: it is no W&B run, or wandb is not installed.
        OSError: a file cannot be read.
    """
    path = Path(path)
    about: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    rows: list[Row] = []
    seconds = 0.0
    for file in _parts(path):
        part = []
        for record in _records(file):
            content = record[record["type"]]
            if record["type"] == "history":
                part.append(_row(file.parent / "files", content["item"]))
            else:  # run or config
                about = content | about  # of a run that was resumed the first beginning counts
                settings |= (content.get("config") or content).get("update") or {}
        seconds += max((row.item.get("_runtime", 0) for row in part), default=0)
        # A run that was resumed begins again at its last checkpoint.
        begin = min((row.step for row in part), default=sys.maxsize)
        rows = [row for row in rows if row.step < begin] + part
    if not about and not rows:
        raise UserError(f"{path}: nothing has been logged in it yet")
    settings.pop("_wandb", None)
    return _record(about, settings, rows, seconds)


def _record(about: dict[str, Any], settings: dict[str, Any], rows: list[Row], seconds: float) -> RunRecord:
    media = _Media()
    page = _page(rows, media)
    return RunRecord(
        name=str(about.get("display_name") or about.get("run_id") or "W&B run"),
        settings=settings,
        facts={
            "began": str(about.get("start_time", ""))[:16].replace("T", " ") + " UTC",
            "time": f"{duration(seconds)} from the start to what was logged last",
        },
        curves=curves_of((row.step, _numbers(row.item)) for row in rows),
        samples=[sample for row in rows for name in row.media("table-file") for sample in media.samples(row, name)],
        page=page,
        pictures=_pictures(rows, media, without_attention=page is not None),
        missing=media.missing(),
    )


def _parts(path: Path) -> list[Path]:
    """The log, and those of the same run that lie beside it: each time that a run is resumed it gets another folder."""
    file = (path if path.is_file() else min(path.glob("*.wandb"))).resolve()
    run_id = file.stem.removeprefix("run-")
    # Where two parts began in the same second, a folder's name ends in -1.
    parts = file.parent.parent.glob(f"*run-*-{glob.escape(run_id)}*/{glob.escape(file.name)}")
    return sorted({file, *parts}, key=lambda part: part.parent.name.removeprefix("offline-"))


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """The records of settings and of history, as W&B's tool tells them; of a log that is being written, too."""
    # -P: not a wandb.py of the folder that one stands in. Without the variable the tool looks for a service.
    command = [sys.executable, "-P", "-m", "wandb", "leet", "inspect", "--json", str(file)]
    environment = os.environ | {"WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", env=environment, check=False
    )
    if "No module named wandb" in done.stderr:
        raise UserError(f"{file}: a W&B run is read by W&B's own tool: pip install wandb")
    if "No such command" in done.stderr or "No such option" in done.stderr:
        raise UserError(f"{file}: the wandb that is installed cannot read it: pip install -U 'wandb>=0.31'")
    if done.returncode:
        why = (done.stderr.strip() or "the wandb tool failed").splitlines()[-1].removeprefix("Error: ")
        raise UserError(f"{file}: not a W&B run that can be read ({why})")
    wanted = tuple(f'"type":"{kind}"' for kind in ("run", "config", "history"))
    for line in done.stdout.splitlines():
        if any(kind in line[:80] for kind in wanted):  # most lines are others, and parsing takes longer than looking
            yield json.loads(line)


def _row(folder: Path, item: dict[str, Any]) -> Row:
    step = item.get(STEP, item.get("_step", 0))
    return Row(folder, int(step) if isinstance(step, int | float) else 0, item)


def _numbers(item: dict[str, Any]) -> dict[str, float]:
    """The scalars of a row, without what W&B says of its media, such as the size of a table."""
    own = tuple(name.removesuffix("_type") for name in item if name.endswith("._type"))
    return {
        name: value
        for name, value in item.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not name.startswith(("_", STEP, *own))
    }


def _page(rows: list[Row], media: _Media) -> str | None:
    """The newest attention page; pages of others are named, never shown."""
    page = None
    for name, row in _newest(rows, "html-file").items():
        content = media.read(row, row.item.get(f"{name}.path"))
        renewed = renew_page(content.decode("utf-8", "replace")) if content and name == PAGE else None
        page = page or renewed
        if content and not renewed:
            origin = "was made by another version of minigpt" if name == PAGE else "is not minigpt's"
            media.notes.append(f"The page {name} {origin}: open {row.item[f'{name}.path']} by itself.")
    return page


def _pictures(rows: list[Row], media: _Media, without_attention: bool) -> list[Picture]:
    """The newest of each; the attention page has all that its pictures show."""
    pictures = []
    for kind in ("image-file", "images/separated"):
        for name, row in _newest(rows, kind).items():
            if not (without_attention and name.startswith("attn/")):
                files = row.item.get(f"{name}.filenames") or [row.item.get(f"{name}.path")]
                contents = [media.read(row, file) for file in files]
                pictures += [Picture(name, row.step, content) for content in contents if content]
    return pictures


def _newest(rows: list[Row], kind: str) -> dict[str, Row]:
    return {name: row for row in rows for name in row.media(kind)}


class _Media:
    """Reads files of a run, and remembers which were not to be had."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.absent: list[str] = []

    def read(self, row: Row, path: object) -> bytes | None:
        folder = row.folder.resolve()
        try:
            file = (folder / str(path)).resolve()
            if file.is_relative_to(folder) and file.is_file() and file.stat().st_size <= MOST_BYTES:
                return file.read_bytes()
        except (OSError, ValueError):  # ValueError: a NUL in the name
            pass
        self.absent.append(str(path))
        return None

    def samples(self, row: Row, name: str) -> list[Sample]:
        """The rows of a table that has texts; ours has step, prompt and text."""
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
        absent = [f"{self.absent[0]}{others}: not there, too large or damaged."] if self.absent else []
        return [*self.notes, *absent]
