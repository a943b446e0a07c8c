"""Report of a run folder or a W&B run: one HTML file with losses, samples and attention. No model is loaded."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from minigpt.config import ReportConfig
from minigpt.errors import UserError
from minigpt.files import reason, refuse_url, require_page, write_text
from minigpt.inspection.glossary import term_of
from minigpt.pages.charts import Chart, short
from minigpt.pages.documents import (
    Page,
    document,
    facts_html,
    frame_html,
    json_for_html,
    paragraphs_html,
    policy_of,
    tiles_html,
)
from minigpt.pages.run_record import Curves, Picture, RunRecord, Sample, copied_in_words, read_run_folder
from minigpt.pages.wandb_run import read_wandb_run

LOSSES = ("train/loss", "val/loss")
ORDER = ("val/bits_per_byte", "learning_rate", "grad_norm", "perf/tokens_per_second")
"""The small charts that come first; the others are sorted by name."""
BOUNDED, SHARES = ("attn/max/", "attn/entropy", "attn/sink_rate", "samples/copied_20gram_share"), 0.1
"""Prefixes of curves between 0 and 1, and the least range of their y axis, so that noise looks small."""
MOST_CHARTS = 60
MOST_PICTURES = 24
_TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}


def report_run(config: ReportConfig) -> str:
    """Write the report of a run; what to print comes back.

    Raises:
        UserError: there is no such run, or a file of it cannot be read.
    """
    refuse_url(config.run, "a run")
    path = Path(config.run)
    try:
        record = read_run(path)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {reason(error)}") from None
    out = Path(config.out) if config.out else (path if path.is_dir() else path.parent) / "report.html"
    require_page(out)
    write_text(out, render_report(record))
    return "\n".join([*record.missing, f"{_summary(record)}\n-> {out} (open it in a browser)"])


def read_run(path: str | Path) -> RunRecord:
    """Read a run folder or a W&B run.

    Raises:
        UserError: the path is no run.
        OSError: a file cannot be read.
    """
    path = Path(path)
    if (path.suffix == ".wandb" and path.is_file()) or any(path.glob("*.wandb")):
        return read_wandb_run(path)
    if path.is_dir():
        return read_run_folder(path)
    known = "a report needs a run folder such as runs/demo, or a W&B run (its folder or its run-*.wandb)"
    raise UserError(f"{path}: {'no run' if path.exists() else 'no such run'}; {known}")


def render_report(record: RunRecord) -> Page:
    """Render the report, self-contained like the attention page, which it embeds.

    Its policy allows its own script and the attention page's, by their hashes, and embedded pictures, so no text, name
    or page of a run can run or load anything.
    """
    losses = {name: record.curves[name] for name in LOSSES if name in record.curves}
    names = [name for name in ORDER if name in record.curves]
    names += sorted(record.curves.keys() - {*LOSSES, *ORDER})
    of_attention = [name for name in names[:MOST_CHARTS] if name.startswith("attn/")]
    of_training = [name for name in names[:MOST_CHARTS] if name not in of_attention]
    notes = {name: term.text for name in (*losses, *names[:MOST_CHARTS]) if (term := term_of(name)) is not None}
    charts = [Chart(losses, wide=True, notes=notes)] if losses else []
    first, split = len(charts), len(charts) + len(of_training)
    charts += [
        Chart({name: record.curves[name]}, least_span=SHARES if name.startswith(BOUNDED) else 0.0, notes=notes)
        for name in (*of_training, *of_attention)
    ]
    drawn = [chart.html(number) for number, chart in enumerate(charts)]
    missing = [*record.missing]
    if len(names) > MOST_CHARTS:
        missing.append(f"Curves beyond the first {MOST_CHARTS}: {', '.join(names[MOST_CHARTS:])}.")
    body = [
        _header(record),
        _section("What happened", paragraphs_html(record.happened)),
        _section("Training", *drawn[:first], _grid(drawn[first:split]), _legend(notes, [*losses, *of_training])),
        _section("Samples", _samples(record.samples, record.curves)),
        _section("Attention", _grid(drawn[split:]), _legend(notes, of_attention), _frame(record.page)),
        _section("Pictures", _pictures(record.pictures[:MOST_PICTURES])),
        _section("Not shown", paragraphs_html(missing)),
    ]
    # A srcdoc frame obeys the policy of the document around it as well as its own, so this one names both scripts.
    policy = policy_of("report", "attention", more="; img-src data:")
    return document(
        "report",
        record.name,
        policy=policy,
        body="\n".join(part for part in body if part),
        data=json_for_html([chart.data() for chart in charts]),
    )


def _summary(record: RunRecord) -> str:
    steps = max((step for curve in record.curves.values() for step in curve), default=0)
    parts = [f"{steps} steps"]
    parts += [f"{name} {short(_last(record.curves[name]))}" for name in LOSSES if name in record.curves]
    parts.append(f"{len(record.samples)} samples")
    parts.append("the attention page" if record.page else "no attention page")
    return ", ".join(parts)


def _section(title: str, *parts: str) -> str:
    content = "\n".join(part for part in parts if part)
    return f"<section><h2>{title}</h2>\n{content}</section>" if content else ""


def _header(record: RunRecord) -> str:
    tiles = [*_tiles(record)]
    everything = ""
    if record.settings:
        text = yaml.safe_dump(record.settings, sort_keys=False, allow_unicode=True, width=100)
        everything = f"<details><summary>all settings</summary><pre>\n{html.escape(text)}</pre></details>"
    empty = "" if tiles else "<p>Nothing has been measured yet.</p>"
    return tiles_html(tiles) + empty + facts_html({**_settings(record.settings), **record.facts}) + everything


def _tiles(record: RunRecord) -> Iterable[tuple[str, str, str]]:
    """(name, number, note) of the main results."""
    units = {"val/loss": "nats per token; ", "val/bits_per_byte": "", "train/loss": "nats per token; "}
    for name, unit in units.items():
        if curve := record.curves.get(name):
            best = min(curve, key=lambda step: curve[step])
            note = f"best {short(curve[best])} at step {best}" if name != "train/loss" else f"at step {max(curve)}"
            yield name, short(_last(curve)), unit + note
    if steps := [max(curve) for curve in record.curves.values()]:
        planned = _at(record.settings, "trainer", "max_steps")
        yield "steps", str(max(steps)), f"of {planned} planned" if planned else ""


def _settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """The main settings in words; missing ones are left out."""

    def words(section: str, **forms: str) -> str:
        values = {name: _at(settings, section, name) for name in forms}
        return ", ".join(forms[name].format(value) for name, value in values.items() if value is not None)

    source = _at(settings, "data", "source")
    sources = ", ".join(map(str, source)) if isinstance(source, list) else source
    tokenizer = words("data", tokenizer="tokenizer {}")
    return {
        "model": words(
            "model",
            n_layer="{} layers",
            n_head="{} heads each",
            n_embd="{} wide",
            context_length="context of {} tokens",
            vocab_size="vocabulary of {}",
        ),
        "attention": words("model", similarity="{}", position="{} positions", window="window {}"),
        "text": ", ".join(str(part) for part in (sources, tokenizer) if part),
        "optimizer": words(
            "optimizer", name="{}", learning_rate="learning rate {}", schedule="{}", weight_decay="weight decay {}"
        ),
    }


def _at(settings: Mapping[str, Any], section: str, name: str) -> Any:
    inside = settings.get(section)
    return inside.get(name) if isinstance(inside, Mapping) else None


def _grid(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _legend(notes: Mapping[str, str], names: Sequence[str]) -> str:
    """What the curves show, folded: the same as their tooltips, which touch screens lack."""
    told = facts_html({name: notes[name] for name in names if name in notes})
    return f'<details class="legend"><summary>what the curves show</summary>{told}</details>' if "<dt>" in told else ""


def _samples(samples: Sequence[Sample], curves: Curves) -> str:
    """Newest first; older ones are folded away."""
    parts: list[str] = []
    newest_first = sorted(samples, key=lambda sample: -sample.step)
    for step, group in groupby(newest_first, lambda sample: sample.step):
        texts = f'{_copied(curves, step)}<div class="texts">{"".join(map(_sample, group))}</div>'
        parts.append(
            f"<details><summary>step {step}</summary>{texts}</details>" if parts else f"<h3>step {step}</h3>{texts}"
        )
    return "\n".join(parts)


def _copied(curves: Curves, step: int) -> str:
    """How much of a step's samples is copied from the train text; runs of earlier versions do not say it."""
    longest = curves.get("samples/longest_copied_tokens", {}).get(step)
    share = curves.get("samples/copied_20gram_share", {}).get(step)
    return "" if longest is None else f"<p>{copied_in_words(longest, share)}</p>"


