"""The generation loop: prompts -> tokens, by a prefill of each prompt and then one decode step per token.

The loop owns all state: the rows' tokens, their random generators, and the cache's position. A row's tokens do not
depend on its batch: it has its own generator, its own positions from 0, and its own context window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from minigpt.config import GenerationConfig, GPTConfig
from minigpt.errors import UserError
from minigpt.generation.cpu_backend import CPUDecode, Integers, can_decode
from minigpt.generation.prompt_lookup import prompt_lookup_draft
from minigpt.generation.sampling import Candidates, Generator, Mask, apply_filters, draw
from minigpt.runs.stored import StoredModel

if TYPE_CHECKING:  # imports torch, which `CPUDecode` need not wait for
    from minigpt.model.gpt import GPT

Logits = npt.NDArray[np.float32]

Watch = Callable[[Logits, list[tuple[str, Candidates]]], None]
"""Called before each draw with the model's (V,) logits and the tokens left after each of `sampling.apply_filters`."""


@dataclass(eq=False)
class Row:
    """One sequence being generated."""

    tokens: list[int]
    """The prompt and the generated tokens; read-only for the loop's callers."""
    generator: Generator
    index: int
    """Number of the sample among all samples of the call."""
    n_prompt: int
    restrict: Callable[[Sequence[int]], Mask | None] | None = None
    """Generated tokens -> mask (n,) of the first n token ids that may follow, others excluded; None once any may."""
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


class Cache(Protocol):
    """The KV cache of a reader: `KVCache`, or a decoder's own."""

    position: int
    n_tokens: int

    @property
    def can_rewind(self) -> bool: ...

    def select(self, rows: Sequence[int]) -> None: ...


class Reader(Protocol):
    """What reads tokens for the loop: the model, or a fast path in its place."""

    config: GPTConfig

    def ready(self) -> bool:
        """Whether it computes the same as the model does now, hooks included; called before each text.

        Raises:
            UserError: it does not, and falling back to the model would ignore a setting such as int8.
        """

    def new_cache(self, n_rows: int, n_tokens: int) -> Any:
        """A `Cache` for `read` of this reader; arguments as for `KVCache`."""

    def read(
        self,
        tokens: Integers,
        cache: Any,
        n_wanted: int = 1,
        n_padding: Integers | None = None,
    ) -> Logits:
        """Add (B, T) tokens to the cache, whose position the caller moves.

        Args:
            tokens: that follow the cached ones.
            cache: of `new_cache`.
            n_wanted: number of last positions whose logits are returned.
            n_padding: (B,) tokens of padding at the beginning of each row; for the first tokens, None for none at all.

        Returns:
            (B, n_wanted, V) logits.
        """


@runtime_checkable
class DrawingReader(Reader, Protocol):
    """A reader that can draw on the device, several tokens ahead of the loop: see `model_reader.StaticDecode`."""

    @property
    def ahead(self) -> int: ...

    def draw_ahead(
        self,
        texts: Sequence[Sequence[int]],
        cache: Any,
        uniform: npt.NDArray[np.float64],
        config: GenerationConfig,
    ) -> npt.NDArray[np.float64]: ...


def reader_of(model: GPT | StoredModel, n_tokens: int = 0) -> Reader:
    """`CPUDecode` for models that it supports, else a reader of `model_reader`.

    Args:
        model: in eval mode.
        n_tokens: expected decode steps.
    """
    if can_decode(model):
        return CPUDecode(model, n_tokens=n_tokens)
    from minigpt.generation.model_reader import reader_of_torch  # imports torch

    return reader_of_torch(model.model if isinstance(model, StoredModel) else model)


