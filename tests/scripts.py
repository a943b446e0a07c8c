"""Running the project's scripts as a user would."""

import atexit
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def bare_environment() -> dict[str, str]:
    """A user without W&B account or network, whose home folder cannot be written (/proc refuses even root)."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HF_", "XDG_"))}
    nowhere = "http://127.0.0.1:9"  # the discard port: refused at once
    return env | {"HOME": "/proc/1/no-home", "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "OMP_NUM_THREADS": "1"}


@functools.cache
def ready_python() -> str:
    """A Python that has imported the libraries already, see ready.py; sys.executable is one that has not.

    Each process of the tests has its own: a program's end removes W&B's temporary folders, which another may be using.
    """
    folder = tempfile.mkdtemp(prefix="ready-")
    (Path(folder) / "tmp").mkdir()
    command = [sys.executable, str(Path(__file__).with_name("ready.py")), folder]
    env = bare_environment() | {"TMPDIR": f"{folder}/tmp", "MPLCONFIGDIR": folder}
    # In a session of its own, it does not hear the Ctrl-C that ends the tests.
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    atexit.register(process.stdin.close)  # which ends it, as would the end of this process by a signal
    return f"{folder}/python"


def run_script(
    *arguments: object, env: dict[str, str] | None = None, cold: bool = False, **options: object
) -> subprocess.CompletedProcess:
    """Run one of the project's scripts in the checkout, as a user would; `cold` imports everything anew."""
    command = [sys.executable if cold else ready_python(), *map(str, arguments)]
    settings = {"cwd": ROOT, "env": env, "capture_output": True, "text": True, "timeout": 300, "check": False}
    return subprocess.run(command, **(settings | options))  # type: ignore[call-overload]


def run_line(command: str, folder: Path, cold: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell as it stands, in a folder."""
    path = f"{Path(sys.executable if cold else ready_python()).parent}{os.pathsep}{os.environ['PATH']}"
    # A comparison of four recipes imports everything eight times, and a busy machine takes six minutes for it.
    timeout = 1200 if cold else 300
    settings = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": timeout, "check": False}
    return subprocess.run(command, shell=True, cwd=folder, env=os.environ | {"PATH": path}, **settings)  # type: ignore[call-overload]


cold_too = pytest.mark.parametrize("cold", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["ready", "cold"])
"""In the quick suite, programs find the libraries imported; `make test-slow` has them import everything anew."""
