"""An exported model in TransformerLens: the same patterns in every head, the same scores where definitions agree."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bridge import in_transformer_lens
from small_runs import GPT2, small_settings

from minigpt.inspection import statistics
from minigpt.inspection.capture import capture_attention
from minigpt.inspection.measuring import measure
from minigpt.runs.loading import load_model
from minigpt.training.run import train

MODELS: dict[str, dict[str, Any]] = {
    "modern": {"n_kv_head": 1, "head_dim": 12},
    "GPT-2's": GPT2,
}


@pytest.mark.slow  # TransformerLens takes six seconds to import
@pytest.mark.parametrize("name", MODELS)
def test_every_head_has_the_same_pattern_and_score_in_transformer_lens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer_lens.head_detector import detect_head

    monkeypatch.chdir(tmp_path)
    settings = {"context_length": 64} | MODELS[name]
    run = train(small_settings(tmp_path, model=settings, attention={"enabled": False}))
    theirs = in_transformer_lens(run.path)
    model = load_model(run.path).model
    text = "".join(chr(33 + i * 17 % 80) for i in range(30)) * 2  # no character twice in each half
    tokens, period = theirs.to_tokens(text), len(text) // 2
    T = tokens.shape[1]
    first = T - 2 * period  # it puts the end of a text before one, or not, by the family
    assert tokens[0].tolist() == [256] * first + list(text.encode())
    with torch.no_grad():
        logits, cache = theirs.run_with_cache(tokens)
        with capture_attention(model) as maps:
            torch.testing.assert_close(model(tokens), logits, rtol=0, atol=1e-5)
    for layer, pattern in enumerate(maps):
        torch.testing.assert_close(pattern, cache[f"blocks.{layer}.attn.hook_pattern"], rtol=0, atol=1e-5)

    wanted = {"previous_token": statistics.previous_token, "induction": statistics.induction(period, first)}
    wanted["duplicate_token"] = statistics.duplicate_token(period, first)
    last = torch.cat([tokens, tokens[:, :1]], dim=1)  # `measure` predicts the last token, so does not attend from it
    found = measure(model, last, wanted).scores
    # Theirs divides by the weights of all queries, ours by the number of those for which the score is defined.
    for score, n_queries in {"previous_token": T - 1, "duplicate_token": period, "induction": period}.items():
        detected = detect_head(theirs, text, f"{score}_head", error_measure="mul")
        torch.testing.assert_close(torch.tensor(found[score]).float() * n_queries / T, detected, rtol=0, atol=1e-5)
