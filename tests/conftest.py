"""What every test shares: one thread, no network, no W&B account; and one real run that many tests look at."""

import functools
import importlib.metadata
import inspect
import os
import signal
from collections.abc import Callable
from pathlib import Path

import filelock
import hypothesis
import pytest
import scripts

# Before torch is imported, and for the programs that tests start. Tiny models gain nothing from a second thread, and
# two threads that wait for each other on a busy machine lose a lot.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

# In the background (`make test &`) Ctrl-C is ignored, under nohup the end of a terminal, and so they would be by the
# programs that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# jsonargparse asks for the source of each class of settings for each command line: two thirds of the time of parsing.
inspect.getsource = functools.cache(inspect.getsource)
# And Lightning looks through all installed packages for each trainer.
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)


LONGEST = ("test_commands.py", "lab", "training")
"""Files and folders with the longest tests: begun first, no process waits for one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first; else in the order of the files."""
    names = (*LONGEST, "")

    def place(item: pytest.Item) -> int:
        first = item.path.relative_to(Path(__file__).parent).parts[0]
        return names.index(first if first in LONGEST else "")

    items.sort(key=place)


# A busy machine is slow now and then.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session")
def bare_environment() -> dict[str, str]:
    return scripts.bare_environment()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[..., Path]:
    """made_once(name, make) is a folder of all workers, which whichever comes first has made by make(folder)."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder, made = shared / name, shared / f"{name}.made"
        with filelock.FileLock(shared / f"{name}.lock"):
            if not made.exists():
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def tiny_run(made_once: Callable[..., Path], bare_environment: dict[str, str]) -> Path:
    """The folder of one run of configs/tiny.yaml, with the default logger, by a user without account or network."""

    def train(folder: Path) -> None:
        arguments = ("--config", "configs/tiny.yaml", "--runs_dir", folder / "runs", "--data.dir", folder / "data")
        result = scripts.run_script("train.py", *arguments, env=bare_environment)
        assert result.returncode == 0, result.stderr
        (folder / "output.txt").write_text(result.stdout)

    return made_once("tiny", train) / "runs" / "tiny"
