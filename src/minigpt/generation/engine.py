"""The generation loop: prompts -> tokens, by a prefill of each prompt and then one decode step per token.

The loop owns all state: the rows' tokens, their random generators, and the cache's position. A row's tokens do not
depend on its batch: it has its own generator, its own positions from 0, and its own context window.
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
from minigpt.generation.plain import changes_forward, intervention
from minigpt.generation.prompt_lookup import prompt_lookup_draft
from minigpt.generation.sampling import Candidates, Mask, apply_filters, draw
from minigpt.model.cache import KVCache
from minigpt.model.compiling import CompiledWithFallback
from minigpt.model.gpt import GPT

NO_DOCUMENT = -1
"""Document id of padding."""

Logits = npt.NDArray[np.float32]

Watch = Callable[[Logits, list[tuple[str, Candidates]]], None]
"""Called before each draw with the model's (V,) logits and the tokens left after each of `sampling.apply_filters`."""


@dataclass(eq=False)
class Row:
    """One sequence being generated."""

    tokens: list[int]
    """The prompt and the generated tokens; read-only for the loop's callers."""
    generator: torch.Generator
    index: int
    """Number of the sample among all samples of the call."""
    n_prompt: int
    restrict: Callable[[Sequence[int]], Mask | None] | None = None
    """Generated tokens -> mask (n,) of the first n token ids that may follow, others excluded; None for any."""
    watch: Watch | None = None
    log_probabilities: list[float] = field(default_factory=list)
    """Of each generated token, in nats, under the model before any filter."""
    stopped_by: int | None = None
    """The stop token that ended it."""
    ended: str | None = None
    """`stop_token`, `length` or `context`, or set by the caller to end the row; None while it goes on."""

    @property
    def n_drawn(self) -> int:
        """Number of generated tokens."""
        return len(self.tokens) - self.n_prompt

    @property
    def drawn(self) -> list[int]:
        """The generated tokens, without a stop token."""
        return self.tokens[self.n_prompt :]


class Reader(Protocol):
    """A fast path that computes hidden states and logits in place of the model; shapes as for `GPT`."""

    def ready(self) -> bool:
        """Whether it computes the same as the model does now, hooks included; called before each text.

        Raises:
            UserError: it does not, and falling back to the model would ignore a setting such as int8.
        """

    def takes(self, tokens: Tensor, document_ids: Tensor | None) -> bool:
        """Whether to use it for these tokens; otherwise the model reads them."""

    def hidden(self, tokens: Tensor, document_ids: Tensor | None, cache: KVCache) -> Tensor: ...

    def logits(self, x: Tensor) -> Tensor: ...


