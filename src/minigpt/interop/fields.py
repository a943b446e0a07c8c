"""The values of another program's config.json, each checked for type and range where it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minigpt.errors import UserError

LARGEST = {
    "vocab_size": 2**24,
    "context_length": 2**20,
    "n_layer": 2**12,
    "n_head": 2**14,
    "n_kv_head": 2**14,
    "n_embd": 2**18,
    "head_dim": 2**14,
    "mlp_hidden": 2**20,
}
"""The largest size that is read, by our names: far above any model, and small enough to count with."""


@dataclass(frozen=True)
class Fields:
    """A config.json, or what its class assumes where it says nothing.

    Values are another program's, or an attacker's: nothing is used before its type and range are known.
    """

    values: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def get(self, key: str) -> Any:
        """The value as it is; that of a dotted key is nested. Absent values are the class's default, or None."""
        value: Any = self.values
        for name in key.split("."):
            if not isinstance(value, Mapping) or name not in value:
                return self.defaults.get(key)
            value = value[name]
        return value

    def integer(self, key: str, largest: int) -> int | None:
        """A size from 1 to `largest`, or None for null.

        Raises:
            UserError: it is something else.
        """
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            raise refused(key, value, f"expected a whole number from 1 to {largest:,}")
        return value

    def number(self, key: str) -> float | None:
        """A number above 0, or None for null.

        Raises:
            UserError: it is something else.
        """
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise refused(key, value, "expected a number above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        """A truth value; absent and null are false.

        Raises:
            UserError: it is something else.
        """
        value = self.get(key)
        if not isinstance(value, bool | None):
            raise refused(key, value, "expected true or false")
        return bool(value)

    def mapping(self, key: str) -> dict[str, Any]:
        """A nested object; absent and null are empty.

        Raises:
            UserError: it is something else.
        """
        value = self.get(key)
        if not isinstance(value, Mapping | None):
            raise refused(key, value, "expected an object")
        return dict(value or {})

    def require(self, key: str, wanted: object) -> None:
        """Refuse a value that changes the mathematics in a way that minigpt has no counterpart for.

        Raises:
            UserError: naming key and value.
        """
        value = self.get(key)
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            raise refused(key, value, f"minigpt has no counterpart; it reads {shown(wanted)} only")


def refused(key: str, value: object, why: str) -> UserError:
    """The error for one value of a config.json."""
    return UserError(f"{key}={shown(value)}: {why}")


def shown(value: object) -> str:
    """A value as JSON writes it, at most 60 characters: a hostile one may be a book."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) > 10**18:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
