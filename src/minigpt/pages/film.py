"""Film of a run: one HTML page with the text that each checkpoint generates from the same prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from minigpt.config import GenerationConfig
from minigpt.errors import UserError
from minigpt.generation.generator import Completion, Writer
from minigpt.interop.hub import is_foreign
from minigpt.pages.documents import Page, document, facts_html, paragraphs_html
from minigpt.pages.run_record import Curves, curves_of, metric_rows
from minigpt.pages.tokens import ENDS, mean, n_kept, scale_html, settings_text, tokens_html
from minigpt.runs.folder import RunFolder, name_of
from minigpt.runs.loading import read_checkpoint, weights_files

KEEP = "train with --keep_every_n_steps 50, say, to keep one every 50 steps"
_MEASURES = {"val/loss": "nats per token", "val/bits_per_byte": "bits per byte"}


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
    if is_foreign(run):
        raise UserError(f"{run}: is another program's model; a film shows the checkpoints of a run trained here")
    folder, config, notes = RunFolder(run), config or GenerationConfig(), list[str]()
    of_metrics: list[str] = []
    curves = curves_of((int(row["step"]), row) for row in metric_rows(folder.metrics, of_metrics))
    frames: dict[int, str] = {}
    for step, writer in _opened(folder, device, notes):
        prompt = writer.first_prompt if prompt is None else prompt
        try:
            frames[step] = _frame_html(step, writer, writer.generate(prompt, config), curves)
        except UserError as error:
            notes.append(f"Step {step}: {error}.")
    if not frames:
        raise UserError(" ".join(dict.fromkeys(notes)) or f"{run}: holds no checkpoint yet; {KEEP}")
    if len(frames) < 3:
        notes.append(f"The run has few checkpoints; {KEEP}.")
    steps = f"{len(frames)}, of step{'s' if len(frames) > 1 else ''} {', '.join(map(str, frames))}"
    facts = {"settings": f"{settings_text(config)} · seed {config.seed}", "checkpoints": steps}
    return document(
        "film",
        f"{name_of(run)}: the same prompt, step by step",
        facts=facts_html(facts),
        notes=paragraphs_html([*notes, *of_metrics]),
        scale=scale_html(),
        frames="\n".join(frames.values()),
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


def _frame_html(step: int, writer: Writer, written: Completion, curves: Curves) -> str:
    """A <section>, with losses where the run was validated at the same step."""
    bits = [-log_probability / math.log(2) for log_probability in written.log_probabilities]
    tokens, n_prompt = [*written.prompt_tokens, *written.tokens], len(written.prompt_tokens)
    text = tokens_html(writer.tokenizer, tokens, n_prompt, bits, n_kept(writer.tokenizer, written))
    facts = [
        f"{name} <b>{curves[name][step]:.3f}</b> {unit}"
        for name, unit in _MEASURES.items()
        if step in curves.get(name, {})
    ]
    if bits:
        facts.append(f"surprise <b>{mean(bits):.2f}</b> bits per token")
    facts.append(f"{len(bits)} tokens, {ENDS[written.ended]}")
    return (
        f'<section class="frame" data-step="{step}"><h2>step {step} <small>{" · ".join(facts)}</small></h2>'
        f'<div class="text" dir="auto">{text}</div></section>'
    )
