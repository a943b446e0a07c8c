"""Checks of a head and a position that a caller names."""

from __future__ import annotations

from minigpt.errors import UserError
from minigpt.model.gpt import GPT


def check_head(model: GPT, layer: int, head: int, name: str = "head") -> None:
    """Refuse a head that a model does not have; `name` is that of the setting.

    Raises:
        UserError: there is no such layer, or no such head.
    """
    L, H = model.config.n_layer, model.config.n_head
    if not (0 <= layer < L and 0 <= head < H):
        raise UserError(f"{name}={layer}.{head}: the model has layers 0 to {L - 1}, each with heads 0 to {H - 1}")


def check_position(position: int, n_positions: int, name: str = "position") -> int:
    """The position, counted from the start; `name` is that of the setting.

    Raises:
        UserError: there is no such position.
    """
    if not -n_positions <= position < n_positions:
        there_are = "there is 1 position" if n_positions == 1 else f"there are {n_positions} positions"
        raise UserError(f"{name}={position}: {there_are}; give {-n_positions} to {n_positions - 1}")
    return position % n_positions
