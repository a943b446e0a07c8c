"""What follows from a model's config alone: position tables, and the shapes of the weights. In numpy, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt.config import GPTConfig

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

VOCABULARY_MULTIPLE = 64
"""Tables of the vocabulary have a multiple of this many rows: matrix products of odd sizes are slow on GPUs."""


def position_tables(config: GPTConfig) -> dict[str, Float32 | None]:
    """The model's buffers for the positions of a whole context, by name; None for those that it has no use for."""
    T, D = config.context_length, config.width_per_head
    rotary = (config.rotary_base, config.rotary_fraction, config.rotary_scaling)
    return {
        "rotary": rotary_table(T, D, *rotary) if config.position == "rotary" else None,
        "sinusoidal": sinusoidal_table(T, config.n_embd) if config.position == "sinusoidal" else None,
        "slopes": alibi_slopes(config.n_head) if config.position == "alibi" else None,
    }


def rotary_table(
    context_length: int,
    head_dim: int,
    base: float,
    fraction: float = 1.0,
    scaling: Mapping[str, Any] | None = None,
) -> Float32:
    """Cosines and sines of every position, for `attention.rotate`.

    Channel pair (i, i + D/2) turns by base ** (-2i / D) radians per token: the first pairs tell neighbours apart, the
    last ones barely turn within the context.

    Args:
        context_length: number of positions, T.
        head_dim: D.
        base: theta.
        fraction: the first pairs, this share of all, turn as if they were the whole head; the others do not turn.
        scaling: stretches the wavelengths for longer contexts; see `GPTConfig.rotary_scaling`.

    Returns:
        (2, T, D): the cosine of each channel, then its sine, negative in the first half.
    """
    frequencies, length = rotary_frequencies(head_dim, base, fraction, scaling)
    angles = np.arange(context_length)[:, None] * frequencies  # (T, n_rotated / 2)
    still = ((0, 0), (0, head_dim // 2 - len(frequencies)))
    cos, sin = np.pad(length * np.cos(angles), still, constant_values=1), np.pad(length * np.sin(angles), still)
    # Pairs are (i, i + D/2) as in Llama and GPT-NeoX, not neighbours as in the paper: halves are contiguous in memory.
    return np.stack([np.concatenate([cos, cos], -1), np.concatenate([-sin, sin], -1)]).astype(np.float32)


def rotary_frequencies(
    head_dim: int, base: float, fraction: float = 1.0, scaling: Mapping[str, Any] | None = None
) -> tuple[Float64, float]:
    """Radians per token of each pair that turns, (n_rotated / 2,), and the factor of cosines and sines."""
    n_rotated = round(fraction * head_dim)
    # In float64: in float32, the angle of position 100,000 would be off by up to 0.004 radians.
    frequencies = float(base) ** (-np.arange(0, n_rotated, 2) / n_rotated)
    return (frequencies, 1.0) if scaling is None else scaled_frequencies(frequencies, base, scaling)


def scaled_frequencies(frequencies: Float64, base: float, scaling: Mapping[str, Any]) -> tuple[Float64, float]:
    """RoPE's frequencies stretched for a context longer than the one trained on, as transformers computes them.

    Args:
        frequencies: (n,) radians per token, falling.
        base: RoPE's base.
        scaling: `rope_type` and its parameters, see config.model.ROTARY_SCALINGS. linear: position interpolation (Chen
            et al. 2023, arXiv:2306.15595); llama3: long wavelengths only (Llama 3.1); yarn: Peng et al. 2023,
            arXiv:2309.00071.

    Returns:
        (n,) frequencies, and the factor of the cosines and sines.
    """
    factor = scaling["factor"]
    if scaling["rope_type"] == "linear":
        return frequencies / factor, 1.0
    trained = scaling["original_max_position_embeddings"]
    if scaling["rope_type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = trained * frequencies / (2 * math.pi)  # within the trained context
        kept = ((turns - low) / (high - low)).clip(0, 1)
    else:
        kept = _kept_by_yarn(len(frequencies), base, trained, scaling)
    return frequencies * (kept + (1 - kept) / factor), _yarn_length(scaling) if scaling["rope_type"] == "yarn" else 1.0


def _kept_by_yarn(n: int, base: float, trained: float, scaling: Mapping[str, Any]) -> Float64:
    """(n,): 1 where a frequency stays as it is, 0 where it is divided by the factor, and a ramp between."""
    fast, slow = scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1
    # The pair that turns so many times within the trained context.
    first, last = (n * math.log(trained / (turns * 2 * math.pi)) / math.log(base) for turns in (fast, slow))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * n - 1)
    last += 0.001 if first == last else 0
    return 1 - ((np.arange(n) - first) / (last - first)).clip(0, 1)


def _yarn_length(scaling: Mapping[str, Any]) -> float:
    """The factor of queries and keys, which keeps the entropy of the weights as the context grows."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def length(weight: float) -> float:
        return 0.1 * weight * math.log(scaling["factor"]) + 1 if scaling["factor"] > 1 else 1.0

    weight, of_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return length(weight) / length(of_all) if weight and of_all else length(1)


def sinusoidal_table(context_length: int, n_embd: int) -> Float32:
    """(T, C): sines in the even channels, cosines in the odd ones, wavelengths 2 pi to 20,000 pi tokens."""
    frequencies = 10_000.0 ** (-np.arange(0, n_embd, 2) / n_embd)
    angles = np.arange(context_length)[:, None] * frequencies
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(context_length, -1)[:, :n_embd]
    # Scaled to the standard deviation of the initial token embeddings, 0.02, or they would drown those. The original
    # scales the embeddings up instead.
    return (0.02 * 2**0.5 * waves).astype(np.float32)


def alibi_slopes(n_head: int) -> Float32:
    """(H,): each head's penalty per token of distance; 2^(-8/H), 2^(-16/H), ..., 2^-8 for powers of two.

    For other H, as in the paper: the slopes of the next smaller power of two, then every other one of the next larger.
    """
    whole = 2 ** (n_head.bit_length() - 1)
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    between = [2 ** (-8 * (i + 1) / (2 * whole)) for i in range(0, 2 * whole, 2)]
    return np.array((slopes + between)[:n_head], dtype=np.float32)


def weight_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each weight of a `GPT` of scaled dot products, pre-norm blocks and one of the two MLPs, by name."""
    C, D, H, H_kv, inner = config.n_embd, config.width_per_head, config.n_head, config.kv_heads, config.mlp_width
    rows = -(-(config.vocab_size or 0) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    found: dict[str, tuple[int, ...]] = {"token_embedding.weight": (rows, C)}

    def add(name: str, *shape: int, bias: bool) -> None:
        found[f"{name}.weight"] = shape
        if bias:
            found[f"{name}.bias"] = shape[:1]

    norm_bias = config.norm == "layernorm" and config.bias
    qkv_bias = config.bias if config.qkv_bias is None else config.qkv_bias
    up = ("gate_up", 2 * inner) if config.mlp == "swiglu" else ("up", inner)
    for block in (f"blocks.{i}" for i in range(config.n_layer)):
        for name in ("attn_norm", "mlp_norm"):
            add(f"{block}.{name}", C, bias=norm_bias)
        for name in ("q_norm", "k_norm") if config.qk_norm else ():
            add(f"{block}.attn.{name}", D, bias=norm_bias)
        add(f"{block}.attn.qkv", (H + 2 * H_kv) * D, C, bias=qkv_bias)
        add(f"{block}.attn.proj", C, H * D, bias=config.bias)
        add(f"{block}.mlp.{up[0]}", up[1], C, bias=config.bias)
        add(f"{block}.mlp.proj", C, inner, bias=config.bias)
    add("final_norm", C, bias=norm_bias)
    if config.position == "learned":
        found["position_embedding.weight"] = (config.context_length, C)
    if not config.tie_embeddings:
        found["lm_head.weight"] = (rows, C)
    return found
