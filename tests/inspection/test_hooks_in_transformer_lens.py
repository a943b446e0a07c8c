"""Every activation that TransformerLens has under the same name is the same, and replacing it has the same effect."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bridge import in_transformer_lens
from small_runs import GPT2, small_settings

from minigpt.inspection.hooks import hooks, plain_name, run_with_cache
from minigpt.runs.loading import load_model
from minigpt.training.run import train

MODELS: dict[str, dict[str, Any]] = {
    "Qwen3": {"n_kv_head": 1, "head_dim": 12},
    "Llama": {"n_kv_head": 1, "qk_norm": False},
    "GPT-2": GPT2,
    "OLMo 2": {"block": "post_norm", "qk_norm_per_head": False},
    "GPT-NeoX": {"block": "parallel", "norm": "layernorm", "mlp": "gelu_exact", "qk_norm": False, "bias": True},
}
MISSING = {"OLMo 2": {"ln1.normalized", "ln2.normalized"}, "GPT-NeoX": {"resid_mid"}}
"""Names that are theirs alone there, or nobody's."""


@pytest.mark.slow  # TransformerLens takes six seconds to import
@pytest.mark.parametrize("name", MODELS)
def test_activations_are_those_of_transformer_lens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"context_length": 64} | MODELS[name]
    run = train(small_settings(tmp_path, model=settings, attention={"enabled": False}))
    theirs = in_transformer_lens(run.path)
    model, tokens = load_model(run.path).model, torch.randint(256, (2, 20))
    with torch.no_grad():
        _, expected = theirs.run_with_cache(tokens)
    _, cache = run_with_cache(model, tokens, "*")
    # `blocks.0.attn.hook_z` is a name of both; `blocks.0.attn.q.hook_out`, the same as `hook_q` there, is only theirs.
    shared = {plain_name(each): each for each in expected if plain_name(each) in cache}
    for ours, each in shared.items():
        found, wanted = cache[ours], expected[each]
        if ours.endswith("attn_scores"):  # the mask is -inf, or the lowest number
            found, wanted = found.clamp(min=-1e9), wanted.clamp(min=-1e9)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5, msg=ours)
    parts = [
        "attn.q",
        "attn.k",
        "attn.v",
        "attn.attn_scores",
        "attn.pattern",
        "attn.z",
        "attn_out",
        "resid_mid",
        "mlp.pre",
        "mlp.post",
    ]
    parts += ["ln1.normalized", "ln2.normalized", "mlp_out", "resid_pre", "resid_post"]
    assert {
        f"blocks.{layer}.{part}" for layer in range(2) for part in set(parts) - MISSING.get(name, set())
    } <= shared.keys()

    # Not resid_mid: writing it there changes the input of ln2 only, not the stream itself.
    for part in ("attn.q", "attn.k", "attn.v", "attn.z", "attn.pattern", "attn_out", "mlp.post", "resid_pre"):
        where = f"blocks.1.{part}"
        new = cache[where].roll(1, dims=1) if part != "attn.pattern" else cache[where].square()
        with torch.no_grad():
            wanted = theirs.run_with_hooks(tokens, fwd_hooks=[(shared[where], lambda *_, hook, new=new: new)])
            with hooks(model, {where: lambda *_, new=new: new}):
                torch.testing.assert_close(model(tokens), wanted, rtol=0, atol=1e-5, msg=where)
