"""The KV cache: keys and values of the tokens read so far, so that a decode step computes one token only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.config import GPTConfig


class KVCache:
    """Keys and values of each layer, (B, H_kv, n_tokens, D) twice, in preallocated memory.

    All rows are filled up to the same `position`. The generation loop advances it, not the layers; setting it back
    drops tokens, except from the sums of linear attention. Gradients flow through cached keys and values as without a
    cache, at the cost of a copy per call; under torch.no_grad new ones are written in place.
    """

    def __init__(
        self,
        config: GPTConfig,
        n_rows: int,
        n_tokens: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate the memory: 2 n_layer n_rows H_kv n_tokens D numbers.

        Args:
            config: of the model.
            n_rows: rows of the batch (B).
            n_tokens: maximum tokens per row, padding included. It may exceed the context if no document or run of
                padding does: positions count from where each of these begins.
            dtype: of keys and values.
            device: of the model.
        """
        # The loop advances the position, once for all layers: a layer cannot know whether it is the last.
        self.position = 0
        """Tokens read so far, padding included."""
        self.document_ids: Tensor | None = None
        """(B, n_tokens) document ids, -1 for padding; None while each row is one document without padding."""
        self.n_rows, self.n_tokens = n_rows, n_tokens
        self.layers = []
        for window in config.windows:
            # Linear attention on the causal graph is a recurrence (Katharopoulos et al. 2020, arXiv:2006.16236): a
            # running sum of fixed size holds all earlier tokens. Unlike stored keys, it cannot be rewound. A window or
            # a document mask needs the keys themselves.
            summed = config.similarity == "linear" and window is None and not config.document_mask
            # Only H_kv heads: query heads of a group share their keys. All n_tokens at once, since growing the tensors
            # by one token per step would copy the whole cache each time.
            shape = (n_rows, config.kv_heads, 0 if summed else n_tokens, config.width_per_head)
            key, value = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
            self.layers.append(LayerCache(self, key, value, summed=summed))

    @property
    def can_rewind(self) -> bool:
        """Whether setting the position back drops tokens: the sums of linear attention keep them."""
        return not any(layer.summed for layer in self.layers)

    def extend_document_ids(self, document_ids: Tensor) -> Tensor:
        """Store the document ids (B, T) of the new tokens; returns those of all tokens, (B, position + T)."""
        start, stop = self.position, self.position + document_ids.shape[1]
        if self.document_ids is None:  # earlier tokens, if there are any, are of document 0
            self.document_ids = document_ids.new_zeros(len(document_ids), self.n_tokens)
        self.document_ids[:, start:stop] = document_ids
        return self.document_ids[:, :stop]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; a repeated row is copied, so that samples share a prompt's prefill."""
        index = torch.tensor(rows, device=self.layers[0].key.device)
        self.n_rows = len(rows)
        if self.document_ids is not None:
            self.document_ids = self.document_ids[index]
        for layer in self.layers:
            layer.key, layer.value = layer.key[index], layer.value[index]
            layer.state = None if layer.state is None else layer.state[index]


class LayerCache:
    """Cache of one layer."""

    def __init__(self, cache: KVCache, key: Tensor, value: Tensor, *, summed: bool) -> None:
        self.cache, self.key, self.value, self.summed = cache, key, value, summed
        self.state: Tensor | None = None
        """(B, H, D, D_v + 1) running sum of linear attention; None before the first token, and for other layers."""

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H_kv, T, D) of the new tokens; returns all so far, (B, H_kv, position + T, D).

        A layer that keeps a running sum instead returns the new ones as they are.
        """
        if self.summed:
            return key, value
        start, stop = self.cache.position, self.cache.position + key.shape[2]
        self.key, self.value = _replaced(self.key, key, start), _replaced(self.value, value, start)
        return self.key[:, :, :stop], self.value[:, :, :stop]

    def is_real(self, n_new: int) -> Tensor | None:
        """(B, T) mask of the new tokens that are not padding; None if no document ids are stored."""
        document_ids, start = self.cache.document_ids, self.cache.position
        return None if document_ids is None else document_ids[:, start : start + n_new] >= 0


def _replaced(all_: Tensor, new: Tensor, start: int) -> Tensor:
    """(B, H, S, D) with the new (B, H, T, D) at `start`: in place, or a copy where gradients flow through either."""
    stop = start + new.shape[2]
    if all_.requires_grad or new.requires_grad:
        # Autograd needs the old values in the backward pass, so they must not be overwritten. Under no_grad, `cat`
        # would cut the cached tokens off their graph.
        with torch.enable_grad():
            return torch.cat([all_[:, :, :start], new.to(all_.dtype), all_[:, :, stop:]], dim=2)
    all_[:, :, start:stop] = new
    return all_
