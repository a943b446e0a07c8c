"""Generation settings, and `sampling`: the samples generated during training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from minigpt.config.checks import require, require_at_least, require_finite, require_seed, require_types


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Generation settings, by Hugging Face's names where it has them. Filters apply in the order of the fields."""

    max_new_tokens: int = 200
    """Maximum number of tokens to generate; an end-of-text token ends the sample sooner."""
    min_new_tokens: int = 0
    """Minimum number of tokens: end-of-text and stop_tokens cannot be drawn before it."""
    forbidden_tokens: list[int] = field(default_factory=list)
    """Token ids that are never drawn."""
    repetition_penalty: float = 1.0
    """Penalize tokens already in the text (Hugging Face's rule): above 1 avoids repetition, 1 is off."""
    temperature: float = 0.8
    """Softmax temperature: below 1 is sharper, above 1 flatter; 0 is greedy decoding."""
    top_k: int | None = 50
    """Sample from the k likeliest tokens; null for all."""
    top_p: float | None = None
    """Nucleus sampling: sample from the likeliest tokens whose probabilities add up to top_p; null for all."""
    min_p: float | None = None
    """Sample from tokens with at least min_p times the probability of the likeliest; null for all."""
    stop: str | list[str] = field(default_factory=list)
    """Stop string, or a list of them; generation ends there, and the stop string is not shown."""
    stop_tokens: list[int] = field(default_factory=list)
    """Token ids that end generation, besides end-of-text."""
    draft_tokens: int = 0
    """Prompt-lookup decoding: draft up to this many tokens from earlier in the text and verify them in one pass."""
    overflow: Literal["slide", "stop"] = "slide"
    """When the context is full: slide drops the oldest quarter and re-reads the rest; stop ends generation."""
    seed: int = 1337
    """Random seed of the first sample; each further sample adds 1."""

    def __post_init__(self) -> None:
        prefix = self._prefix()
        require_types(prefix, self)
        require_finite(prefix, self)
        require_at_least(prefix, self, 1, "max_new_tokens", "top_k")
        require_at_least(prefix, self, 0, "min_new_tokens", "temperature", "draft_tokens")
        dot = f"{prefix}." if prefix else ""
        for name, fits, what in (
            ("repetition_penalty", 1e-3 <= self.repetition_penalty <= 1e3, "must lie in 0.001 to 1000; 1 is none"),
            ("temperature", not 0 < self.temperature < 1e-30, "must be 0, for greedy decoding, or at least 1e-30"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "must be above 0 and at most 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "must lie between 0 and 1"),
            (
                "min_new_tokens",
                self.min_new_tokens <= self.max_new_tokens,
                f"is above {dot}max_new_tokens={self.max_new_tokens}",
            ),
            ("stop", all(self.stops), "has an empty string, which matches everywhere; leave it out"),
        ):
            require(fits, f"{dot}{name}={getattr(self, name)}: {what}")
        require_seed(f"{dot}seed", self.seed)

    @property
    def stops(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @classmethod
    def _prefix(cls) -> str:
        return ""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(GenerationConfig):
    """Samples generated at each validation."""

    prompts: list[str] | None = None
    """Prompts to continue at each validation; beginnings of val documents by default, [] for none."""
    max_new_tokens: int = 96
    """Maximum number of tokens per prompt; an end-of-text token ends the sample sooner."""
    seed: int = 1
    """Random seed of sampling."""

    @classmethod
    def _prefix(cls) -> str:
        return "sampling"
