"""Names and settings that several families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minigpt.interop.weights import Names

NORMS = ("attn_norm", "mlp_norm", "final_norm")
ATTENTION = ("attn.qkv", "attn.proj")
MLP = ("mlp.up", "mlp.proj")
GATED_MLP = ("mlp.gate_up", "mlp.proj")

GELU = ("mlp", {"gelu_pytorch_tanh": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu", "gelu": "gelu_exact"})
GPT2_GELU = ("mlp", {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "gelu": "gelu_exact"})
SWIGLU = ("mlp", {"silu": "swiglu", "swish": "swiglu"})

PLAIN = {"block": "pre_norm", "qk_norm": False, "qk_norm_per_head": True}
RMS = PLAIN | {"norm": "rmsnorm"}
LAYER = PLAIN | {"norm": "layernorm"}

SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "mlp_hidden": "intermediate_size",
    "tie_embeddings": "tie_word_embeddings",
}
GROUPED = SIZES | {"n_kv_head": "num_key_value_heads"}
LLAMA_KEYS = GROUPED | {"head_dim": "head_dim", "norm_eps": "rms_norm_eps"}

LLAMA_OUTSIDE = {"token_embedding": "model.embed_tokens", "final_norm": "model.norm"}
LLAMA_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "attn.proj": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
}
LLAMA_MLP = {"mlp.gate_up": "mlp.gate_proj mlp.up_proj", "mlp.proj": "mlp.down_proj"}
GELU_MLP = {"mlp.up": "mlp.up_proj", "mlp.proj": "mlp.down_proj"}


def llama_names(inside: Mapping[str, str], **others: Any) -> Names:
    """Llama's names, with those of a layer's modules that are `inside`."""
    return Names("model", LLAMA_OUTSIDE, "model.layers.{i}", {**LLAMA_ATTENTION, **inside}, **others)


def gpt2_names(inside: Mapping[str, str], **others: Any) -> Names:
    """GPT-2's names; `inside` has those of a layer's attention."""
    outside = {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"}
    both = {"attn_norm": "ln_1", **inside, "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.proj": "mlp.c_proj"}
    named = {ours: f"transformer.{theirs}" for ours, theirs in outside.items()}
    return Names("transformer", named, "transformer.h.{i}", both, **others)


LLAMA_NAMES = llama_names(LLAMA_MLP)
