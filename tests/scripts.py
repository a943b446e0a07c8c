"""Running the project's scripts as a user would."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_script(*arguments: object, env: dict[str, str] | None = None, **options: object) -> subprocess.CompletedProcess:
    """Run one of the project's scripts in the checkout, as a user would."""
    command = [sys.executable, *map(str, arguments)]
    settings = {"cwd": ROOT, "env": env, "capture_output": True, "text": True, "timeout": 300, "check": False}
    return subprocess.run(command, **(settings | options))  # type: ignore[call-overload]
