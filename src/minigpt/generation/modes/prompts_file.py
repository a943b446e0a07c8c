"""A text of JSON lines -> prompts, each with its own settings, or the line that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt.config import GenerationConfig, SampleConfig
from minigpt.errors import UserError

Change = Callable[[GenerationConfig, dict[str, Any], Sequence[str]], GenerationConfig]
"""A config, settings of a line and what else may stand there -> the changed config, or a UserError."""

FORM = 'a line is an object such as {"prompt": "def ", "seed": 5}'


@dataclass(frozen=True)
class Job:
    """A line of the file of prompts."""

    where: str
    """File and line."""
    given: dict[str, Any]
    """What the texts' lines repeat: the line's number, and the id if it has one."""
    prompt: str
    config: GenerationConfig


def read_jobs(text: str, name: str, config: SampleConfig, change: Change) -> list[Job]:
    """The prompts of a text of JSON lines, each with its settings; empty lines are passed over.

    Raises:
        UserError: naming file, line and what to do.
    """
    jobs = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if line.strip():
            where = f"{name}:{number}"
            try:
                found = _parsed(line)
                prompt, given = found.pop("prompt", None), {key: found.pop(key) for key in ("id",) if key in found}
                if isinstance(found.get("stop"), str):
                    found["stop"] = [found["stop"]]  # "[a]" is a text here, and no YAML
                settings = change(config.generation, found, ("prompt", "id"))
                change(settings, {"seed": settings.seed + config.num_samples - 1}, ())  # the last one's
                if not isinstance(prompt, str):
                    raise UserError(f"its prompt is missing or no text: {FORM}")
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            jobs.append(Job(where, {"line": number} | given, prompt, settings))
    if not jobs:
        raise UserError(f'{name}: there is no prompt in it; write one a line, as {{"prompt": "def "}}')
    return jobs


def _parsed(line: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UserError(f"{key} stands there twice: keep one of them")
            found[key] = value
        return found

    def no_number(name: str) -> None:
        raise UserError(f"{name} is no number in JSON")

    try:
        found = json.loads(line, object_pairs_hook=once, parse_constant=no_number)
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    except UserError:
        raise
    except (json.JSONDecodeError, RecursionError) as error:
        why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise UserError(f"not JSON ({why}): {FORM}; a file that is one prompt is given by --prompt_file") from None
    except ValueError:
        raise UserError("has a number out of range or half a surrogate pair, which cannot be written again") from None
    if not isinstance(found, dict):
        raise UserError(f"{line.strip():.20} is no object: {FORM}")
    return found
