"""Generation settings, and `sampling`: the samples generated during training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from minigpt.config.checks import NonNegativeInt, PositiveInt, Rule, Section, Seed, bounds, require

Penalty = Annotated[float, bounds(ge=1e-3, le=1e3, text="must lie in 0.001 to 1000; 1 is none")]
Temperature = Annotated[
    float, bounds(ge=0), Rule(lambda t: not 0 < t < 1e-30, "must be 0, for greedy decoding, or at least 1e-30")
]
Stop = Annotated[
    str | list[str],
    Rule(lambda stop: stop != "" and all(stop), "has an empty string, which matches everywhere; leave it out"),
]


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(Section):
    """Generation settings, by Hugging Face's names where it has them. Filters apply in the order of the fields."""

    max_new_tokens: PositiveInt = 200
    """Maximum number of tokens to generate; an end-of-text token ends the sample sooner."""
    min_new_tokens: NonNegativeInt = 0
    """Minimum number of tokens: end-of-text and stop_tokens cannot be drawn before it."""
    forbidden_tokens: list[int] = field(default_factory=list)
    """Token ids that are never drawn."""
    repetition_penalty: Penalty = 1.0
    """Penalize tokens already in the text (Hugging Face's rule): above 1 avoids repetition, 1 is off."""
    temperature: Temperature = 0.8
    """Softmax temperature: below 1 is sharper, above 1 flatter; 0 is greedy decoding."""
    top_k: PositiveInt | None = 50
    """Sample from the k likeliest tokens; null for all."""
    top_p: Annotated[float, bounds(gt=0, le=1)] | None = None
    """Nucleus sampling: sample from the likeliest tokens whose probabilities add up to top_p; null for all."""
    min_p: Annotated[float, bounds(ge=0, le=1)] | None = None
    """Sample from tokens with at least min_p times the probability of the likeliest; null for all."""
    stop: Stop = field(default_factory=list)
    """Stop string, or a list of them; generation ends there, and the stop string is not shown."""
    stop_tokens: list[int] = field(default_factory=list)
    """Token ids that end generation, besides end-of-text."""
    draft_tokens: NonNegativeInt = 0
    """Prompt-lookup decoding: draft up to this many tokens from earlier in the text and verify them in one pass."""
    overflow: Literal["slide", "stop"] = "slide"
    """When the context is full: slide drops the oldest quarter and re-reads the rest; stop ends generation."""
    seed: Seed = 1337
    """Random seed of the first sample; each further sample adds 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        dot = f"{self.SECTION}." if self.SECTION else ""
        require(
            self.min_new_tokens <= self.max_new_tokens,
            f"{dot}min_new_tokens={self.min_new_tokens}: is above {dot}max_new_tokens={self.max_new_tokens}",
        )

    @property
    def stops(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(GenerationConfig):
    """Samples generated at each validation."""

    SECTION = "sampling"

    prompts: list[str] | None = None
    """Prompts to continue at each validation; beginnings of val documents by default, [] for none."""
    max_new_tokens: PositiveInt = 96
    """Maximum number of tokens per prompt; an end-of-text token ends the sample sooner."""
    seed: Seed = 1
    """Random seed of sampling."""
