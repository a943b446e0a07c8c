"""Tokens -> batches. Batch i is a pure function of (seed, i), so a resumed run has nothing to store or replay.

    batch i -> its pool of 64 batches -> items: source, epoch, position in that epoch's order (order.py)
    items -> rows: where each begins and ends (`rows`) -> tokens and targets, both (B, T) (`batch`)

An item is a window (packed) or an example; a row says in numbers where in the split an item lies. Unlike windows drawn
at random with replacement, an epoch has each token as a target once; it leaves out only a remainder shorter than a
window. Ranks need not communicate: rank r of n takes batches r, r + n, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from minigpt.config import Config
from minigpt.data.order import Mixture, hashed, shuffled
from minigpt.data.shards import PreparedData, SourceRange, Split, Tokens
from minigpt.errors import UserError

IGNORED = -1
"""Target of positions without a loss, such as padding; cross-entropy's `ignore_index`."""

Mode = Literal["packed", "examples"]
"""Windows cut from the joined documents, or each document by itself, padded."""

BATCHES_PER_POOL = 64
"""Batches whose rows are computed at a time: numpy takes hardly longer than for one batch, and examples are sorted by
length within a pool. Their tokens are read batch by batch."""

_MIXTURE, _ORDER, _CUTS, _BATCHES = range(4)  # uses of random numbers, so that no two share a key


class Share(NamedTuple):
    """What a run takes from one source."""

    name: str
    share: float
    """Of the run's items."""
    epochs: float
    """How often the run goes through the source."""


class Origin(NamedTuple):
    """Where in the split a row of a batch comes from."""

    source: str
    first_token: int
    """Of the split."""
    first_document: int
    """Of the split."""
    last_document: int
    """Before first_document where the window wraps around the end of its range."""


