"""Inspect a trained model, two, or the checkpoints of one: the attention page, and tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from minigpt.config import InspectConfig
from minigpt.data.relations import read_relations
from minigpt.data.tokenizers.base import decode
from minigpt.errors import UserError
from minigpt.files import require_page, write_text
from minigpt.frames import is_frame, require_frame, to_pandas, write_frame
from minigpt.inspection.ablation import UNKNOWN
from minigpt.inspection.heads import HeadScores, score_heads
from minigpt.inspection.labels import label_history
from minigpt.inspection.probes import Probe, read_examples, read_probe
from minigpt.inspection.relations import Link, RelationScore, within
from minigpt.inspection.snapshot import Snapshot
from minigpt.interop.hub import folder_of, series_of
from minigpt.pages.attention import render_page
from minigpt.pages.documents import Page
from minigpt.pages.figures import head_figure
from minigpt.pages.model_tables import ablation_table, heads_as_table, parts_to_ablate, rows_of_heads, tables
from minigpt.runs.folder import RunFolder, name_of
from minigpt.runs.loading import LoadedModel, load_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

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
    relations: Mapping[str, RelationScore] = field(repr=False)
    """Scores of every head for each relation, with their number of links and interval."""
    columns: Sequence[str] = field(repr=False)
    """Of the table of all heads: layer, head, label and every score; run and step too where there are several."""
    rows: Sequence[Sequence[object]] = field(repr=False)
    """Of the same table, one for each head; None where a score is undefined."""

    def to_frame(self) -> DataFrame:
        """The table of all heads as a pandas DataFrame, a row for each head. See `minigpt.inspection.glossary`.

        Raises:
            UserError: pandas is not installed.
        """
        return to_pandas(self.columns, self.rows, "to_frame")

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
        UserError: there is no such run, no text or no such head, or the two models cannot be compared.
    """
    (path, _), *later = series_of(config.run)
    if later and config.compare is not None:
        raise UserError(f"--compare {config.compare}: {config.run} is a series of checkpoints; name one of them")
    loaded = load_model(path, config.device)
    tokens, known = _tokens(loaded, config, text)
    length, measured = _bounds(loaded, config.max_tokens)
    one_by_one = loaded.config.data.mode == "examples"
    probe = Probe.of(loaded.tokenizer, tokens, length, config.max_tokens, measured, known, one_by_one=one_by_one)
    ablated = parts_to_ablate(config.ablate, loaded.model, probe.windows)  # fails before the work
    last, seen = loaded, _score(loaded, probe, config)
    title, frames, scored = name_of(config.run), [seen.snapshot], [(name_of(config.run), seen)]
    for path, _ in later:
        last = load_model(path, config.device)
        seen = _second(last, loaded, probe, path, config)
        frames.append(seen.snapshot)
        scored.append((name_of(path), seen))
    parts = [*tables(seen), _left_out(seen, probe, len(tokens) - 1), _ablations(last, probe, ablated, config)]
    if config.compare is not None:
        second = load_model(config.compare, config.device)
        names = title, name_of(config.compare)
        names = (config.run, config.compare) if names[0] == names[1] else names
        title = f"{names[0]} (A) and {names[1]} (B)"
        scored = [(names[0], seen), (names[1], _second(second, loaded, probe, f"--compare {second.path}", config))]
        headings = [
            f"{letter}: {name}" + (f", step {each.step}" if each.step else "")
            for letter, name, each in zip("AB", names, (loaded, second), strict=True)
        ]
        parts = [headings[0], *parts, headings[1], *tables(scored[1][1]), _ablations(second, probe, ablated, config)]
        parts += ["A - B", _differences(seen.snapshot, scored[1][1].snapshot, config)]
    others = [each for _, each in scored[1:]] if config.compare is not None else []
    page = render_page(
        frames,
        title=title,
        links=probe.links,
        labels=label_history([frame.scores for frame in frames]),
        other=[each.snapshot for each in others],
        causes=[each.causes for each in (seen, *others)],
        ablation_kind=config.ablation,
        n_measured=seen.measured_tokens,
        notes=seen.notes,
    )
    said = "\n\n".join(part for part in parts if part)
    return Inspection(page, said, seen.snapshot, seen.relations, *rows_of_heads(scored))


