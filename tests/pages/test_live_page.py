"""The live page as a document: what its policy allows, and that its model runs wherever the page is opened."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_pages import HOSTILE, View
from test_engine import make

from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.inspection.ablation import losses
from minigpt.model.gpt import GPT
from minigpt.pages import live
from minigpt.pages.documents import Page
from minigpt.pages.live.page import ENGINE, engine_script, live_page

TEXT = "the cat sat on a mat"


def model_of(**settings: Any) -> GPT:
    return make({"vocab_size": 257, "context_length": 64, "n_head": 2} | settings)


def page_of(text: str = TEXT, title: str = "tiny", **facts: str) -> Page:
    return live_page(model_of(), BytesTokenizer(), text, title=title, facts=facts, kind="float32")


def scripts_of(page: str) -> list[str]:
    """The engine and the page's own script."""
    return re.findall(r'<script(?: id="engine")?>(.*?)</script>', page, re.DOTALL)


def loss() -> float:
    with torch.no_grad():
        return float(losses(model_of(), torch.tensor([BytesTokenizer().encode(TEXT)])).mean())


def test_the_policy_allows_the_pages_two_scripts_and_its_worker_and_nothing_else() -> None:
    page = page_of("".join(HOSTILE), HOSTILE[0], **{HOSTILE[0]: HOSTILE[1]})
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    scripts = scripts_of(page)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts]
    assert policy[1].startswith("default-src 'none'; base-uri 'none'; form-action 'none'; ")
    assert f"script-src {' '.join(hashes)}; style-src 'sha256-" in policy[1]
    assert policy[1].endswith("; worker-src blob:")
    assert len(hashes) == 2


def test_the_engine_is_one_script_that_touches_no_document() -> None:
    script = engine_script()
    assert script.isascii()
    assert not re.search(r"</script|<!--|\b(document|window|localStorage)\.|\bfetch\(|XMLHttpRequest", script)


def test_every_script_of_the_folder_is_in_the_page_once_and_no_two_define_the_same_name() -> None:
    files = sorted(Path(live.__file__).parent.glob("*.js"))
    scripts = dict(zip(("engine", "page"), scripts_of(page_of()), strict=True))
    found = [name for file in files for name, text in scripts.items() if file.read_text() in text]
    assert len(found) == len(files)
    assert found.count("engine") == len(ENGINE)
    names = re.findall(r"^(?:async )?(?:const|let|class|function\*?) (\w+)", "".join(scripts.values()), re.MULTILINE)
    assert sorted(names) == sorted(set(names))


def framed(page: str, head: str = "") -> str:
    """A page that has another in a sandboxed frame, as notebooks and W&B show it."""
    return f'<!doctype html><html data-ready="1"><head>{head}</head><body>{Page(page)._repr_html_()}</body></html>'


FORBIDS_WORKERS = '<meta http-equiv="Content-Security-Policy" content="worker-src \'none\'">'


@pytest.mark.parametrize(("head", "engine"), [("", "worker"), (FORBIDS_WORKERS, "page")])
def test_the_model_runs_in_a_sandboxed_frame_also_where_no_worker_may_start(
    browser: Any, tmp_path: Any, head: str, engine: str
) -> None:
    path = tmp_path / "outer.html"
    path.write_text(framed(page_of(), head), encoding="ascii")
    view = View(browser, path)
    inner = view.page.frame_locator("iframe")
    html = inner.locator("html[data-ready='1']")
    html.wait_for(state="attached")
    assert html.get_attribute("data-engine") == engine
    assert float(html.get_attribute("data-loss")) == pytest.approx(loss(), abs=1e-5)
    inner.locator("#area").fill("the dog")
    inner.locator("html[data-n='7']").wait_for(state="attached")
    inner.locator("#copy-link").click()
    assert "has no address: open it by itself" in inner.locator("#copied").text_content()
    box = view.page.locator("iframe").bounding_box()
    assert box["height"] == pytest.approx(html.evaluate("root => root.getBoundingClientRect().height"), abs=2)
    assert [url for url in view.requests if url not in (view.url, "about:srcdoc") and not url.startswith("blob:")] == []
    assert all("Content Security Policy" in said for said in view.complaints)
    assert bool(view.complaints) == (engine == "page")  # the browser says that it started no worker
    view.page.close()


def test_opened_from_a_file_the_model_runs_in_a_worker_and_hostile_texts_stay_texts(open_view: Any) -> None:
    text = "".join(character for each in HOSTILE[:5] for character in each)[:64]
    view = open_view(page_of(text, HOSTILE[0], fact=HOSTILE[1]))
    assert view.state("engine") == "worker"
    assert view.page.input_value("#area") == text
    assert view.text("h1") == HOSTILE[0]
    assert HOSTILE[1] in view.text("#facts")
