"""Decoding on a CPU: the forward pass of a few new tokens with a KV cache, in numpy.

On a CPU, decoding is bound by memory bandwidth for large models and by call overhead for small ones. PyTorch loses at
both: its operations cost some five times numpy's to call, and the MKL of its CPU builds multiplies one vector at about
half the speed of numpy's OpenBLAS on AMD processors (benchmarks/results/generation_cpu.md). So the usual models are
decoded here and all others by `GPT`, which the tests compare this with. Torch, which takes longer to import than a
short text to generate, is imported only where a model of torch's is given or needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from minigpt.config import GPTConfig
from minigpt.errors import UserError
from minigpt.generation.cpu_products import Array, Forms, Function, Product, product_of, product_of_int8, threads_for
from minigpt.model.tables import position_tables
from minigpt.runs.stored import StoredModel

if TYPE_CHECKING:
    from minigpt.model.gpt import GPT

Integers = npt.NDArray[np.int64]
Parts = Mapping[str, Any]
"""Arrays and numbers of a model by their names in `GPT`."""

MOST_TOKENS = 64
"""New tokens, over all rows, up to which this is faster than PyTorch."""

CHUNK = 256
"""New tokens, over all rows, that are read at once, which bounds the memory of their scores."""

COLUMNS_PAY_FROM = 32
"""New tokens from which a column-major copy of the matrices saves more time than making it costs."""

KEPT = 100_000_000
"""Bytes of a model up to which its column-major copies are cached between texts: for a small model, making them takes
nearly as long as generating a text."""


def can_decode(model: GPT | StoredModel) -> bool:
    """Whether `CPUDecode` supports a model."""
    return obstacle(model) is None


def obstacle(model: GPT | StoredModel) -> str | None:
    """Why `CPUDecode` does not support a model; None where it does."""
    opened = _opened(model)
    if opened is not None:
        from minigpt.generation.plain import difference

        if why := difference(opened):
            return why
        dtype = str(opened.token_embedding.weight.dtype).removeprefix("torch.")
        if dtype != "float32":
            return f"the weights are {dtype}, not float32"
    return obstacle_in(model.config)


def obstacle_in(config: GPTConfig) -> str | None:
    """Why `CPUDecode` does not support unmodified models of a config; None where it does."""
    if config.similarity != "scaled_dot" or config.document_mask:
        return f"the model has similarity={config.similarity}, document_mask={config.document_mask}"
    if config.block != "pre_norm" or not config.qk_norm_per_head:
        return f"the model has block={config.block}, qk_norm_per_head={str(config.qk_norm_per_head).lower()}"
    return None if config.mlp in _MLPS else f"the model has mlp={config.mlp}"


def _opened(model: GPT | StoredModel) -> GPT | None:
    """The model of torch, whose hooks and changed weights count, if there is one."""
    return model.opened if isinstance(model, StoredModel) else model


def _parts(model: GPT | StoredModel) -> Parts:
    """The weights, position tables and numbers of a model as they are now."""
    numbers = _numbers(model.config)
    weights = model.weights if isinstance(model, StoredModel) else {}  # first: opening the model drops them
    opened = _opened(model)
    if opened is None:
        return {**numbers, **weights, **position_tables(model.config)}
    tensors = {**dict(opened.named_parameters()), **dict(opened.named_buffers())}
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    if "slopes" in arrays:
        arrays["slopes"] = arrays["slopes"].view(np.float32)
    return arrays | {name: attrgetter(name)(opened) for name in numbers}


def _numbers(config: GPTConfig) -> dict[str, Any]:
    """What parts of a `GPT` hold besides tensors, by attribute: users may change it in a model."""
    found: dict[str, Any] = {"final_norm.eps": config.eps, "config.norm": config.norm}
    for i in range(config.n_layer):
        found |= {
            f"blocks.{i}.attn.n_projected": [config.n_head, config.kv_heads, config.kv_heads],
            f"blocks.{i}.attn.head_dim": config.width_per_head,
            f"blocks.{i}.attn.softcap": config.logit_softcap,
            f"blocks.{i}.attn.similarity.temperature": config.softmax_temperature,
        }
        norms = ["attn_norm", "mlp_norm", *(["attn.q_norm", "attn.k_norm"] if config.qk_norm else [])]
        found |= {f"blocks.{i}.{norm}.eps": config.eps for norm in norms}
    return found


_COLUMNS: WeakKeyDictionary[GPT | StoredModel, Forms] = WeakKeyDictionary()
"""Column-major matrices of small models, cached between texts."""


class ArrayCache:
    """`KVCache` in numpy, for models without document mask."""

    can_rewind = True

    def __init__(self, config: GPTConfig, n_rows: int, n_tokens: int) -> None:
        """Args: as for `KVCache`."""
        shape = (n_rows, config.kv_heads, n_tokens, config.width_per_head)
        self.position, self.n_tokens = 0, n_tokens
        self.layers = [[np.empty(shape, dtype=np.float32) for _ in range(2)] for _ in range(config.n_layer)]
        """Keys and values of each layer, (B, H_kv, n_tokens, D) each."""
        self.n_padding: Integers | None = None
        """(B,) tokens of padding at each row's beginning; None for none at all."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; a repeated row is copied."""
        index = np.array(rows)
        self.layers = [[array[index] for array in layer] for layer in self.layers]
        self.n_padding = None if self.n_padding is None else self.n_padding[index]


