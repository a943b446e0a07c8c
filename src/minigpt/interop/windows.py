"""Sliding windows in a config.json: which of our patterns a class can say, and how it says them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt.config import GPTConfig
from minigpt.interop.fields import LARGEST, Fields, refused

Window = int | None
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Windows:
    """One way of saying the window of each layer."""

    fits: Callable[[Sequence[Window]], bool]
    nearest: str
    """What `model.window` would have to be, for messages."""
    write: Callable[[Sequence[Window]], dict[str, Any]]
    read: Callable[[Fields, int], list[Window]]
    """Their config and its number of layers -> the window of each."""


def windows_of(config: GPTConfig) -> list[Window]:
    """The window of each layer; one as long as the context is none."""
    return [None if window is None or window >= config.context_length else window for window in config.windows]


def window_size(config: GPTConfig) -> Window:
    """The size of the windows of a config that has one size; None for none."""
    return _size(windows_of(config))


def as_pattern(windows: Sequence[Window]) -> Window | list[Window]:
    """The shortest pattern that repeats to these windows; one size is no pattern."""
    n = len(windows)
    period = next(p for p in range(1, n + 1) if all(windows[i] == windows[i % p] for i in range(n)))
    return windows[0] if period == 1 else list(windows[:period])


def _size(windows: Sequence[Window]) -> Window:
    return next((window for window in windows if window is not None), None)


def _one_size(windows: Sequence[Window]) -> bool:
    return len(set(windows) - {None}) <= 1


def _read_none(fields: Fields, n_layer: int) -> list[Window]:
    if fields.get("sliding_window") is not None:
        raise refused("sliding_window", fields.get("sliding_window"), "this class has no windows; set it to null")
    return [None] * n_layer


def _read_every_layer(fields: Fields, n_layer: int) -> list[Window]:
    return [fields.integer("sliding_window", LARGEST["context_length"])] * n_layer


def _write_layer_types(windows: Sequence[Window]) -> dict[str, Any]:
    return {
        "sliding_window": _size(windows),
        "use_sliding_window": _size(windows) is not None,
        "max_window_layers": 0 if None not in windows else len(windows),
        "layer_types": [FULL if window is None else SLIDING for window in windows],
    }


def _read_layer_types(fields: Fields, n_layer: int) -> list[Window]:
    size = fields.integer("sliding_window", LARGEST["context_length"])
    if not fields.flag("use_sliding_window"):
        size = None
    kinds = fields.get("layer_types")
    if kinds is None and "layer_types" in fields.defaults:
        kinds = [(SLIDING, FULL)[layer % 2] for layer in range(n_layer)]  # the Gemmas'
    elif kinds is None:
        first = fields.get("max_window_layers")
        if isinstance(first, bool) or not isinstance(first, int):
            raise refused("max_window_layers", first, "expected a whole number")
        kinds = [SLIDING if layer >= first else FULL for layer in range(n_layer)]
    if not isinstance(kinds, list) or len(kinds) != n_layer or not all(kind in (SLIDING, FULL) for kind in kinds):
        raise refused("layer_types", kinds, f"expected {SLIDING} or {FULL} for each of {n_layer} layers")
    return [size if kind == SLIDING else None for kind in kinds]


def _write_attention_types(windows: Sequence[Window]) -> dict[str, Any]:
    pattern = as_pattern(windows)
    pattern = pattern if isinstance(pattern, list) and len(windows) % len(pattern) == 0 else list(windows)
    names = ["global" if window is None else "local" for window in pattern]
    return {"attention_types": [[names, len(windows) // len(pattern)]], "window_size": _size(windows) or 256}


def _read_attention_types(fields: Fields, n_layer: int) -> list[Window]:
    size = fields.integer("window_size", LARGEST["context_length"])
    said, names = fields.get("attention_types"), list[str]()
    wrong = refused("attention_types", said, f"expected [[[global, local], n], ...] for {n_layer} layers")
    for each in said if isinstance(said, list) else []:
        if not isinstance(each, list) or len(each) != 2 or not isinstance(each[0], list):
            raise wrong
        if isinstance(each[1], bool) or not isinstance(each[1], int) or not 0 <= len(each[0]) * each[1] <= n_layer:
            raise wrong
        names += each[0] * each[1]
    if len(names) != n_layer or not all(name in ("global", "local") for name in names):
        raise wrong
    return [size if name == "local" else None for name in names]


NO_WINDOWS = Windows(lambda windows: set(windows) == {None}, "null", lambda windows: {}, _read_none)
EVERY_LAYER = Windows(
    lambda windows: len(set(windows)) == 1,
    "one size for all layers",
    lambda windows: {"sliding_window": windows[0]},
    _read_every_layer,
)
LAYER_TYPES = Windows(_one_size, "a pattern of one size and null", _write_layer_types, _read_layer_types)
ATTENTION_TYPES = Windows(_one_size, "a pattern of one size and null", _write_attention_types, _read_attention_types)
