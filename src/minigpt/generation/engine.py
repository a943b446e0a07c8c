"""Prompts -> tokens, as they are drawn: prefill reads what is there, decode reads one more token of each row.

The loop owns what moves: the rows' tokens, their random states, and the cache's position. A row is the same alone and
in any batch: it has its own seed, positions that count from its own beginning, and its own edge of the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.errors import UserError
from minigpt.generation.cpu_backend import CPUDecode, can_decode
from minigpt.generation.lookup import lookup
from minigpt.generation.plain import changes_forward, intervention
from minigpt.generation.sampling import Choice, Mask, draw, narrowed
from minigpt.model.cache import KVCache
from minigpt.model.compiling import compiled
from minigpt.model.gpt import GPT

NO_TEXT = -1
"""Number of the text that padding belongs to."""

Logits = npt.NDArray[np.float32]

Watch = Callable[[Logits, list[tuple[str, Choice]]], None]
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
    restrict: Callable[[Sequence[int]], Mask | None] | None = None
    """The tokens drawn so far -> which of the first so many tokens may follow; None for any."""
    watch: Watch | None = None
    log_probabilities: list[float] = field(default_factory=list)
    """Of each token drawn: what the model gave it, before any filter."""
    stopped_by: int | None = None
    """The stop token that ended it."""
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


class Reader(Protocol):
    """What reads tokens in the model's place; shapes as for `GPT`."""

    def ready(self) -> bool:
        """Asked before each text: whether it computes what the model does as it is now, its hooks included.

        Raises:
            UserError: it does not, and the model would compute something else than was asked for.
        """

    def takes(self, tokens: Tensor, texts: Tensor | None) -> bool:
        """Whether it reads these, or leaves them to the model."""

    def hidden(self, tokens: Tensor, texts: Tensor | None, cache: KVCache) -> Tensor: ...

    def logits(self, x: Tensor) -> Tensor: ...