class CPUDecode:
    """numpy decoder of a model: shares the model's weights, or holds column-major or int8 copies."""

    def __init__(self, model: GPT | StoredModel, *, int8: bool = False, n_tokens: int = 0) -> None:
        """Read the weights.

        Args:
            model: supported, see `can_decode`.
            int8: quantize the matrices to int8: a quarter of the memory traffic.
            n_tokens: expected decode steps. From COLUMNS_PAY_FROM, matrices are copied column-major.
        """
        self.model, self.config, self.int8, self.n_tokens = model, model.config, int8, n_tokens
        self._forms: Forms | None = None
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
        config, parts = self.config, _parts(self.model)
        n_bytes = {name: part.nbytes for name, part in parts.items() if isinstance(part, np.ndarray)}
        if self._forms is None:
            is_small = not self.int8 and sum(n_bytes.values()) <= KEPT
            self._forms = _COLUMNS.setdefault(self.model, Forms()) if is_small else Forms()
        if self.int8:
            product: Product = partial(product_of_int8, forms=self._forms)
        else:
            product = partial(product_of, by_columns=self._forms if self.n_tokens >= COLUMNS_PAY_FROM else None)
        self.embedding = parts["token_embedding.weight"]
        head = (self.embedding if config.tie_embeddings else parts["lm_head.weight"])[: config.vocab_size]
        self.head = product(head, None)
        self.absolute: Array | None = parts.get(
            "position_embedding.weight" if config.position == "learned" else "sinusoidal"
        )
        self.rotary: Array | None = parts.get("rotary")
        self.final_norm = _norm_of(parts, "final_norm")
        self.blocks = [_Block(parts, f"blocks.{i}", config, window, product) for i, window in enumerate(config.windows)]
        # 0 keeps OpenBLAS to one thread: int8 products have threads of their own, and the two would compete.
        self.head_bytes = 0 if self.int8 else head.nbytes
        self.block_bytes = 0 if self.int8 else max(n for name, n in n_bytes.items() if name.startswith("blocks."))
        self._forms.renew()

    def new_cache(self, n_rows: int, n_tokens: int) -> ArrayCache:
        return ArrayCache(self.config, n_rows, n_tokens)

    def read(self, tokens: Integers, cache: ArrayCache, n_wanted: int = 1, n_padding: Integers | None = None) -> Array:
        """As `engine.Reader.read`."""
        if n_padding is not None:
            cache.n_padding = n_padding
        (B, T), opened = tokens.shape, _opened(self.model)
        if not self.int8 and opened is not None and B * T > MOST_TOKENS:
            return self._read_by_torch(opened, tokens, cache, n_wanted)
        step = max(1, CHUNK // B)
        with threads_for(max(self.head_bytes, self.block_bytes)):  # once a token: setting the threads takes a while
            chunks = [self._hidden(tokens[:, i : i + step], cache, cache.position + i) for i in range(0, T, step)]
            x = np.concatenate(chunks, axis=1)[:, -n_wanted:].reshape(B * n_wanted, -1)
            with threads_for(self.head_bytes):
                return self.head(x).reshape(B, n_wanted, -1)

    def _hidden(self, tokens: Integers, cache: ArrayCache, start: int) -> Array:
        """(B, T) tokens from place `start` of the cache -> (B, T, C), as `GPT.hidden`."""
        positions = np.arange(start, start + tokens.shape[1])[None]  # (B or 1, T)
        if cache.n_padding is not None:
            positions = np.maximum(positions - cache.n_padding[:, None], 0)
        x = self.embedding[tokens]  # (B, T, C)
        if self.absolute is not None:
            x = x + self.absolute[positions]
        rotary = None if self.rotary is None else self.rotary[:, positions, None]  # (2, B or 1, T, 1, D)
        # exp may overflow to inf in SiLU and GELU: x / (1 + inf) is then 0, which is correct.
        with threads_for(self.block_bytes), np.errstate(over="ignore"):
            for block, (keys, values) in zip(self.blocks, cache.layers, strict=True):
                x = block(x, rotary, keys, values, start, cache.n_padding)
        return self.final_norm(x)

    def _read_by_torch(self, opened: GPT, tokens: Integers, cache: ArrayCache, n_wanted: int) -> Array:
        """`read` by the model itself, which writes its keys and values into the same memory."""
        import torch

        from minigpt.generation.model_reader import ModelReader

        reader = ModelReader(opened)
        shared = reader.new_cache(len(tokens), 0)
        shared.position, shared.n_tokens = cache.position, cache.n_tokens
        for layer, (keys, values) in zip(shared.layers, cache.layers, strict=True):
            layer.key, layer.value = torch.from_numpy(keys), torch.from_numpy(values)
        if cache.n_padding is not None and cache.position:  # else the reader stores it with the tokens
            is_padding = np.arange(cache.n_tokens) < cache.n_padding[:, None]
            shared.document_ids = torch.from_numpy(np.where(is_padding, -1, 0))
        return reader.read(tokens, shared, n_wanted, None if cache.position else cache.n_padding)


class _Block:
    """numpy version of `gpt.Block`."""

    def __init__(self, parts: Parts, name: str, config: GPTConfig, window: int | None, product: Product) -> None:
        attn = f"{name}.attn"
        self.attn_norm, self.mlp_norm = _norm_of(parts, f"{name}.attn_norm"), _norm_of(parts, f"{name}.mlp_norm")
        self.qkv, self.proj = _linear(parts, f"{attn}.qkv", product), _linear(parts, f"{attn}.proj", product)
        self.mlp = _MLPS[config.mlp](parts, f"{name}.mlp", product)
        self.n_projected, self.head_dim = parts[f"{attn}.n_projected"], parts[f"{attn}.head_dim"]
        n_query, n_key, _ = self.n_projected
        self.qk_norm = _norm_of(parts, *[f"{attn}.q_norm"] * n_query, *[f"{attn}.k_norm"] * n_key)
        self.scale = 1 / (self.head_dim**0.5 * parts[f"{attn}.similarity.temperature"])
        self.softcap, self.window, self.slopes = parts[f"{attn}.softcap"], window, parts.get("slopes")

    def __call__(
        self, x: Array, rotary: Array | None, keys: Array, values: Array, start: int, n_padding: Integers | None
    ) -> Array:
        """(B, T, C) -> (B, T, C); keys and values are the cache's (B, H_kv, S, D), filled up to `start`."""
        B, T, C = x.shape
        n_query, n_key, _ = self.n_projected
        x = x.reshape(B * T, C)
        heads = self.qkv(self.attn_norm(x)).reshape(B, T, -1, self.head_dim)
        query_key = self.qk_norm(heads[:, :, : n_query + n_key])
        if rotary is not None:
            query_key = _rotate(query_key, rotary)
        stop = start + T
        keys[:, :, start:stop] = query_key[:, :, n_query:].swapaxes(1, 2)
        values[:, :, start:stop] = heads[:, :, n_query + n_key :].swapaxes(1, 2)
        gathered = self._attend(query_key[:, :, :n_query], keys[:, :, :stop], values[:, :, :stop], n_padding)
        x = x + self.proj(gathered.reshape(B * T, -1))
        x += self.mlp(self.mlp_norm(x))
        return x.reshape(B, T, C)

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


def _linear(parts: Parts, name: str, product: Product) -> Function:
    return product(parts[f"{name}.weight"], parts.get(f"{name}.bias"))


def _norm_of(parts: Parts, *names: str) -> Function:
    """numpy version of the model's RMSNorm or LayerNorm, or the identity; n names: for (..., n, C), one each."""
    if f"{names[0]}.weight" not in parts:
        return lambda x: x
    weight, bias, eps = (_stacked([parts.get(f"{name}.{part}") for name in names]) for part in _NORM_PARTS)
    C: int = weight.shape[-1]
    mean = np.full(C, 1 / C, dtype=np.float32) if parts["config.norm"] == "layernorm" else None

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


_NORM_PARTS = ("weight", "bias", "eps")


def _stacked(parts: Sequence[Any]) -> Any:
    return parts[0] if parts[0] is None or len(parts) == 1 else np.array(parts, dtype=np.float32)


def _gelu(parts: Parts, mlp: str, product: Product) -> Function:
    up, proj = _linear(parts, f"{mlp}.up", product), _linear(parts, f"{mlp}.proj", product)

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


def _gelu_exact(parts: Parts, mlp: str, product: Product) -> Function:
    import torch  # numpy has no error function
    import torch.nn.functional as F

    up, proj = _linear(parts, f"{mlp}.up", product), _linear(parts, f"{mlp}.proj", product)
    return lambda x: proj(F.gelu(torch.from_numpy(up(x))).numpy())


def _swiglu(parts: Parts, mlp: str, product: Product) -> Function:
    gate_up, proj = _linear(parts, f"{mlp}.gate_up", product), _linear(parts, f"{mlp}.proj", product)
    width = parts[f"{mlp}.proj.weight"].shape[1]

    def forward(x: Array) -> Array:
        both = gate_up(x)
        gate, up = both[:, :width], both[:, width:]
        divisor: Array = np.exp(-gate)
        divisor += 1
        return proj(gate / divisor * up)

    return forward


_MLPS: dict[str, Callable[[Parts, str, Product], Function]] = {
    "gelu": _gelu,
    "gelu_exact": _gelu_exact,
    "swiglu": _swiglu,
}
