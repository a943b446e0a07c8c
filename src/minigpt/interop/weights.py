"""Our weights <-> another program's: which tensors are which, and how each lies in memory. One table for both ways."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.errors import UserError
from minigpt.files import listed
from minigpt.interop.layouts import HALVES, SAME, SPLIT_QKV, Layout, qkv_sizes
from minigpt.model.tables import sinusoidal_table

QK_NORMS = ("attn.q_norm", "attn.k_norm")


@dataclass(frozen=True)
class Names:
    """Their names of our modules, and their layouts where those are not ours."""

    prefix: str
    """What all names but the head's begin with; files of the bare model lack it."""
    outside: Mapping[str, str]
    block: str
    """The prefix of a layer's names, with {i}."""
    inside: Mapping[str, str]
    """Our module -> their modules, separated by spaces where they split its tensor; {h} is the number of a head."""
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    head: Sequence[str] = ("lm_head",)
    """Names of the output head, the one that is written first."""


@dataclass(frozen=True)
class Part:
    """One of our modules, and their modules with the same weights."""

    name: str
    """Without the layer, as in `Names`."""
    ours: str
    theirs: Sequence[str]
    layout: Layout
    our_bias: bool
    their_bias: bool

    @property
    def kinds(self) -> tuple[str, ...]:
        """What they store of it."""
        return ("weight", "bias") if self.their_bias else ("weight",)


