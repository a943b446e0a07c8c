"""Switches of the whole process that make a run faster, put back at its end: TF32, and what is garbage collected."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch

FREEZE_AFTER_BATCHES = 20
"""Micro-batches. By then all that lives as long as the run is there: models, optimizer state, compiled code. A short
run ends before, and need not pay for the collection."""


def uses_tf32(device: torch.device) -> bool:
    """Whether float32 products on the device round their factors to TF32's 10 bits."""
    return device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32


@contextlib.contextmanager
def allow_tf32(device: torch.device, precision: str) -> Iterator[None]:
    """Inside, an NVIDIA GPU that can (from Ampere on) multiplies float32 matrices in TF32, up to eight times as fast.

    Not if the user has chosen already, with torch's functions or NVIDIA's own switch, NVIDIA_TF32_OVERRIDE=0.

    Args:
        device: of the model.
        precision: of the trainer; 64-true and those without float32 weights have no such products.
    """
    matmul = torch.backends.cuda.matmul
    has_float32 = precision == "32-true" or precision.endswith("-mixed")
    is_untouched = matmul.fp32_precision == "none" and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
    if not (device.type == "cuda" and has_float32 and is_untouched and torch.version.hip is None):
        yield
        return
    if torch.cuda.get_device_capability(device)[0] < 8:
        yield
        return
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for each in (matmul, torch.backends.mkldnn.matmul):  # type: ignore[attr-defined]
            each.fp32_precision = "none"  # untouched again, for the next run of this process


class FreezeGarbage(L.Callback):
    """Exempts what there is after the first steps from Python's garbage collection.

    A full collection looks at each of the half a million objects of torch, Lightning and a model, 0.2 s and more in
    which the device runs dry, at another step on each rank. Afterwards it looks at new objects only.
    """

    def __init__(self) -> None:
        self._n_batches, self._has_frozen = 0, False

    def on_train_batch_end(self, *_: Any) -> None:
        self._n_batches += 1
        is_due = self._n_batches == FREEZE_AFTER_BATCHES
        if is_due and gc.isenabled() and not gc.get_freeze_count():  # else the user has frozen some
            gc.collect()
            gc.freeze()
            self._has_frozen = True

    def undo(self) -> None:
        """Let the collector see all objects again."""
        if self._has_frozen:
            gc.unfreeze()
