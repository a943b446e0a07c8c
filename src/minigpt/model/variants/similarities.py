"""Similarities: the score of a query and a key, which the softmax turns into a weight.

Every softmax similarity is one product, q'·k' times a scale, plus a bias for each key, and so runs on the fused kernel:
terms that do not depend on the key cancel in the softmax over keys. `Linear` has no softmax and `Hard` takes one key
only; `attend` computes those two separately. To add one, see the end of docs/attention.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.errors import UserError


class ScoreFactors(NamedTuple):
    """What scores are made of: score[t, s] = scale * query[t]·key[s] + key_bias[s]."""

    query: Tensor
    """(B, H, T, D)."""
    key: Tensor
    """(B, H_kv, S, D)."""
    scale: float
    key_bias: Tensor | None = None
    """(B or 1, H, S), or None for no bias."""


class Similarity(nn.Module):
    """The score of a query and a key. A module, so that parameters it learns are among the model's."""

    name: str
    """As in GPTConfig.similarity."""
    projections: tuple[str, ...] = ("query", "key", "value")
    """Projections that it reads; the model has no weights for the others."""
    steps: int = 1
    """Updates of the query (Hopfield); all but the last take the weighted sum of keys instead of values."""

    @property
    def n_head(self) -> int | None:
        """Number of heads that it has parameters for, None if it has none. Every parameter is (H, ...)."""
        return next((len(parameter) for parameter in self.parameters()), None)

    def score_factors(self, query: Tensor, key: Tensor) -> ScoreFactors:
        """The scores before the softmax, as factors. Args: query (B, H, T, D), key (B, H_kv, S, D)."""
        raise NotImplementedError


class ScaledDot(Similarity):
    """q·k / (sqrt(D) temperature) (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762)."""

    name = "scaled_dot"

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        _require_positive("temperature", temperature)
        self.temperature = temperature

    def score_factors(self, query: Tensor, key: Tensor) -> ScoreFactors:
        return ScoreFactors(query, key, 1 / (query.shape[-1] ** 0.5 * self.temperature))


class Symmetric(ScaledDot):
    """Scaled dot product of one projection with itself: score[t, s] = score[s, t].

    Two projections can score (t, s) high and (s, t) low; one cannot (Tsai et al. 2019,
    section 3.3, https://arxiv.org/abs/1908.11775; Kitaev et al. 2020, https://arxiv.org/abs/2001.04451, share the
    projection too).
    """

    name = "symmetric"
    projections = ("key", "value")


class Cosine(Similarity):
    """cos(q, k) / temperature, with a learned temperature for each head (Henry et al. 2020,
    https://arxiv.org/abs/2010.04245).

    It starts at 0.1 and stays above 0.01, as in Swin v2 (Liu et al. 2022, https://arxiv.org/abs/2111.09883).
    """

    name = "cosine"

    def __init__(self, n_head: int, temperature: float = 0.1) -> None:
        super().__init__()
        _require_positive("temperature", temperature)
        # Learned as a logarithm, which keeps it positive and makes a step a change in proportion.
        self.log_temperature = nn.Parameter(torch.full((n_head,), temperature).log())

    def score_factors(self, query: Tensor, key: Tensor) -> ScoreFactors:
        dtype = torch.promote_types(query.dtype, torch.float32)
        scale = self.log_temperature.to(dtype).exp().clamp(min=0.01).reciprocal()
        return ScoreFactors(_unit(query, scale[:, None, None]), _unit(key), 1.0)


class Gaussian(Similarity):
    """-|q - k|^2 / (2 width^2): kernel regression (Nadaraya 1964, Watson 1964), with a learned width for each head.

    Far from the origin, in units of the width, its score is a small difference of large numbers, and loses digits.
    """

    name = "gaussian"

    def __init__(self, n_head: int, width: float) -> None:
        super().__init__()
        _require_positive("width", width)
        self.log_width = nn.Parameter(torch.full((n_head,), float(width)).log())

    def score_factors(self, query: Tensor, key: Tensor) -> ScoreFactors:
        # |q|^2 is the same for all keys of a query and cancels in the softmax. What remains is q·k / width^2, and a
        # bias of -|k|^2 / (2 width^2) for each key.
        precision = (-2 * self.log_width).exp()  # (H,) 1 / width^2
        groups = len(precision) // key.shape[1]
        dtype = torch.promote_types(key.dtype, torch.float32)
        half_square = torch.linalg.vector_norm(key, dim=-1, dtype=dtype).square() / 2  # (B, H_kv, S)
        bias = -half_square.repeat_interleave(groups, dim=1) * precision[:, None]
        return ScoreFactors(query * precision[:, None, None].to(query.dtype), key, 1.0, bias)


class Hopfield(Similarity):
    """beta q·k, after replacing the query `steps - 1` times by its retrieval (Ramsauer et al. 2021, arXiv:2008.02217).

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

    def score_factors(self, query: Tensor, key: Tensor) -> ScoreFactors:
        return ScoreFactors(query, key, query.shape[-1] ** -0.5 if self.beta is None else self.beta)


class Uniform(Similarity):
    """A score of 0: the mean of the values in reach. It has neither queries nor keys."""

    name = "uniform"
    projections = ("value",)

    def score_factors(self, query: Tensor, key: Tensor) -> ScoreFactors:
        # Through the same kernel as all others: equal scores give equal weights.
        return ScoreFactors(torch.zeros_like(query), torch.zeros_like(key), 1.0)


class Hard(ScaledDot):
    """All weight on one key: the argmax, or in training mode a sample from the softmax (Xu et al. 2015, 1502.03044).

    The choice has no gradient; the backward pass uses that of the softmax (straight-through estimator, Bengio et al.
    2013, https://arxiv.org/abs/1308.3432). Like any module, it is in training mode until `eval()`.
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
        # The value of `hard`, the gradient of `soft`: the difference in brackets is 0 but for its gradient.
        return hard + (soft - soft.detach())


class Linear(Similarity):
    """phi(q)·phi(k) with phi(x) = elu(x) + 1, divided by its sum over the keys (Katharopoulos et al. 2020, 2006.16236).

    Without a softmax, the sums over keys are a running state: time and memory are linear in T. With rotary positions
    the features are those of the rotated vectors, so weights depend on absolute positions too.
    """

    name = "linear"

    def features(self, x: Tensor) -> Tensor:
        """phi(x): positive, so that weights are positive."""
        # Not F.elu(x) + 1, which subtracts 1 and adds it again: very small weights would round to 0.
        return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


SIMILARITIES: dict[str, Callable[[GPTConfig], Similarity]] = {
    "scaled_dot": lambda config: ScaledDot(config.softmax_temperature),
    "cosine": lambda config: Cosine(config.n_head),
    # This width gives q·k the scale of the scaled dot product, 1 / width^2 = 1 / sqrt(D).
    "gaussian": lambda config: Gaussian(config.n_head, config.width_per_head**0.25),
    "hopfield": lambda config: Hopfield(config.hopfield_beta, config.hopfield_steps),
    "symmetric": lambda config: Symmetric(config.softmax_temperature),
    "uniform": lambda config: Uniform(),
    "linear": lambda config: Linear(),
    "hard": lambda config: Hard(config.softmax_temperature, sampled=config.hard_choice == "sampled"),
}


def _unit(x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """x with norm `scale` along the last axis; a zero vector stays zero. In x's dtype, rounded to it once."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x * (scale / torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).clamp(min=1e-6))).to(x.dtype)


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name}={value}: must be above 0")
