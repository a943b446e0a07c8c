"""The hand-written circuit does what its weights say, by this package's own statistics."""

import itertools
from typing import Any

import pytest
import torch
from induction_circuit import induction_model, repeated_without_duplicates

from minigpt.inspection import statistics
from minigpt.inspection.ablation import losses, without_head
from minigpt.inspection.measuring import measure


@pytest.mark.parametrize(
    "kind", [{}, {"norm": "rmsnorm", "bias": False}, {"n_kv_head": 2}, {"block": "parallel"}], ids=str
)
def test_the_circuit_predicts_second_copies_through_its_two_heads(kind: dict[str, Any]) -> None:
    model, before, induction = induction_model(**kind)
    tokens = repeated_without_duplicates(period=15)
    wanted = {"previous_token": statistics.previous_token, "induction": statistics.induction(15, 1)}
    found = measure(model, tokens, wanted)
    for name, head in (("previous_token", before), ("induction", induction)):
        scores = torch.tensor(found.scores[name])
        assert scores[head] > 0.99
        scores[head] = 0.0
        assert scores.max() < 0.3, f"no other head has a score of {name}"
    assert found.losses[:, 16:].mean() < 0.01
    assert found.losses[:, :15].mean() > 3.0, "the first copy is random: ln(31) is 3.4"


def test_either_of_the_two_heads_is_needed_and_no_other() -> None:
    model, before, induction = induction_model()
    tokens, changes = repeated_without_duplicates(), torch.zeros(2, 4)
    with torch.no_grad():
        whole = losses(model, tokens)[:, 16:].mean()
        for layer, head in itertools.product(range(2), range(4)):
            with without_head(model, layer, head):
                changes[layer, head] = losses(model, tokens)[:, 16:].mean() - whole
    for needed in (before, induction):
        assert changes[needed] > 2.0
        changes[needed] = 0.0
    assert changes.abs().max() < 0.01


def test_a_lower_score_makes_a_softer_circuit_that_still_predicts() -> None:
    model, _, induction = induction_model(score=6.0)
    found = measure(model, repeated_without_duplicates(), {"induction": statistics.induction(15, 1)})
    assert 0.8 < found.scores["induction"][induction] < 0.99
    assert found.losses[:, 16:].mean() < 0.5
