"""The table of families: which class of transformers computes which of our settings, and what it calls them.

Each row is read in both directions. What a row cannot say is refused by name, in both directions. How rows are read:
family.py; weights.py has the layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.errors import UserError
from minigpt.interop.family import Family, without_idle_settings
from minigpt.interop.fields import shown
from minigpt.interop.layernorm_families import LAYERNORM_FAMILIES
from minigpt.interop.rms_families import RMS_FAMILIES
from minigpt.interop.weights import Translation

FAMILIES = (*RMS_FAMILIES, *LAYERNORM_FAMILIES)
"""Of several classes that fit equally well, the first is written."""


@dataclass(frozen=True)
class Export:
    """The config and weights of an exported model, in another program's names."""

    config: dict[str, Any]
    """config.json."""
    family: Family
    _translation: Translation

    def tensors(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our state_dict -> their names and tensors, one after the other, without the vocabulary's padding.

        Raises:
            UserError: a bias is not zero where the class has none.
        """
        return self._translation.to_theirs(state)


@dataclass(frozen=True)
class Import:
    """Another program's model as ours."""

    config: GPTConfig
    family: Family
    _translation: Translation

    def tensors(self, get: Callable[[str], Tensor], names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Their tensors -> our names and tensors, one after the other, without the vocabulary's padding.

        Args:
            get: their name -> tensor; called once for each that is needed.
            names: all their names.

        Raises:
            UserError: names are missing or unknown.
        """
        return self._translation.to_ours(get, names)

    def find(self, names: Collection[str]) -> None:
        """Check that all tensors are there.

        Raises:
            UserError: names are missing or unknown.
        """
        self._translation.find(names)

    def shapes(self, state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, tuple[int, ...]]:
        """The shape that each tensor of the file must have, by its name there.

        Args:
            state: the model's state_dict; tensors on `meta` are enough.
            names: all names in the file.

        Raises:
            UserError: names are missing or unknown.
        """
        found = self._translation.find(names)
        return {found[name]: tuple(tensor.shape) for name, tensor in self._translation.to_theirs(state)}


def exported(config: GPTConfig) -> Export:
    """The class of transformers that computes exactly what a config says.

    Raises:
        UserError: none does; the message names the settings without counterpart, and the nearest values that have one.
    """
    config = without_idle_settings(config)
    misfits = {family: family.misfits(config) for family in FAMILIES}
    fewest = min(map(len, misfits.values()))
    nearest = [family for family in FAMILIES if len(misfits[family]) == fewest]
    if fewest == 0:
        family = min(nearest, key=lambda family: family.n_zero_biases(config))
        values = family.write(config)
        return Export(values, family, family.translation(config, values))
    ways = dict[str, str]()
    for family in nearest:
        needs = [f"model.{m.setting}={m.nearest} instead of {shown(m.value)}" for m in misfits[family]]
        ways.setdefault(" and ".join(needs), family.architecture)
    said = ", or ".join(f"{needs} ({architecture})" for needs, architecture in list(ways.items())[:3])
    raise UserError(f"no class of transformers computes this model: that needs {said}")


def imported(config: Mapping[str, Any]) -> Import:
    """Our settings for a config.json.

    Raises:
        UserError: an unknown family, a wrong value, or one that changes the mathematics and has no counterpart.
    """
    kind = config.get("model_type")
    families = {family.model_type: family for family in FAMILIES}
    if not isinstance(kind, str) or kind not in families:
        raise UserError(f"model_type={shown(kind)}: minigpt reads {', '.join(sorted(families))}")
    family = families[kind]
    settings = family.read(config)
    return Import(settings, family, family.translation(settings, config))