def generate(
    model: GPT | StoredModel, rows: Sequence[Row], config: GenerationConfig, reader: Reader | None = None
) -> Iterator[list[Row]]:
    """Draw one token for each unfinished row and yield these rows, until all rows have ended.

    Finished rows leave the batch; a caller ends a row early by setting `row.ended`.

    Args:
        model: in eval mode.
        rows: prompts of at least one token; rows of one prompt share its prefill.
        config: sampling settings and limits; its seed and stop strings are ignored here (`Writer` applies them). A stop
            token is not kept.
        reader: in place of `reader_of(model)`, while it is ready.

    Yields:
        The rows that have a new token, which is the last of `row.tokens`.

    Raises:
        UserError: logits are NaN or inf, or no token is left to draw.
    """
    going = list(rows)
    if reader is None or not reader.ready():
        reader = reader_of(model, config.max_new_tokens)
    batch = _Batch(reader, config)
    while going:
        # On a GPU, several tokens are drawn for one wait. A row that ends leaves the rest of its own unused; the others
        # do not depend on it.
        if (drawn := batch.draw_ahead(going)) is not None:
            rows_ahead = going
            for step in drawn:  # (3, B)
                for row, token, chance, total in zip(rows_ahead, *step, strict=True):
                    if row.ended is None:
                        _check_finite(total)
                        _append(row, int(token), float(chance), config)
                yield (written := _written(going, config, reader.config.context_length))
                going = [row for row in written if row.ended is None]
                if not going:
                    break
            continue
        # A draft of n tokens gives n + 1 logits in one pass, as fast as one for a model bound by memory. Each is drawn
        # from as without a draft; the first token that differs from the draft ends the use of the rest.
        draft = batch.draft(going)
        steps = batch.logits(going, draft).swapaxes(0, 1)  # (1 + draft, B, V)
        for place, logits in enumerate(steps):
            for row, own in zip(going, logits, strict=True):
                _draw(own, row, config)
            yield (written := _written(going, config, reader.config.context_length))
            going = [row for row in written if row.ended is None]
            if not going or going[0].tokens[-1:] != draft[place : place + 1]:
                batch.take_back(len(draft) - place)
                break


def _written(rows: Sequence[Row], config: GenerationConfig, context_length: int) -> list[Row]:
    """The rows that have a new token, of which those that reached a limit are ended."""
    written = [row for row in rows if row.ended is None]
    for row in written:
        if row.n_drawn >= config.max_new_tokens:
            row.ended = "length"
        elif config.overflow == "stop" and len(row.tokens) > context_length:
            row.ended = "context"
    return written


def _draw(logits: Logits, row: Row, config: GenerationConfig) -> None:
    """Append a token to the row, or end it at a stop token."""
    # Log-probabilities are the model's own: under filters and temperature they would not compare between settings.
    largest = logits.max()
    shifted = logits - largest
    total = largest + np.log(np.exp(shifted, out=shifted).sum())
    _check_finite(total)
    stages = list(apply_filters(logits, config, row.tokens, _permitted(row, len(logits), config)))
    if row.watch is not None:
        row.watch(logits, stages)
    token = draw(stages[-1][1], config.temperature, row.generator)
    _append(row, token, float(logits[token] - total), config)


def _append(row: Row, token: int, chance: float, config: GenerationConfig) -> None:
    """Append a token of that log-probability, or end the row at a stop token."""
    if token in config.stop_tokens:
        row.ended, row.stopped_by = "stop_token", token
    else:
        row.tokens.append(token)
        row.log_probabilities.append(chance)


def _check_finite(total: float) -> None:
    """Args: total is the logarithm of the sum of exponentiated logits."""
    if not np.isfinite(total):
        raise UserError("the model's logits are NaN or inf: its weights are damaged, or its training diverged")


