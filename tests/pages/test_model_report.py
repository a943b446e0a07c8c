"""`python -m minigpt.inspection`: the page and the table that it says, and one line for whatever it cannot do."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from scripts import run_script

from minigpt.config import Config, GPTConfig, InspectConfig
from minigpt.data.relations import Relation, to_json_line
from minigpt.data.tokenizers.base import BytesTokenizer, CharsTokenizer
from minigpt.errors import UserError
from minigpt.inspection import heads
from minigpt.inspection.ablation import ablation
from minigpt.inspection.heads import FEWEST_LINKS
from minigpt.inspection.probes import Probe, read_examples
from minigpt.inspection.relations import RelationScore
from minigpt.inspection.snapshot import Snapshot
from minigpt.model.gpt import GPT
from minigpt.pages import model_report
from minigpt.pages.model_report import inspect_runs, write_inspection
from minigpt.pages.model_tables import heads_as_table, relation_lines
from minigpt.runs.folder import RunFolder, name_of
from minigpt.runs.loading import load_model, save_weights

CODE = "def add(first, second):\n    return add(second, (first))\n" * 4


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return make(tmp_path / "run" / "model.safetensors")


def make(
    path: Path,
    tokenizer: BytesTokenizer | CharsTokenizer | None = None,
    seed: int = 0,
    step: int | None = None,
    **changes: int,
) -> Path:
    tokenizer = tokenizer or BytesTokenizer()
    sizes = {"vocab_size": tokenizer.vocab_size, "context_length": 64, "n_layer": 2, "n_head": 2, "n_embd": 16}
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**sizes | changes))
    path.parent.mkdir(exist_ok=True)
    save_weights(path, model, dataclasses.replace(Config(), model=model.config), tokenizer, step)
    return path


def test_every_head_is_in_the_table_and_the_page(weights: Path, tmp_path: Path) -> None:
    told = write_inspection(InspectConfig(run=str(weights.parent), out=str(tmp_path / "page.html")), CODE)
    assert sorted(line.split()[1] for line in told.splitlines()[2:6]) == ["0.0", "0.1", "1.0", "1.1"]
    (place,) = [i for i, name in enumerate(told.split("\n")[0].split("|")) if "loss without it (zero)" in name]
    changes = [float(line.split("|")[place]) for line in told.splitlines()[2:6]]
    assert changes == sorted(changes, reverse=True)
    assert "previous occurrence" in told
    assert "second_copy_loss" in told
    assert told.endswith(f"-> {tmp_path / 'page.html'} (open it in a browser)")
    page = (tmp_path / "page.html").read_text()
    assert all(f'"{name}"' in page for name in ("induction", "ablation", "copying"))


def test_a_notebook_shows_the_page_and_nothing_is_written(weights: Path) -> None:
    inspection = inspect_runs(InspectConfig(run=str(weights)), CODE)
    assert inspection._repr_html_().startswith('<iframe sandbox="allow-scripts"')
    assert "| head | label" in inspection.table
    assert list(weights.parent.iterdir()) == [weights]


def test_a_head_is_drawn_with_its_tokens_and_one_that_is_not_there_is_refused(weights: Path) -> None:
    inspection = inspect_runs(InspectConfig(run=str(weights)), "a $b$ a\n")
    figure = inspection.plot(1, 0)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [*"a $b$ a", "\\n"]
    drawn = np.tril(inspection.snapshot.weights[1, 0])
    np.testing.assert_allclose(axes.images[0].get_array().filled(0) ** 2, drawn, atol=1e-6)
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="head=2: there are 2, 0 to 1"):
        inspection.plot(0, 2)


def test_the_page_lies_beside_the_weights_when_nothing_else_is_said(weights: Path) -> None:
    write_inspection(InspectConfig(run=str(weights)), CODE)
    assert (weights.parent / "inspection.html").is_file()


def test_two_models_are_shown_on_one_text(weights: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other.safetensors", seed=1, context_length=70)
    out = tmp_path / "both.html"
    write_inspection(InspectConfig(run=str(weights), compare=str(other), out=str(out)), CODE)
    alone = tmp_path / "alone.html"
    write_inspection(InspectConfig(run=str(weights), out=str(alone)), CODE)
    assert "<title>model.safetensors (A) and other.safetensors (B)</title>" in out.read_text()
    assert out.stat().st_size > alone.stat().st_size + 4 * 64 * 64 / 4


def test_of_two_models_each_has_its_step_and_its_tables_and_then_comes_the_difference(tmp_path: Path) -> None:
    first = make(tmp_path / "run" / "model.safetensors", step=60)
    (tmp_path / "run" / "config.yaml").touch()
    second = make(tmp_path / "run" / "step_000030.safetensors", seed=1, step=30)
    found = inspect_runs(InspectConfig(run=str(first.parent), compare=str(second)), CODE)
    parts = [part.splitlines() for part in found.table.split("\n\n")]
    headings = [part[0] for part in parts if len(part) == 1 and "   " not in part[0]]
    assert headings == ["A: run, step 60", "B: run/step_000030.safetensors, step 30", "A - B"]
    a, b, change = ({row.split()[1]: row for row in part[2:]} for part in parts if part[0].startswith("| head"))
    for head, row in change.items():
        columns = ((a[head], -3), (b[head], -3), (row, -2))  # the difference has no spread
        (mine, other, difference) = (float(each.split("|")[place]) for each, place in columns)
        assert mine - other == pytest.approx(difference, abs=0.0015)
    sizes = [abs(float(row.split("|")[-2])) for row in change.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert "<title>run (A) and run/step_000030.safetensors (B)</title>" in found.page
    assert [
        run["steps"] for run in json.loads(found.page.split('"application/json">')[1].split("</script>")[0])["runs"]
    ] == [[60], [30]]


@pytest.mark.parametrize("name", [".", "../run", "../run/"])
def test_a_run_is_called_by_its_name_wherever_the_command_is_typed(
    name: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (weights.parent / "config.yaml").touch()
    monkeypatch.chdir(weights.parent)
    assert name_of(name) == "run"
    assert name_of(Path(name) / "checkpoints" / "last.ckpt") == "run/checkpoints/last.ckpt"


def test_a_second_model_of_a_shorter_context_is_asked_for_the_relations_that_fit_into_it(weights: Path) -> None:
    other = make(weights.parent / "short.safetensors", seed=1, context_length=40)
    config = InspectConfig(run=str(weights), compare=str(other), max_tokens=30)
    assert "previous occurrence" in inspect_runs(config, CODE).table


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_head": 4}, "has 2 layers of 4 heads instead of 2 of 2"),
        ({"n_layer": 1}, "has 1 layers of 2 heads instead of 2 of 2"),
        ({"context_length": 20}, "has a context of 20 tokens; set --max_tokens"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(
    changes: dict[str, int], expected: str, weights: Path, tmp_path: Path
) -> None:
    other = make(tmp_path / "other.safetensors", **changes)
    with pytest.raises(UserError, match=expected):
        write_inspection(InspectConfig(run=str(weights), compare=str(other), out=str(tmp_path / "page.html")), CODE)
    assert not (tmp_path / "page.html").exists()


def test_models_of_other_tokenizers_are_refused(weights: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other.safetensors", CharsTokenizer("abc"))
    with pytest.raises(UserError, match="has another tokenizer"):
        write_inspection(InspectConfig(run=str(weights), compare=str(other)), CODE)


def test_a_run_without_a_text_of_its_own_asks_for_one(weights: Path) -> None:
    with pytest.raises(UserError, match="give a text as --text or --file"):
        write_inspection(InspectConfig(run=str(weights)), None)
    with pytest.raises(UserError, match="the text is empty"):
        write_inspection(InspectConfig(run=str(weights)), "")


def test_what_was_looked_at_while_a_run_trained_is_looked_at_again(weights: Path) -> None:
    tokens = ("<|endoftext|>", *"ab(c)", "<|endoftext|>", *"d" * 30)
    causal = np.tril(np.ones((2, 2, len(tokens), len(tokens)), dtype=np.float32))
    Snapshot(3, tokens, causal / causal.sum(-1, keepdims=True)).save(weights.parent / "attention" / "step_000003.npz")
    write_inspection(InspectConfig(run=str(weights.parent)), None)
    page = (weights.parent / "inspection.html").read_text()
    assert '"tokens":["\\u003c|endoftext|\\u003e","a","b","(","c",")","\\u003c|endoftext|\\u003e","d"' in page


def test_tokens_that_are_parts_of_characters_are_looked_at_again_as_they_were(weights: Path) -> None:
    ids = tuple("Однажды".encode())
    causal = np.tril(np.ones((2, 2, len(ids), len(ids)), dtype=np.float32))
    snapshot = Snapshot(3, ("\ufffd",) * len(ids), causal / causal.sum(-1, keepdims=True), token_ids=ids)
    snapshot.save(weights.parent / "attention" / "step_000003.npz")
    by_itself, given = (inspect_runs(InspectConfig(run=str(weights.parent)), text) for text in (None, "Однажды"))
    assert by_itself.page == given.page


def test_one_character_is_enough(weights: Path) -> None:
    assert "ablation" not in write_inspection(InspectConfig(run=str(weights)), "a")


def test_the_best_head_of_a_relation_is_told_with_what_distance_explains() -> None:
    mass, baseline = np.array([[0.1, 0.2], [0.9, 0.8]]), np.array([[0.1, 0.2], [0.8, 0.3]])
    spread = np.full((2, 2), 0.1)
    counts = {"bracket": FEWEST_LINKS, "seldom": 4, "once": 1}
    found = {name: RelationScore(n, mass, baseline, spread * (n if n > 1 else np.nan)) for name, n in counts.items()}
    same = {"entropy": np.array([[-0.001, 0.1]]), "ablation": np.array([[0.0002, -0.5]])}
    assert heads_as_table(same, [], "zero", signed=True).splitlines()[-2:] == [
        "| 0.1  |   +0.10 |                 -0.500 |",
        "| 0.0  |    0.00 |                  0.000 |",
    ], "what rounds to zero has no sign"
    *rows, how, few = relation_lines(found).splitlines()[2:]
    told = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    # Student's t for four degrees of freedom is 2.776, and the standard error 0.5 / sqrt(5).
    assert told[0] == ["bracket", "1.1", "0.80", "0.30", "0.50", "±0.62", "5"]
    assert [row[-2:] for row in told[1:]] == [["±0.64", "4"], ["–", "1"]]
    assert "Student's t over the links" in how
    assert few == "Fewer than 5 links, so no head is labelled: seldom, once."
    assert relation_lines({}) == ""


def test_relations_of_ones_own_are_measured_and_shown(weights: Path, tmp_path: Path) -> None:
    examples = [("Ann is 7; she rests.", [Relation("pronoun", (10, 13), (0, 3))] * 3)] * FEWEST_LINKS
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(to_json_line(*example) + "\n" for example in examples))
    told = write_inspection(InspectConfig(run=str(weights), relations=str(file)), None)
    (row,) = [line for line in told.splitlines() if line.startswith("| pronoun")]
    assert row.strip("| ").endswith(str(9)), "three of the texts fit into the context"
    assert "Here 9 links; the largest lift is " in (weights.parent / "inspection.html").read_text()
    assert '["pronoun",[[13,1],[13,2],[13,3],' in (weights.parent / "inspection.html").read_text()


def test_parts_are_ablated_alone_and_together_with_the_kind_and_the_spread_that_were_asked_for(weights: Path) -> None:
    config = InspectConfig(run=str(weights), ablate="1.0,0.1,mlp0", ablation="resample", max_tokens=32)
    inspection = inspect_runs(config, CODE)
    table = inspection.table
    assert "Here resample ablation, on 192 tokens; the list of a token has zero ablation." in inspection.page
    assert "Scores are of 192 tokens, of which 32 are shown." in inspection.page
    part = next(part for part in table.split("\n\n") if part.startswith("Loss "))
    loss, *rows = part.splitlines()[0], *part.splitlines()[3:]
    assert loss.endswith("nats per token, on 192 tokens in 3 windows; resample ablation:")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == ["1.0", "0.1", "mlp0", "1.0,0.1,mlp0"]
    whole = float(loss.split()[1])
    assert all(float(row[1]) - whole == pytest.approx(float(row[2]), abs=2e-4) for row in cells)
    assert all(float(row[3]) > 0 for row in cells)
    assert "loss without it (resample)" in table
    loaded, tokens = load_model(weights), torch.tensor(BytesTokenizer().encode(CODE))
    windows = tokens[:193].unfold(0, 65, 64)
    expected = ablation(loaded.model, windows, kind="resample", parts=["1.0,0.1,mlp0"])
    assert float(cells[-1][2]) == pytest.approx(float(expected.mean[0]), abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "text", "words"),
    [
        ({"ablate": "2.0"}, CODE, "ablate: 2.0: there are layers 0 to 1"),
        ({"ablate": "1.0"}, "a", "ablate=1.0: the text has a single token"),
        ({"ablation": "resample"}, "short", "ablation=resample: takes outputs from another window"),
    ],
)
def test_an_ablation_that_cannot_be_is_refused(asked: dict[str, Any], text: str, words: str, weights: Path) -> None:
    with pytest.raises(UserError, match=words):
        inspect_runs(InspectConfig(run=str(weights), **asked), text)


def test_the_heads_go_out_as_a_frame_and_as_a_file_of_numbers(weights: Path, tmp_path: Path) -> None:
    inspection = inspect_runs(InspectConfig(run=str(weights)), CODE)
    frame = inspection.to_frame()
    assert list(frame.columns[:3]) == ["layer", "head", "label"]
    assert frame["ablation"].tolist() == pytest.approx(inspection.snapshot.scores["ablation"].ravel().tolist())
    assert inspection.relations["previous occurrence"].n_links > FEWEST_LINKS
    for name in ("heads.csv", "heads.json", "heads.parquet"):
        told = write_inspection(InspectConfig(run=str(weights), out=str(tmp_path / name)), CODE)
        assert told.endswith(f"-> {tmp_path / name}")
    assert not (weights.parent / "inspection.html").exists()
    read = [pandas.read_csv(tmp_path / "heads.csv"), pandas.read_parquet(tmp_path / "heads.parquet")]
    read.append(pandas.DataFrame(json.loads((tmp_path / "heads.json").read_text())))
    for other in read:
        assert list(other.columns) == list(frame.columns)
        np.testing.assert_allclose(other["ablation"], frame["ablation"])


def test_the_heads_of_two_models_have_their_run_and_step_in_the_frame(weights: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other.safetensors", seed=1, step=30)
    frame = inspect_runs(InspectConfig(run=str(weights), compare=str(other)), CODE).to_frame()
    assert frame.groupby(["run", "step"]).size().to_dict() == {
        ("model.safetensors", 0): 4,
        ("other.safetensors", 30): 4,
    }


def test_the_text_measured_while_a_run_trained_is_measured_again_with_its_relations(weights: Path) -> None:
    tokens, found = read_examples(
        BytesTokenizer(), [("Ann rests; she", [Relation("pronoun", (11, 14), (0, 3))])] * 9, 99
    )
    probe = Probe.of(BytesTokenizer(), tokens, 64, 30, known=found)
    probe.save(RunFolder(weights.parent).probe)
    seen = inspect_runs(InspectConfig(run=str(weights.parent), max_tokens=30))
    assert seen.page == inspect_runs(InspectConfig(run=str(weights.parent), max_tokens=30)).page
    assert seen.relations["pronoun"].n_links == 4
    assert '["pronoun",[[14,1],[14,2],[14,3]' in seen.page
    for content in (
        "{",
        '{"tokens": [400], "links": []}',
        '{"tokens": [1], "links": [["a", 3, 0]]}',
        '{"tokens": [1]}',
        '{"tokens": [1e999], "links": []}',
        '{"tokens": [1, 2, 3], "links": [["a", 1e999, 0]]}',
        '{"tokens": [1, 2, 3], "links": [["a", 0, 2]]}',
        '{"tokens": [1, 2, 3], "links": [["a", 1, 1]]}',
    ):
        RunFolder(weights.parent).probe.write_text(content)
        with pytest.raises(UserError, match=r"probe.json: (is damaged|was made with another tokenizer); give a text"):
            inspect_runs(InspectConfig(run=str(weights.parent)))


@pytest.mark.parametrize("content", ["", "\n\n", None])
def test_a_file_of_relations_without_a_text_is_refused(content: str | None, weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"mine.jsonl: (there is no text in it|cannot be read)"):
        write_inspection(InspectConfig(run=str(weights), relations=str(file)), None)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "run is missing"),
        (["nowhere"], "nowhere: no such run or checkpoint"),
        (["nowhere", "--text", "a", "--file", "b"], "text and file are both given"),
        (["nowhere", "--file", "a", "--relations", "b"], "file and relations are both given"),
        (["nowhere", "--file", "b"], "--file b: no such file or directory"),
        (["nowhere", "--ablate", "1.0,head2"], "ablate=1.0,head2: name heads, MLPs, attentions or layers, as 1.0"),
        (["nowhere", "--ablation", "none"], "ablation=none: expected zero, mean or resample"),
        (["nowhere", "--max_tokens", "0"], "max_tokens=0: must lie between 1 and 256"),
        (["nowhere", "--txt", "a"], "unknown option --txt: did you mean --text?"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = run_script("-m", "minigpt", "inspect", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_command_writes_the_page_of_standard_input(weights: Path, tmp_path: Path) -> None:
    done = run_script("-m", "minigpt", "inspect", str(weights), "--file", "-", cwd=tmp_path, input=CODE, cold=True)
    assert done.returncode == 0, done.stderr
    assert "| head | label" in done.stdout
    assert load_model(weights).path == weights
    assert (weights.parent / "inspection.html").is_file()


def test_a_large_model_is_scored_on_less_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(GPTConfig(vocab_size=257, context_length=16, n_layer=2, n_head=2, n_embd=16))
    save_weights(tmp_path / "a.safetensors", model, Config(model=model.config), BytesTokenizer())
    config = InspectConfig(run=str(tmp_path / "a.safetensors"), max_tokens=8)
    text = "the cat sat on the mat; " * 10
    assert "The model is large" not in inspect_runs(config, text).table
    one = 2 * 2 * 2 * (sum(weight.numel() for weight in model.blocks.parameters()) / 2 + 257 * 16)  # a token
    monkeypatch.setattr(model_report, "MOST_WEIGHTS", 4 * 10 * 30)  # of four heads: windows of 17, so of the context
    seen = inspect_runs(config, text)
    assert "The model is large: heads are scored on 16 of 239 tokens." in seen.table
    assert "The loss without each head is of" not in seen.table
    monkeypatch.setattr(heads, "FEWEST_ABLATED", 4)
    monkeypatch.setattr(heads, "ABLATION_OPERATIONS", 6 * one)
    seen = inspect_runs(config, text)
    assert "The loss without each head is of 6 of 16 tokens." in seen.table
    monkeypatch.setattr(heads, "ABLATION_OPERATIONS", one / 2)
    seen = inspect_runs(config, text)
    assert "the loss without each head is not computed; give --device cuda." in seen.table
    assert "ablation" not in seen.snapshot.scores


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_a_relation_whose_name_is_not_valid_utf8_does_not_cost_the_table(
    ending: str, weights: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jsonl"
    relation = {"name": "\ud800", "source": [3, 4], "target": [0, 1]}
    file.write_text(json.dumps({"text": "abcdef", "relations": [relation]}))
    out = tmp_path / f"heads.{ending}"
    write_inspection(InspectConfig(run=str(weights), relations=str(file), out=str(out)), None)
    assert out.stat().st_size


def test_a_model_that_has_diverged_is_refused_in_one_line(tmp_path: Path) -> None:
    path = make(tmp_path / "model.safetensors")
    loaded = load_model(str(path))
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.mul_(1e18)
    save_weights(str(path), loaded.model, loaded.config, loaded.tokenizer)
    with pytest.raises(UserError, match="NaN or infinite numbers on the text: it has diverged"):
        inspect_runs(InspectConfig(run=str(path)), CODE)


def test_the_name_of_a_relation_stays_in_its_cell(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(to_json_line("abcdef", [Relation("a|b\nc" + "d" * 500, (3, 4), (0, 1))]) + "\n")
    said = write_inspection(InspectConfig(run=str(weights), relations=str(file), out=str(tmp_path / "a.html")), None)
    (row,) = (line for line in said.splitlines() if line.startswith("| a\\|b c"))
    assert max(map(len, said.splitlines())) < 250
    assert row.count(" | ") == 6


@pytest.mark.parametrize("name", ["out", "relations", "file", "compare"])
def test_an_empty_name_of_a_file_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is empty: name a"):
        InspectConfig(run="runs/demo", **{name: ""})
