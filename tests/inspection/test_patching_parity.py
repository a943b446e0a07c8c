"""Patching equals TransformerLens' on the same weights, and finds the circuit of a trained model."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from bridge import in_transformer_lens
from scripts import ROOT
from small_runs import GPT2, small_settings

from minigpt.cli.parsing import parse_training
from minigpt.inspection.capture import capture_attention
from minigpt.inspection.patching import Contrast, Patching, activation_patching, attribution_patching, path_patching
from minigpt.runs.loading import LoadedModel, load_model, save_weights
from minigpt.training.run import train

MODELS: dict[str, dict[str, Any]] = {
    "modern": {"n_kv_head": 1, "head_dim": 12},
    "GPT-2's": GPT2,
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
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    monkeypatch.chdir(tmp_path)
    loaded = load_model(train(small_settings(tmp_path, model=MODELS[name], attention={"enabled": False})).path)
    with torch.no_grad():  # heads that matter, which those of so short a training do not
        for parameter in loaded.model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    save_weights(tmp_path / "large.safetensors", loaded.model, loaded.config, loaded.tokenizer, 0)
    bridge = in_transformer_lens("large.safetensors")
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
    estimated = attribution_patching(loaded.model, contrast, ["head_position"], steps=1)
    nodes = attribution_patch(bridge, clean, corrupted, metric).node_scores
    heads = {node: score for node, score in nodes.items() if node.kind == "attn_head_out"}
    assert len(heads) == estimated.values["head_position"].numel()
    for node, score in heads.items():
        change = estimated.values["head_position"][node.layer, node.head, node.position] - estimated.corrupted
        assert float(change) == pytest.approx(score, abs=1e-4)
    paths = path_patching(loaded.model, contrast, (0, 1))
    for component in "qkv" if loaded.model.config.kv_heads == loaded.model.config.n_head else "q":
        expected = theirs.get_act_patch_direct_path(
            bridge, corrupted, of_clean, of_corrupted, metric, 0, 1, component, verbose=False
        )
        torch.testing.assert_close(paths.values[component][1:], expected[1:], rtol=0, atol=1e-4, msg=component)


def swapped(loaded: LoadedModel, seed: int) -> Contrast:
    """Twelve characters, a new one, and one of the twelve again, which in the corrupted prompt has another's place."""
    end, n_tokens = loaded.tokenizer.end_of_text, loaded.tokenizer.vocab_size
    *text, new = random.Random(seed).sample([token for token in range(n_tokens) if token != end], 13)
    other = list(text)
    other[3], other[8] = text[8], text[3]
    clean, corrupted = (torch.tensor([[end, *each, new, text[3]]]) for each in (text, other))
    return Contrast(clean, corrupted, answer=text[4], minus=text[9])


def changes(found: list[Patching], name: str) -> torch.Tensor:
    """Of the logit difference, on average over prompts: single patches depend on the characters."""
    return torch.stack([each.values[name] - each.corrupted for each in found]).mean(0)


def check_circuit(loaded: LoadedModel) -> None:
    contrasts = [swapped(loaded, seed) for seed in range(16)]
    exact, estimated = (
        [patch(loaded.model, each) for each in contrasts] for patch in (activation_patching, attribution_patching)
    )
    assert sum(each.clean for each in exact) > sum(each.corrupted for each in exact) + 8
    for site in ("resid_pre", "attn_out", "head"):
        pair = torch.stack([changes(both, site).flatten() for both in (exact, estimated)])
        assert float(torch.corrcoef(pair)[0, 1]) > 0.9, site
    paths = [[path_patching(loaded.model, each, (0, head)) for each in contrasts] for head in range(4)]
    into = {name: torch.stack([changes(of_head, name)[1] for of_head in paths]) for name in "qkv"}  # (sender, receiver)
    assert float(into["k"].sum()) > 3 * max(float(into[name].sum().abs()) for name in "qv")
    # The head of the first layer that matters most is the one whose output the keys read.
    previous_token = int(changes(exact, "head")[0].argmax())
    assert int(into["k"].sum(1).argmax()) == previous_token
    with capture_attention(loaded.model) as maps:
        loaded.model(contrasts[0].clean)
    # Its window has four tokens. It attends to the one or two before, and not to its own.
    before = sum(maps[0][0, previous_token].diagonal(-distance)[3:].mean() for distance in (1, 2))
    assert float(before) > 0.5


@pytest.mark.slow  # trains for two minutes
def test_a_trained_induction_circuit_runs_through_keys_and_its_gradients_agree(tmp_path: Path) -> None:
    words = [str(ROOT / "configs" / "induction.yaml"), "--trainer.logger=false", f"--runs_dir={tmp_path / 'runs'}"]
    config, _ = parse_training([*words, f"--data.dir={tmp_path / 'data'}", "--attention.enabled=false"])
    check_circuit(load_model(train(config).path))
