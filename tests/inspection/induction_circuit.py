"""A two-layer GPT with an induction circuit written by hand: what a tool for circuits must find is known."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.model.gpt import GPT

SIZE = 32
"""Width of each of the four parts of the stream, and so the vocabulary, the context and the width of a head."""


class InductionCircuit(NamedTuple):
    """The model, and (layer, head) of the two heads that matter; the other six are small and random."""

    model: GPT
    previous_token: tuple[int, int] = (0, 0)
    induction: tuple[int, int] = (1, 0)


@torch.no_grad()
def induction_model(score: float = 12.0, logit: float = 12.0, noise: float = 0.01, **kind: Any) -> InductionCircuit:
    """GPT-2's form, in eval mode: after "a b ... a" it predicts b (Elhage et al. 2021; Olsson et al. 2022).

    The stream has four parts of SIZE channels, each with a one-hot code: token, position, token before, prediction.
    Head 0.0 attends from position i to i - 1, and copies the token there to the third part. Head 1.0 compares its own
    token with the third part of each key (K-composition), and copies the token of the key to the fourth part, which
    alone the output head reads. The weights of the MLPs are zero.

    Args:
        score: score of the key that each of the two heads looks for; those of all others are about equal, and lower by
            this much.
        logit: of the token that is copied with a weight of 1; those of others are about 0.
        noise: standard deviation of the weights of the other heads.
        kind: settings of the model to change, such as norm="rmsnorm", bias=False, n_kv_head=4 or block="parallel".
    """
    settings = {"vocab_size": SIZE, "context_length": SIZE, "n_layer": 2, "n_head": 4, "n_embd": 4 * SIZE}
    config = GPTConfig.gpt2_family(**(settings | {"tie_embeddings": False} | kind))
    model = GPT(config).eval()
    random, one_hot = torch.Generator().manual_seed(0), torch.eye(SIZE)
    token, position, before, prediction = (slice(part * SIZE, (part + 1) * SIZE) for part in range(4))
    for weight in (model.token_embedding.weight, model.position_embedding.weight, model.lm_head.weight):
        nn.init.zeros_(weight)
    model.token_embedding.weight[:SIZE, token] = one_hot
    model.position_embedding.weight[:, position] = one_hot
    C = config.n_embd
    # A norm multiplies n one-hot codes by about sqrt(C / n), as it leaves a mean square of 1.
    model.lm_head.weight[:SIZE, prediction] = logit * one_hot / (C / 4) ** 0.5
    for block in model.blocks:
        block.attn.qkv.weight.normal_(std=noise, generator=random)
        block.attn.proj.weight.normal_(std=noise, generator=random)
        for parameter in block.mlp.parameters():
            nn.init.zeros_(parameter)
    # What a query reads and how, what a key reads and how, what is copied from where to where.
    following = one_hot.roll(1, dims=0)  # the code of position j to that of j + 1
    following[0] = 0.0
    _write_head(model, 0, score, (position, one_hot), (position, following), (token, before))
    _write_head(model, 1, score, (token, one_hot), (before, one_hot), (token, prediction))
    return InductionCircuit(model)


def _write_head(
    model: GPT,
    layer: int,
    score: float,
    query: tuple[slice, Tensor],
    key: tuple[slice, Tensor],
    copied: tuple[slice, slice],
) -> None:
    """Write head 0 of a layer: its query and its key as (part of the stream, (D, D) matrix), and its copy."""
    attention, (read, written) = model.blocks[layer].attn, copied
    D = attention.head_dim
    first_key, first_value = D * attention.n_projected[0], D * sum(attention.n_projected[:2])
    queries, keys, values = (slice(start, start + D) for start in (0, first_key, first_value))
    gain = (model.config.n_embd / (2 + layer)) ** 0.5  # of the norm: each layer has added one code
    weight, proj = attention.qkv.weight, attention.proj.weight
    for part in (queries, keys, values):
        weight[part] = 0.0
    proj[:, :D] = 0.0
    weight[queries, query[0]] = query[1] * score * D**0.5 / gain**2
    weight[keys, key[0]] = key[1]
    weight[values, read] = torch.eye(D)
    proj[written, :D] = torch.eye(D) / gain


def repeated_without_duplicates(n: int = 4, period: int = 15) -> Tensor:
    """(n, 1 + 2 period) ids: token 0, then random other tokens, none twice, and the same again."""
    random = torch.Generator().manual_seed(0)
    copies = torch.stack([1 + torch.randperm(SIZE - 1, generator=random)[:period] for _ in range(n)])
    return torch.cat([torch.zeros(n, 1, dtype=torch.long), copies, copies], dim=1)
