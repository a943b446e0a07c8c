"""Tokens -> batches, each a pure function of (seed, index): nothing to store, nothing to replay after a crash."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from minigpt.config import UserError

IGNORED = -1
"""Target of a position that has nothing to predict: the loss leaves it out."""


class TrainBatches(Dataset[tuple[Tensor, Tensor]]):
    """Micro-batches of a whole run. Each epoch visits every window once, in a new order, at newly shifted cuts.

    The item at index i is the i-th micro-batch of the run, over all devices: device r of n takes i = r, r + n, ...
    """

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        context_length: int,
        batch_size: int,
        n_batches: int,
        seed: int,
        repeat: int = 0,
    ) -> None:
        """Args: tokens (n_tokens,); n_batches of the run; repeat > 0 cycles through that many first batches only.

        Raises:
            UserError: the text is shorter than one window of context_length + 1 tokens.
        """
        if len(tokens) <= context_length:
            raise UserError(
                f"the train split has {len(tokens)} tokens, but a window of model.context_length={context_length} "
                f"needs {context_length + 1}: give more text or a shorter context"
            )
        self.tokens, self.context_length, self.batch_size = tokens, context_length, batch_size
        self.n_batches, self.seed, self.repeat = n_batches, seed, repeat
        # The cuts shift by less than a window, and every epoch has the same number of windows whatever the shift.
        self.n_shifts = min(context_length, len(tokens) - context_length)
        self.n_windows = (len(tokens) - self.n_shifts) // context_length
        self._epoch, self._order, self._shift = -1, np.zeros(0, dtype=np.int64), 0

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """tokens (B, T) and targets (B, T), int64: targets are the tokens one position later."""
        if self.repeat:
            index %= self.repeat
        first = index * self.batch_size
        rows = np.stack([self._window(first + row) for row in range(self.batch_size)])
        window = torch.from_numpy(rows.astype(np.int64))
        return window[:, :-1], window[:, 1:]

    def _window(self, number: int) -> np.ndarray:
        """The number-th window of the run: (T + 1,) tokens."""
        epoch, place = divmod(number, self.n_windows)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            self._epoch, self._shift = epoch, int(random.integers(self.n_shifts))
            self._order = random.permutation(self.n_windows)
        start = self._shift + int(self._order[place]) * self.context_length
        return self.tokens[start : start + self.context_length + 1]


class ValBatches(Dataset[tuple[Tensor, Tensor]]):
    """The whole val split in order: every token but the very first is predicted exactly once."""

    def __init__(self, tokens: np.ndarray, *, context_length: int, batch_size: int) -> None:
        """Raises UserError if the split has fewer than two tokens."""
        if len(tokens) < 2:
            raise UserError("the val split is empty: give more text or a larger data.val_fraction")
        self.tokens, self.context_length, self.batch_size = tokens, context_length, batch_size
        self.n_windows = -(-(len(tokens) - 1) // context_length)

    def __len__(self) -> int:
        return -(-self.n_windows // self.batch_size)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """tokens (B, T) and targets (B, T), int64; targets past the text's end are IGNORED."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        T = self.context_length
        first = index * self.batch_size
        n_rows = min(self.batch_size, self.n_windows - first)
        chunk = np.asarray(self.tokens[first * T : (first + n_rows) * T + 1], dtype=np.int64)
        targets = np.full(n_rows * T, IGNORED)
        targets[: len(chunk) - 1] = chunk[1:]
        tokens = np.zeros(n_rows * T, dtype=np.int64)
        tokens[: len(chunk) - 1] = chunk[:-1]
        return torch.from_numpy(tokens.reshape(n_rows, T)), torch.from_numpy(targets.reshape(n_rows, T))
