"""`minigpt study`: an experiment about attention -> tables, a picture and findings on one HTML page.

A study is a folder of studies/: README.md (the claim, and what came out), study.py with `run(study)`, and where it
trains a run of minigpt a recipe.yaml. To add one, copy a folder.
"""

from __future__ import annotations

import base64
import difflib
import html
import importlib.util
import io
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minigpt.config import StudyConfig
from minigpt.errors import UserError
from minigpt.files import require_page, write_atomically, write_text
from minigpt.markdown import table
from minigpt.pages.documents import Page, document, policy_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDERS = (Path("studies"), Path(__file__).parents[1] / "studies", Path(__file__).parents[3] / "studies")
"""The user's studies, the package's (a link to the checkout's), and the checkout's where a system has no such links."""
_HEAD = re.compile(r"# (?P<claim>[^\n]+)\n+\*\*(?P<verdict>[^*\n]+)\*\*\s*(?P<said>.+?)\n\n", re.DOTALL)


class Finding(NamedTuple):
    """A sentence about the numbers, and whether they bear it out."""

    sentence: str
    holds: bool


class Study:
    """What a study is given, and what it records."""

    def __init__(self, folder: Path, n_seeds: int = 3, *, quick: bool = False) -> None:
        self.folder, self.quick = folder, quick
        self.seeds = range(n_seeds)
        """Seeds to repeat the experiment with."""
        self.tables = list[tuple[str, Sequence[str], list[list[str]]]]()
        self.findings = list[Finding]()
        self.figure: Figure | None = None
        """The picture, drawn with `axes`."""

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Show numbers; floats get three significant digits."""
        shown = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
        self.tables.append((title, columns, shown))

    def finding(self, sentence: str, holds: bool) -> None:
        """State what the study claims of its numbers. The tests assert each."""
        self.findings.append(Finding(sentence, bool(holds)))

    def axes(self, rows: int = 1, columns: int = 1, *, width: float = 4.0, height: float = 3.0) -> Any:
        """Axes of matplotlib for the picture, in the style of all studies: one, or an array of rows x columns."""
        import matplotlib as mpl
        from matplotlib.figure import Figure

        with mpl.rc_context(STYLE):
            self.figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
            return self.figure.subplots(rows, columns)


STYLE: Any = {
    # Okabe and Ito's colours, which colour-blind readers tell apart (https://jfly.uni-koeln.de/color/)
    "axes.prop_cycle": "cycler('color', ['0072B2', 'D55E00', '009E73', 'CC79A7', 'E69F00', '56B4E9', '000000'])",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "font.size": 9,
    "image.cmap": "viridis",
}


def spread(values: Iterable[float]) -> str:
    """Mean and standard deviation over seeds: `0.93 ± 0.02`."""
    numbers = np.asarray(list(values), dtype=np.float64)
    mean, deviation = float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    if deviation <= 1e-12 * abs(mean):  # equal numbers, but for the rounding of their mean
        return f"{mean:.3g} ± 0" if len(numbers) > 1 else f"{mean:.3g}"
    # One digit of the deviation, two where it begins with 1, and as many decimals of the mean.
    exponent = math.floor(math.log10(deviation))
    decimals = max(0, (deviation < 2 * 10.0**exponent) - exponent)
    if decimals > 5:
        return f"{mean:.1e} ± {deviation:.1e}"
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"


def write_study(config: StudyConfig) -> str:
    """Run a study and write its page, or list all; returns what to print.

    Raises:
        UserError: there is no such study, or its folder lacks a file.
    """
    if not config.name:
        rows = [[name, described(path).claim, described(path).verdict] for name, path in studies().items()]
        return f"{table(['study', 'claim', 'verdict'], rows)}\n\nminigpt study NAME runs one."
    folder = find_study(config.name)
    out = Path(config.out or f"study-{folder.name}.html")
    require_page(out)  # fails before the work
    study, seconds = run_study(folder, config.seeds, quick=config.quick)
    write_text(out, study_page(study, seconds))
    if config.picture and study.figure is not None:
        picture = _png(study.figure, dpi=110)
        write_atomically(config.picture, lambda path: path.write_bytes(picture))
    tables = [f"{title}\n\n{table(columns, rows)}" for title, columns, rows in study.tables]
    found = [f"{'yes' if finding.holds else 'NO '}  {finding.sentence}" for finding in study.findings]
    return "\n\n".join([*tables, "\n".join(found), f"-> {out} ({seconds:.0f} s; open it in a browser)"])


def studies() -> dict[str, Path]:
    """All studies by name; the user's own come before the package's."""
    return {path.parent.name: path.parent for folder in reversed(FOLDERS) for path in sorted(folder.glob("*/study.py"))}


def find_study(name: str) -> Path:
    """The folder of a study, by its name or path.

    Raises:
        UserError: there is none, naming a similar one.
    """
    known = studies()
    folder = known.get(name, Path(name))
    if not (folder / "study.py").is_file():
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "`minigpt study` lists them"
        raise UserError(f"study {name!r}: there is none; {hint}")
    return folder


class Description(NamedTuple):
    """The first lines of a study's README.md."""

    claim: str
    verdict: str
    said: str
    """One sentence on the verdict."""