def _is_limited(row: Row, config: GenerationConfig) -> bool:
    """Whether `_permitted` has a mask, for the next token at least."""
    return row.n_drawn < config.min_new_tokens or (row.restrict is not None and row.restrict(row.drawn) is not None)


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

    def __init__(self, reader: Reader, config: GenerationConfig) -> None:
        self.reader, self.config = reader, config
        self.rows: list[Row] = []
        self.starts: list[int] = []
        self.cache: Cache | None = None

    def draft(self, rows: Sequence[Row]) -> list[int]:
        """Prompt-lookup draft for a batch of one row, limited by the room in its cache; else empty."""
        # Rows of a larger batch would accept different numbers of tokens, and the cache has one position for all.
        if not self.config.draft_tokens or len(rows) > 1 or self.cache is None:
            return []
        (row,), cache = rows, self.cache
        if not self._has_read([row]) or not cache.can_rewind:  # the rejected tokens of a draft must be dropped
            return []
        room = min(cache.n_tokens - cache.position, self.config.max_new_tokens - row.n_drawn) - 1
        return prompt_lookup_draft(row.tokens, min(self.config.draft_tokens, room))

    def draw_ahead(self, rows: Sequence[Row]) -> npt.NDArray[np.float64] | None:
        """(n, 3, B) tokens, log-probabilities and totals of the next n steps; None where the loop is to draw."""
        reader, cache, config = self.reader, self.cache, self.config
        if not isinstance(reader, DrawingReader) or cache is None or config.draft_tokens:
            return None
        if any(row.watch is not None or _is_limited(row, config) for row in rows):
            return None
        if len(rows) < len(self.rows):
            self._keep(rows)
        n = min(reader.ahead, cache.n_tokens - cache.position, *(config.max_new_tokens - row.n_drawn for row in rows))
        n = next((i for i in range(n) if self._starts(rows, i) != self.starts), n)  # until a window moves on
        if n < 1:
            return None
        uniform = np.zeros((len(rows), n))
        if config.temperature:
            uniform[:] = [[row.generator.uniform() for _ in range(n)] for row in rows]
        drawn = reader.draw_ahead([row.tokens for row in rows], cache, uniform, config)
        cache.position += n
        return drawn

    def logits(self, rows: Sequence[Row], draft: Sequence[int] = ()) -> Logits:
        """(B, 1 + draft, V) logits of the token after each row and after each token of the draft."""
        if self.cache is not None and len(rows) < len(self.rows):
            self._keep(rows)
        if self.cache is None or not self._has_read(rows):
            return self._prefill(rows)
        tokens = np.array([[row.tokens[-1], *draft] for row in rows])
        logits = self.reader.read(tokens, self.cache, n_wanted=1 + len(draft))
        self.cache.position += tokens.shape[1]
        return logits

    def take_back(self, n_tokens: int) -> None:
        """Drop the last tokens from the cache: the rejected part of a draft."""
        if self.cache is not None:
            self.cache.position -= n_tokens

    def _has_read(self, rows: Sequence[Row]) -> bool:
        """Whether the cache holds the rows' windows except their last tokens, and has room for these."""
        assert self.cache is not None
        return self._starts(rows) == self.starts and self.cache.position < self.cache.n_tokens

    def _starts(self, rows: Sequence[Row], n_later: int = 0) -> list[int]:
        """Where each row's window starts, or will after some more tokens."""
        return [window_start(len(row.tokens) + n_later, self.reader.config.context_length) for row in rows]

    def _keep(self, rows: Sequence[Row]) -> None:
        kept = [i for i, row in enumerate(self.rows) if row in rows]
        assert self.cache is not None
        self.cache.select(kept)
        self.rows, self.starts = [self.rows[i] for i in kept], [self.starts[i] for i in kept]

    def _prefill(self, rows: Sequence[Row]) -> Logits:
        """Logits after the rows' windows, left-padded to the longest; equal windows are read once."""
        # Padding on the left: the last tokens of all rows then stand at one place, and one position serves the batch.
        self.rows, self.starts = list(rows), self._starts(rows)
        windows = [tuple(row.tokens[start:]) for row, start in zip(rows, self.starts, strict=True)]
        different = list(dict.fromkeys(windows))
        width = max(map(len, different))
        n_padding = np.array([width - len(window) for window in different])
        tokens = np.array([[0] * (width - len(window)) + list(window) for window in different])
        n_tokens = min(self.reader.config.context_length, width + self.config.max_new_tokens)
        self.cache = self.reader.new_cache(len(different), n_tokens)
        # Without padding, with document_mask, the model itself finds the document boundaries.
        logits = self.reader.read(tokens, self.cache, n_padding=n_padding if n_padding.any() else None)
        self.cache.position += width
        if len(different) < len(windows):
            chosen = [different.index(window) for window in windows]
            self.cache.select(chosen)
            logits = logits[chosen]
        return logits


def window_start(n_tokens: int, context_length: int) -> int:
    """Index of the first token in the context window: 0 while the text fits, then advancing by quarters of it."""
    # A window that moved by one token would change every position, and so cost a prefill for each token; this costs one
    # every quarter of a context, and is exact.
    step = max(1, context_length // 4)
    return max(0, -(-(n_tokens - context_length) // step)) * step
