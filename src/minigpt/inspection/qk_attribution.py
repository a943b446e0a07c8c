"""QK attribution: which components of the residual stream make a query and a key match.

A score is bilinear in the stream at the query and at the key once the divisions of the norms are frozen at their
values. The stream is the sum of what the embedding, the earlier heads and the earlier MLPs have written, so the score
is the sum of one number for each pair of components: what the query reads of one times what the key reads of the other
(Elhage et al. 2021, https://transformer-circuits.pub/2021/framework).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from minigpt.errors import UserError
from minigpt.inspection.capture import attention_hooks, evaluation_mode
from minigpt.inspection.circuits import exact
from minigpt.inspection.components import component_hooks
from minigpt.inspection.hooks import hooks
from minigpt.inspection.places import check_head, check_position
from minigpt.model.attention import Attention, rotate
from minigpt.model.gpt import GPT, Block, PostNormBlock
from minigpt.model.variants.attend import AttentionSpec, attention_weights
from minigpt.model.variants.similarities import Cosine, Hopfield, ScaledDot, Similarity

BIAS = "bias"
"""Component of the biases of the norms and projections that lead to the query or key."""


@dataclass(frozen=True)
class QKAttribution:
    """The parts of one score: values.sum() = score."""

    names: tuple[str, ...]
    """Components: embedding, position embedding, heads as 1.0 (layer 1, head 0), attn1 bias, mlp1, bias."""
    values: Tensor
    """(N, N) float64 on the CPU: component at the query, component at the key."""
    score: float
    """Of the query and the key, as the model computes it, before a softcap and ALiBi."""
    position_bias: float | None
    """ALiBi's part of the score, 0 at distance 0; None without ALiBi."""
    weights: Tensor
    """(S,) float32 on the CPU: the query's attention weights for all keys."""

    def strongest(self, most: int) -> list[tuple[str, str, float]]:
        """(component at the query, component at the key, value), the largest of either sign first."""
        flat = self.values.flatten()
        best = flat.abs().argsort(descending=True, stable=True)[:most].tolist()
        return [(self.names[i // len(self.names)], self.names[i % len(self.names)], float(flat[i])) for i in best]


@torch.no_grad()
def qk_attribution(
    model: GPT, tokens: Tensor, layer: int, head: int, query: int, key: int, document_ids: Tensor | None = None
) -> QKAttribution:
    """Take the score of a query and a key in one head apart.

    The divisions of norms are frozen, also those of QK-norm and of `cosine`, and those of what post_norm blocks write.
    Rotary positions are exact: a rotation is linear. Only differences between the keys of a query matter to attention:
    a part that is the same for all keys, such as one with the bias at the key, moves no weight.

    Args:
        model: not modified.
        tokens: (1, T) ids.
        layer: from 0.
        head: from 0.
        query: position that attends, from the end if negative.
        key: position attended to, from the end if negative.
        document_ids: (1, T), as for `GPT.forward`.

    Raises:
        UserError: there is no such head or position, the query does not attend to the key, or the similarity has no
            score that is a product of query and key.
    """
    check_head(model, layer, head)
    T = tokens.shape[1]
    query, key = (check_position(at, T, name) for name, at in (("query", query), ("key", key)))
    if key > query:
        raise UserError(f"key={key}: query {query} attends to earlier tokens and itself only; give 0 to {query}")
    block = model.blocks[layer]
    assert isinstance(block, Block)
    _require_bilinear(block.attn.similarity)
    parts, score = _Parts(layer, [query, key]), _Score(head, query, key)
    with evaluation_mode(model), attention_hooks(model, partial(score.read, layer)), parts.collected(model):
        model.hidden(tokens, document_ids)
    names, stream = parts.stacked()  # (N, 2, C)
    if not isinstance(block, PostNormBlock):
        stream = _through_norm(block.attn_norm, stream)
    at_query = _projected(block.attn, "query", head, stream[:, 0], parts.rotary(0))  # (N, D)
    at_key = _projected(block.attn, "key", head, stream[:, 1], parts.rotary(1))
    return QKAttribution(names, score.scale * at_query @ at_key.T, score.value, score.position_bias, score.weights)


class _Parts:
    """The residual stream before a layer, at some positions, by the component that wrote it."""

    def __init__(self, layer: int, positions: list[int]) -> None:
        self.layer, self.positions = layer, positions
        self._parts = dict[str, Tensor]()
        self._rotary: Tensor | None = None

    @contextlib.contextmanager
    def collected(self, model: GPT) -> Iterator[None]:
        """A forward pass inside the block fills the parts."""
        # The rotary table is an argument of each block, not an activation.
        handle = model.blocks[0].register_forward_pre_hook(self._first_input)
        try:
            with hooks(model, component_hooks(model, self.layer, self._whole, self._heads)):
                yield
        finally:
            handle.remove()

    def stacked(self) -> tuple[tuple[str, ...], Tensor]:
        """Names, and (N, positions, C) float64 on the CPU; the last is `BIAS`, zeros so far."""
        stream = torch.stack(list(self._parts.values()))
        return (*self._parts, BIAS), torch.cat([stream, torch.zeros_like(stream[:1])])

    def rotary(self, i: int) -> Tensor | None:
        """(2, 1, D) cosines and sines at position i of the positions."""
        return None if self._rotary is None else self._rotary[:, i : i + 1]

    def _at_positions(self, x: Tensor) -> Tensor:
        return exact(torch.stack([x[0, position] for position in self.positions]))

    def _whole(self, name: str, update: Tensor) -> None:
        self._parts[name] = self._at_positions(update)

    def _first_input(self, _: nn.Module, arguments: tuple[Tensor, object, Tensor | None]) -> None:
        rotary = arguments[2]
        if rotary is not None:  # (2, T, D), or (2, B, T, D) where positions count from the start of a document
            table = rotary if rotary.ndim == 3 else rotary[:, 0]
            self._rotary = exact(torch.stack([table[:, position] for position in self.positions], dim=1))

    def _heads(self, layer: int, block: Block, z: Tensor) -> None:
        proj, gathered = block.attn.proj, self._at_positions(z)  # (positions, H, D)
        weight = exact(proj.weight).unflatten(1, (block.attn.n_head, -1))  # (C, H, D)
        written = torch.einsum("phd,chd->hpc", gathered, weight)
        bias = torch.zeros_like(written[:1]) if proj.bias is None else exact(proj.bias).expand_as(written[:1])
        written, has_bias = torch.cat([written, bias]), proj.bias is not None
        if isinstance(block, PostNormBlock):
            written, has_bias = _through_norm(block.attn_norm, written), has_bias or _bias(block.attn_norm) is not None
        self._parts |= {f"{layer}.{head}": written[head] for head in range(block.attn.n_head)}
        if has_bias:
            self._parts[f"attn{layer} bias"] = written[-1]


class _Score:
    """Reads a head's score of a query and a key, its factor, and the query's weights, from a forward pass."""

    scale: float
    """score = scale * query·key, with query and key as projected, normalised and rotated."""
    value: float
    position_bias: float | None = None
    weights: Tensor

    def __init__(self, head: int, query: int, key: int) -> None:
        self.head, self.query, self.key = head, query, key

    def read(self, wanted: int, layer: int, query: Tensor, key: Tensor, _: Tensor, spec: AttentionSpec) -> None:
        """An attention hook that reads the layer `wanted`."""
        if layer != wanted:
            return
        similarity, at = spec["similarity"], range(self.query, self.query + 1)
        if not spec["graph"].mask(at, range(key.shape[2]), query.device)[..., self.key].any():
            raise UserError(
                f"key={self.key}: query {self.query} does not attend to it in layer {layer}: it is outside the window, "
                "or in another document"
            )
        factors, key_head = similarity.score_factors(query, key), self.head // (query.shape[1] // key.shape[1])
        q, k = exact(query[0, self.head, self.query]), exact(key[0, key_head, self.key])
        scaled_q, scaled_k = exact(factors.query[0, self.head, self.query]), exact(factors.key[0, key_head, self.key])
        # Each similarity that is let through here multiplies a query and a key by a number of its own: `cosine` by
        # that of their lengths, which is frozen as the norms' divisions are.
        tiny = torch.finfo(q.dtype).tiny
        self.scale = float(factors.scale * (scaled_q @ q) / (q @ q + tiny) * (scaled_k @ k) / (k @ k + tiny))
        self.value = float(factors.scale * scaled_q @ scaled_k)
        if (bias := spec["key_bias"]) is not None:
            self.position_bias = float(bias[0, self.head, self.key] - bias[0, self.head, self.query])
        self.weights = attention_weights(query, key, **spec, queries=at)[0, self.head, 0].float().cpu()


def _projected(attention: Attention, name: str, head: int, parts: Tensor, rotary: Tensor | None) -> Tensor:
    """(N, C) parts of the normalised stream, the last the biases -> (N, D) parts of a head's query or key."""
    n_query, n_key, _ = attention.n_projected
    is_query = name == "query" and n_query > 0  # `symmetric` has keys only, which are its queries
    rows = slice(0, n_query * attention.head_dim)
    if not is_query:
        rows = slice(rows.stop, rows.stop + n_key * attention.head_dim)
    found = parts @ exact(attention.qkv.weight[rows]).T  # (N, n D)
    if attention.qkv.bias is not None:
        found[-1] += exact(attention.qkv.bias[rows])
    norm, n = (attention.q_norm, n_query) if is_query else (attention.k_norm, n_key)
    if not attention.qk_norm_per_head:
        found = _through_norm(norm, found)
    found = found.unflatten(1, (n, attention.head_dim))[:, head // (attention.n_head // n)]  # (N, D)
    if attention.qk_norm_per_head:
        found = _through_norm(norm, found)
    return found if rotary is None else rotate(found[None, None], rotary)[0, 0]


def _through_norm(norm: nn.Module, parts: Tensor) -> Tensor:
    """(N, ..., C) parts -> the parts of the norm of their sum, its division frozen; its bias goes to the last part."""
    if isinstance(norm, nn.Identity):
        return parts
    assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    assert norm.eps is not None
    if isinstance(norm, nn.LayerNorm):
        parts = parts - parts.mean(-1, keepdim=True)
    parts = parts * (parts.sum(0).square().mean(-1, keepdim=True) + norm.eps).rsqrt() * exact(norm.weight)
    if (bias := _bias(norm)) is not None:
        parts[-1] += exact(bias)
    return parts


def _bias(norm: nn.Module) -> Tensor | None:
    return norm.bias if isinstance(norm, nn.LayerNorm) else None


def _require_bilinear(similarity: Similarity) -> None:
    if isinstance(similarity, ScaledDot | Cosine) or (isinstance(similarity, Hopfield) and similarity.steps == 1):
        return
    reasons = {
        "gaussian": "scores by the distance of query and key",
        "linear": "multiplies features of query and key, which are not linear in them",
        "uniform": "has neither queries nor keys",
        "hopfield": f"replaces the query by weighted sums of keys (hopfield_steps={similarity.steps})",
    }
    raise UserError(
        f"similarity={similarity.name}: {reasons.get(similarity.name, 'is not a product of query and key')}, so its "
        "scores are no sum over components; QK attribution needs scaled_dot, symmetric, hard, cosine, or hopfield with "
        "hopfield_steps=1"
    )
