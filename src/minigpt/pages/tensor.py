"""Any attention tensor -> the attention page: another program's, signed, unnormalised, or between two texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt.errors import UserError
from minigpt.inspection import packing
from minigpt.pages.attention import page_of
from minigpt.pages.documents import Page

Array = npt.NDArray[np.float64]

_SHAPES = "(T, S), (heads, T, S) or (layers, heads, T, S)"
_TOLERANCE = 1e-6
"""Weights up to this far outside 0 and 1 are rounding noise."""


def show_attention(
    weights: Any,
    tokens: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    steps: Sequence[int] | None = None,
    title: str = "attention",
) -> Page:
    """Show attention weights of any program: `minigpt.show_attention(model(**inputs).attentions, tokens)`.

    Args:
        weights: (T, S), (heads, T, S) or (layers, heads, T, S) from query (row) to key (column), as an array, a tensor
            or nested lists; a batch axis of 1 after the layers is dropped. Of any sign and range, normalised or not;
            -inf is a masked score and stays without a colour. With `steps`, a list with one of these a step.
        tokens: texts of the T queries, and of the keys too where there are no others.
        keys: texts of the S keys of cross-attention.
        steps: training steps, for a slider.
        title: plain text.

    Returns:
        The page, which a notebook shows; `Path("heads.html").write_text(page)` keeps it.

    Raises:
        minigpt.UserError: the shapes do not fit, a value is NaN or +inf, or a token is not a text.
    """
    if not isinstance(title, str):
        raise UserError(f"title={title!r:.60}: is not a text")
    frames, numbers = _frames(weights, steps)
    rows = _texts(tokens, "tokens")
    columns = rows if keys is None else _texts(keys, "keys")
    _check_lengths(frames[0].shape, len(rows), len(columns), keys is not None)
    values = np.stack(frames)
    _check_values(values)
    levels, largest, signed = _levels(values)
    is_causal = keys is None and not np.triu(np.where(values == -np.inf, 0, values), 1).any()
    cells = packing.triangle(levels) if is_causal else levels.reshape(*levels.shape[:3], -1)
    error = largest * (packing.SIGNED_ERROR if signed else packing.MAX_ERROR)
    nothing = [list[object]() for _ in numbers]
    details = {"scores": nothing, "next": nothing, "causes": None}
    data = {
        "tokens": rows,
        "keys": None if keys is None else columns,
        "n_layer": values.shape[1],
        "n_head": values.shape[2],
        "n_tokens": len(rows),
        "n_keys": len(columns),
        "triangle": is_causal,
        "signed": signed,
        "largest": largest,
        "intro": _intro(keys is not None, is_causal, signed),
        "runs": [
            {
                "steps": numbers,
                "levels": packing.encode_frames(list(cells)),
                "earlier": None,
                "norms": None,
                "details": packing.encode_json(details),
            }
        ],
        "rounding": f"Weights are rounded by at most {error:.2g}.",
    }
    return page_of(title, data)


def _intro(has_keys: bool, is_causal: bool, signed: bool) -> str:
    texts = "a token of the first text, a column (key) one of the second" if has_keys else "a token, a column (key) too"
    order = " Nothing is above the diagonal: a token attends to itself and earlier ones." if is_causal else ""
    masked = "blank" if is_causal else "hatched"
    colours = (
        f"Red is above zero, blue is below, and masked cells are {masked}: "
        "the stronger the colour, the larger the weight."
        if signed
        else "The stronger the colour, the larger the weight."
    )
    return f"Each square is one head. A row (query) is {texts}.{order} {colours}"


def _frames(weights: Any, steps: Sequence[int] | None) -> tuple[list[Array], list[int]]:
    """(layers, heads, T, S) of each step, and the steps; one step, 0, where none are given."""
    if steps is None:
        return [_four_axes(weights, "weights")], [0]
    numbers = [step.item() if isinstance(step, np.integer) else step for step in _list(steps, "steps")]
    if not numbers or not all(type(step) is int and step >= 0 for step in numbers):
        raise UserError(f"steps={numbers}: give a whole number, 0 or more, for each step")
    if len(set(numbers)) < len(numbers):
        raise UserError(f"steps={numbers}: give each step once")
    weights = _list(weights, "weights")
    if len(weights) != len(numbers):
        raise UserError(f"weights: there are {len(weights)} for {len(numbers)} steps; give one tensor a step")
    frames = [_four_axes(each, f"weights of step {step}") for step, each in zip(numbers, weights, strict=True)]
    for step, frame in zip(numbers, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise UserError(
                f"weights: step {numbers[0]} has shape {frames[0].shape} and step {step} {frame.shape}; "
                "all steps need the same shape"
            )
    order = sorted(range(len(numbers)), key=lambda i: numbers[i])
    return [frames[i] for i in order], [numbers[i] for i in order]


def _four_axes(weights: Any, name: str) -> Array:
    """(layers, heads, T, S); a batch axis of 1 after the layers, as Hugging Face's `attentions` have, is dropped."""
    if isinstance(weights, list | tuple) and weights and hasattr(weights[0], "detach"):
        weights = [_numpy(each) for each in weights]
    try:
        array = _numpy(weights)
        array = array.filled(-np.inf) if isinstance(array, np.ma.MaskedArray) else np.asarray(array)
        if array.dtype.kind not in "biufO":  # numpy would read texts and dates, and drop imaginary parts
            raise TypeError(f"its values are of type {array.dtype}")
        with np.errstate(over="ignore"):  # inf is refused with its place
            array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor on the meta device
        raise UserError(f"{name}: not one array of numbers ({str(error).splitlines()[0]}); give {_SHAPES}") from None
    if array.ndim == 5 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 5:
        raise UserError(
            f"{name}: has shape {array.shape}, five axes; give {_SHAPES}: choose one text of a batch, "
            "or name the training steps as steps=[...]"
        )
    if not 2 <= array.ndim <= 4 or 0 in array.shape:
        raise UserError(f"{name}: has shape {array.shape}; give {_SHAPES}, none of them 0")
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def _numpy(array: Any) -> Any:
    """A tensor of PyTorch on any device as an array (numpy has no bfloat16); anything else as it is."""
    if not hasattr(array, "detach"):
        return array
    array = array.detach().cpu()
    return (array if array.is_complex() else array.double()).numpy()


