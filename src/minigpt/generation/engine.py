"""Prompts -> tokens, as they are drawn: prefill reads what is there, decode reads one more token of each row.

The loop owns what moves: the rows' tokens, their random states, and the cache's position. A row is the same alone and
in any batch: it has its own seed, positions that count from its own beginning, and its own edge of the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.generation.sampling import draw, narrowed
from minigpt.model.cache import KVCache
from minigpt.model.gpt import GPT

NO_TEXT = -1
"""Number of the text that padding belongs to."""

Watch = Callable[[Tensor, list[tuple[str, Tensor]]], None]
"""Told before each draw: the model's (V,) logits, and what each setting leaves of them, see `sampling.narrowed`."""


@dataclass(eq=False)
class Row:
    """One text in the making."""

    tokens: list[int]
    """The prompt, and what was drawn; whoever reads the stream leaves it alone."""
    generator: torch.Generator
    index: int
    """Which prompt of the call it continues, counted over all samples."""
    n_prompt: int
    restrict: Callable[[Tensor, Sequence[int]], Tensor] | None = None
    """(V,) logits and the tokens drawn so far -> the logits that may be drawn from."""
    watch: Watch | None = None
    log_probabilities: list[float] = field(default_factory=list)
    """Of each token drawn: what the model gave it, before any filter."""
    ended: str | None = None
    """Why it ended: `stop_token`, `length` or `context`, or what a reader of the stream set; None while it goes on."""

    @property
    def n_drawn(self) -> int:
        """How many tokens were written."""
        return len(self.tokens) - self.n_prompt

    @property
    def drawn(self) -> list[int]:
        """What was written after the prompt; of a row that ended at a stop token, without it."""
        return self.tokens[self.n_prompt :]


@torch.inference_mode()
def generate(model: GPT, rows: Sequence[Row], config: GenerationConfig) -> Iterator[list[Row]]:
    """Draw a token for each row that goes on, and yield those rows, until all have ended.

    A row that ends is taken out of the batch, and one that a reader of the stream ends as well.

    Args:
        model: in eval mode.
        rows: prompts of at least one token; rows of one prompt share its prefill.
        config: how tokens are drawn, and where a row ends; seed and stop texts are for whoever makes the rows. A stop
            token is not kept. Where the context is full, "slide" reads the last three quarters of it anew, with
            positions from 0, which costs a prefill every quarter of a context.
    """
    going = list(rows)
    batch = _Batch(model, config.max_new_tokens)
    while going:
        logits = batch.logits(going)  # (B, V)
        _draw(logits, going, config)
        written = [row for row in going if row.ended is None]
        for row in written:
            if row.n_drawn >= config.max_new_tokens:
                row.ended = "length"
            elif config.overflow == "stop" and len(row.tokens) > model.config.context_length:
                row.ended = "context"
        yield written
        going = [row for row in written if row.ended is None]


def _draw(logits: Tensor, rows: Sequence[Row], config: GenerationConfig) -> None:
    """A token for each row, or its end."""
    logits = logits.float().cpu()
    permitted = logits.double()  # a copy, of the type that is drawn from
    for row, own in zip(rows, permitted, strict=True):
        if row.n_drawn < config.min_new_tokens:
            own[config.stop_tokens] = -torch.inf
        if row.restrict is not None:
            own.copy_(row.restrict(own, row.drawn))
    stages = list(narrowed(permitted, config, [row.tokens for row in rows]))
    for i, row in enumerate(rows):
        if row.watch is not None:
            row.watch(logits[i], [(name, left[i]) for name, left in stages])
    tokens = draw(stages[-1][1], config.temperature, [row.generator for row in rows])
    chances = logits.log_softmax(dim=1)[range(len(rows)), tokens].tolist()
    for row, token, chance in zip(rows, tokens, chances, strict=True):
        if token in config.stop_tokens:
            row.ended = "stop_token"
        else:
            row.tokens.append(token)
            row.log_probabilities.append(chance)


class _Batch:
    """What the model has read of which rows."""

    def __init__(self, model: GPT, max_new_tokens: int) -> None:
        self.max_new_tokens = max_new_tokens
        self.model, self.device = model, next(model.parameters()).device
        self.rows: list[Row] = []
        self.starts: list[int] = []
        self.cache: KVCache | None = None

    def logits(self, rows: Sequence[Row]) -> Tensor:
        """(B, V) of the token that follows each row."""
        starts = [window_start(len(row.tokens), self.model.config.context_length) for row in rows]
        if self.cache is not None and len(rows) < len(self.rows):
            self._keep(rows)
        if self.cache is None or starts != self.starts or self.cache.position == self.cache.n_tokens:
            return self._prefill(rows, starts)
        return self._read(self.cache, torch.tensor([[row.tokens[-1]] for row in rows], device=self.device))

    def _keep(self, rows: Sequence[Row]) -> None:
        kept = [i for i, row in enumerate(self.rows) if row in rows]
        assert self.cache is not None
        self.cache.select(kept)
        self.rows, self.starts = [self.rows[i] for i in kept], [self.starts[i] for i in kept]

    def _read(self, cache: KVCache, tokens: Tensor, texts: Tensor | None = None) -> Tensor:
        """(B, V) of what follows the last of the tokens (B, T), which the cache keeps."""
        hidden = self.model.hidden(tokens, texts, cache)
        cache.position += tokens.shape[1]
        return self.model.logits(hidden[:, -1:])[:, -1]

    def _prefill(self, rows: Sequence[Row], starts: list[int]) -> Tensor:
        """Read the rows' windows, each different one once, from the left-padded width of the longest."""
        self.rows, self.starts = list(rows), starts
        windows = [tuple(row.tokens[start:]) for row, start in zip(rows, starts, strict=True)]
        different = list(dict.fromkeys(windows))
        width = max(map(len, different))
        padded = [[0] * (width - len(window)) + list(window) for window in different]
        tokens = torch.tensor(padded, device=self.device)
        weight = self.model.token_embedding.weight
        config = self.model.config
        n_tokens = min(config.context_length, width + self.max_new_tokens)
        self.cache = KVCache(config, len(different), n_tokens, dtype=weight.dtype, device=self.device)
        logits = self._read(self.cache, tokens, self._texts(tokens, [width - len(window) for window in different]))
        if len(different) < len(windows):
            chosen = [different.index(window) for window in windows]
            self.cache.select(chosen)
            logits = logits[chosen]
        return logits

    def _texts(self, tokens: Tensor, n_padding: list[int]) -> Tensor | None:
        if not any(n_padding):
            return None  # each row is one text, or the model finds out where texts begin
        config = self.model.config
        padding = (
            torch.arange(tokens.shape[1], device=self.device) < torch.tensor(n_padding, device=self.device)[:, None]
        )
        ends = tokens.eq(config.end_of_text or 0) & ~padding if config.document_mask else torch.zeros_like(padding)
        return ends.cumsum(dim=1).masked_fill(padding, NO_TEXT)


def window_start(n_tokens: int, context_length: int) -> int:
    """The first token that is read of a text: 0 while it fits the context, then on by quarters of it."""
    step = max(1, context_length // 4)
    return max(0, -(-(n_tokens - context_length) // step)) * step
