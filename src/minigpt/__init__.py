"""minigpt: text -> tokens -> batch -> logits -> loss -> step -> checkpoint -> samples and attention maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from minigpt.generation.generator import Writer

__version__ = "0.1.0"


def load(path: str | Path, device: str = "cpu", *, int8: bool = False, compile: bool = False) -> Writer:
    """A trained model, ready to write: `minigpt.load("runs/demo").generate("def ", temperature=0).text`.

    Args:
        path: a run folder, a checkpoint or a safetensors file.
        device: where to compute.
        int8: with weights of 8 bits, for large models on a CPU.
        compile: through torch.compile, for a GPU.

    Raises:
        minigpt.errors.UserError: nothing is there, or it is not ours, damaged or incomplete.
    """
    from minigpt.generation.generator import Writer  # torch is loaded when a model is

    return Writer.load(path, device, int8=int8, compile=compile)
