"""The architectures of llama.cpp that our models are written as: gpt2, qwen3 and llama; rows as in families.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.errors import UserError
from minigpt.interop.family import Family, without_idle_settings
from minigpt.interop.fields import shown
from minigpt.interop.layouts import SAME, SPLIT_QKV, Layout
from minigpt.interop.names import ATTENTION, GATED_MLP, LAYER, MLP, NORMS, RMS
from minigpt.interop.rotary import STANDS_STILL
from minigpt.interop.weights import Names, Translation, biased
from minigpt.model.gpt import GPT
from minigpt.model.tables import rotary_frequencies, scaled_frequencies


def _interleaved(x: Tensor, n_head: int) -> Tensor:
    """Rows reordered within each head: llama rotates channels (2i, 2i + 1), this model (i, i + D/2)."""
    return x.unflatten(0, (n_head, 2, -1)).transpose(1, 2).flatten(0, 2)


def _in_halves(x: Tensor, n_head: int) -> Tensor:
    return x.unflatten(0, (n_head, -1, 2)).transpose(1, 2).flatten(0, 2)


def _pack_llama(config: GPTConfig, x: Tensor) -> list[Tensor]:
    query, key, value = SPLIT_QKV.pack(config, x)
    return [_interleaved(query, config.n_head), _interleaved(key, config.kv_heads), value]


_LLAMA_QKV = Layout(
    _pack_llama,
    lambda config, xs: torch.cat([_in_halves(xs[0], config.n_head), _in_halves(xs[1], config.kv_heads), xs[2]]),
)


def _names(inside: Mapping[str, str], outside: Mapping[str, str], layouts: Mapping[str, Layout]) -> Names:
    both = {"attn_norm": "attn_norm", **inside, "attn.proj": "attn_output", "mlp_norm": "ffn_norm"}
    mlp = {"mlp.gate_up": "ffn_gate ffn_up"} if "position_embedding" not in outside else {"mlp.up": "ffn_up"}
    ends = {"token_embedding": "token_embd", **outside, "final_norm": "output_norm"}
    return Names("", ends, "blk.{i}", {**both, **mlp, "mlp.proj": "ffn_down"}, layouts, head=("output",))


_SPLIT = {"attn.qkv": "attn_q attn_k attn_v", "attn.q_norm": "attn_q_norm", "attn.k_norm": "attn_k_norm"}
_SIZES = {
    "context_length": "context_length",
    "n_embd": "embedding_length",
    "n_layer": "block_count",
    "mlp_hidden": "feed_forward_length",
    "n_head": "attention.head_count",
}
_MODERN = _SIZES | {
    "n_kv_head": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "rotary_base": "rope.freq_base",
    "vocab_size": "vocab_size",
}
GGUF_FAMILIES = {
    "gpt2": Family(
        "gpt2",
        "llama.cpp's gpt2",
        names=_names({"attn.qkv": "attn_qkv"}, {"position_embedding": "position_embd"}, {"attn.qkv": SAME}),
        keys=_SIZES | {"norm_eps": "attention.layer_norm_epsilon"},
        ours=LAYER | {"mlp": "gelu"},
        biases={"": (*NORMS, *ATTENTION, *MLP)},
        positions=("learned", "sinusoidal", "none"),
    ),
    "qwen3": Family(
        "qwen3",
        "llama.cpp's qwen3",
        names=_names(_SPLIT, {}, {}),
        keys=_MODERN,
        ours=RMS | {"mlp": "swiglu", "qk_norm": True},
    ),
    "llama": Family(
        "llama",
        "llama.cpp's llama",
        names=_names(_SPLIT, {}, {"attn.qkv": _LLAMA_QKV}),
        keys=_MODERN,
        ours=RMS | {"mlp": "swiglu"},
        biases={"optional": (*ATTENTION, *GATED_MLP)},
    ),
}
"""llama.cpp's architectures by name. A file has no flag for the biases under "optional": they are there or not."""


def gguf_family(config: GPTConfig) -> tuple[Family, GPTConfig]:
    """llama.cpp's architecture that computes exactly what a config says, and the config without what means nothing.

    Raises:
        UserError: none does; the message names the settings and the nearest values that have a counterpart.
    """
    config = without_idle_settings(config)
    name = "gpt2" if config.norm == "layernorm" else "qwen3" if config.qk_norm else "llama"
    family = GGUF_FAMILIES[name]
    if misfits := family.misfits(config):
        values = [misfit.value if isinstance(misfit.value, str) else shown(misfit.value) for misfit in misfits]
        said = ", ".join(f"model.{misfit.setting}={value}" for misfit, value in zip(misfits, values, strict=True))
        wanted = ", ".join(f"model.{misfit.setting}={misfit.nearest}" for misfit in misfits)
        raise UserError(f"{said}: {family.architecture} has no counterpart; the nearest that works is {wanted}")
    _check_scaling(config.rotary_scaling, family)
    return family, config


def _check_scaling(scaling: dict[str, Any] | None, family: Family) -> None:
    """Refuse scalings of RoPE that llama.cpp has no counterpart for."""
    if scaling is None:
        return
    kind, said = scaling["rope_type"], f"model.rotary_scaling={scaling}"
    if kind == "llama3" and family.model_type != "llama":
        raise UserError(f"{said}: {family.architecture} has no counterpart of llama3; the nearest that works is yarn")
    defaults = {"attention_factor": None, "beta_fast": 32, "beta_slow": 1, "truncate": True}
    others = scaling.keys() - {"rope_type", "factor", "original_max_position_embeddings"}
    changed = sorted(key for key in others if scaling[key] not in (None, defaults.get(key)))
    if kind == "yarn" and changed:
        raise UserError(f"{said}: llama.cpp reads no {', '.join(changed)}; without it there is a counterpart")


def rotary_scaling(config: GPTConfig) -> dict[str, Any]:
    """The scaling that the file's header says."""
    if config.position == "none":
        return STANDS_STILL
    scaling = config.rotary_scaling
    return {"rope_type": "none"} if scaling is None or scaling["rope_type"] == "llama3" else scaling


def gguf_tensors(model: GPT) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's name and the weight in float32 of each tensor, one at a time."""
    family, config = gguf_family(model.config)
    if config.rotary_scaling and config.rotary_scaling["rope_type"] == "llama3":
        yield "rope_freqs.weight", _slower(config, config.rotary_scaling)
    always = set(family.biases.get("", ()))
    biases = always | (biased(config) & set(family.biases.get("optional", ())))
    scale = family.scale(None, config.width_per_head)
    translation = Translation(config, family.names, biases, scale, family.architecture)
    yield from translation.to_theirs(_Float32(model.state_dict()))


def _slower(config: GPTConfig, scaling: dict[str, Any]) -> Tensor:
    """(D/2,): what Llama 3's scaling divides the frequency of each pair of channels by."""
    D, base = config.width_per_head, config.rotary_base
    frequencies = rotary_frequencies(D, base)[0]
    return torch.from_numpy(frequencies / scaled_frequencies(frequencies, base, scaling)[0]).float()


class _Float32(Mapping[str, Tensor]):
    """Weights of any type and device, each converted when it is read."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    def __getitem__(self, name: str) -> Tensor:
        return self._state[name].detach().to("cpu", torch.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)