@dataclass(frozen=True)
class Translation:
    """The weights of one config in another program's names and layouts, and back."""

    config: GPTConfig
    names: Names
    biases: Collection[str]
    """Modules, by our names, that have a bias there."""
    scale: float
    """Of query·key there. Where it is not ours, the query matrix or the norm of queries is multiplied by the rest."""
    architecture: str

    @property
    def query_factor(self) -> float:
        """Their queries are this many times ours."""
        return our_scale(self.config) / self.scale

    def parts(self) -> Iterator[Part]:
        """All modules, in the order in which tokens pass them."""
        heads = {} if self.tied else {"lm_head": self.names.head[0]}
        last = {name: theirs for name, theirs in self.names.outside.items() if name == "final_norm"}
        first = {name: theirs for name, theirs in self.names.outside.items() if name != "final_norm"}
        for name, theirs in first.items():
            yield self._part(name, name, [theirs])
        for i in range(self.config.n_layer):
            for name, theirs in self.names.inside.items():
                if name in QK_NORMS and not self.config.qk_norm:
                    continue
                n = self.config.kv_heads if name == "attn.k_norm" else self.config.n_head
                each = [w.format(h=h) for w in theirs.split() for h in range(n if "{h}" in w else 1)]
                prefix = self.names.block.format(i=i)
                yield self._part(name, f"blocks.{i}.{name}", [f"{prefix}.{word}" for word in each])
        for name, theirs in (last | heads).items():
            yield self._part(name, name, [theirs])

    @property
    def tied(self) -> bool:
        """One table there for embedding and head. Where it is scaled as an embedding, there must be two."""
        return self.config.tie_embeddings and "token_embedding" not in self.names.layouts

    def _part(self, name: str, ours: str, theirs: Sequence[str]) -> Part:
        default = {"attn.qkv": SPLIT_QKV, "mlp.gate_up": HALVES}.get(name, SAME)
        layout = self.names.layouts.get(name, default)
        return Part(name, ours, theirs, layout, name in biased(self.config), name in self.biases)

    def to_theirs(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our state_dict -> their names and tensors, lazily.

        Raises:
            UserError: a bias is not zero and they have none there.
        """
        for part in self.parts():
            bias = state.get(f"{part.ours}.bias")
            if bias is not None and not part.their_bias and not bias.is_meta and bias.any():
                raise UserError(
                    f"{part.ours}.bias is not zero, and {self.architecture} has no bias there: train with "
                    "model.bias=false"
                )
        return self._packed(state)

    def _packed(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for part in self.parts():
            for kind in part.kinds:
                tensor = self._turned(part, _complete(self.config, state, f"{part.ours}.{kind}"), inverse=False)
                for name, each in zip(part.theirs, part.layout.pack(self.config, tensor), strict=True):
                    yield f"{name}.{kind}", each

    def to_ours(self, get: Callable[[str], Tensor], names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Their tensors -> our names and tensors, lazily, without the rows that pad the vocabulary.

        Args:
            get: called once for each of their names that is needed.
            names: all names that there are.

        Raises:
            UserError: names are missing or unknown, or QK-norms differ between heads.
        """
        found = self.find(names)
        self._check_tied_head(get, found, names)
        for part in self.parts():
            for kind in part.kinds:
                tensor = part.layout.unpack(self.config, [get(found[f"{name}.{kind}"]) for name in part.theirs])
                yield f"{part.ours}.{kind}", self._turned(part, tensor, inverse=True)
            if part.our_bias and not part.their_bias:
                yield f"{part.ours}.bias", tensor.new_zeros(len(tensor))

    def find(self, names: Collection[str]) -> dict[str, str]:
        """Their names as `Names` has them -> the names in a file: the bare model's lack the prefix.

        Raises:
            UserError: names are missing or unknown.
        """
        if self.config.n_layer > len(names):  # before a loop over layers that are not there
            raise UserError(f"the weights have {len(names)} tensors, too few for {self.config.n_layer} layers")
        known, found, missing = set(names), dict[str, str](), list[str]()
        for name, spellings in self._their_names():
            there = next((spelling for spelling in spellings if spelling in known), None)
            if there is not None:
                found[name] = there
            elif len(missing) < 20:
                missing.append(name)
            else:  # a hostile config asks for millions
                break
        if missing:
            raise UserError(f"the weights lack tensors of the config: {listed(missing)}")
        unknown = sorted(known - set(found.values()) - {name for name in known if self._is_buffer(name)})
        if unknown:
            raise UserError(
                f"the weights have {len(unknown)} tensors that the config has no place for: {listed(unknown)}"
            )
        return found

    def _their_names(self) -> Iterator[tuple[str, list[str]]]:
        """Each of their names, and how files may spell it."""
        for part in self.parts():
            for kind in part.kinds:
                for name in (f"{each}.{kind}" for each in part.theirs):
                    if part.name == "lm_head":
                        yield name, [f"{head}.weight" for head in self.names.head]
                    else:
                        yield name, [name, name.removeprefix(f"{self.names.prefix}.")]

    def _check_tied_head(self, get: Callable[[str], Tensor], found: Mapping[str, str], names: Collection[str]) -> None:
        """Files of a tied model may hold the head too. transformers does not tie one that differs."""
        for head in (f"{head}.weight" for head in self.names.head if self.tied):
            embedding = found[f"{self.names.outside['token_embedding']}.weight"]
            if head in names and not torch.equal(get(head), get(embedding)):
                raise UserError(
                    f"{head} is not {embedding}, although tie_word_embeddings=true: set it to false in config.json"
                )

    def _is_buffer(self, name: str) -> bool:
        """Tensors that older files hold beside the weights: masks, frequencies, and the head of a tied model."""
        if self.tied and name in {f"{head}.weight" for head in self.names.head}:
            return True
        return f".{name}".endswith((".rotary_emb.inv_freq", ".attn.bias", ".attention.bias", ".masked_bias"))

    def _turned(self, part: Part, x: Tensor, *, inverse: bool) -> Tensor:
        """The queries' scale, and the order of the channels that partial rotary positions turn."""
        config, D = self.config, self.config.width_per_head
        factor, order = self.query_factor, _channel_order(config)
        factor = 1 / factor if inverse else factor
        if order is not None and inverse:
            order = order.argsort()
        on_norm = config.qk_norm
        if part.name in QK_NORMS:
            x = x if order is None else x[order]
            return x * factor if part.name == "attn.q_norm" and factor != 1 else x
        if part.name != "attn.qkv" or (order is None and (on_norm or factor == 1)):
            return x
        query, key, value = x.split(qkv_sizes(config))
        if factor != 1 and not on_norm:
            query = query * factor
        if order is not None:
            query, key = (each.unflatten(0, (-1, D))[:, order].flatten(0, 1) for each in (query, key))
        return torch.cat([query, key, value])


def our_scale(config: GPTConfig) -> float:
    """What query·key is multiplied by before the softmax."""
    if config.similarity == "hopfield" and config.hopfield_beta is not None:
        return config.hopfield_beta
    return config.width_per_head**-0.5 / config.softmax_temperature


def biased(config: GPTConfig) -> set[str]:
    """Modules of a block, and the final norm, that have a bias."""
    norms = {"attn_norm", "mlp_norm", "final_norm"} | (set(QK_NORMS) if config.qk_norm else set())
    linear = {"attn.proj", "mlp.gate_up" if config.mlp == "swiglu" else "mlp.up", "mlp.proj"}
    names = linear | (norms if config.norm == "layernorm" else set()) if config.bias else set()
    has_qkv = config.bias if config.qkv_bias is None else config.qkv_bias
    return names | ({"attn.qkv"} if has_qkv else set())


def _channel_order(config: GPTConfig) -> Tensor | None:
    """(D,) the channels of a head in their order; None where it is ours.

    Channels i and i + D/2 turn together here, for i below half of the rotated share R; there i and i + R/2 do.
    """
    if config.position != "rotary" or config.rotary_fraction == 1:
        return None
    D, half = config.width_per_head, round(config.rotary_fraction * config.width_per_head) // 2
    first, second = torch.arange(D // 2), torch.arange(D // 2, D)
    return torch.cat([first[:half], second[:half], first[half:], second[half:]])


def _complete(config: GPTConfig, state: Mapping[str, Tensor], name: str) -> Tensor:
    """One of our tensors; zeros, copies or a table where our model has none and their class needs one."""
    tensor = state.get(name)
    part, _, kind = name.rpartition(".")
    if name == "token_embedding.weight" or (name == "lm_head.weight" and tensor is not None):
        return state[name][: config.vocab_size]  # the rows that pad the vocabulary would get a logit of 0
    if name == "lm_head.weight":
        return state["token_embedding.weight"][: config.vocab_size]
    if part.endswith("attn.qkv"):
        return _complete_qkv(config, state, part, kind)
    if tensor is not None:
        return tensor
    if name == "position_embedding.weight":
        if config.position == "sinusoidal":
            return torch.from_numpy(sinusoidal_table(config.context_length, config.n_embd))
        return torch.zeros(config.context_length, config.n_embd)
    if name.endswith("attn.q_norm.weight"):  # `symmetric` norms its one projection as a key
        return state[name.replace("q_norm", "k_norm")]
    assert kind == "bias", name
    return torch.zeros(len(state[f"{part}.weight"]))


def _complete_qkv(config: GPTConfig, state: Mapping[str, Tensor], part: str, kind: str) -> Tensor:
    """Queries, keys and values where the similarity has fewer projections: `symmetric` and `uniform`."""
    x = state.get(f"{part}.{kind}")
    if x is None:
        x = torch.zeros(len(state[f"{part}.weight"]))
    n_query, n_key, _ = qkv_sizes(config)
    if config.similarity == "symmetric":
        return torch.cat([x[:n_key], x])
    if config.similarity == "uniform":
        return torch.cat([x.new_zeros(n_query + n_key, *x.shape[1:]), x])
    return x
