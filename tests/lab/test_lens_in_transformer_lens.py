"""Logit lens and direct logit attribution of an exported model are those of TransformerLens on the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bridge import model_in_transformer_lens, random_model
from small_runs import GPT2

from minigpt.inspection.attribution import direct_logit_attribution
from minigpt.inspection.lens import logit_lens

MODELS: dict[str, dict[str, Any]] = {
    "Qwen3's": {"n_kv_head": 2, "head_dim": 12},
    "Llama's": {"qk_norm": False},
    "GPT-2's": GPT2,
}


@pytest.mark.slow  # TransformerLens takes six seconds to import
@pytest.mark.parametrize("name", MODELS)
def test_lens_and_attribution_are_those_of_transformer_lens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, model = random_model(MODELS[name])
    theirs = model_in_transformer_lens(config, model)
    tokens = torch.randint(257, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, cache = theirs.run_with_cache(tokens)
        streams = cache.accumulated_resid()
        logits = cache.accumulated_resid(apply_ln=True) @ theirs.W_U
    ours = logit_lens(model, tokens)
    torch.testing.assert_close(ours.stream, streams, rtol=0, atol=1e-4)
    targets = tokens.roll(-1, 1)
    expected = logits.log_softmax(-1).gather(-1, targets[None, ..., None].expand(3, 1, 20, 1))[..., 0]
    torch.testing.assert_close(ours.log_probabilities(targets), expected, rtol=0, atol=1e-4)

    # Folded, so that the norm's gain is in W_U; value biases stay in the heads, as here. Differences of two tokens are
    # compared, as folding centres W_U.
    theirs.enable_compatibility_mode(disable_warnings=True, fold_value_biases=False)
    with torch.no_grad():
        _, cache = theirs.run_with_cache(tokens)
        stack, labels = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
        for token, minus, position in ((65, 200, -1), (3, 9, 7)):
            found = cache.logit_attrs(stack, token, minus)[:, 0, position]
            of_theirs = {_ours(label): float(value) for label, value in zip(labels, found, strict=True)}
            attribution = direct_logit_attribution(model, tokens, token, minus, position)
            of_ours = dict(zip(attribution.names, attribution.values.tolist(), strict=True))
            # Theirs has one bias for all layers, and that of the final norm in b_U.
            of_ours["bias"] = sum(of_ours.pop(f"attn{layer} bias", 0.0) for layer in range(2))
            of_ours.pop("final_norm bias", None)
            assert of_ours.keys() == of_theirs.keys()
            for component, value in of_theirs.items():
                assert of_ours[component] == pytest.approx(value, abs=1e-4), component


def _ours(label: str) -> str:
    """The component that TransformerLens calls L1H0, 0_mlp_out, embed, pos_embed or bias."""
    if label.startswith("L"):
        return label[1:].replace("H", ".")
    names = {"embed": "embedding", "pos_embed": "position embedding", "bias": "bias"}
    return names.get(label) or f"mlp{label.removesuffix('_mlp_out')}"
