"""Prompts and answers: only answers have a loss, and they begin and end at token boundaries."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from minigpt.config import Config, DataConfig, GPTConfig
from minigpt.data import tokenising
from minigpt.data.answers import PAIR, PromptForm, encode, joined, prompt_form
from minigpt.data.batches import IGNORED, TrainBatches, ValBatches
from minigpt.data.peek import peek
from minigpt.data.prepare import prepare
from minigpt.data.shards import PreparedData, Split
from minigpt.data.tokenizers.base import make_tokenizer
from minigpt.data.val_prompts import val_prompts
from minigpt.errors import UserError
from minigpt.model.gpt import GPT
from minigpt.training import loss
from minigpt.training.loss import model_loss, next_token_loss

PAIRS = [(f"What is {a} plus {b}?", f"{a + b}, é") for a in range(12) for b in range(5)]


def written(folder: Path, ending: str = "jsonl", pairs: list[tuple[Any, Any]] = PAIRS) -> Path:
    path = folder / f"pairs.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in pairs))
    elif ending == "csv":
        path.write_text("q,a\n" + "".join(f'"{q}","{a}"\n' for q, a in pairs), encoding="utf-8")
    else:
        pq.write_table(pa.table({"q": [q for q, _ in pairs], "a": [a for _, a in pairs]}), path)
    return path


def settings(source: Path | str, **changes: Any) -> DataConfig:
    given = {"text_column": "q", "answer_column": "a", "mode": "examples", "tokenizer": "bytes", "val_fraction": 0.3}
    return DataConfig(**{"source": str(source), "dir": str(Path(source).parent / "data")} | given | changes)


def prepared(folder: Path, pairs: list[tuple[Any, Any]] = PAIRS, **changes: Any) -> PreparedData:
    return prepare(settings(written(folder, pairs=pairs), **changes), quiet=True)


def text_of(data: PreparedData, tokens: Any) -> str:
    return data.tokenizer.decode_bytes([int(t) for t in tokens if t != data.tokenizer.end_of_text]).decode()


def answers_in(data: PreparedData, targets: torch.Tensor) -> list[str]:
    return [text_of(data, row[row != IGNORED]) for row in targets]


def val_batches(data: PreparedData, context_length: int = 64, batch_size: int = 4) -> ValBatches:
    end = data.manifest.end_of_text
    return ValBatches(data.val, context_length=context_length, batch_size=batch_size, end_of_text=end, mode="examples")


def train_batches(data: PreparedData, context_length: int = 64, n_batches: int = 30) -> TrainBatches:
    end = data.manifest.end_of_text
    options: dict[str, Any] = {"batch_size": 4, "n_batches": n_batches, "seed": 1, "mode": "examples"}
    return TrainBatches(data.train, context_length=context_length, end_of_text=end, **options)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_the_targets_are_the_answers_and_the_end_after_each(tmp_path: Path, ending: str, tokenizer: str) -> None:
    data = prepare(settings(written(tmp_path, ending), tokenizer=tokenizer), quiet=True)
    of_prompt = dict(PAIRS)
    seen = []
    batches = [train_batches(data)[i] for i in range(12)] + [
        val_batches(data)[i] for i in range(len(val_batches(data)))
    ]
    for tokens, targets in batches:
        for row, wanted, answer in zip(tokens, targets, answers_in(data, targets), strict=True):
            first = int((wanted != IGNORED).nonzero()[0])
            assert answer == of_prompt[text_of(data, row[1 : first + 1]).removesuffix("\n")]
            assert wanted[wanted != IGNORED][-1] == data.tokenizer.end_of_text
            seen.append(answer)
    assert set(seen) == {answer for _, answer in PAIRS}


def test_the_gradient_of_masked_logits_is_exactly_zero(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    tokens, targets = train_batches(data)[0]
    logits = torch.randn(*tokens.shape, data.tokenizer.vocab_size, requires_grad=True)
    next_token_loss(logits, targets).backward()
    masked = targets == IGNORED
    assert logits.grad is not None
    assert (logits.grad[masked] == 0).all()
    assert (logits.grad[~masked] != 0).any(dim=-1).all()
    assert 0 < int((~masked).sum()) < int(masked.sum())


def test_what_follows_a_prompt_alone_moves_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in chunks: other targets at masked places would give other gradients."""
    data = prepared(tmp_path)
    tokens, targets = train_batches(data)[0]
    model = GPT(GPTConfig(context_length=64, n_layer=1, n_head=1, n_embd=8, vocab_size=data.tokenizer.vocab_size))
    model_loss(model, tokens, targets).backward()
    whole = model.token_embedding.weight.grad.clone()  # type: ignore[union-attr]
    model.zero_grad()
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 512)
    model_loss(model, tokens, targets).backward()
    torch.testing.assert_close(model.token_embedding.weight.grad, whole)
    kept = (targets != IGNORED).sum()
    by_hand = next_token_loss(model(tokens)[targets != IGNORED][None], targets[targets != IGNORED][None], "sum")
    torch.testing.assert_close(model_loss(model, tokens, targets), by_hand / kept)


