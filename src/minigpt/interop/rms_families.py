"""The rows of the table with RMSNorm: Llama and its kin."""

from __future__ import annotations

from minigpt.interop.family import Family
from minigpt.interop.layouts import LESS_ONE, OVER_ROOT_WIDTH, SAME
from minigpt.interop.names import (
    ATTENTION,
    GATED_MLP,
    GELU,
    GELU_MLP,
    LLAMA_KEYS,
    LLAMA_MLP,
    LLAMA_NAMES,
    MLP,
    NORMS,
    RMS,
    SWIGLU,
    llama_names,
)
from minigpt.interop.windows import EVERY_LAYER, LAYER_TYPES, window_size

QWEN2_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

RMS_FAMILIES = (
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        names=LLAMA_NAMES,
        keys=LLAMA_KEYS,
        ours=RMS | {"qk_norm": True},
        switches={"hidden_act": SWIGLU},
        defaults=QWEN2_DEFAULTS | {"head_dim": 128},
        biases={"attention_bias": ATTENTION},
        windows=LAYER_TYPES,
    ),
    Family(
        "llama",
        "LlamaForCausalLM",
        names=LLAMA_NAMES,
        keys=LLAMA_KEYS,
        ours=RMS,
        switches={"hidden_act": SWIGLU},
        defaults={"rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 2048},
        biases={"attention_bias": ATTENTION, "mlp_bias": GATED_MLP},
        width_of_heads=True,
    ),
    Family(
        "mistral",
        "MistralForCausalLM",
        names=LLAMA_NAMES,
        keys=LLAMA_KEYS,
        ours=RMS,
        switches={"hidden_act": SWIGLU},
        defaults={"rms_norm_eps": 1e-6, "hidden_act": "silu", "num_key_value_heads": 8, "sliding_window": 4096},
        windows=EVERY_LAYER,
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        names=LLAMA_NAMES,
        keys=LLAMA_KEYS,
        ours=RMS,
        switches={"hidden_act": SWIGLU},
        defaults=QWEN2_DEFAULTS,
        biases={"": ("attn.qkv",)},
        windows=LAYER_TYPES,
    ),
    Family(
        "olmo2",
        "Olmo2ForCausalLM",
        names=llama_names(
            {"attn_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm", **LLAMA_MLP}
        ),
        keys=LLAMA_KEYS,
        ours=RMS | {"block": "post_norm", "qk_norm": True, "qk_norm_per_head": False},
        switches={"hidden_act": SWIGLU},
        defaults={"rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 2048},
        biases={"attention_bias": ATTENTION},
    ),
    Family(
        "arcee",
        "ArceeForCausalLM",
        names=llama_names(GELU_MLP),
        keys=LLAMA_KEYS,
        ours=RMS,
        switches={"hidden_act": GELU},
        defaults={"rms_norm_eps": 1e-5, "hidden_act": "relu2", "max_position_embeddings": 4096},
        biases={"attention_bias": ATTENTION, "mlp_bias": MLP},
        width_of_heads=True,
    ),
    Family(
        "apertus",
        "ApertusForCausalLM",
        names=llama_names({"attn_norm": "attention_layernorm", "mlp_norm": "feedforward_layernorm", **GELU_MLP}),
        keys=LLAMA_KEYS,
        ours=RMS | {"qk_norm": True},
        switches={"hidden_act": GELU},
        defaults={"rms_norm_eps": 1e-5, "hidden_act": "xielu", "rope_theta": 12_000_000.0},
        biases={"attention_bias": ATTENTION},
    ),
    Family(
        "vaultgemma",
        "VaultGemmaForCausalLM",
        names=llama_names(
            {"mlp_norm": "pre_feedforward_layernorm", **LLAMA_MLP},
            layouts=dict.fromkeys(NORMS, LESS_ONE) | {"token_embedding": OVER_ROOT_WIDTH, "lm_head": SAME},
        ),
        keys=LLAMA_KEYS | {"logit_softcap": "attn_logit_softcapping"},
        ours=RMS,
        switches={"hidden_activation": SWIGLU},
        # Its embedding is scaled and its head is not, so the two are apart.
        fixed={"final_logit_softcapping": None, "tie_word_embeddings": False},
        defaults={
            "rms_norm_eps": 1e-6,
            "hidden_activation": "gelu_pytorch_tanh",
            "num_key_value_heads": 4,
            "head_dim": 256,
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 256,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
            "sliding_window": 4096,
            "use_sliding_window": True,
            "layer_types": None,
        },
        biases={"attention_bias": ATTENTION},
        windows=LAYER_TYPES,
        width_of_heads=True,
        scale_key="query_pre_attn_scalar",
        scale=lambda scalar, head_dim: (scalar or head_dim) ** -0.5,
        # It makes the mask of a window also where no layer has one.
        extra=lambda config: {
            "query_pre_attn_scalar": config.width_per_head,
            "sliding_window": window_size(config) or config.context_length,
        },
    ),
)
