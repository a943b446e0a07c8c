"""minigpt: text -> tokens -> batch -> logits -> loss -> step -> checkpoint -> samples and attention maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from minigpt.generation.generator import Writer

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