def _sample(sample: Sample) -> str:
    """minigpt's samples begin with their prompt; a table of another program may keep it apart."""
    begins = sample.text.startswith(sample.prompt)
    prompt = html.escape(sample.prompt if begins else f"{sample.prompt}\n")
    rest = html.escape(sample.text[len(sample.prompt) :] if begins else sample.text)
    # HTML drops a line break right after <pre>; without this one it would drop the text's own.
    return f'<pre class="text" dir="auto">\n<b>{prompt}</b>{rest}</pre>'


def _frame(page: str | None) -> str:
    """The attention page in a frame, where the report's policy allows minigpt's scripts only.

    No `sandbox`: browsers omit the contents of sandboxed frames when they capture a whole document, and warn of one
    that allows scripts and the same origin.
    """
    return "" if page is None else frame_html(page, 'title="attention of every head"')


def _pictures(pictures: Sequence[Picture]) -> str:
    shown = []
    for name, step, content in pictures:
        kind = next((kind for start, kind in _TYPES.items() if content.startswith(start)), None)
        if kind is not None:
            title = html.escape(name if step is None else f"{name}, step {step}")
            source = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
            shown.append(f'<figure><img alt="{title}" src="{source}"><figcaption>{title}</figcaption></figure>')
    return f'<div class="pictures">{"".join(shown)}</div>' if shown else ""


def _last(curve: Mapping[int, float]) -> float:
    return curve[max(curve)]
