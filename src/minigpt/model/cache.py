"""What a model keeps of the tokens that it has read, so that the next one costs a token and not a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.config import GPTConfig


class KVCache:
    """Keys and values of each layer, in memory that is taken once; grouped heads are kept once.

    Rows are filled from the left and all to the same place, which `position` says. It is moved by whoever runs the
    model, never by a layer: moving it back takes tokens away again. Linear attention along the causal graph keeps a sum
    instead of keys and values (Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236), which cannot go back.
    Gradients flow through what is kept, as they would without a cache, at the price of a copy for each call; under
    torch.no_grad new keys and values are written in place.
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
        """Take the memory.

        Args:
            config: of the model.
            n_rows: texts side by side.
            n_tokens: the most that each may have.
            dtype: of the keys and values.
            device: where the model is.
        """
        self.position = 0
        """Tokens read so far, padding included."""
        self.texts: Tensor | None = None
        """(B, n_tokens) number of the text of each token, -1 for padding; None while each row is one text."""
        self.n_tokens = n_tokens
        self.layers = []
        for window in config.windows:
            summed = config.similarity == "linear" and window is None and not config.document_mask
            shape = (n_rows, config.kv_heads, 0 if summed else n_tokens, config.width_per_head)
            key, value = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
            self.layers.append(LayerCache(self, key, value, summed=summed))

    @property
    def n_rows(self) -> int:
        """Texts side by side."""
        return len(self.layers[0].key)

    def number_texts(self, texts: Tensor) -> Tensor:
        """Note which text each of the new tokens (B, T) belongs to; returns that of all so far, (B, position + T)."""
        start, stop = self.position, self.position + texts.shape[1]
        if self.texts is None:
            self.texts = texts.new_zeros(len(texts), self.n_tokens)
        self.texts[:, start:stop] = texts
        return self.texts[:, :stop]

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows only; one that is named several times is copied."""
        index = torch.tensor(rows, device=self.layers[0].key.device)
        if self.texts is not None:
            self.texts = self.texts[index]
        for layer in self.layers:
            layer.key, layer.value = layer.key[index], layer.value[index]
            layer.state = None if layer.state is None else layer.state[index]


class LayerCache:
    """The part of one layer."""

    def __init__(self, whole: KVCache, key: Tensor, value: Tensor, *, summed: bool) -> None:
        self.whole, self.key, self.value, self.summed = whole, key, value, summed
        self.state: Tensor | None = None
        """(B, H, D, D_v + 1), where sums are kept; None before the first token."""

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add new tokens' (B, H_kv, T, D); returns those of all so far, (B, H_kv, position + T, D)."""
        start, stop = self.whole.position, self.whole.position + key.shape[2]
        self.key, self.value = _replaced(self.key, key, start), _replaced(self.value, value, start)
        return self.key[:, :, :stop], self.value[:, :, :stop]

    def real(self, n_new: int) -> Tensor | None:
        """(B, T) which of the new tokens are no padding; None where all are."""
        texts, start = self.whole.texts, self.whole.position
        return None if texts is None else texts[:, start : start + n_new] >= 0


def _replaced(all_: Tensor, new: Tensor, start: int) -> Tensor:
    """(B, H, S, D) with the (B, H, T, D) new ones at `start`: in place, but where gradients flow through either."""
    stop = start + new.shape[2]
    if all_.requires_grad or new.requires_grad:  # autograd keeps the old ones for the backward pass
        with torch.enable_grad():
            return torch.cat([all_[:, :, :start], new.to(all_.dtype), all_[:, :, stop:]], dim=2)
    all_[:, :, start:stop] = new
    return all_
