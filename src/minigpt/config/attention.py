"""`attention`: attention maps logged during training."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt.config.checks import require, require_at_least, require_types, take_paths


@dataclass(frozen=True)
class AttentionConfig:
    """Attention maps logged during training."""

    enabled: bool = True
    """Log attention maps of a fixed probe text at each validation, as an image grid and an interactive HTML page."""
    text: str | None = None
    """Probe text; the beginning of the val split by default."""
    relations: str | None = None
    """Instead of text: a JSON Lines file of texts annotated with which token refers to which, see docs/data.md."""
    every_n_steps: int | None = None
    """Log attention maps every N optimizer steps and at the end; at each validation by default."""
    max_tokens: int = 96
    """Probe length in tokens, at most 256 and at most context_length."""
    max_snapshots: int = 12
    """Snapshots kept in the page; beyond that, an evenly spaced selection that includes the first and the latest."""

    def __post_init__(self) -> None:
        take_paths(self, "relations")
        require_types("attention", self)
        require(2 <= self.max_tokens <= 256, f"attention.max_tokens={self.max_tokens}: must lie between 2 and 256")
        require_at_least("attention", self, 2, "max_snapshots")
        require_at_least("attention", self, 1, "every_n_steps")
        require(
            self.text is None or self.relations is None,
            "attention.text and attention.relations are both given: leave one out; a relations file has its own texts",
        )
