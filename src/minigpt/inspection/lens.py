"""Logit lens: the next token that each layer's residual stream would predict if the output head read it there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.inspection.capture import evaluation_mode
from minigpt.model.gpt import GPT

CHUNK_LOGITS = 2**22
"""Logits that are computed at once, 16 MiB in float32: memory does not grow with layers times positions."""


@dataclass(frozen=True)
class LogitLens:
    """What the final norm and the output head read from the stream at each depth; see `logit_lens`.

    Each method runs the head anew, on some positions at a time, and returns tensors on the CPU. Rows: the embedding,
    then the stream after each block, so row -1 is the model's output.
    """

    model: GPT
    stream: Tensor
    """(n_layer + 1, B, T, C), the residual stream before the first block and after each block."""

    def log_probabilities(self, targets: Tensor) -> Tensor:
        """log p of each position's target, in nats: its negative is the loss of a model that ends there.

        Args:
            targets: (B, T) token ids.

        Returns:
            (n_layer + 1, B, T) float32.
        """
        wanted = targets.flatten().to(self.stream.device)

        def read(log_p: Tensor, where: slice) -> tuple[Tensor, ...]:
            return (log_p.gather(-1, wanted[where, None]),)

        return self._by_chunks(read)[0].squeeze(-1)

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k likeliest next tokens, likeliest first, and their probabilities.

        Returns:
            (n_layer + 1, B, T, k) int64 ids, and float32 probabilities of the same shape; k is at most V.
        """
        assert self.model.config.vocab_size is not None
        k = min(k, self.model.config.vocab_size)
        ids, log_p = self._by_chunks(lambda log_p, _: _ids_and_values(log_p, k))
        return ids, log_p.exp()

    def kl(self) -> Tensor:
        """KL(output || lens) in nats: 0 where the stream already predicts what the model will say.

        The direction of the tuned lens (Belrose et al. 2023, https://arxiv.org/abs/2303.08112).

        Returns:
            (n_layer + 1, B, T) float32; row -1 is 0.
        """
        hidden = self.stream[-1].flatten(0, 1)

        def read(log_p: Tensor, where: slice) -> tuple[Tensor, ...]:
            output = _log_probabilities(self.model, hidden[where])
            return ((output.exp() * (output - log_p)).sum(-1, keepdim=True),)

        return self._by_chunks(read)[0].squeeze(-1)

    def _by_chunks(self, read: Callable[[Tensor, slice], tuple[Tensor, ...]]) -> list[Tensor]:
        """Join what `read` makes of (n, V) log-probabilities, given their slice of the B T positions.

        Returns:
            (n_layer + 1, B, T, k) for each (n, k) tensor of `read`, on the CPU.
        """
        n_rows, B, T, _ = self.stream.shape
        with evaluation_mode(self.model):
            found = [
                tuple(each.cpu() for each in read(_log_probabilities(self.model, row[where]), where))
                for row in self.stream.flatten(1, 2)  # (B T, C)
                for where in chunks_of(B * T, self.model)
            ]
        return [torch.cat(parts).view(n_rows, B, T, -1) for parts in zip(*found, strict=True)]


def logit_lens(model: GPT, tokens: Tensor, document_ids: Tensor | None = None) -> LogitLens:
    """Run the model once and keep its residual stream at each depth (nostalgebraist 2020, "interpreting GPT").

    https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens. Early rows are biased where the
    stream's basis still turns, so a low probability is no proof that a layer knows nothing (arXiv:2303.08112).

    Args:
        model: not modified.
        tokens: (B, T) ids.
        document_ids: (B, T), as for `GPT.forward`.
    """
    with evaluation_mode(model):
        return LogitLens(model, residual_streams(model, tokens, document_ids))


def residual_streams(model: GPT, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """(n_layer + 1, B, T, C): the input of the first block, then the output of each block, before the final norm."""
    streams = list[Tensor]()
    with contextlib.ExitStack() as stack:
        for module in (*model.blocks, model.final_norm):  # each one's input is the output of the one before it
            handle = module.register_forward_pre_hook(lambda _, arguments: streams.append(arguments[0]))
            stack.callback(handle.remove)
        model.hidden(tokens, document_ids)
    return torch.stack(streams)


def chunks_of(n: int, model: GPT) -> list[slice]:
    """Slices of n positions whose logits have about CHUNK_LOGITS elements each."""
    assert model.config.vocab_size is not None
    size = max(1, CHUNK_LOGITS // model.config.vocab_size)
    return [slice(start, start + size) for start in range(0, n, size)]


def _log_probabilities(model: GPT, stream: Tensor) -> Tensor:
    """(n, C) -> (n, V), in float32."""
    return model.logits(model.final_norm(stream)).float().log_softmax(dim=-1)


def _ids_and_values(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best = values.topk(k)
    return best.indices, best.values
