"""Decoding on a CPU: the forward pass of a few new tokens with a KV cache, in numpy.

On a CPU, decoding is bound by memory bandwidth for large models and by call overhead for small ones. PyTorch loses at
both: its operations cost some five times numpy's to call, and the MKL of its CPU builds multiplies one vector at about
half the speed of numpy's OpenBLAS on AMD processors (benchmarks/results/generation_cpu.md). So the usual models are
decoded here and all others by `GPT`, which the tests compare this with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.errors import UserError
from minigpt.generation.cpu_products import (
    Array,
    Forms,
    Function,
    Product,
    product_of,
    product_of_int8,
    threads_for,
)
from minigpt.generation.plain import difference
from minigpt.model.cache import KVCache
from minigpt.model.gpt import GELUMLP, GPT, Block, ExactGELUMLP, SwiGLUMLP
from minigpt.model.variants.similarities import ScaledDot

Integers = npt.NDArray[np.int64]

MOST_TOKENS = 64
"""New tokens, over all rows, up to which this is faster than PyTorch."""

COLUMNS_PAY_FROM = 32
"""New tokens from which a column-major copy of the matrices saves more time than making it costs."""

KEPT = 100_000_000
"""Bytes of a model up to which its column-major copies are cached between texts: for a small model, making them takes
nearly as long as generating a text."""


def can_decode(model: GPT) -> bool:
    """Whether `CPUDecode` supports a model."""
    return obstacle(model) is None


def obstacle(model: GPT) -> str | None:
    """Why `CPUDecode` does not support a model; None where it does."""
    if why := difference(model):
        return why
    weight, config = model.token_embedding.weight, model.config
    if weight.dtype is not torch.float32:
        return f"the weights are {str(weight.dtype).removeprefix('torch.')}, not float32"
    if config.similarity != "scaled_dot" or config.document_mask:
        return f"the model has similarity={config.similarity}, document_mask={config.document_mask}"
    if config.block != "pre_norm" or not config.qk_norm_per_head:
        return f"the model has block={config.block}, qk_norm_per_head={str(config.qk_norm_per_head).lower()}"
    if any(type(block.mlp) not in _MLPS for block in model.blocks):
        return f"the model has mlp={config.mlp}"
    return None


_COLUMNS: WeakKeyDictionary[GPT, Forms] = WeakKeyDictionary()
"""Column-major matrices of small models, cached between texts."""


class CPUDecode:
    """numpy decoder of a model: shares the model's weights, or holds column-major or int8 copies."""

    def __init__(self, model: GPT, *, int8: bool = False, n_tokens: int = 0) -> None:
        """Read the weights.

        Args:
            model: supported, see `can_decode`.
            int8: quantize the matrices to int8: a quarter of the memory traffic.
            n_tokens: expected decode steps. From COLUMNS_PAY_FROM, matrices are copied column-major.
        """
        self.model, self.int8, self.n_tokens = model, int8, n_tokens
        n_bytes = sum(parameter.nbytes for parameter in model.parameters())
        self._forms = _COLUMNS.setdefault(model, Forms()) if not int8 and n_bytes <= KEPT else Forms()
        self._read()

    def ready(self) -> bool:
        """Read the weights again, as they may have changed.

        Raises:
            UserError: the model has been modified so that int8 would ignore it.
        """
        why = obstacle(self.model)
        if why and self.int8:
            raise UserError(f"int8: {why}, which the int8 copy of the weights ignores; load the model without int8")
        if not why:
            self._read()
        return why is None

    def _read(self) -> None:
        model, config = self.model, self.model.config
        if self.int8:
            product: Product = partial(product_of_int8, forms=self._forms)
        else:
            product = partial(product_of, by_columns=self._forms if self.n_tokens >= COLUMNS_PAY_FROM else None)
        head = model.head_weight[: config.vocab_size]
        self.head = product(array(head), None)
        self.embedding = array(model.token_embedding.weight)
        absolute = model.position_embedding.weight if config.position == "learned" else model.sinusoidal
        self.absolute = None if absolute is None else array(absolute)
        self.rotary = None if model.rotary is None else array(model.rotary)
        self.final_norm = _norm(model.final_norm)
        slopes = None if model.slopes is None else array(model.slopes)
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        windows = zip(blocks, config.windows, strict=True)
        self.blocks = [_Block(block, window, slopes, product) for block, window in windows]
        # 0 keeps OpenBLAS to one thread: int8 products have threads of their own, and the two would compete.
        self.head_bytes = 0 if self.int8 else head.nbytes
        sizes = (parameter.nbytes for block in blocks for parameter in block.parameters())
        self.block_bytes = 0 if self.int8 else max(sizes)
        self._forms.renew()

    def takes(self, tokens: Tensor, document_ids: Tensor | None) -> bool:
        """Whether to read these (B, T) tokens here rather than in the model; arguments as for `hidden`."""
        return self.int8 or (document_ids is None and tokens.numel() <= MOST_TOKENS)

    def hidden(self, tokens: Tensor, document_ids: Tensor | None, cache: KVCache) -> Tensor:
        """(B, T) tokens after the cached ones -> (B, T, C), as `GPT.hidden`; texts only mark padding."""
        start, T = cache.position, tokens.shape[1]
        if document_ids is None and cache.document_ids is not None:
            document_ids = torch.zeros_like(tokens)
        n_padding = None if document_ids is None else (cache.extend_document_ids(document_ids) < 0).sum(1).numpy()
        positions = np.arange(start, start + T)[None]  # (B or 1, T)
        if n_padding is not None:
            positions = np.maximum(positions - n_padding[:, None], 0)
        x = self.embedding[tokens.numpy()]  # (B, T, C)
        if self.absolute is not None:
            x = x + self.absolute[positions]
        rotary = None if self.rotary is None else self.rotary[:, positions, None]  # (2, B or 1, T, 1, D)
        # exp may overflow to inf in SiLU and GELU: x / (1 + inf) is then 0, which is correct.
        with threads_for(self.block_bytes), np.errstate(over="ignore"):
            for block, layer in zip(self.blocks, cache.layers, strict=True):
                x = block(x, rotary, layer.key.numpy(), layer.value.numpy(), start, n_padding)
        return torch.from_numpy(self.final_norm(x))

    def logits(self, x: Tensor) -> Tensor:
        """(B, T, C) of `hidden` -> (B, T, V)."""
        B, T, C = x.shape
        with threads_for(self.head_bytes):
            return torch.from_numpy(self.head(x.numpy().reshape(B * T, C))).view(B, T, -1)