class CompiledDecode:
    """A model whose decoding goes through torch.compile."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.hidden = compiled(model.hidden, dynamic=True)
        self.logits = model.logits

    def ready(self) -> bool:
        """Compiled code does not ask for hooks again; all else that changes it compiles anew."""
        return intervention(self.model) is None

    def takes(self, tokens: Tensor, texts: Tensor | None) -> bool:
        """Prompts are left to the model: each new length would be compiled."""
        return tokens.shape[1] == 1 and texts is None


@torch.inference_mode()
def generate(
    model: GPT, rows: Sequence[Row], config: GenerationConfig, reader: Reader | None = None
) -> Iterator[list[Row]]:
    """Draw a token for each row that goes on, and yield those rows, until all have ended.

    A row that ends is taken out of the batch, and one that a reader of the stream ends as well.

    Args:
        model: in eval mode.
        rows: prompts of at least one token; rows of one prompt share its prefill.
        config: how tokens are drawn, and where a row ends; seed and stop texts are for whoever makes the rows. A stop
            token is not kept. Where the context is full, "slide" reads the last three quarters of it anew, with
            positions from 0, which costs a prefill every quarter of a context. With draft_tokens the last row that is
            left guesses what comes (`lookup`), and reads all of its guess at once: what it draws is the same.
        reader: reads what it takes; on a CPU numpy when not given, see `cpu_decode`.
    """
    going = list(rows)
    batch = _Batch(model, config, reader)
    while going:
        draft = batch.draft(going)
        steps = batch.logits(going, draft).float().cpu().numpy().swapaxes(0, 1)  # (1 + draft, B, V)
        for place, logits in enumerate(steps):
            for row, own in zip(going, logits, strict=True):
                _draw(own, row, config)
            written = [row for row in going if row.ended is None]
            for row in written:
                if row.n_drawn >= config.max_new_tokens:
                    row.ended = "length"
                elif config.overflow == "stop" and len(row.tokens) > model.config.context_length:
                    row.ended = "context"
            yield written
            going = [row for row in written if row.ended is None]
            if not going or going[0].tokens[-1:] != draft[place : place + 1]:
                batch.take_back(len(draft) - place)
                break


def _draw(logits: Logits, row: Row, config: GenerationConfig) -> None:
    """A token for the row, or its end."""
    largest = logits.max()
    total = largest + np.log(np.exp(logits - largest).sum())
    if not np.isfinite(total):
        raise UserError("the model's logits are no finite numbers: its weights are damaged, or its training diverged")
    stages = list(narrowed(logits, config, row.tokens, _permitted(row, len(logits), config)))
    if row.watch is not None:
        row.watch(logits, stages)
    token = draw(stages[-1][1], config.temperature, row.generator)
    if token in config.stop_tokens:
        row.ended, row.stopped_by = "stop_token", token
    else:
        row.tokens.append(token)
        row.log_probabilities.append(float(logits[token] - total))


def _permitted(row: Row, V: int, config: GenerationConfig) -> Mask | None:
    """(V,) which tokens may come where the row is, None for all: what it must begin with, and its least length."""
    wanted = None if row.restrict is None else row.restrict(row.drawn)
    too_short = row.n_drawn < config.min_new_tokens
    if wanted is None and not too_short:
        return None
    permitted = np.ones(V, dtype=np.bool_)
    if wanted is not None:
        permitted[: len(wanted)], permitted[len(wanted) :] = wanted, False
    if too_short:
        permitted[config.stop_tokens] = False
    return permitted


class _Batch:
    """What the model has read of which rows."""

    def __init__(self, model: GPT, config: GenerationConfig, reader: Reader | None) -> None:
        self.model, self.config, self.device = model, config, next(model.parameters()).device
        self.reader: Reader | None = None
        if reader is not None:
            self.reader = reader if reader.ready() else None
        elif can_decode(model):
            self.reader = CPUDecode(model, n_tokens=config.max_new_tokens)
        self.calls_forward = changes_forward(model)
        self.rows: list[Row] = []
        self.starts: list[int] = []
        self.cache: KVCache | None = None

    def draft(self, rows: Sequence[Row]) -> list[int]:
        """What may come after the last row that is left, as far as its cache has room."""
        if not self.config.draft_tokens or len(rows) > 1 or self.cache is None:
            return []
        (row,), cache = rows, self.cache
        if not self._has_read([row]) or any(layer.summed for layer in cache.layers):  # sums cannot be taken back
            return []
        room = min(cache.n_tokens - cache.position, self.config.max_new_tokens - row.n_drawn) - 1
        return lookup(row.tokens, min(self.config.draft_tokens, room))

    def logits(self, rows: Sequence[Row], draft: Sequence[int] = ()) -> Tensor:
        """(B, 1 + draft, V) of what follows each row and each token of a draft."""
        if self.cache is not None and len(rows) < len(self.rows):
            self._keep(rows)
        if self.cache is None or not self._has_read(rows):
            return self._prefill(rows)
        tokens = torch.tensor([[row.tokens[-1], *draft] for row in rows], device=self.device)
        return self._read(self.cache, tokens, n_wanted=1 + len(draft))

    def take_back(self, n_tokens: int) -> None:
        """The last tokens of a draft were wrong."""
        if self.cache is not None:
            self.cache.position -= n_tokens

    def _has_read(self, rows: Sequence[Row]) -> bool:
        """Whether the cache holds all of the rows' windows but their last tokens, and has room for these."""
        assert self.cache is not None
        return self._starts(rows) == self.starts and self.cache.position < self.cache.n_tokens

    def _starts(self, rows: Sequence[Row]) -> list[int]:
        return [window_start(len(row.tokens), self.model.config.context_length) for row in rows]

    def _keep(self, rows: Sequence[Row]) -> None:
        kept = [i for i, row in enumerate(self.rows) if row in rows]
        assert self.cache is not None
        self.cache.select(kept)
        self.rows, self.starts = [self.rows[i] for i in kept], [self.starts[i] for i in kept]

    def _read(self, cache: KVCache, tokens: Tensor, texts: Tensor | None = None, n_wanted: int = 1) -> Tensor:
        """(B, n_wanted, V) of what follows the last of the tokens (B, T), which the cache keeps."""
        own = self.reader is not None and self.reader.takes(tokens, texts)
        if self.calls_forward and not own:
            logits: Tensor = self.model(tokens, texts, cache)[:, -n_wanted:]
        else:
            reader = self.reader if own and self.reader is not None else self.model
            logits = reader.logits(reader.hidden(tokens, texts, cache)[:, -n_wanted:])
        cache.position += tokens.shape[1]
        return logits

    def _prefill(self, rows: Sequence[Row]) -> Tensor:
        """Read the rows' windows, each different one once, from the left-padded width of the longest."""
        self.rows, self.starts = list(rows), self._starts(rows)
        windows = [tuple(row.tokens[start:]) for row, start in zip(rows, self.starts, strict=True)]
        different = list(dict.fromkeys(windows))
        width = max(map(len, different))
        padded = [[0] * (width - len(window)) + list(window) for window in different]
        tokens = torch.tensor(padded, device=self.device)
        weight = self.model.token_embedding.weight
        config = self.model.config
        n_tokens = min(config.context_length, width + self.config.max_new_tokens)
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
