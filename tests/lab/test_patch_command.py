"""`minigpt patch` on a circuit that is known: the table names its heads, and mistakes are one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from induction_circuit import SIZE, induction_model

import minigpt
from minigpt.cli.main import dispatch
from minigpt.config import Config, DataConfig, GPTConfig, PatchConfig
from minigpt.data.tokenizers.base import CharsTokenizer
from minigpt.errors import UserError
from minigpt.lab.patch import patch_run, write_patches
from minigpt.model.gpt import GPT
from minigpt.runs.loading import save_weights

ALPHABET = "abcdefghijklmnopqrstuvwxyz+-*/<"
PROMPTS = {"clean": "+qsux<ecq", "corrupted": "+dsux<ecq", "answer": "s"}
"""After "qs ... q" the circuit predicts s."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    model, tokenizer = induction_model().model, CharsTokenizer(ALPHABET)
    assert tokenizer.vocab_size == SIZE
    path = tmp_path_factory.mktemp("run") / "circuit.safetensors"
    config = Config(model=model.config, data=DataConfig(tokenizer="chars"))
    save_weights(path, model, config, tokenizer, 0)
    return str(path)


def strongest(table: str, patch: str) -> list[tuple[str, float]]:
    """Where, and effect, of the patches of one kind in the table."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return [(where, float(effect)) for what, where, effect, _ in rows if what == patch]


@pytest.mark.parametrize("method", ["activation", "attribution"])
def test_the_table_names_the_heads_and_positions_of_the_circuit(method: Any, run: str) -> None:
    patches = patch_run(PatchConfig(run, **PROMPTS, minus="u", method=method))
    assert "logit difference: “s” minus “u”: " in patches.table
    stream = dict(strongest(patches.table, "residual stream")[:2])
    assert set(stream) == {"layer 0, position 1 “q”", "layer 1, position 2 “s”"}
    assert min(stream.values()) > 0.9 or method == "attribution"
    assert {where for where, _ in strongest(patches.table, "heads")[:2]} == {"head 0.0", "head 1.0"}
    assert "heads by position" in patches.page
    assert [each.title for each in patches.maps][-1] == "attention patterns"


def test_paths_from_every_head_or_from_one_find_the_key_of_the_induction_head(run: str) -> None:
    patches = patch_run(PatchConfig(run, **PROMPTS, method="path"))
    where, effect = strongest(patches.table, "paths into keys")[0]
    assert where == "sender 0.0, receiver 1.0"
    assert effect > 0.9
    assert {each.effects.shape for each in patches.maps} == {(4, 4), (2, 4)}
    one = patch_run(PatchConfig(run, **PROMPTS, method="path", sender="0.0"))
    assert strongest(one.table, "0.0: paths into keys")[0] == ("head 1.0", effect)
    assert one.maps[-1].effects.shape == (1, 1)


def test_the_command_writes_the_page_beside_the_weights_or_where_it_is_told(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for name, text in PROMPTS.items() for word in (f"--{name}", text)]
    dispatch(["patch", run, *words])
    page = Path(run).parent / "patching.html"
    assert f"-> {page} (open it in a browser)" in capsys.readouterr().out
    assert page.read_text().startswith("<!doctype html>")
    numbers = tmp_path / "effects.json"
    assert f"-> {numbers}" in write_patches(PatchConfig(run, **PROMPTS, out=str(numbers)))
    rows = json.loads(numbers.read_text())
    assert len(rows) == 142  # 3 of each position, 2 of each head, one of each head and position, in 2 layers
    best = next(row for row in rows if row["where"] == "head 1.0, position 8 “q”")
    assert best["patch"] == "heads by position"
    assert best["effect"] > 0.9
    out = tmp_path / "sub" / "patch.html"
    write_patches(PatchConfig(run, **PROMPTS, out=str(out)))
    assert "activation patching" in out.read_text()


def test_mistakes_are_one_line_with_the_remedy(run: str, tmp_path: Path) -> None:
    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=message):
            write_patches(PatchConfig(**{"run": run, **PROMPTS, **changes}))

    refused("clean is empty: give a prompt", clean="")
    refused("the clean prompt has 9 tokens and the corrupted one 3: patching needs as many", corrupted="abc")
    refused("the clean prompt has 1 token and the corrupted one 9: patching needs as many", clean="a")
    refused(r"--answer 'st': is 2 tokens \(“s”, “t”\), not one; give one", answer="st")
    refused("--minus 'st': is 2 tokens", minus="st")
    refused("sender: only --method path uses it", sender="0.0")
    refused("sender=0: give LAYER.HEAD", sender="0", method="path")
    refused(r"sender=2\.0: the model has layers 0 to 1", sender="2.0", method="path")
    refused("through_mlps: only --method path", through_mlps=True)
    refused("both prompts give a logit of", corrupted=PROMPTS["clean"])
    refused("position=9: there are 9 positions", position=9)
    (tmp_path / "text.txt").write_text("not a page")
    refused("steps: only --method attribution uses it", steps=1)
    refused("already exists and is not an HTML page", out=str(tmp_path / "text.txt"))


def test_too_many_paths_are_refused_with_the_way_out(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.lab.patch.MOST_PATHS", 47)
    with pytest.raises(UserError, match="there are 48 paths between all heads; name one head as --sender"):
        patch_run(PatchConfig(run, **PROMPTS, method="path"))


def test_a_model_of_one_layer_has_the_paths_to_the_logits_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = GPTConfig(vocab_size=SIZE, context_length=16, n_layer=1, n_head=2, n_embd=32)
    path = tmp_path / "small.safetensors"
    save_weights(path, GPT(settings).eval(), Config(model=settings), CharsTokenizer(ALPHABET), 0)
    (only,) = patch_run(PatchConfig(str(path), **PROMPTS, method="path")).maps
    assert only.title == "paths to the logits"


def test_prompts_the_wrong_way_round_and_long_waits_are_said(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = {"clean": PROMPTS["corrupted"], "corrupted": PROMPTS["clean"], "answer": "s"}
    assert "likelier after the corrupted prompt: exchange them" in patch_run(PatchConfig(run, **swapped)).table
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("minigpt.lab.patch.SLOW", 1.0)
    assert "exchange them" not in patch_run(PatchConfig(run, **PROMPTS)).table
    assert "142 patches, each a pass over 9 tokens; --method attribution" in capsys.readouterr().err


def test_from_python_the_result_is_a_page_for_notebooks_and_its_maps(run: str) -> None:
    patches = minigpt.Run(run).patch(**PROMPTS, method="path", sender="0.0")
    assert "<iframe" in patches._repr_html_()
    assert float(next(each for each in patches.maps if "keys" in each.title).effects[1, 0]) > 0.9
    with pytest.raises(UserError, match="unknown setting methods: did you mean method"):
        minigpt.Run(run).patch(**PROMPTS, methods="path")