def described(folder: Path) -> Description:
    """Claim and verdict of a study.

    Raises:
        UserError: README.md is missing or begins otherwise.
    """
    readme = folder / "README.md"
    match = _HEAD.match(readme.read_text(encoding="utf-8")) if readme.is_file() else None
    if match is None:
        raise UserError(f"{readme}: must begin with `# CLAIM`, an empty line, and `**VERDICT** one sentence`")
    return Description(match["claim"], match["verdict"].strip(" ."), " ".join(match["said"].split()))


def run_study(folder: Path, n_seeds: int = 3, *, quick: bool = False) -> tuple[Study, float]:
    """Run `run(study)` of a folder's study.py; returns what it recorded, and the seconds it took."""
    described(folder)  # refuses a folder without a claim before the work
    study, began = Study(folder, n_seeds, quick=quick), time.perf_counter()
    run: Callable[[Study], None] = _module(folder).run
    run(study)
    return study, time.perf_counter() - began


def study_page(study: Study, seconds: float) -> Page:
    """One HTML file: README, the picture and the numbers of this run, and the code."""
    from markdown_it import MarkdownIt

    about = described(study.folder)
    text = (study.folder / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^!\[[^\]]*\]\([^)]*\)\n*", "", text, flags=re.MULTILINE)  # the picture of this run stands above
    body = text.split("\n", 1)[1]
    picture = "" if study.figure is None else _picture_html(study.figure, about.claim)
    findings = "".join(
        f'<li class="{"holds" if finding.holds else "fails"}">{html.escape(finding.sentence)}</li>'
        for finding in study.findings
    )
    return document(
        "study",
        about.claim,
        policy=policy_of("study", more="; img-src data:"),
        findings=f"<ul>{findings}</ul>" if findings else "",
        picture=picture,
        tables="".join(_table_html(*each) for each in study.tables),
        readme=MarkdownIt("commonmark", {"html": False}).enable("table").render(body),
        code=html.escape((study.folder / "study.py").read_text(encoding="utf-8")),
        run=f"{len(study.seeds)} seed{'s' * (len(study.seeds) != 1)}{', quick' * study.quick}, {seconds:.0f} seconds",
    )


def _module(folder: Path) -> ModuleType:
    name = f"minigpt_study_{folder.name.replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(name, folder / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _png(figure: Figure, dpi: int) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def _picture_html(figure: Figure, claim: str) -> str:
    content = base64.b64encode(_png(figure, dpi=160)).decode("ascii")
    return f'<img alt="{html.escape(claim)}" src="data:image/png;base64,{content}">'


def _table_html(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<h3>{html.escape(title)}</h3><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
