"""Queries and keys -> how much each token weighs what it hears.

Every softmax similarity says its scores as one product, q'·k' times a scale plus a bias for each key, and so runs on
the fused kernel: what does not depend on the key falls out of a softmax over keys. `Linear` has no softmax and `Hard`
no weighted sum; `attend` computes those two in their own ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minigpt.config import GPTConfig, UserError


class Scores(NamedTuple):
    """score[t, s] = scale * query[t]·key[s] + key_bias[s]."""

    query: Tensor
    """(B, H, T, D)."""
    key: Tensor
    """(B, H_kv, S, D)."""
    scale: float
    key_bias: Tensor | None = None
    """(B or 1, H, S), or None for no bias."""


class Similarity(nn.Module):
    """How much a query weighs a key. Built with its own settings, so that what it learns is among the parameters."""

    name: str
    """As in GPTConfig.similarity."""
    projections: tuple[str, ...] = ("query", "key", "value")
    """What a token's vector must be projected to; what is missing here needs no weights in the model."""
    steps: int = 1
    """Updates of the query; all but the last gather keys instead of values."""

    @property
    def n_head(self) -> int | None:
        """Number of heads that it learns something for, the length of its parameters; None if it learns nothing."""
        return next((len(parameter) for parameter in self.parameters()), None)

    def scores(self, query: Tensor, key: Tensor) -> Scores:
        """The scores before the softmax. Args: query (B, H, T, D), key (B, H_kv, S, D)."""
        raise NotImplementedError


class ScaledDot(Similarity):
    """q·k / (sqrt(D) temperature) (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762)."""

    name = "scaled_dot"

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        _require_positive("temperature", temperature)
        self.temperature = temperature

    def scores(self, query: Tensor, key: Tensor) -> Scores:
        return Scores(query, key, 1 / (query.shape[-1] ** 0.5 * self.temperature))


class Symmetric(ScaledDot):
    """Scaled dot product of one projection with itself: a attends to b as b to a, before the softmax.

    The usual two projections can say "I look for you" without "you look for me"; this one cannot (Tsai et al. 2019,
    section 3.3, https://arxiv.org/abs/1908.11775; Kitaev et al. 2020, https://arxiv.org/abs/2001.04451, share the
    projection too).
    """

    name = "symmetric"
    projections = ("key", "value")


class Cosine(Similarity):
    """cos(q, k) / temperature, a temperature learned by each head (Henry et al. 2020, https://arxiv.org/abs/2010.04245).

    It starts at 0.1 and stays above 0.01, as in Swin v2 (Liu et al. 2022, https://arxiv.org/abs/2111.09883).
    """

    name = "cosine"

    def __init__(self, n_head: int, temperature: float = 0.1) -> None:
        super().__init__()
        _require_positive("temperature", temperature)
        self.log_temperature = nn.Parameter(torch.full((n_head,), temperature).log())

    def scores(self, query: Tensor, key: Tensor) -> Scores:
        scale = self.log_temperature.exp().clamp(min=0.01).reciprocal().to(query.dtype)
        return Scores(_unit(query, scale[:, None, None]), _unit(key), 1.0)


class Gaussian(Similarity):
    """-|q - k|^2 / (2 width^2): Nadaraya and Watson's kernel regression (1964), a width learned by each head.

    |q|^2 is the same for all keys of a query and falls out: this is q·k / width^2 with a bias of -|k|^2 / (2 width^2)
    for each key. Points far from the origin, counted in widths, lose digits in that difference. In a model the width
    starts at D^(1/4), which gives q·k the scale of the scaled dot product.
    """

    name = "gaussian"

    def __init__(self, n_head: int, width: float) -> None:
        super().__init__()
        _require_positive("width", width)
        self.log_width = nn.Parameter(torch.full((n_head,), float(width)).log())

    def scores(self, query: Tensor, key: Tensor) -> Scores:
        precision = (-2 * self.log_width).exp()  # (H,) 1 / width^2
        groups = len(precision) // key.shape[1]
        exact = torch.promote_types(key.dtype, torch.float32)
        half_square = torch.linalg.vector_norm(key, dim=-1, dtype=exact).square() / 2  # (B, H_kv, S)
        bias = -half_square.repeat_interleave(groups, dim=1) * precision[:, None]
        return Scores(query * precision[:, None, None].to(query.dtype), key, 1.0, bias)