class CompiledDecode:
    """The model with decode steps compiled by torch.compile."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.hidden = CompiledWithFallback(model.hidden, dynamic=True)
        self.logits = model.logits

    def ready(self) -> bool:
        """False where the model has hooks: compiled code does not check for new ones. Other changes recompile."""
        return intervention(self.model) is None

    def takes(self, tokens: Tensor, document_ids: Tensor | None) -> bool:
        """True for decode steps; prompts are read uncompiled, since each new length would compile again."""
        return tokens.shape[1] == 1 and document_ids is None


@torch.inference_mode()
def generate(
    model: GPT, rows: Sequence[Row], config: GenerationConfig, reader: Reader | None = None
) -> Iterator[list[Row]]:
    """Draw one token for each unfinished row and yield these rows, until all rows have ended.

    Finished rows leave the batch; a caller ends a row early by setting `row.ended`.

    Args:
        model: in eval mode.
        rows: prompts of at least one token; rows of one prompt share its prefill.
        config: sampling settings and limits; its seed and stop strings are ignored here (`Writer` applies them). A stop
            token is not kept.
        reader: fast path; by default `CPUDecode` for models that it supports.

    Yields:
        The rows that have a new token, which is the last of `row.tokens`.

    Raises:
        UserError: logits are NaN or inf, or no token is left to draw.
    """
    going = list(rows)
    batch = _Batch(model, config, reader)
    while going:
        # A draft of n tokens gives n + 1 logits in one pass, as fast as one for a model bound by memory. Each is drawn
        # from as without a draft; the first token that differs from the draft ends the use of the rest.
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
    """Append a token to the row, or end it at a stop token."""
    # Log-probabilities are the model's own: under filters and temperature they would not compare between settings.
    largest = logits.max()
    total = largest + np.log(np.exp(logits - largest).sum())
    if not np.isfinite(total):
        raise UserError("the model's logits are NaN or inf: its weights are damaged, or its training diverged")
    stages = list(apply_filters(logits, config, row.tokens, _permitted(row, len(logits), config)))
    if row.watch is not None:
        row.watch(logits, stages)
    token = draw(stages[-1][1], config.temperature, row.generator)
    if token in config.stop_tokens:
        row.ended, row.stopped_by = "stop_token", token
    else:
        row.tokens.append(token)
        row.log_probabilities.append(float(logits[token] - total))


def _permitted(row: Row, V: int, config: GenerationConfig) -> Mask | None:
    """(V,) mask of the tokens that `restrict` and min_new_tokens permit next; None for all."""
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
    """The unfinished rows and the KV cache of what the model has read of them."""

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
        """Prompt-lookup draft for a batch of one row, limited by the room in its cache; else empty."""
        # Rows of a larger batch would accept different numbers of tokens, and the cache has one position for all.
        if not self.config.draft_tokens or len(rows) > 1 or self.cache is None:
            return []
        (row,), cache = rows, self.cache
        # Linear attention's sums cannot drop the rejected tokens of a draft.
        if not self._has_read([row]) or any(layer.summed for layer in cache.layers):
            return []
        room = min(cache.n_tokens - cache.position, self.config.max_new_tokens - row.n_drawn) - 1
        return prompt_lookup_draft(row.tokens, min(self.config.draft_tokens, room))

    def logits(self, rows: Sequence[Row], draft: Sequence[int] = ()) -> Tensor:
        """(B, 1 + draft, V) logits of the token after each row and after each token of the draft."""
        if self.cache is not None and len(rows) < len(self.rows):
            self._keep(rows)
        if self.cache is None or not self._has_read(rows):
            return self._prefill(rows)
        tokens = torch.tensor([[row.tokens[-1], *draft] for row in rows], device=self.device)
        return self._read(self.cache, tokens, n_wanted=1 + len(draft))

    def take_back(self, n_tokens: int) -> None:
        """Drop the last tokens from the cache: the rejected part of a draft."""
        if self.cache is not None:
            self.cache.position -= n_tokens

    def _has_read(self, rows: Sequence[Row]) -> bool:
        """Whether the cache holds the rows' windows except their last tokens, and has room for these."""
        assert self.cache is not None
        return self._starts(rows) == self.starts and self.cache.position < self.cache.n_tokens

    def _starts(self, rows: Sequence[Row]) -> list[int]:
        return [window_start(len(row.tokens), self.model.config.context_length) for row in rows]

    def _keep(self, rows: Sequence[Row]) -> None:
        kept = [i for i, row in enumerate(self.rows) if row in rows]
        assert self.cache is not None
        self.cache.select(kept)
        self.rows, self.starts = [self.rows[i] for i in kept], [self.starts[i] for i in kept]

    def _read(self, cache: KVCache, tokens: Tensor, document_ids: Tensor | None = None, n_wanted: int = 1) -> Tensor:
        """(B, n_wanted, V) logits at the last of the (B, T) tokens, which are added to the cache."""
        own = self.reader is not None and self.reader.takes(tokens, document_ids)
        if self.calls_forward and not own:
            logits: Tensor = self.model(tokens, document_ids, cache)[:, -n_wanted:]
        else:
            reader = self.reader if own and self.reader is not None else self.model
            logits = reader.logits(reader.hidden(tokens, document_ids, cache)[:, -n_wanted:])
        cache.position += tokens.shape[1]
        return logits

    def _prefill(self, rows: Sequence[Row]) -> Tensor:
        """Logits after the rows' windows, left-padded to the longest; equal windows are read once."""
        # Padding on the left: the last tokens of all rows then stand at one place, and one position serves the batch.
        self.rows, self.starts = list(rows), self._starts(rows)
        windows = [tuple(row.tokens[start:]) for row, start in zip(rows, self.starts, strict=True)]
        different = list(dict.fromkeys(windows))
        width = max(map(len, different))
        padded = [[0] * (width - len(window)) + list(window) for window in different]
        tokens = torch.tensor(padded, device=self.device)
        n_tokens = min(self.model.config.context_length, width + self.config.max_new_tokens)
        dtype = self.model.token_embedding.weight.dtype
        self.cache = KVCache(self.model.config, len(different), n_tokens, dtype=dtype, device=self.device)
        logits = self._read(
            self.cache, tokens, self._document_ids(tokens, [width - len(window) for window in different])
        )
        if len(different) < len(windows):
            chosen = [different.index(window) for window in windows]
            self.cache.select(chosen)
            logits = logits[chosen]
        return logits

    def _document_ids(self, tokens: Tensor, n_padding: list[int]) -> Tensor | None:
        if not any(n_padding):
            return None  # no padding: with document_mask the model itself finds the document boundaries
        config = self.model.config
        index = torch.arange(tokens.shape[1], device=self.device)
        padding = index < torch.tensor(n_padding, device=self.device)[:, None]
        ends = tokens.eq(config.end_of_text or 0) & ~padding if config.document_mask else torch.zeros_like(padding)
        return ends.cumsum(dim=1).masked_fill(padding, NO_DOCUMENT)


def window_start(n_tokens: int, context_length: int) -> int:
    """Index of the first token in the context window: 0 while the text fits, then advancing by quarters of it."""
    # A window that moved by one token would change every position, and so cost a prefill for each token; this costs one
    # every quarter of a context, and is exact.
    step = max(1, context_length // 4)
    return max(0, -(-(n_tokens - context_length) // step)) * step
