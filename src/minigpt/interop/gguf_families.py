"""A model's weights under llama.cpp's names, for three of its architectures: gpt2, qwen3 and llama."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.errors import UserError
from minigpt.model.attention import Attention
from minigpt.model.gpt import GPT
from minigpt.model.variants.positions import scaled_frequencies

Weights = Iterator[tuple[str, Tensor]]
Linear = tuple[Tensor, Tensor | None]
"""Weight and bias of a linear layer."""

_ANY: dict[str, tuple[Any, ...]] = {
    "similarity": ("scaled_dot", "symmetric", "hopfield", "uniform"),
    "hopfield_steps": (1,),
    "window": (None,),
    "logit_softcap": (None,),
    "block": ("pre_norm",),
}
_MODERN = _ANY | {"position": ("rotary", "none"), "rotary_fraction": (1.0,), "mlp": ("swiglu",)}
ARCHITECTURES: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": _ANY | {"position": ("learned", "sinusoidal", "none"), "mlp": ("gelu",), "qk_norm": (False,)},
    "qwen3": _MODERN | {"bias": (False,), "qkv_bias": (None, False), "qk_norm_per_head": (True,)},
    "llama": _MODERN,
}
"""llama.cpp's architecture -> setting -> the values that it has a counterpart for, the nearest one first."""


def architecture(config: GPTConfig) -> str:
    """llama.cpp's architecture that computes the same.

    Raises:
        UserError: none does; the message names the setting and the nearest value that has a counterpart.
    """
    # A mean over all tokens has neither queries nor keys, and so no norms of them.
    has_qk_norm = config.qk_norm and config.similarity != "uniform"
    name = "gpt2" if config.norm == "layernorm" else "qwen3" if has_qk_norm else "llama"
    allowed = dict(ARCHITECTURES[name])
    # GPT-2 has as many key heads as query heads, which share out the width of the stream.
    if name == "gpt2":
        allowed |= {"n_kv_head": (None, config.n_head), "head_dim": (None, config.n_embd / config.n_head)}
    means_nothing = {
        "hopfield_steps": config.similarity != "hopfield",
        "window": all(window is None or window >= config.context_length for window in config.windows),
        "qk_norm": not has_qk_norm,
    }
    for setting, values in allowed.items():
        if (value := getattr(config, setting)) not in values and not means_nothing.get(setting):
            raise UserError(
                f"model.{setting}={_yaml(value)}: llama.cpp's {name} has no counterpart; the nearest that works is "
                f"model.{setting}={_yaml(values[0])}"
            )
    _check_scaling(config.rotary_scaling, name)
    return name


def _check_scaling(scaling: dict[str, Any] | None, name: str) -> None:
    """Refuse scalings of RoPE that llama.cpp has no counterpart for."""
    if scaling is None:
        return
    kind, shown = scaling["rope_type"], f"model.rotary_scaling={scaling}"
    if kind == "llama3" and name != "llama":
        raise UserError(f"{shown}: llama.cpp's {name} has no counterpart of llama3; the nearest that works is yarn")
    defaults = {"attention_factor": None, "beta_fast": 32, "beta_slow": 1, "truncate": True}
    others = scaling.keys() - {"rope_type", "factor", "original_max_position_embeddings"}
    changed = sorted(key for key in others if scaling[key] not in (None, defaults.get(key)))
    if kind == "yarn" and changed:
        raise UserError(f"{shown}: llama.cpp reads no {', '.join(changed)}; without it there is a counterpart")


def _yaml(value: object) -> str:
    """A setting as a YAML file says it."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def weights(model: GPT) -> Weights:
    """Name and weight of each tensor in float32, one at a time: no two layers are in memory twice.

    Without the rows that pad the vocabulary: there they would be tokens with a logit of 0.
    """
    config, name = model.config, architecture(model.config)
    V = config.vocab_size
    yield "token_embd.weight", _float32(model.token_embedding.weight[:V])
    if name == "gpt2":
        yield "position_embd.weight", _positions(model)
    if config.rotary_scaling and config.rotary_scaling["rope_type"] == "llama3":
        yield "rope_freqs.weight", _slower(config)
    for i, block in enumerate(model.blocks):
        for part, weight in _gpt2_block(block, config) if name == "gpt2" else _modern_block(block, config, name):
            yield f"blk.{i}.{part}", weight
    yield from _norm("output_norm", model.final_norm)
    # A file without it has a head that is tied to the embedding.
    if not config.tie_embeddings:
        yield "output.weight", _float32(model.lm_head.weight[:V])


def _positions(model: GPT) -> Tensor:
    """(T, C): what is added to the embedding at each position; zeros for a model without positions."""
    config = model.config
    if config.position == "learned":
        return _float32(model.position_embedding.weight)
    if config.position == "sinusoidal":
        assert model.sinusoidal is not None
        return _float32(model.sinusoidal)
    return torch.zeros(config.context_length, config.n_embd)


def _slower(config: GPTConfig) -> Tensor:
    """(D/2,): what Llama 3's scaling divides the frequency of each pair of channels by."""
    D, base = config.width_per_head, config.rotary_base
    frequencies = base ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    assert config.rotary_scaling is not None
    return (frequencies / scaled_frequencies(frequencies, base, config.rotary_scaling)[0]).float()


