"""Proves that resume is exact: trains a config with and without kills and compares all files bit for bit.

    minigpt prove-resume --config configs/demo.yaml --steps 60 --kills 5

It starts real processes of `python -m minigpt train` on this machine and this text, kills them with SIGKILL at random
moments, and continues them with `--resume RUN`. Each difference from the uninterrupted run is printed. A compiled run
is trained once more before, so that all that are timed find a warm cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from minigpt.config import Config, ProofConfig
from minigpt.errors import UserError
from minigpt.files import reason, require_writable, write_text
from minigpt.lab.progress_file import START, STEP, ProgressFile
from minigpt.runs.folder import RunFolder

VAL_BATCHES = 20
"""Limit of validation batches: all of a large text would take longer than the steps."""
SHOWN = 20
"""Most differences that are printed."""
STARTS = 0.2
"""Fraction of kills aimed at the time until the first step is done; the others hit a training process."""
POLL_SECONDS = 0.005


@dataclasses.dataclass(frozen=True)
class Death:
    """How one process of a run ended."""

    phase: str
    """One of `progress_file.PHASES`."""
    step: int
    seconds: float
    """Since the process started."""
    resumed_from: int | None
    """Step of the checkpoint that the next process resumes from; None if there was none yet."""


@dataclasses.dataclass
class Proof:
    """The result of a proof."""

    deaths: list[Death] = dataclasses.field(default_factory=list)
    runs: int = 0
    """Runs that were killed, continued to the end and compared."""
    differences: list[str] = dataclasses.field(default_factory=list)
    repeats_itself: bool = True
    """Whether two uninterrupted runs are equal; tested only if there are differences."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """When to kill: a delay after a phase and step, so that a slow machine does not shift it."""

    place: ProgressFile
    delay_seconds: float


@dataclasses.dataclass
class Timeline:
    """Seconds from an uninterrupted process's start until each phase and step; kills are drawn from it."""

    seen: list[tuple[float, ProgressFile]] = dataclasses.field(default_factory=lambda: [(0.0, ProgressFile())])
    end_seconds: float = 0.0

    @property
    def start_seconds(self) -> float:
        """Seconds until the first step is done."""
        return self.seen[1][0] if self.seen[1:] else self.end_seconds

    def draw(self, chance: random.Random, begun_at: int, kills: int) -> Moment:
        """Draw a moment after step `begun_at`, early enough to leave time for the remaining kills."""
        if chance.random() < STARTS:
            return Moment(ProgressFile(), chance.uniform(0, self.start_seconds))
        first = next(seconds for seconds, place in self.seen if place.order >= ProgressFile(STEP, begun_at).order)
        at = first + chance.uniform(0, (self.end_seconds - first) * min(1.0, 2 / kills))
        seconds, place = next(each for each in reversed(self.seen) if each[0] <= at)
        return Moment(place, at - seconds)


def prove_and_print(config: Config, asked: ProofConfig) -> None:
    """Train, kill, compare, print; exit code 1 where the resumed run differs."""
    say = functools.partial(print, flush=True)
    config, changes = shortened(config, asked.steps)
    if changes:
        say("changed for this proof: " + "; ".join(changes))
    folder = _temporary_folder(Path(config.runs_dir))
    keep = False
    try:
        proof = prove(config, folder, kills=asked.kills, seed=asked.kill_seed, on_line=say)
        keep = bool(proof.differences)
        say(verdict(proof, asked, folder))
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()  # if it is empty, hence made for this
    if keep:
        sys.exit(1)


def verdict(proof: Proof, asked: ProofConfig, folder: Path) -> str:
    """The text printed at the end."""
    counts = f"{asked.steps} steps, {len(proof.deaths)} kills"
    if not proof.differences:
        return f"resume is exact: {counts}, 0 differences"
    lines = proof.differences[:SHOWN]
    if len(proof.differences) > SHOWN:
        lines.append(f"and {len(proof.differences) - SHOWN} more")
    if not proof.repeats_itself:
        lines.append(
            "but two uninterrupted runs differ too: this config is not deterministic on this machine, so this says "
            "nothing about resume; try --trainer.deterministic true"
        )
    lines.append(f"the runs are kept in {folder}")
    exact = "NOT exact" if proof.repeats_itself else "not proven"
    return "\n".join([f"resume is {exact}: {counts}, {len(proof.differences)} differences", *lines])


