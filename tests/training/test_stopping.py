"""A signal stops all processes of a run behind a step, saved, and with an exit code that says which."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grids import pairwise
from scripts import ROOT, bare_environment, ready_python
from small_runs import small_settings, wandb_history, with_trainer
from test_resume import assert_same_run

from minigpt.errors import UserError
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import read_checkpoint
from minigpt.signals import SIGNALS
from minigpt.training import run
from minigpt.training.module import TrainingModule
from minigpt.training.run import train
from minigpt.training.samples import Samples

# ---- in this process: at a certain moment ---------------------------------------------------------------------------


def signal_in(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, number: int, call: int) -> None:
    """Send this process a signal in the call of that number, from 0, of a method."""
    real, calls = getattr(where, name), iter(range(1000))

    def method(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return real(*arguments, **options)

    monkeypatch.setattr(where, name, method)


MOMENTS = {
    "step": (TrainingModule, "training_step", 4, 3),  # of two micro-batches for each step
    "step before validation": (TrainingModule, "training_step", 11, 6),  # a validation is due behind it
    "validation": (TrainingModule, "validation_step", 1, 6),
    "samples": (Samples, "on_validation_end", 0, 6),
    "last step": (TrainingModule, "training_step", 23, 12),  # the run ends with it, after its validation
    "last validation": (TrainingModule, "validation_step", -1, 12),
}


@pytest.mark.parametrize(("moment", "average_decay"), pairwise(MOMENTS, [None, 0.9], strength=1))
def test_a_run_stopped_at_any_moment_goes_on_bit_for_bit(
    moment: str, average_decay: float | None, tmp_path: Path, monkeypatch: Any
) -> None:
    where, name, call, saved = MOMENTS[moment]
    config = small_settings(
        tmp_path,
        model={"dropout": 0.1},
        optimizer={"average_decay": average_decay},
        trainer={"accumulate_grad_batches": 2, "val_check_interval": 12},
    )
    straight, n_val = train(config), iter(range(1000))
    if call < 0:  # a batch of the second validation
        with monkeypatch.context() as patched:
            real = TrainingModule.validation_step
            patched.setattr(TrainingModule, "validation_step", lambda *given: (next(n_val), real(*given))[1])
            train(config)
        call, expected = next(n_val) // 2 + 1, "small-3"
    else:
        expected = "small-2"
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        signal_in(patched, where, name, signal.SIGTERM, call)
        train(config)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = RunFolder(tmp_path / "runs" / expected)
    assert read_checkpoint(resumed.last)["global_step"] == saved
    if saved < 12:
        train(config, resumed.path)
    assert_same_run(straight, resumed)
    assert [path.name for path in sorted((resumed.path / "samples").iterdir())] == [
        "step_000006.txt",
        "step_000012.txt",
    ]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", ["open_data", "make_loaders"])
def test_a_signal_before_training_ends_the_program_at_once_and_leaves_no_run(
    moment: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_in(monkeypatch, run, moment, number, 0)
    with pytest.raises(SystemExit) as stopped:
        train(small_settings(tmp_path))
    assert stopped.value.code == 128 + number
    assert not list((tmp_path / "runs").glob("*"))


# ---- real processes: to whom the signal goes ------------------------------------------------------------------------


def processes_under(process: int) -> list[int]:
    """A process and all those it has started, as a scheduler finds them."""
    found = [process]
    for each in found:
        for thread in Path(f"/proc/{each}/task").glob("*/children"):
            found += map(int, thread.read_text().split())
    return found


def command_of(process: int) -> list[str]:
    return Path(f"/proc/{process}/cmdline").read_text().split("\0")


def other_rank(process: int) -> int:
    """The process of rank 1, of two."""
    return next(
        each for each in processes_under(process)[1:] if b"LOCAL_RANK=1" in Path(f"/proc/{each}/environ").read_bytes()
    )


@contextlib.contextmanager
def long_run(
    tmp_path: Path, env: dict[str, str] | None = None, *, cold: bool = False, **sections: Any
) -> Iterator[tuple[RunFolder, Any]]:
    """A run of many minutes, until it has saved; its process has `.pid`, that of rank 0."""
    trainer = {"max_steps": 100_000, "val_check_interval": 100_000} | sections.pop("trainer", {})
    config = small_settings(tmp_path, trainer=trainer, checkpoint_every_n_steps=3, **sections)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config.to_dict()))
    folder = RunFolder(Path(config.runs_dir) / config.name)
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable if cold else ready_python(), "train.py", "--config", str(recipe)],
            cwd=ROOT,
            env=bare_environment() | {"WANDB_MODE": "offline"} | (env or {}),
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: folder.last.exists() or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "output.txt").read_text()
        yield folder, process
    finally:
        process.kill()  # a ready Python's program goes with it
        process.wait()


def wait_until(is_so: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pid_of(folder: RunFolder) -> int:
    """Of the process that trains there, which is none of ours."""
    return int((folder.path / ".lock").read_text().split()[0])


NUMBERS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "USR1": signal.SIGUSR1, "HUP": signal.SIGHUP}
WHOM = [(1, "main"), (1, "all"), (2, "main"), (2, "all"), (2, "rank 1")]
QUICK = {(1, "main", "TERM"), (1, "all", "HUP"), (2, "main", "TERM"), (2, "all", "USR1"), (2, "rank 1", "INT")}
"""Of 20: each signal and each receiver; the others take a minute more."""


@pytest.mark.parametrize(
    ("ranks", "whom", "number"),
    [
        pytest.param(*to, NUMBERS[name], marks=() if (*to, name) in QUICK else pytest.mark.slow, id=f"{to} {name}")
        for to in WHOM
        for name in NUMBERS
    ],
)
def test_whoever_gets_a_signal_all_processes_save_and_end_with_its_code(
    ranks: int, whom: str, number: int, tmp_path: Path
) -> None:
    trainer = {
        "devices": ranks,
        "strategy": "ddp" if ranks > 1 else "auto",
        "logger": "wandb" if whom == "all" else False,
    }
    with long_run(tmp_path, trainer=trainer, data={"num_workers": int(whom == "all")}) as (folder, process):
        main = pid_of(folder)
        everybody = processes_under(main)
        steps = read_checkpoint(folder.last)["global_step"]
        began = time.monotonic()
        for each in {"main": [main], "all": everybody, "rank 1": [other_rank(main)] if ranks > 1 else []}[whom]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, number)
        code = process.wait(120)
        print(f"{ranks} ranks, {whom}, {signal.Signals(number).name}: {time.monotonic() - began:.1f} s")
        output = (tmp_path / "output.txt").read_text()
        assert code == 128 + number, output
        assert output.count(f"train.py --resume {folder.path}") == 1
        assert "Traceback" not in output
        assert read_checkpoint(folder.last)["global_step"] >= steps
        wait_until(lambda: not any(Path(f"/proc/{each}").exists() for each in everybody), seconds=10)
        if whom == "all" and number == signal.SIGUSR1:  # the others end W&B's own process, whatever it has to write
            rows = wandb_history(folder.path)[0]
            assert max(int(row["trainer/global_step"]) for row in rows) >= read_checkpoint(folder.last)["global_step"]


@pytest.mark.parametrize("hangs", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("victim", [0, 1])
def test_no_process_outlives_one_that_was_killed_and_one_line_says_so(victim: int, hangs: bool, tmp_path: Path) -> None:
    """With gloo the others fail at once; one that hangs, as with NCCL, must be ended."""
    callbacks = [{"class_path": "endless.Step"}] if hangs else []
    (tmp_path / "endless.py").write_text(ENDLESS)
    trainer = {"devices": 2, "strategy": "ddp", "callbacks": callbacks}
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    # A ready Python ends what its program has started.
    with long_run(tmp_path, {"PYTHONPATH": path}, cold=True, trainer=trainer) as (folder, process):
        ranks = [pid_of(folder), other_rank(pid_of(folder))]
        if hangs:
            (tmp_path / "now").touch()
            wait_until((tmp_path / "begun").exists)
        os.kill(ranks[victim], signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: not any(is_running(each) for each in ranks), seconds=20)
        print(f"rank {victim} killed: {time.monotonic() - began:.1f} s")
        output = (tmp_path / "output.txt").read_text()
        assert output.count("error: ") == 1, output
        killed = ["error: rank 0 (process", "error: rank 1 (process"][victim]
        assert killed in output
        assert f"train.py --resume {folder.path}" in output.split(killed)[1]
        assert "Traceback" not in output
        assert process.wait(5) == (2 if victim else -signal.SIGKILL)


def is_running(process: int) -> bool:
    """Whether the process is there and no zombie."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def test_a_second_ctrl_c_waits_for_nothing(tmp_path: Path) -> None:
    trainer = {"devices": 2, "strategy": "ddp", "callbacks": [{"class_path": "endless.Step"}]}
    (tmp_path / "endless.py").write_text(ENDLESS)
    with long_run(tmp_path, {"PYTHONPATH": str(tmp_path)}, trainer=trainer) as (folder, process):
        main = pid_of(folder)
        everybody = processes_under(main)
        (tmp_path / "now").touch()
        wait_until((tmp_path / "begun").exists)
        os.kill(main, signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        os.kill(main, signal.SIGINT)
        assert process.wait(10) == 130
        assert "stopped at once" in (tmp_path / "output.txt").read_text()
        wait_until(lambda: not any(Path(f"/proc/{each}").exists() for each in everybody), seconds=10)


ENDLESS = """
import pathlib, time
import lightning as L

class Step(L.Callback):
    def on_before_optimizer_step(self, *_):
        folder = pathlib.Path(__file__).parent
        while (folder / "now").exists():
            (folder / "begun").touch()
            time.sleep(0.1)
"""


# ---- and started again by who runs it -------------------------------------------------------------------------------


SCONTROL = """#!/bin/sh
echo "$@" >> {calls}
exit {code}
"""


@pytest.mark.parametrize(
    ("code", "words"), [(0, "SLURM has requeued job 4321_7"), (1, "SLURM did not requeue the job")]
)
def test_slurm_is_asked_to_run_the_job_again_when_its_time_is_nearly_over(
    code: int, words: str, tmp_path: Path
) -> None:
    calls, program = tmp_path / "calls", tmp_path / "scontrol"
    program.write_text(SCONTROL.format(calls=calls, code=code))
    program.chmod(0o755)
    names = {"JOB_ID": "4328", "ARRAY_JOB_ID": "4321", "ARRAY_TASK_ID": "7", "JOB_NAME": "train", "NTASKS": "1"}
    names |= {"PROCID": "0", "LOCALID": "0", "NODEID": "0", "NTASKS_PER_NODE": "1"}
    slurm = {f"SLURM_{name}": value for name, value in names.items()} | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with long_run(tmp_path, slurm) as (folder, process):
        os.kill(pid_of(folder), signal.SIGUSR1)
        assert process.wait(60) == 138
        assert words in (tmp_path / "output.txt").read_text()
        assert calls.read_text() == "requeue 4321_7\n"


def test_resume_auto_goes_on_with_what_the_same_command_began(tmp_path: Path) -> None:
    config, auto = small_settings(tmp_path, attention={"enabled": False}), Path("auto")
    first = train(config, auto)  # there is none yet
    assert train(config, auto).path == first.path  # which is done
    (tmp_path / "runs" / "small-other").mkdir()
    (tmp_path / "runs" / "small-2").mkdir()  # died before it saved anything
    longer = with_trainer(config, max_steps=14)
    assert train(longer, auto).path == first.path
    assert read_checkpoint(first.last)["global_step"] == 14
    other = dataclasses.replace(longer, seed=7)
    assert train(other, auto).path == tmp_path / "runs" / "small-3"  # the first one is done, and was another
    for file in (tmp_path / "runs" / "small-3" / "checkpoints").glob("*.ckpt"):
        file.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"small-3"):  # rather than hours of training once more
        train(longer, auto)


