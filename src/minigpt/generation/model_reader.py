"""Readers that are the model itself: in PyTorch as it is, or with compiled decode steps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minigpt.generation.plain import changes_forward, intervention
from minigpt.model.cache import KVCache
from minigpt.model.compiling import CompiledWithFallback
from minigpt.model.gpt import GPT

NO_DOCUMENT = -1
"""Document id of padding."""


class ModelReader:
    """The model, on its device, whatever has been changed in it."""

    def __init__(self, model: GPT) -> None:
        """Args: model in eval mode."""
        self.model, self.config = model, model.config
        weight = model.token_embedding.weight
        self._device, self._dtype = weight.device, weight.dtype
        self._calls_forward = changes_forward(model)

    def ready(self) -> bool:
        return True

    def new_cache(self, n_rows: int, n_tokens: int) -> KVCache:
        return KVCache(self.config, n_rows, n_tokens, dtype=self._dtype, device=self._device)

    @torch.inference_mode()
    def read(
        self,
        tokens: npt.NDArray[np.int64],
        cache: KVCache,
        n_wanted: int = 1,
        n_padding: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """As `engine.Reader.read`."""
        given = torch.from_numpy(tokens).to(self._device)
        document_ids = None if n_padding is None else self._document_ids(given, n_padding)
        logits = self._logits(given, document_ids, cache, n_wanted)
        found: npt.NDArray[np.float32] = logits.float().cpu().numpy()
        return found

    def _logits(self, tokens: Tensor, document_ids: Tensor | None, cache: KVCache, n_wanted: int) -> Tensor:
        """(B, n_wanted, V)."""
        if self._calls_forward:
            logits: Tensor = self.model(tokens, document_ids, cache)
            return logits[:, -n_wanted:]
        return self.model.logits(self.model.hidden(tokens, document_ids, cache)[:, -n_wanted:])

    def _document_ids(self, tokens: Tensor, n_padding: npt.NDArray[np.int64]) -> Tensor:
        config, index = self.config, torch.arange(tokens.shape[1], device=self._device)
        padding = index < torch.from_numpy(n_padding).to(self._device)[:, None]
        ends = tokens.eq(config.end_of_text or 0) & ~padding if config.document_mask else torch.zeros_like(padding)
        return ends.cumsum(dim=1).masked_fill(padding, NO_DOCUMENT)


class CompiledDecode(ModelReader):
    """The model with decode steps compiled by torch.compile."""

    def __init__(self, model: GPT) -> None:
        super().__init__(model)
        self._hidden = CompiledWithFallback(model.hidden, dynamic=True)

    def ready(self) -> bool:
        """False where the model has hooks: compiled code does not check for new ones. Other changes recompile."""
        return intervention(self.model) is None

    def _logits(self, tokens: Tensor, document_ids: Tensor | None, cache: KVCache, n_wanted: int) -> Tensor:
        # Prompts are read uncompiled, since each new length would compile again.
        if tokens.shape[1] > 1 or document_ids is not None:
            return super()._logits(tokens, document_ids, cache, n_wanted)
        return self.model.logits(self._hidden(tokens, None, cache))
