"""`minigpt circuits` as it is typed: the circuit that was written by hand is found, and what is wrong is refused."""

import json
import string
from pathlib import Path

import pytest
from induction_circuit import induction_model

from minigpt.cli.main import dispatch
from minigpt.config import Config, GPTConfig
from minigpt.data.tokenizers.base import BytesTokenizer, CharsTokenizer
from minigpt.errors import UserError
from minigpt.model.gpt import GPT
from minigpt.runs.loading import save_weights

TEXT = "|fish\nsalt."
AT_S = 6
"""The second s; an induction head attends from it to the h after the first."""


@pytest.fixture(scope="module")
def circuit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model, with an alphabet of 31 characters and end_of_text."""
    model, path = induction_model().model, tmp_path_factory.mktemp("model") / "circuit.safetensors"
    save_weights(path, model, Config(model=model.config), CharsTokenizer(string.ascii_lowercase + " .\n|-"))
    return str(path)


def rows_of(printed: str) -> list[list[str]]:
    r"""Cells of the table, without its rule; a | within a cell is written \|."""
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines if not line.startswith("| -")]


def test_it_shows_the_strongest_compositions_of_each_kind(circuit: str, capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["circuits", circuit, "--top", "2"])
    printed = capsys.readouterr().out
    assert "random weights have 0.089" in printed
    rows = rows_of(printed)
    assert rows[0] == ["composition", "earlier", "later", "score", "times random"]
    assert [row[0] for row in rows[1:]] == ["Q", "Q", "K", "K", "V", "V"]
    assert rows[3][1:3] == ["0.0", "1.0"]
    assert rows[3][4] == "2.0"


def test_it_shows_which_components_make_a_query_match_the_key_it_attends_to_most(
    circuit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dispatch(["circuits", circuit, "--text", TEXT, "--head", "1.0", "--query", str(AT_S), "--top", "3"])
    printed = capsys.readouterr().out
    assert printed.startswith("head 1.0, query 6 “s”, key 4 “h”\nweight 1.000, score 1")
    assert "largest weights of this query: 4 “h” 1.000, " in printed
    rows = rows_of(printed)
    assert rows[0] == ["at the query", "at the key", "score"]
    assert rows[1][:2] == ["embedding", "0.0"]
    assert [row[0] for row in rows[4:]] == ["78 other pairs", "sum"]
    assert sum(float(row[-1]) for row in rows[1:-1]) == pytest.approx(float(rows[-1][-1]), abs=0.003)
    dispatch(["circuits", circuit, "--text", TEXT, "--head", "0.0", "--query", "-1", "--key", "0"])
    printed = capsys.readouterr().out
    assert "head 0.0, query 10 “.”, key 0 “\\|”\nweight 0.000" in printed
    assert "others" not in printed


def test_all_pairs_go_to_a_file(circuit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, other = tmp_path / "pairs.json", tmp_path / "parts.json"
    dispatch(["circuits", circuit, "--top", "1", "--out", str(out)])
    assert capsys.readouterr().out.endswith(f"-> {out}\n")
    pairs = json.loads(out.read_text())
    assert len(pairs) == 3 * 4 * 4
    best = max((pair for pair in pairs if pair["composition"] == "K"), key=lambda pair: pair["score"])
    assert (best["earlier"], best["later"]) == ("0.0", "1.0")
    assert best["score"] / best["random"] == pytest.approx(2.0, abs=0.1)
    dispatch(["circuits", circuit, "--text", TEXT, "--head", "1.0", "--query", str(AT_S), "--out", str(other)])
    score = float(capsys.readouterr().out.partition(", score ")[2].partition("\n")[0])
    parts = json.loads(other.read_text())
    assert len(parts) == 9**2
    assert list(parts[0].values())[:2] == ["embedding", "0.0"]
    assert sum(part["score"] for part in parts) == pytest.approx(score, abs=1e-3)
    with pytest.raises(UserError, match=r"pairs.txt: name a file that ends in"):
        dispatch(["circuits", circuit, "--out", str(tmp_path / "pairs.txt")])


def test_what_follows_the_score_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"vocab_size": 257, "context_length": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
    config = Config(model=GPTConfig(**sizes, logit_softcap=20.0, position="alibi"))
    path = str(tmp_path / "model.safetensors")
    save_weights(path, GPT(config.model), config, BytesTokenizer())
    dispatch(["circuits", path, "--text", "abc", "--head", "0.1", "--key", "0"])
    assert "(before the softcap of 20 and before ALiBi's -0.008)" in capsys.readouterr().out
    dispatch(["circuits", path])
    assert capsys.readouterr().out == "No head can compose with an earlier one: the model has one layer.\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--head", "1.0"], "head=1.0: needs a text to attend in: give --text"),
        (["--text", "fish"], "text='fish': is for --head LAYER.HEAD"),
        (["--key", "0"], "key=0: is for --head LAYER.HEAD"),
        (["--head", "1", "--text", "fish"], "head=1: give LAYER.HEAD, as 1.0"),
        (["--head", "2.0", "--text", "fish"], "head=2.0: the model has layers 0 to 1, each with heads 0 to 3"),
        (["--head", "1.10", "--text", "fish"], "head=1.10: the model has"),
        (["--head", "1.0", "--text", "fish", "--query", "4"], "query=4: there are 4 positions; give -4 to 3"),
        (["--head", "1.0", "--text", "fish", "--key", "9"], "key=9: there are 4 positions"),
        (["--head", "1.0", "--text", "fish", "--query", "1", "--key", "2"], "key=2: query 1 attends to earlier tokens"),
        (["--head", "1.0", "--text", "a" * 33], "33 tokens, but the model reads at most 32"),
        (["--head", "1.0", "--text", ""], "text is empty"),
        (["--top", "0"], "top=0: must be at least 1"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(circuit: str, options: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        dispatch(["circuits", circuit, *options])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