class _Windows:
    """Ranges of tokens, each cut into windows of context_length + 1; neighbours share one token.

    A range is a ring that each epoch cuts elsewhere, so the remainder that fills no window changes, and so does a
    token's position in its window. Where the ring closes is a document boundary like any other.
    """

    def __init__(self, tokens: Tokens, ranges: Sequence[SourceRange], context_length: int, seed: int) -> None:
        self.tokens, self.context_length, self.seed = tokens, context_length, seed
        self.first_token = np.array([part.first_token for part in ranges], dtype=np.int64)
        self.n_tokens = np.array([part.n_tokens for part in ranges], dtype=np.int64)
        self.n_items = self.n_tokens // context_length

    def amount(self, part: SourceRange) -> float:
        """Size of a part of the tokens, in windows."""
        return part.n_tokens / self.context_length

    def rows(self, ranges: np.ndarray, epochs: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(N, 2): the range of each window, and its first token within the range."""
        n = self.n_tokens[ranges]
        cut = hashed(self.seed, _CUTS, ranges, epochs) % n.astype(np.uint64)
        return np.stack([ranges, (cut.astype(np.int64) + items * self.context_length) % n], axis=1)

    def spans(self, rows: np.ndarray) -> np.ndarray:
        """(N, 2): the first and the last token of each window."""
        ranges, start = rows.T
        last = (start + self.context_length) % self.n_tokens[ranges]
        return np.stack([start, last], axis=1) + self.first_token[ranges, None]

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """tokens (B, T) and targets (B, T)."""
        size = self.context_length + 1
        # int64, as cross-entropy and embeddings index with it; uint16 on disk is only for storage.
        windows = np.empty((len(rows), size), dtype=np.int64)
        for window, (range_, start) in zip(windows, rows.tolist(), strict=True):
            first, n = int(self.first_token[range_]), int(self.n_tokens[range_])
            ahead = min(size, n - start)
            window[:ahead] = self.tokens.read(first + start, first + start + ahead)
            if ahead < size:  # the ring closes inside this window
                window[ahead:] = self.tokens.read(first, first + size - ahead)
        joined = torch.from_numpy(windows)  # (B, T + 1)
        return joined[:, :-1], joined[:, 1:]


class _Examples:
    """Documents one by one. A document longer than the context is cut into chunks, each an example of its own.

    The model reads end_of_text and then the document, and predicts the document and then end_of_text, with which stored
    documents end: the same start as in generation. Later chunks begin with the token before them instead. Where only
    answers have a loss, chunks without a token of one are no examples.
    """

    def __init__(self, split: Split, ranges: Sequence[SourceRange], context_length: int, end_of_text: int) -> None:
        self.tokens, self.starts, self.answers = split.tokens, split.document_starts, split.answers
        self.context_length, self.end_of_text = context_length, end_of_text
        lengths = np.diff(self.starts, append=len(self.tokens))
        self.first_chunk: np.ndarray | None = None
        """(n_documents + 1,) number of chunks before each document; None where every document is one chunk."""
        if lengths.max(initial=0) > context_length:
            self.first_chunk = np.zeros(len(lengths) + 1, dtype=np.int64)
            np.cumsum(-(-lengths // context_length), out=self.first_chunk[1:])
        self.kept: np.ndarray | None = None if self.answers is None else self._with_answers(self.answers)
        """Numbers of the chunks that are examples, ascending; None for all."""
        self.first_item = np.array([self._items_before(part.first_document) for part in ranges], dtype=np.int64)
        self.n_items = np.array([self.amount(part) for part in ranges], dtype=np.int64)

    def _with_answers(self, answers: np.ndarray) -> np.ndarray:
        """Numbers of the chunks that hold a token of an answer."""
        documents = np.searchsorted(self.starts, answers[:, 0], side="right") - 1
        ends = np.stack([answers[:, 0], answers[:, 1] - 1], axis=1) - self.starts[documents, None]
        before = documents if self.first_chunk is None else self.first_chunk[documents]
        first, last = (before[:, None] + ends // self.context_length).T
        if (first == last).all():
            return np.unique(first)
        return np.unique(np.concatenate([np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]))

    def _items_before(self, document: int) -> int:
        chunks = document if self.first_chunk is None else int(self.first_chunk[document])
        return chunks if self.kept is None else int(np.searchsorted(self.kept, chunks))

    def amount(self, part: SourceRange) -> int:
        """Size of a part of the documents, in examples."""
        return self._items_before(part.first_document + part.n_documents) - self._items_before(part.first_document)

    def rows(self, ranges: np.ndarray, epochs: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(N, 3): first token, end, and whether it begins a document, of each example; the same in every epoch."""
        number = self.first_item[ranges] + items
        if self.kept is not None:
            number = self.kept[number]
        documents = number
        chunks = np.zeros_like(number)
        if self.first_chunk is not None:
            documents = np.searchsorted(self.first_chunk, number, side="right") - 1
            chunks = number - self.first_chunk[documents]
        begin = self.starts[documents] + chunks * self.context_length
        last = len(self.starts) - 1  # no end is stored: starts is a memory map, which a sentinel would copy into memory
        end = np.where(documents < last, self.starts[np.minimum(documents + 1, last)], len(self.tokens))
        return np.stack([begin, np.minimum(begin + self.context_length, end), chunks == 0], axis=1)

    def spans(self, rows: np.ndarray) -> np.ndarray:
        """(N, 2): the first and the last token of each example."""
        return rows[:, :2] - [0, 1]

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """tokens and targets, each (B, length of the longest)."""
        lengths = rows[:, 1] - rows[:, 0]
        joined = np.full((len(rows), lengths.max() + 1), self.end_of_text, dtype=np.int64)  # (B, longest + 1)
        for row, (begin, end, opens) in zip(joined, rows.tolist(), strict=True):
            # A document's first example keeps the end_of_text in front of it; a later one reads one token before it.
            row[opens : end - begin + 1] = self.tokens.read(begin - (not opens), end)
        ignored = np.arange(lengths.max()) >= lengths[:, None]
        if self.answers is not None:
            ignored |= ~self._in_answers(self.answers, rows, ignored.shape)
        tokens, targets = torch.from_numpy(joined[:, :-1]), torch.from_numpy(joined[:, 1:])
        return tokens, targets.masked_fill(torch.from_numpy(ignored), IGNORED)

    @staticmethod
    def _in_answers(answers: np.ndarray, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Mask, in the shape of the targets, of the tokens of answers."""
        wanted = np.zeros(shape, dtype=bool)
        first = np.searchsorted(answers[:, 1], rows[:, 0], side="right")
        stop = np.searchsorted(answers[:, 0], rows[:, 1])
        for row, (begin, end), some in zip(wanted, rows[:, :2].tolist(), map(slice, first, stop), strict=True):
            for answer, after, _ in answers[some].tolist():
                row[max(answer, begin) - begin : min(after, end) - begin] = True
        return wanted

    @staticmethod
    def by_length(rows: np.ndarray) -> np.ndarray:
        """The rows, sorted by length."""
        return rows[np.argsort(rows[:, 1] - rows[:, 0], kind="stable")]


class TrainBatches(Dataset[tuple[Tensor, Tensor]]):
    """Micro-batches of a whole run. Each epoch takes every item once, in a new order and with new window cuts.

    Batch i is the i-th of the run over all devices: rank r of n takes i = r, r + n, ...

    Examples are sorted by length within a pool of 64 batches, and the pool's batches are shuffled: little padding, and
    neighbouring batches still differ in length (Khomenko et al. 2016, https://arxiv.org/abs/1708.05604).
    """

    def __init__(
        self,
        split: Split,
        *,
        context_length: int,
        batch_size: int,
        n_batches: int,
        seed: int,
        end_of_text: int,
        weights: Sequence[float] | None = None,
        mode: Mode = "packed",
        repeat: int = 0,
    ) -> None:
        """Choose the items; nothing is read yet.

        Args:
            split: documents, whose sources the weights belong to.
            context_length: tokens that a row predicts (packed), or may at most (examples).
            batch_size: rows of a batch.
            n_batches: batches of the run.
            seed: chooses the order, the cuts and the mixture.
            end_of_text: what an example begins with.
            weights: share of the items that each source gets; by their lengths when not given.
            mode: what an item is.
            repeat: above 0, the run repeats its first `repeat` batches (overfit_batches).

        Raises:
            UserError: the split, or a source that has a weight, is too short for one item; or a weight is too small.
        """
        self.split, self.batch_size, self.n_batches = split, batch_size, n_batches
        self.seed, self.weighted, self.repeat = seed, weights is not None, repeat
        ranges = _whole(split) if weights is None else split.sources
        for part in ranges:
            _require_enough(part, context_length, mode, f" of {part.name}" if self.weighted else "")
        self.layout = (
            _Windows(split.tokens, ranges, context_length, seed)
            if mode == "packed"
            else _Examples(split, ranges, context_length, end_of_text)
        )
        names = [part.name for part in ranges]
        self.mixture = Mixture(names, [1.0] if weights is None else weights, hashed(seed, _MIXTURE))
        self.batches_per_pool = BATCHES_PER_POOL
        if mode == "examples":
            # Copies of one example sort next to each other. A pool is at most one pass over the scarcest source, so it
            # has few: two where it spans the end of an epoch.
            one_pass = (self.layout.n_items / self.mixture.shares).min()
            self.batches_per_pool = int(np.clip(one_pass // batch_size, 1, BATCHES_PER_POOL))
        self._pool_number, self._pool = -1, np.zeros(0, dtype=np.int64)

    @property
    def n_items(self) -> int:
        """Windows or examples of all sources, each counted once."""
        return int(self.layout.n_items.sum())

    def shares(self, n_items: int) -> list[Share]:
        """What a run of so many items takes from each source, for a report."""
        amounts = np.array([self.layout.amount(part) for part in self.split.sources], dtype=np.float64)
        shares = self.mixture.shares if self.weighted else amounts / amounts.sum()
        epochs = n_items * shares / np.where(amounts > 0, amounts, np.inf)
        names = [part.name for part in self.split.sources]
        return [Share(*row) for row in zip(names, shares.tolist(), epochs.tolist(), strict=True)]

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """tokens (B, T) and targets (B, T), int64: targets are the tokens one position later.

        Examples are padded on the right to the longest row, with IGNORED targets. Under the causal mask no token
        attends to padding on its right, so no padding mask is needed.
        """
        return self.layout.batch(self._rows(index))

    def origins(self, index: int) -> list[Origin]:
        """Where in the split each row of a batch comes from, for reports."""
        spans = self.layout.spans(self._rows(index))
        parts = [part for part in self.split.sources if part.n_tokens]
        sources = np.searchsorted([part.first_token for part in parts], spans[:, 0], side="right") - 1
        documents = np.searchsorted(self.split.document_starts, spans, side="right") - 1
        found = zip(sources.tolist(), spans[:, 0].tolist(), documents.tolist(), strict=True)
        return [Origin(parts[source].name, token, first, last) for source, token, (first, last) in found]

    def _rows(self, index: int) -> np.ndarray:
        """Each row of a batch, in the form that `layout.batch` reads."""
        if not 0 <= index < self.n_batches:
            raise IndexError(index)
        pool, batch_in_pool = divmod(index % self.repeat if self.repeat else index, self.batches_per_pool)
        if pool != self._pool_number:
            self._pool_number, self._pool = pool, self._pool_rows(pool)
        rows: np.ndarray = self._pool[batch_in_pool]
        return rows

    def _pool_rows(self, pool: int) -> np.ndarray:
        """The rows of a pool's batches: (batches_per_pool, B, columns of `layout.rows`)."""
        n_batches, n_rows = self.batches_per_pool, self.batches_per_pool * self.batch_size
        # Each (n_rows,): the source of each row, how many rows of that source came before, and its number of items.
        ranges, counts = self.mixture.pick(pool * n_rows, (pool + 1) * n_rows)
        n = self.layout.n_items[ranges]
        epochs, positions = np.divmod(counts, n)
        rows = self.layout.rows(ranges, epochs, shuffled(positions, n, hashed(self.seed, _ORDER, ranges, epochs)))
        if isinstance(self.layout, _Windows):
            return rows.reshape(n_batches, self.batch_size, -1)
        batches = self.layout.by_length(rows).reshape(n_batches, self.batch_size, -1)
        return batches[shuffled(np.arange(n_batches), n_batches, hashed(self.seed, _BATCHES, pool))]


def _whole(split: Split) -> tuple[SourceRange, ...]:
    """All sources as one."""
    return (
        SourceRange(
            "all",
            first_token=0,
            n_tokens=len(split.tokens),
            first_document=0,
            n_documents=len(split.document_starts),
            n_bytes=split.n_bytes,
        ),
    )


def n_val_targets(split: Split, mode: Mode) -> int:
    """Tokens that validation on a whole split predicts: all, but in packed windows not the very first; or answers."""
    if split.answers is not None:
        return int((split.answers[:, 1] - split.answers[:, 0]).sum())
    return len(split.tokens) - 1 if mode == "packed" else len(split.tokens)


def _require_enough(part: SourceRange, context_length: int, mode: Mode, of: str) -> None:
    if mode == "examples" and part.n_documents == 0:
        raise UserError(f"the train split has no documents{of}: give more text")
    if mode == "packed" and part.n_tokens <= context_length:
        raise UserError(
            f"the train split has {part.n_tokens} tokens{of}, but a window of model.context_length={context_length} "
            f"needs {context_length + 1}: give more text or a shorter context"
        )


def train_batches(config: Config, data: PreparedData, *, n_batches: int, repeat: int = 0) -> TrainBatches:
    """The micro-batches of a run with this config.

    Raises:
        UserError: the train split is too short for model.context_length.
    """
    return TrainBatches(
        data.train,
        context_length=config.model.context_length,
        batch_size=config.data.batch_size,
        n_batches=n_batches,
        seed=config.seed,
        end_of_text=data.manifest.end_of_text,
        weights=config.data.weights,
        mode=config.data.mode,
        repeat=repeat,
    )


class ValBatches(Dataset[tuple[Tensor, Tensor]]):
    """The whole val split, or rows spread evenly over it, in a fixed order; one batch may have fewer rows.

    Packed: every token but the very first is predicted once, in order.
    Examples: every stored token, or every token of an answer, is predicted once. Batches hold examples of similar
    length, in shuffled order, so the first few batches are a fair sample.
    """

    def __init__(
        self,
        split: Split,
        *,
        context_length: int,
        batch_size: int,
        end_of_text: int,
        mode: Mode = "packed",
        max_tokens: int | None = None,
    ) -> None:
        """Args as of TrainBatches; max_tokens: of the chosen rows together, of which there is at least one.

        Raises:
            UserError: the split has fewer than two tokens (packed), or no document.
        """
        n_tokens = len(split.tokens)
        if n_tokens < (2 if mode == "packed" else 1):
            raise UserError("the val split is empty: give more text or a larger data.val_fraction")
        self.tokens, self.context_length, self.batch_size = split.tokens, context_length, batch_size
        self.n_targets = n_val_targets(split, mode)
        """Tokens that the whole split predicts."""
        self.examples: _Examples | None = None
        if mode == "packed":
            starts = np.arange(0, self.n_targets, context_length)
            rows = np.stack([starts, np.minimum(starts + context_length, self.n_targets)], axis=1)
        else:
            self.examples = _Examples(split, _whole(split), context_length, end_of_text)
            zeros = np.zeros(int(self.examples.n_items[0]), dtype=np.int64)
            rows = self.examples.rows(zeros, zeros, np.arange(len(zeros)))
        rows = rows[_spread(rows[:, 1] - rows[:, 0], max_tokens)]
        self._rows = rows if self.examples is None else self.examples.by_length(rows)
        """Each begins with its first token and its end; examples are sorted by length."""

    def __len__(self) -> int:
        return -(-len(self._rows) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A batch as of TrainBatches; targets past the text's end are IGNORED."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self.examples is not None:
            index = int(shuffled(np.array([index]), len(self), hashed(_BATCHES))[0])
        rows = self._rows[index * self.batch_size : (index + 1) * self.batch_size]
        return self._windows(rows) if self.examples is None else self.examples.batch(rows)

    def _windows(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        shape = len(rows), self.context_length
        tokens, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED)
        for read, predicted, (begin, end) in zip(tokens, targets, rows.tolist(), strict=True):
            chunk = self.tokens.read(begin, end + 1)
            read[: end - begin], predicted[: end - begin] = chunk[:-1], chunk[1:]
        return torch.from_numpy(tokens), torch.from_numpy(targets)


def _spread(lengths: np.ndarray, most: int | None) -> np.ndarray:
    """Numbers of rows, evenly over all, that together have at most so many tokens; one at least. None for all rows."""
    n = len(lengths)
    chosen = np.arange(n)
    while most is not None and len(chosen) > 1 and (total := int(lengths[chosen].sum())) > most:
        kept = max(1, len(chosen) * most // total)  # fewer than before
        chosen = (2 * np.arange(kept) + 1) * n // (2 * kept)
    return chosen
