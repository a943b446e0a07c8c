"""Checks before a resume: which settings changed, whether they may, and whether anything is left to train."""

from __future__ import annotations

import dataclasses
import glob
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, Timer

from minigpt.command_line import command
from minigpt.config import Config
from minigpt.config.trainer import as_max_time
from minigpt.data.shards import PreparedData
from minigpt.errors import UserError
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import CHECKPOINT_KEY, newest_checkpoint
from minigpt.training.checkpoints import Checkpoints
from minigpt.training.class_path import find_class
from minigpt.training.memorising import Memorising

SAME_TEXT = {"data.source", "data.val_source", "data.tokenizer"}
"""Paths of text and tokenizer. They may change: `check_text` compares the contents instead."""


@dataclass(frozen=True)
class Reached:
    """The step and time that a run has reached."""

    step: int
    seconds: float
    """Counted towards trainer.max_time, resumes included."""
    ended: bool
    """Whether the run ended there: steps or time used up, or stopped by a callback."""
    memorised: bool = False
    """Whether the run has said that it memorises, which ends it with stop_when_memorising."""

    @classmethod
    def of_checkpoint(cls, content: dict[str, Any]) -> Reached:
        """From a checkpoint's content."""
        states = [state for state in content["callbacks"].values() if isinstance(state, dict)]
        seconds = next((state["time_elapsed"]["train"] for state in states if "time_elapsed" in state), 0.0)
        ended = content["callbacks"]["Checkpoints"].get("ended", False)
        memorised = content["callbacks"].get("Memorising", {}).get("said", False)
        return cls(content["global_step"], seconds, ended, memorised)

    @classmethod
    def of_trainer(cls, trainer: L.Trainer) -> Reached:
        """From a running trainer."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        seconds = next((each.time_elapsed() for each in callbacks if isinstance(each, Timer)), 0.0)
        ended = any(isinstance(each, Checkpoints) and each.ended for each in callbacks)
        memorised = any(isinstance(each, Memorising) and each.said for each in callbacks)
        return cls(trainer.global_step, seconds, ended, memorised)

    def way_on(self, config: Config, before: Config | None = None) -> tuple[str, list[object]]:
        """Why nothing is left to train, and the arguments that would train on; ("", []) if something is left.

        Args:
            config: of the resumed run.
            before: of the run when it saved its checkpoint; `config` if not given.
        """
        before = before or config
        why, arguments = list[str](), list[object]()
        limit = config.trainer.max_time_seconds
        if self.step >= config.trainer.max_steps:
            why.append(f"all {self.step} steps are done")
            arguments += ["--trainer.max_steps", 2 * self.step]
        if limit and self._is_time_up(config):
            why.append(f"trainer.max_time={config.trainer.max_time} is used up at step {self.step}")
        if limit and self.seconds > (limit / 2 if arguments else limit - 1):  # twice the steps take twice the time
            arguments += ["--trainer.max_time", as_max_time(limit * max(2, math.ceil(self.seconds / limit + 0.5)))]
        if self._was_stopped(config, before):
            stoppers, others = _stoppers(config)
            if self.memorised and config.stop_when_memorising:
                why.append(f"stop_when_memorising ended it at step {self.step}")
                arguments += ["--stop_when_memorising", "false"]
            elif stoppers:
                why.append(f"{' or '.join(stoppers)} ended it at step {self.step}")
                arguments += ["--trainer.callbacks", json.dumps(others) if others else "null"]
        return " and ".join(why), arguments if why else []

    def is_done(self, config: Config, before: Config) -> bool:
        """Whether a run that is started again has nothing left to train."""
        return bool(self.way_on(config, before)[0]) or self._was_stopped(config, before)

    def _is_time_up(self, config: Config) -> bool:
        limit, least = config.trainer.max_time_seconds, config.trainer.min_steps or 0
        return limit is not None and self.seconds >= limit and self.step >= least

    def _was_stopped(self, config: Config, before: Config) -> bool:
        """Whether a callback ended the run, rather than steps or time, and the config still has the same callbacks."""
        by_callback = self.ended and self.step < before.trainer.max_steps and not self._is_time_up(before)
        is_off = before.stop_when_memorising and not config.stop_when_memorising
        return by_callback and config.trainer.callbacks == before.trainer.callbacks and not (self.memorised and is_off)


def _stoppers(config: Config) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the configured EarlyStopping callbacks, which would end the run again, and the other callbacks."""
    names, others = list[str](), list[dict[str, Any]]()
    for value in config.trainer.callbacks or []:
        found = find_class(value)
        if issubclass(found, EarlyStopping):
            names.append(found.__name__)
        else:
            others.append(value)
    return names, others


def go_on(folder: RunFolder, config: Config, reached: Reached) -> str:
    """The command line that resumes a run, with more steps or time if those are used up."""
    return command("train", "--resume", folder.path, *reached.way_on(config)[1])


