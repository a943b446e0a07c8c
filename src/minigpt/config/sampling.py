"""Settings of generation, and `sampling`: what a run writes while it trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from minigpt.config.checks import require, require_at_least, require_finite, require_seed, require_types


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How text is written. What narrows the choice of a token is applied in the order in which it stands here."""

    max_new_tokens: int = 200
    """Tokens to write; the text may end sooner, where the model ends its document."""
    min_new_tokens: int = 0
    """The model cannot end its document before this many tokens."""
    forbidden_tokens: list[int] = field(default_factory=list)
    """Ids of tokens that are never drawn."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that occurred, and multiplies negative ones: above 1 avoids repetitions."""
    temperature: float = 0.8
    """Flattens (above 1) or sharpens (below 1) the distribution; 0 always takes the likeliest token."""
    top_k: int | None = 50
    """Draw among this many likeliest tokens; null for all."""
    top_p: float | None = None
    """Draw among the likeliest tokens that together have this probability; null for all."""
    min_p: float | None = None
    """Draw among the tokens of at least this share of the likeliest one's probability; null for all."""
    stop: str | list[str] = field(default_factory=list)
    """A text, or several, that ends what is written where it would come; it is not shown."""
    stop_tokens: list[int] = field(default_factory=list)
    """Ids of tokens that end the text, besides the end of the document."""
    draft_tokens: int = 0
    """Guess so many tokens from where the text said the same before, and check them at once: the same text, sooner."""
    overflow: Literal["slide", "stop"] = "slide"
    """Past the context: slide forgets its oldest quarter and reads the rest again, stop ends the text."""
    seed: int = 1337
    """Seed of the first text, the next one has the next seed: the same seed writes the same text."""

    def __post_init__(self) -> None:
        prefix = self._prefix()
        require_types(prefix, self)
        require_finite(prefix, self)
        require_at_least(prefix, self, 1, "max_new_tokens", "top_k")
        require_at_least(prefix, self, 0, "min_new_tokens", "temperature", "draft_tokens")
        dot = f"{prefix}." if prefix else ""
        for name, fits, what in (
            ("repetition_penalty", 1e-3 <= self.repetition_penalty <= 1e3, "must lie in 0.001 to 1000; 1 is none"),
            ("temperature", not 0 < self.temperature < 1e-30, "must be 0, for the likeliest token, or at least 1e-30"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "must be above 0 and at most 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "must lie between 0 and 1"),
            (
                "min_new_tokens",
                self.min_new_tokens <= self.max_new_tokens,
                f"is above {dot}max_new_tokens={self.max_new_tokens}",
            ),
            ("stop", all(self.stops), "has an empty text, which stands everywhere; leave it out"),
        ):
            require(fits, f"{dot}{name}={getattr(self, name)}: {what}")
        require_seed(f"{dot}seed", self.seed)

    @property
    def stops(self) -> list[str]:
        """The texts that end what is written."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @classmethod
    def _prefix(cls) -> str:
        return ""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(GenerationConfig):
    """Text written at each validation."""

    prompts: list[str] | None = None
    """Prompts continued at each validation; beginnings of the val text when not given, [] for none."""
    max_new_tokens: int = 96
    """Tokens to write after each prompt; the text may end sooner, where the model ends its document."""
    seed: int = 1
    """Seed of the draws: the same seed writes the same text."""

    @classmethod
    def _prefix(cls) -> str:
        return "sampling"
