"""One step's attention weights and the text they belong to -> a small .npz file, and back."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minigpt.files import write_atomically
from minigpt.inspection import packing
from minigpt.inspection.packing import Weights

_FORMAT = 1
# Weights that come from a bfloat16 model are rounded to three digits, and a long row adds the rounding up.
_SUM_TOLERANCE = 0.02


@dataclass(frozen=True, eq=False)  # eq=False: comparing arrays has no single truth value
class Snapshot:
    """What every head of a model does with one probe text, at one training step.

    Raises:
        ValueError: a field does not fit its description below, or the fields do not fit each other.
    """

    step: int
    """Optimizer steps done when the weights were captured; 0 is the untrained model."""
    tokens: tuple[str, ...]
    """Decoded text of each of the T probe tokens. It comes from a data set, so whoever shows it must escape it."""
    weights: Weights
    """(n_layer, n_head, T, T) float32 from query (row) to key (column): zero above the diagonal, rows sum to 1."""

    def __post_init__(self) -> None:
        # frozen forbids plain assignment; what follows only gives each field its exact type
        object.__setattr__(self, "step", int(self.step))
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "weights", np.ascontiguousarray(self.weights, dtype=np.float32))
        if self.step < 0:
            raise ValueError(f"step must be 0 or more, got {self.step}")
        if not self.tokens or not all(isinstance(token, str) for token in self.tokens):
            raise ValueError("tokens must be the texts (str) of at least one token; decode token ids first")
        _check_weights(self.weights, len(self.tokens))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the snapshot as a compressed .npz of bytes; a weight keeps to within 0.0039.

        The file appears whole or not at all, see `write_atomically`. Missing folders are made.

        Raises:
            UserError: the file cannot be written.
        """
        # JSON rather than an array of strings: numpy drops trailing NUL characters, and a token may be one
        tokens = np.frombuffer(json.dumps(self.tokens).encode("ascii"), dtype=np.uint8)
        levels = packing.pack(self.weights)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # a file, not a name: numpy would append .npz to the name
                np.savez_compressed(file, format=_FORMAT, step=self.step, tokens=tokens, levels=levels)

        write_atomically(Path(path), write)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Snapshot:
        """Read what `save` wrote. Each weight is within 0.0039 of the one that was saved.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a snapshot, or it is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                if int(stored["format"]) != _FORMAT:
                    raise ValueError(f"its format is {int(stored['format'])}, this version reads {_FORMAT}")
                tokens = tuple(json.loads(stored["tokens"].tobytes()))
                weights = packing.unpack(stored["levels"], len(tokens))
                return cls(step=int(stored["step"]), tokens=tokens, weights=weights)
        except (
            ValueError,
            TypeError,
            AttributeError,
            KeyError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise ValueError(f"{os.fspath(path)} is not a snapshot that can be read: {error}") from error


def _check_weights(weights: Weights, n_tokens: int) -> None:
    if weights.ndim != 4 or weights.shape[2:] != (n_tokens, n_tokens) or 0 in weights.shape:
        raise ValueError(
            f"weights must have shape (n_layer, n_head, T, T) with T = {n_tokens} tokens, got {weights.shape}"
        )
    if not np.isfinite(weights).all():
        raise ValueError("weights must be finite numbers, got NaN or infinity")
    if weights.min() < 0 or weights.max() > 1 + _SUM_TOLERANCE:
        raise ValueError(
            f"weights must lie between 0 and 1, got {weights.min():.4g} to {weights.max():.4g}; "
            "give the weights after softmax, not the scores before it"
        )
    if n_tokens > 1 and weights[..., *np.triu_indices(n_tokens, 1)].max() > 1e-6:
        raise ValueError("weights must be zero above the diagonal: a token cannot listen to a later one")
    sums = weights.sum(axis=-1, dtype=np.float64)
    # rows that went through `packing` are off by its rounding, and loading one must not fail
    if np.abs(sums - 1).max() > _SUM_TOLERANCE + packing.row_sum_error(n_tokens):
        extremes = f"{sums.min():.4g} to {sums.max():.4g}"
        raise ValueError(f"each row of weights must sum to 1, got sums from {extremes}")
