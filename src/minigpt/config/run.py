"""The complete config of a training run: its sections and top-level settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from minigpt.config.attention import AttentionConfig
from minigpt.config.checks import PathName, PositiveFloat, PositiveInt, Section, Seed, matches, not_empty, require
from minigpt.config.data import DataConfig
from minigpt.config.model import GPTConfig
from minigpt.config.optimizer import OptimizerConfig
from minigpt.config.sampling import SamplingConfig
from minigpt.config.trainer import TrainerConfig

RunName = Annotated[
    str,
    matches(
        r"[A-Za-z0-9][A-Za-z0-9._-]*",
        "{name}={value!r}: use letters, digits, '.', '_' and '-', since it names a folder",
    ),
]
Budget = Annotated[
    str,
    matches(
        r"(\d+(\.\d+)? ?[smh]|[1-9]\d* steps?)",
        "{name}={value!r}: write a time such as 30s, 5m or 2h, or a number of steps such as '1000 steps'",
    ),
    matches(r".*[1-9].*", "must be above zero"),
]
DEFAULT_BUDGET = "5m"
"""Of a run on a text of one's own, without a recipe or a length."""
AUTO = "auto"
"""`--resume auto`: resume the run that the same command line started, if there is one."""


@dataclass(frozen=True)
class Config(Section):
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
    name: RunName = "demo"
    """Run name; the run folder is runs_dir/name, or name-2, name-3, ... where that exists."""
    runs_dir: Annotated[PathName, not_empty("name a folder such as runs")] = "runs"
    """Parent folder of the run folders."""
    budget: Budget | None = None
    """30s, 5m, 2h or '1000 steps': chooses the settings not given by text and machine; 5m for --data.source alone."""
    planned: list[str] | None = None
    """Settings that budget may choose (those not given, by default); in a run's config.yaml, those it chose."""
    seed: Seed = 1337
    """Random seed of weight initialization, dropout and data order."""
    initial_weights: Annotated[PathName, not_empty("name a run folder such as runs/demo, or a file")] | None = None
    """Start from the weights, model settings and tokenizer of this run, checkpoint or safetensors file; also --from."""
    lora: PositiveInt | None = None
    """Train low-rank adapters (LoRA) of this rank on the frozen weights of --from, such as 8; null trains all."""
    compile: bool | None = None
    """Compile the training step with torch.compile; null compiles where that saves more time than it takes."""
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass: far less memory, about a third more time."""
    checkpoint_every_n_steps: PositiveInt | None = None
    """Save last.ckpt every N steps, besides at each validation."""
    checkpoint_every_n_minutes: PositiveFloat | None = 10.0
    """Save last.ckpt every N minutes, besides at each validation; null is off."""
    keep_checkpoints: PositiveInt = 2
    """Number of resumable checkpoints to keep: last.ckpt, and earlier ones in case it is damaged."""
    keep_every_n_steps: PositiveInt | None = None
    """Keep a copy of the weights every N steps, as checkpoints/step_000200.safetensors; null for none."""
    on_non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """On a NaN or infinite loss or gradient: stop, skip the step, or rollback to the last checkpoint's weights."""
    stop_when_memorising: bool = False
    """End the run when val/loss has risen from its best at two validations while train/loss fell."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            "-" not in self.data.sources or self.trainer.devices in {"auto", "1", 1},
            f"data.source=-: only one process can read standard input, and trainer.devices={self.trainer.devices}: "
            "save the text to a file",
        )
        require(
            self.lora is None or self.initial_weights is not None,
            f"lora={self.lora}: adapters need trained weights to start from: add --from RUN",
        )
        shards = any(word in str(self.trainer.strategy).lower() for word in ("fsdp", "deepspeed", "modelparallel"))
        require(
            not (self.model.document_mask and self.data.answers_in_messages),
            "model.document_mask=True: end_of_text follows each answer of a conversation, and would hide the turns "
            "before it; leave it out, as with data.mode=examples each row is one conversation",
        )
        require(
            self.optimizer.name != "muon" or not shards,
            f"optimizer.name=muon: needs whole matrices on each device, and trainer.strategy={self.trainer.strategy} "
            "shards them: use ddp, or optimizer.name=adamw",
        )
        self._check_qk_clip(shards=shards)
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

    def _check_qk_clip(self, *, shards: bool) -> None:
        if self.optimizer.qk_clip is None:
            return
        name, similarity = f"optimizer.qk_clip={self.optimizer.qk_clip}", self.model.similarity
        require(not self.model.qk_norm, f"{name}: model.qk_norm bounds the scores already: leave one of them out")
        require(
            similarity in {"scaled_dot", "symmetric"},
            f"{name}: scales products of queries and keys, and similarity={similarity} scores otherwise: leave it out",
        )
        require(self.lora is None, f"{name}: lora freezes the weights that it scales: leave one of them out")
        require(
            not shards,
            f"{name}: needs whole matrices on each device, and trainer.strategy={self.trainer.strategy} shards them: "
            "use ddp, or leave it out",
        )

    @property
    def open_settings(self) -> list[str]:
        """Settings that `budget` may choose, as section.name: `planned`, or else those that have their defaults."""
        if self.planned is not None:
            return self.planned
        parts = {section: getattr(self, section) for section in ("model", "data", "optimizer", "trainer")}
        return [
            f"{section}.{field.name}"
            for section, part in parts.items()
            for field in dataclasses.fields(part)
            if getattr(part, field.name) == getattr(type(part)(), field.name)
        ]

    def as_planned_before(self, saved: Config) -> Config:
        """For the same command line again: with what the budget chose when the saved run began."""
        if self.budget is None or self.budget != saved.budget:
            return self
        changes: dict[str, dict[str, Any]] = {}
        for key in set(saved.planned or []) & set(self.open_settings):
            section, name = key.split(".")
            changes.setdefault(section, {})[name] = getattr(getattr(saved, section), name)
        parts = {section: dataclasses.replace(getattr(self, section), **each) for section, each in changes.items()}
        return dataclasses.replace(self, **parts, planned=saved.planned)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, so that a checkpoint opens with `torch.load(weights_only=True)`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`.

        Raises:
            UserError: an unknown key, or an invalid value.
        """
        sections = {each.name: each.default_factory for each in dataclasses.fields(cls)}
        arguments = {
            key: _build(sections[key], key, value) if dataclasses.is_dataclass(sections.get(key)) else value
            for key, value in settings.items()
        }
        return _build(cls, "config", arguments)


def _build(section: Any, name: str, values: Mapping[str, Any]) -> Any:
    unknown = sorted(set(values) - {each.name for each in dataclasses.fields(section)})
    require(not unknown, f"{name} has no setting {', '.join(unknown)}: it was written by another version of minigpt")
    return section(**values)