class Hopfield(Similarity):
    """beta q·k, the query replaced by what it finds `steps - 1` times (Ramsauer et al. 2021, arXiv:2008.02217).

    One step with beta = 1 / sqrt(D) is the scaled dot product: attention is one retrieval from a memory of keys.
    """

    name = "hopfield"

    def __init__(self, beta: float | None = None, steps: int = 1) -> None:
        """Args: beta is 1 / sqrt(D) when not given."""
        super().__init__()
        if beta is not None:
            _require_positive("beta", beta)
        if steps < 1:
            raise UserError(f"steps={steps}: must be at least 1 update")
        self.beta, self.steps = beta, steps

    def scores(self, query: Tensor, key: Tensor) -> Scores:
        return Scores(query, key, query.shape[-1] ** -0.5 if self.beta is None else self.beta)


class Uniform(Similarity):
    """0: the plain average over whoever is heard; no queries and no keys."""

    name = "uniform"
    projections = ("value",)

    def scores(self, query: Tensor, key: Tensor) -> Scores:
        return Scores(torch.zeros_like(query), torch.zeros_like(key), 1.0)


class Hard(ScaledDot):
    """All weight on one key: the best, or in training mode one sampled by its probability (Xu et al. 2015, 1502.03044).

    As any module, it is in training mode until `eval()`.
    Choosing has no gradient; the softmax's is used in its place (straight through; Bengio et al. 2013,
    https://arxiv.org/abs/1308.3432).
    """

    name = "hard"

    def __init__(self, temperature: float = 1.0, *, sampled: bool = False) -> None:
        super().__init__(temperature)
        self.sampled = sampled

    def choose(self, scores: Tensor) -> Tensor:
        """(..., S) scores, -inf where there is no edge -> one-hot weights with the softmax's gradient."""
        soft = scores.softmax(dim=-1)
        if self.sampled and self.training:
            # Gumbel (1954): the largest score plus noise -log(-log u) falls on s with the softmax's probability.
            scores = scores - torch.empty_like(scores).exponential_().log()
        hard = torch.zeros_like(soft).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
        return hard + (soft - soft.detach())


class Linear(Similarity):
    """phi(q)·phi(k) with phi(x) = elu(x) + 1, divided by its sum over the keys (Katharopoulos et al. 2020, 2006.16236).

    Without a softmax, the sums over keys can be carried along: time and memory grow linearly in T. With rotary
    positions the features are of the rotated vectors, so that weights depend on places and not on distances alone.
    """

    name = "linear"

    def features(self, x: Tensor) -> Tensor:
        """phi: positive, so that weights are."""
        # Not F.elu(x) + 1, which subtracts 1 and adds it again: nothing would be left of very small weights.
        return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


SIMILARITIES: dict[str, Callable[[GPTConfig], Similarity]] = {
    "scaled_dot": lambda config: ScaledDot(config.softmax_temperature),
    "cosine": lambda config: Cosine(config.n_head),
    "gaussian": lambda config: Gaussian(config.n_head, config.width_per_head**0.25),
    "hopfield": lambda config: Hopfield(config.hopfield_beta, config.hopfield_steps),
    "symmetric": lambda config: Symmetric(config.softmax_temperature),
    "uniform": lambda config: Uniform(),
    "linear": lambda config: Linear(),
    "hard": lambda config: Hard(config.softmax_temperature, sampled=config.hard_choice == "sampled"),
}


def _unit(x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """x at length `scale` along the last axis, in one pass more than the product itself; a zero vector stays zero."""
    return x * (scale / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-6))


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name}={value}: must be above 0")
