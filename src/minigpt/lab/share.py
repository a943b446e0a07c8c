"""`minigpt share`: a run -> one safetensors file with weights, tokenizer, settings and a card, and nothing private."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minigpt.config import AttentionConfig, Config, DataConfig, ShareConfig, TrainerConfig
from minigpt.data.tokenizers.tiktoken_tables import TIKTOKEN_NAMES
from minigpt.errors import UserError
from minigpt.files import typed
from minigpt.interop.hub import model_name
from minigpt.lab.prepared import prepared_of
from minigpt.pages.run_record import Sample, metric_rows, read_samples
from minigpt.runs.card import Card
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import LoadedModel, load_model, save_weights

MAX_TEXTS = 10
"""Names of texts in the card; the config has all."""
MAX_SAMPLES = 3
MAX_SAMPLE_CHARACTERS = 2000
INSTALL = ("pip install -c constraints.txt torch", "pip install -c constraints.txt -e .")
"""As in README."""
_KEPT = {"max_time", "precision", "gradient_clip_algorithm"}
"""Settings of the trainer that are texts, and shared."""


def share_run(config: ShareConfig) -> str:
    """Write the shared file, and return what to print.

    Raises:
        UserError: see `write_shared`.
    """
    file, loaded, card = write_shared(config)
    readable = ["its settings and the names of its texts"]
    if card.samples:
        readable.append(f"{_of(len(card.samples), 'sample')} with prompts")
    if loaded.config.data.tokenizer not in {"bytes", *TIKTOKEN_NAMES}:
        readable.append(f"the {card.vocab_size:,} tokens of the tokenizer, words of the text among them")
    name = typed(file)
    return "\n".join(
        [
            f"{file}: {file.stat().st_size / 1e6:.1f} MB: the best weights of {config.run}"
            f"{'' if card.step is None else f' (step {card.step})'}, tokenizer, settings and card",
            f"Anyone who has the file can read {_joined(readable)}. The model may also recite its text.",
            "Your friend types, in a checkout of minigpt:",
            *(f"  {line}" for line in INSTALL),
            f"  minigpt sample {name}",
            f"  minigpt share {name}    # prints the card",
        ]
    )


def write_shared(config: ShareConfig) -> tuple[Path, LoadedModel, Card]:
    """Write the best weights of a run with a card in the header, as NAME.safetensors or to config.out.

    Raises:
        UserError: no run, a run without weights, or the file exists already or cannot be written.
    """
    run = RunFolder(config.run)
    name = model_name(config.run)
    file = Path(f"{name}.safetensors" if config.out is None else config.out)
    if os.path.lexists(file):
        raise UserError(f"{file}: already exists; remove it, or name another file as --out FILE.safetensors")
    loaded = load_model(run.path)
    shared = public(loaded.config)
    card = card_of(run, name, loaded, shared)
    save_weights(file, loaded.model, shared, loaded.tokenizer, loaded.step, card=card.to_json())
    return file, loaded, card


def public(config: Config) -> Config:
    """The config without folders, hosts, accounts, loggers and other objects: names of texts are cut to base names."""
    data, trainer, prompts = config.data, TrainerConfig(), config.sampling.prompts
    for field in dataclasses.fields(TrainerConfig):
        value = getattr(config.trainer, field.name)
        if field.name in _KEPT or isinstance(value, int | float):  # others may be objects with any arguments
            trainer = dataclasses.replace(trainer, **{field.name: value})
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            data,
            source=_like(data.source, base_names(data.sources)),
            val_source=_like(data.val_source, base_names(data.val_sources)),
            tokenizer=base_names([data.tokenizer])[0],
            dir=DataConfig.dir,
        ),
        trainer=trainer,
        sampling=dataclasses.replace(config.sampling, prompts=prompts and prompts[:MAX_SAMPLES]),
        attention=AttentionConfig(),
        runs_dir=Config.runs_dir,
        initial_weights=config.initial_weights and base_names([config.initial_weights])[0],
    )


def base_names(sources: Sequence[str]) -> list[str]:
    """Sources without folders, hosts and the queries of URLs; equal names get a number, as a config has each once."""
    names = list[str]()
    home = Path(os.environ.get("HOME") or os.environ.get("USERPROFILE") or "").name  # has the user's name
    for source in sources:
        path = re.split(r"[?#]", source)[0] if "://" in source else source
        name = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
        name = "text" if name in {"", ".", "..", "~", home} else name
        names.append(name if name not in names else f"{name} (source {len(names) + 1})")
    return names


def _like(given: Any, names: list[str]) -> Any:
    """`names` in the form of the setting: a list, one text or None."""
    return names if isinstance(given, list) else names[0] if names else None


def card_of(run: RunFolder, name: str, loaded: LoadedModel, shared: Config) -> Card:
    """The card of a run's best weights, from the files that the run left; `shared` is its `public` config."""
    rows: dict[int, dict[str, float]] = {}
    for row in metric_rows(run.metrics, []):
        finite = {key: value for key, value in row.items() if math.isfinite(value)}
        rows.setdefault(int(row["step"]), {}).update(finite)
    samples = _samples(run, loaded.step)
    at_weights = rows.get(-1 if loaded.step is None else loaded.step, {})
    at_samples = rows.get(samples[0].step, {}) if samples else {}
    longest = at_samples.get("samples/longest_copied_tokens")
    model, texts = loaded.config.model, base_names(loaded.config.data.sources)
    more = [] if len(texts) <= MAX_TEXTS else [f"{len(texts) - MAX_TEXTS} more"]
    texts = [*texts[:MAX_TEXTS], *more]
    n_parameters = sum(weight.numel() for weight in loaded.model.parameters())
    return Card(
        name=name,
        title=f"a GPT of {n_parameters / 1e6:.2f} million parameters, trained on {_joined(texts)}",
        minigpt=_version(),
        date=datetime.now(UTC).date().isoformat(),
        n_parameters=n_parameters,
        n_layer=model.n_layer,
        n_head=model.n_head,
        n_embd=model.n_embd,
        context_length=model.context_length,
        tokenizer=shared.data.tokenizer,
        vocab_size=loaded.tokenizer.vocab_size,
        texts=texts,
        text_bytes=_text_bytes(run, loaded.config.data),
        step=loaded.step,
        last_step=max(rows, default=None),
        tokens=int(at_weights["tokens"]) if "tokens" in at_weights else None,
        val_loss=at_weights.get("val/loss"),
        val_bits_per_byte=at_weights.get("val/bits_per_byte"),
        longest_copied_tokens=None if longest is None else int(longest),
        copied_20gram_share=at_samples.get("samples/copied_20gram_share"),
        prompt=next(map(_shortened, shared.sampling.prompts or []), None),
        sample_step=samples[0].step if samples else None,
        samples=[_shortened(sample.text) for sample in samples],
    )


def _version() -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # src on PYTHONPATH, not installed
        return importlib.metadata.version("minigpt")
    return "of a checkout"


def _samples(run: RunFolder, step: int | None) -> list[Sample]:
    """Samples of the weights' step; the last ones if it has none."""
    samples = read_samples(run.path)
    if samples and step not in {sample.step for sample in samples}:
        step = samples[-1].step
    return [sample for sample in samples if sample.step == step][:MAX_SAMPLES]


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SAMPLE_CHARACTERS else f"{text[:MAX_SAMPLE_CHARACTERS]} …"


def _text_bytes(run: RunFolder, config: DataConfig) -> int | None:
    """Length of the text that the run was trained on, if its prepared folder is still there."""
    return next((found.train.n_bytes + found.val.n_bytes for _, found in prepared_of(run, config)), None)


def _of(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _joined(words: Sequence[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
