"""Matrix products of a few vectors in numpy, for decoding on a CPU: float32, column-major float32, and int8."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

Array = npt.NDArray[np.float32]
Function = Callable[[Array], Array]
"""(n, C) -> (n, N)."""
Product = Callable[[Array, Array | None], Function]
"""Weight (N, C) and bias (N,) -> the linear layer's function."""

SMALL = 2_000_000
"""Bytes of a matrix below which a second thread saves nothing, and costs much where it has to wait for a core."""

SHARED = 10_000_000
"""int8 multiplications of a product from which several threads share it: handing one its share takes 0.05 to 0.1 ms, in
which one thread multiplies two million."""
TINY = np.float32(1e-12)
"""Added to scales: a row or vector of zeros has none."""


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
    """Limit OpenBLAS to one thread for matrices of n_bytes each, if a second does not pay."""
    return ONE_THREAD if n_bytes < SMALL else contextlib.nullcontext()


@cache
def openblas() -> list[Any]:
    """threadpoolctl's controllers of the OpenBLAS libraries that are loaded."""
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


def to_int8(matrix: Array) -> tuple[Array, npt.NDArray[np.int8]]:
    """(n, C) -> scales (n, 1) and rounded numbers (n, C): a row's largest is 127 times its scale."""
    # In strips of 64 rows, which fit the CPU's cache: a third of the time.
    strips = [_to_int8(matrix[start : start + 64]) for start in range(0, len(matrix), 64)]
    scales, rounded = zip(*strips, strict=True)
    return np.concatenate(scales), np.concatenate(rounded)


def _to_int8(rows: Array) -> tuple[Array, npt.NDArray[np.int8]]:
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127) + TINY
    scaled = rows / scales
    return scales, np.rint(scaled, out=scaled).astype(np.int8)


def product_of_int8(weight: Array, bias: Array | None, *, forms: Forms) -> Function:
    """x W^T + bias with weights and vectors rounded to int8, each row by its own scale; the sums are exact integers."""
    import numkong  # a library of 45 MB, which float32 need not load

    scales, matrix = forms.of(weight, to_int8)
    scales = scales[:, 0]
    n_threads = _n_threads()
    ends = [len(matrix) * i // n_threads for i in range(n_threads + 1)]
    shares = [matrix[start:stop] for start, stop in pairwise(ends)]

    def product(x: Array) -> Array:
        x_scales, rounded = _to_int8(x)
        packed = numkong.dots_pack(rounded) if len(x) > 2 else None

        def multiply(rows: npt.NDArray[np.int8]) -> npt.NDArray[Any]:
            """(n, n_rows) exact sums, in float32 or int32."""
            if packed is None:  # reads the weights at the speed of memory
                return np.asarray(numkong.cdist(rounded, rows, "dot", out_dtype="float32"))
            return np.asarray(numkong.dots_packed(rows, packed)).T

        if len(x) * matrix.size < SHARED or n_threads == 1:
            sums = multiply(matrix)
        else:
            others = [_pool().submit(multiply, share) for share in shares[1:]]
            sums = np.concatenate([multiply(shares[0]), *(other.result() for other in others)], axis=1)
        found = np.multiply(sums, scales, dtype=np.float32, order="C")
        found *= x_scales
        if bias is not None:
            found += bias
        return found

    return product


def _n_threads() -> int:
    return max((library.get_num_threads() for library in openblas()), default=os.cpu_count() or 1)


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads of int8 products: numkong has none of its own and releases Python's lock."""
    return ThreadPoolExecutor(thread_name_prefix="int8")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has no threads but its first
