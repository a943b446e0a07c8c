"""Composition scores: how much of what a head reads is what an earlier head writes, from the weights alone.

A head's query, key and value each read the residual stream, to which all earlier heads have written; so a head can
attend from, attend to, or pass on what an earlier one found (Elhage et al. 2021,
https://transformer-circuits.pub/2021/framework). Norms, rotary positions and QK-norm as in `circuits`: their linear
parts are folded in, their divisions and rotations are not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from minigpt.inspection.circuits import exact, layers_of, projection, query_and_key
from minigpt.model.attention import Attention
from minigpt.model.gpt import GPT

KINDS = ("Q", "K", "V")
"""What composes with an earlier head's output: a later head's query, key or value."""


class Composition(NamedTuple):
    """A strong pair of heads."""

    kind: str
    """Of `KINDS`."""
    earlier: str
    """LAYER.HEAD, as 0.3."""
    later: str
    score: float


@torch.no_grad()
def composition_scores(model: GPT) -> Tensor:
    """|W_read W_OV| / (|W_read| |W_OV|) of each two heads, with Frobenius norms, and their full (C, C) circuits.

    W_OV is the earlier head's; W_read is the later head's W_QK as its query reads the stream, W_QK as its key does, and
    W_OV: Q-, K- and V-composition. From 0, if one reads no direction that the other writes, to at most 1, if both have
    one direction, the same; `random_composition` is what unrelated heads have. What a LayerNorm subtracts before it is
    read does not count as written. Equal to TransformerLens' `all_composition_scores` with its default processing of
    weights, but for QK-norm's gains, which it does not fold in.

    Returns:
        (3, n_layer, n_head, n_layer, n_head) float64 on the CPU: kind, earlier layer and head, later layer and head.
        NaN where the first head is not in an earlier layer, for heads without weights, and for Q and K where the
        similarity has no key projection.
    """
    L, H = model.config.n_layer, model.config.n_head
    scores = torch.full((len(KINDS), L, H, L, H), torch.nan, dtype=torch.float64)
    before = list[_Written]()
    for later, (attention, norm, norm_after) in enumerate(layers_of(model)):
        output = _output(model, attention, norm_after)  # (H, C, D)
        value = projection(attention, "value") @ norm  # (H, D, C)
        grams = value @ value.mT, output.mT @ output
        # (what reads the stream, the Gram matrix of what its result is multiplied with, |W_read|^2), of each kind.
        reads = {"V": (value, grams[1], (grams[0] * grams[1]).sum((-2, -1)))}
        if "key" in attention.similarity.projections:
            query, key = query_and_key(attention, norm)
            of_query, of_key = query @ query.mT, key @ key.mT
            size = (of_query * of_key).sum((-2, -1))
            reads |= {"Q": (query, of_key, size), "K": (key, of_query, size)}
        for earlier, written in enumerate(before):
            for kind, (read, partner, size) in reads.items():
                across = torch.einsum("hdc,gce->ghde", read, written.output.double())  # (earlier H, H, D, D)
                product = ((across @ written.value_gram[:, None]) * (partner @ across)).sum((-2, -1))
                score = (product.clamp(min=0) / (written.size[:, None] * size)).sqrt()
                scores[KINDS.index(kind), earlier, :, later] = score
        # Kept in the weights' own precision: of all layers together they are as large as the model's.
        kept = output.to(torch.promote_types(attention.proj.weight.dtype, torch.float32))
        before.append(_Written(kept, grams[0], reads["V"][2]))
    return scores


def random_composition(model: GPT) -> float:
    """The composition score of unrelated heads: 1 / sqrt(number of channels through which heads can compose).

    The root mean square of the score over random rotations of one circuit against the other, whatever their singular
    values: E |A R B|^2 = |A|^2 |B|^2 / C for an orthogonal R drawn uniformly. No sampling is needed.
    """
    return float((model.config.n_embd - _is_centred(model)) ** -0.5)


def strongest(scores: Tensor, kind: str, most: int) -> list[Composition]:
    """The pairs of heads with the highest scores of one kind, highest first.

    Args:
        scores: of `composition_scores`.
        kind: of `KINDS`.
        most: maximum number of pairs.
    """
    of_kind = scores[KINDS.index(kind)]
    flat = of_kind.flatten().nan_to_num(-1.0)
    best = flat.topk(min(most, int((flat >= 0).sum())))
    found = list[Composition]()
    for at, score in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        rest, head = divmod(at, of_kind.shape[3])
        rest, layer = divmod(rest, of_kind.shape[2])
        found.append(Composition(kind, "{}.{}".format(*divmod(rest, of_kind.shape[1])), f"{layer}.{head}", score))
    return found


class _Written(NamedTuple):
    """What the heads of one layer write."""

    output: Tensor
    """(H, C, D) output matrices."""
    value_gram: Tensor
    """(H, D, D): W_V W_V^T."""
    size: Tensor
    """(H,): |W_OV|^2."""


def _output(model: GPT, attention: Attention, norm_after: Tensor) -> Tensor:
    """(H, C, D) output matrices, without the mean over channels where later norms subtract it."""
    proj = norm_after @ exact(attention.proj.weight)
    if _is_centred(model):
        proj = proj - proj.mean(0)
    return proj.unflatten(1, (attention.n_head, -1)).transpose(0, 1)


def _is_centred(model: GPT) -> bool:
    """All that reads the stream subtracts the mean over channels; post_norm blocks read it as it is."""
    return model.config.norm == "layernorm" and model.config.block != "post_norm"
