"""Patching equals TransformerLens' on the same weights, and finds the circuit of a trained model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import ROOT
from small_runs import small_settings

from minigpt.cli.main import dispatch
from minigpt.cli.parsing import parse_training
from minigpt.inspection.patching import Contrast, activation_patching, attribution_patching, path_patching
from minigpt.runs.loading import load_model, save_weights
from minigpt.training.run import train

MODELS: dict[str, dict[str, Any]] = {
    "modern": {"n_kv_head": 1, "head_dim": 12},
    "GPT-2's": {"position": "learned", "norm": "layernorm", "mlp": "gelu", "qk_norm": False, "bias": True},
}
THEIRS = {
    "resid_pre": "resid_pre",
    "attn_out": "attn_out",
    "mlp_out": "mlp_out",
    "head": "attn_head_out_all_pos",
    "head_position": "attn_head_out_by_pos",
    "pattern": "attn_head_pattern_all_pos",
}


@pytest.mark.slow  # TransformerLens takes six seconds to import
@pytest.mark.parametrize("name", MODELS)
def test_every_patch_has_the_effect_that_it_has_in_transformer_lens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer_lens import patching as theirs
    from transformer_lens.model_bridge import TransformerBridge

    monkeypatch.chdir(tmp_path)
    loaded = load_model(train(small_settings(tmp_path, model=MODELS[name], attention={"enabled": False})).path)
    with torch.no_grad():  # heads that matter, which those of so short a training do not
        for parameter in loaded.model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    save_weights(tmp_path / "large.safetensors", loaded.model, loaded.config, loaded.tokenizer, 0)
    dispatch(["export", "large.safetensors", "--out", "large-hf"])
    bridge: Any = TransformerBridge.boot_transformers("large-hf", device="cpu", dtype=torch.float32)
    clean, corrupted = (torch.tensor([list(text.encode())]) for text in ("3 plus 4 is", "3 plus 9 is"))
    contrast = Contrast(clean, corrupted, answer=55, minus=57)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return contrast.metric(logits[:, -1])[0]

    with torch.no_grad():
        (_, of_clean), (_, of_corrupted) = bridge.run_with_cache(clean), bridge.run_with_cache(corrupted)
    found = activation_patching(loaded.model, contrast)
    for site, function in THEIRS.items():
        expected = getattr(theirs, f"get_act_patch_{function}")(bridge, corrupted, of_clean, metric)
        if site == "head_position":
            expected = expected.transpose(1, 2)  # theirs is (layer, position, head)
        torch.testing.assert_close(found.values[site], expected, rtol=0, atol=1e-4, msg=site)
    paths = path_patching(loaded.model, contrast, (0, 1))
    for component in "qkv" if loaded.model.config.kv_heads == loaded.model.config.n_head else "q":
        expected = theirs.get_act_patch_direct_path(
            bridge, corrupted, of_clean, of_corrupted, metric, 0, 1, component, verbose=False
        )
        torch.testing.assert_close(paths.values[component][1:], expected[1:], rtol=0, atol=1e-4, msg=component)


@pytest.mark.slow  # trains for two minutes
def test_a_trained_induction_circuit_is_found_and_gradients_agree(tmp_path: Path) -> None:
    words = [str(ROOT / "configs" / "induction.yaml"), "--trainer.logger=false", f"--runs_dir={tmp_path / 'runs'}"]
    config, _ = parse_training([*words, f"--data.dir={tmp_path / 'data'}", "--attention.enabled=false"])
    loaded = load_model(train(config).path)
    encode, end = loaded.tokenizer.encode, loaded.tokenizer.end_of_text
    clean, corrupted = (
        torch.tensor([[end, *encode(text)]]) for text in ("abcdefgXYZ012-abcdefg", "abcdefmXYZ012-abcdefg")
    )
    contrast = Contrast(clean, corrupted, answer=encode("X")[0])
    exact, estimated = (patch(loaded.model, contrast) for patch in (activation_patching, attribution_patching))
    print(exact.clean, exact.corrupted, exact.effect("head"), estimated.effect("head"))
    for site in ("head", "head_position", "attn_out"):
        pair = torch.stack([exact.effect(site).flatten(), estimated.effect(site).flatten()])
        print(site, float(torch.corrcoef(pair)[0, 1]))
    for head in range(4):
        found = path_patching(loaded.model, contrast, (0, head))
        print(head, {name: found.effect(name)[1].tolist() for name in "qkv"})
