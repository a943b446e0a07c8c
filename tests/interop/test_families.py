"""Each row of the table of families, both ways, against transformers on the same weights; and what has no row."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import (
    SMALL,
    greedy,
    logits_of,
    opened_by_transformers,
    randomised,
    same,
    small_model,
)
from safetensors.torch import load_file, save_file

from minigpt.config import GPTConfig
from minigpt.errors import UserError
from minigpt.interop.families import FAMILIES, exported, imported
from minigpt.interop.folder import read_folder, write_folder

GPT2 = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "qk_norm": False}
ROTARY_GELU = GPT2 | {"position": "rotary"}
LLAMA = {"qk_norm": False}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
EXACT_MLP = {"mlp": "gelu_exact", "mlp_hidden": None}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "the default": ("Qwen3ForCausalLM", {}),
    "the default, tied, grouped heads of another width": (
        "Qwen3ForCausalLM",
        {"tie_embeddings": True, "n_kv_head": 2, "head_dim": 12},
    ),
    "multi-query": ("Qwen3ForCausalLM", {"n_kv_head": 1, "rotary_base": 500.0}),
    "one window": ("Qwen3ForCausalLM", {"window": 7}),
    "a pattern of windows": ("Qwen3ForCausalLM", {"window": [None, 5, 5], "n_layer": 3}),
    "a temperature": ("Qwen3ForCausalLM", {"softmax_temperature": 0.6}),
    "no positions": ("Qwen3ForCausalLM", {"position": "none"}),
    "symmetric": ("Qwen3ForCausalLM", {"similarity": "symmetric", "softmax_temperature": 1.4}),
    "hopfield of one step": ("Qwen3ForCausalLM", {"similarity": "hopfield", "hopfield_steps": 1, "hopfield_beta": 0.2}),
    "uniform": ("LlamaForCausalLM", {"similarity": "uniform", "position": "none"}),
    "llama": ("LlamaForCausalLM", LLAMA | {"norm_eps": 1e-5}),
    "llama, biases, temperature": ("LlamaForCausalLM", LLAMA | {"bias": True, "softmax_temperature": 2.0}),
    "llama 3's scaling": ("LlamaForCausalLM", LLAMA | {"rotary_scaling": LLAMA3, "n_kv_head": 2}),
    "linear scaling": ("LlamaForCausalLM", LLAMA | {"rotary_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "YaRN": ("Qwen3ForCausalLM", {"rotary_scaling": YARN}),
    "symmetric without QK-norm": ("LlamaForCausalLM", LLAMA | {"similarity": "symmetric", "bias": True}),
    "llama, no positions": ("LlamaForCausalLM", LLAMA | {"position": "none", "tie_embeddings": True}),
    "mistral": ("MistralForCausalLM", LLAMA | {"window": 9, "n_kv_head": 2}),
    "a width that the heads do not divide": ("MistralForCausalLM", LLAMA | {"n_embd": 34, "head_dim": 8}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA | {"qkv_bias": True, "n_kv_head": 2, "tie_embeddings": True}),
    "qwen2, windows": ("Qwen2ForCausalLM", LLAMA | {"window": [9, None]}),
    "olmo2": ("Olmo2ForCausalLM", {"block": "post_norm", "qk_norm_per_head": False, "n_kv_head": 2}),
    "olmo2, temperature": (
        "Olmo2ForCausalLM",
        {"block": "post_norm", "qk_norm_per_head": False, "softmax_temperature": 3.0, "head_dim": 12},
    ),
    "arcee": ("ArceeForCausalLM", LLAMA | {"mlp": "gelu"}),
    "arcee, biases, exact": ("ArceeForCausalLM", LLAMA | {"mlp": "gelu_exact", "bias": True, "n_kv_head": 2}),
    "apertus": ("ApertusForCausalLM", {"mlp": "gelu", "n_kv_head": 2, "softmax_temperature": 0.7}),
    "apertus, exact": ("ApertusForCausalLM", {"mlp": "gelu_exact", "position": "none", "head_dim": 12}),
    "soft cap": ("VaultGemmaForCausalLM", LLAMA | {"logit_softcap": 1.5, "softmax_temperature": 0.5}),
    "soft cap, windows, tied": (
        "VaultGemmaForCausalLM",
        LLAMA | {"logit_softcap": 1.5, "window": [5, None], "tie_embeddings": True, "n_kv_head": 2, "head_dim": 12},
    ),
    "gpt2": ("GPT2LMHeadModel", GPT2 | {"bias": True, "tie_embeddings": True}),
    "gpt2 without biases, untied, exact": ("GPT2LMHeadModel", GPT2 | {"mlp": "gelu_exact"}),
    "gpt2, sinusoidal": ("GPT2LMHeadModel", GPT2 | {"position": "sinusoidal", "softmax_temperature": 0.5}),
    "gpt2, no positions": ("GPT2LMHeadModel", GPT2 | {"position": "none", "similarity": "symmetric", "bias": True}),
    "gpt2, uniform": ("GPT2LMHeadModel", GPT2 | {"similarity": "uniform", "qk_norm": True}),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        GPT2 | {"window": [None, 5], "bias": True, "qkv_bias": False, "tie_embeddings": True},
    ),
    "gpt_neo, odd pattern": (
        "GPTNeoForCausalLM",
        GPT2 | {"window": [5, None], "n_layer": 3, "softmax_temperature": 2.0},
    ),
    "starcoder2": ("Starcoder2ForCausalLM", ROTARY_GELU | {"bias": True, "n_kv_head": 2, "tie_embeddings": True}),
    "starcoder2, window": ("Starcoder2ForCausalLM", ROTARY_GELU | {"mlp": "gelu_exact", "window": 9}),
    "starcoder2, other width": ("Starcoder2ForCausalLM", ROTARY_GELU | {"head_dim": 12, "position": "none"}),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        ROTARY_GELU | {"block": "parallel", "bias": True, "rotary_fraction": 0.25, "mlp": "gelu_exact"},
    ),
    "gpt_neox in turn": ("GPTNeoXForCausalLM", ROTARY_GELU | {"rotary_fraction": 0.5, "tie_embeddings": True}),
    "gpt_neox, scaled": (
        "GPTNeoXForCausalLM",
        ROTARY_GELU
        | {"block": "parallel", "rotary_scaling": {"rope_type": "linear", "factor": 2.0}, "softmax_temperature": 2.0},
    ),
    "gpt_neox, a share that is no round number": (
        "GPTNeoXForCausalLM",
        ROTARY_GELU | {"n_head": 2, "n_embd": 140, "rotary_fraction": 58 / 70},
    ),
    "stablelm": ("StableLmForCausalLM", {"norm": "layernorm", "qk_norm": False}),
    "stablelm, QK-norm, partial": (
        "StableLmForCausalLM",
        {"norm": "layernorm", "rotary_fraction": 0.5, "n_kv_head": 2, "softmax_temperature": 0.5},
    ),
    "stablelm, biases of queries": (
        "StableLmForCausalLM",
        {"norm": "layernorm", "qk_norm": False, "qkv_bias": True, "rotary_fraction": 0.25, "tie_embeddings": True},
    ),
    "mpt": ("MptForCausalLM", GPT2 | EXACT_MLP | {"position": "alibi", "tie_embeddings": True}),
    "mpt, heads no power of two": (
        "MptForCausalLM",
        GPT2 | EXACT_MLP | {"position": "alibi", "n_head": 6, "n_embd": 36, "softmax_temperature": 2.0},
    ),
}

QUICK = {
    "symmetric",
    "llama 3's scaling",
    "a width that the heads do not divide",
    "qwen2",
    "olmo2, temperature",
    "arcee, biases, exact",
    "apertus",
    "soft cap, windows, tied",
    "gpt2",
    "gpt_neo",
    "starcoder2",
    "gpt_neox",
    "stablelm, QK-norm, partial",
    "mpt, heads no power of two",
}
CASES = [pytest.param(*row, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, row in ROWS.items()]


def test_every_class_of_the_table_is_compared() -> None:
    assert {architecture for architecture, _ in ROWS.values()} == {family.architecture for family in FAMILIES}
    assert {ROWS[name][0] for name in QUICK} == {family.architecture for family in FAMILIES}


@pytest.mark.parametrize(("architecture", "settings"), CASES)
def test_a_row_of_the_table_computes_the_same_in_both_directions(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = small_model(settings)
    write_folder(tmp_path / "out", model)
    theirs = opened_by_transformers(tmp_path / "out")
    assert type(theirs).__name__ == architecture
    tokens = torch.randint(model.config.vocab_size, (2, model.config.context_length - 3))
    expected = logits_of(theirs, tokens)
    assert expected.std() > 0.5  # a model that says something
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-4)
    # 60 greedy tokens: each is the likeliest there too, after those before it.
    text = greedy(model, tokens[:1, :4])
    assert torch.equal(logits_of(theirs, text[:, :-1]).argmax(-1)[:, 3:], text[:, 4:])
    # Written by transformers, read, written and read again.
    theirs.save_pretrained(tmp_path / "theirs")
    back = read_folder(tmp_path / "theirs")
    torch.testing.assert_close(back(tokens), expected, rtol=0, atol=1e-4)
    write_folder(tmp_path / "again", back)
    torch.testing.assert_close(read_folder(tmp_path / "again")(tokens), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_transformers_itself_generates_the_same_tokens(name: str, tmp_path: Path) -> None:
    model = small_model(ROWS[name][1])
    write_folder(tmp_path, model)
    prompt = torch.tensor([[3, 1, 4, 1]])
    options = {"do_sample": False, "max_new_tokens": 60, "attention_mask": torch.ones_like(prompt)}
    assert torch.equal(opened_by_transformers(tmp_path).generate(prompt, **options), greedy(model, prompt))


HUGGING_FACE: dict[str, tuple[str, dict[str, Any]]] = {
    "attention_bias without mlp_bias": ("llama", {"attention_bias": True}),
    "mistral's window by default": ("mistral", {"num_key_value_heads": 2}),
    "qwen2's windows from a layer on": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "num_key_value_heads": 2},
    ),
    "biases of qwen3's attention": ("qwen3", {"attention_bias": True, "head_dim": 8, "num_key_value_heads": 4}),
    "gpt-neo's windows": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 6}),
    "pythia": ("gpt_neox", {"use_parallel_residual": True}),
    "gpt-neox without biases": ("gpt_neox", {"attention_bias": False, "use_parallel_residual": False}),
    "olmo2's biases": ("olmo2", {"attention_bias": True, "num_key_value_heads": 2}),
    "softmax_scale": ("mpt", {"attn_config": {"softmax_scale": 0.6}}),
    "query_pre_attn_scalar": (
        "vaultgemma",
        {
            "query_pre_attn_scalar": 3,
            "final_logit_softcapping": None,
            "hidden_activation": "silu",
            "tie_word_embeddings": False,
            "head_dim": 8,
        },
    ),
    "YaRN with its own lengths": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 4.0,
                "beta_fast": 8.0,
                "mscale": 0.7,
                "mscale_all_dim": 1.0,
            }
        },
    ),
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


QUICK_OF_THEIRS = {
    "attention_bias without mlp_bias",
    "qwen2's windows from a layer on",
    "gpt-neo's windows",
    "pythia",
    "softmax_scale",
    "query_pre_attn_scalar",
}
THEIRS = [
    pytest.param(*row, id=name, marks=() if name in QUICK_OF_THEIRS else pytest.mark.slow)
    for name, row in HUGGING_FACE.items()
]


@pytest.mark.parametrize(("kind", "settings"), THEIRS)
def test_a_model_of_transformers_computes_the_same_here(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    own = {"max_seq_len": 64} if kind == "mpt" else {"max_position_embeddings": 64}
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, vocab_size=70, **SIZES, **own, **settings)
    theirs = randomised(AutoModelForCausalLM.from_config(config).eval())
    theirs.save_pretrained(tmp_path)
    tokens = torch.randint(70, (2, 61))
    torch.testing.assert_close(read_folder(tmp_path)(tokens), logits_of(theirs, tokens), rtol=0, atol=1e-4)


# How files on the hub differ from what transformers writes today.


def test_gpt2_is_read_as_it_lies_on_the_hub_without_a_prefix_and_with_masks(tmp_path: Path) -> None:
    model = small_model(ROWS["gpt2"][1])
    write_folder(tmp_path, model)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(2)}
    save_file(tensors | masks | {"h.0.attn.masked_bias": torch.tensor(-1e4)}, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("tie_word_embeddings", "scale_attn_weights", "add_cross_attention"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_ctx": 64, "n_inner": 48, "summary_type": "mean"}))
    same(read_folder(tmp_path), model)


def test_pythia_is_read_as_it_lies_on_the_hub(tmp_path: Path) -> None:
    model = small_model(ROWS["gpt_neox"][1])
    write_folder(tmp_path, model)
    assert "embed_out.weight" in load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config.pop("rope_parameters")["partial_rotary_factor"], config.pop("rope_theta")) == (0.25, 1e4)
    assert (config["rotary_pct"], config["rotary_emb_base"]) == (0.25, 1e4)
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    inv_freq = {f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq": torch.ones(1) for i in range(2)}
    masks = {f"gpt_neox.layers.{i}.attention.bias": torch.ones(1, 1, 64, 64) for i in range(2)}
    save_file(tensors | inv_freq | masks, tmp_path / "model.safetensors")
    same(read_folder(tmp_path), model)


def test_scaling_is_read_in_its_older_form_too(tmp_path: Path) -> None:
    model = small_model(ROWS["llama 3's scaling"][1])
    write_folder(tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    del config["rope_scaling"]["rope_theta"]
    config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")
    (tmp_path / "config.json").write_text(json.dumps(config))
    same(read_folder(tmp_path), model)


def test_a_tied_model_may_hold_its_head_too_but_not_another_one(tmp_path: Path) -> None:
    model = small_model(ROWS["gpt2"][1])
    write_folder(tmp_path, model)
    tensors = load_file(tmp_path / "model.safetensors")
    embedding = tensors["transformer.wte.weight"]
    save_file(tensors | {"lm_head.weight": embedding.clone()}, tmp_path / "model.safetensors")
    same(read_folder(tmp_path), model)
    save_file(tensors | {"lm_head.weight": embedding + 1}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head.weight is not transformer.wte.weight, .* set it to false"):
        read_folder(tmp_path)


# Refusals.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"similarity": "cosine"}, r"that needs model.similarity=scaled_dot instead of 'cosine' \(Qwen3ForCausalLM\)$"),
        ({"similarity": "gaussian"}, "similarity=scaled_dot instead of 'gaussian'"),
        ({"similarity": "linear"}, "similarity=scaled_dot instead of 'linear'"),
        ({"similarity": "hard"}, "similarity=scaled_dot instead of 'hard'"),
        ({"similarity": "hopfield"}, "model.hopfield_steps=1 instead of 2"),
        (
            {"logit_softcap": 5.0},
            r"logit_softcap=null instead of 5.0 \(Qwen3.*\), or model.qk_norm=false.*\(VaultGemma",
        ),
        ({"window": [4, 8]}, r"model.window=a pattern of one size and null instead of \[4, 8\]"),
        ({"position": "learned"}, r"model.position=rotary instead of 'learned' \(Qwen3ForCausalLM\)"),
        ({"position": "sinusoidal", "norm": "layernorm"}, "model.position=rotary instead of 'sinusoidal'"),
        ({"bias": True}, r"model.bias=false instead of true \(Qwen3.*\), or model.qk_norm=false .* \(LlamaFor"),
        ({"position": "alibi"}, "model.position=rotary instead of 'alibi'"),
        (GPT2 | {"position": "alibi", "bias": True} | EXACT_MLP, r"model.bias=false instead of true \(MptForCausalLM"),
        (GPT2 | {"n_kv_head": 2}, r"model.n_kv_head=null instead of 2 \(GPT2LM.*position=rotary .* \(Starcoder2"),
        (GPT2 | {"head_dim": 12}, r"model.head_dim=null instead of 12 \(GPT2LMHeadModel\)"),
        (GPT2 | {"window": 5, "bias": True}, r"model.qkv_bias=false instead of null \(GPTNeoForCausalLM\)"),
        ({"block": "parallel"}, "model.block=pre_norm instead of 'parallel'"),
        ({"rotary_fraction": 0.5}, "model.rotary_fraction=1 instead of 0.5"),
        (LLAMA | {"bias": True, "n_embd": 34, "head_dim": 8}, "model.n_embd=a multiple of 4 instead of 34"),
    ],
)
def test_a_setting_without_counterpart_is_named_with_the_nearest_that_has_one(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        exported(GPTConfig(**(SMALL | settings)))


def test_a_bias_that_the_class_lacks_must_be_zero(tmp_path: Path) -> None:
    model = small_model({"norm": "layernorm", "qk_norm": False, "bias": True})
    with pytest.raises(UserError, match=r"blocks.0.attn.proj.bias is not zero, and StableLmForCausalLM has no bias"):
        write_folder(tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


HF = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 70,
    "max_position_embeddings": 64,
}
HF_GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 70, "n_positions": 64}
HF_MPT = {"model_type": "mpt", "d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 70, "max_seq_len": 64}


def hf(kind: str, **settings: Any) -> dict[str, Any]:
    return HF | {"model_type": kind} | settings


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (hf("gemma3_text"), "model_type='gemma3_text': minigpt reads apertus, arcee, gpt2, "),
        (hf("llama") | {"model_type": ["llama"]}, r"model_type=\['llama'\]: minigpt reads"),
        ({}, "model_type=null: minigpt reads"),
        (HF_GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=true: minigpt has no"),
        (HF_GPT2 | {"scale_attn_weights": False}, "scale_attn_weights=false: .* reads true only"),
        (HF_GPT2 | {"activation_function": "relu"}, "activation_function='relu': minigpt has gelu_new"),
        (hf("llama", hidden_act="gelu"), "hidden_act='gelu': minigpt has silu"),
        (hf("apertus"), "hidden_act='xielu'"),
        (hf("llama", quantization_config={"bits": 4}), "quantization_config=.*: minigpt has no counterpart"),
        (hf("llama", num_local_experts=8), "num_local_experts=8"),
        (hf("llama", sliding_window=8), "sliding_window=8: this class has no windows"),
        (hf("llama", partial_rotary_factor=0.5), "partial_rotary_factor=0.5: this class rotates whole heads"),
        (hf("gpt_neox", rotary_pct=0.4), "partial_rotary_factor=0.4"),
        (hf("llama", rope_scaling={"type": "dynamic", "factor": 2.0}), "rope_scaling.rope_type='dynamic'"),
        (hf("llama", rope_parameters={"rope_type": "longrope"}), "rope_parameters.rope_type='longrope'"),
        (hf("llama", rope_parameters={"full_attention": {}}), "rope_parameters=.*differ between layers"),
        (hf("llama", rope_parameters={"rope_type": "llama3", "factor": 8}), "llama3 needs high_freq_factor"),
        (hf("stablelm", use_parallel_residual=True), "use_parallel_residual=true: minigpt has no counterpart"),
        (hf("vaultgemma", hidden_activation="silu"), "final_logit_softcapping=30.0"),
        (HF_MPT | {"attn_config": {"qk_ln": True}}, "attn_config.qk_ln=true"),
        (HF_MPT | {"attn_config": {"clip_qkv": 8}}, "attn_config.clip_qkv=8"),
        (HF_MPT | {"attn_config": {"alibi": False}}, "attn_config.alibi=false"),
    ],
)
def test_what_changes_the_mathematics_is_refused_by_name(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        imported(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (hf("llama", hidden_size=2**70), "hidden_size=a whole number of 71 bits: expected a whole number from 1 to"),
        (hf("llama", hidden_size=10**4000), "hidden_size=a whole number of 13288 bits"),
        (hf("llama", hidden_size="32"), "hidden_size='32': expected a whole number"),
        (hf("llama", hidden_size=True), "hidden_size=true: expected a whole number"),
        (hf("llama", hidden_size=None), "hidden_size=null: minigpt needs it"),
        (hf("llama", intermediate_size=None), "intermediate_size=null: minigpt needs it"),
        (hf("llama", num_hidden_layers=-1), "num_hidden_layers=-1: expected"),
        (hf("llama", num_attention_heads=0), "num_attention_heads=0: expected"),
        (hf("llama", num_attention_heads=5), "n_embd=32 is not divisible"),
        (hf("llama", max_position_embeddings=10**9), "max_position_embeddings=1000000000: expected"),
        (hf("llama", rms_norm_eps="x" * 10**6), "rms_norm_eps='xxx.*xx\\.\\.\\.: expected a number above 0"),
        (hf("llama", rms_norm_eps=float("nan")), "rms_norm_eps=nan: expected"),
        (hf("llama", rope_theta=float("inf")), "rope_theta=inf: expected"),
        (hf("llama", rope_theta=1), "rope_theta=1.0: expected a base above 1"),
        (hf("llama", rope_scaling=[1]), r"rope_scaling=\[1\]: expected an object"),
        (hf("llama", rope_scaling={"rope_type": {}}), "rope_scaling=.*differ"),
        (hf("llama", rope_scaling={"rope_type": "linear", "factor": -1}), "factor=-1: expected"),
        (hf("llama", attention_bias="yes"), "attention_bias='yes': expected true or false"),
        (hf("llama", hidden_act={"a": 1}), "hidden_act=.*: minigpt has silu"),
        (hf("qwen2", use_sliding_window=True, layer_types=["a"] * 9), "layer_types=.*: expected"),
        (hf("qwen2", max_window_layers=None), "max_window_layers=null"),
        (
            hf("gpt_neo", num_layers=2, num_heads=4, attention_types=[[["global"], 10**18]]),
            "attention_types=.*expected",
        ),
        (hf("gpt_neo", num_layers=2, num_heads=4, attention_types=[[[[]], 2]]), "attention_types=.*expected"),
        (HF_MPT | {"attn_config": [1], "d_model": 33}, "n_embd=33 is not divisible"),
    ],
)
def test_a_hostile_config_gets_one_line(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        imported(config)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
