"""Composition scores, and the parts of a score, of an exported model are those of TransformerLens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bridge import model_in_transformer_lens, random_model
from small_runs import GPT2

from minigpt.inspection.composition import KINDS, composition_scores
from minigpt.inspection.qk_attribution import qk_attribution

MODELS: dict[str, dict[str, Any]] = {
    "Qwen3's": {"n_kv_head": 2, "head_dim": 12},
    "Llama's": {"qk_norm": False, "n_kv_head": 2},
    "GPT-2's": GPT2,
}
AT = ((0, 15, 6), (3, 9, 9), (2, 19, 0))
"""Head, query, key."""


@pytest.mark.slow  # TransformerLens takes six seconds to import
@pytest.mark.parametrize("name", MODELS)
def test_compositions_and_parts_of_scores_are_those_of_transformer_lens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, model = random_model(MODELS[name])
    for block in model.blocks if config.model.qk_norm else ():
        torch.nn.init.ones_(block.attn.q_norm.weight)  # they do not fold these gains in
        torch.nn.init.ones_(block.attn.k_norm.weight)
    theirs = model_in_transformer_lens(config, model)
    tokens = torch.randint(257, (1, 20), generator=torch.Generator().manual_seed(0))
    theirs.enable_compatibility_mode(disable_warnings=True, fold_value_biases=False)
    scores = composition_scores(model)
    for kind, found in zip(KINDS, scores, strict=True):
        expected = theirs.all_composition_scores(kind).scores
        torch.testing.assert_close(found.nan_to_num(0.0).float(), expected, rtol=0, atol=1e-5)

    with torch.no_grad():
        _, cache = theirs.run_with_cache(tokens)
        for head, query, key in AT:
            attribution = qk_attribution(model, tokens, 1, head, query, key)
            of_theirs = float(cache["blocks.1.attn.hook_attn_scores"][0, head, query, key])
            assert attribution.score == pytest.approx(of_theirs, abs=1e-4)
        if name != "GPT-2's":
            return  # rotary positions stand between their decomposition and the score
        stack, labels = cache.get_full_resid_decomposition(
            1, mlp_input=False, expand_neurons=False, return_labels=True, apply_ln=True
        )
        ours = ["embedding", "position embedding", *(f"0.{head}" for head in range(4)), "mlp0"]
        order = [labels.index(label) for label in ("embed", "pos_embed", *(f"L0H{h}" for h in range(4)), "0_mlp_out")]
        for head, query, key in AT:
            attribution = qk_attribution(model, tokens, 1, head, query, key)
            at_query = stack[order, 0, query] @ theirs.blocks[1].attn.W_Q[head]
            at_key = stack[order, 0, key] @ theirs.blocks[1].attn.W_K[head]
            rows = [attribution.names.index(component) for component in ours]
            parts = attribution.values[rows][:, rows].float()  # without biases, which are elsewhere after folding
            torch.testing.assert_close(parts, at_query @ at_key.T / config.model.width_per_head**0.5, rtol=0, atol=1e-4)
