"""`minigpt lens` and `minigpt attribute` as they are typed: tables, files, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interop.comparing import SMALL, randomised

from minigpt.cli.main import dispatch
from minigpt.config import Config, GPTConfig
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.errors import UserError
from minigpt.model.gpt import GPT
from minigpt.pages.tokens import label
from minigpt.runs.loading import load_model, save_weights

TEXT = "a|b dog\n"
TOKENS = torch.tensor([list(TEXT.encode())])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with random weights and the tokenizer of bytes."""
    config = Config(model=GPTConfig(**(SMALL | {"vocab_size": 257, "context_length": 12})))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_weights(str(path), randomised(GPT(config.model)), config, BytesTokenizer())
    return str(path)


@pytest.fixture
def logits(file: str) -> torch.Tensor:
    """(T, V)."""
    with torch.no_grad():
        return load_model(file).model(TOKENS)[0]


def cells(printed: str) -> list[list[str]]:
    r"""Rows of all tables, without rules; a | within a cell is written \|."""
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines]
    return [row for row in rows if not set(row[0]) <= {"-"}]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def refused(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        dispatch(list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lens_prints_losses_by_depth_and_the_likeliest_tokens_at_a_position(
    file: str, logits: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    dispatch(["lens", file, "--text", TEXT, "--position", "0", "--top", "2"])
    printed = capsys.readouterr().out
    rows = cells(printed)
    assert [row[0] for row in rows] == ["after layer", "embedding", "0", "1"] * 2
    loss = F.cross_entropy(logits[:-1], TOKENS[0, 1:])
    assert rows[0][1:] == ["loss (nats)", "KL from output (nats)", "same top token"]  # no | within a cell
    assert rows[3][1:] == [f"{loss:.3f}", "0.000", "100%"]
    assert "position 0, after “a”" in printed
    best = logits[0].softmax(-1).topk(2)
    assert rows[4][1:] == [r"p of “\|”", "top 1", "top 2"]
    assert rows[7][1] == f"{float(logits[0].softmax(-1)[ord('|')]):.3f}"
    for cell, token, share in zip(rows[7][2:], best.indices.tolist(), best.values.tolist(), strict=True):
        assert cell == f"“{label(BytesTokenizer(), token)}” {share:.3f}".replace("|", "\\|")


def test_lens_reads_the_last_position_by_default_where_nothing_is_known_of_the_next_token(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dispatch(["lens", file, "--text", TEXT])
    printed = capsys.readouterr().out
    assert f"position {len(TEXT) - 1}, after “↵”" in printed
    assert "p of" not in printed
    dispatch(["lens", file, "--text", "a"])
    assert "loss" not in capsys.readouterr().out, "one token predicts none of the text"


def test_lens_writes_every_depth_and_position(
    file: str, logits: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lens.csv"
    dispatch(["lens", file, "--text", TEXT, "--out", str(out)])
    assert capsys.readouterr().out.endswith(f"-> {out}\n")
    rows = rows_of(out)
    assert [(row["after"], row["position"]) for row in rows] == [
        (name, str(t)) for name in ("embedding", "0", "1") for t in range(len(TEXT))
    ]
    last = rows[-len(TEXT) :]
    assert [row["token"] for row in last] == list(TEXT)
    assert [row["next_token"] for row in last] == [*TEXT[1:], ""]
    assert last[-1]["next_probability"] == ""
    for t, row in enumerate(last[:-1]):
        assert float(row["next_probability"]) == pytest.approx(float(logits[t].softmax(-1)[TOKENS[0, t + 1]]), abs=1e-5)
        assert float(row["top_probability"]) == pytest.approx(float(logits[t].softmax(-1).max()), abs=1e-5)
        assert float(row["kl"]) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "position", "minus"),
    [(["--token", "x"], -1, None), (["--token", "x", "--minus", "|", "--position", "2"], 2, "|")],
)
def test_attribute_prints_components_that_sum_to_the_logit(
    file: str,
    logits: torch.Tensor,
    options: list[str],
    position: int,
    minus: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logit = logits[position, ord("x")] - (0.0 if minus is None else logits[position, ord(minus)])
    dispatch(["attribute", file, "--text", TEXT, *options])
    printed = capsys.readouterr().out
    rows = cells(printed)
    assert printed.startswith("logit of “x”" + ("" if minus is None else " minus “\\|”") + f": {logit:.3f}\n")
    assert rows[0] == ["component", "logit"]
    assert {row[0] for row in rows[1:-1]} == {
        "embedding",
        "mlp0",
        "mlp1",
        *(f"{i}.{j}" for i in (0, 1) for j in range(4)),
    }
    sizes = [abs(float(row[1])) for row in rows[1:-1]]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(float(row[1]) for row in rows[1:-1]) == pytest.approx(float(logit), abs=0.01)
    assert rows[-1] == ["sum", f"{logit:+.3f}"]
    dispatch(["attribute", file, "--text", TEXT, *options, "--top", "3"])
    short = cells(capsys.readouterr().out)
    assert [row[0] for row in short[4:]] == ["8 others", "sum"]
    assert short[:4] == rows[:4]
    assert short[-1] == rows[-1]


def test_a_single_part_that_is_left_is_one_other(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["attribute", file, "--text", TEXT])
    n_components = len(cells(capsys.readouterr().out)) - 2  # without the head and the sum
    dispatch(["attribute", file, "--text", TEXT, "--top", str(n_components - 1)])
    assert cells(capsys.readouterr().out)[-2][0] == "1 other"


def test_attribute_takes_the_likeliest_token_unless_one_is_named(
    file: str, logits: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "parts.csv"
    dispatch(["attribute", file, "--text", TEXT, "--position", "3", "--out", str(out)])
    printed, best = capsys.readouterr().out, logits[3].max(0)
    text = label(BytesTokenizer(), int(best.indices))
    assert printed.startswith(f"logit of “{text}”: {best.values:.3f}\n".replace("|", "\\|"))
    assert printed.endswith(f"-> {out}\n")
    rows = rows_of(out)
    assert len(rows) == 11
    assert sum(float(row["value"]) for row in rows) == pytest.approx(float(best.values), abs=1e-4)


def test_attribute_takes_apart_the_loss_of_a_text_and_of_one_token(
    file: str, logits: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses, out = F.cross_entropy(logits[:-1], TOKENS[0, 1:], reduction="none"), tmp_path / "losses.csv"
    dispatch(["attribute", file, "--text", TEXT, "--loss", "--out", str(out)])
    printed = capsys.readouterr().out
    assert printed.startswith(f"loss: {losses.mean():.3f} nats\nmean over {len(TEXT) - 1} tokens\n")
    rows = cells(printed)
    assert "entropy" in {row[0] for row in rows}
    assert rows[-1] == ["sum", f"{losses.mean():+.3f}"]
    found = rows_of(out)
    assert len(found) == 12 * (len(TEXT) - 1)
    for t, loss in enumerate(losses.tolist()):
        own = [row for row in found if row["position"] == str(t)]
        assert {(row["token"], row["next_token"]) for row in own} == {(TEXT[t], TEXT[t + 1])}
        assert sum(float(row["value"]) for row in own) == pytest.approx(loss, abs=1e-4)
    dispatch(["attribute", file, "--text", TEXT, "--loss", "--position", "0"])
    assert capsys.readouterr().out.startswith(f"loss: {losses[0]:.3f} nats\nposition 0: “\\|” after “a”\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lens"], "text is empty: give one, as --text"),
        (["lens", "--text", "x" * 13], "the prompt has 13 tokens, but the model reads at most 12"),
        (["lens", "--text", "dog", "--position", "3"], "position=3: there are 3 positions; give -3 to 2"),
        (["lens", "--text", "d", "--position", "3"], "position=3: there is 1 position; give -1 to 0"),
        (["lens", "--text", "dog", "--top", "0"], "top=0: must be at least 1"),
        (["lens", "--text", "dog", "--device", "tpu"], "device=tpu"),
        (
            ["attribute", "--text", "dog", "--token", " dog"],
            "--token ' dog': is 4 tokens (“␣”, “d”, “o”, “g”), not one",
        ),
        (["attribute", "--text", "dog", "--minus", ""], "--minus '': is 0 tokens, not one"),
        (["attribute", "--text", "dog", "--position", "-4"], "position=-4: there are 3 positions; give -3 to 2"),
        (["attribute", "--text", "dog", "--loss", "--position", "2"], "there are 2 positions; give -2 to 1"),
        (["attribute", "--text", "x", "--loss"], "--text: is one token"),
        (["attribute", "--text", "dog", "--loss", "--token", "x"], "token: a loss is of the text's tokens"),
        (["attribute", "--text", "x" * 14, "--loss"], "the prompt has 14 tokens, but the model reads at most 12"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(file: str, arguments: list[str], message: str) -> None:
    command, *options = arguments
    assert message in refused(command, file, *options)


def test_a_text_begins_with_the_token_before_a_documents_first_where_the_model_knows_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config: Any = Config.from_dict({"model": SMALL | {"vocab_size": 257}, "data": {"mode": "examples"}})
    path = str(tmp_path / "model.safetensors")
    save_weights(path, randomised(GPT(config.model)), config, BytesTokenizer())
    dispatch(["attribute", path, "--text", "dog"])
    assert "position 3, after “g”" in capsys.readouterr().out


def test_a_token_that_only_the_model_has_is_shown_as_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(model=GPTConfig(**(SMALL | {"vocab_size": 300})))
    path, model = str(tmp_path / "model.safetensors"), randomised(GPT(config.model))
    with torch.no_grad():
        model.head_weight[:257] = 0.0
    save_weights(path, model, config, BytesTokenizer())
    out = tmp_path / "lens.json"
    dispatch(["lens", path, "--text", "dog", "--out", str(out)])
    assert ", no text›” " in capsys.readouterr().out
    rows = json.loads(out.read_text())
    assert {row["top_token"] for row in rows} == {""}
    assert rows[-1]["next_probability"] is None
    dispatch(["attribute", path, "--text", "dog"])
    assert ", no text›”: " in capsys.readouterr().out
