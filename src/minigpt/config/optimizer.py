"""`optimizer`: optimizer, learning rate schedule and weight averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from minigpt.config.checks import NonNegativeFloat, NonNegativeInt, PositiveFloat, Section, bounds, require

Decay = Annotated[float, bounds(ge=0, lt=1)]


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """Optimizer, learning rate schedule and weight averaging."""

    SECTION = "optimizer"

    name: Literal["adamw", "muon"] = "muon"
    """muon (for the matrices inside blocks, with AdamW for the rest) or adamw (for all parameters)."""
    learning_rate: PositiveFloat = 8e-3
    """Peak learning rate; muon's holds for all widths, adamw needs less for wide models (6e-4 for GPT-2)."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "linear"
    """Learning rate decay from warmup to max_steps or max_time; wsd (warmup-stable-decay) decays only at the end."""
    decay_fraction: Annotated[float, bounds(gt=0, le=1)] = 0.4
    """Share of the run in which wsd decays."""
    final_lr_fraction: Annotated[
        NonNegativeFloat, bounds(le=1, text="must be at most 1, since learning_rate is the peak")
    ] = 0.0
    """Final learning rate as a share of the peak (nanoGPT's min_lr / learning_rate)."""
    warmup_steps: NonNegativeInt = 0
    """Linear warmup steps of the learning rate; muon needs none."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, on matrices only: not on biases, norms or embeddings."""
    momentum: Decay = 0.95
    """Muon's momentum."""
    momentum_warmup_steps: NonNegativeInt = 300
    """Steps in which Muon's momentum rises from 0.85, since early gradients go stale fast."""
    ns_steps: Literal[3, 5] = 3
    """Muon's Newton-Schulz steps: 5 are closer to orthogonal, 3 are faster."""
    beta1: Decay = 0.9
    """AdamW's beta1."""
    beta2: Decay = 0.95
    """AdamW's beta2."""
    qk_clip: PositiveFloat | None = None
    """Largest attention score; heads above it get smaller queries and keys after the step (QK-clip); null for none."""
    average_decay: Decay | None = None
    """Decay of an exponential moving average (EMA) of the weights, which is validated and saved; null for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.schedule == "wsd" or self.decay_fraction == 0.4,
            f"optimizer.decay_fraction={self.decay_fraction}: only schedule wsd uses it, not {self.schedule}",
        )
