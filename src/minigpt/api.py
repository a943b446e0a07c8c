"""minigpt from Python and notebooks: `train` returns a `Run`, with its metrics, samples, model and pages."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import threading
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from minigpt.cli.keywords import words_of
from minigpt.cli.parsing import parse_training
from minigpt.cli.recipes import did_you_mean
from minigpt.config import Config, InspectConfig, LiveConfig, PatchConfig, ShareConfig
from minigpt.errors import UserError
from minigpt.frames import pandas_for
from minigpt.lab.comparison_table import paired_difference
from minigpt.pages.documents import Page
from minigpt.pages.figures import loss_figure
from minigpt.pages.report import render_report
from minigpt.pages.run_record import Sample, metric_rows, read_run_folder, read_samples
from minigpt.runs.folder import RunFolder

if TYPE_CHECKING:  # these load torch, or are slow to import
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from torch import Tensor

    from minigpt.generation.generator import Completion, Writer
    from minigpt.inspection.hooks import ActivationCache, HookFunction
    from minigpt.inspection.snapshot import Snapshot
    from minigpt.lab.patch import Patches
    from minigpt.pages.model_report import Inspection

_TRAINING = threading.Lock()


class Run:
    """A trained run, or one that is still training. Its files are read when an attribute is asked for."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"minigpt.open_run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """The report, for notebooks."""
        return self.report()._repr_html_()

    @property
    def config(self) -> Config:
        """All settings, those filled in from the text included."""
        return Config.from_dict(yaml.safe_load(RunFolder(self.path).config.read_text(encoding="utf-8")))

    @property
    def metrics(self) -> DataFrame:
        """metrics.csv as a pandas DataFrame, one row a step; NaN where a step has no such number.

        Raises:
            UserError: pandas is not installed.
        """
        pandas = pandas_for("metrics")
        file, steps = RunFolder(self.path).metrics, dict[int, dict[str, float]]()
        for row in metric_rows(file, []):  # runs of earlier versions have two rows for a validated step
            steps.setdefault(int(row["step"]), {}).update(row)
        columns = file.read_text(encoding="utf-8").partition("\n")[0].split(",") if file.exists() else ["step"]
        table = pandas.DataFrame(list(steps.values()), columns=[name.strip() for name in columns])
        # Where the device's peak is not known the column is empty, and `dropna()` would drop every row.
        if "perf/mfu" in table and table["perf/mfu"].isna().all():
            table = table.drop(columns="perf/mfu")
        return table.astype({name: "int64" for name in ("step", "tokens") if name in table})

    def plot(self) -> Figure:
        """Train and validation loss by step. A notebook shows it; elsewhere `run.plot().savefig("loss.png")`."""
        return loss_figure(self.metrics, self.path.name)

    @property
    def samples(self) -> list[Sample]:
        """Samples of each validation, as (step, prompt, text); a text begins with its prompt."""
        return read_samples(self.path)

    @cached_property
    def writer(self) -> Writer:
        """The model with its best weights on the CPU, as `minigpt.load` opens it."""
        from minigpt.generation.generator import Writer

        return Writer.load(self.path)

    def generate(self, prompt: str | None = None, **settings: Any) -> Completion:
        """Continue a prompt; None takes the run's first sampling prompt. Settings as in docs/generation.md.

        Raises:
            UserError: an unknown setting, or a prompt that the tokenizer cannot encode.
        """
        return self.writer.generate(self.writer.first_prompt if prompt is None else prompt, **settings)

    def hooks(self, functions: Mapping[str, HookFunction]) -> AbstractContextManager[None]:
        """Read or replace activations of the model that `generate`, `cache` and `writer` use, inside a `with`.

        Example: `with run.hooks({"blocks.0.attn.pattern": lambda pattern, name: 0 * pattern}): run.generate("Once")`.

        Args: functions as for `minigpt.inspection.hooks.hooks`, which documents the names.

        Raises:
            UserError: the model has no such activation, or a function returns another shape.
        """
        from minigpt.inspection.hooks import hooks

        return hooks(self.writer.model, functions)

    def cache(
        self, text: str | Sequence[int], names: str | Sequence[str] | None = None
    ) -> tuple[Tensor, ActivationCache, Tensor]:
        """Activations of the model on a text: (B, T, V) logits, the cache, and (B, T) tokens, with B = 1.

        Example: `logits, cache, tokens = run.cache("Once upon"); cache["pattern", 0]`.

        Args:
            text: text, or token ids, which begin as a prompt does.
            names: activations to keep, as in `hooks`; None for all but `attn.result` and `logits`.

        Raises:
            UserError: the text exceeds the context or cannot be encoded, or the model has no such activation.
        """
        import torch

        from minigpt.generation.text import encode_prompt
        from minigpt.inspection.hooks import run_with_cache

        model, tokenizer, from_start = self.writer.model, self.writer.tokenizer, self.writer.from_start
        given = encode_prompt(tokenizer, text, model.config.context_length, from_start=from_start)
        tokens = torch.tensor([given], device=next(model.parameters()).device)
        logits, cache = run_with_cache(model, tokens, names)
        return logits, cache, tokens

    def inspect(self, text: str | None = None, **settings: Any) -> Inspection:
        """Maps and measures of every head; a notebook shows the page.

        Args:
            text: text to inspect; None for the text inspected during training.
            settings: those of `minigpt inspect`: compare (a run, or its path), relations, ablation, ablate, max_tokens,
                device.

        Raises:
            UserError: an unknown setting, or what `minigpt inspect` refuses.
        """
        from minigpt.pages.model_report import inspect_runs

        not_settings = {"run", "text", "file", "out"}
        _require_settings(settings, InspectConfig, not_settings)
        given: dict[str, Any] = {
            name: str(path_of(value)) if name == "compare" else value for name, value in settings.items()
        }
        return inspect_runs(InspectConfig(run=str(self.path), text=text, **given), text)

    def patch(self, clean: str, corrupted: str, answer: str, **settings: Any) -> Patches:
        """Which activations of the clean prompt restore its answer in the corrupted one; a notebook shows the page.

        Args:
            clean: prompt after which the model predicts the answer.
            corrupted: the same prompt, changed so that it does not; as many tokens.
            answer: text of one token.
            settings: those of `minigpt patch`: minus, method, steps, sender, through_mlps, position, device.

        Raises:
            UserError: an unknown setting, or what `minigpt patch` refuses.
        """
        from minigpt.lab.patch import patch_run

        _require_settings(settings, PatchConfig, {"run", "out"})
        return patch_run(PatchConfig(str(self.path), clean, corrupted, answer, **settings))

    def attention(self, step: int | None = None) -> Snapshot:
        """What was captured at a training step, as arrays: weights, scores, tokens; see `minigpt.inspection.snapshot`.

        Args:
            step: one of those in the run's folder `attention`; None for the last.

        Raises:
            UserError: no snapshot was taken at this step, or its file is damaged.
        """
        from minigpt.inspection.snapshot import Snapshot, step_of

        files = {step_of(file): file for file in RunFolder(self.path).snapshots}
        if not files:
            raise UserError(f"{self.path}: has no attention snapshots; train with --attention.enabled true")
        if step is not None and step not in files:
            raise UserError(f"step={step}: there is no attention snapshot; there are steps {[*files]}")
        try:
            return Snapshot.load(files[max(files) if step is None else step])
        except (FileNotFoundError, ValueError) as error:
            raise UserError(str(error)) from None

    def report(self) -> Page:
        """The run's losses, samples and attention as one HTML page, as `minigpt report` writes it."""
        return render_report(read_run_folder(self.path))

    def live(self, text: str | None = None, **settings: Any) -> Page:
        """A page in which the model runs while one types; a notebook shows it.

        Args:
            text: what the page opens with; None for the beginning of the text inspected during training.
            settings: those of `minigpt live`: weights.

        Raises:
            UserError: an unknown setting, or what `minigpt live` refuses.
        """
        from minigpt.lab.live import make_live

        _require_settings(settings, LiveConfig, {"run", "text", "out"})
        return make_live(LiveConfig(str(self.path), text, **settings)).page

    def share(self, out: str | Path | None = None) -> Path:
        """Make one file for a friend, as `minigpt share`; None for NAME.safetensors in the current folder.

        Raises:
            UserError: the file exists already, or the run has no weights yet.
        """
        from minigpt.lab.share import write_shared

        return write_shared(ShareConfig(str(self.path), None if out is None else str(out)))[0]


