"""W&B that is away, slow or dying: training goes on, the end comes, and nothing is lost.

Waits for a service that does not answer are shortened by W&B's own environment variables. What would hang is ended by
the test's patience, which is far longer.
"""

import contextlib
import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from fake_wandb import FakeWandb
from grids import SLOW
from scripts import ROOT, ready_python
from small_runs import small_settings, wandb_history, wandb_tool

from minigpt.runs.loading import RunFolder, read_checkpoint

pytest.importorskip("wandb", reason="W&B is not installed")
PATIENCE_SECONDS = 240
STEPS = list(range(1, 13))
LONG = {"max_steps": 1_000_000, "val_check_interval": 1_000_000}


class Running:
    """One script under way."""

    def __init__(self, script: str, *arguments: object, env: dict[str, str], output: Path, at_terminal: bool) -> None:
        self._output, self._file = output, output.open("wb")
        outside, inside = os.openpty()
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": self._file, "stderr": subprocess.STDOUT}
        if at_terminal:
            streams = dict.fromkeys(("stdin", "stdout", "stderr"), inside)
        self.process = subprocess.Popen([ready_python(), script, *map(str, arguments)], cwd=ROOT, env=env, **streams)
        os.close(inside)
        self._copy = threading.Thread(target=self._copy_screen, args=(outside,), daemon=True)
        self._copy.start()

    def _copy_screen(self, terminal: int) -> None:
        with contextlib.suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as screen:  # ends when nobody has it
            shutil.copyfileobj(screen, self._file)

    def wait(self) -> tuple[int, str]:
        """Its exit code and all that it said."""
        try:
            code = self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.give_up()
        self._copy.join(PATIENCE_SECONDS)
        self._file.close()
        return code, self._output.read_text()

    def wait_until(self, happened: Callable[[str], bool]) -> None:
        """Wait until something is true of what it has said so far, or of anything else."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened(self._output.read_text() if self._output.exists() else ""):
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.give_up()
            time.sleep(0.05)

    def give_up(self) -> NoReturn:
        self.process.kill()
        self.process.wait()
        pytest.fail(f"it hangs, or ended too early; so far it said:\n{self._output.read_text()}")


class LoggedIn:
    """Somebody with a key for W&B who trains small runs; what W&B waits for is in `environment`."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.folder, self.run = folder, RunFolder(folder / "runs" / "small")
        self.environment = {k: v for k, v in environment.items() if "PROXY" not in k} | {
            "WANDB_API_KEY": "0123456789" * 4,
            "WANDB_INIT_TIMEOUT": "100",  # this machine may be busy
            "WANDB_FINISH_TIMEOUT": "100",
            "PYTHONPATH": str(Path(__file__).parent),  # for PauseUntil
        }

    def start(self, url: str, *arguments: object, at_terminal: bool = False, **trainer: Any) -> Running:
        """Begin to train with W&B's service at a URL, by the trainer's settings or by other arguments."""
        recipe = self.folder / "recipe.yaml"
        recipe.write_text(
            yaml.safe_dump(small_settings(self.folder, trainer={"logger": "wandb", **trainer}, attention={}).to_dict())
        )
        self.environment["WANDB_BASE_URL"] = url
        return self._start("train.py", *(arguments or ("--config", recipe)), at_terminal=at_terminal)

    def _start(self, script: str, *arguments: object, at_terminal: bool = False) -> Running:
        output = self.folder / f"{Path(script).stem}.txt"
        return Running(script, *arguments, env=self.environment, output=output, at_terminal=at_terminal)

    def train(self, url: str, *arguments: object, **settings: Any) -> str:
        """Train to the end; returns the output."""
        code, output = self.start(url, *arguments, **settings).wait()
        assert code == 0, output
        assert "Traceback" not in output
        return output

    def run_wandb(self, *arguments: str) -> str:
        """Run W&B's own program; returns the output."""
        code, output = self._start(wandb_tool(), *arguments).wait()
        assert code == 0, output
        return output

    def send(self, service: FakeWandb, output: str) -> None:
        """Run the command that an output names for what W&B has not received."""
        (command,) = re.findall(r"wandb (sync .*)", output)
        # It leaves logs in both folders.
        self.environment |= {"WANDB_BASE_URL": service.url, "HOME": str(self.folder), "WANDB_DIR": str(self.folder)}
        self.run_wandb(*shlex.split(command))

    def wandb_history(self) -> tuple[list[dict[str, Any]], Path]:
        """The rows in W&B's newest folder in the run, and the folder of its media."""
        return wandb_history(self.run.path)

    @property
    def logged_steps(self) -> list[int]:
        """Steps whose losses are on disk."""
        if not self.run.metrics.exists():
            return []
        with self.run.metrics.open() as file:
            return [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.fixture
def user(bare_environment: dict[str, str], tmp_path: Path) -> LoggedIn:
    return LoggedIn(bare_environment, tmp_path)


def environment_of(pid: int) -> str:
    """Nothing of a process that has ended since it was listed: another test's W&B."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_text()
    return ""


def steps_in(rows: list[dict[str, Any]]) -> list[int]:
    return [row["trainer/global_step"] for row in rows if "train/loss" in row]


def assert_holds_everything(user: LoggedIn) -> None:
    """W&B's newest folder in the run has the losses of all steps, and what both validations showed."""
    rows, media = user.wandb_history()
    assert steps_in(rows) == STEPS
    for key, times in {"attn/page": 2, "attn/grid": 2, "attn/scores": 2, "samples": 2, "attn/heads": 1}.items():
        shown = [media / row[f"{key}.path"] for row in rows if f"{key}.path" in row]
        assert len(shown) == times
        assert all(path.is_file() for path in shown)


def assert_can_be_sent(user: LoggedIn, output: str) -> None:
    """The command that the user is told brings everything to a service that works again."""
    folder = user.run.path / "wandb" / "latest-run"
    with FakeWandb() as service:
        user.send(service, output)
    assert steps_in(list(service.history.values())) == STEPS
    media = {path.name for path in (folder / "files" / "media").rglob("*") if path.is_file()}
    assert media <= {Path(path).name for path in service.files}


def test_a_service_that_works_receives_the_run_and_a_resumed_part_in_an_outage_stays_the_same_run(
    user: LoggedIn,
) -> None:
    with FakeWandb() as service:
        output = user.train(service.url)
    assert steps_in(list(service.history.values())) == STEPS
    assert service.is_complete
    for name, times in {"attn/page": 2, "attn/grid": 2, "attn/scores": 2, "samples": 2, "attn/heads": 1}.items():
        assert len([path for path in service.files if re.match(rf"media/\w+/{name}_", path)]) == times
    assert f"dashboard  {service.url}/somebody/minigpt/runs/" in output
    assert "wandb sync" not in output
    assert_holds_everything(user)

    user.environment["WANDB_INIT_TIMEOUT"] = "1"
    for end in (14, 16):
        output = user.train(service.url, "--resume", user.run.path, "--trainer.max_steps", end)
        rows, media = user.wandb_history()
        assert steps_in(rows) == [end - 1, end]
        assert media.parent.name.startswith("offline-run-")
    assert len({path.name.rsplit("-", 1)[-1] for path in (user.run.path / "wandb").glob("*run-*-*")}) == 1

    with FakeWandb() as later:
        later.history = service.history
        user.send(later, output)
    assert steps_in(list(later.history.values())) == [*STEPS, 13, 14, 15, 16]


@pytest.mark.parametrize(
    "failure", ["hangs", "unknown host", *(pytest.param(each, marks=SLOW) for each in ("refuses", "answers 500"))]
)
def test_a_run_goes_offline_when_nobody_answers_at_its_start(failure: str, user: LoggedIn) -> None:
    user.environment["WANDB_INIT_TIMEOUT"] = "1"
    with FakeWandb(failure) as service:
        if failure == "refuses":
            service.close()
        output = user.train("http://no-such-host.invalid" if failure == "unknown host" else service.url)
    assert "W&B cannot log online" in output
    assert_holds_everything(user)


@pytest.mark.parametrize(
    ("moment", "failure"),
    [
        ("early", "answers 403"),
        pytest.param("early", "refuses", marks=SLOW),
        ("in the middle", "hangs"),
        pytest.param("at the end", "hangs", marks=SLOW),
    ],
)
def test_a_service_that_dies_later_loses_nothing(moment: str, failure: str, user: LoggedIn, tmp_path: Path) -> None:
    # Where the run waits for the failure, the end has nothing more to wait for.
    user.environment["WANDB_FINISH_TIMEOUT"] = "1" if moment == "in the middle" else "3"
    trace = tmp_path / "failed"
    pause = {"class_path": "fake_wandb.PauseUntil", "init_args": {"step": 8, "file": str(trace)}}
    with FakeWandb(failure, moment, trace) as service:
        output = user.train(service.url, callbacks=[pause] if moment == "in the middle" else None)
        assert service.failed.is_set()
    assert not service.is_complete
    assert re.search(r"W&B did not receive everything; send it with: \S*wandb sync --include-online ", output)
    assert_holds_everything(user)
    if moment == "in the middle":
        assert_can_be_sent(user, output.split("dashboard ")[-1])


def test_ctrl_c_in_an_outage_saves_ends_and_says_what_to_send(user: LoggedIn) -> None:
    user.environment["WANDB_FINISH_TIMEOUT"] = "1"
    with FakeWandb("hangs", "early") as service:
        running = user.start(service.url, **LONG)
        running.wait_until(lambda _: service.failed.is_set() and len(user.logged_steps) > 20)
        running.process.send_signal(signal.SIGINT)
        code, output = running.wait()
    assert code == 130, output
    assert "train.py --resume" in output
    assert "W&B did not receive everything" in output
    assert "Traceback" not in output
    assert read_checkpoint(user.run.last)["global_step"] == user.logged_steps[-1]
    assert steps_in(user.wandb_history()[0]) == user.logged_steps


def test_a_second_signal_ends_the_wait_for_a_service_and_loses_nothing(user: LoggedIn) -> None:
    user.environment["WANDB_FINISH_TIMEOUT"] = "100000"
    with FakeWandb("hangs", "early") as service:
        running = user.start(service.url, **LONG)
        running.wait_until(lambda _: service.failed.is_set() and len(user.logged_steps) > 20)
        running.process.send_signal(signal.SIGTERM)
        running.wait_until(lambda output: "W&B is sending the rest" in output)
        running.process.send_signal(signal.SIGTERM)
        code, output = running.wait()
    assert code == 143, output
    assert "W&B did not receive everything" in output
    assert steps_in(user.wandb_history()[0]) == user.logged_steps


def test_a_death_of_wandbs_own_process_does_not_end_training(user: LoggedIn, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    pause = {"class_path": "fake_wandb.PauseUntil", "init_args": {"step": 4, "file": str(killed)}}
    with FakeWandb() as service:
        running = user.start(service.url, callbacks=[pause])
        running.wait_until(lambda _: len(user.logged_steps) == 4)
        listing = subprocess.run(["ps", "-A", "-o", "pid=,comm="], capture_output=True, text=True, check=True)
        cores = [int(line.split()[0]) for line in listing.stdout.splitlines() if "wandb-core" in line]
        (core,) = [pid for pid in cores if str(tmp_path) in environment_of(pid)]
        os.kill(core, signal.SIGKILL)
        killed.touch()
        code, output = running.wait()
    assert code == 0, output
    assert output.count("W&B cannot log (") == 1
    assert "W&B did not receive everything" in output
    assert "Traceback" not in output
    assert user.logged_steps == STEPS


def test_nobody_is_asked_for_a_key_even_at_a_terminal(user: LoggedIn) -> None:
    del user.environment["WANDB_API_KEY"]
    user.environment |= {"WANDB_MODE": "online", "TERM": "xterm"}
    output = user.train("http://127.0.0.1:9", at_terminal=True)
    assert "W&B cannot log online" in output
    assert_holds_everything(user)
