"""`optimizer`: optimizer, schedule and weight averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minigpt.config.checks import require, require_at_least, require_finite, require_types


@dataclass(frozen=True)
class OptimizerConfig:
    """How the loss turns into new weights."""

    name: Literal["adamw", "muon"] = "muon"
    """muon for the matrices inside the blocks and adamw for the rest, or adamw for all parameters."""
    learning_rate: float = 8e-3
    """Peak learning rate; with muon one serves all widths, adamw alone wants less for wide models (6e-4 for GPT-2)."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "linear"
    """Decay after the warm-up, to its end at max_steps or max_time; wsd is constant at first and then linear."""
    decay_fraction: float = 0.4
    """Share of the run over which wsd falls, at the end."""
    final_lr_fraction: float = 0.0
    """Learning rate at the end, as a share of the peak."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from zero; muon needs none."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices only: never on biases, norms or embeddings."""
    momentum: float = 0.95
    """Decay of Muon's mean of gradients."""
    momentum_warmup_steps: int = 300
    """Steps over which Muon's momentum rises from 0.85: the first gradients are soon out of date."""
    ns_steps: Literal[3, 5] = 3
    """Newton-Schulz steps of Muon; 5 come nearer to an orthogonal update, 3 are faster."""
    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: float = 0.95
    """Decay of AdamW's mean of squared gradients."""
    average_decay: float | None = None
    """Validate and save a moving average of the weights, of which this share stays at each step; null for none."""

    def __post_init__(self) -> None:
        require_types("optimizer", self)
        require_finite("optimizer", self)
        require(self.learning_rate > 0, f"optimizer.learning_rate={self.learning_rate}: must be above 0")
        require_at_least(
            "optimizer", self, 0, "warmup_steps", "weight_decay", "final_lr_fraction", "momentum_warmup_steps"
        )
        require(
            self.final_lr_fraction <= 1,
            f"optimizer.final_lr_fraction={self.final_lr_fraction}: must be at most 1, since learning_rate is the peak",
        )
        require(
            0 < self.decay_fraction <= 1,
            f"optimizer.decay_fraction={self.decay_fraction}: must be above 0 and at most 1",
        )
        require(
            self.schedule == "wsd" or self.decay_fraction == 0.4,
            f"optimizer.decay_fraction={self.decay_fraction}: only schedule wsd uses it, not {self.schedule}",
        )
        for name in ("momentum", "beta1", "beta2", "average_decay"):
            value = getattr(self, name)
            require(value is None or 0 <= value < 1, f"optimizer.{name}={value}: must lie in [0, 1)")
