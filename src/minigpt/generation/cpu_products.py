"""Matrix products of a few vectors in numpy, for decoding on a CPU: float32, column-major float32, and int8."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from minigpt.errors import UserError

Array = npt.NDArray[np.float32]
Function = Callable[[Array], Array]
"""(n, C) -> (n, N)."""
Product = Callable[[Array, Array | None], Function]
"""Weight (N, C) and bias (N,) -> the linear layer's function."""

SMALL = 2_000_000
"""Bytes of a matrix below which a second thread saves nothing, and costs much where it has to wait for a core."""


class OneThread:
    """`with ONE_THREAD:` limits OpenBLAS to one thread; the last of several Python threads to leave resets it."""

    def __init__(self) -> None:
        self._lock, self._n_inside, self._before = threading.Lock(), 0, list[int]()

    def __enter__(self) -> None:
        with self._lock:
            self._n_inside += 1
            if self._n_inside == 1:
                self._before = [library.get_num_threads() for library in openblas()]
                for library in openblas():
                    library.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if not self._n_inside:
                for library, number in zip(openblas(), self._before, strict=True):
                    library.set_num_threads(number)


ONE_THREAD = OneThread()


def threads_for(n_bytes: int) -> contextlib.AbstractContextManager[None]:
    return ONE_THREAD if n_bytes < SMALL else contextlib.nullcontext()


@cache
def openblas() -> list[Any]:
    return ThreadpoolController().select(internal_api="openblas").lib_controllers


class Forms:
    """Cache of converted matrices (column-major or int8); a matrix is converted again when its weights change."""

    def __init__(self) -> None:
        self._before, self._now = dict[bytes, Any](), dict[bytes, Any]()

    def renew(self) -> None:
        """Drop entries not used since the last call."""
        self._before, self._now = self._now, {}

    def of(self, weight: Array, make: Callable[[Array], Any]) -> Any:
        """`make(weight)`, cached by the weight's values."""
        # The key is the product with a fixed random vector: it changes with any weight, up to float32 rounding, and
        # costs one pass over the matrix, a fraction of any conversion.
        key = repr(weight.shape).encode() + (weight @ _fixed_vector(weight.shape[1])).tobytes()
        if key not in self._now:
            self._now[key] = self._before[key] if key in self._before else make(weight)
        return self._now[key]


@cache
def _fixed_vector(C: int) -> Array:
    return np.random.default_rng(0).standard_normal(C, dtype=np.float32)


def to_column_major(matrix: Array) -> Array:
    """A column-major copy of a matrix: its product with a vector adds long columns instead of summing short rows."""
    # In strips of 64 rows, which fit the CPU's cache: in one go numpy and PyTorch take three to five times as long.
    columns = np.empty(matrix.shape[::-1], dtype=matrix.dtype)
    for start in range(0, len(matrix), 64):
        columns[:, start : start + 64] = matrix[start : start + 64].T
    return columns.T


def product_of(matrix: Array, bias: Array | None, *, by_columns: Forms | None = None) -> Function:
    """x W^T + bias; a single vector goes to BLAS's matrix-vector kernel."""
    # Column-major, a matrix of more rows than columns takes 0.7 (one thread) to 0.9 (two) of the time on an AMD EPYC.
    if by_columns is not None and matrix.shape[0] > matrix.shape[1]:
        matrix = by_columns.of(matrix, to_column_major)
    transposed = matrix.T

    def product(x: Array) -> Array:
        found = (matrix @ x[0])[None] if len(x) == 1 else x @ transposed
        if bias is not None:
            found += bias
        return found

    return product


def product_of_int8(weight: Array, bias: Array | None, *, forms: Forms) -> Function:
    """x W^T + bias with int8 weights and a scale per row; x is rounded to 7 bits, else AVX2's sums overflow."""
    import torch  # for a second and a half, which float32 need not wait

    # FBGEMM quantizes all vectors of a call by their common range, so results would depend on the batch. Here each
    # vector is scaled to [-1, 1], and two extra channels of weight 0 hold -1 and 1, which fixes the range.
    C, matrix = weight.shape[1], forms.of(weight, _packed_int8)
    width = _width_of_int8(C)

    def product(x: Array) -> Array:
        largest = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-12))
        unit = np.zeros((len(x), width), dtype=np.float32)
        np.divide(x, largest, out=unit[:, :C])
        unit[:, C], unit[:, C + 1] = 1, -1
        found: Array = torch.ops.quantized.linear_dynamic(torch.from_numpy(unit), matrix, True).numpy()
        found *= largest
        if bias is not None:
            found += bias
        return found

    return product


def _width_of_int8(C: int) -> int:
    return -(-(C + 2) // 8) * 8


def _packed_int8(weight: Array) -> Any:
    import torch

    N, C = weight.shape
    widened = torch.zeros(N, _width_of_int8(C))
    widened.numpy()[:, :C] = weight
    scales = widened.abs().amax(dim=1).clamp(min=1e-12).double() / 127
    try:
        with warnings.catch_warnings():
            # PyTorch deprecates these types. Without VNNI the alternatives are slower: oneDNN's and PyTorch's own int8
            # products took as long as float32's, or three times as long.
            warnings.simplefilter("ignore")
            rounded = torch.quantize_per_channel(widened, scales, torch.zeros(N, dtype=torch.int64), 0, torch.qint8)
            return torch.ops.quantized.linear_prepack(rounded, None)
    except (RuntimeError, AttributeError) as error:
        raise UserError(f"int8: not available here ({str(error).splitlines()[0]}); leave it out") from None
