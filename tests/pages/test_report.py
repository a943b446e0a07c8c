"""The report of a run: one file that says the same of a run folder and of its W&B run, in a real browser, safely."""

import csv
import dataclasses
import html
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from attention_pages import HOSTILE, View, history
from PIL import Image
from scripts import run_script

from minigpt.config import ReportConfig
from minigpt.pages.attention import render_page
from minigpt.pages.report import read_run, render_report, report_run
from minigpt.pages.run_record import Picture, RunRecord, Sample
from minigpt.runs.folder import RunFolder

RECORD = RunRecord(
    name="demo",
    settings={
        "model": {"n_layer": 2, "n_head": 3, "n_embd": 24, "context_length": 64, "window": [8, None]},
        "data": {"source": ["a.txt", "b.txt"], "tokenizer": "bytes"},
        "trainer": {"max_steps": 50},
    },
    facts={"time": "157 s of training"},
    curves={
        "train/loss": {10: 5.0, 20: 4.25, 30: 3.5, 40: 3.125},
        "val/loss": {20: 4.4, 40: 3.3},
        "val/bits_per_byte": {20: 2.2, 40: 1.65},
        "learning_rate": {10: 0.001, 40: 6.943e-05},
        "attn/entropy_mean": {20: 0.5, 40: 0.6},
    },
    samples=[Sample(20, "def ", "def one"), Sample(40, "def ", "def two"), Sample(40, "", "\nthree")],
    page=render_page(history(), title="demo: attention"),
)
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000000049454e44ae426082"
)


class Report(View):
    """A report opened from a file."""

    def values(self, chart: int) -> list[str]:
        return self.page.locator(f"#chart-{chart} .value").all_text_contents()

    def point(self, chart: int, share: float) -> None:
        """Put the pointer on a chart, at a share of its width."""
        self.page.locator(f"#chart-{chart} .lines").scroll_into_view_if_needed()
        box = self.page.locator(f"#chart-{chart} .lines").bounding_box()
        self.page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)

    def chart_of(self, name: str) -> int:
        captions = self.page.locator(".chart figcaption").all_text_contents()
        return next(i for i, caption in enumerate(captions) if name in caption)

    def check_clean(self) -> None:
        assert [url for url in self.requests if url not in (self.url, "about:srcdoc")] == []
        assert self.complaints == []


@pytest.fixture
def show(open_view: Any) -> Any:
    """show(record) opens its report."""

    def open_report(record: RunRecord | str, width: int = 1200, height: int = 800) -> Report:
        return open_view(record if isinstance(record, str) else render_report(record), width, height, kind=Report)

    return open_report


