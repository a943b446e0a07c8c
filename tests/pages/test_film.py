"""The film of a run: every checkpoint once, in order, with what it really writes; also without a script, and safe."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine import make

from minigpt.config import Config, GenerationConfig
from minigpt.data.tokenizers.base import CharsTokenizer
from minigpt.errors import UserError
from minigpt.generation.generator import Writer
from minigpt.pages.film import film
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import CHECKPOINT_KEY, save_weights

TOKENIZER = CharsTokenizer("\n abcdefghijklmnop<>&/=()")
WRITING = GenerationConfig(max_new_tokens=20, seed=5)


def model_of(step: int) -> Any:
    """A model that is another at each step."""
    model = make({"vocab_size": TOKENIZER.vocab_size})
    with torch.no_grad():
        model.lm_head.weight += (
            0.01 * step * torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(step))
        )
    return model


def keep(run: RunFolder, step: int) -> None:
    model = model_of(step)
    save_weights(run.kept(step), model, Config(model=model.config), TOKENIZER)


def checkpoint(path: Path, step: int) -> None:
    model = model_of(step)
    path.parent.mkdir(parents=True, exist_ok=True)
    ours = {"config": Config(model=model.config).to_dict(), "tokenizer": TOKENIZER.to_dict()}
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"global_step": step, "state_dict": state, CHECKPOINT_KEY: ours}, path)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that kept steps 5, 20 and 100, with last.ckpt of step 120 and best.ckpt of step 20."""
    run = RunFolder(tmp_path / "runs" / "small")
    for step in (100, 5, 20):
        keep(run, step)
    checkpoint(run.last, 120)
    checkpoint(run.best, 20)
    run.metrics.write_text("step,train/loss,val/loss,val/bits_per_byte\n20,3,,\n20,,2.5,1.25\n120,,2.0,1.0\n")
    return run


def steps_of(page: str) -> list[int]:
    return [int(step) for step in re.findall(r'data-step="(\d+)"', page)]


def test_every_checkpoint_is_shown_once_in_the_order_of_its_steps(run: RunFolder) -> None:
    assert steps_of(film(run.path, "abc", WRITING)) == [5, 20, 100, 120]


@pytest.fixture
def show(open_view: Any) -> Any:
    """show(page) opens it."""
    return open_view


def test_a_slider_and_the_arrows_show_what_each_checkpoint_writes_with_its_loss(run: RunFolder, show: Any) -> None:
    view = show(film(run.path, "abc ", WRITING))
    texts = {}
    for step in (5, 20, 100):
        texts[step] = Writer.load(run.kept(step)).generate("abc ", WRITING)
    texts[120] = Writer.load(run.last).generate("abc ", WRITING)
    assert len({written.text for written in texts.values()}) == 4
    view.page.keyboard.press("Home")
    for step, written in texts.items():
        assert view.state("step") == str(step)
        shown = view.page.locator(".frame:not([hidden])")
        assert shown.count() == 1
        assert shown.locator(".text").text_content() == written.prompt + written.text
        bits = [
            float(title.split()[0])
            for title in shown.locator(".text .token:not(.prompt)").evaluate_all(
                "spans => spans.map(span => span.title)"
            )
        ]
        assert bits == pytest.approx([-chance / 0.693147 for chance in written.log_probabilities], abs=0.01)
        heading = shown.locator("h2").text_content()
        assert ("val/loss 2.500" in heading) == (step == 20)
        assert ("val/bits_per_byte 1.000" in heading) == (step == 120)
        view.page.keyboard.press("ArrowRight")
    view.page.locator("#slider").fill("1")
    assert view.state("step") == "20"
    view.page.locator("#all").check()
    assert view.page.locator(".frame:visible").count() == 4


def test_play_goes_from_the_first_step_to_the_last_and_stops(run: RunFolder, show: Any) -> None:
    view = show(film(run.path, "abc", WRITING))
    view.page.clock.install()  # time passes when it is told to: how busy the machine is does not matter
    view.page.locator("#play").click()
    for step in ("5", "20", "100", "120"):
        assert view.state("step") == step
        assert ("Pause" in view.text("#play")) == (step != "120")
        view.page.clock.run_for(900)
    assert view.state("step") == "120"
    assert "Play" in view.text("#play")


def test_without_a_script_and_in_a_narrow_window_all_texts_are_there(run: RunFolder, show: Any) -> None:
    page = film(run.path, "a<b>&amp", WRITING)
    assert " hidden" not in page.partition("<main")[2].partition("</main>")[0]
    view = show(page, 500, 700)
    assert view.page.evaluate("document.documentElement.scrollWidth") <= 500
    assert view.page.locator(".frame:not([hidden]) .prompt").all_text_contents() == list("a<b>&amp")


def test_a_damaged_checkpoint_is_named_and_the_others_are_shown(run: RunFolder) -> None:
    for file in (run.kept(100), run.last, run.kept(20)):
        file.write_bytes(file.read_bytes()[:1000])
    page = film(run.path, "abc", WRITING)
    assert steps_of(page) == [5, 20], "step 20 is in best.ckpt too"
    for file in (run.kept(100), run.last, run.kept(20)):
        assert f"{file}: damaged or incomplete" in page
    torch.save({CHECKPOINT_KEY: {}}, run.last)
    assert f"{run.last}: has no global_step" in film(run.path, "abc", WRITING)
    run.kept(5).write_bytes(b"")
    run.best.unlink()
    with pytest.raises(UserError, match="damaged"):
        film(run.path, "abc", WRITING)


def test_without_checkpoints_it_is_said_how_to_get_them(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"holds no checkpoint yet; train with --keep_every_n_steps 50"):
        film(tmp_path, "abc", WRITING)
    with pytest.raises(UserError, match="nowhere: no such run"):
        film(tmp_path / "nowhere", "abc", WRITING)
    with pytest.raises(UserError, match=r"last.ckpt: is a single checkpoint; name the folder of its run"):
        film(run.last, "abc", WRITING)
    with pytest.raises(UserError, match="'Z'"):
        film(run.path, "Z", WRITING)
    with pytest.raises(UserError) as refusal:
        film(run.path, "abc", WRITING, device="nowhere")
    assert str(refusal.value).count("device=nowhere: not available here") == 1


def test_a_run_as_training_leaves_it_makes_a_film_that_says_how_to_get_more(tiny_run: Path) -> None:
    page = film(tiny_run, "def ", GenerationConfig(max_new_tokens=10))
    assert steps_of(page)[-1] == 60
    assert "train with --keep_every_n_steps 50" in page


def test_hostile_paths_and_texts_stay_text(run: RunFolder, tmp_path: Path, show: Any) -> None:
    path = run.path.rename(tmp_path / "<img src=x onerror=alert(1)>{{facts}}")
    stop = GenerationConfig(max_new_tokens=4, stop="<script>alert(1)<&")
    view = show(film(path, "<a>\n", stop))
    assert view.page.locator("img").count() == 0
    assert view.text("h1").startswith(path.name)
    assert "<script>alert(1)<&" in view.text("dl")