def shortened(config: Config, steps: int) -> tuple[Config, list[str]]:
    """The config shortened to `steps`, and the changed settings as "trainer.max_steps=60 (was 2000)".

    Raises:
        UserError: checkpoints are disabled, or the text comes from stdin.
    """
    t = config.trainer
    if t.enable_checkpointing is False or t.fast_dev_run:
        raise UserError("trainer.enable_checkpointing=false or fast_dev_run: there would be nothing to resume from")
    if "-" in config.data.sources:
        raise UserError("data.source=-: several processes read the text, and stdin can be read once: save it to a file")
    trainer, top = dict[str, Any](), dict[str, Any]()
    if t.max_steps != steps:
        trainer["max_steps"] = steps
    if t.max_time is not None:
        trainer["max_time"] = None  # a schedule by the clock differs between runs
    third = max(1, steps // 3) * t.accumulate_grad_batches
    interval = t.val_check_interval
    if interval is None or (interval > third if isinstance(interval, int) else interval > 1 / 3):
        trainer["val_check_interval"] = third
    if t.limit_val_batches is None:
        trainer["limit_val_batches"] = VAL_BATCHES
    if (t.log_every_n_steps or steps) > max(1, steps // 10):
        trainer["log_every_n_steps"] = max(1, steps // 10)
    if config.checkpoint_every_n_minutes is not None:
        top["checkpoint_every_n_minutes"] = None
    if config.checkpoint_every_n_steps is None or config.checkpoint_every_n_steps > steps // 4:
        top["checkpoint_every_n_steps"] = max(1, steps // 8)
    if config.keep_every_n_steps is not None and config.keep_every_n_steps > steps // 2:
        top["keep_every_n_steps"] = max(1, steps // 4)
    if config.attention.every_n_steps is not None and config.attention.every_n_steps > steps // 2:
        every = max(1, steps // 4)
        top["attention"] = dataclasses.replace(config.attention, every_n_steps=every)
    if config.compile is None and _would_compile(config):
        top["compile"] = True  # null would mean false for so few steps
    changes = [f"trainer.{name}={value} (was {getattr(t, name)})" for name, value in trainer.items()]
    changes += [f"{name}={value} (was {getattr(config, name)})" for name, value in top.items() if name != "attention"]
    if "attention" in top:
        changes.append(f"attention.every_n_steps={every} (was {config.attention.every_n_steps})")
    return dataclasses.replace(config, trainer=dataclasses.replace(t, **trainer), **top), changes


def _would_compile(config: Config) -> bool:
    """Whether the whole run compiles its step once the cache is warm."""
    import torch

    from minigpt.training.compile_choice import choose

    on_gpu = torch.cuda.is_available() and str(config.trainer.accelerator) in {"auto", "gpu", "cuda"}
    return choose(config, torch.device("cuda" if on_gpu else "cpu"), is_warm=True).compiles


def _temporary_folder(runs_dir: Path) -> Path:
    """A folder on the disk of runs_dir: how that disk renames and flushes files is part of the proof."""
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        require_writable(runs_dir)
        return Path(tempfile.mkdtemp(prefix="prove-resume-", dir=runs_dir))
    except OSError as error:
        raise UserError(f"runs_dir={runs_dir}: cannot be written ({reason(error)})") from None


def prove(
    config: Config,
    folder: Path,
    *,
    kills: int,
    seed: int,
    on_line: Callable[[str], None] = lambda line: None,
    python: str | None = None,
) -> Proof:
    """Train once without kills, then with kills until all are done, and compare.

    Args:
        config: from `shortened`.
        folder: an empty folder for the runs.
        kills: number of kills, over as many runs as are needed.
        seed: of the kills' moments.
        on_line: called with each line of progress.
        python: the interpreter of the processes; this one by default.

    Raises:
        UserError: the uninterrupted run fails.
    """
    from minigpt.data.open import open_data
    from minigpt.lab.differences import differences

    open_data(config.data)  # prepare the text once, before the timed run
    work = _Work(config, folder, python or sys.executable)
    straight, proof, chance = RunFolder(folder / "straight" / config.name), Proof(), random.Random(seed)
    if config.compile:  # the killed processes find a warm cache; against a cold one, all kills would come too late
        work.straight("compiled")
        shutil.rmtree(folder / "compiled")
    times = work.straight("straight")
    start, rest = times.start_seconds, times.end_seconds - times.start_seconds
    on_line(f"not killed: {config.trainer.max_steps} steps; {start:.1f} s until the first, {rest:.1f} s from it on")
    while len(proof.deaths) < kills and not proof.differences:
        proof.runs += 1
        name = f"killed-{proof.runs}"
        try:
            for death in work.killed(name, times, kills - len(proof.deaths), chance):
                proof.deaths.append(death)
                on_line(f"kill {len(proof.deaths)}/{kills}: {_told(death)}")
            proof.differences += differences(straight, RunFolder(folder / name / config.name))
        except UserError as error:  # of the resumed run, or of a file that it left
            proof.differences.append(f"the run cannot be resumed: {error}")
        if not proof.differences:
            shutil.rmtree(folder / name)
    if proof.differences:
        work.straight("again")
        again = differences(straight, RunFolder(folder / "again" / config.name))
        proof.repeats_itself = not again
    return proof


def _told(death: Death) -> str:
    where = "in the start or first step" if death.phase == "start" else f"at step {death.step}, {death.phase}"
    then = "no checkpoint, starts again" if death.resumed_from is None else f"resumes from step {death.resumed_from}"
    return f"after {death.seconds:.1f} s {where}; {then}"


class _Work:
    """Runs processes that train one config, one after the other."""

    def __init__(self, config: Config, folder: Path, python: str) -> None:
        self.folder, self.python, self.name, self.steps = folder, python, config.name, config.trainer.max_steps
        self.place = folder / "place"
        watch = {"class_path": "minigpt.lab.progress_recorder.ProgressRecorder", "init_args": {"path": str(self.place)}}
        trainer = dataclasses.replace(config.trainer, callbacks=[*(config.trainer.callbacks or []), watch])
        self.config = dataclasses.replace(config, trainer=trainer)
        self.environment = {"WANDB_MODE": "offline"} | os.environ | {"PYTHONUNBUFFERED": "1"}
        if self.environment["WANDB_MODE"] not in {"disabled", "dryrun"}:
            self.environment["WANDB_MODE"] = "offline"  # do not upload the proof's runs

    def straight(self, name: str) -> Timeline:
        """Train without kills and return when each phase and step was reached."""
        times = Timeline()
        self._process(self._new(name), None, times)
        return times

    def killed(self, name: str, times: Timeline, kills: int, chance: random.Random) -> Iterator[Death]:
        """Train with up to `kills` kills, fewer if the run ends before, then to the end."""
        run = RunFolder(self.folder / name / self.name)
        arguments, begun_at = self._new(name), 0
        while True:
            death = self._process(arguments, times.draw(chance, begun_at, kills) if kills else None)
            if death is None:
                return
            kills -= 1
            step = self._checkpoint_step(run)
            yield dataclasses.replace(death, resumed_from=step)
            if step is None:
                shutil.rmtree(run.path, ignore_errors=True)
                arguments, begun_at = self._new(name), 0
            elif step < self.steps:
                arguments, begun_at = ["--resume", str(run.path)], step
            else:  # killed after its last checkpoint: --resume would refuse; only old checkpoints may be left to delete
                for file in list(run.all_earlier.values())[self.config.keep_checkpoints - 1 :]:
                    file.unlink()
                return

    def _new(self, name: str) -> list[str]:
        recipe = self.folder / f"{name}.yaml"
        settings = dataclasses.replace(self.config, runs_dir=str(self.folder / name)).to_dict()
        write_text(recipe, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        return ["--config", str(recipe)]

    def _checkpoint_step(self, run: RunFolder) -> int | None:
        from minigpt.runs.loading import newest_checkpoint

        if not (run.last.exists() or run.all_earlier or run.best.exists()):
            return None
        return int(newest_checkpoint(run)[1]["global_step"])

    def _process(self, arguments: list[str], moment: Moment | None, times: Timeline | None = None) -> Death | None:
        """Run one process; kill it at `moment`, or record its progress in `times`.

        Returns:
            How it was killed; None if it ended before.

        Raises:
            UserError: the process failed.
        """
        self.place.unlink(missing_ok=True)
        began, reached = time.monotonic(), None
        process = subprocess.Popen(
            [self.python, "-m", "minigpt", "train", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its own process group, so that DataLoader workers and other ranks are killed too
        )
        try:
            while True:
                try:
                    output, _ = process.communicate(timeout=POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    now, place = time.monotonic(), ProgressFile.read(self.place)
                if times and times.seen[-1][1] != place:
                    times.seen.append((now - began, place))
                if moment and reached is None and place.order >= moment.place.order:
                    reached = began if moment.place.phase == START else now
                if moment and reached is not None and now - reached >= moment.delay_seconds:
                    self._kill(process)
                    place = ProgressFile.read(self.place)
                    return Death(place.phase, place.step, time.monotonic() - began, None)
        finally:
            self._kill(process)
        if process.returncode:
            lines = output.decode(errors="replace").strip().splitlines() or ["it printed nothing"]
            told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            raise UserError(told[0] if told else f"a run ended with exit code {process.returncode}: {lines[-1]}")
        if times:
            times.end_seconds = time.monotonic() - began
        return None

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the process group and wait until its last process has closed the output."""
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=30)
