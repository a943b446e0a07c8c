"""llama.cpp for the tests: npm's node-llama-cpp brings it compiled. Installed once, into the user's cache."""

import functools
import json
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

VERSION = "3.22.1"
FOLDER = Path.home() / ".cache" / "minigpt-tests" / f"node-llama-cpp-{VERSION}"
BINARIES = {
    ("Linux", "x86_64"): "linux-x64",
    ("Linux", "aarch64"): "linux-arm64",
    ("Darwin", "arm64"): "mac-arm64-metal",
    ("Darwin", "x86_64"): "mac-x64",
}
INSTALL_SECONDS = 300


@functools.cache
def missing() -> str | None:
    """Why there is no llama.cpp here; None if there is. Installs it, once for all processes of the tests."""
    binary = BINARIES.get((platform.system(), platform.machine()))
    if binary is None:
        return f"node-llama-cpp has no binary for {platform.system()} on {platform.machine()}"
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "llama.cpp comes with npm, and Node.js is not installed"
    try:
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(FOLDER.with_name(f"{FOLDER.name}.lock")):
            return None if FOLDER.exists() else _install(binary)
    except OSError as error:
        return f"llama.cpp could not be installed: {error}"


def _install(binary: str) -> str | None:
    # Beside its place, and renamed: a killed npm leaves nothing that looks installed.
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as temporary:
        (Path(temporary) / "package.json").write_text('{"private": true}')
        # Without optional packages, which are the binaries for all systems and GPUs: 0.7 GB.
        options = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"]
        packages = [f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/{binary}@{VERSION}"]
        command = ["npm", "install", *options, *packages]
        try:
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        except subprocess.TimeoutExpired:
            return f"npm did not install llama.cpp within {INSTALL_SECONDS} seconds"
        if done.returncode:
            return f"npm could not install llama.cpp: {done.stderr.strip()[-300:]}"
        Path(temporary).rename(FOLDER)
        Path(temporary).mkdir()  # for its own removal
    return None


def ask(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """llama.cpp's answer to each request, from one process; see llama_cpp.mjs. Skips where there is none."""
    if why := missing():
        pytest.skip(why)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "requests.json", Path(folder) / "answers.json"
        files[0].write_text(json.dumps(requests))
        command = ["node", Path(__file__).with_suffix(".mjs"), FOLDER, *files]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        answers: list[dict[str, Any]] = json.loads(files[1].read_text())
        return answers
