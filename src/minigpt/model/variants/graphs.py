"""Attention masks as rules: which query may attend to which key. Rules combine with & and |.

A graph is directed: an edge from key s to query t lets token t attend to token s. It stores its rule, not the (T, S)
matrix, so each kernel gets the form it runs fastest: a causal flag, a block mask, or chunks of a dense mask.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.errors import UserError


class BlockEnds(NamedTuple):
    """Tokens in blocks of one size, of which the last may be shorter."""

    first: Tensor
    """(n,) int64: the first token of each block."""
    last: Tensor
    """(n,) int64: the last one."""
    size: int
    n_tokens: int

    @classmethod
    def of(cls, n_tokens: int, size: int, device: torch.device | str) -> BlockEnds:
        first = torch.arange(0, n_tokens, size, device=device)
        return cls(first, (first + size).clamp(max=n_tokens) - 1, size, n_tokens)

    def split(self, x: Tensor, value: float) -> Tensor:
        """(..., n_tokens) -> (..., n, size), filled up with a value."""
        return F.pad(x, (0, -self.n_tokens % self.size), value=value).unflatten(-1, (-1, self.size))


class Graph:
    """A set of edges. `Causal() & Window(64)`, `Causal() | Prefix(10)`, `Causal() & Documents(ids)`."""

    shape: tuple[int, int] = (1, 1)
    """Number of different graphs along the batch and along the heads; 1 where all share one."""
    reflexive: bool = False
    """Whether every token attends to itself, so that no row of the mask is empty."""

    def edges(self, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Whether query t attends to key s in batch row b and head h: bool, in the broadcast shape of the indices."""
        raise NotImplementedError

    def reach(self, start: int, stop: int, n_keys: int) -> tuple[int, int]:
        """The range of keys that queries start..stop can attend to; keys outside it are not computed."""
        return 0, n_keys

    def intervals(self, n_queries: int, n_keys: int) -> tuple[Tensor, Tensor] | None:
        """For each query the range of keys that it attends to; None where some are not contiguous.

        Returns:
            (B or 1, T) int64: the first key, and the one after the last; the second is not above the first where a
            query attends to nothing.
        """
        return None

    def blocks(self, queries: BlockEnds, keys: BlockEnds) -> tuple[Tensor, Tensor]:
        """For blocks of queries and of keys, whether they may have an edge, and whether they surely have all.

        Made from the blocks' ends, without the (T, S) matrix and without waiting for a GPU. The first may be true of
        a block without an edge, and the second false of a full one: a kernel then looks at its mask in vain.

        Returns:
            (B or 1, H or 1, blocks of queries, blocks of keys) bool, twice.
        """
        raise NotImplementedError

    def reduced(self, n_queries: int, n_keys: int) -> Graph:
        """The simplest graph with the same edges for this many queries and keys; itself where it is that."""
        return self

    def check(self, B: int, H: int, T: int, S: int) -> None:
        """Raises UserError unless the graph fits B rows, H heads, T queries and S keys."""

    def mask(self, queries: range, keys: range, device: torch.device | str = "cpu") -> Tensor:
        """The mask of some queries and keys as a matrix: (B or 1, H or 1, T, S) bool."""
        # One axis for each index, so that `edges` broadcasts them; FlexAttention calls it with scalars instead.
        n_batch, n_heads = self.shape
        b = torch.arange(n_batch, device=device)[:, None, None, None]
        h = torch.arange(n_heads, device=device)[:, None, None]
        t = torch.arange(queries.start, queries.stop, device=device)[:, None]
        s = torch.arange(keys.start, keys.stop, device=device)
        return self.edges(b, h, t, s).expand(n_batch, n_heads, len(queries), len(keys))

    def show(self, n_queries: int, n_keys: int | None = None, *, row: int = 0, head: int = 0) -> str:
        """The mask as text, a line for each query: `■` where it may attend, `·` where not."""
        mask = self.mask(range(n_queries), range(n_queries if n_keys is None else n_keys))
        matrix = mask[min(row, len(mask) - 1), min(head, mask.shape[1] - 1)].tolist()
        return "\n".join("".join("■" if edge else "·" for edge in line) for line in matrix)

    def __and__(self, other: Graph) -> Graph:
        """Edges that are in both graphs."""
        return Both(self, other)

    def __or__(self, other: Graph) -> Graph:
        """Edges that are in either graph."""
        return Either(self, other)


