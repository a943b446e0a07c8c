"""Logit lens: the next token that each layer's residual stream would predict if the output head read it there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minigpt.inspection.capture import evaluation_mode
from minigpt.inspection.hooks import read_activations
from minigpt.model.gpt import GPT

CHUNK_LOGITS = 2**22
"""Logits that are computed at once, 16 MiB in float32: memory does not grow with layers times positions."""


class Reading(NamedTuple):
    """All that a `LogitLens` says, on the CPU. Rows: the embedding, then the stream after each block."""

    log_probabilities: Tensor
    """(n_layer + 1, B, T) of the targets, in nats."""
    ids: Tensor
    """(n_layer + 1, B, T, k) likeliest next tokens, likeliest first."""
    probabilities: Tensor
    """(n_layer + 1, B, T, k), theirs."""
    kl: Tensor
    """(n_layer + 1, B, T) nats."""


@dataclass(frozen=True)
class LogitLens:
    """What the final norm and the output head read from the stream at each depth; see `logit_lens`.

    Each method runs the head anew, on some positions at a time, which for large vocabularies takes longer than the
    model itself: `read` has all in one pass. Rows: the embedding, then the stream after each block, so row -1 is the
    model's output. Results are on the CPU.
    """

    model: GPT
    stream: Tensor
    """(n_layer + 1, B, T, C), the residual stream before the first block and after each block."""

    def read(self, targets: Tensor, k: int) -> Reading:
        """`log_probabilities`, `top` and `kl` in one pass."""
        flat, k = targets.flatten().to(self.stream.device), self._at_most(k)

        def read(log_p: Tensor, output: Tensor, where: slice) -> tuple[Tensor, ...]:
            best = log_p.topk(k)
            return _of_targets(log_p, flat[where]), best.indices, best.values, _divergence(output, log_p)

        of_targets, ids, values, kl = self._by_chunks(read)
        return Reading(of_targets.squeeze(-1), ids, values.exp(), kl.squeeze(-1))

    def log_probabilities(self, targets: Tensor) -> Tensor:
        """log p of each position's target, in nats: its negative is the loss of a model that ends there.

        Args:
            targets: (B, T) token ids.

        Returns:
            (n_layer + 1, B, T) float32.
        """
        flat = targets.flatten().to(self.stream.device)
        return self._by_chunks(lambda log_p, _, where: (_of_targets(log_p, flat[where]),))[0].squeeze(-1)

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k likeliest next tokens, likeliest first, and their probabilities.

        Returns:
            (n_layer + 1, B, T, k) int64 ids, and float32 probabilities of the same shape; k is at most V.
        """
        k = self._at_most(k)
        values, ids = self._by_chunks(lambda log_p, *_: tuple(log_p.topk(k)))
        return ids, values.exp()

    def kl(self) -> Tensor:
        """KL(output || lens) in nats: 0 where the stream already predicts what the model will say.

        The direction of the tuned lens (Belrose et al. 2023, https://arxiv.org/abs/2303.08112).

        Returns:
            (n_layer + 1, B, T) float32; row -1 is 0.
        """
        return self._by_chunks(lambda log_p, output, _: (_divergence(output, log_p),))[0].squeeze(-1)

    def _at_most(self, k: int) -> int:
        assert self.model.config.vocab_size is not None
        return min(k, self.model.config.vocab_size)

    def _by_chunks(self, read: Callable[[Tensor, Tensor, slice], tuple[Tensor, ...]]) -> list[Tensor]:
        """Join what `read` makes of a row's (n, V) log-probabilities, of the output's, and of their n positions.

        Returns:
            (n_layer + 1, B, T, k) for each (n, k) tensor of `read`, on the CPU.
        """
        n_rows, B, T, _ = self.stream.shape
        *early, last = self.stream.flatten(1, 2)  # (B T, C) each
        chunks = list[list[Tensor]]()
        with evaluation_mode(self.model):
            for where in chunks_of(B * T, self.model):
                output = _log_probabilities(self.model, last[where])
                rows = [read(_log_probabilities(self.model, row[where]), output, where) for row in early]
                rows.append(read(output, output, where))
                chunks.append([torch.stack(parts).cpu() for parts in zip(*rows, strict=True)])  # (n_layer + 1, n, k)
        return [torch.cat(parts, dim=1).view(n_rows, B, T, -1) for parts in zip(*chunks, strict=True)]


def logit_lens(model: GPT, tokens: Tensor, document_ids: Tensor | None = None) -> LogitLens:
    """Run the model once and keep its residual stream at each depth (nostalgebraist 2020, "interpreting GPT").

    https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens. Early rows are biased, as the
    basis of the stream changes with depth: a low probability does not prove that a layer knows nothing
    (arXiv:2303.08112).

    Args:
        model: not modified.
        tokens: (B, T) ids.
        document_ids: (B, T), as for `GPT.forward`.
    """
    with evaluation_mode(model):
        return LogitLens(model, residual_streams(model, tokens, document_ids))


def residual_streams(model: GPT, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """(n_layer + 1, B, T, C): the input of the first block, then the output of each block, before the final norm."""
    names = ["blocks.0.resid_pre", *(f"blocks.{layer}.resid_post" for layer in range(model.config.n_layer))]
    return torch.stack(list(read_activations(model, names, tokens, document_ids).values()))


def chunks_of(n: int, model: GPT) -> list[slice]:
    """Slices of n positions whose logits have about CHUNK_LOGITS elements each."""
    assert model.config.vocab_size is not None
    size = max(1, CHUNK_LOGITS // model.config.vocab_size)
    return [slice(start, start + size) for start in range(0, n, size)]


def _log_probabilities(model: GPT, stream: Tensor) -> Tensor:
    """(n, C) -> (n, V), in float32."""
    return model.logits(model.final_norm(stream)).float().log_softmax(dim=-1)


def _of_targets(log_p: Tensor, targets: Tensor) -> Tensor:
    """(n, V) log-probabilities at (n,) ids -> (n, 1)."""
    return log_p.gather(-1, targets[:, None])


def _divergence(output: Tensor, log_p: Tensor) -> Tensor:
    """KL(output || lens) of (n, V) log-probabilities -> (n, 1)."""
    return (output.exp() * (output - log_p)).sum(-1, keepdim=True)
