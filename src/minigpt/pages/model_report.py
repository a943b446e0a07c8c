"""Inspect a trained model, two, or the checkpoints of one: the attention page, and tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from minigpt.config import InspectConfig
from minigpt.data.relations import read_json_lines
from minigpt.data.tokenizers.base import decode
from minigpt.errors import UserError
from minigpt.files import require_page, write_text
from minigpt.inspection.heads import FEWEST_LINKS, HeadScores, label_heads, score_heads
from minigpt.inspection.probes import Probe, read_examples
from minigpt.inspection.relations import Link, RelationScore, within
from minigpt.inspection.snapshot import Snapshot
from minigpt.interop.hub import PREFIX, series_of
from minigpt.markdown import table
from minigpt.pages.attention import Labels, render_page
from minigpt.pages.documents import Page
from minigpt.pages.figures import head_figure
from minigpt.runs.folder import RunFolder, name_of
from minigpt.runs.loading import LoadedModel, load_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("induction", "duplicate_token", "previous_token", "current_token", "first_token", "entropy")
"""Scores in the table; the page has all of them."""
MEASURED = 8192
"""Maximum number of tokens on which heads are scored."""
MOST_WEIGHTS = 2e8
"""Maximum number of attention weights, of all heads together, from which scores are computed: half a minute."""


@dataclass(frozen=True)
class Inspection:
    """Results of an inspection; a notebook shows the page."""

    page: Page = field(repr=False)
    table: str = field(repr=False)
    """Heads, relations and numbers of the model, as Markdown."""
    snapshot: Snapshot = field(repr=False)
    """Weights and scores of every head."""

    def plot(self, layer: int, head: int) -> Figure:
        """The weights of one head as a picture, where no page can be shown: in a paper, or on GitHub.

        Raises:
            UserError: there is no such layer or head.
        """
        return head_figure(self.snapshot, layer, head)

    def _repr_html_(self) -> str:
        return self.page._repr_html_()


def inspect_runs(config: InspectConfig, text: str | None = None) -> Inspection:
    """Inspect the model of a run, compare two, or follow another program's training over its checkpoints.

    Args:
        config: names the runs, and a file of texts with relations if there is one. For a series of checkpoints, see
            `series_of`: the page has their steps, and the table is that of the last.
        text: text to inspect; when None, the texts of that file, or else the text inspected during training.

    Raises:
        UserError: there is no such run, no text, or the two models cannot be compared.
    """
    (path, _), *later = series_of(config.run)
    if later and config.compare is not None:
        raise UserError(f"--compare {config.compare}: {config.run} is a series of checkpoints; name one of them")
    loaded = load_model(path, config.device)
    tokens, known = _tokens(loaded, config, text)
    length, measured = _bounds(loaded, config.max_tokens)
    probe = Probe.of(loaded.tokenizer, tokens, length, config.max_tokens, measured, known)
    seen = score_heads(loaded.model, loaded.tokenizer, probe, loaded.step or 0, everything=True)
    title, other, frames = name_of(config.run), [], [seen.snapshot]
    for path, _ in later:
        seen = _second(load_model(path, config.device), loaded, probe, path)
        frames.append(seen.snapshot)
    parts = [*_tables(seen), _left_out(seen, probe, len(tokens) - 1)]
    if config.compare is not None:
        second = load_model(config.compare, config.device)
        seen_too = _second(second, loaded, probe, f"--compare {second.path}")
        names = title, name_of(config.compare)
        if names[0] == names[1]:
            names = config.run, config.compare
        title, other = f"{names[0]} (A) and {names[1]} (B)", [seen_too.snapshot]
        headings = [
            f"{letter}: {name}" + (f", step {each.step}" if each.step else "")
            for letter, name, each in zip("AB", names, (loaded, second), strict=True)
        ]
        a, b = seen.snapshot.scores, seen_too.snapshot.scores
        differences = {name: a[name] - b[name] for name in a if name in b}
        parts = [headings[0], *parts, headings[1], *_tables(seen_too)]
        parts += ["A - B", _head_table(differences, labels=[], signed=True)]
    labels = [label_heads(frame.scores) for frame in frames]
    page = render_page(frames, title=title, links=probe.links, labels=labels if all(labels) else (), other=other)
    return Inspection(page, "\n\n".join(part for part in parts if part), seen.snapshot)


def write_inspection(config: InspectConfig, text: str | None) -> str:
    """Write the page and return what to print. Arguments and errors as for `inspect_runs`."""
    if config.out:
        require_page(Path(config.out))  # fails before the work, and protects other files from being overwritten
    inspection = inspect_runs(config, text)
    out = Path(config.out) if config.out else _folder(Path(config.run)) / "inspection.html"
    write_text(out, inspection.page)
    return f"{inspection.table}\n\n-> {out} (open it in a browser)"


def _bounds(loaded: LoadedModel, max_tokens: int) -> tuple[int, int]:
    """Longest window and number of tokens on which heads are scored: less than all for large models."""
    config = loaded.model.config
    most = MOST_WEIGHTS / (config.n_layer * config.n_head)
    T = min(config.context_length, max(math.isqrt(int(most)), max_tokens))
    return T, min(MEASURED, int(most / T))


def _left_out(seen: HeadScores, probe: Probe, n_tokens: int) -> str:
    """What was not measured, or on less, because the model is large."""
    lines, B, T = list[str](), len(probe.windows), probe.windows.shape[1] - 1
    if T and (B + 1) * T <= min(n_tokens, MEASURED):  # another window would have been scored
        lines.append(f"The model is large: heads are scored on {B * T:,} of {n_tokens:,} tokens.")
    if seen.ablated_tokens < B * T:
        lines.append(
            f"The model is large: the loss without each head is of {seen.ablated_tokens:,} of {B * T:,} tokens."
            if seen.ablated_tokens
            else "The model is large: the loss without each head is left out; --device cuda has it."
        )
    return "\n".join(lines)


def _tables(seen: HeadScores) -> list[str]:
    """Tables of heads and relations, and the numbers of the model without the maxima, which the table shows."""
    scores, numbers = seen.snapshot.scores, seen.snapshot.numbers
    shown = (f"{name} {value:.3f}" for name, value in numbers.items() if not name.startswith("max/"))
    return [_head_table(scores, label_heads(scores)), relation_lines(seen.relations), "   ".join(shown)]


def _head_table(scores: Mapping[str, npt.NDArray[np.floating]], labels: Labels, *, signed: bool = False) -> str:
    """Every head with its label and main scores, the largest ablation first; with `signed`, of either sign."""
    forms = dict.fromkeys(COLUMNS, "+.2f" if signed else ".2f") | {"ablation": "+.3f"}
    columns = [name for name in forms if name in scores]
    titles = ["loss without it" if name == "ablation" else name.replace("_", " ") for name in columns]
    shape = next(iter(scores.values())).shape
    change = scores.get("ablation", np.zeros(shape))
    heads = sorted(np.ndindex(shape), key=lambda at: -abs(change[at]) if signed else -change[at])
    rows = [
        [
            f"{at[0]}.{at[1]}",
            *([labels[at[0]][at[1]] or ""] if labels else []),
            *(format(scores[name][at], forms[name]) if np.isfinite(scores[name][at]) else "–" for name in columns),
        ]
        for at in heads
    ]
    return table(["head", *(["label"] if labels else []), *titles], rows)


def relation_lines(found: Mapping[str, RelationScore]) -> str:
    """For each relation the head with the largest lift, and the part of its weight that distance explains."""
    rows = []
    for name, score in found.items():
        if score.n_links >= FEWEST_LINKS:
            layer, head = np.unravel_index(np.argmax(score.lift), score.lift.shape)
            numbers = (values[layer, head] for values in (score.mass, score.baseline, score.lift))
            rows.append([name, f"{layer}.{head}", *(f"{number:.2f}" for number in numbers), str(score.n_links)])
    return table(["relation", "head", "weight", "by distance", "lift", "links"], rows) if rows else ""


def _tokens(loaded: LoadedModel, config: InspectConfig, text: str | None) -> tuple[list[int], list[Link] | None]:
    """Tokens to inspect, and their links where these are known."""
    if config.relations is not None:
        tokens, known = read_examples(loaded.tokenizer, read_json_lines(config.relations), MEASURED)
        if not tokens:
            raise UserError(f"--relations {config.relations}: there is no text in it")
        return tokens, known
    if text is None:
        return _tokens_of_run(loaded, Path(config.run)), None
    if not text:
        raise UserError("the text is empty: give one as --text or --file")
    start = loaded.tokenizer.end_of_text if loaded.config.data.mode == "examples" else loaded.tokenizer.begin_of_text
    return [*([] if start is None else [start]), *loaded.tokenizer.encode(text)], None


def _second(loaded: LoadedModel, first: LoadedModel, probe: Probe, name: str) -> HeadScores:
    sizes = [(each.model.config.n_layer, each.model.config.n_head) for each in (first, loaded)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"{name}: has {sizes[1][0]} layers of {sizes[1][1]} heads instead of {sizes[0][0]} of "
            f"{sizes[0][1]}; only models of the same shape can be compared"
        )
    if loaded.tokenizer.to_dict() != first.tokenizer.to_dict():
        raise UserError(f"{name}: has another tokenizer; compare models with the same tokenizer")
    if len(probe.tokens) > loaded.model.config.context_length:
        raise UserError(f"{name}: has a context of {loaded.model.config.context_length} tokens; set --max_tokens")
    T = loaded.model.config.context_length
    links = tuple(within(own, 0, T) for own in probe.window_links)
    second = replace(probe, windows=probe.windows[:, : T + 1], window_links=links)
    return score_heads(loaded.model, loaded.tokenizer, second, loaded.step or 0, everything=True)


def _tokens_of_run(loaded: LoadedModel, run: Path) -> list[int]:
    """Tokens inspected during a run's training; old snapshots have texts only, which are encoded again."""
    files = RunFolder(_folder(run)).snapshots
    if not files:
        raise UserError(f"{run}: has no attention snapshots; give a text as --text or --file")
    try:
        snapshot = Snapshot.load(files[-1])
    except ValueError as error:
        raise UserError(f"{error}; give a text as --text or --file") from None
    if snapshot.token_ids:
        if not 0 <= min(snapshot.token_ids) <= max(snapshot.token_ids) < loaded.tokenizer.vocab_size:
            raise UserError(f"{files[-1]}: was made with another tokenizer; give a text as --text or --file")
        return list(snapshot.token_ids)
    end_of_text = loaded.tokenizer.end_of_text
    mark = decode(loaded.tokenizer, [end_of_text])
    tokens: list[int] = []
    for is_end, group in groupby(snapshot.tokens, lambda text: text == mark):
        own = list(group)
        tokens += [end_of_text] * len(own) if is_end else loaded.tokenizer.encode("".join(own))
    return tokens


def _folder(run: Path) -> Path:
    if str(run).startswith(PREFIX):
        return Path()
    return run if run.is_dir() else run.parent