@dataclass(frozen=True)
class Full(Graph):
    """Every token attends to every token: an encoder."""

    reflexive = True

    def edges(self, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (t == t) & (s == s)  # True, in the indices' common shape

    def intervals(self, n_queries: int, n_keys: int) -> tuple[Tensor, Tensor] | None:
        return torch.zeros(1, n_queries, dtype=torch.int64), torch.full((1, n_queries), n_keys)

    def blocks(self, queries: BlockEnds, keys: BlockEnds) -> tuple[Tensor, Tensor]:
        every = keys.first.new_ones(1, 1, len(queries.first), len(keys.first), dtype=torch.bool)
        return every, every


@dataclass(frozen=True)
class Causal(Graph):
    """Every token attends to itself and to earlier tokens: a decoder."""

    reflexive = True

    def edges(self, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return t >= s

    def reach(self, start: int, stop: int, n_keys: int) -> tuple[int, int]:
        return 0, min(stop, n_keys)

    def intervals(self, n_queries: int, n_keys: int) -> tuple[Tensor, Tensor] | None:
        high = torch.arange(1, n_queries + 1)[None].clamp(max=n_keys)
        return torch.zeros_like(high), high

    def blocks(self, queries: BlockEnds, keys: BlockEnds) -> tuple[Tensor, Tensor]:
        return _pairs(queries.last) >= keys.first, _pairs(queries.first) >= keys.last


@dataclass(frozen=True)
class Window(Graph):
    """Every token attends to tokens less than `size` away, itself included (Child et al. 2019, Beltagy et al. 2020).

    `Causal() & Window(size)` is the last `size` tokens, itself included: Mistral's sliding window (Jiang et al. 2023).
    """

    size: int
    reflexive = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"window={self.size}: must be at least 1, the token itself")

    def edges(self, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (t - s).abs() < self.size

    def reach(self, start: int, stop: int, n_keys: int) -> tuple[int, int]:
        # What makes a window cost time in proportion to its size: keys far away are not computed and masked.
        return max(0, start - self.size + 1), min(n_keys, stop + self.size - 1)

    def intervals(self, n_queries: int, n_keys: int) -> tuple[Tensor, Tensor] | None:
        t = torch.arange(n_queries)[None]
        return (t - self.size + 1).clamp(0, n_keys), (t + self.size).clamp(max=n_keys)

    def blocks(self, queries: BlockEnds, keys: BlockEnds) -> tuple[Tensor, Tensor]:
        first, last = _pairs(queries.first), _pairs(queries.last)
        nearest = torch.maximum(first - keys.last, keys.first - last)  # below 0 where the blocks overlap
        return nearest < self.size, torch.maximum(last - keys.first, keys.last - first) < self.size

    def reduced(self, n_queries: int, n_keys: int) -> Graph:
        return Full() if self.size >= max(n_queries, n_keys) else self


@dataclass(frozen=True, eq=False)
class Prefix(Graph):
    """Every token attends to the first `length` tokens; `Causal() | Prefix(n)` is a prefix LM (Raffel et al. 2020)."""

    length: int | Tensor
    """One length for all, or (B,) int64."""

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return (1 if isinstance(self.length, int) else len(self.length), 1)

    def edges(self, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        length = self.length if isinstance(self.length, int) else self.length[b]
        return (t == t) & (s < length)

    def reach(self, start: int, stop: int, n_keys: int) -> tuple[int, int]:
        return 0, min(self.length, n_keys) if isinstance(self.length, int) else n_keys

    def intervals(self, n_queries: int, n_keys: int) -> tuple[Tensor, Tensor] | None:
        if isinstance(self.length, int):
            high = torch.full((1, n_queries), self.length)
        else:
            high = self.length.long()[:, None].expand(-1, n_queries)
        high = high.clamp(0, n_keys)
        return torch.zeros_like(high), high

    def blocks(self, queries: BlockEnds, keys: BlockEnds) -> tuple[Tensor, Tensor]:
        length = self.length if isinstance(self.length, int) else self.length[:, None, None, None]
        ends = (end.expand(1, 1, len(queries.first), -1) for end in (keys.first, keys.last))
        some, every = (end < length for end in ends)
        return some, every

    def check(self, B: int, H: int, T: int, S: int) -> None:
        if isinstance(self.length, int):
            if self.length < 0:
                raise UserError(f"prefix={self.length}: must be at least 0 tokens")
        elif self.length.shape != (B,):
            raise UserError(
                f"prefix has shape {tuple(self.length.shape)}: give one length, or one for each of {B} rows"
            )


@dataclass(frozen=True, eq=False)
class Documents(Graph):
    """Every token attends within its own document: a block-diagonal mask. Padding has id -1 and attends to nothing."""

    ids: Tensor
    """(T,) or (B, T): which document each token belongs to."""

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return (1 if self.ids.ndim == 1 else len(self.ids), 1)

    def edges(self, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        mine, theirs = (self.ids[t], self.ids[s]) if self.ids.ndim == 1 else (self.ids[b, t], self.ids[b, s])
        return (mine == theirs) & (mine >= 0)

    def reach(self, start: int, stop: int, n_keys: int) -> tuple[int, int]:
        # Shapes that depend on the ids would break a traced graph, and on a device they would be waited for.
        if torch.compiler.is_compiling() or self.ids.device.type != "cpu":
            return 0, n_keys
        # Keys whose id lies between the lowest and the highest of these queries: exact where ids ascend, as in packed
        # rows, and never too few.
        ids = self.ids.reshape(-1, n_keys)
        mine = ids[:, start:stop]
        lowest = mine.masked_fill(mine < 0, torch.iinfo(ids.dtype).max).amin(dim=1, keepdim=True)
        between = ((ids >= lowest) & (ids <= mine.amax(dim=1, keepdim=True))).any(dim=0).nonzero()
        return (int(between[0]), int(between[-1]) + 1) if len(between) else (0, 0)

    def intervals(self, n_queries: int, n_keys: int) -> tuple[Tensor, Tensor] | None:
        ids, index = self.ids.reshape(-1, n_keys), torch.arange(n_keys)
        begins = F.pad(ids[:, 1:] != ids[:, :-1], (1, 0), value=True)
        real = ids >= 0
        # A document is contiguous if it begins once, so that there are as many beginnings as different ids.
        by_id = ids.sort(dim=1).values
        is_new = F.pad(by_id[:, 1:] != by_id[:, :-1], (1, 0), value=True) & (by_id >= 0)
        if not torch.equal(is_new.sum(dim=1), (begins & real).sum(dim=1)):
            return None
        low = torch.where(begins, index, 0).cummax(dim=1).values
        following = F.pad(torch.where(begins, index, n_keys)[:, 1:], (0, 1), value=n_keys)
        return low, torch.where(real, following.flip(1).cummin(dim=1).values.flip(1), 0)

    def blocks(self, queries: BlockEnds, keys: BlockEnds) -> tuple[Tensor, Tensor]:
        # The lowest and highest ids: exact where ids ascend, as in packed rows.
        ids = queries.split(self.ids.reshape(-1, queries.n_tokens), -1)
        lowest, highest = ids.masked_fill(ids < 0, torch.iinfo(ids.dtype).max).amin(dim=-1), ids.amax(dim=-1)
        one = (ids.amin(dim=-1) == highest) & (highest >= 0)  # a block of one document, without padding
        some = (_pairs(lowest) <= highest[:, None, None]) & (lowest[:, None, None] <= _pairs(highest))
        return some, _pairs(one) & one[:, None, None] & (_pairs(highest) == highest[:, None, None])

    def check(self, B: int, H: int, T: int, S: int) -> None:
        whole = not self.ids.is_floating_point() and self.ids.dtype != torch.bool
        if tuple(self.ids.shape) not in {(T,), (B, T)} or T != S or not whole:
            raise UserError(
                f"documents is {tuple(self.ids.shape)} {str(self.ids.dtype).removeprefix('torch.')}: whole "
                f"numbers are needed for {T} tokens, as ({T},) or "
                f"({B}, {T})" + ("" if T == S else f"; there are {S} keys, but one document numbers both")
            )


@dataclass(frozen=True, eq=False)
class Padding(Graph):
    """No token attends to padding, and padding attends to nothing."""

    keys: Tensor
    """(B, S) bool: which keys are real."""
    queries: Tensor | None = None
    """(B, T) bool: which queries are; all when not given. For self-attention give the same twice."""

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return (len(self.keys), 1)

    def edges(self, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        is_key = self.keys[b, s]
        return is_key & (t == t) if self.queries is None else is_key & self.queries[b, t]

    def intervals(self, n_queries: int, n_keys: int) -> tuple[Tensor, Tensor] | None:
        index, n_real = torch.arange(n_keys), self.keys.sum(dim=1)
        low = torch.where(self.keys, index, n_keys).amin(dim=1)
        high = torch.where(self.keys, index + 1, 0).amax(dim=1)
        if not torch.equal((high - low).clamp(min=0), n_real):
            return None
        low, high = (x[:, None].expand(-1, n_queries) for x in (low, high))
        return low, high if self.queries is None else torch.where(self.queries, high, 0)

    def blocks(self, queries: BlockEnds, keys: BlockEnds) -> tuple[Tensor, Tensor]:
        real = keys.split(self.keys, False)
        some, every = (of.expand(-1, 1, len(queries.first), -1) for of in _any_and_all(real[:, None, None]))
        if self.queries is None:
            return some, every
        of_queries = _any_and_all(queries.split(self.queries, False)[:, None])
        return some & of_queries[0][..., None], every & of_queries[1][..., None]

    def check(self, B: int, H: int, T: int, S: int) -> None:
        for name, real, length in (("keys", self.keys, S), ("queries", self.queries, T)):
            if real is not None and (tuple(real.shape) != (B, length) or real.dtype != torch.bool):
                raise UserError(
                    f"padding of the {name} is {tuple(real.shape)} {str(real.dtype).removeprefix('torch.')}: "
                    f"give ({B}, {length}) bool, true where a token is real"
                )


@dataclass(frozen=True, eq=False)
class Adjacency(Graph):
    """Any mask, given as a matrix."""

    matrix: Tensor
    """(T, S), (B, T, S) or (B, H, T, S) bool; B and H may be 1."""

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return (
            self.matrix.shape[0] if self.matrix.ndim > 2 else 1,
            self.matrix.shape[1] if self.matrix.ndim == 4 else 1,
        )

    def edges(self, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        matrix = self.matrix.view(*self.shape, *self.matrix.shape[-2:])
        # FlexAttention asks for every row and head, `mask` only for those that differ: % folds both onto the matrix.
        return matrix[b % self.shape[0], h % self.shape[1], t, s]

    def mask(self, queries: range, keys: range, device: torch.device | str = "cpu") -> Tensor:
        matrix = self.matrix.view(*self.shape, *self.matrix.shape[-2:])
        return matrix[:, :, queries.start : queries.stop, keys.start : keys.stop]  # a view

    def blocks(self, queries: BlockEnds, keys: BlockEnds) -> tuple[Tensor, Tensor]:
        by_keys = keys.split(self.matrix.view(*self.shape, *self.matrix.shape[-2:]), False)  # (B, H, T, n_keys, size)
        of_rows = _any_and_all(by_keys)
        return tuple(_any_and_all(queries.split(of.mT, False))[n].mT for n, of in enumerate(of_rows))  # type: ignore[return-value]

    def check(self, B: int, H: int, T: int, S: int) -> None:
        matrix = self.matrix
        fits = 2 <= matrix.ndim <= 4 and tuple(matrix.shape[-2:]) == (T, S) and matrix.dtype == torch.bool
        if not fits or self.shape[0] not in {1, B} or self.shape[1] not in {1, H}:
            raise UserError(
                f"adjacency is {tuple(matrix.shape)} {str(matrix.dtype).removeprefix('torch.')}: give a bool matrix "
                f"({T}, {S}), ({B}, {T}, {S}) or ({B}, {H}, {T}, {S}), a row for each query"
            )


@dataclass(frozen=True)
class _Pair(Graph):
    first: Graph
    second: Graph

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        (b1, h1), (b2, h2) = self.first.shape, self.second.shape
        return max(b1, b2), max(h1, h2)

    def check(self, B: int, H: int, T: int, S: int) -> None:
        self.first.check(B, H, T, S)
        self.second.check(B, H, T, S)

    def _of(self, first: Graph, second: Graph) -> Graph:
        is_same = first is self.first and second is self.second
        return self if is_same else dataclasses.replace(self, first=first, second=second)


class Both(_Pair):
    """The intersection of two graphs; written `first & second`."""

    @property
    def reflexive(self) -> bool:  # type: ignore[override]
        return self.first.reflexive and self.second.reflexive

    def edges(self, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.first.edges(b, h, t, s) & self.second.edges(b, h, t, s)

    def reach(self, start: int, stop: int, n_keys: int) -> tuple[int, int]:
        (low1, high1), (low2, high2) = self.first.reach(start, stop, n_keys), self.second.reach(start, stop, n_keys)
        return max(low1, low2), min(high1, high2)

    def intervals(self, n_queries: int, n_keys: int) -> tuple[Tensor, Tensor] | None:
        first, second = self.first.intervals(n_queries, n_keys), self.second.intervals(n_queries, n_keys)
        if first is None or second is None:
            return None
        return torch.maximum(first[0], second[0]), torch.minimum(first[1], second[1])

    def blocks(self, queries: BlockEnds, keys: BlockEnds) -> tuple[Tensor, Tensor]:
        (some1, every1), (some2, every2) = self.first.blocks(queries, keys), self.second.blocks(queries, keys)
        return some1 & some2, every1 & every2

    def reduced(self, n_queries: int, n_keys: int) -> Graph:
        first, second = self.first.reduced(n_queries, n_keys), self.second.reduced(n_queries, n_keys)
        if isinstance(first, Full) or first == second:
            return second
        return first if isinstance(second, Full) else self._of(first, second)


class Either(_Pair):
    """The union of two graphs; written `first | second`."""

    @property
    def reflexive(self) -> bool:  # type: ignore[override]
        return self.first.reflexive or self.second.reflexive

    def edges(self, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.first.edges(b, h, t, s) | self.second.edges(b, h, t, s)

    def reach(self, start: int, stop: int, n_keys: int) -> tuple[int, int]:
        (low1, high1), (low2, high2) = self.first.reach(start, stop, n_keys), self.second.reach(start, stop, n_keys)
        return min(low1, low2), max(high1, high2)

    def intervals(self, n_queries: int, n_keys: int) -> tuple[Tensor, Tensor] | None:
        first, second = self.first.intervals(n_queries, n_keys), self.second.intervals(n_queries, n_keys)
        if first is None or second is None:
            return None
        (low1, high1), (low2, high2) = first, second
        none1, none2 = high1 <= low1, high2 <= low2
        # Two ranges are one only if they overlap or touch.
        if not bool((none1 | none2 | (torch.maximum(low1, low2) <= torch.minimum(high1, high2))).all()):
            return None
        low = torch.where(none1, low2, torch.where(none2, low1, torch.minimum(low1, low2)))
        return low, torch.where(none1, high2, torch.where(none2, high1, torch.maximum(high1, high2)))

    def blocks(self, queries: BlockEnds, keys: BlockEnds) -> tuple[Tensor, Tensor]:
        (some1, every1), (some2, every2) = self.first.blocks(queries, keys), self.second.blocks(queries, keys)
        return some1 | some2, every1 | every2

    def reduced(self, n_queries: int, n_keys: int) -> Graph:
        first, second = self.first.reduced(n_queries, n_keys), self.second.reduced(n_queries, n_keys)
        if isinstance(first, Full) or isinstance(second, Full):
            return Full()
        return first if first == second else self._of(first, second)


def _pairs(x: Tensor) -> Tensor:
    """(B, n) or (n,) of blocks of queries -> (B or 1, 1, n, 1), to be paired with blocks of keys."""
    return x.reshape(-1, 1, x.shape[-1], 1)


def _any_and_all(blocks: Tensor) -> tuple[Tensor, Tensor]:
    return blocks.any(dim=-1), blocks.all(dim=-1)