def _list(values: Any, name: str) -> list[Any]:
    try:
        return list(values)
    except TypeError:
        raise UserError(f"{name}={values!r:.60}: is not a list") from None


def _texts(tokens: Sequence[str], name: str) -> list[str]:
    if isinstance(tokens, str):
        raise UserError(f"{name}: is one text; give a list with the text of each token")
    texts = _list(tokens, name)
    strange = [text for text in texts if not isinstance(text, str)]
    if strange:
        raise UserError(f"{name}: {strange[0]!r} is not a text; decode token ids first")
    return texts


def _check_lengths(shape: tuple[int, ...], n_rows: int, n_columns: int, has_keys: bool) -> None:
    T, S = shape[-2:]
    if n_rows != T:
        raise UserError(f"tokens: there are {n_rows} for {T} rows; the weights have shape (T, S) = ({T}, {S})")
    if n_columns != S:
        name = "keys" if has_keys else "tokens"
        remedy = "" if has_keys else "; give the texts of the columns as keys=[...]"
        raise UserError(f"{name}: there are {n_columns} for {S} columns{remedy}")


def _check_values(values: Array) -> None:
    """NaN and +inf are refused; -inf is a masked score, and stays blank."""
    bad = np.isnan(values) | (values == np.inf)
    if bad.any():
        step, layer, head, row, column = np.argwhere(bad)[0].tolist()
        at = f"layer {layer}, head {head}, row {row}, column {column}" + (f", step {step}" if len(values) > 1 else "")
        said = f"{int(bad.sum())} values are NaN or +inf, the first at {at}"
        raise UserError(f"weights: {said}; set them to 0, or to -inf where a score is masked")


def _levels(values: Array) -> tuple[packing.Levels, float, bool]:
    """Levels, the value of the largest level, and whether they are signed; attention weights keep the scale 0 to 1."""
    masked = values == -np.inf
    shown = np.where(masked, 0.0, values)
    signed = bool(masked.any() or shown.min() < -_TOLERANCE)
    largest = float(np.abs(shown).max())
    if not signed and largest <= 1 + _TOLERANCE:
        return packing.compand(shown), 1.0, False
    largest = float(f"{largest or 1.0:.4g}")
    if not signed:
        return packing.compand(shown / largest), largest, False
    return np.where(masked, 0, packing.compand_signed(shown / largest)).astype(np.uint8), largest, True
