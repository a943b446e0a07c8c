"""Parses a JSON Lines file of prompts, each line with its own settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt.config import GenerationConfig, SampleConfig
from minigpt.errors import UserError

Change = Callable[[GenerationConfig, dict[str, Any], Sequence[str]], GenerationConfig]
"""(config, settings of a line, other keys allowed there) -> the changed config, or a UserError."""

FORM = 'a line is an object such as {"prompt": "def ", "seed": 5}'


@dataclass(frozen=True)
class Job:
    """One line of the prompts file."""

    where: str
    """File and line number, for messages."""
    given: dict[str, Any]
    """Keys copied to the output lines: the line number, and the id if there is one."""
    prompt: str
    config: GenerationConfig


def read_jobs(text: str, name: str, config: SampleConfig, change: Change) -> list[Job]:
    """Parse JSON Lines into jobs; empty lines are skipped.

    Raises:
        UserError: naming file, line and remedy.
    """
    jobs = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if line.strip():
            where = f"{name}:{number}"
            try:
                found = _parsed(line)
                prompt, given = found.pop("prompt", None), {key: found.pop(key) for key in ("id",) if key in found}
                if isinstance(found.get("stop"), str):
                    found["stop"] = [found["stop"]]  # "[a]" is a string in JSON, not a YAML list
                settings = change(config.generation, found, ("prompt", "id"))
                change(settings, {"seed": settings.seed + config.num_samples - 1}, ())  # checks the last sample's seed
                if not isinstance(prompt, str):
                    raise UserError(f"its prompt is missing or not a string: {FORM}")
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            jobs.append(Job(where, {"line": number} | given, prompt, settings))
    if not jobs:
        raise UserError(f'{name}: there is no prompt in it; write one per line, as {{"prompt": "def "}}')
    return jobs


def _parsed(line: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UserError(f"{key} is given twice: keep one of them")
            found[key] = value
        return found

    def no_number(name: str) -> None:
        raise UserError(f"{name} is not a number in JSON: leave it out")

    try:
        found = json.loads(line, object_pairs_hook=once, parse_constant=no_number)
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    except UserError:
        raise
    except (json.JSONDecodeError, RecursionError) as error:
        why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise UserError(f"not JSON ({why}): {FORM}; use --prompt_file for a file that is one prompt") from None
    except ValueError:
        raise UserError("has a number out of range or half a surrogate pair, which JSON output cannot hold") from None
    if not isinstance(found, dict):
        raise UserError(f"{line.strip():.20} is not an object: {FORM}")
    return found