def _gpt2_block(block: Any, config: GPTConfig) -> Weights:
    yield from _norm("attn_norm", block.attn_norm)
    projections = query_key_value(block.attn, config)
    weight = torch.cat([weight for weight, _ in projections])
    yield from _linear("attn_qkv", (weight, torch.cat([_bias(each) for each in projections])))
    yield from _linear("attn_output", _with_bias(block.attn.proj))
    yield from _norm("ffn_norm", block.mlp_norm)
    yield from _linear("ffn_up", _with_bias(block.mlp.up))
    yield from _linear("ffn_down", _with_bias(block.mlp.proj))


def _modern_block(block: Any, config: GPTConfig, name: str) -> Weights:
    yield from _norm("attn_norm", block.attn_norm)
    query, key, value = query_key_value(block.attn, config)
    if name == "llama":
        query, key = _interleaved(query, config.n_head), _interleaved(key, config.kv_heads)
    yield from _linear("attn_q", query)
    yield from _linear("attn_k", key)
    yield from _linear("attn_v", value)
    if name == "qwen3":
        key_norm = _float32(block.attn.k_norm.weight)
        symmetric = isinstance(block.attn.q_norm, nn.Identity)
        yield "attn_q_norm.weight", (key_norm if symmetric else _float32(block.attn.q_norm.weight)) * _scale(config)
        yield "attn_k_norm.weight", key_norm
    yield from _linear("attn_output", _parameters(block.attn.proj))
    yield from _norm("ffn_norm", block.mlp_norm)
    gate_up, bias = _parameters(block.mlp.gate_up)
    gate, up = gate_up.chunk(2)
    gate_bias, up_bias = (None, None) if bias is None else bias.chunk(2)
    yield from _linear("ffn_gate", (gate, gate_bias))
    yield from _linear("ffn_up", (up, up_bias))
    yield from _linear("ffn_down", _parameters(block.mlp.proj))


def query_key_value(attn: Attention, config: GPTConfig) -> list[Linear]:
    """The three projections, such that plain scaled dot products of their outputs give the model's scores."""
    weight, bias = _parameters(attn.qkv)
    sizes = [n * attn.head_dim for n in attn.n_projected]
    biases = [None] * 3 if bias is None else bias.split(sizes)
    query, key, value = zip(weight.split(sizes), biases, strict=True)
    if config.similarity == "uniform":  # zeros score 0 everywhere
        query, key = _zeros(query, attn.n_head * attn.head_dim), _zeros(key, config.kv_heads * attn.head_dim)
    elif config.similarity == "symmetric":
        query = key
    # With QK-norm the queries' own scale is lost; the weight of their norm takes the factor.
    if not config.qk_norm and _scale(config) != 1:
        query = (query[0] * _scale(config), None if query[1] is None else query[1] * _scale(config))
    return [query, key, value]


def _scale(config: GPTConfig) -> float:
    """What multiplies the scores besides 1 / sqrt(D)."""
    if config.similarity == "hopfield":
        return 1.0 if config.hopfield_beta is None else config.hopfield_beta * config.width_per_head**0.5
    return 1 / config.softmax_temperature


def _interleaved(linear: Linear, n_head: int) -> Linear:
    """Rows reordered within each head: llama rotates channels (2i, 2i + 1), this model (i, i + D/2)."""
    weight, bias = linear
    order = torch.arange(len(weight)).view(n_head, 2, -1).transpose(1, 2).reshape(-1)
    return weight[order], None if bias is None else bias[order]


def _zeros(like: Linear, rows: int) -> Linear:
    weight, bias = like
    return weight.new_zeros(rows, weight.shape[1]), None if bias is None else bias.new_zeros(rows)


def _linear(name: str, linear: Linear) -> Weights:
    weight, bias = linear
    yield f"{name}.weight", weight
    if bias is not None:
        yield f"{name}.bias", bias


def _norm(name: str, norm: Any) -> Weights:
    """A norm's weight, and for LayerNorm its bias, which GPT-2 always has."""
    weight = _float32(norm.weight)
    yield f"{name}.weight", weight
    if isinstance(norm, nn.LayerNorm):
        yield f"{name}.bias", torch.zeros_like(weight) if norm.bias is None else _float32(norm.bias)


def _with_bias(layer: nn.Linear) -> Linear:
    linear = _parameters(layer)
    return linear[0], _bias(linear)


def _bias(linear: Linear) -> Tensor:
    """The bias, zeros if there is none."""
    weight, bias = linear
    return weight.new_zeros(len(weight)) if bias is None else bias


def _parameters(layer: nn.Linear) -> Linear:
    return _float32(layer.weight), None if layer.bias is None else _float32(layer.bias)


def _float32(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float32)