@pytest.fixture(scope="module")
def wandb_alone(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The W&B run of the tiny run and nothing else, as on another machine."""
    (folder,) = (tiny_run / "wandb").glob("offline-run-*")
    return shutil.copytree(folder, tmp_path_factory.mktemp("moved") / folder.name)


# ---- a real run ----------------------------------------------------------------------------------------------------


def test_a_run_folder_and_its_wandb_run_tell_the_same(tiny_run: Path, wandb_alone: Path) -> None:
    ours, theirs = read_run(tiny_run), read_run(wandb_alone)
    assert set(ours.curves) >= {"train/loss", "val/loss", "val/bits_per_byte", "learning_rate", "grad_norm"}
    for name, curve in ours.curves.items():
        assert theirs.curves[name] == pytest.approx(curve), name
    assert {name.split("/")[0] for name in set(theirs.curves) - set(ours.curves)} == {"attn"}
    assert ours.samples == theirs.samples
    assert {sample.step for sample in ours.samples} == {30, 60}
    assert ours.page == theirs.page == RunFolder(tiny_run).attention_page.read_text()
    assert ours.name == theirs.name == "tiny"
    assert ours.settings == theirs.settings == yaml.safe_load(RunFolder(tiny_run).config.read_text())
    assert ours.missing == theirs.missing == []


@pytest.mark.parametrize("kind", ["run folder", "W&B run"])
def test_the_report_of_a_real_run_shows_its_numbers_texts_and_heads(
    kind: str, tiny_run: Path, wandb_alone: Path, tmp_path: Path, show: Any
) -> None:
    out = tmp_path / "report.html"
    run = tiny_run if kind == "run folder" else wandb_alone
    told = report_run(ReportConfig(run=str(run), out=str(out)))
    assert told.endswith(f"-> {out} (open it in a browser)")
    assert "60 steps, train/loss" in told
    view = show(out.read_text())
    with RunFolder(tiny_run).metrics.open() as file:
        rows = list(csv.DictReader(file))
    (first,) = [row for row in rows if row["step"] == "30" and row["train/loss"]]
    (second,) = [row for row in rows if row["step"] == "30" and row["val/loss"]]
    view.point(0, 0.4)  # steps 10 to 60
    losses = [float(first["train/loss"]), float(second["val/loss"])]
    assert view.values(0) == [f"{loss:.4g} at step 30" for loss in losses]
    assert "2 layers" in view.text("body > dl")
    first_sample = RunFolder(tiny_run).samples(60).read_text().split("──── ")[1].removesuffix("\n\n")
    assert view.page.locator(".text").first.text_content() == first_sample.partition("\n")[2]
    frame = view.page.frame_locator("iframe")
    frame.locator(".thumb").nth(3).click()
    assert frame.locator("html").get_attribute("data-layer") == "1"
    frame.locator("#panels input[value=ablation]").dispatch_event("click")
    assert frame.locator("#causes-list li").count() == 4, "the loss of the last token without each head"


def test_the_command_writes_the_report_into_the_runs_folder_and_nothing_else(
    tiny_run: Path, wandb_alone: Path, bare_environment: dict[str, str]
) -> None:
    for run in (tiny_run, wandb_alone):
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
        done = run_script("-m", "minigpt", "report", run, env=bare_environment)
        assert done.returncode == 0, done.stderr
        assert f"-> {run / 'report.html'} (open it in a browser)" in done.stdout
        after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
        assert set(after) - set(before) == {run / "report.html"}
        assert {path: after[path] for path in before} == before
        (run / "report.html").unlink()


# ---- the page ------------------------------------------------------------------------------------------------------


def test_the_document_names_no_address_and_allows_only_our_scripts() -> None:
    page = render_report(RECORD)
    assert page.isascii()
    assert not re.search(r"https?:|<link|@import|url\(|unsafe", page)
    assert not re.search(r"\bsrc=", page)
    (policy, *_) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; base-uri 'none'; form-action 'none'; script-src 'sha256-")
    assert policy.count("sha256-") == 4


def test_what_the_run_is_stands_at_the_top(show: Any) -> None:
    view = show(RECORD)
    assert view.text("h1") == view.page.title() == "demo"
    tiles = view.page.locator(".tile").all_text_contents()
    assert tiles == [
        "3.3 val/lossnats per token; best 3.3 at step 40",
        "1.65 val/bits_per_bytebest 1.65 at step 40",
        "3.125 train/lossnats per token; at step 40",
        "40 stepsof 50 planned",
    ]
    facts = view.page.locator("body > dl dd").all_text_contents()
    assert facts == [
        "2 layers, 3 heads each, 24 wide, context of 64 tokens",
        "window [8, None]",
        "a.txt, b.txt, tokenizer bytes",
        "157 s of training",
    ]
    view.page.get_by_text("all settings").click()
    assert yaml.safe_load(view.text("details > pre")) == RECORD.settings


def test_pointing_at_a_chart_tells_its_values_and_leaving_it_the_last_ones(show: Any) -> None:
    view = show(RECORD)
    last = ["3.125 at step 40", "3.3 at step 40"]
    assert view.values(0) == last
    for share, expected in [
        (0.01, ["5 at step 10", "4.4 at step 20"]),
        (0.34, ["4.25 at step 20", "4.4 at step 20"]),
        (0.6, ["3.5 at step 30", "4.4 at step 20"]),
        (0.99, last),
    ]:
        view.point(0, share)
        assert view.values(0) == expected
    view.point(0, 0.01)
    view.page.mouse.move(1, 1)
    assert view.values(0) == last
    rate = view.chart_of("learning_rate")
    assert view.values(rate) == ["6.943e-05 at step 40"]
    view.point(rate, 0.1)
    assert view.values(rate) == ["0.001 at step 10"]


def test_the_mark_of_the_pointer_lies_on_the_line(show: Any) -> None:
    view = show(RECORD)
    view.point(0, 0.34)
    plot = view.page.locator("#chart-0 .lines")
    dots = plot.locator(".cursor-dots").get_attribute("d")
    train, val = re.findall(r"M(\d+) (\d+)h0", dots)
    line = plot.locator("path.line").first.get_attribute("d")
    assert " ".join(train) in line
    assert f"M{' '.join(val)}" in plot.locator("path.line").nth(1).get_attribute("d")


def test_the_keyboard_reads_a_chart_step_by_step(show: Any) -> None:
    view = show(RECORD)
    press = view.page.keyboard.press
    for _ in range(2):  # past the settings, which can be unfolded
        press("Tab")
    plot = view.page.locator("#chart-0 .lines")
    assert plot.evaluate("plot => plot === document.activeElement")
    press("ArrowLeft")
    assert view.values(0)[0] == "3.5 at step 30"
    assert plot.get_attribute("aria-valuetext") == "train/loss 3.5 at step 30; val/loss 4.4 at step 20"
    assert plot.get_attribute("aria-valuenow") == "30"
    press("Home")
    press("ArrowLeft")
    assert view.values(0)[0] == "5 at step 10"
    press("ArrowRight")
    assert view.values(0)[0] == "4.25 at step 20"
    press("End")
    press("Tab")
    assert view.values(0)[0] == "3.125 at step 40"


def test_the_newest_samples_are_in_sight_and_older_ones_unfold(show: Any) -> None:
    view = show(RECORD)
    texts = view.page.locator(".text")
    assert texts.all_text_contents() == ["def two", "\nthree", "def one"]
    assert texts.nth(0).locator("b").text_content() == "def "
    assert [texts.nth(i).is_visible() for i in range(3)] == [True, True, False]
    view.page.get_by_text("step 20", exact=True).click()
    assert texts.nth(2).is_visible()


def test_the_attention_page_works_inside(show: Any) -> None:
    view = show(RECORD)
    frame = view.page.frame_locator("iframe")
    frame.locator("html[data-ready='1']").wait_for(state="attached")
    frame.locator("#slider").fill("0")
    assert frame.locator("html").get_attribute("data-step") == "100"
    frame.locator("#large").scroll_into_view_if_needed()
    painted = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((level) => level)"
    assert frame.locator("#large").evaluate(painted)


def test_a_picture_of_the_whole_report_shows_the_attention_page(show: Any) -> None:
    view = show(RECORD)
    box = view.page.locator("iframe").bounding_box()
    assert box["y"] > view.page.viewport_size["height"], "out of sight"
    picture = Image.open(io.BytesIO(view.page.screenshot(full_page=True)))
    inside = picture.crop([int(box[k]) + 30 for k in "xy"] + [int(box["x"] + 600), int(box["y"] + 500)])  # type: ignore[arg-type]
    assert len(inside.getcolors(1 << 20) or []) > 20


def test_the_report_works_in_a_sandboxed_frame(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "outer.html"
    inner = html.escape(render_report(RECORD))
    path.write_text(
        f'<html data-ready="1"><iframe sandbox="allow-scripts" width="900" height="700" srcdoc="{inner}"></iframe>',
        encoding="utf-8",
    )
    view = Report(browser, path)
    frame = view.page.frame_locator("iframe")
    frame.locator("#chart-0 .lines").focus()
    view.page.keyboard.press("Home")
    assert frame.locator("#chart-0 .value").first.text_content() == "5 at step 10"
    attention = frame.frame_locator("iframe")
    attention.locator(".thumb").nth(4).click()
    assert attention.locator("html").get_attribute("data-layer") == "1"
    view.check_clean()
    view.page.close()


def wait_for_height(view: Any, frame: Any) -> None:
    """Wait until a frame is as high as its page; the page's policy forbids Playwright's own way to wait."""
    for _ in range(200):
        if frame.evaluate("innerHeight === document.documentElement.scrollHeight"):
            return
        view.page.wait_for_timeout(50)
    raise AssertionError(frame.evaluate("[innerHeight, document.documentElement.scrollHeight]"))


@pytest.mark.parametrize("width", [360, 1200])
def test_the_attention_page_is_shown_at_its_full_height_and_without_a_blank_rest(show: Any, width: int) -> None:
    view = show(RECORD, width)
    frame = view.page.main_frame.child_frames[0]
    wait_for_height(view, frame)
    content = frame.evaluate("document.documentElement.getBoundingClientRect().height")
    assert frame.evaluate("innerHeight") == pytest.approx(content, abs=1)
    assert view.page.locator("iframe").bounding_box()["height"] == pytest.approx(content, abs=3)


def test_in_a_notebook_the_frame_is_as_high_as_the_page_and_each_frame_on_its_own(browser: Any, tmp_path: Path) -> None:
    pages = [render_report(RECORD), render_page(history(), title="demo")]
    path = tmp_path / "notebook.html"
    path.write_text(f'<html data-ready="1">{"".join(page._repr_html_() for page in pages)}', encoding="utf-8")
    view = Report(browser, path)
    heights = []
    for number in range(2):
        view.page.locator("iframe").nth(number).scroll_into_view_if_needed()  # browsers do not lay out what is far away
        frame = view.page.main_frame.child_frames[number]
        wait_for_height(view, frame)
        heights.append(frame.evaluate("innerHeight"))
    view.page.main_frame.child_frames[0].locator("iframe").scroll_into_view_if_needed()
    (inside,) = view.page.main_frame.child_frames[0].child_frames
    wait_for_height(view, inside)
    assert heights[0] > inside.evaluate("innerHeight") + 400  # the attention page in the report, and more
    assert 400 < heights[1] < 1150
    view.check_clean()
    view.page.close()


@pytest.mark.parametrize("width", [340, 500, 1200, 1900])
def test_the_layout_never_scrolls_sideways(width: int, show: Any) -> None:
    wordy = Sample(40, "x" * 300, "x" * 300 + " " + "y\t" * 300)
    names = {f"attn/{'long_' * 30}{i}": {1: 0.5, 1_000_000: 123456.0} for i in range(3)}
    record = RunRecord("n" * 200, {"data": {"source": "s" * 300}}, {}, RECORD.curves | names, [wordy], RECORD.page)
    view = show(record, width)
    assert view.page.evaluate("document.documentElement.scrollWidth") <= width
    for plot in view.page.locator(".chart .lines").all():
        box = plot.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["width"] > 80


def test_in_the_dark_the_page_is_dark_and_its_lines_are_bright(show: Any) -> None:
    view = show(RECORD)

    def brightness(selector: str, name: str) -> float:
        colour = view.page.locator(selector).first.evaluate("(e, name) => getComputedStyle(e)[name]", name)
        return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3

    shades = {}
    for scheme in ("light", "dark"):
        view.page.emulate_media(color_scheme=scheme)
        shades[scheme] = [
            brightness("body", "backgroundColor"),
            brightness("body", "color"),
            brightness("path.line-0", "stroke"),
            brightness("path.line-1", "stroke"),
            brightness(".bottom text", "fill"),
        ]
    page, *inks = shades["light"]
    assert all(page - ink > 90 for ink in inks)
    page, *inks = shades["dark"]
    assert all(ink - page > 90 for ink in inks)


def test_the_two_losses_can_be_told_apart_without_colours(show: Any) -> None:
    long = {name: {step: float(step % 7) for step in range(500)} for name in ("train/loss", "val/loss")}
    view = show(RunRecord("x", curves=long))
    widths = [
        float(view.page.locator(f"#chart-0 .lines .line-{i}").evaluate("e => getComputedStyle(e).strokeWidth")[:-2])
        for i in (0, 1)
    ]
    assert widths[1] > 1.5 * widths[0]


def test_a_hostile_run_is_shown_as_text(show: Any) -> None:
    evil = " ".join(HOSTILE[:6]) + " {{body}} ' \""
    record = RunRecord(
        name=evil,
        settings={evil: evil, "model": {"n_layer": evil}, "data": {"source": [evil]}, "trainer": {"max_steps": evil}},
        facts={evil: evil},
        curves={evil: {1: 1.0}, f"attn/{evil}": {1: 2.0}, "val/loss": {1: 3.0}},
        samples=[Sample(1, evil, evil + evil), Sample(0, evil, "another")],
        pictures=[Picture(evil, 3, PNG), Picture(evil, 3, b"<svg onload=alert(1)>")],
        missing=[evil],
    )
    view = show(record)
    assert view.text("h1") == evil
    assert view.page.locator(".text").first.text_content() == evil + evil
    assert view.page.locator(".text").nth(1).text_content() == f"{evil}\nanother"
    assert view.page.locator("img").count() == 1
    assert view.page.locator("img").evaluate("image => image.naturalWidth") == 1
    assert view.page.locator("script").count() == 2
    view.point(view.chart_of("attn/"), 0.5)
    assert evil in view.page.locator(".lines").last.get_attribute("aria-valuetext")


EVIL = """<img src="https://example.org/a.png" onerror="alert(1)"><script>alert(2)</script>
<script src="https://example.org/b.js"></script><meta http-equiv="refresh" content="0;url=https://example.org/c">"""


@pytest.mark.parametrize("place", ["</head>", "<header>", "<script id="])
def test_of_an_attention_page_that_somebody_has_changed_the_data_alone_is_kept(place: str, tmp_path: Path) -> None:
    assert RECORD.page is not None
    (tmp_path / "metrics.csv").write_text("step,train/loss\n")
    (tmp_path / "attention.html").write_text(RECORD.page.replace(place, EVIL + place))
    assert read_run(tmp_path).page == RECORD.page


@pytest.mark.parametrize("page", [f"{EVIL}x", (RECORD.page or "").replace("<header>", f"{EVIL}<header>")])
def test_a_page_that_got_in_as_it_is_could_neither_run_nor_load_anything(
    page: str, browser: Any, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_report(RunRecord("x", page=page)), encoding="ascii")
    blocked: list[str] = []
    browser.on("requestfailed", lambda request: blocked.append(request.url) if request.failure == "csp" else None)
    view = Report(browser, path)
    view.page.wait_for_timeout(1000)
    assert set(view.requests) - {view.url, "about:srcdoc"} <= set(blocked)
    assert view.complaints
    assert all("Content Security Policy" in complaint for complaint in view.complaints)
    view.page.close()


def test_a_run_that_has_measured_nothing_yet_says_so(show: Any) -> None:
    view = show(RunRecord("new"))
    assert view.text("p") == "Nothing has been measured yet."
    assert view.page.locator("section").count() == 0


def test_of_very_many_curves_the_first_are_drawn_and_the_others_named(show: Any) -> None:
    view = show(RunRecord("x", curves={f"metric{i:04d}": {1: 1.0} for i in range(100)}))
    assert view.page.locator(".chart").count() == 60
    assert "metric0099" in view.text("section:last-of-type")


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], "nowhere: no such run; a report needs a run folder"),
        (["empty"], "empty: neither a run folder (config.yaml, metrics.csv) nor a W&B run (run-*.wandb)"),
        (["text.txt"], "text.txt: no run; a report needs a run folder"),
        (["noise/run-abc.wandb"], "run-abc.wandb: not a W&B run that can be read"),
        (["noise"], "run-abc.wandb: not a W&B run that can be read"),
        (["folders"], "metrics.csv: is a directory"),
        (["nul\0"[:3]], "nul: no such run"),
        (["x" * 300], "file name too long"),
        (["good", "--out", "text.txt/report.html"], "text.txt/report.html: cannot be written"),
        (["good", "--out", "empty"], "empty: is a folder; name a file"),
        (["good", "--text", "a"], "unknown option --text"),
        (["good", "--oit", "a"], "unknown option --oit: did you mean --out?"),
        ([], "run is missing"),
    ],
)
def test_mistakes_are_one_line_and_leave_everything_as_it_was(
    arguments: list[str], expected: str, tmp_path: Path
) -> None:
    for folder in ("empty", "noise", "good", "folders/metrics.csv"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "noise" / "run-abc.wandb").write_bytes(b"no log of W&B's at all")
    (tmp_path / "text.txt").write_text("mine")
    (tmp_path / "good" / "metrics.csv").write_text("step,train/loss\n10,5\n")
    before = sorted(tmp_path.rglob("*"))
    done = run_script("-m", "minigpt", "report", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "text.txt").read_text() == "mine"


def test_a_report_is_written_again_when_the_run_has_gone_on(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n10,5\n")
    for line in ("", "20,4\n"):
        with (tmp_path / "metrics.csv").open("a") as file:
            file.write(line)
        report_run(ReportConfig(run=str(tmp_path)))
    data = re.search('"application/json">(.*?)</script>', (tmp_path / "report.html").read_text())
    assert data is not None
    assert json.loads(data[1])[0]["lines"][0]["steps"] == [10, 20]


def test_each_curve_says_what_it_means_on_pointing_and_in_a_folded_legend(show: Any) -> None:
    view = show(RECORD)
    titles = view.page.evaluate("[...document.querySelectorAll('.entry')].map(e => e.title)")
    assert titles
    assert all("Higher means" in title for title in titles)
    legends = view.page.locator("details.legend")
    assert not legends.locator("dd").first.is_visible()
    for i in range(2):
        legends.nth(i).locator("summary").click()
    assert legends.nth(0).locator("dt").all_text_contents() == list(RECORD.curves)[:4]
    assert legends.nth(1).locator("dt").all_text_contents() == ["attn/entropy_mean"]
    assert sorted(legends.locator("dd").all_text_contents()) == sorted(titles)


def test_curves_that_the_glossary_does_not_know_have_no_meaning_and_hostile_names_are_text(show: Any) -> None:
    hostile = f'relation: "><b>{HOSTILE[0]}'
    record = dataclasses.replace(RECORD, curves={"own/number": {0: 1.0}, hostile: {0: 1.0}}, page=None)
    view = show(record)
    titles = view.page.evaluate("[...document.querySelectorAll('.entry')].map(e => e.title)")
    assert titles[0] == ""
    assert HOSTILE[0] in titles[1]
    assert view.page.locator("img, dd b").count() == 0
