"""Operations and memory of training, from the config alone: for `minigpt doctor --for`, and for the MFU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from minigpt.config import Config, GPTConfig
from minigpt.model.gpt import GPT
from minigpt.training.loss import BYTES_PER_LOGIT, CHUNK_LOGITS
from minigpt.training.optimizer import stacked_rows


def on_meta(config: GPTConfig) -> GPT:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return GPT(config)


def flops_per_token(config: GPTConfig, context_length: int | None = None) -> int:
    """Of a training step: 6 N + 12 L H D T (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B).

    Each of the N parameters of matrices that a token is multiplied with takes part in two operations forward and four
    backward; an embedding that is only looked up does not count, a head does, tied or not. In L layers, H heads of
    width D multiply with T keys and T values; the formula has all of them, though a causal kernel skips half.

    Args:
        config: with vocab_size set.
        context_length: T, if it is not the config's.
    """
    model = on_meta(config)
    n = model.n_parameters - (0 if config.tie_embeddings else (config.vocab_size or 0) * config.n_embd)
    n -= model.position_embedding.weight.numel() if config.position == "learned" else 0
    T = context_length or config.context_length
    return 6 * n + 12 * config.n_layer * config.n_head * config.width_per_head * T


@dataclass(frozen=True)
class Memory:
    """Bytes of training on one device, by kind."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    """The moving average of the weights, where there is one."""
    copies: int
    """The 16-bit copies of matrices that autocast makes for a micro-batch."""
    row: int
    """Activations that the backward pass needs, for one row of a micro-batch."""
    checkpointed_row: int
    """The same where each block keeps only its input and is computed again in the backward pass, one at a time."""
    row_logits: int
    """Number of logits of a row."""
    head: int
    """What the chunked loss gathers: the gradient of the head's weight and a chunk's part of it."""
    row_head: int
    """And the gradient of the head's input, for one row."""
    chunk_logits: int
    """Logits that the chunked loss has in memory at a time."""

    @property
    def fixed(self) -> int:
        """What does not depend on the number of rows."""
        return self.weights + self.gradients + self.optimizer + self.average + self.copies

    def loss(self, rows: int) -> int:
        """Logits and their gradient, all at once or in chunks; see `loss.model_loss`."""
        logits = rows * self.row_logits
        if logits <= self.chunk_logits:
            return BYTES_PER_LOGIT * logits
        return BYTES_PER_LOGIT * self.chunk_logits + self.head + rows * self.row_head

    def total(self, rows: int, *, checkpointed: bool = False) -> int:
        """Peak in a micro-batch of so many rows."""
        return self.fixed + self.loss(rows) + rows * (self.checkpointed_row if checkpointed else self.row)

    def most_rows(self, available: float, *, checkpointed: bool = False) -> int:
        """The largest number of rows of a micro-batch that fits into so many bytes; 0 where none does."""

        def fits(rows: int) -> bool:
            return self.total(rows, checkpointed=checkpointed) <= available

        most = 1
        while fits(2 * most):
            most *= 2
        step = most
        while step := step // 2:
            most += step * fits(most + step)
        return most if fits(most) else 0


def memory(config: Config, precision: str, *, n_shards: int = 1, chunk_logits: int = CHUNK_LOGITS) -> Memory:
    """The memory that training takes on one device.

    Args:
        config: with vocab_size set.
        precision: Lightning's name, not auto.
        n_shards: devices among which weights, gradients and optimizer state are sharded (fsdp2); 1 with ddp.
        chunk_logits: logits that the loss computes at a time.
    """
    m, (compute, stream) = config.model, _item_sizes(precision)
    model = on_meta(m)
    n_all = sum(parameter.numel() for parameter in model.parameters())
    # AdamW keeps two moments of each weight, Muon one of each matrix.
    n_muon = sum(weight.numel() for weight in stacked_rows(model)) if config.optimizer.name == "muon" else 0
    stored = 2 if precision in {"bf16-true", "16-true"} else 8 if precision == "64-true" else 4
    linear = {module.weight for module in model.modules() if isinstance(module, nn.Linear)} | {model.head_weight}
    block, T, C, V = block_bytes_per_token(m, precision), m.context_length, m.n_embd, m.vocab_size or 0
    around = (stream + compute) * C + 16  # inputs of the final norm and of the head, token ids
    return Memory(
        weights=stored * n_all // n_shards,
        gradients=stored * n_all // n_shards,
        optimizer=stored * (2 * n_all - n_muon) // n_shards,
        average=stored * n_all if config.optimizer.average_decay is not None else 0,
        copies=sum(compute * weight.numel() for weight in linear) if compute < stored else 0,
        row=T * (m.n_layer * block + around),
        checkpointed_row=T * (m.n_layer * stream * C + block + around),
        row_logits=T * V,
        head=(4 + compute) * V * C,  # float32 sums
        row_head=compute * T * C,
        chunk_logits=chunk_logits,
    )


def block_bytes_per_token(m: GPTConfig, precision: str) -> int:
    """Bytes that the backward pass needs of one token in one block, uncompiled, with a fused attention kernel.

    torch.compile keeps less: it computes cheap parts again. Similarities other than scaled_dot differ a little.
    """
    compute, stream = _item_sizes(precision)
    C, H, H_kv, D, M = m.n_embd, m.n_head, m.kv_heads, m.width_per_head, m.mlp_width
    # The stream before each half, for its norm, and the normalised stream, for its matrix. Parallel halves read one.
    n_streams = 1 if m.block == "parallel" else 2
    norms = n_streams * stream * C + 2 * compute * C + 2 * 4 * (2 if m.norm == "layernorm" else 1)
    # The projections to queries, keys and values are one tensor, kept for the values; queries and keys that are
    # normalised or rotated are new ones. Then the sum of each softmax and the gathered values.
    attention = compute * (H + 2 * H_kv) * D + 4 * H + compute * H * D
    if m.qk_norm or m.position == "rotary":
        attention += compute * (H + H_kv) * D
    if m.qk_norm:
        attention += 4 * (H + H_kv)
    # GELU keeps what it reads and what it writes; SwiGLU both maps, silu of the gate, and their product.
    mlp = compute * M * (4 if m.mlp == "swiglu" else 2)
    masks = 2 * C if m.dropout else 0  # a byte for each element of both updates
    return norms + attention + mlp + masks


def _item_sizes(precision: str) -> tuple[int, int]:
    """Bytes of a number in matrix products, and in the residual stream, which autocast leaves in float32."""
    if precision == "64-true":
        return 8, 8
    return (2 if "16" in precision else 4), (2 if precision in {"bf16-true", "16-true"} else 4)


def update_cost(config: Config) -> tuple[int, int]:
    """(Operations, bytes read and written) of one optimizer step, as far as they count: on each device, all of it.

    Muon's are the Newton-Schulz iteration's products: of an n x m matrix with n < m, 2 n² m for its Gram matrix, and
    in each step two or three products of n x n matrices (`muon.orthogonalised`).
    """
    model = on_meta(config.model)
    n_all = sum(parameter.numel() for parameter in model.parameters())
    moved = 7 * 4 * n_all  # gradient, weight and two moments are read, and the latter three written
    if config.optimizer.name != "muon":
        return 0, moved
    flops = 0
    for weight, parts in stacked_rows(model).items():
        for n_rows in parts:
            n, m = sorted((n_rows, weight.shape[1]))
            # In bfloat16, as on a GPU, each step multiplies with the matrix itself.
            flops += config.optimizer.ns_steps * (4 * n * n * m + 2 * n**3)
    return flops, moved
