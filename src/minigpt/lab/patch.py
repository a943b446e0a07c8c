"""`minigpt patch`: patching of a clean and a corrupted prompt -> a page of heat maps, and a table of the strongest."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from minigpt.config import PatchConfig
from minigpt.errors import UserError
from minigpt.files import note, require_page, write_text
from minigpt.frames import is_frame, require_frame, write_frame
from minigpt.inspection.patching import (
    SITES,
    Contrast,
    Patching,
    activation_patching,
    attribution_patching,
    path_patching,
)
from minigpt.interop.hub import is_foreign
from minigpt.lab.prompts import encode_text, encode_token, written
from minigpt.markdown import table
from minigpt.pages.documents import Page
from minigpt.pages.patching import HeatMap, render_patching
from minigpt.pages.tokens import label
from minigpt.runs.folder import name_of
from minigpt.runs.loading import LoadedModel, load_model

STRONGEST = 5
"""Maximum number of patches of each kind in the table; the page has all of them."""
LEAST = 0.01
"""Smaller effects are not in the table, but for the strongest of its kind."""
MOST_PATHS = 20_000
"""Maximum number of paths between heads. Each is a forward pass of the prompt."""
SLOW = 1e13
"""Multiplications of all patches from which a note says how many passes there are: minutes on a CPU."""
COLUMNS = ("patch", "where", "effect", "metric")
"""Columns of --out for a table: a row for each patch."""
WORDS = {
    "resid_pre": ("residual stream", "Input of one layer, at one position."),
    "attn_out": ("attention output", "What the attention of one layer adds to the stream, at one position."),
    "mlp_out": ("MLP output", "What the MLP of one layer adds to the stream, at one position."),
    "head": ("heads", "Output of one head at all positions."),
    "head_position": ("heads by position", "Output of one head at one position."),
    "pattern": ("attention patterns", "Attention weights of one head; its values stay those of the corrupted prompt."),
    "q": ("paths into queries", "Output of the sender alone, read as the query of one later head."),
    "k": (
        "paths into keys",
        "Output of the sender alone, read as the key of one later head (of one key head, where heads share keys).",
    ),
    "v": (
        "paths into values",
        "Output of the sender alone, read as the value of one later head (of one value head, where heads share them).",
    ),
    "logits": ("paths to the logits", "Output of one head, straight to the logits, through no later layer."),
}
"""Title and explanation of each map."""
METHODS = {
    "activation": "activation patching",
    "attribution": "attribution patching: estimates from gradients",
    "path": "path patching",
}


@dataclass(frozen=True)
class Patches:
    """Results of patching; a notebook shows the page."""

    page: Page = field(repr=False)
    table: str = field(repr=False)
    """The strongest patches of each kind, as Markdown."""
    maps: tuple[HeatMap, ...] = field(repr=False)
    """All effects, as the page shows them."""

    def _repr_html_(self) -> str:
        return self.page._repr_html_()


def write_patches(config: PatchConfig) -> str:
    """Write the page, or a table of all effects, and return what to print. Arguments and errors as for `patch_run`."""
    beside = Path() if is_foreign(config.run) else Path(config.run)
    out = Path(config.out) if config.out else (beside if beside.is_dir() else beside.parent) / "patching.html"
    if config.out:  # fails before the work, and protects other files from being overwritten
        require_frame(out, COLUMNS[0]) if is_frame(out) else require_page(out)
    patches = patch_run(config)
    if is_frame(out):
        write_frame(out, COLUMNS, _cells(patches.maps))
        return f"{patches.table}\n\n-> {out}"
    write_text(out, patches.page)
    return f"{patches.table}\n\n-> {out} (open it in a browser)"


def patch_run(config: PatchConfig) -> Patches:
    """Patch activations of the clean prompt into the corrupted one.

    Raises:
        UserError: no such run, prompts of unequal length, an answer of several tokens, or too many paths.
    """
    loaded = load_model(config.run, config.device)
    contrast = contrast_of(loaded, config)
    tokens = [label(loaded.tokenizer, token) for token in contrast.clean[0].tolist()]
    if config.method == "path":
        patching, maps = _paths(loaded, config, contrast)
    else:
        if config.method == "activation":
            _tell_if_slow(loaded, len(tokens))
            patching = activation_patching(loaded.model, contrast)
        else:
            patching = attribution_patching(loaded.model, contrast, steps=config.steps)
        maps = [_map(patching, name, tokens) for name in patching.values]
    metric = "logit" if contrast.minus is None else "logit difference"
    answers = [written(loaded.tokenizer, each) for each in (contrast.answer, contrast.minus) if each is not None]
    measured = f"{metric}: {' minus '.join(answers)}"
    ends = f"{patching.clean:.3f} after the clean prompt, {patching.corrupted:.3f} after the corrupted one"
    parts = [f"{measured}: {ends}", _strongest(maps, metric)]
    if patching.clean < patching.corrupted:
        parts.insert(1, "The answer is likelier after the corrupted prompt: exchange them, or choose other texts.")
    return Patches(_page(loaded, config, contrast, patching, maps, measured), "\n\n".join(parts), tuple(maps))


def contrast_of(loaded: LoadedModel, config: PatchConfig) -> Contrast:
    """The prompts and answers as tokens.

    Raises:
        UserError: a text that cannot be encoded, prompts of unequal length, or an answer of several tokens.
    """
    clean, corrupted = (torch.tensor([encode_text(loaded, text)]) for text in (config.clean, config.corrupted))
    answer = encode_token(loaded.tokenizer, config.answer, "--answer")
    minus = None if config.minus is None else encode_token(loaded.tokenizer, config.minus, "--minus")
    return Contrast(clean, corrupted, answer, minus, config.position)


def _page(
    loaded: LoadedModel, config: PatchConfig, contrast: Contrast, found: Patching, maps: list[HeatMap], measured: str
) -> Page:
    method, model = METHODS[config.method], loaded.model.config
    clean, corrupted = (
        [label(loaded.tokenizer, token) for token in prompt[0].tolist()]
        for prompt in (contrast.clean, contrast.corrupted)
    )
    facts = {
        "method": method + (", also through MLPs" if config.through_mlps else ""),
        "metric": measured,
        "model": f"{model.n_layer} layers of {model.n_head} heads",
    }
    return render_patching(
        maps,
        title=f"{name_of(config.run)}: {method.partition(':')[0]}",
        metric=measured.partition(":")[0],
        prompts=(clean, corrupted),
        ends=(found.clean, found.corrupted),
        position=contrast.position % len(clean),
        facts=facts,
    )


def _tell_if_slow(loaded: LoadedModel, T: int) -> None:
    L, H = loaded.model.config.n_layer, loaded.model.config.n_head
    n_passes = sum(L * math.prod({"head": H, "position": T}[axis] for axis in site.axes) for site in SITES.values())
    if n_passes * T * loaded.model.n_parameters > SLOW:
        note(f"{n_passes:,} patches, each a pass over {T} tokens; --method attribution estimates them in a few passes")


def _map(patching: Patching, name: str, tokens: list[str], prefix: str = "") -> HeatMap:
    """(n_layer, T), (n_layer, n_head) or (n_layer, n_head, T) effects; the heads of all layers are rows of the last."""
    effects, values = patching.effect(name), patching.values[name]
    layers, positions = list(map(str, range(len(values)))), [f"{i} “{token}”" for i, token in enumerate(tokens)]
    title, meaning = WORDS[name]
    if values.ndim == 3:
        rows = [f"{layer}.{head}" for layer in layers for head in range(values.shape[1])]
        return HeatMap(
            title, meaning, ("head", "position"), rows, positions, effects.flatten(0, 1), values.flatten(0, 1)
        )
    by_head = name in {"head", "pattern", "q", "k", "v", "logits"}
    columns = list(map(str, range(values.shape[1]))) if by_head else positions
    return HeatMap(
        prefix + title, meaning, ("layer", "head" if by_head else "position"), layers, columns, effects, values
    )


def _paths(loaded: LoadedModel, config: PatchConfig, contrast: Contrast) -> tuple[Patching, list[HeatMap]]:
    """Paths from one head, a map (layer, head) of receivers each for q, k and v; or from all, (sender, receiver)."""
    model = loaded.model
    L, H = model.config.n_layer, model.config.n_head
    if config.sender is not None:
        layer, head = map(int, config.sender.split("."))
        patching = path_patching(model, contrast, (layer, head), through_mlps=config.through_mlps)
        maps = [_map(patching, name, [], f"{config.sender}: ") for name in patching.values if name != "logits"]
        direct = {"logits": patching.values["logits"].view(1, 1)}
        patching = Patching(patching.clean, patching.corrupted, {**patching.values, **direct})
        only = HeatMap(
            *WORDS["logits"], ("layer", "head"), [str(layer)], [str(head)], patching.effect("logits"), direct["logits"]
        )
        return patching, [*maps, only]
    n_paths = L * (L - 1) // 2 * H * (H + 2 * model.config.kv_heads)
    if n_paths > MOST_PATHS:
        raise UserError(f"method=path: there are {n_paths:,} paths between all heads; name one head as --sender 0.3")
    found = [
        path_patching(model, contrast, (layer, head), through_mlps=config.through_mlps)
        for layer in range(L)
        for head in range(H)
    ]
    values = {name: torch.stack([each.values[name] for each in found]) for name in found[0].values}
    values["logits"] = values["logits"].view(L, H)
    patching = Patching(found[0].clean, found[0].corrupted, values)
    senders = [f"{layer}.{head}" for layer in range(L) for head in range(H)]
    maps = [_map(patching, name, []) if name == "logits" else _between(patching, name, senders) for name in values]
    return patching, [each for each in maps if each.effects.numel()]  # one layer has no paths between heads


def _between(patching: Patching, name: str, senders: list[str]) -> HeatMap:
    """(senders, n_layer, heads) -> a row for each sender, a column for each receiver."""
    effects, values = patching.effect(name), patching.values[name]
    receivers = [f"{layer}.{head}" for layer in range(values.shape[1]) for head in range(values.shape[2])]
    n_first, last = values.shape[2], len(senders) - len(senders) // values.shape[1]
    # No path ends in the first layer, and none begins in the last.
    effects, values = (each.flatten(1)[:last, n_first:] for each in (effects, values))
    return HeatMap(*WORDS[name], ("sender", "receiver"), senders[:last], receivers[n_first:], effects, values)


def _cells(maps: Iterable[HeatMap]) -> list[tuple[str, str, float, float]]:
    """Each patch there is: its kind, where, its effect, and the metric."""
    return [
        (heat.title, heat.cell(row, column), float(heat.effects[row, column]), float(heat.values[row, column]))
        for heat in maps
        for row, column in (~heat.effects.isnan()).nonzero().tolist()
    ]


def _strongest(maps: Iterable[HeatMap], metric: str) -> str:
    rows = []
    for heat in maps:
        cells = sorted(_cells([heat]), key=lambda cell: -abs(cell[2]))[:STRONGEST]
        for title, where, effect, value in cells[:1] + [cell for cell in cells[1:] if abs(cell[2]) >= LEAST]:
            rows.append([title, where.replace("|", "\\|"), f"{effect:+.3f}", f"{value:.3f}"])
    return table(["patch", "where", "effect", metric], rows)
