"""A config and a run's newest checkpoint -> what is changed when it goes on, or why it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt.checkpoint import CHECKPOINT_KEY, newest_checkpoint
from minigpt.config import Config, UserError
from minigpt.data.shards import PreparedData
from minigpt.run_folder import RunFolder


def begun_before(config: Config) -> Path | None:
    """The run that the same command has begun and not ended."""
    for folder in RunFolder.all_named(Path(config.runs_dir), config.name):
        if folder.last.exists() or folder.all_earlier:
            _, content = newest_checkpoint(folder, quiet=True)
            return folder.path if content["global_step"] < config.trainer.max_steps else None
    return None


def existing(resume: str | Path) -> RunFolder:
    """The run to go on with, looked for before its lock would make a folder."""
    folder = RunFolder(resume)
    if not folder.path.is_dir():
        raise UserError(f"--resume {resume}: no such run")
    return folder


def check_text(content: dict[str, Any], folder: RunFolder, data: PreparedData) -> None:
    """Refuse to go on with another text; before anything else, as its tokenizer may be another one too."""
    saved = content[CHECKPOINT_KEY]["text_fingerprint"]
    if saved != data.manifest.text_fingerprint:
        raise UserError(
            f"--resume {folder.path}: the text has changed since the run began (fingerprint {saved[:12]}, now "
            f"{data.manifest.text_fingerprint[:12]}): restore it, or start a new run"
        )


def check_resume(config: Config, content: dict[str, Any], folder: RunFolder) -> list[str]:
    """Refuse what would make the run another one, naming each difference.

    Args:
        config: of the run as it is to go on, with model.vocab_size.
        content: of the checkpoint that it goes on from.
        folder: the run's.

    Returns:
        What is changed and may be, as "trainer.max_steps=24 (was 12)".

    Raises:
        UserError: something else is changed, or all steps are done.
    """
    refused: list[str] = []
    applied: list[str] = []
    saved = Config.from_dict(content[CHECKPOINT_KEY]["config"])
    for name, now, before in _differences(config.to_dict(), saved.to_dict()):
        (applied if _may_change(name, now, before) else refused).append(f"{name}={_shown(now)} (was {_shown(before)})")
    if refused:
        raise UserError(f"--resume {folder.path}: this would be another run: {'; '.join(refused)}")
    if content["global_step"] >= config.trainer.max_steps:
        raise UserError(
            f"--resume {folder.path}: all {content['global_step']} steps are done; "
            f"give more, as in --trainer.max_steps {2 * content['global_step']}"
        )
    return applied


def _differences(now: dict[str, Any], before: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name, value in now.items():
        if isinstance(value, dict) and not prefix:  # a section
            yield from _differences(value, before[name], f"{name}.")
        elif value != before[name]:
            yield f"{prefix}{name}", value, before[name]


def _may_change(name: str, now: Any, before: Any) -> bool:
    """Whether the run stays the same run, as far as it has come, and takes notice of the change."""
    section = name.partition(".")[0]
    if name == "optimizer.average_decay":
        return (now is None) == (before is None)
    # The optimizer's state would be another's; and a run stays in its folder, whatever it is called.
    return name in {"data.dir", "data.num_workers"} or (
        section not in {"model", "data"} and name not in {"optimizer.name", "seed", "name", "runs_dir"}
    )


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
