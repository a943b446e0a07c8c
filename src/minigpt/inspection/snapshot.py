"""Snapshots: attention weights, tokens and head scores at one training step, kept in a small .npz file."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt.files import write_atomically
from minigpt.inspection import packing
from minigpt.inspection.packing import Weights

NextTokens = tuple[tuple[tuple[str, float], ...], ...]
"""For each of the T tokens: (text, probability) of the likeliest next tokens, best first."""

# Format 1 had step, tokens and weights only.
_FORMATS = (1, 2)
# bfloat16 weights have three digits, and the rounding adds up over a long row.
_SUM_TOLERANCE = 0.02


@dataclass(frozen=True, eq=False)  # eq=False: comparing arrays has no single truth value
class Snapshot:
    """Attention of every head on one probe text, at one training step.

    Raises:
        ValueError: a field does not fit its description below, or the fields do not fit each other.
    """

    step: int
    """Optimizer steps done when the weights were captured; 0 is the untrained model."""
    tokens: tuple[str, ...]
    """Decoded text of each of the T probe tokens. Untrusted, as it comes from a data set: escape it before display."""
    weights: Weights
    """(n_layer, n_head, T, T) float32 from query (row) to key (column): zero above the diagonal, rows sum to 1."""
    scores: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Head scores by name: (n_layer, n_head), NaN where undefined. `inspection.glossary` explains each."""
    value_norms: npt.NDArray[np.float32] | None = None
    """(n_layer, n_head, T): length of each key's value after the head's part of the output projection, 0 or more."""
    next_tokens: NextTokens = ()
    """For each token the likeliest next tokens, best first; or empty. The texts are as untrusted as `tokens`."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the whole model by name, all finite: points of curves over training."""
    token_ids: tuple[int, ...] = ()
    """Ids of the tokens, or empty if unknown. Text cannot replace them: a token may be half a character."""

    def __post_init__(self) -> None:
        # A frozen dataclass forbids plain assignment; this only converts each field to its exact type.
        object.__setattr__(self, "step", int(self.step))
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "weights", np.ascontiguousarray(self.weights, dtype=np.float32))
        object.__setattr__(self, "token_ids", tuple(map(int, self.token_ids)))
        if len(self.token_ids) not in {0, len(self.tokens)}:
            raise ValueError(
                f"token_ids must be one for each of the {len(self.tokens)} tokens, got {len(self.token_ids)}"
            )
        if self.step < 0:
            raise ValueError(f"step must be 0 or more, got {self.step}")
        if not self.tokens or not all(isinstance(token, str) for token in self.tokens):
            raise ValueError("tokens must be the texts (str) of at least one token; decode token ids first")
        _check_weights(self.weights, len(self.tokens))
        n_layer, n_head, T, _ = self.weights.shape
        object.__setattr__(self, "scores", _checked_scores(self.scores, (n_layer, n_head)))
        object.__setattr__(self, "value_norms", _checked_norms(self.value_norms, (n_layer, n_head, T)))
        object.__setattr__(self, "next_tokens", _checked_next_tokens(self.next_tokens, T))
        object.__setattr__(self, "numbers", _checked_numbers(self.numbers))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a compressed .npz: weights are rounded by at most 0.0039, everything else is exact.

        The write is atomic, see `write_atomically`. Missing folders are created.

        Raises:
            UserError: the file cannot be written.
        """
        arrays: dict[str, Any] = {
            "tokens": _text_array(self.tokens),
            "levels": packing.pack(self.weights),
            "score_names": _text_array(list(self.scores)),
            "next_tokens": _text_array(self.next_tokens),
            "numbers": _text_array(self.numbers),
        }
        if self.token_ids:
            arrays["token_ids"] = np.array(self.token_ids, dtype=np.int64)
        if self.scores:
            arrays["scores"] = np.stack(list(self.scores.values()))
        if self.value_norms is not None:
            arrays["value_norms"] = self.value_norms

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # a file, not a name: numpy would append .npz to the name
                np.savez_compressed(file, format=_FORMATS[-1], step=self.step, **arrays)

        write_atomically(Path(path), write)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Snapshot:
        """Read a snapshot of this version or of format 1, which had no scores. Weights are off by at most 0.0039.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a snapshot, or it is damaged.
        """
        with _readable(path) as stored:
            if int(stored["format"]) not in _FORMATS:
                raise ValueError(f"its format is {int(stored['format'])}, this version reads 1 and 2")
            tokens = tuple(_text_of(stored["tokens"]))
            names = _text_of(stored["score_names"]) if "score_names" in stored else []
            return cls(
                step=int(stored["step"]),
                token_ids=tuple(stored["token_ids"].tolist()) if "token_ids" in stored else (),
                tokens=tokens,
                weights=packing.unpack(stored["levels"], len(tokens)),
                scores=dict(zip(names, stored["scores"], strict=True)) if names else {},
                value_norms=stored.get("value_norms"),
                next_tokens=_text_of(stored["next_tokens"]) if "next_tokens" in stored else (),
                numbers=_text_of(stored["numbers"]) if "numbers" in stored else {},
            )


def read_numbers(path: str | os.PathLike[str]) -> tuple[int, dict[str, float]]:
    """Step and numbers of a saved snapshot, without its weights.

    Raises:
        FileNotFoundError, ValueError: as for `Snapshot.load`.
    """
    with _readable(path) as stored:
        return int(stored["step"]), _numbers_in(stored)


def read_scores(path: str | os.PathLike[str]) -> tuple[int, dict[str, npt.NDArray[np.float32]], dict[str, float]]:
    """Step, head scores and numbers of a saved snapshot, without its weights.

    Raises:
        FileNotFoundError, ValueError: as for `Snapshot.load`.
    """
    with _readable(path) as stored:
        names = _text_of(stored["score_names"]) if "score_names" in stored else []
        scores = dict(zip(names, stored["scores"], strict=True)) if names else {}
        return int(stored["step"]), scores, _numbers_in(stored)


def _numbers_in(stored: Any) -> dict[str, float]:
    return _checked_numbers(_text_of(stored["numbers"])) if "numbers" in stored else {}


@contextlib.contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[Any]:
    """The arrays of a file; damage found while they are read and checked becomes one ValueError that names it."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            yield stored
    except FileNotFoundError:
        raise
    # numpy, zipfile, zlib, tokenize and json raise a dozen kinds on damaged files, MemoryError for a size of many TB
    # and RecursionError for deep JSON among them; and nothing but reading is inside.
    except Exception as error:
        said = shorten(str(error) or type(error).__name__, 300, placeholder=" …")
        raise ValueError(f"{os.fspath(path)} is not a snapshot that can be read: {said}") from error


