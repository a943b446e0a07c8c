"""Conversions of single tensors to another program's layout and back: split, transpose, reorder, scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.errors import UserError


@dataclass(frozen=True)
class Layout:
    """A conversion and its inverse. A bias is converted like the rows of its weight."""

    pack: Callable[[GPTConfig, Tensor], Sequence[Tensor]]
    unpack: Callable[[GPTConfig, Sequence[Tensor]], Tensor]


def qkv_sizes(config: GPTConfig) -> list[int]:
    """Rows of queries, keys and values."""
    return [n * config.width_per_head for n in (config.n_head, config.kv_heads, config.kv_heads)]


def _by_head(config: GPTConfig, x: Tensor) -> Tensor:
    """GPT-NeoX' rows: query, key and value of the first head, then those of the second; (3 H D, ...) -> the same."""
    return x.unflatten(0, (3, config.n_head, -1)).transpose(0, 1).flatten(0, 2)


def _by_kind(config: GPTConfig, x: Tensor) -> Tensor:
    return x.unflatten(0, (config.n_head, 3, -1)).transpose(0, 1).flatten(0, 2)


def _transposed(x: Tensor) -> Tensor:
    return x.T if x.ndim == 2 else x


def _all_the_same(config: GPTConfig, tensors: Sequence[Tensor]) -> Tensor:
    if any(not torch.equal(tensor, tensors[0]) for tensor in tensors):
        raise UserError("the heads of a layer have different QK-norms; minigpt has one for all of them")
    return tensors[0]


SAME = Layout(lambda config, x: [x], lambda config, xs: xs[0])
TRANSPOSED = Layout(lambda config, x: [_transposed(x)], lambda config, xs: _transposed(xs[0]))  # GPT-2's Conv1D
SPLIT_QKV = Layout(lambda config, x: x.split(qkv_sizes(config)), lambda config, xs: torch.cat(list(xs)))
QKV_BY_HEAD = Layout(lambda config, x: [_by_head(config, x)], lambda config, xs: _by_kind(config, xs[0]))
HALVES = Layout(lambda config, x: x.chunk(2), lambda config, xs: torch.cat(list(xs)))  # gate, then up
FOR_EACH_HEAD = Layout(lambda config, x: [x] * config.n_head, _all_the_same)
FOR_EACH_KEY_HEAD = Layout(lambda config, x: [x] * config.kv_heads, _all_the_same)
# The Gemmas multiply by 1 + weight, and the embedding by sqrt(C).
LESS_ONE = Layout(lambda config, x: [x - 1], lambda config, xs: xs[0] + 1)
OVER_ROOT_WIDTH = Layout(lambda config, x: [x / config.n_embd**0.5], lambda config, xs: xs[0] * config.n_embd**0.5)
