"""What a family of models is: how its config.json says our settings, and its weights ours. The table: families.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from minigpt.config import GPTConfig
from minigpt.interop.fields import LARGEST, Fields, refused, shown
from minigpt.interop.rotary import rotary_to_ours, rotary_to_theirs
from minigpt.interop.weights import Names, Translation, biased
from minigpt.interop.windows import NO_WINDOWS, Windows, as_pattern, windows_of

READ_AS = {"n_kv_head": "kv_heads", "head_dim": "width_per_head", "mlp_hidden": "mlp_width", "norm_eps": "eps"}
"""Settings with a default that depends on others, and the properties that fill it in."""

NEVER = {"quantization_config": None, "num_experts": None, "num_local_experts": None, "is_encoder_decoder": False}
"""Entries of any family that change the mathematics, and the only value that is read."""
NEEDED = "minigpt needs it; is this the config.json of a model?"


def without_idle_settings(config: GPTConfig) -> GPTConfig:
    """The config without QK-norm where there are no queries and keys to normalise."""
    return (
        dataclasses.replace(config, qk_norm=False, qk_norm_per_head=True) if config.similarity == "uniform" else config
    )


class Misfit(NamedTuple):
    """A setting for which a class has no counterpart."""

    setting: str
    value: object
    nearest: str
    """What the class could say."""


@dataclass(frozen=True, eq=False)
class Family:
    """One class of transformers. Everything is said once, and read in both directions."""

    model_type: str
    architecture: str
    names: Names
    keys: Mapping[str, str]
    """Our settings with a value of its own there -> its key."""
    ours: Mapping[str, Any]
    """Settings that the class has no choice about."""
    switches: Mapping[str, tuple[str, Mapping[Any, Any]]] = field(default_factory=dict)
    """Its key -> (our setting, {its value: our value}). Where several of its values mean ours, the first is written."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Its keys that change the mathematics, with the only value that is written and read."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the class assumes where a config.json says nothing, if that is not null."""
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Its flag -> our modules that have a bias with it; "" for those that always have."""
    positions: tuple[str, ...] = ("rotary", "none")
    partial_key: str | None = None
    """The older name of the rotated share of each head; None if heads rotate as a whole."""
    windows: Windows = NO_WINDOWS
    width_of_heads: bool = False
    """The class refuses a width that n_head does not divide, also where head_dim is given."""
    drops_biases: bool = False
    """Biases that it lacks may be there as long as they are zero."""
    scale_key: str | None = None
    scale: Callable[[float | None, int], float] = lambda value, head_dim: head_dim**-0.5
    """(value of scale_key, head_dim) -> what it multiplies query·key by."""
    extra: Callable[[GPTConfig], dict[str, Any]] = lambda config: {}
    """Further entries to write."""

    # Out

    def misfits(self, config: GPTConfig) -> list[Misfit]:
        """The settings that the class cannot say; none if it computes exactly what we do."""

        def say(name: str, nearest: object) -> Misfit:
            return Misfit(name, getattr(config, name), nearest if isinstance(nearest, str) else shown(nearest))

        found = [say(name, value) for name, value in self.ours.items() if getattr(config, name) != value]
        for name, values in self.switches.values():
            choices = list(dict.fromkeys(values.values()))
            if getattr(config, name) not in choices:
                found.append(say(name, choices[0]))
        if config.position not in self.positions:
            found.append(say("position", self.positions[0]))
        elif config.position == "rotary" and self.partial_key is None and config.rotary_fraction != 1:
            found.append(say("rotary_fraction", 1))
        if not self.windows.fits(windows_of(config)):
            found.append(say("window", self.windows.nearest))
        found += self._misfits_of_sizes(config, say)
        lacks = biased(config) - {name for names in self.biases.values() for name in names}
        if lacks and not self.drops_biases:
            found.append(say("qkv_bias" if lacks == {"attn.qkv"} else "bias", False))
        # Every class has queries and keys to make these of; what the others compute, none has.
        if config.similarity not in {"scaled_dot", "symmetric", "uniform", "hopfield"}:
            found.append(say("similarity", "scaled_dot"))
        elif config.similarity == "hopfield" and config.hopfield_steps != 1:
            found.append(say("hopfield_steps", 1))
        return found

    def _misfits_of_sizes(self, config: GPTConfig, say: Callable[[str, object], Misfit]) -> Iterator[Misfit]:
        if "logit_softcap" not in self.keys and config.logit_softcap is not None:
            yield say("logit_softcap", None)
        if "n_kv_head" not in self.keys and config.kv_heads != config.n_head:
            yield say("n_kv_head", None)
        if "head_dim" not in self.keys and config.width_per_head * config.n_head != config.n_embd:
            yield say("head_dim", None)
        elif self.width_of_heads and config.n_embd % config.n_head:
            yield say("n_embd", f"a multiple of {config.n_head}")
        if "mlp_hidden" not in self.keys and config.mlp_width != 4 * config.n_embd:
            yield say("mlp_hidden", None)

    def n_zero_biases(self, config: GPTConfig) -> int:
        """Modules that get a bias of zero because they share a flag with one that has a bias."""
        has = biased(config)
        return sum(len(set(names) - has) for flag, names in self.biases.items() if flag and not has.isdisjoint(names))

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """The class's config.json."""
        flat: dict[str, Any] = {"architectures": [self.architecture], "model_type": self.model_type}
        flat |= {theirs: getattr(config, READ_AS.get(ours, ours)) for ours, theirs in self.keys.items()}
        for key, (name, values) in self.switches.items():
            flat[key] = next(theirs for theirs, ours in values.items() if ours == getattr(config, name))
        has = biased(config)
        flat |= {flag: not has.isdisjoint(modules) for flag, modules in self.biases.items() if flag}
        flat |= self.fixed
        if "rotary" in self.positions:
            flat |= rotary_to_theirs(config, self.partial_key)
        flat |= self.windows.write(windows_of(config)) | self.extra(config)
        # Named even where there is none: the classes assume GPT-2's or Llama's ids, which may exceed the vocabulary.
        flat |= {"bos_token_id": None, "eos_token_id": config.end_of_text, "pad_token_id": None}
        nested: dict[str, Any] = {}
        for key, value in flat.items():
            outer, _, inner = key.rpartition(".")
            (nested.setdefault(outer, {}) if outer else nested)[inner] = value
        return nested

    # In

    def read(self, values: Mapping[str, Any]) -> GPTConfig:
        """The settings of a config.json.

        Raises:
            UserError: a value of a wrong type or range, or one that minigpt has no counterpart for.
        """
        fields = Fields(values, self.defaults)
        for key, wanted in (NEVER | dict(self.fixed)).items():
            if key in self.fixed or key in values:
                fields.require(key, wanted)
        settings = dict(self.ours) | self._read_sizes(fields)
        for key, (name, choices) in self.switches.items():
            value = fields.get(key)
            if not isinstance(value, str | bool) or value not in choices:
                raise refused(key, value, f"minigpt has {' and '.join(map(str, choices))} here only")
            settings[name] = choices[value]
        if settings["mlp"] == "swiglu" and settings["mlp_hidden"] is None:
            raise refused(self.keys["mlp_hidden"], None, NEEDED)
        has = self._biased(fields)
        settings["bias"] = bool(has - {"attn.qkv"})
        settings["qkv_bias"] = None if ("attn.qkv" in has) == settings["bias"] else "attn.qkv" in has
        settings["window"] = as_pattern(self.windows.read(fields, settings["n_layer"]))
        settings["position"] = self.positions[0]
        head_dim = settings.get("head_dim") or settings["n_embd"] // settings["n_head"]
        if "rotary" in self.positions:
            settings |= rotary_to_ours(fields, settings["context_length"], head_dim, self.partial_key)
        return GPTConfig(**settings)

    def _read_sizes(self, fields: Fields) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for ours, theirs in self.keys.items():
            if ours in LARGEST:
                settings[ours] = fields.integer(theirs, LARGEST[ours])
            elif ours == "tie_embeddings":
                settings[ours] = fields.flag(theirs)
            else:
                settings[ours] = fields.number(theirs)
        for ours in ("vocab_size", "context_length", "n_layer", "n_head", "n_embd", "norm_eps"):
            if settings[ours] is None:
                raise refused(self.keys[ours], None, NEEDED)
        return settings

    # Weights

    def translation(self, config: GPTConfig, values: Mapping[str, Any]) -> Translation:
        """The weights of a config, ours and as theirs."""
        fields = Fields(values, self.defaults)
        value = None if self.scale_key is None else fields.number(self.scale_key)
        scale = self.scale(value, config.width_per_head)
        return Translation(config, self.names, self._biased(fields), scale, self.architecture)

    def _biased(self, fields: Fields) -> set[str]:
        """Modules, by our names, that have a bias there."""
        return {name for flag, names in self.biases.items() if not flag or fields.flag(flag) for name in names}
