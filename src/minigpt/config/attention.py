"""`attention`: attention maps logged during training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from minigpt.config.checks import PathName, PositiveInt, Section, bounds, require


@dataclass(frozen=True)
class AttentionConfig(Section):
    """Attention maps logged during training."""

    SECTION = "attention"

    enabled: bool = True
    """Log attention maps of a fixed probe text at each validation, as an image grid and an interactive HTML page."""
    text: str | None = None
    """Probe text; the beginning of the val split by default."""
    relations: PathName | None = None
    """Instead of text: a JSON Lines, CSV or Parquet file of texts with what refers to what, see docs/data.md."""
    every_n_steps: PositiveInt | None = None
    """Log attention maps every N steps, by default at each validation; before that, at steps 0, 1, 2, 4, 8, ..."""
    max_tokens: Annotated[int, bounds(ge=2, le=256)] = 96
    """Probe length in tokens, at most 256 and at most context_length."""
    max_snapshots: Annotated[int, bounds(ge=2)] = 12
    """Snapshots kept in the page; beyond that, a selection closer at the start, with the first and the latest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.text is None or self.relations is None,
            "attention.text and attention.relations are both given: leave one out; a relations file has its own texts",
        )
