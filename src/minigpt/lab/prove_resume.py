"""A config -> the proof that a killed run of it goes on exactly: trained straight and with kills, everything compared.

    minigpt prove-resume --config configs/demo.yaml --steps 60 --kills 5

Real processes of `python -m minigpt train`, on this machine and this text, killed by SIGKILL at random moments and
continued by `--resume RUN` alone. Where the killed run is another one than the run that was never stopped, each
difference is named.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from minigpt.lab.place import START, STEP, Place
from minigpt.runs.folder import RunFolder

VAL_BATCHES = 20
"""Validation on a large text would take longer than the steps."""
SHOWN = 20
"""Differences that are printed; more seldom say more."""
STARTS = 0.2
"""Share of the kills that are aimed at the time before the first step; the others fall on a process that trains."""
POLL_SECONDS = 0.005


@dataclasses.dataclass(frozen=True)
class Death:
    """How one process of a run ended."""

    phase: str
    """Of `place.PHASES`."""
    step: int
    seconds: float
    """Since the process began."""
    resumed_from: int | None
    """Step of the checkpoint from which the next process goes on; None where there was none yet."""


@dataclasses.dataclass
class Proof:
    """What came out."""

    deaths: list[Death] = dataclasses.field(default_factory=list)
    runs: int = 0
    """That were killed, continued to the end and compared."""
    differences: list[str] = dataclasses.field(default_factory=list)
    repeats_itself: bool = True
    """Whether two runs that nobody kills are one and the same; looked at where there are differences."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """When to kill: some time after a process has come to a place, or passed it; so a slow machine moves nothing."""

    place: Place
    delay_seconds: float


@dataclasses.dataclass
class Timeline:
    """When a process that is not killed was first seen where, in seconds since it began: kills are drawn from it."""

    seen: list[tuple[float, Place]] = dataclasses.field(default_factory=lambda: [(0.0, Place())])
    end_seconds: float = 0.0

    @property
    def start_seconds(self) -> float:
        """To the first step."""
        return self.seen[1][0] if self.seen[1:] else self.end_seconds

    def draw(self, chance: random.Random, begun_at: int, kills: int) -> Moment:
        """A moment of the way from a step on; each kill that is to come has its share of it."""
        if chance.random() < STARTS:
            return Moment(Place(), chance.uniform(0, self.start_seconds))
        first = next(seconds for seconds, place in self.seen if place.order >= Place(STEP, begun_at).order)
        at = first + chance.uniform(0, (self.end_seconds - first) * min(1.0, 2 / kills))
        seconds, place = next(each for each in reversed(self.seen) if each[0] <= at)
        return Moment(place, at - seconds)


def prove_and_print(config: Config, asked: ProofConfig) -> None:
    """Train, kill, compare, print; exit code 1 where the resumed run differs."""
    config, changes = shortened(config, asked.steps)
    if changes:
        print("changed for this proof: " + "; ".join(changes), flush=True)
    folder = _temporary_folder(Path(config.runs_dir))
    keep = False
    try:
        proof = prove(config, folder, kills=asked.kills, seed=asked.kill_seed, on_line=_print)
        keep = bool(proof.differences)
        print(verdict(proof, asked, folder), flush=True)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()  # where it was made for this
    if keep:
        sys.exit(1)


def _print(line: str) -> None:
    print(line, flush=True)


def verdict(proof: Proof, asked: ProofConfig, folder: Path) -> str:
    """The last lines."""
    counts = f"{asked.steps} steps, {len(proof.deaths)} kills"
    if not proof.differences:
        return f"resume is exact: {counts}, 0 differences"
    lines = [*proof.differences[:SHOWN]]
    if len(proof.differences) > SHOWN:
        lines.append(f"and {len(proof.differences) - SHOWN} more")
    if not proof.repeats_itself:
        lines.append(
            "but two runs that nobody killed differ as well: this machine does not repeat itself with this config, so "
            "nothing is said about resume; try --trainer.deterministic true"
        )
    lines.append(f"the runs are kept for a look in {folder}")
    exact = "NOT exact" if proof.repeats_itself else "not proven"
    return "\n".join([f"resume is {exact}: {counts}, {len(proof.differences)} differences", *lines])


def shortened(config: Config, steps: int) -> tuple[Config, list[str]]:
    """The config as it is trained here, and in words what is another than in what the user gave.

    Raises:
        UserError: what has no checkpoints, or cannot be read again by a second process.
    """
    t = config.trainer
    if t.enable_checkpointing is False or t.fast_dev_run:
        raise UserError("trainer.enable_checkpointing=false or fast_dev_run: there would be nothing to resume from")
    if "-" in config.data.sources:
        raise UserError("data.source=-: the text is read by every process that is started here: keep it in a file")
    trainer, top = dict[str, Any](), dict[str, Any]()
    if t.max_steps != steps:
        trainer["max_steps"] = steps
    if t.max_time is not None:
        trainer["max_time"] = None  # no two runs are alike by the clock
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
    if config.compile is None and _compiles(config):
        top["compile"] = True  # with so few steps it would be False
    changes = [f"trainer.{name}={value} (was {getattr(t, name)})" for name, value in trainer.items()]
    changes += [f"{name}={value} (was {getattr(config, name)})" for name, value in top.items() if name != "attention"]
    if "attention" in top:
        changes.append(f"attention.every_n_steps={every} (was {config.attention.every_n_steps})")
    return dataclasses.replace(config, trainer=dataclasses.replace(t, **trainer), **top), changes


def _compiles(config: Config) -> bool:
    from minigpt.model.compiling import compiles

    return compiles(config.compile, config.trainer.accelerator, config.trainer.max_steps)


def _temporary_folder(runs_dir: Path) -> Path:
    """On the disk on which runs lie: how files are renamed and flushed is part of what is proven."""
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
    """Train straight, train with kills, compare; where the killed run ended before all kills, another one is killed.

    Args:
        config: as `shortened` gives it.
        folder: an empty one, for the runs.
        kills: processes to kill.
        seed: of the moments.
        on_line: is told what happens.
        python: what runs the processes; this Python by default.

    Raises:
        UserError: the run does not even come to its end where nobody kills it.
    """
    from minigpt.data.prepare import open_data
    from minigpt.lab.differences import differences

    open_data(config.data)  # once, before times are taken
    work = _Work(config, folder, python or sys.executable)
    straight, proof, chance = RunFolder(folder / "straight" / config.name), Proof(), random.Random(seed)
    times = work.straight("straight")
    start, rest = times.start_seconds, times.end_seconds - times.start_seconds
    on_line(f"not killed: {config.trainer.max_steps} steps; {start:.1f} s to the first, then {rest:.1f} s to the end")
    while len(proof.deaths) < kills and not proof.differences:
        proof.runs += 1
        name = f"killed-{proof.runs}"
        try:
            for death in work.killed(name, times, kills - len(proof.deaths), chance):
                proof.deaths.append(death)
                on_line(f"kill {len(proof.deaths)}/{kills}: {_told(death)}")
            proof.differences += differences(straight, RunFolder(folder / name / config.name))
        except UserError as error:  # of the resumed run, or of a file that it left
            proof.differences.append(f"the run does not go on: {error}")
        if not proof.differences:
            shutil.rmtree(folder / name)
    if proof.differences:
        work.straight("again")
        again = differences(straight, RunFolder(folder / "again" / config.name))
        proof.repeats_itself = not again
    return proof


def _told(death: Death) -> str:
    where = "before the first step" if death.phase == "start" else f"at step {death.step}, {death.phase}"
    then = "started anew" if death.resumed_from is None else f"resumes from step {death.resumed_from}"
    return f"after {death.seconds:.1f} s {where}; {then}"


class _Work:
    """Processes that train one config, one after the other."""

    def __init__(self, config: Config, folder: Path, python: str) -> None:
        self.folder, self.python, self.name, self.steps = folder, python, config.name, config.trainer.max_steps
        self.place = folder / "place"
        watch = {"class_path": "minigpt.lab.whereabouts.Whereabouts", "init_args": {"path": str(self.place)}}
        trainer = dataclasses.replace(config.trainer, callbacks=[*(config.trainer.callbacks or []), watch])
        self.config = dataclasses.replace(config, trainer=trainer)
        self.environment = {"WANDB_MODE": "offline"} | os.environ | {"PYTHONUNBUFFERED": "1"}
        if self.environment["WANDB_MODE"] not in {"disabled", "dryrun"}:
            self.environment["WANDB_MODE"] = "offline"  # a proof is no run for a dashboard

    def straight(self, name: str) -> Timeline:
        """A run that nobody kills."""
        times = Timeline()
        self._process(self._new(name), None, times)
        return times

    def killed(self, name: str, times: Timeline, kills: int, chance: random.Random) -> Iterator[Death]:
        """A run that is killed so many times, or fewer where it comes to its end before, and then goes to its end."""
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
            else:  # nothing is left to do, and --resume would say so; perhaps but for a file that was to go next
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
        """One process, killed at a moment, or watched.

        Returns:
            None where it came to its end before.

        Raises:
            UserError: it ended by itself, and not well.
        """
        self.place.unlink(missing_ok=True)
        began, reached = time.monotonic(), None
        process = subprocess.Popen(
            [self.python, "-m", "minigpt", "train", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: its loaders' workers and other ranks are killed with it
        )
        try:
            while True:
                try:
                    output, _ = process.communicate(timeout=POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    now, place = time.monotonic(), Place.read(self.place)
                if times and times.seen[-1][1] != place:
                    times.seen.append((now - began, place))
                if moment and reached is None and place.order >= moment.place.order:
                    reached = began if moment.place.phase == START else now
                if moment and reached is not None and now - reached >= moment.delay_seconds:
                    self._kill(process)
                    place = Place.read(self.place)
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
        """And wait until the last of its processes has let go of its output."""
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=30)
