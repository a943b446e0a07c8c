"""Where the activations of a model are, by their names in TransformerLens: what `hooks` reads and replaces."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import nn

from minigpt.inspection.attention_taps import on_attention
from minigpt.inspection.taps import (
    Attach,
    Part,
    on_input,
    on_middle,
    on_normalized,
    on_output,
    on_positions,
    on_result,
)
from minigpt.model.attention import Attention
from minigpt.model.gpt import GPT, Block, ParallelBlock, PostNormBlock


class Site(NamedTuple):
    """One activation of a model."""

    shape: str
    """Such as (B, T, 4, 8)."""
    attach: Attach


def sites(model: GPT) -> dict[str, Site]:
    """Every activation by its full name, as blocks.3.attn.pattern, in the order in which a forward pass has them."""
    C, V = model.config.n_embd, model.config.vocab_size
    found = {"embed": _site(partial(on_output, model.token_embedding), "B", "T", C)}
    if model.config.position in {"learned", "sinusoidal"}:
        found["pos_embed"] = _site(partial(on_positions, model), "B", "T", C)
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        found |= {f"blocks.{layer}.{name}": site for name, site in _sites_of_block(block, C).items()}
    found |= _sites_of_norm("ln_final", model.final_norm, C)
    found["final_norm"] = found.pop("ln_final.out")
    found["logits"] = _site(partial(on_output, model), "B", "T", V)
    return found


def _site(attach: Attach, *shape: str | int | None) -> Site:
    return Site(f"({', '.join(map(str, shape))})", attach)


def _sites_of_block(block: Block, C: int) -> dict[str, Site]:
    """The activations of a layer; each half's update is read where it is added to the residual stream."""
    is_post = isinstance(block, PostNormBlock)

    def stream(attach: Attach) -> Site:
        return _site(attach, "B", "T", C)

    found = {"resid_pre": stream(partial(on_input, block))}
    inner, norm = _sites_of_attention(block.attn, C), _sites_of_norm("ln1", block.attn_norm, C)
    found |= inner | norm if is_post else norm | inner
    found["attn_out"] = stream(partial(on_output, block.attn_norm if is_post else block.attn))
    if not isinstance(block, ParallelBlock):  # whose MLP does not read what attention adds
        found["resid_mid"] = stream(partial(on_middle, block, block.mlp if is_post else block.mlp_norm))
    inner, norm = _sites_of_mlp(block.mlp), _sites_of_norm("ln2", block.mlp_norm, C)
    found |= inner | norm if is_post else norm | inner
    found["mlp_out"] = stream(partial(on_output, block.mlp_norm if is_post else block.mlp))
    found["resid_post"] = stream(partial(on_output, block))
    return found


def _sites_of_attention(attention: Attention, C: int) -> dict[str, Site]:
    H, D = attention.n_head, attention.head_dim
    found, start = dict[str, Site](), 0
    for name, n in zip("qkv", attention.n_projected, strict=True):
        if n:  # a similarity may have no queries, or no keys
            part = Part(start, start + n * D, (n, D))
            found[f"attn.{name}"] = _site(partial(on_output, attention.qkv, part=part), "B", "T", n, D)
        start += n * D
    n_query, n_key, _ = attention.n_projected
    if n_key:
        found["attn.rot_q"] = _site(partial(on_attention, attention, "rot_q"), "B", "T", n_query or n_key, D)
        found["attn.rot_k"] = _site(partial(on_attention, attention, "rot_k"), "B", "S", n_key, D)
    for name in ("attn_scores", "pattern"):
        found[f"attn.{name}"] = _site(partial(on_attention, attention, name), "B", H, "T", "S")
    heads = Part(0, H * D, (H, D))
    found["attn.z"] = _site(partial(on_input, attention.proj, part=heads), "B", "T", H, D)
    found["attn.result"] = _site(partial(on_result, attention), "B", "T", H, C)
    return found


def _sites_of_norm(name: str, norm: nn.Module, C: int) -> dict[str, Site]:
    """Before and after gain and bias."""
    found = dict[str, Site]()
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        found[f"{name}.normalized"] = _site(partial(on_normalized, norm), "B", "T", C)
    return found | {f"{name}.out": _site(partial(on_output, norm), "B", "T", C)}


def _sites_of_mlp(mlp: nn.Module) -> dict[str, Site]:
    """What its layers have in common, whatever their names: `up` or `gate_up`, then `proj`."""
    layers = dict(mlp.named_children())
    found = dict[str, Site]()
    proj = layers.get("proj")
    if not isinstance(proj, nn.Linear):
        return found
    n = proj.in_features
    if "up" in layers:
        found["mlp.pre"] = _site(partial(on_output, layers["up"]), "B", "T", n)
    if "gate_up" in layers:
        for i, name in enumerate(("mlp.pre", "mlp.pre_linear")):
            part = Part(i * n, (i + 1) * n, (n,))
            found[name] = _site(partial(on_output, layers["gate_up"], part=part), "B", "T", n)
    found["mlp.post"] = _site(partial(on_input, proj), "B", "T", n)
    return found