def history_of(
    newest: Snapshot, earlier: Sequence[Path], most: int, missing: list[str] | None = None
) -> list[Snapshot]:
    """The newest snapshot and earlier ones of its probe, thinned to `most` (2 or more), keeping the first.

    Args:
        newest: the last one shown.
        earlier: files, in ascending order of steps. A damaged one costs its step only, and training goes on.
        most: number of snapshots.
        missing: gets a sentence for each file that cannot be read.
    """
    steps, snapshots = [*map(step_of, earlier), newest.step], list[Snapshot]()
    for index in thinned(steps, most)[:-1]:
        try:
            snapshot = Snapshot.load(earlier[index])
        except (FileNotFoundError, ValueError) as error:
            if missing is not None:
                missing.append(f"The attention at step {steps[index]} is missing: {error}.")
            continue
        if snapshot.tokens == newest.tokens and snapshot.weights.shape == newest.weights.shape:
            snapshots.append(snapshot)
    return [*snapshots, newest]


def thinned(steps: Sequence[int], most: int) -> list[int]:
    """Indices of at most `most` (2 or more) of the ascending steps, the first and the last among them.

    Half of the distance between steps is linear and half logarithmic: heads form early, but a long run's later half is
    shown as well.
    """
    kept, last = min(most, len(steps)), max(steps[-1], 1)
    places = [step / last + math.log1p(step) / math.log1p(last) for step in steps]
    chosen = list[int]()
    for i in range(kept):
        wanted = places[0] + (places[-1] - places[0]) * i / max(kept - 1, 1)
        # Of the indices that leave enough for the rest.
        free = range(chosen[-1] + 1 if chosen else 0, len(steps) - (kept - 1 - i))
        chosen.append(min(free, key=lambda index: abs(places[index] - wanted)))
    if kept:
        chosen[-1] = len(steps) - 1
    return chosen


