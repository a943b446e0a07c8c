"""Standard input -> a file in data.dir, named by a hash of its content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path

from minigpt.config import DataConfig
from minigpt.data.sources.formats import ending_of
from minigpt.data.sources.names import File
from minigpt.data.sources.scan import CHUNK, chunks
from minigpt.errors import UserError
from minigpt.files import note, reason


def keep_stdin(config: DataConfig) -> DataConfig:
    """Save standard input, if it is a source, to a file in data.dir, and return the config with that file instead.

    Preparation reads text more than once, and a resumed run reads it again. Compressed text, JSON Lines, Parquet and
    Arrow are recognised by content, as there is no file name.

    Raises:
        UserError: nothing is piped in, or the folder cannot be written.
    """
    if "-" in config.val_sources:
        raise UserError("data.val_source=-: standard input can only be data.source; name a file to validate on")
    if "-" not in config.sources:
        return config
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("data.source=-: nothing is piped into this program; use `cat FILE | ...`")
    chunk = sys.stdin.buffer.read(CHUNK)
    if not chunk:
        raise UserError("data.source=-: standard input is empty; use `cat FILE | ...`")
    digest, folder = hashlib.sha256(), Path(config.dir) / "stdin"
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".stdin-", delete=False) as file:
            temporary = Path(file.name)
            while chunk:
                digest.update(chunk)
                file.write(chunk)
                chunk = sys.stdin.buffer.read(CHUNK)
        ending = _ending(temporary, config.codec)
        kept = folder / f"{digest.hexdigest()[:16]}{ending}"
        temporary.replace(kept)
    except OSError as error:
        raise UserError(f"data.dir={config.dir}: standard input cannot be saved ({reason(error)})") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    if ending != ".txt":
        note(f"standard input is read as a {ending} file, judging by its content")
    return dataclasses.replace(config, source=[str(kept) if name == "-" else name for name in config.sources])


def _ending(path: Path, encoding: str) -> str:
    """The file ending that fits the content."""
    with path.open("rb") as file:
        head = file.read(1 << 20)
    binary = ending_of(head)
    if binary in {".parquet", ".arrow"}:
        return binary
    if binary:
        try:
            head = next(chunks(File(path, "text", binary)), b"")
        except UserError:  # damaged: reading it later reports that
            return binary
    # Wrong bytes are ignored here: reading it later reports them.
    head = head.decode(encoding, "ignore").encode(errors="replace")
    return (".jsonl" if _is_json_lines(head) else ".txt") + binary


def _is_json_lines(head: bytes) -> bool:
    """Whether a text starts with JSON objects, one a line or pretty-printed, or with an array of them."""
    head = head.removeprefix(b"\xef\xbb\xbf")
    if re.match(rb'\s*(\[\s*\{|\{[ \t\r]*\n)\s*"[^"\n]*"\s*:', head):
        return True
    lines = [line for line in head.split(b"\n") if line.strip()][:2]
    try:
        return bool(lines) and all(isinstance(json.loads(line), dict) for line in lines)
    except (ValueError, RecursionError):
        return False
