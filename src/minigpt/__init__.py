"""minigpt: text -> tokens -> batch -> logits -> loss -> step -> checkpoint -> samples and attention maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pandas import DataFrame

    from minigpt.api import Run
    from minigpt.config import Config
    from minigpt.errors import UserError
    from minigpt.generation.generator import Writer
    from minigpt.pages.tensor import show_attention

__all__ = ["Config", "Run", "UserError", "compare", "load", "open_run", "show_attention", "train"]
__version__ = "0.1.0"


def load(path: str | Path, device: str = "cpu", *, int8: bool = False, compile: bool = False) -> Writer:
    """Load a trained model for generation: `minigpt.load("runs/demo").generate("def ", temperature=0).text`.

    Args:
        path: a run folder, a checkpoint or a safetensors file.
        device: cpu, cuda, cuda:1, mps.
        int8: quantize weights to int8, for large models on a CPU.
        compile: decode with torch.compile, for a GPU.

    Raises:
        minigpt.errors.UserError: the path does not exist, is another program's file, or is damaged or incomplete.
    """
    from minigpt.generation.generator import Writer  # imported here because it imports torch

    return Writer.load(path, device, int8=int8, compile=compile)


def train(
    source: str | Path | Sequence[str | Path] | Config | None = None,
    *,
    recipe: str | Path | Sequence[str | Path] | None = None,
    resume: Run | str | Path | None = None,
    **settings: Any,
) -> Run:
    """Train a model: `minigpt.train("story.txt", max_steps=100, **{"optimizer.learning_rate": 1e-3})`.

    Args:
        source: the text, as data.source names it; or a complete `minigpt.Config`, which takes no other settings.
        recipe: a recipe by name or path, or several; `settings` override it.
        resume: a run to continue, or "auto", as `--resume` of the command line.
        settings: any setting of `minigpt train --help`: by its dotted name, by its last name where only one setting has
            it (`n_layer=3`), or a section as a dictionary (`model={"n_layer": 3}`).

    Raises:
        minigpt.UserError: a setting, text or checkpoint that cannot work, or another run of this process still trains.
        KeyboardInterrupt: Ctrl-C, or an interrupted cell; the run is saved, and can be resumed.
    """
    from minigpt.api import train

    return train(source, recipe, resume, settings)


def open_run(path: str | Path) -> Run:
    """Open the folder of a run, finished or not: `minigpt.open_run("runs/demo").plot()`.

    Raises:
        minigpt.UserError: the path is not a run folder.
    """
    from minigpt.api import open_run

    return open_run(path)


def compare(variants: Mapping[str, Sequence[Run]]) -> DataFrame:
    """Compare settings over seeds: `minigpt.compare({"plain": plain_runs, "dropout 0.2": dropout_runs})`.

    Args:
        variants: the runs of each variant, one for each seed; the first variant is what the others are compared with.

    Returns:
        A row for each variant: "bits per byte" of the runs' models (those with the best validation), the mean over the
        seeds; "difference" to the first variant, paired by seed; "interval", half of the difference's 95 % interval
        (Student's t), NaN for one seed.

    Raises:
        minigpt.UserError: seeds or held-out texts differ, a run has no validation, or pandas is not installed.
    """
    from minigpt.api import compare

    return compare(variants)


def __getattr__(name: str) -> Any:
    """`Config`, `Run`, `UserError` and `show_attention`, imported when they are asked for."""
    if name == "Config":
        from minigpt.config import Config

        return Config
    if name == "Run":
        from minigpt.api import Run

        return Run
    if name == "UserError":
        from minigpt.errors import UserError

        return UserError
    if name == "show_attention":
        from minigpt.pages.tensor import show_attention

        return show_attention
    raise AttributeError(f"module 'minigpt' has no attribute {name!r}")