class _Block:
    """numpy version of `gpt.Block`."""

    def __init__(self, block: Block, window: int | None, slopes: Array | None, product: Product) -> None:
        attn = block.attn
        assert isinstance(attn.similarity, ScaledDot)
        self.attn_norm, self.mlp_norm = _norm(block.attn_norm), _norm(block.mlp_norm)
        self.q_norm, self.k_norm = _norm(attn.q_norm), _norm(attn.k_norm)
        self.qkv, self.proj = _linear(attn.qkv, product), _linear(attn.proj, product)
        self.mlp = _MLPS[type(block.mlp)](block.mlp, product)
        self.n_projected, self.head_dim = attn.n_projected, attn.head_dim
        self.scale = 1 / (attn.head_dim**0.5 * attn.similarity.temperature)
        self.softcap, self.window, self.slopes = attn.softcap, window, slopes

    def __call__(
        self, x: Array, rotary: Array | None, keys: Array, values: Array, start: int, n_padding: Integers | None
    ) -> Array:
        """(B, T, C) -> (B, T, C); keys and values are the cache's (B, H_kv, S, D), filled up to `start`."""
        B, T, C = x.shape
        n_query, n_key, _ = self.n_projected
        x = x.reshape(B * T, C)
        heads = self.qkv(self.attn_norm(x)).reshape(B, T, -1, self.head_dim)
        query, key = self.q_norm(heads[:, :, :n_query]), self.k_norm(heads[:, :, n_query : n_query + n_key])
        if rotary is not None:
            query, key = _rotate(query, rotary), _rotate(key, rotary)
        stop = start + T
        keys[:, :, start:stop] = key.swapaxes(1, 2)
        values[:, :, start:stop] = heads[:, :, n_query + n_key :].swapaxes(1, 2)
        gathered = self._attend(query, keys[:, :, :stop], values[:, :, :stop], n_padding)
        x = x + self.proj(gathered.reshape(B * T, -1))
        return (x + self.mlp(self.mlp_norm(x))).reshape(B, T, C)

    def _attend(self, query: Array, keys: Array, values: Array, n_padding: Integers | None) -> Array:
        """`variants.attend.attend` for the last T of S tokens: (B, T, H, D), (B, H_kv, S, D) twice -> (B, T, H, D)."""
        (B, T, H, D), (H_kv, S) = query.shape, keys.shape[1:3]
        if T == 1 and self.window is not None and S > self.window:
            keys, values = keys[:, :, -self.window :], values[:, :, -self.window :]
        first, n_keys = S - keys.shape[2], keys.shape[2]
        # Grouped-query attention: the G query heads of one key head become rows, (B, H_kv, G T, D).
        grouped = query.swapaxes(1, 2).reshape(B, H_kv, -1, D)
        scores = (grouped @ keys.swapaxes(2, 3)).reshape(B, H, T, n_keys)
        scores *= self.scale
        if self.softcap is not None:
            scores = self.softcap * np.tanh(scores / self.softcap)
        if self.slopes is not None:
            scores = scores + self.slopes[:, None, None] * np.arange(first, S, dtype=np.float32)
        mask = self._edges(T, first, S, n_padding)
        if mask is not None:
            scores = np.where(mask, scores, np.float32(-np.inf))
        scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
        weights = np.exp(scores, out=scores)
        weights /= np.add.reduce(weights, axis=-1, keepdims=True)
        gathered = weights.reshape(B, H_kv, -1, n_keys) @ values
        return gathered.reshape(B, H, T, D).swapaxes(1, 2)

    def _edges(self, T: int, first: int, S: int, n_padding: Integers | None) -> npt.NDArray[np.bool_] | None:
        """(B or 1, 1, T, n_keys) attention mask; padding attends to itself. None if every query attends to all keys."""
        if T == 1 and n_padding is None:
            return None
        keys, queries = np.arange(first, S), np.arange(S - T, S)[:, None]
        edges = keys <= queries
        if self.window is not None:
            edges &= keys > queries - self.window
        if n_padding is None:
            return edges[None, None]
        return (edges & (keys >= n_padding[:, None, None, None])) | (keys == queries)