def _ablations(loaded: LoadedModel, probe: Probe, parts: Sequence[str], config: InspectConfig) -> str:
    return ablation_table(loaded.model, _windows(loaded, probe), parts, config.ablation)


def _differences(a: Snapshot, b: Snapshot, config: InspectConfig) -> str:
    differences = {name: a.scores[name] - b.scores[name] for name in a.scores if name in b.scores}
    return heads_as_table(differences, [], config.ablation, signed=True)


def write_inspection(config: InspectConfig, text: str | None) -> str:
    """Write the page, or a table of the heads, and return what to print. Arguments and errors as for `inspect_runs`."""
    if config.out and is_frame(config.out):
        require_frame(config.out, "layer")
    elif config.out:
        require_page(Path(config.out))  # fails before the work, and protects other files from being overwritten
    inspection = inspect_runs(config, text)
    if config.out and is_frame(config.out):
        write_frame(config.out, inspection.columns, inspection.rows)
        return f"{inspection.table}\n\n-> {config.out}"
    out = Path(config.out) if config.out else folder_of(config.run) / "inspection.html"
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
    n = int((probe.windows[:, 1:] != UNKNOWN).sum())
    if n == B * T > 0 and (B + 1) * T <= min(n_tokens, MEASURED):  # another window would have been scored
        lines.append(f"The model is large: heads are scored on {n:,} of {n_tokens:,} tokens.")
    if seen.ablated_tokens < n:
        lines.append(
            f"The loss without each head is of {seen.ablated_tokens:,} of {n:,} tokens."
            if seen.ablated_tokens
            else "The model is large: the loss without each head is not computed; give --device cuda."
        )
    if seen.causes is not None and seen.causes.ablation is None:
        lines.append(
            "The model is large: the loss of each token without each head is not computed; give --device cuda."
        )
    return "\n".join(lines)


def _tokens(loaded: LoadedModel, config: InspectConfig, text: str | None) -> tuple[list[int], list[Link] | None]:
    """Tokens to inspect, and their links where these are known."""
    if config.relations is not None:
        tokens, known = read_examples(loaded.tokenizer, read_relations(config.relations), MEASURED)
        if not tokens:
            raise UserError(f"--relations {config.relations}: there is no text in it")
        return tokens, known
    if text is None:
        probe = RunFolder(folder_of(config.run)).probe
        if probe.is_file():
            return read_probe(probe, loaded.tokenizer.vocab_size)
        return _tokens_of_run(loaded, Path(config.run)), None
    if not text:
        raise UserError("the text is empty: give one as --text or --file")
    start = loaded.tokenizer.end_of_text if loaded.config.data.mode == "examples" else loaded.tokenizer.begin_of_text
    return [*([] if start is None else [start]), *loaded.tokenizer.encode(text)], None


def _score(loaded: LoadedModel, probe: Probe, config: InspectConfig) -> HeadScores:
    return score_heads(
        loaded.model, loaded.tokenizer, probe, loaded.step or 0, everything=True, ablation_kind=config.ablation
    )


def _second(loaded: LoadedModel, first: LoadedModel, probe: Probe, name: str, config: InspectConfig) -> HeadScores:
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
    second = replace(probe, windows=_windows(loaded, probe), window_links=links)
    return _score(loaded, second, config)


def _windows(loaded: LoadedModel, probe: Probe) -> Tensor:
    """The probe's windows, cut to the context of a second model."""
    return probe.windows[:, : loaded.model.config.context_length + 1]


def _tokens_of_run(loaded: LoadedModel, run: Path) -> list[int]:
    """Tokens shown during a run's training, for runs without `RunFolder.probe`; old snapshots have texts only."""
    files = RunFolder(folder_of(run)).snapshots
    if not files:
        raise UserError(f"{run}: has no attention snapshots; give a text as --text or --file")
    try:
        snapshot = Snapshot.load(files[-1])
    except (FileNotFoundError, ValueError) as error:
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
