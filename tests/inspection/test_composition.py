"""Composition scores are those of the large matrices, and find the circuit that was written by hand."""

from typing import Any

import pytest
import torch
from induction_circuit import induction_model
from test_circuits import each_kind, folded, norms_around, parts, tiny
from torch import Tensor

from minigpt.inspection.composition import KINDS, composition_scores, random_composition, strongest
from minigpt.model.gpt import GPT, PostNormBlock


def large_matrices(model: GPT, layer: int, head: int) -> tuple[Tensor, Tensor]:
    """(C, C) OV circuit and QK circuit of a head, from what they read in the rows."""
    part, eye = parts(model, layer, head), torch.eye(16, dtype=torch.float64)
    block, config = model.blocks[layer], model.config
    before, after = norms_around(block)
    stream = folded(before, eye)
    written = folded(after, stream @ part["value"].T @ part["proj"].T)
    if config.norm == "layernorm" and not isinstance(block, PostNormBlock):
        written = written - written.mean(1, keepdim=True)  # no later layer can read it
    query, key = stream @ part["query"].T, stream @ part["key"].T
    if config.qk_norm_per_head:
        query, key = folded(block.attn.q_norm, query), folded(block.attn.k_norm, key)
    else:
        D, n_shared = query.shape[1], config.n_head // config.kv_heads
        query = query * block.attn.q_norm.weight.double()[head * D : (head + 1) * D]
        key = key * block.attn.k_norm.weight.double()[head // n_shared * D : (head // n_shared + 1) * D]
    return written, query @ key.T


@each_kind
@torch.no_grad()
def test_scores_are_those_of_the_matrices_from_channels_to_channels(kind: dict[str, Any]) -> None:
    model = tiny(**kind)
    scores = composition_scores(model)
    assert scores.shape == (3, 2, 4, 2, 4)
    for earlier in range(4):
        ov, _ = large_matrices(model, 0, earlier)
        for later in range(4):
            ov_later, qk = large_matrices(model, 1, later)
            for found, read in zip(scores[:, 0, earlier, 1, later], (qk, qk.T, ov_later), strict=True):
                torch.testing.assert_close(found, (ov @ read).norm() / (ov.norm() * read.norm()))
    assert scores[:, :, :, 0].isnan().all(), "nothing is earlier than the first layer"
    assert scores[:, 1].isnan().all()


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_the_hand_written_circuit_composes_through_keys_and_stands_out(norm: str) -> None:
    model, before, induction = induction_model(norm=norm)
    scores, by_chance = composition_scores(model), random_composition(model)
    best = strongest(scores, "K", 3)
    assert (best[0].earlier, best[0].later) == ("0.0", "1.0")
    assert best[0].score == pytest.approx(float(scores[(1, *before, *induction)]))
    assert best[0].score > 1.9 * by_chance, "32 of 128 directions, all of them read: sqrt(128 / 32) = 2"
    assert best[1].score < 1.3 * by_chance
    for kind in "QV":
        assert scores[(KINDS.index(kind), *before, *induction)] < 0.1 * by_chance
        assert all(0.7 < pair.score / by_chance < 1.3 for pair in strongest(scores, kind, 3))


@pytest.mark.parametrize("kind", [{"norm": "rmsnorm"}, {"norm": "layernorm"}, {"block": "post_norm"}], ids=str)
def test_random_heads_have_the_score_of_random_heads(kind: dict[str, str]) -> None:
    torch.manual_seed(1)
    model = GPT(tiny(n_embd=64, **kind).config)  # as initialised
    found = composition_scores(model)[:, 0, :, 1]
    assert found.square().mean().sqrt() == pytest.approx(random_composition(model), rel=0.03)


def test_without_queries_and_keys_only_values_compose() -> None:
    scores = composition_scores(tiny(similarity="uniform", position="learned"))
    assert scores[:2].isnan().all()
    assert scores[2, 0, :, 1].isfinite().all()
    assert strongest(scores, "Q", 5) == []


def test_a_shared_projection_composes_alike_as_query_and_as_key() -> None:
    scores = composition_scores(tiny(similarity="symmetric"))[:, 0, :, 1]
    torch.testing.assert_close(scores[0], scores[1])


def test_pairs_are_listed_from_the_strongest_on_with_their_layers_and_heads() -> None:
    scores = composition_scores(tiny(n_layer=3))
    found = strongest(scores, "V", 1000)
    assert len(found) == 3 * 4 * 4, "of three layers: 0 to 1, 0 to 2, 1 to 2"
    assert [pair.score for pair in found] == sorted((pair.score for pair in found), reverse=True)
    for pair in found:
        at = [int(number) for name in (pair.earlier, pair.later) for number in name.split(".")]
        assert scores[(2, *at)] == pair.score
        assert at[0] < at[2]
