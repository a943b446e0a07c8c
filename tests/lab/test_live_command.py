"""`minigpt live`: a run becomes one page; the command says its size and what its rounded weights cost."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small_settings

import minigpt
from minigpt.cli.main import dispatch
from minigpt.config import LiveConfig
from minigpt.data.open import open_data
from minigpt.errors import UserError
from minigpt.inspection.ablation import losses
from minigpt.lab import live
from minigpt.lab.live import _opening_end, make_live, write_live
from minigpt.pages.live.weights import quantised_model
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import load_model
from minigpt.training.run import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with a tokenizer of its own text."""
    return train(small_settings(tmp_path_factory.mktemp("owner"), data={"tokenizer": "chars"}, attention={}))


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_held_out_text_is_found_beside_the_same_text_with_another_tokenizer(run: RunFolder) -> None:
    loaded = load_model(run.path)
    before = live.measure(loaded, "int8", "1 plus")
    for tokenizer in ("bytes", "bpe:300"):  # whichever folder comes first
        open_data(dataclasses.replace(loaded.config.data, tokenizer=tokenizer), quiet=True)
    assert "held-out" in before.text
    assert live.measure(loaded, "int8", "1 plus") == before


def test_the_command_writes_the_page_beside_the_weights_and_says_what_its_weights_cost(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    dispatch(["live", str(run.path)])
    told, page = capsys.readouterr().out, (run.path / "live.html").read_text(encoding="ascii")
    loaded = load_model(run.path)
    val = open_data(loaded.config.data, quiet=True).val.tokens
    n = min(8192, len(val) - 1) // 16 * 16
    windows = torch.tensor(val.read(0, n + 1).tolist()).unfold(0, 17, 16)
    with torch.no_grad():
        before, after = (float(losses(m, windows).mean()) for m in (loaded.model, quantised_model(loaded.model)))
    assert f"loss     {before:.4f} nats per token on {n:,} held-out tokens" in told
    assert float(told.partition("change it by ")[2].split()[0]) == pytest.approx(after - before, abs=1e-4)
    assert f"-> {run.path / 'live.html'}: {len(page) / 1e6:.1f} MB" in told
    assert f"weights  {loaded.model.n_parameters:,} parameters as int8" in told  # as `minigpt train` says
    data = data_of(page)
    assert data["header"]["kind"] == "int8"
    assert data["text"]
    assert data["text"] in (run.path.parents[1] / "text.txt").read_text()
    assert data["facts"]["trained on"] == "text.txt"


def test_the_page_opens_where_the_model_expects_a_part_of_a_word(run: RunFolder) -> None:
    loaded = load_model(run.path)
    tokens = loaded.tokenizer.encode("1 plus 2 is 3\n4")
    with torch.no_grad():
        expected = loaded.model(torch.tensor([tokens]))[0].argmax(-1)
    words = [loaded.tokenizer.decode_bytes([token]).isalpha() for token in expected.tolist()]
    assert len(set(words[1:])) == 2, "not everywhere"
    for length in range(4, len(tokens) + 1):
        n = _opening_end(loaded, tokens[:length])
        assert length // 2 < n <= length
        assert words[n - 1] or not any(words[length // 2 : length])


def test_of_a_file_without_its_run_the_loss_is_that_of_the_pages_text(run: RunFolder, tmp_path: Path) -> None:
    file = shutil.copy(run.weights, tmp_path / "alone.safetensors")
    assert data_of(make_live(LiveConfig(str(file))).page)["text"].startswith("1 plus")  # as the model goes on
    made = make_live(LiveConfig(str(file), text="1 plus 2 is 3", weights="float16"))
    assert made.measured.text == "12 tokens of the page's text"
    assert abs(made.measured.change) < 1e-3
    assert data_of(made.page)["text"] == "1 plus 2 is 3"


def test_a_run_gives_its_page_in_python(run: RunFolder) -> None:
    page = minigpt.open_run(run.path).live("4 plus", weights="float32")
    assert (data_of(page)["text"], data_of(page)["header"]["kind"]) == ("4 plus", "float32")
    assert "srcdoc" in page._repr_html_()
    with pytest.raises(UserError, match="unknown setting weight: did you mean weights"):
        minigpt.open_run(run.path).live(weight="int8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run": "none"}, "none: no such run or checkpoint"),
        ({"text": "é"}, "character 'é' .* is not among the"),
        ({"text": "1 plus " * 9}, "63 tokens, but the model reads at most 16"),
        ({"out": "notes.txt"}, "notes.txt: already exists and is not an HTML page"),
    ],
)
def test_what_cannot_become_a_page_is_refused_in_one_line(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("mine")
    with pytest.raises(UserError, match=message) as caught:
        write_live(LiveConfig(**({"run": str(run.path)} | settings)))
    assert "\n" not in str(caught.value)


def test_a_diverged_model_is_refused_by_what_is_not_finite(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(run.path)
    monkeypatch.setattr(live, "load_model", lambda path: loaded)
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(1e38)  # finite, but its logits are not
        with pytest.raises(UserError, match="the loss is NaN or inf on 352 held-out tokens: take an earlier"):
            make_live(LiveConfig(str(run.path)))
        loaded.model.blocks[0].mlp.proj.weight[0, 0] = math.nan
    with pytest.raises(UserError, match=r"blocks.0.mlp.proj.weight .* NaN or inf: take an earlier checkpoint"):
        make_live(LiveConfig(str(run.path), weights="float16"))


def test_a_model_trained_on_whole_texts_reads_each_after_end_of_text(tmp_path: Path) -> None:
    settings = small_settings(tmp_path, data={"mode": "examples"})
    loaded = load_model(train(settings).path)
    assert data_of(make_live(LiveConfig(str(loaded.path))).page)["tokenizer"]["begin_of_text"] == 256