def begun_before(config: Config) -> tuple[Path | None, str]:
    """The run that `--resume auto` continues.

    Returns:
        The newest run of the config's name that has a checkpoint; None if there is none, or if it is done and had
        other settings. And a message if that run is done; else "".
    """
    for folder in RunFolder.all_named(Path(config.runs_dir), config.name):
        if folder.last.exists() or folder.all_earlier:
            _, content = newest_checkpoint(folder, quiet=True)
            saved, reached = Config.from_dict(content[CHECKPOINT_KEY]["config"]), Reached.of_checkpoint(content)
            config = config.as_planned_before(saved)
            if not reached.is_done(config, saved):
                return folder.path, ""
            # What the text has filled in is no difference.
            unset = {name for name in ("vocab_size", "end_of_text") if getattr(config.model, name) is None}
            filled = dataclasses.replace(config.model, **{name: getattr(saved.model, name) for name in unset})
            changes = _differences(dataclasses.replace(config, model=filled), saved)
            if any(not _may_change(name, *values) for name, *values in changes):
                return None, ""
            why, arguments = reached.way_on(config, saved)
            return folder.path, (
                f"{folder.path} is done: {why or f'a callback ended it at step {reached.step}'}; to train on: "
                f"{command('train', '--resume', folder.path, *arguments)}; for another run leave out --resume auto"
            )
    return None, ""


def existing(resume: str | Path) -> RunFolder:
    """The run folder to resume, checked before locking it would create it.

    Raises:
        UserError: there is no such folder.
    """
    folder = RunFolder(resume)
    if not folder.path.is_dir():
        raise UserError(f"--resume {resume}: no such run")
    return folder


def with_paths_of(config: Config, content: dict[str, Any]) -> Config:
    """The config, with relative paths resolved against the working directory in which the run started.

    Only paths that the user has not changed, that do not exist here, and that exist there.
    """
    home = content[CHECKPOINT_KEY].get("working_directory", "")
    saved = Config.from_dict(content[CHECKPOINT_KEY]["config"])

    def found(name: str) -> str:
        there = str(Path(home, name))
        return there if home and not _exists(name) and _exists(there) else name

    def resolved(now: Any, before: Any) -> Any:
        if now != before or now is None:
            return now
        return [found(name) for name in now] if isinstance(now, list) else found(now)

    data = {
        name: resolved(getattr(config.data, name), getattr(saved.data, name))
        for name in ("source", "val_source", "tokenizer", "dir")
    }
    relations = resolved(config.attention.relations, saved.attention.relations)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **data),
        attention=dataclasses.replace(config.attention, relations=relations),
    )


def _exists(name: str) -> bool:
    return os.path.exists(name) or any(glob.iglob(name, recursive=True))  # noqa: PTH110 (no error if a name is too long)


def check_text(content: dict[str, Any], folder: RunFolder, data: PreparedData) -> None:
    """Refuse to resume with another text or tokenizer; their paths may differ.

    Raises:
        UserError: the text's fingerprint, its preparation or the tokenizer differs.
    """
    saved = content[CHECKPOINT_KEY]
    began, now = saved["text_fingerprint"], data.manifest.text_fingerprint
    restore = "restore it, or start a new run"
    if began != now:
        raise UserError(
            f"--resume {folder.path}: the text has changed since the run began (fingerprint {began[:12]}, now "
            f"{now[:12]}): {restore}"
        )
    # A folder of prepared data brings its own settings, which the config does not show.
    settings = data.manifest.settings
    changed = [
        f"{name}={_shown(settings.get(name))} (was {_shown(value)})"
        for name, value in saved.get("text_settings", settings).items()
        if settings.get(name) != value
    ]
    if changed:
        raise UserError(
            f"--resume {folder.path}: {data.folder} was prepared with other settings: data.{', data.'.join(changed)}"
        )
    if saved["tokenizer"] != data.tokenizer.to_dict():
        raise UserError(f"--resume {folder.path}: the tokenizer has changed since the run began: {restore}")


def check_resume(config: Config, content: dict[str, Any], folder: RunFolder) -> list[str]:
    """Refuse changed settings that would make it another run, such as the model's; `check_text` checks its text.

    Returns:
        The allowed changes, each as "trainer.max_steps=24 (was 12)".

    Raises:
        UserError: a setting that must not change has changed, or nothing is left to train.
    """
    saved = Config.from_dict(content[CHECKPOINT_KEY]["config"])
    applied, refused = list[str](), list[str]()
    for name, now, before in _differences(config, saved):
        may = name in SAME_TEXT or _may_change(name, now, before)
        (applied if may else refused).append(f"{name}={_shown(now)} (was {_shown(before)})")
    if refused:
        raise UserError(f"--resume {folder.path}: this would be another run: {'; '.join(refused)}")
    why, arguments = Reached.of_checkpoint(content).way_on(config, saved)
    if why:
        raise UserError(
            f"--resume {folder.path}: {why}; to train on: {command('train', '--resume', folder.path, *arguments)}"
        )
    return applied


def _differences(now: Config, before: Config) -> Iterator[tuple[str, Any, Any]]:
    """Name, new value and old value of each setting that differs."""
    settings, earlier = now.to_dict(), before.to_dict()
    for name, value in settings.items():
        if isinstance(value, dict):  # a section
            for key, each in value.items():
                if each != earlier[name][key]:
                    yield f"{name}.{key}", each, earlier[name][key]
        elif value != earlier[name]:
            yield name, value, earlier[name]


def _may_change(name: str, now: Any, before: Any) -> bool:
    """Whether a resumed run may change this setting: its past steps stay valid and the change takes effect."""
    section = name.partition(".")[0]
    if name == "optimizer.average_decay":
        return (now is None) == (before is None)
    # Another optimizer cannot use the saved state; name and runs_dir have no effect on an existing folder.
    return name in {"data.dir", "data.num_workers", "data.max_val_tokens"} or (
        section not in {"model", "data"}
        and name not in {"optimizer.name", "seed", "name", "runs_dir", "initial_weights", "lora"}
    )


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
