"""guards.cpp, built and loaded: PyTorch's C++ then accepts tensors that claim to be on a CUDA or MPS device."""

import ctypes
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")
COMPILER = os.environ.get("CXX", "c++")
KINDS = ("cuda", "mps")


def why_not() -> str | None:
    """Why no device can be pretended on this machine; None where it can."""
    if sys.platform != "linux":
        return "devices are pretended on Linux only"
    if shutil.which(COMPILER) is None:
        return f"no C++ compiler {COMPILER}: install g++, or name one in CXX"
    return None


def build() -> Path:
    """The compiled guards; built once for this source and torch, by whichever process comes first."""
    root = _torch()
    version = importlib.metadata.version("torch")
    key = hashlib.sha256(b"\n".join([SOURCE.read_bytes(), version.encode(), str(root).encode()])).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"minigpt-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is another user's")
    library = folder / f"guards-{key}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            unfinished = library.with_suffix(".part")
            words = ["-O0", "-std=c++20", "-shared", "-fPIC", f"-I{root / 'include'}", f"-L{root / 'lib'}"]
            subprocess.run([COMPILER, *words, SOURCE, "-lc10", "-ltorch_cpu", "-o", unfinished], check=True)
            unfinished.rename(library)
    return library


def load() -> ctypes.CDLL:
    """Load them, before torch is imported: torch asks once what devices there may be."""
    assert "torch" not in sys.modules, "the guards are loaded before torch"
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(_torch() / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(build()), mode=ctypes.RTLD_GLOBAL)


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
