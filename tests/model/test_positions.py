"""Rotary positions: norms stay, and a score depends on the distance alone."""

import torch

from minigpt.model.positions import rotary_table, rotate


def test_rotation_keeps_the_norm_and_leaves_position_zero_as_it_is() -> None:
    x = torch.randn(1, 2, 16, 8)
    rotated = rotate(x, rotary_table(16, 8, 10_000.0))
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotated[:, :, 0], x[:, :, 0])


def test_the_score_of_two_rotated_vectors_depends_on_their_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(8), torch.randn(8)
    table = rotary_table(64, 8, 10_000.0)
    queries = rotate(q.expand(1, 1, 64, 8), table)[0, 0]
    keys = rotate(k.expand(1, 1, 64, 8), table)[0, 0]
    scores = queries @ keys.T
    for distance in (0, 1, 5, 30):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[0].expand_as(along), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(scores[1, 0], scores[5, 0])