def test_bits_per_byte_counts_the_bytes_of_answers_alone(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    batches = val_batches(data)
    n_targets = sum(int((batches[i][1] != IGNORED).sum()) for i in range(len(batches)))
    answers = [answer for i in range(len(batches)) for answer in answers_in(data, batches[i][1])]
    assert batches.n_targets == n_targets
    assert data.val.n_target_bytes == sum(len(answer.encode()) for answer in answers)
    assert n_targets == data.val.n_target_bytes + len(answers)  # bytes are tokens, and each answer has an end


def test_answers_keep_their_places_over_units_and_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenising, "UNIT_BYTES", 200)
    monkeypatch.setattr(tokenising, "BATCH_CHUNKS", 3)
    data = prepared(tmp_path)
    assert len(data.train.tokens.shards) > 2
    assert data.train.answers is not None
    found = [text_of(data, data.train.tokens.read(first, end)) for first, end, _ in data.train.answers.tolist()]
    assert set(found) <= {answer for _, answer in PAIRS}
    assert len(found) == len(data.train.document_starts)


def test_chunks_of_a_long_text_without_an_answer_are_no_examples(tmp_path: Path) -> None:
    data = prepared(tmp_path, [("x" * 50 + str(i), f"yes {i}") for i in range(20)])
    batches = train_batches(data, context_length=16)
    answers = []
    for i in range(len(batches)):
        targets = batches[i][1]
        assert (targets != IGNORED).any(dim=1).all()
        answers += answers_in(data, targets)
    assert {text for text in answers if text} <= {"".join(c) for c in answers}
    val = val_batches(data, context_length=16)
    assert sum(int((val[i][1] != IGNORED).sum()) for i in range(len(val))) == val.n_targets


def test_an_answer_inside_a_text_ends_with_end_of_text_too() -> None:
    tokenizer = make_tokenizer("bytes", (), ())
    text, spans = joined([("a", False), ("é", True), ("", True), ("b", False), ("cd", True)])
    ((tokens, answers),) = encode(tokenizer, [(text, spans)])
    end = tokenizer.end_of_text
    assert tokens.tolist() == [*b"a", *"é".encode(), end, *b"bcd"]
    assert answers.tolist() == [[1, 4, 2], [5, 8, 2]]


def test_text_without_answers_is_encoded_as_before() -> None:
    tokenizer = make_tokenizer("bytes", (), ())
    ((tokens, answers),) = encode(tokenizer, [("abc", [])])
    assert bytes(tokens) == b"abc"
    assert answers.shape == (0, 3)


