"""`optimizer`: optimizer, learning rate schedule and weight averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minigpt.config.checks import require, require_at_least, require_finite, require_types


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, learning rate schedule and weight averaging."""

    name: Literal["adamw", "muon"] = "muon"
    """muon (for the matrices inside blocks, with AdamW for the rest) or adamw (for all parameters)."""
    learning_rate: float = 8e-3
    """Peak learning rate; muon's holds for all widths, adamw needs less for wide models (6e-4 for GPT-2)."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "linear"
    """Learning rate decay from warmup to max_steps or max_time; wsd (warmup-stable-decay) decays only at the end."""
    decay_fraction: float = 0.4
    """Share of the run in which wsd decays."""
    final_lr_fraction: float = 0.0
    """Final learning rate as a share of the peak (nanoGPT's min_lr / learning_rate)."""
    warmup_steps: int = 0
    """Linear warmup steps of the learning rate; muon needs none."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices only: not on biases, norms or embeddings."""
    momentum: float = 0.95
    """Muon's momentum."""
    momentum_warmup_steps: int = 300
    """Steps in which Muon's momentum rises from 0.85, since early gradients go stale fast."""
    ns_steps: Literal[3, 5] = 3
    """Muon's Newton-Schulz steps: 5 are closer to orthogonal, 3 are faster."""
    beta1: float = 0.9
    """AdamW's beta1."""
    beta2: float = 0.95
    """AdamW's beta2."""
    average_decay: float | None = None
    """Decay of an exponential moving average (EMA) of the weights, which is validated and saved; null for none."""

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
