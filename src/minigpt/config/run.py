"""The complete config of a training run: its sections and top-level settings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from minigpt.config.attention import AttentionConfig
from minigpt.config.checks import require, require_at_least, require_finite, require_seed, require_types, take_paths
from minigpt.config.data import DataConfig
from minigpt.config.model import GPTConfig
from minigpt.config.optimizer import OptimizerConfig
from minigpt.config.sampling import SamplingConfig
from minigpt.config.trainer import TrainerConfig

AUTO = "auto"
"""`--resume auto`: resume the run that the same command line started, if there is one."""


@dataclass(frozen=True)
class Config:
    """Everything that defines a run."""

    model: GPTConfig = field(default_factory=GPTConfig)
    """Sizes and architecture of the model."""
    data: DataConfig = field(default_factory=DataConfig)
    """Dataset, tokenizer and batch size."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer, learning rate schedule and weight averaging."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Arguments of Lightning's Trainer."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Samples generated during training."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Attention maps logged during training."""
    name: str = "demo"
    """Run name; the run folder is runs_dir/name, or name-2, name-3, ... where that exists."""
    runs_dir: str = "runs"
    """Parent folder of the run folders."""
    seed: int = 1337
    """Random seed of weight initialization, dropout and data order."""
    compile: bool | None = None
    """Use torch.compile, which takes about a minute; null compiles on a GPU for runs of 1000 steps or more."""
    checkpoint_every_n_steps: int | None = None
    """Save last.ckpt every N steps, besides at each validation."""
    checkpoint_every_n_minutes: float | None = 10.0
    """Save last.ckpt every N minutes, besides at each validation; null is off."""
    keep_checkpoints: int = 2
    """Number of resumable checkpoints to keep: last.ckpt, and earlier ones in case it is damaged."""
    keep_every_n_steps: int | None = None
    """Keep a copy of the weights every N steps, as checkpoints/step_000200.safetensors; null for none."""
    on_non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """On a NaN or infinite loss or gradient: stop, skip the step, or rollback to the last checkpoint's weights."""

    def __post_init__(self) -> None:
        take_paths(self, "runs_dir")
        require_types("", self)
        require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) is not None,
            f"name={self.name!r}: use letters, digits, '.', '_' and '-', since it names a folder",
        )
        require_seed("seed", self.seed)
        require(bool(self.runs_dir), "runs_dir is empty: name a folder such as runs")
        require(
            "-" not in self.data.sources or self.trainer.devices in {"auto", "1", 1},
            f"data.source=-: only one process can read standard input, and trainer.devices={self.trainer.devices}: "
            "save the text to a file",
        )
        shards = any(word in str(self.trainer.strategy).lower() for word in ("fsdp", "deepspeed", "modelparallel"))
        require(
            self.optimizer.name != "muon" or not shards,
            f"optimizer.name=muon: needs whole matrices on each device, and trainer.strategy={self.trainer.strategy} "
            "shards them: use ddp, or optimizer.name=adamw",
        )
        require(
            self.optimizer.average_decay is None or not shards,
            f"optimizer.average_decay={self.optimizer.average_decay}: needs whole weights on each device, and "
            f"trainer.strategy={self.trainer.strategy} shards them: use ddp, or leave it out",
        )
        require(
            self.on_non_finite != "rollback" or not shards or self.trainer.strategy == "fsdp2",
            f"on_non_finite=rollback: needs whole weights on each device, and trainer.strategy={self.trainer.strategy} "
            "shards them: use fsdp2, ddp, or on_non_finite=skip",
        )
        require(
            not self.trainer.gradient_clip_val
            or self.trainer.gradient_clip_algorithm == "value"
            or "fsdp" not in str(self.trainer.strategy).lower()
            or self.trainer.strategy == "fsdp2",
            f"trainer.gradient_clip_val={self.trainer.gradient_clip_val}: the global gradient norm is not available "
            f"under trainer.strategy={self.trainer.strategy}: use fsdp2, or trainer.gradient_clip_val=null",
        )
        require_finite("", self)
        require_at_least("", self, 1, "checkpoint_every_n_steps", "keep_every_n_steps", "keep_checkpoints")
        minutes = self.checkpoint_every_n_minutes
        require(minutes is None or minutes > 0, f"checkpoint_every_n_minutes={minutes}: must be above 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, so that a checkpoint opens with `torch.load(weights_only=True)`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`.

        Raises:
            UserError: an unknown key, or an invalid value.
        """
        sections = {f.name: f.default_factory for f in dataclasses.fields(cls) if f.name in _SECTIONS}
        arguments: dict[str, Any] = {}
        for key, value in settings.items():
            arguments[key] = _build(sections[key], key, value) if key in sections else value  # type: ignore[arg-type]
        return _build(cls, "config", arguments)


_SECTIONS = ("model", "data", "optimizer", "trainer", "sampling", "attention")


def _build(section: type, name: str, values: Mapping[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(section)}
    unknown = sorted(set(values) - known)
    require(
        not unknown,
        f"{name} has no setting {', '.join(unknown)}: it was written by another version of minigpt",
    )
    return section(**values)
