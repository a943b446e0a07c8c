"""Saving: wherever it is cut off, what can be resumed from is there; where it cannot be done, it is said at once."""

import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from grids import pairwise
from scripts import ROOT
from small_runs import small_settings, train_and_die, with_trainer
from test_resume import assert_same_run

from minigpt.config import Config
from minigpt.errors import UserError
from minigpt.files import append, link_or_copy, locked, sweep
from minigpt.runs import loading as checkpoint_module
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import (
    first_intact,
    load_model,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
    weights_files,
)
from minigpt.training.checkpoints import AtomicCheckpointIO, Checkpoints, refuse_shards
from minigpt.training.module import TrainingModule
from minigpt.training.run import train

OPERATIONS = ("open", "close", "fsync", "replace", "rename", "link", "unlink", "chmod", "mkdir", "ftruncate")


class Deadly:
    """Counts this process's file operations, and kills it before the n-th; writes in the middle, too."""

    def __init__(self, n: int) -> None:
        self.n, self.count = n, 0
        for name in OPERATIONS:
            setattr(os, name, self.before(getattr(os, name)))
        os.fsync = self.before(lambda handle: None)  # a process that dies leaves what it wrote, on disk or not
        io.open = self.before(io.open)
        write, save = checkpoint_module._Hashing.write, safetensors.torch.save_file

        def write_half(file: Any, data: Any) -> int:
            data = bytes(data)
            file._file.write(data[: len(data) // 2])
            file.flush()
            self.operation()
            file._file.write(data[len(data) // 2 :])
            file.flush()
            file.digest.update(data)
            return len(data)

        def save_half(state: Any, path: Path, metadata: Any) -> None:
            save(state, path, metadata=metadata)
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            self.operation()
            path.write_bytes(whole)

        assert write is not None
        checkpoint_module._Hashing.write = write_half
        safetensors.torch.save_file = save_half

    def operation(self) -> None:
        self.count += 1
        if self.count == self.n:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.operation()
            return function(*arguments, **options)

        return call


def in_child(work: Callable[[], None]) -> int:
    """Do something in a process of its own; how it ended comes back."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def other_file_systems() -> list[Any]:
    """Folders for (run, temporary files): two different file systems."""
    memory = Path("/dev/shm")
    here = memory.is_dir() and os.access(memory, os.W_OK)
    if not here or memory.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        return [("disk", "disk")]
    return [("disk", "memory"), pytest.param("memory", "disk", marks=pytest.mark.slow)]


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[dict[str, Path]]:
    memory = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    (tmp_path / "disk").mkdir()
    yield {"disk": tmp_path / "disk", "memory": memory}
    shutil.rmtree(memory)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunFolder]:
    config = small_settings(tmp_path_factory.mktemp("trained"), attention={"enabled": False})
    return config, train(config)


@pytest.fixture
def config(trained: tuple[Config, RunFolder]) -> Config:
    """Of `run`, and of two more steps."""
    return with_trainer(trained[0], max_steps=14)


@pytest.fixture
def run(trained: tuple[Config, RunFolder], tmp_path: Path) -> RunFolder:
    """A run of 12 steps that can be resumed, and spoilt."""
    return RunFolder(Path(shutil.copytree(trained[1].path, tmp_path / "run")))


@pytest.mark.parametrize("every", [32, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("run_on", "temporary_on"), other_file_systems())
def test_whichever_file_operation_of_a_save_is_the_last_all_can_be_read_and_nothing_strays(
    every: int,
    run_on: str,
    temporary_on: str,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """last.ckpt, the one before, best.ckpt, the best weights and kept ones, all saved at one step, the third time.

    The quick suite takes every 32nd operation, and the last.
    """
    place, temporary = folders[run_on] / "copy", folders[temporary_on] / "temporary"
    temporary.mkdir()
    real_end, seen = Checkpoints.on_validation_end, {"steps": set(), "strays": 0, "operations": 0}

    def saved_with_death_at(n: int, callback: Checkpoints, trainer: Any, module: Any) -> tuple[RunFolder, int]:
        run, report = RunFolder(place / str(n)), folders["disk"] / "count"
        shutil.copytree(callback.folder.path, run.path)

        def work() -> None:
            callback.folder = run
            tempfile.tempdir = str(temporary)
            deadly = Deadly(n)
            callback._save_weights(trainer, module, run.kept(trainer.global_step))
            real_end(callback, trainer, module)
            deadly.n = 0
            report.write_text(str(deadly.count))

        return run, in_child(work) or int(report.read_text())

    def end(self: Checkpoints, trainer: Any, module: Any) -> None:
        if trainer.global_step < 12:
            return real_end(self, trainer, module)
        _, seen["operations"] = saved_with_death_at(-1, self, trainer, module)
        for n in {*range(1, seen["operations"], every), seen["operations"] - 1}:  # last.ckpt is nearly the last
            run, code = saved_with_death_at(n, self, trainer, module)
            assert code == -signal.SIGKILL
            seen["strays"] += len(list(run.path.rglob("*.tmp")))
            check_after_death(run, seen["steps"])
            shutil.rmtree(run.path)
        return None

    monkeypatch.setattr(Checkpoints, "on_validation_end", end)
    train(small_settings(tmp_path, trainer={"val_check_interval": 4}, attention={"enabled": False}))
    assert seen["steps"] == {8, 12}
    assert seen["operations"] > 80
    assert seen["strays"] >= min(10, 160 // every)
    assert not list(temporary.iterdir())


def check_after_death(run: RunFolder, steps: set[int]) -> None:
    """What the next start finds: a whole last.ckpt, the one before it, weights; and nothing else once it has begun."""
    with run.lock():
        pass
    names = {path.name for path in run.path.rglob("*") if path.is_file()}
    known = r"last\.ckpt|best\.ckpt|step_0000(04|08)\.ckpt|step_000012\.safetensors|model\.safetensors"
    other = r"config\.yaml|minigpt_tokenizer\.json|metrics\.csv|step_0000(04|08|12)\.txt"
    assert not [name for name in names if not re.fullmatch(f"{known}|{other}", name)]
    assert newest_checkpoint(run)[0] == run.last
    steps.add(read_checkpoint(run.last)["global_step"])
    earlier = [read_checkpoint(file)["global_step"] for file in run.all_earlier.values()]
    assert earlier == list(run.all_earlier)
    assert earlier
    assert min(earlier) < read_checkpoint(run.last)["global_step"]
    assert first_intact(weights_files(run.path), lambda file: load_model(file))[0] == run.weights
    for file in (run.best, *run.all_kept.values()):
        load_model(file)
    last = read_checkpoint(run.last)
    if last["global_step"] == 12:  # the best; and a resume goes on behind it, so nothing would write it again
        assert read_checkpoint(run.best)["global_step"] == 12
        weights = load_model(run.weights).model.state_dict()
        assert all(torch.equal(tensor, last["state_dict"][f"model.{name}"]) for name, tensor in weights.items())


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_checkpoints_stay_as_are_asked_for(keep: int, tmp_path: Path) -> None:
    config = small_settings(tmp_path, checkpoint_every_n_steps=2, keep_checkpoints=keep, trainer={"max_steps": 9})
    run = train(config)
    assert list(run.all_earlier) == [8, 6][: keep - 1]
    train(with_trainer(config, max_steps=11), run.path)
    assert list(run.all_earlier) == [10, 9][: keep - 1]
    assert all(read_checkpoint(file)["global_step"] == step for step, file in run.all_earlier.items())


@pytest.mark.parametrize(("minutes", "expected"), [(1e-9, list(range(1, 13))), (None, [6, 12])])
def test_a_checkpoint_is_saved_every_so_many_minutes(
    minutes: float | None, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, real = [], AtomicCheckpointIO.save_checkpoint

    def save(self: AtomicCheckpointIO, content: dict[str, Any], *rest: Any, **options: Any) -> None:
        saved.append(content["global_step"])
        real(self, content, *rest, **options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
    train(small_settings(tmp_path, checkpoint_every_n_minutes=minutes))
    assert saved == expected


def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = small_settings(tmp_path, model={"dropout": 0.1}, checkpoint_every_n_steps=4)
    straight = train(config)
    train_and_die(config, 9)
    run = RunFolder(tmp_path / "runs" / "small-2")
    content = bytearray(run.last.read_bytes())
    content[len(content) // 2] ^= 1
    run.last.write_bytes(content)
    train(config, run.path)
    assert f"{run.last}: damaged" in capsys.readouterr().err
    assert_same_run(straight, run)
    assert list(run.all_earlier) == list(straight.all_earlier)


def test_an_optimizer_state_that_is_not_finite_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Checkpoints.on_train_batch_end

    def end(self: Checkpoints, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 6:
            next(iter(trainer.optimizers[0].state.values()))["momentum"][0] = float("inf")
        real(self, trainer, *rest)

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", end)
    with pytest.raises(UserError, match="the optimizer's state is NaN or infinite at step 6"):
        train(small_settings(tmp_path, checkpoint_every_n_steps=2, trainer={"val_check_interval": 12}))
    assert newest_checkpoint(RunFolder(tmp_path / "runs" / "small"))[1]["global_step"] == 4


# Full disks, folders that cannot be written


def test_without_room_for_a_checkpoint_nothing_is_begun_and_the_old_one_stays(
    config: Config, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run.last.read_bytes()
    room = {"checkpoints": 100_000}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=room.get(Path(path).name, 1 << 30)))
    with pytest.raises(UserError) as caught:
        train(config, run.path)
    assert re.fullmatch(
        rf"{run.best}: could not be written \(no space left on device; 1\.\d MB are needed, 0\.1 MB are free\); "
        "an existing file is unchanged",
        str(caught.value),
    )
    assert run.last.read_bytes() == before
    assert not list(run.path.rglob("*.tmp"))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fills_while_a_checkpoint_is_written_leaves_the_old_one(
    error: int, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = read_checkpoint(run.last)
    before = {path: path.read_bytes() for path in run.last.parent.iterdir()}
    real = checkpoint_module._Hashing.write

    def write(self: Any, data: Any) -> int:
        if self._file.tell() > 50_000:
            raise OSError(error, os.strerror(error))
        return real(self, data)

    monkeypatch.setattr(checkpoint_module._Hashing, "write", write)
    with pytest.raises(UserError, match=os.strerror(error).lower()) as caught:
        save_checkpoint(run.last, content)
    assert ("MB are free" in str(caught.value)) == (error != errno.EIO)
    assert {path: path.read_bytes() for path in run.last.parent.iterdir()} == before


def test_metrics_that_find_no_room_are_one_line_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics.csv: could not be written \(no space left on device; .* MB are free"):
        append(path, "1,2,3\n")


def test_a_row_of_metrics_that_was_cut_off_does_not_stop_a_resume(config: Config, run: RunFolder) -> None:
    whole = run.metrics.read_text().splitlines()
    run.metrics.write_text("\n".join([*whole, "13,8"]))
    train(config, run.path)
    assert run.metrics.read_text().splitlines()[: len(whole)] == whole


@pytest.mark.parametrize("where", [".lock", "checkpoints"])
def test_a_run_folder_that_cannot_be_written_is_refused_before_training(
    where: str, config: Config, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write in any folder that is not mounted read-only: so the answer of such a one is put in its place."""
    real_open = os.open

    def read_only(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if str(path).startswith(str(run.path / where)) and flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real_open(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(Checkpoints, "on_train_start", lambda *_: pytest.fail("training has begun"))
    with pytest.raises(UserError, match="cannot be written .read-only file system"):
        train(config, run.path)


def test_where_a_name_can_have_no_second_one_the_file_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "one").write_text("text")
    link_or_copy(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two").read_text() == "text"
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


# Other processes


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that prints a line when it is ready."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_a_living_process_writes_is_never_swept_and_what_a_dead_one_left_is(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from minigpt.files import write_atomically\n"
        "def write(path):\n    path.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
        "write_atomically(Path(sys.argv[1]), write)"
    )
    process = start(program, tmp_path / "file.txt")
    (tmp_path / ".mine.tmp").write_text("of the user's")
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    process.kill()
    process.wait()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mine.tmp"]


def test_a_second_process_on_one_run_is_refused_by_name_until_the_first_is_dead(config: Config, run: RunFolder) -> None:
    assert not (run.path / ".lock").exists()
    program = (
        "import sys, time; from pathlib import Path; from minigpt.runs.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).lock():\n    print('ready', flush=True); time.sleep(60)"
    )
    process = start(program, run.path)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rf"{run.path}: another process \({process.pid} on .+\) trains in it; wait"):
        train(config, run.path)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    process.kill()
    process.wait()
    train(config, run.path)
    assert not (run.path / ".lock").exists()


def test_a_child_process_does_not_hold_the_lock_when_its_parent_is_dead(tmp_path: Path) -> None:
    """As loaders' workers live for some seconds longer."""
    program = (
        "import os, sys, time; from pathlib import Path; from minigpt.files import locked\n"
        "with locked(Path(sys.argv[1]), str):\n"
        "    if os.fork() == 0: time.sleep(5); os._exit(0)\n"
        "    print('ready', flush=True); time.sleep(60)"
    )
    process = start(program, tmp_path / "lock")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 4
    while True:
        try:
            with locked(tmp_path / "lock", str):
                return
        except UserError:  # the child may not have run since it was made
            assert time.monotonic() < deadline
            time.sleep(0.05)


# What is refused


def test_strategies_that_write_shards_are_refused() -> None:
    for strategy in (SimpleNamespace(_state_dict_type="sharded"), SimpleNamespace(_save_distributed_checkpoint=True)):
        with pytest.raises(UserError, match="writes no single file"):
            refuse_shards(SimpleNamespace(strategy=strategy))  # type: ignore[arg-type]
    refuse_shards(SimpleNamespace(strategy=SimpleNamespace(_state_dict_type="full")))  # type: ignore[arg-type]


def test_to_resume_where_there_is_no_run_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run"):
        train(small_settings(tmp_path), tmp_path / "runs" / "none")
    assert not (tmp_path / "runs").exists()


# ---- the text, while it is read -----------------------------------------------------------------------------------


def spoil_tokens(how: str, folder: Path) -> None:
    file = next(folder.glob("*/train-00000.bin"))
    content = file.read_bytes()
    match how:
        case "changed":
            file.write_bytes(b"\1\0" * (len(content) // 2))
        case "no tokens at all":
            file.write_bytes(b"\xff" * len(content))
        case "cut off":
            os.truncate(file, len(content) // 8)
        case "touched":
            os.utime(file)
        case "deleted":
            shutil.rmtree(file.parent)


@pytest.mark.parametrize(
    ("how", "num_workers"),
    pairwise(["changed", "no tokens at all", "cut off", "touched", "deleted"], [0, 1], strength=1),
)
def test_tokens_that_change_while_they_are_read_are_noticed_and_what_has_seen_them_is_not_kept(
    how: str, num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_settings(tmp_path, data={"num_workers": num_workers}, checkpoint_every_n_steps=2)
    straight, real = train(config), TrainingModule.training_step

    def step(self: TrainingModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 6:
            spoil_tokens(how, tmp_path / "data")
        return real(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingModule, "training_step", step)
        if how in {"touched", "deleted"}:  # they are what they were
            assert_same_run(straight, train(config))
            return
        with pytest.raises(UserError, match=r"train-00000\.bin (was changed while in use|became shorter while)"):
            train(config)
    folder = RunFolder(tmp_path / "runs" / "small-2")
    assert read_checkpoint(folder.last)["global_step"] == 6
    for prepared in (tmp_path / "data").glob("*/train-00000.bin"):
        shutil.rmtree(prepared.parent)
    train(config, folder.path)
    assert_same_run(straight, folder)
