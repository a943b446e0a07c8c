"""What is measured while a run trains, and the events found in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minigpt.config import Config
from minigpt.inspection.diagnostics import Diagnostics

BINS = 40
"""Parts of equal length into which the loss curve is divided; a bin's loss is the mean of its rows."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a run."""

    step: int
    kind: str
    text: str
    """A sentence."""
    where: str = ""
    """A part, head, or kind of head; tells events of a kind apart."""
    is_warning: bool = False
    advice: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.kind} {self.where}".strip()


class ScoresAtStep(NamedTuple):
    """Head scores and numbers of one attention snapshot."""

    step: int
    scores: Mapping[str, npt.NDArray[np.float32]]
    numbers: Mapping[str, float]


class Update(NamedTuple):
    """Update-to-weight ratios and gradient norms of one step, by part."""

    step: int
    ratios: dict[str, float]
    gradients: dict[str, float]


@dataclass
class Spike:
    """A step whose loss was far above those before."""

    step: int
    loss: float
    mean: float
    std: float
    micro_batches: str
    gradients: dict[str, float]
    """By part, as a multiple of the usual norm."""
    scores: dict[str, float]
    """Largest attention score by layer, as a multiple of that at the last snapshot."""
    after: list[float] = field(default_factory=list)
    """Losses of the next steps."""


@dataclass
class Evidence:
    """All that was measured while a run trained."""

    config: Config
    losses: dict[int, float] = field(default_factory=dict)
    """train/loss by step."""
    val_losses: dict[int, float] = field(default_factory=dict)
    snapshots: list[ScoresAtStep] = field(default_factory=list)
    diagnostics: dict[int, Diagnostics] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    spikes: list[Spike] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    """Steps whose loss or gradient was NaN or infinite."""
    memorises: dict[str, float] | None = None
    """best, best_step of the callback `Memorising`, once it has spoken."""

    @property
    def step(self) -> int:
        """The last step of which anything is known."""
        known = [*self.losses, *self.val_losses, *self.skipped, *(each.step for each in self.snapshots)]
        return max(known, default=0)


def binned(losses: Mapping[int, float], n_bins: int = BINS) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Last step and mean loss of each of n_bins equal parts of the curve, fewer where it has few rows."""
    steps, values = sorted(losses), np.array([losses[step] for step in sorted(losses)])
    n_bins = min(n_bins, len(steps) // 3)
    if n_bins < 4:
        return [], np.array([])
    parts = np.array_split(np.arange(len(steps)), n_bins)
    return [steps[part[-1]] for part in parts], np.array([values[part].mean() for part in parts])