def _rotate(x: Array, table: Array) -> Array:
    """`attention.rotate` of (B, T, H, D)."""
    (cos, sin), half = table, x.shape[-1] // 2
    turned = np.concatenate([x[..., half:], x[..., :half]], axis=-1)
    turned *= sin
    turned += x * cos
    return turned


def array(tensor: Tensor) -> Array:
    return tensor.detach().numpy()


def _linear(layer: nn.Linear, product: Product) -> Function:
    return product(array(layer.weight), None if layer.bias is None else array(layer.bias))


def _norm(module: nn.Module) -> Function:
    """numpy version of the model's RMSNorm or LayerNorm, or the identity."""
    if isinstance(module, nn.Identity):
        return lambda x: x
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    assert module.eps is not None
    weight, eps, C = array(module.weight), module.eps, module.weight.shape[0]
    mean = np.full(C, 1 / C, dtype=np.float32) if isinstance(module, nn.LayerNorm) else None
    bias = array(module.bias) if isinstance(module, nn.LayerNorm) and module.bias is not None else None

    def norm(x: Array) -> Array:
        if x.size == C:  # one vector: its sums are scalars, faster in Python than in numpy
            flat = x.reshape(C)
            if mean is not None:
                flat = flat - flat.dot(mean)
            x = (flat / math.sqrt(flat.dot(flat) / C + eps)).reshape(x.shape)
        else:
            if mean is not None:
                x = x - (x @ mean)[..., None]
            x = x / np.sqrt(np.vecdot(x, x) / C + eps)[..., None]
        x *= weight
        if bias is not None:
            x += bias
        return x

    return norm


def _gelu(mlp: GELUMLP, product: Product) -> Function:
    up, proj = _linear(mlp.up, product), _linear(mlp.proj, product)

    def forward(x: Array) -> Array:
        h = up(x)
        inner = h * h
        inner *= -0.0713548162
        inner -= 1.5957691216
        inner *= h  # -2 sqrt(2 / pi) (h + 0.044715 h^3), as (1 + tanh(y)) / 2 = 1 / (1 + exp(-2 y))
        divisor: Array = np.exp(inner, out=inner)
        divisor += 1
        return proj(h / divisor)

    return forward


def _gelu_exact(mlp: ExactGELUMLP, product: Product) -> Function:
    up, proj = _linear(mlp.up, product), _linear(mlp.proj, product)
    return lambda x: proj(F.gelu(torch.from_numpy(up(x))).numpy())  # numpy has no error function


def _swiglu(mlp: SwiGLUMLP, product: Product) -> Function:
    gate_up, proj = _linear(mlp.gate_up, product), _linear(mlp.proj, product)
    width = mlp.proj.in_features

    def forward(x: Array) -> Array:
        both = gate_up(x)
        gate, up = both[:, :width], both[:, width:]
        divisor: Array = np.exp(-gate)
        divisor += 1
        return proj(gate / divisor * up)

    return forward


_MLPS: dict[Any, Callable[[Any, Product], Function]] = {GELUMLP: _gelu, ExactGELUMLP: _gelu_exact, SwiGLUMLP: _swiglu}