@pytest.mark.slow  # a minute: torchrun notices late that a process is gone
def test_torchrun_starts_a_run_again_that_goes_on_bit_for_bit(tmp_path: Path) -> None:
    trainer = {"devices": 2, "strategy": "ddp", "max_steps": 60, "val_check_interval": 30}
    config = small_settings(tmp_path, trainer=trainer, checkpoint_every_n_steps=3, model={"dropout": 0.1})
    straight = dataclasses.replace(config, name="straight")
    for each in (config, straight):
        (tmp_path / f"{each.name}.yaml").write_text(yaml.safe_dump(each.to_dict()))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    settings: dict[str, Any] = {"cwd": ROOT, "env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [*torchrun, "--max-restarts=2", "train.py", "--resume=auto", f"--config={tmp_path}/small.yaml"]
    process = subprocess.Popen(command, **settings)
    folder = RunFolder(tmp_path / "runs" / "small")
    wait_until(lambda: folder.last.exists() or process.poll() is not None)
    victim = next(
        each for each in processes_under(process.pid) if b"\0RANK=1\0" in Path(f"/proc/{each}/environ").read_bytes()
    )
    os.kill(victim, signal.SIGKILL)
    assert process.wait(300) == 0
    subprocess.run([*torchrun, "train.py", f"--config={tmp_path}/straight.yaml"], check=True, **settings)
    assert_same_run(RunFolder(tmp_path / "runs" / "straight"), folder)