def _require_settings(
    given: Iterable[str], config: type[InspectConfig | LiveConfig | PatchConfig], without: Set[str]
) -> None:
    """Refuse settings that a command lacks, or that a method gives itself.

    Raises:
        UserError: names the setting, and a similar one.
    """
    known = [each.name for each in dataclasses.fields(config) if each.name not in without]
    for name in given:
        if name not in known:
            raise UserError(f"unknown setting {name}{did_you_mean(name, known) or f'; there are {known}'}")


def path_of(run: Run | str | Path) -> Path:
    """The folder of a run that is given as such or by its path."""
    return run.path if isinstance(run, Run) else Path(run)


def open_run(path: str | Path) -> Run:
    """Open the folder of a run.

    Raises:
        UserError: the path is not a run folder.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise UserError(f"{path}: there is no {folder.config}; name the folder of a run, such as runs/demo")
    return Run(folder.path)


def compare(variants: Mapping[str, Sequence[Run]]) -> DataFrame:
    """`minigpt.compare`, which documents the arguments.

    Raises:
        UserError: pandas is not installed, or the runs cannot be compared.
    """
    pandas = pandas_for("compare")
    if not variants:
        raise UserError("compare: there are no runs: give each variant its own, one for each seed")
    by_seed = {name: _bits_by_seed(name, runs) for name, runs in variants.items()}
    texts = {name: [_text_of(run.config) for run in runs] for name, runs in variants.items()}
    first = next(iter(variants))
    for name in variants:
        if by_seed[name].keys() != by_seed[first].keys():
            seeds = f"seeds {sorted(by_seed[name])}, and {first} has {sorted(by_seed[first])}"
            raise UserError(f"{name}: has {seeds}: train each with the same seeds")
        if any(text != texts[first][0] for text in texts[name]):
            raise UserError(f"{name}: has another held-out text than {first}: train both on the same text")
    rows: dict[str, list[float | None]] = {}
    for name, bits in by_seed.items():
        differences = paired_difference([bits[seed] for seed in by_seed[first]], list(by_seed[first].values()))
        rows[name] = [statistics.mean(bits.values()), *([None, None] if name == first else differences)]
    columns = ["bits per byte", "difference", "interval"]
    return pandas.DataFrame.from_dict(rows, orient="index", columns=columns, dtype="float64")


def _bits_by_seed(name: str, runs: Sequence[Run]) -> dict[int, float]:
    """The lowest validated bits per byte of each run of a variant, which are those of its model, by seed."""
    seeds = [run.config.seed for run in runs]
    if not runs or len(set(seeds)) < len(seeds):
        raise UserError(f"{name}: has runs with seeds {seeds}: give one or more runs, each with its own seed")
    found = {}
    for seed, run in zip(seeds, runs, strict=True):
        table = run.metrics
        found[seed] = float(table["val/bits_per_byte"].min()) if "val/bits_per_byte" in table else math.nan
        if math.isnan(found[seed]):
            raise UserError(f"{name}: {run.path} has no validation yet")
    return found


def _text_of(config: Config) -> Any:
    """What decides on the text that a run validates on."""
    return config.data.sources, config.data.val_source, config.data.val_fraction, config.data.val_from


def train(
    source: str | Path | Sequence[str | Path] | Config | None,
    recipe: str | Path | Sequence[str | Path] | None,
    resume: Run | str | Path | None,
    settings: Mapping[str, Any],
) -> Run:
    """`minigpt.train`, which documents the arguments.

    Raises:
        UserError: a setting, text or checkpoint that cannot work, or another run of this process still trains.
        KeyboardInterrupt: Ctrl-C, or an interrupted cell; the run is saved, and can be resumed.
    """
    config, folder = _config_of(source, recipe, resume, settings)
    from minigpt.training.run import train

    if not _TRAINING.acquire(blocking=False):  # random numbers, threads and handlers belong to the whole process
        raise UserError("another run trains in this process: wait for its end, or train in a process of its own")
    try:
        return Run(train(config, folder).path)
    except SystemExit as end:
        # Lightning exits with 1 after a KeyboardInterrupt, that of a second Ctrl-C.
        if end.code == 130 or isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        _TRAINING.release()


def _config_of(source: Any, recipe: Any, resume: Any, settings: Mapping[str, Any]) -> tuple[Config, Path | None]:
    """The config and the folder to resume, from the arguments of `train`."""
    folder = None if resume is None else path_of(resume)
    if isinstance(source, Config):
        if recipe is not None or settings:
            raise UserError("a Config has all settings: leave out the others, or change it with dataclasses.replace")
        return source, folder
    recipes = [recipe] if isinstance(recipe, str | os.PathLike) else list(recipe or [])
    given = [{"data.source": source}] if source is not None else []
    words = [word for each in [*given, settings] for word in words_of(each)]
    if source is not None and "data.source" in {word[2:].partition("=")[0] for word in words[1:]}:
        raise UserError("data.source is given twice: leave one of them out")
    resumes = [] if folder is None else [f"--resume={folder}"]
    return parse_training([*(os.fspath(each) for each in recipes), *resumes, *words])