def test_rows_without_a_prompt_or_an_answer_are_left_out(tmp_path: Path) -> None:
    data = prepared(tmp_path, [*PAIRS, (None, "lost"), ("lost", None), ("lost", " "), ("lost", "")])
    assert len(data.train.document_starts) + len(data.val.document_starts) == len(PAIRS)
    assert "lost" not in text_of(data, data.train.tokens.read(0, len(data.train.tokens)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer_column": "b"}, "no key 'b'; it has 'q', 'a': give one as data.answer_column"),
        ({"text_column": "b"}, "no key 'b'; it has 'q', 'a': give one as data.text_column"),
        ({"mode": "packed"}, "set data.mode=examples"),
        ({"source": "references"}, "references has no columns; give JSON Lines"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        prepare(settings(**{"source": written(tmp_path)} | changes), quiet=True)
    assert message in str(error.value)


def test_a_text_file_has_no_answers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(UserError, match=r"a\.txt has no columns"):
        prepare(settings(tmp_path / "a.txt"), quiet=True)


def test_a_single_pair_is_not_cut_to_hold_out_its_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all rows are the same"):
        prepared(tmp_path, PAIRS[:1] * 3)


def test_prepared_answers_are_not_read_as_text(tmp_path: Path) -> None:
    folder = prepared(tmp_path).folder
    assert prepare(settings(folder), quiet=True).val.answers is not None
    with pytest.raises(UserError, match="was prepared with a; give that"):
        prepare(settings(folder, answer_column=None), quiet=True)


def test_text_without_answers_has_no_file_of_answers(tmp_path: Path) -> None:
    data = prepared(tmp_path, answer_column=None)
    assert data.train.answers is None
    assert "answer_column" not in data.manifest.settings
    assert not list(data.folder.glob("*answers*"))
    assert data.val.n_target_bytes == data.val.n_bytes


def test_the_first_batch_shows_prompts_as_read_but_not_predicted(tmp_path: Path) -> None:
    config = dataclasses.replace(Config(), data=settings(written(tmp_path)), model=GPTConfig(context_length=64))
    shown = peek(prepare(config.data, quiet=True), config)
    first = next(line for line in shown.splitlines() if line.startswith("  reads"))
    assert first.startswith("  reads     ⟨end of text⟩|W|h|a|t|·|i|s|·")


def test_default_prompts_are_whole_prompts_that_the_form_makes_again(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    prompts = val_prompts(data, 64, documents_only=True, form=PAIR)
    assert len(prompts) == 3
    assert set(prompts) <= {prompt for prompt, _ in PAIRS}
    assert val_prompts(data, 8, documents_only=True, form=PAIR) == [""]


def test_a_form_finds_the_prompt_inside() -> None:
    form = PromptForm("user: ", "\nassistant: ")
    assert form.inside(form("Hi")) == "Hi"
    assert form.inside("system: x\n" + form("Hi")) is None
    assert PromptForm("aa", "aa").inside("aaa") is None
    assert prompt_form(DataConfig())("Hi") == "Hi"


def test_a_mask_is_right_wherever_answers_lie() -> None:
    """Against a mask that is made token by token."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        lengths = rng.integers(2, 40, size=12)
        stops = np.cumsum(lengths)
        is_answer = np.zeros(stops[-1], dtype=bool)
        answers = []
        for start, stop in zip(stops - lengths, stops, strict=True):
            first = int(rng.integers(start, stop))
            end = int(rng.integers(first + 1, stop + 1))
            is_answer[first:end] = True
            answers.append((first, end, 1))
        data = Split(_counting(int(stops[-1])), stops - lengths, 1, (), np.array(answers, dtype=np.int64))
        val = ValBatches(data, context_length=7, batch_size=3, end_of_text=0, mode="examples")
        targets = np.concatenate([val[i][1].numpy().ravel() for i in range(len(val))])
        assert sorted(targets[targets != IGNORED] - 1) == np.flatnonzero(is_answer).tolist()
        assert math.isfinite(val.n_targets)


def _counting(n_tokens: int) -> Any:
    from minigpt.data.shards import Tokens

    return Tokens([np.arange(1, n_tokens + 1, dtype=np.uint32)])
