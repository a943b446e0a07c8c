"""matplotlib figures of a run, which a notebook shows: its losses, and the weights of one head."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from minigpt.errors import UserError
from minigpt.inspection.snapshot import Snapshot

if TYPE_CHECKING:  # slow to import
    from matplotlib.figure import Figure
    from pandas import DataFrame

_LOSSES: dict[str, dict[str, Any]] = {"train/loss": {"linewidth": 1}, "val/loss": {"marker": "o", "markersize": 4}}
"""Style of each curve."""
_MOST_LABELS = 64
"""Tokens up to which each has its label beside the map."""


def loss_figure(metrics: DataFrame, title: str) -> Figure:
    """Train and validation loss by step, from a table with a row a step."""
    figure = _new_figure(7, 4)
    axes = figure.add_subplot()
    for name, style in _LOSSES.items():
        if name in metrics and len(curve := metrics[["step", name]].dropna()):
            axes.plot(curve["step"], curve[name], label=name, **style)
    axes.set(xlabel="step", ylabel="nats per token", title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return figure


def head_figure(snapshot: Snapshot, layer: int, head: int) -> Figure:
    """The (T, T) weights of one head: a row is a query token, a column a key token that it can attend to.

    Raises:
        UserError: there is no such layer or head.
    """
    n_layer, n_head, T, _ = snapshot.weights.shape
    for name, index, count in (("layer", layer, n_layer), ("head", head, n_head)):
        if not 0 <= index < count:
            raise UserError(f"{name}={index}: there are {count}, 0 to {count - 1}")
    side = 1.6 + 0.2 * min(T, _MOST_LABELS)
    figure = _new_figure(side + 1.2, side)
    axes = figure.add_subplot()
    weights = np.where(np.tri(T, dtype=bool), snapshot.weights[layer, head], np.nan)
    # Colours follow the square root of the weight, as in the page.
    image = axes.imshow(np.sqrt(weights), cmap="viridis", vmin=0, vmax=1)
    bar = figure.colorbar(image, shrink=0.6, label="weight")
    bar.set_ticks([np.sqrt(tick) for tick in (0, 0.05, 0.2, 0.5, 1)], labels=["0", "0.05", "0.2", "0.5", "1"])
    axes.set(xlabel="key", ylabel="query", title=f"layer {layer}, head {head}")
    if T <= _MOST_LABELS:
        names = [repr(token)[1:-1] for token in snapshot.tokens]  # line breaks as \n
        axes.set_xticks(range(T), names, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(T), names, fontsize=8, parse_math=False)
    return figure


def _new_figure(width: float, height: float) -> Figure:
    """A figure of that many inches, not one of pyplot's, which it would keep until they are closed."""
    from matplotlib.figure import Figure

    class Picture(Figure):
        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return Picture(figsize=(width, height), layout="constrained")
