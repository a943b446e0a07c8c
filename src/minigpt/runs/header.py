"""The header of a safetensors file of minigpt's, with a checksum of the whole file. Torch is not imported."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import IO, Any

from minigpt.errors import UserError

CHECKSUM = "sha256"
"""Key of the checksum in a safetensors header; it covers the file with zeros in the checksum's place. In a checkpoint
the checksum is at the end of the file, and CHECKPOINT_KEY only holds this word: a file that lost its checksum by damage
must not pass for an old file, which had none."""
DAMAGED = "damaged: its checksum differs"


def read_header(path: Path) -> dict[str, str]:
    """Entries of the header, among them config and tokenizer as JSON; step and card where the file has them.

    Raises:
        UserError: the file is missing, damaged, or another program's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            place, checksum = checksum_of_weights(file)
        with safe_open(path, framework="np") as opened:
            header: dict[str, str] = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or incomplete ({error})") from None
    if not {"config", "tokenizer"} <= set(header):
        raise UserError(
            f"{path}: weights of another program, without minigpt's config and tokenizer in the header: "
            "name the folder that has its config.json"
        )
    # Files from before checksums have exactly these three entries; any other must be a checksum with a damaged key.
    has_checksum = place is not None or bool(set(header) - {"format", "config", "tokenizer"})
    if has_checksum and (place is None or place[1] != checksum):
        raise UserError(f"{path}: {DAMAGED}")
    return header


def write_checksum(path: Path) -> None:
    """Replace the zeros in the place of the checksum."""
    with path.open("rb+") as file:
        place, checksum = checksum_of_weights(file)
        assert place is not None
        file.seek(8 + place.start(1))
        file.write(checksum)


def checksum_of_weights(file: IO[bytes]) -> tuple[re.Match[bytes] | None, bytes]:
    """Match of the checksum in a safetensors header (which begins at byte 8), and the computed checksum."""
    begin = file.read(8)
    header = file.read(min(int.from_bytes(begin, "little"), 100_000_000))  # safetensors' own limit
    place = re.search(rb'"sha256":"([0-9a-f]{64})"', header)  # in other entries the quotes have backslashes
    if place is not None:
        header = header[: place.start(1)] + b"0" * 64 + header[place.end(1) :]
    return place, digested(file, hashlib.sha256(begin + header), None).hexdigest().encode()


def digested(file: IO[bytes], digest: Any, n_bytes: int | None) -> Any:
    """Update a digest with the next n_bytes of a file; None for all."""
    while chunk := file.read(1 << 20 if n_bytes is None else min(1 << 20, n_bytes)):
        digest.update(chunk)
        n_bytes = None if n_bytes is None else n_bytes - len(chunk)
    return digest
