"""`sample.py --prompts`: generates from a file of prompts into a JSON Lines file; a rerun resumes where it stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.config import GenerationConfig, SampleConfig
from minigpt.errors import UserError
from minigpt.files import locked, note, reason

if TYPE_CHECKING:  # imports torch, which is loaded only with a model
    from minigpt.generation.generator import Completion, Writer

Change = Callable[[GenerationConfig, dict[str, Any], Sequence[str]], GenerationConfig]
"""(config, settings of a line, other keys allowed there) -> the changed config, or a UserError."""
FORM = 'a line is an object such as {"prompt": "def ", "seed": 5}'
BATCH_SIZE = 16
"""Samples per batch: a decode step for 16 takes hardly longer than for one, and a crash loses at most one batch."""


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


def run(config: SampleConfig, text: str, change: Change) -> None:
    """Generate from a JSON Lines text of prompts; all of them are validated before the first is written.

    Raises:
        UserError: an invalid prompt or setting, or an output file that cannot be written or has other content.
    """
    out, name = Path(str(config.out)), str(config.prompts)
    _check_name(out, name)
    jobs = read_jobs(text, "standard input" if name == "-" else name, config, change)

    from minigpt.generation.generator import Writer

    writer = Writer.load(config.run, config.device, int8=config.int8, compile=config.compile)
    write_jobs(jobs, writer, config.num_samples, out)


def _check_name(out: Path, prompts: str) -> None:
    try:
        if str(out) == "-" or (out.exists() and not out.is_file()):
            raise UserError(f"out={out}: must be a file, so that a rerun can resume; name one, as texts.jsonl")
        if out.exists() and Path(prompts).exists() and out.samefile(prompts):
            raise UserError(f"out={out}: is the file of the prompts; name another one")
    except OSError as error:  # a name that is too long, a folder without permission
        raise UserError(f"out={out}: {reason(error)}") from None


def write_jobs(jobs: Sequence[Job], writer: Writer, num_samples: int, out: str | Path) -> None:
    """Write num_samples texts per prompt as JSON lines; each batch is on disk before the next one starts.

    A rerun resumes after the lines already in the file. It uses the batches of an uninterrupted run, so that even the
    last digits of the log-probabilities agree.

    Raises:
        UserError: a prompt or setting is invalid for the model; or the file cannot be written, is being written by
            another process, or is from other prompts, settings or weights; the file is then unchanged.
    """
    out = Path(out)
    for job in jobs:
        try:
            writer.check(job.prompt, job.config)
        except UserError as error:
            raise UserError(f"{job.where}: {error}") from None
    weights = _weights_fingerprint(writer)
    known = [_known(job, sample, weights) for job in jobs for sample in range(num_samples)]
    try:
        real = out.resolve()
        with (
            locked(
                real.with_name(f".{real.name}.lock"),
                lambda owner: f"out={out}: {owner} writes it; wait for it, or name another file",
            ),
            out.open("a+b") as file,
        ):
            n_there = _keep_complete(file, known, out)
            note(f"{out}: {_write(file, jobs, writer, num_samples, known, n_there)}")
    except OSError as error:
        raise UserError(
            f"out={out}: could not be written ({reason(error)}); complete lines are kept: fix that and rerun the "
            "command to resume, or name another file"
        ) from None
    except KeyboardInterrupt:
        note(f"stopped; complete lines are in {out}, and the same command resumes")
        raise


def _write(
    file: Any, jobs: Sequence[Job], writer: Writer, num_samples: int, known: Sequence[dict[str, Any]], n_there: int
) -> str:
    """Append all texts after the first n_there; returns a summary."""
    from tqdm import tqdm

    n_done, n_tokens, seconds = 0, 0, 0.0
    with tqdm(total=len(known), initial=n_there, unit="text", disable=None) as bar:  # None: only at a terminal
        for batch, samples in _batches(jobs, num_samples):
            before, n_done = n_done, n_done + len(batch) * len(samples)
            if n_done <= n_there:
                continue
            started = time.perf_counter()
            settings = dataclasses.replace(batch[0].config, seed=batch[0].config.seed + samples.start)
            texts = writer.generate_many([job.prompt for job in batch], settings, num_samples=len(samples))
            seconds += time.perf_counter() - started
            n_tokens += sum(len(text.tokens) for text in texts)
            for i in range(max(before, n_there), n_done):
                file.write(_line(known[i], texts[i - before]))
                file.flush()
                bar.update()
            os.fsync(file.fileno())
    there = f", {n_there} of them were there already" if n_there else ""
    rate = f"; {n_tokens:,} tokens in {seconds:.2f} s: {n_tokens / seconds:,.0f} tokens/s" if seconds else ""
    return f"{n_done} texts{there}{rate}"


def _batches(jobs: Sequence[Job], num_samples: int) -> Iterator[tuple[list[Job], range]]:
    """Batches in the order of the file: prompts with equal settings, and the sample numbers of each."""
    n_samples = min(num_samples, BATCH_SIZE)
    n_prompts = BATCH_SIZE // n_samples
    for _, group in itertools.groupby(jobs, key=lambda job: job.config):
        equal = list(group)
        for start in range(0, len(equal), n_prompts):
            for first in range(0, num_samples, n_samples):
                yield equal[start : start + n_prompts], range(first, min(first + n_samples, num_samples))


def _known(job: Job, sample: int, weights: str) -> dict[str, Any]:
    """The keys of an output line that are known before generation; a rerun recognizes finished lines by them."""
    settings = dataclasses.asdict(job.config) | {"seed": None}
    of = hashlib.sha256(json.dumps([weights, settings]).encode()).hexdigest()[:16]
    return job.given | {"sample": sample, "seed": job.config.seed + sample, "prompt": job.prompt, "of": of}


def _line(known: dict[str, Any], text: Completion | None) -> bytes:
    """An output line; without a text, its known beginning."""
    if text is None:
        return json.dumps(known, ensure_ascii=False)[:-1].encode() + b', "text": '
    new = {name: getattr(text, name) for name in ("text", "tokens", "log_probabilities", "ended")}
    return json.dumps(known | new, ensure_ascii=False).encode() + b"\n"


def _keep_complete(file: Any, known: Sequence[dict[str, Any]], out: Path) -> int:
    """Number of complete lines; truncates a partial line that a crash left at the end.

    Raises:
        UserError: a line does not match these prompts, settings and weights; the file is unchanged.
    """
    file.seek(0)
    n_there = end = 0
    for line in file:
        beginning = _line(known[n_there], None) if n_there < len(known) else b"\n"
        complete = line.startswith(beginning) and line.endswith(b"}\n")
        broken = not line.endswith(b"\n") and (line.startswith(beginning) or beginning.startswith(line))
        if not complete and not broken:
            raise UserError(
                f"{out}:{n_there + 1}: {_difference(line, known[n_there : n_there + 1])}; name another file by --out, "
                "or move this one away"
            )
        n_there, end = n_there + complete, end + len(line) * complete
    file.truncate(end)
    return n_there


def _difference(line: bytes, known: Sequence[dict[str, Any]]) -> str:
    if not known:
        return "there are more lines than these prompts have samples"
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not set(known[0]) <= set(found):
        return "is not an output line of these prompts"
    names = [name for name, value in known[0].items() if found[name] != value]
    if names == ["of"]:
        return "was written with other settings or weights"
    return f"is from other prompts or settings ({', '.join(names) or 'its form'} differs)"


def _weights_fingerprint(writer: Writer) -> str:
    from minigpt.generation.cpu_backend import CPUDecode

    int8 = isinstance(writer.reader, CPUDecode) and writer.reader.int8
    rest = [
        dataclasses.asdict(writer.model_config),
        writer.tokenizer.to_dict(),
        writer.from_start,
        int8,
        *filter(any, [writer.form[:2]]),
    ]
    found = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name, weight in sorted(writer.weights().items()):
        found.update(name.encode())
        found.update(weight.reshape(-1).data)
    return found.hexdigest()