def step_of(path: Path) -> int:
    """The step in the name of a snapshot's file, as in step_000200.npz."""
    return int(path.stem.removeprefix("step_"))


def _text_array(value: object) -> npt.NDArray[np.uint8]:
    # JSON rather than an array of strings: numpy drops trailing NUL characters, and a token may be one.
    return np.frombuffer(json.dumps(value).encode("ascii"), dtype=np.uint8)


def _text_of(array: npt.NDArray[np.uint8]) -> Any:
    return json.loads(array.tobytes())


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
        raise ValueError("weights must be zero above the diagonal: a token cannot attend to a later one")
    sums = weights.sum(axis=-1, dtype=np.float64)
    # Rows of a saved snapshot carry the rounding of `packing`, and loading them must not fail.
    if np.abs(sums - 1).max() > _SUM_TOLERANCE + packing.row_sum_error(n_tokens):
        extremes = f"{sums.min():.4g} to {sums.max():.4g}"
        raise ValueError(f"each row of weights must sum to 1, got sums from {extremes}")


def _checked_scores(scores: Mapping[str, Any], shape: tuple[int, int]) -> dict[str, npt.NDArray[np.float32]]:
    if not all(isinstance(name, str) and name for name in scores):
        raise ValueError("the names of scores must be text (str) of at least one character")
    checked = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in scores.items()}
    for name, values in checked.items():
        if values.shape != shape:
            raise ValueError(f"scores[{name!r}] must have shape (n_layer, n_head) = {shape}, got {values.shape}")
        if np.isinf(values).any():
            raise ValueError(f"scores[{name!r}] must be finite numbers, or NaN where there is none, got infinity")
    return checked


def _checked_numbers(numbers: Mapping[str, Any]) -> dict[str, float]:
    checked = {name: float(value) for name, value in numbers.items()}
    for name, value in checked.items():
        if not isinstance(name, str) or not math.isfinite(value):
            raise ValueError(f"numbers must be finite and have names (str), got {name!r}: {numbers[name]}")
    return checked


def _checked_norms(norms: Any, shape: tuple[int, int, int]) -> npt.NDArray[np.float32] | None:
    if norms is None:
        return None
    checked = np.ascontiguousarray(norms, dtype=np.float32)
    if checked.shape != shape:
        raise ValueError(f"value_norms must have shape (n_layer, n_head, T) = {shape}, got {checked.shape}")
    if not np.isfinite(checked).all() or checked.min() < 0:
        raise ValueError("value_norms must be finite and 0 or more: they are lengths")
    return checked


def _checked_next_tokens(next_tokens: Sequence[Sequence[Sequence[Any]]], n_tokens: int) -> NextTokens:
    if next_tokens and len(next_tokens) != n_tokens:
        raise ValueError(f"next_tokens must have one entry for each of the {n_tokens} tokens, got {len(next_tokens)}")
    checked = tuple(tuple((text, float(share)) for text, share in ranking) for ranking in next_tokens)
    for i, ranking in enumerate(checked):
        shares = [share for _, share in ranking]
        if not all(isinstance(text, str) for text, _ in ranking):
            raise ValueError(f"next_tokens[{i}] must hold the texts (str) of tokens; decode token ids first")
        if not all(0 <= share <= 1 for share in shares) or shares != sorted(shares, reverse=True):
            raise ValueError(f"next_tokens[{i}] must hold probabilities from 0 to 1, best first, got {shares}")
    return checked
