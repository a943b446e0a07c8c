"""`attention`: what is captured while a model trains."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt.config.checks import require, require_at_least, require_types, take_paths


@dataclass(frozen=True)
class AttentionConfig:
    """What is shown of attention while the model trains."""

    enabled: bool = True
    """Probe a fixed text at each validation: maps as an image grid and an interactive page."""
    text: str | None = None
    """The probed text; the beginning of the val split when not given."""
    relations: str | None = None
    """Instead, a file of JSON lines with texts and what refers to what in them, see docs/data.md."""
    every_n_steps: int | None = None
    """Look every so many optimizer steps, and at the end; at each validation when not given."""
    max_tokens: int = 96
    """Length of the probe, in tokens (at most 256, and at most the context)."""
    max_snapshots: int = 12
    """Training steps kept in the page; beyond that, an even selection with the first and the newest."""

    def __post_init__(self) -> None:
        take_paths(self, "relations")
        require_types("attention", self)
        require(2 <= self.max_tokens <= 256, f"attention.max_tokens={self.max_tokens}: must lie between 2 and 256")
        require_at_least("attention", self, 2, "max_snapshots")
        require_at_least("attention", self, 1, "every_n_steps")
        require(
            self.text is None or self.relations is None,
            "attention.text and attention.relations are both given: leave one out, as the file has its own texts",
        )
