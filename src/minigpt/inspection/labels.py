"""Scores of heads -> labels: the pattern that a head shows most clearly. No torch, so a report can label too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from minigpt.inspection.glossary import RELATION

LABELS: Mapping[str, float] = {
    "induction": 0.3,
    "duplicate_token": 0.3,
    "previous_token": 0.4,
    "current_token": 0.5,
    "first_token": 0.5,
}
"""Score -> threshold for a head to get this label; among several, the one exceeded by the largest factor wins."""
RELATION_LABEL = 0.2
UNLABELLED = RELATION + "copy"
"""The relation of `repeats`: the heads that follow it are induction heads, and have that label."""


def label_heads(scores: Mapping[str, npt.NDArray[np.floating]]) -> list[list[str | None]]:
    """The best label of each head, by layer; None where no score reaches its threshold."""
    thresholds = dict(LABELS) | {
        name: RELATION_LABEL for name in scores if name.startswith(RELATION) and name != UNLABELLED
    }
    known = [name for name in thresholds if name in scores]
    if not known:
        return []
    excess = np.stack([np.nan_to_num(scores[name] / thresholds[name]) for name in known])  # (names, L, H)
    best, reached = excess.argmax(axis=0), excess.max(axis=0) >= 1
    return [
        [known[i].removeprefix(RELATION).replace("_", " ") if ok else None for i, ok in zip(row, oks, strict=True)]
        for row, oks in zip(best, reached, strict=True)
    ]


def label_history(history: Sequence[Mapping[str, npt.NDArray[np.floating]]]) -> list[list[list[str | None]]]:
    """`label_heads` of the scores at each step; empty if a step has no score with a threshold."""
    labels = [label_heads(scores) for scores in history]
    return labels if all(labels) else []
