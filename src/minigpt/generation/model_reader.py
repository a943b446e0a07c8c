"""Readers that are the model itself: in PyTorch as it is, or with decode steps of one shape.

A step of one shape, whatever the position, is one program of torch.compile and one CUDA graph. gpt-fast decodes so too
(https://github.com/meta-pytorch/gpt-fast).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.generation.device_sampling import DeviceSampler
from minigpt.generation.plain import changes_forward, intervention
from minigpt.model.cache import KVCache, LayerCache
from minigpt.model.compiling import CompiledWithFallback
from minigpt.model.gpt import GPT
from minigpt.model.variants.graphs import Adjacency

NO_DOCUMENT = -1
"""Document id of padding."""
AHEAD = 8
"""Tokens that a GPU draws for one wait: at 200 tokens a second, text still appears 25 times a second."""
MIN_CACHE = 64
"""Tokens in the smallest cache of `StaticDecode`; others hold powers of two, so that few lengths occur."""


def reader_of_torch(model: GPT) -> ModelReader:
    """`StaticDecode` on an NVIDIA GPU, else the model as it is.

    Args: model in eval mode.
    """
    if model.token_embedding.weight.is_cuda and isinstance(model, GPT) and StaticDecode(model).ready():
        return StaticDecode(model)
    return ModelReader(model)


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


class StaticCache(KVCache):
    """A cache that a decode step reads whole, masked, instead of up to the position."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for layer in self.layers:  # a weight of 0 does not undo a NaN in memory that nothing was written to
            layer.key.zero_()
            layer.value.zero_()
        self.begins: Tensor | None = None
        """(B,) int64: the first token of each row's last document; None if it is to be found in `document_ids`."""
        self.steps: _Steps | None = None

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        self.begins = self.steps = None

    def find_begins(self) -> Tensor:
        """`begins`, found if need be."""
        if self.begins is None:
            if self.document_ids is None:
                self.begins = torch.zeros(self.n_rows, dtype=torch.int64, device=self.layers[0].key.device)
            else:  # documents are contiguous, so what is of another one comes before
                ids = self.document_ids[:, : self.position]
                self.begins = (ids != ids[:, -1:]).sum(dim=1)
        return self.begins

    def store_begins(self) -> None:
        """Bring `document_ids` up to date after static steps, which do not write them."""
        if self.document_ids is not None and self.begins is not None:
            # New tokens are of the last document: what is before it need not be told from padding.
            index = torch.arange(self.n_tokens, device=self.begins.device)
            self.document_ids = torch.where(index < self.begins[:, None], NO_DOCUMENT, 0)
        self.begins = self.steps = None


class _StaticLayer(LayerCache):
    """A layer of a `StaticCache` in one decode step."""

    def __init__(self, key: Tensor, value: Tensor, state: Tensor | None, place: Tensor) -> None:
        self.key, self.value, self.state, self.place, self.summed = key, value, state, place, state is not None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new token's (B, H_kv, 1, D); returns all n_tokens, of which the mask hides the later ones."""
        if self.summed:
            return key, value
        self.key.index_copy_(2, self.place, key.to(self.key.dtype))
        self.value.index_copy_(2, self.place, value.to(self.value.dtype))
        return self.key, self.value

    def is_real(self, n_new: int) -> None:
        """No new token is padding."""


