"""Film of a run: one HTML page with the text that each checkpoint generates from the same prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minigpt.config import GenerationConfig
from minigpt.errors import UserError
from minigpt.generation.generator import Writer, Written
from minigpt.pages.documents import Page, document, facts_html, paragraphs_html
from minigpt.pages.run_record import curves_of, metric_rows
from minigpt.pages.tokens import ENDS, mean, n_kept, scale_html, settings_text, tokens_html
from minigpt.runs.folder import RunFolder, name_of
from minigpt.runs.loading import read_checkpoint, weights_files

KEEP = "train with --keep_every_n_steps 50, say, to keep one every 50 steps"
_MEASURES = {"val/loss": "nats per token", "val/bits_per_byte": "bits per byte"}


@dataclass(frozen=True)
class _Frame:
    """Generated text of one checkpoint."""

    step: int
    written: Written
    text: str
    """HTML."""
    bits: list[float]
    """Surprise of each generated token."""


def film(
    run: str | Path, prompt: str | None = None, config: GenerationConfig | None = None, device: str = "cpu"
) -> Page:
    """Generate from every checkpoint of a run, with the same prompt and the same seed.

    Args:
        run: a run folder.
        prompt: text; the run's first prompt when not given.
        config: sampling settings.
        device: where to compute.

    Returns:
        The document. Each step is shown once; checkpoints that cannot be opened are named.

    Raises:
        UserError: no checkpoint, none that can be opened, or a prompt that does not fit.
    """
    folder, config, notes = RunFolder(run), config or GenerationConfig(), list[str]()
    frames = []
    for step, writer in _opened(folder, device, notes):
        prompt = writer.first_prompt if prompt is None else prompt
        try:
            frames.append(_frame(step, writer, prompt, config))
        except UserError as error:
            notes.append(f"Step {step}: {error}.")
    if not frames:
        raise UserError(" ".join(dict.fromkeys(notes)) or f"{run}: holds no checkpoint yet; {KEEP}")
    if len(frames) < 3:
        notes.append(f"The run has few checkpoints; {KEEP}.")
    curves = curves_of((int(row["step"]), row) for row in metric_rows(folder.metrics, notes))
    measured = {name: curves.get(name, {}) for name in _MEASURES}
    facts = {"settings": f"{settings_text(config)} · seed {config.seed}", "checkpoints": _steps(frames)}
    return document(
        "film",
        f"{name_of(run)}: the same prompt, step by step",
        facts=facts_html(facts),
        notes=paragraphs_html(notes),
        scale=scale_html(),
        frames="\n".join(_frame_html(frame, measured) for frame in frames),
    )


def _opened(folder: RunFolder, device: str, notes: list[str]) -> Iterator[tuple[int, Writer]]:
    """Step and writer of each checkpoint, one at a time; `notes` gets a sentence for each that cannot be opened."""
    if not folder.path.is_dir():
        weights_files(folder.path)  # raises where nothing exists, naming the runs there are
        raise UserError(f"{folder.path}: is a single checkpoint; name the folder of its run")
    files = {step: [file] for step, file in folder.all_kept.items()}
    for file in sorted((folder.path / "checkpoints").glob("*.ckpt")):
        try:
            files.setdefault(int(read_checkpoint(file)["global_step"]), []).append(file)
        except UserError as error:
            notes.append(f"{error}.")
        except (KeyError, TypeError, ValueError):
            notes.append(f"{file}: has no global_step.")
    for step, candidates in sorted(files.items()):
        for file in candidates:  # all of them have the same weights
            try:
                writer = Writer.load(file, device)
            except UserError as error:
                notes.append(f"{error}.")
            else:
                yield step, writer
                break


def _frame(step: int, writer: Writer, prompt: str, config: GenerationConfig) -> _Frame:
    written = writer.generate(prompt, config)
    tokens = written.prompt_tokens
    bits = [-chance / math.log(2) for chance in written.log_probabilities]
    text = tokens_html(
        writer.tokenizer, [*tokens, *written.tokens], len(tokens), bits, n_kept(writer.tokenizer, written)
    )
    return _Frame(step, written, text, bits)


def _frame_html(frame: _Frame, measured: dict[str, dict[int, float]]) -> str:
    """A <section>, with losses where the run was validated at the same step."""
    facts = [
        f"{name} <b>{curve[frame.step]:.3f}</b> {_MEASURES[name]}"
        for name, curve in measured.items()
        if frame.step in curve
    ]
    if frame.bits:
        facts.append(f"surprise <b>{mean(frame.bits):.2f}</b> bits per token")
    facts.append(f"{len(frame.bits)} tokens, {ENDS[frame.written.ended]}")
    return (
        f'<section class="frame" data-step="{frame.step}"><h2>step {frame.step} <small>{" · ".join(facts)}</small></h2>'
        f'<div class="text" dir="auto">{frame.text}</div></section>'
    )


def _steps(frames: list[_Frame]) -> str:
    return f"{len(frames)}, of step{'s' if len(frames) > 1 else ''} {', '.join(str(frame.step) for frame in frames)}"