class StaticDecode(ModelReader):
    """The model with decode steps of one shape. On an NVIDIA GPU they are replayed as a CUDA graph, draws included."""

    def __init__(self, model: GPT) -> None:
        super().__init__(model)
        self._step_hidden: Any = self._hidden
        self.captures = self._device.type == "cuda"
        """Whether to make CUDA graphs; False once that has failed."""

    def ready(self) -> bool:
        """False where the model has hooks: neither compiled code nor a CUDA graph runs them. Other changes count."""
        return intervention(self.model) is None and not changes_forward(self.model)

    @property
    def ahead(self) -> int:
        """Number of tokens that `draw_ahead` should draw at once; 0 where the loop should draw."""
        # A float cumsum has no deterministic kernel on CUDA. Apple GPUs have no float64, and would draw other tokens.
        is_exact = torch.are_deterministic_algorithms_enabled()
        return AHEAD if self._device.type == "cuda" and not is_exact else 0

    def new_cache(self, n_rows: int, n_tokens: int) -> StaticCache:
        """A cache of `n_tokens` or more."""
        length = max(MIN_CACHE, 1 << (n_tokens - 1).bit_length())
        n_tokens = max(n_tokens, min(self.config.context_length, length))
        return StaticCache(self.config, n_rows, n_tokens, dtype=self._dtype, device=self._device)

    def _logits(self, tokens: Tensor, document_ids: Tensor | None, cache: Any, n_wanted: int) -> Tensor:
        # Prompts and drafts are read without compiling, since each new length would compile again.
        if tokens.shape[1] > 1 or not cache.position:
            cache.store_begins()
            return super()._logits(tokens, document_ids, cache, n_wanted)
        cache.steps = None  # which would go on from another token
        place = torch.tensor([cache.position], device=self._device)
        return self.model.logits(self.hidden(tokens, place, cache))

    def hidden(self, tokens: Tensor, place: Tensor, cache: StaticCache) -> Tensor:
        """The model's `hidden` for one more token of each row, (B, 1, C), as one program for all positions.

        Args:
            tokens: (B, 1).
            place: (1,) int64, the cache's position, on the device.
            cache: at least one token long.
        """
        layers = [[getattr(layer, name) for layer in cache.layers] for name in ("key", "value", "state")]
        hidden: Tensor = self._step_hidden(tokens, place, cache.find_begins(), *layers)
        return hidden

    def _hidden(
        self,
        tokens: Tensor,
        place: Tensor,
        begins: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        states: Sequence[Tensor | None],
    ) -> Tensor:
        # Tensors only: torch.compile would make a program for each number that it finds in an object.
        model, config = self.model, self.config
        if config.document_mask:  # an end-of-text token begins the document after it
            begins.copy_(torch.where(tokens[:, 0].eq(config.end_of_text or 0), place, begins))
        layers = [_StaticLayer(*each, place) for each in zip(keys, values, states, strict=True)]
        n_tokens = {window: key.shape[2] for window, key in zip(model.windows, keys, strict=True)}
        graphs = {window: _newest(place, begins, window, n) for window, n in n_tokens.items()}
        key_bias = None if model.slopes is None else model.key_bias(max(n_tokens.values()))
        hidden = model.through_blocks(tokens, (place - begins)[:, None], graphs, key_bias, layers)
        for state, layer in zip(states, layers, strict=True):
            if state is not None and layer.state is not None:
                state.copy_(layer.state)
        return hidden

    @torch.inference_mode()
    def draw_ahead(
        self,
        texts: Sequence[Sequence[int]],
        cache: StaticCache,
        uniform: npt.NDArray[np.float64],
        config: GenerationConfig,
    ) -> npt.NDArray[np.float64]:
        """Read the last token of each text, draw one, read it, and so on: n times, with one wait for the device.

        Args:
            texts: B rows of tokens, of which the cache holds all but the last.
            cache: with room for n tokens; the caller moves its position.
            uniform: (B, n) numbers to draw with.
            config: the filters; min_new_tokens has been reached.

        Returns:
            (n, 3, B): see `DeviceSampler.draw`.
        """
        if cache.steps is None:
            cache.steps = _Steps(self, cache, DeviceSampler(config, self.config.vocab_size or 0, texts, self._device))
        return cache.steps.run([text[-1] for text in texts], uniform)


class CompiledDecode(StaticDecode):
    """The same with the step compiled by torch.compile.

    One program serves a batch of one and one all others, whatever the position; a cache of another length, of which
    there are few, may take a further one.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__(model)
        self._step_hidden = CompiledWithFallback(self._hidden, dynamic=True)


class _Steps:
    """Decode steps of one cache that stay on the device, from the token read to the token drawn."""

    def __init__(self, reader: StaticDecode, cache: StaticCache, sampler: DeviceSampler) -> None:
        self._reader, self._cache, self._sampler = reader, cache, sampler
        device, B = cache.layers[0].key.device, cache.n_rows
        # Of fixed address, as a CUDA graph reads and writes them again with each replay.
        self._tokens = torch.zeros(B, 1, dtype=torch.int64, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._uniform = torch.zeros(B, dtype=torch.float64, device=device)
        self._found = torch.zeros(3, B, dtype=torch.float64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._has_run = False

    def run(self, tokens: Sequence[int], uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(n, 3, B); uniform: (B, n)."""
        given = np.column_stack([tokens, np.full(len(tokens), self._cache.position), uniform])
        sent = torch.from_numpy(given).to(self._tokens.device)  # in one copy
        self._tokens.copy_(sent[:, :1])
        self._place.copy_(sent[0, 1:2])
        if self._has_run and self._graph is None and self._reader.captures and not torch.is_autocast_enabled("cuda"):
            self._capture()  # not at first: short texts do without, and the first steps load and compile kernels
        found = []
        for i in range(uniform.shape[1]):
            self._uniform.copy_(sent[:, 2 + i])
            if self._graph is None:
                self._step()
            else:
                self._graph.replay()
            found.append(self._found.clone())
        self._has_run = True
        drawn: npt.NDArray[np.float64] = torch.stack(found).cpu().numpy()
        return drawn

    def _step(self) -> None:
        reader = self._reader
        logits = reader.model.logits(reader.hidden(self._tokens, self._place, self._cache))
        self._found.copy_(self._sampler.draw(logits[:, -1].float(), self._uniform))
        self._tokens.copy_(self._found[0, :, None])
        self._place.add_(1)

    def _capture(self) -> None:
        try:
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as the one that pins batches, may go on using the device.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step()
            self._graph = graph
        except Exception as error:
            self._reader.captures = False
            warnings.warn(f"no CUDA graph could be made ({error}); decoding step by step", stacklevel=2)


def _newest(place: Tensor, begins: Tensor, window: int | None, n_tokens: int) -> Adjacency:
    """The attention mask of the token at `place`: its document so far, or the window's part of it."""
    index = torch.arange(n_tokens, device=place.device)
    mask = (index <= place) & (index >= begins[:, None])
    if window is not None:
        mask = mask & (index > place - window)
    return Adjacency(mask[:, None, None])  # (B, 1, 1, S)
