"""Prompts and answers: only answers have a loss, and they begin and end at token boundaries."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from minigpt.config import Config, DataConfig, GPTConfig
from minigpt.data import tokenising
from minigpt.data.answers import CHAT, PAIR, PromptForm, encode, joined, prompt_form
from minigpt.data.batches import IGNORED, TrainBatches, ValBatches
from minigpt.data.peek import peek
from minigpt.data.prepare import prepare
from minigpt.data.shards import PreparedData, Split
from minigpt.data.sources import rows
from minigpt.data.sources.answers import answer_rows
from minigpt.data.sources.names import File
from minigpt.data.tokenizers.base import make_tokenizer
from minigpt.data.val_prompts import val_prompts
from minigpt.errors import UserError
from minigpt.generation.generator import Writer
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


TURNS = [("Hi", "Ho. é"), ("Once more?", "No.")]


def chat(turns: list[tuple[Any, Any]] = TURNS, system: str | None = None) -> list[dict[str, Any]]:
    opening = [] if system is None else [{"role": "system", "content": system}]
    pairs = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in turns]
    return opening + [message for pair in pairs for message in pair]


CHATS = [chat([(q, a), ("Sure?", f"Yes, {a}")], "Be brief." if i % 2 else None) for i, (q, a) in enumerate(PAIRS)]


def written_chats(folder: Path, chats: list[Any] = CHATS, ending: str = "jsonl", column: str = "messages") -> Path:
    path, rows = folder / f"chats.{ending}", [{column: each} for each in chats]
    if ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif ending == "json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def prepared_chats(folder: Path, chats: list[Any] = CHATS, **changes: Any) -> PreparedData:
    source = written_chats(folder, chats)
    return prepare(settings(source, **{"text_column": "text", "answer_column": "messages"} | changes), quiet=True)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_of_a_conversation_the_turns_of_the_assistant_alone_are_targets(
    tmp_path: Path, ending: str, tokenizer: str
) -> None:
    source = written_chats(tmp_path, ending=ending, column="talk")
    data = prepare(settings(source, text_column="talk", answer_column="talk", tokenizer=tokenizer), quiet=True)
    wanted = {f"{a}Yes, {a}" for _, a in PAIRS}
    seen, end = set(), data.tokenizer.end_of_text
    for i in range(30):
        tokens, targets = train_batches(data, context_length=128)[i]
        assert (targets == end).sum(dim=1).eq(2).all()
        assert tokens[:, 0].eq(end).all()
        seen |= set(answers_in(data, targets))
    assert seen <= wanted
    assert len(seen) > 12
    read = text_of(data, tokens[0])
    assert read.startswith(("user: What", "system: Be brief.\nuser: What"))
    assert "\nassistant: " in read
    assert "\nuser: Sure?\nassistant: Yes, " in read


def test_the_gradient_of_all_turns_but_the_assistants_is_exactly_zero(tmp_path: Path) -> None:
    data = prepared_chats(tmp_path)
    tokens, targets = train_batches(data, context_length=128)[0]
    logits = torch.randn(*tokens.shape, data.tokenizer.vocab_size, requires_grad=True)
    next_token_loss(logits, targets).backward()
    assert logits.grad is not None
    has_gradient = (logits.grad != 0).any(dim=-1)
    for row, found in zip(tokens, has_gradient, strict=True):
        given = bytes(min(int(t), 255) for t in row[1:])  # bytes are tokens; the end of text, 256, becomes 255
        wanted = np.zeros(len(row), dtype=bool)
        for piece in given.split(b"assistant: ")[1:]:
            start = given.index(b"assistant: " + piece) + len(b"assistant: ")
            wanted[start : start + piece.index(b"\xff") + 1 if b"\xff" in piece else start + len(piece) + 1] = True
        assert found.tolist() == wanted.tolist()


def test_a_conversation_asked_again_has_the_tokens_of_training(tmp_path: Path) -> None:
    """The form of prompts, turn by turn, makes the stored document."""
    data = prepared_chats(tmp_path, [chat(), chat([("a", "b")]), chat([("c", "d")])])
    form, end = prompt_form(settings("x", text_column="text", answer_column="messages")), data.tokenizer.end_of_text
    (first, answer), (second, last) = [(form(q), a) for q, a in TURNS]
    tokens = [*first.encode(), *answer.encode(), end, *f"{form.between}{second}{last}".encode(), end]
    stored = [*data.train.tokens.read(0, len(data.train.tokens)), *data.val.tokens.read(0, len(data.val.tokens))]
    assert bytes(min(t, 255) for t in tokens) in bytes(min(int(t), 255) for t in stored)


def test_a_prompt_that_begins_with_a_system_message_needs_no_user_before_it() -> None:
    assert CHAT("Hi") == "user: Hi\nassistant: "
    prompt = "system: Be brief.\nuser: Hi"
    assert CHAT(prompt) == f"{prompt}\nassistant: "
    assert [CHAT.inside(CHAT(each)) for each in ("Hi", prompt)] == ["Hi", prompt]


def test_default_prompts_of_conversations_are_their_first_turns(tmp_path: Path) -> None:
    prompts = val_prompts(prepared_chats(tmp_path), 128, documents_only=True, form=CHAT)
    assert len(prompts) == 3
    assert {prompt.removeprefix("system: Be brief.\nuser: ") for prompt in prompts} <= {q for q, _ in PAIRS}


def test_conversations_without_a_turn_of_the_assistant_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    lost = [[{"role": "user", "content": "lost"}], [], chat([("lost", " ")])]
    source = written_chats(tmp_path, [*CHATS[:9], *lost])
    data = prepare(settings(source, text_column="messages", answer_column="messages"))
    assert len(data.train.document_starts) + len(data.val.document_starts) == 9
    assert "note: 3 rows are left out: they have no prompt or no answer" in capsys.readouterr().err
    with pytest.raises(UserError, match="no conversation has a turn of the assistant"):
        prepared_chats(tmp_path, lost)


def test_content_parts_of_text_are_text_and_tools_may_speak(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "It is "}, {"type": "text", "text": "4."}]
    talk = [
        *chat([("2 + 2?", parts)]),
        {"role": "tool", "content": "called"},
        {"role": "assistant", "content": "Four."},
    ]
    data = prepared_chats(tmp_path, [talk, chat()], val_fraction=0.5)
    whole = "".join(text_of(data, split.tokens.read(0, len(split.tokens))) for split in (data.train, data.val))
    assert "user: 2 + 2?\nassistant: It is 4.\ntool: called\nassistant: Four." in whole


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ("Hi", "line 1: 'messages' holds no conversation: not a list of messages"),
        ([{"content": "Hi"}], "a message without the text 'role'"),
        ([{"role": "user", "content": 3}], "a message of 'user' without the text 'content'"),
        (chat([("Hi", [{"type": "image_url"}])]), "'assistant' has a part of type 'image_url', and only text is read"),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}],
            "'assistant' without the text 'content'; its tool calls are not read, leave such rows out",
        ),
    ],
)
def test_what_is_no_conversation_of_texts_is_said_in_one_line(tmp_path: Path, conversation: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        prepared_chats(tmp_path, [conversation])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_masked_and_plain_conversations_are_prepared_into_folders_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    masked = prepared_chats(tmp_path)
    plain = prepare(settings(masked.folder.parent.parent / "chats.jsonl", text_column="messages", answer_column=None))
    assert masked.folder != plain.folder
    assert plain.val.answers is None
    assert (
        "its messages are read as lines of `role: content`; data.mode=examples with data.answer_column=messages puts "
        "the loss on the assistant's alone" in capsys.readouterr().err
    )
    assert (
        prepare(settings(masked.folder, text_column="text", answer_column="messages"), quiet=True).val.answers
        is not None
    )
    with pytest.raises(UserError, match="was prepared with text, and data.answer_column=messages; give both"):
        prepare(settings(masked.folder, text_column="q", answer_column="messages"), quiet=True)


def test_a_document_mask_is_refused_as_it_would_hide_the_turns_before(tmp_path: Path) -> None:
    data = settings(tmp_path, text_column="text", answer_column="messages")
    with pytest.raises(UserError, match="end_of_text follows each answer of a conversation"):
        Config(data=data, model=GPTConfig(document_mask=True))


def test_the_model_reads_a_prompt_in_the_tokens_of_training() -> None:
    """The form ends with a space, which is not healed: in training an answer's tokens begin after it."""
    tokenizer = make_tokenizer("bpe:300", ["user: ab\nassistant: ab"], ())
    model = GPT(GPTConfig(context_length=64, n_layer=1, n_head=1, n_embd=8, vocab_size=tokenizer.vocab_size)).eval()
    writer = Writer(model, tokenizer, from_start=True, form=CHAT)
    wanted = (tokenizer.end_of_text, *tokenizer.encode("user: ab\nassistant: "))
    assert writer.generate("ab", max_new_tokens=1).prompt_tokens == wanted


def test_a_parquet_file_of_conversations_is_told_how_to_be_masked(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = written_chats(tmp_path, ending="parquet")
    prepare(settings(source, text_column="text", answer_column=None, mode="packed"))
    assert "data.answer_column=messages puts the loss" in capsys.readouterr().err


def test_a_file_is_read_once_for_prompts_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    decoded = rows._decoded
    monkeypatch.setattr(rows, "_decoded", lambda file, errors: opened.append(file) or decoded(file, errors))
    source = File(written(tmp_path), "jsonl")
    assert len(list(answer_rows(source, settings(source.path)))) == len(PAIRS)
    assert len(opened) == 1


def test_the_peek_says_how_much_has_a_loss(tmp_path: Path) -> None:
    data = prepared_chats(tmp_path)
    config = dataclasses.replace(Config(), data=settings(data.folder, text_column="text", answer_column="messages"))
    assert re.search(r"loss on \d+ answers alone, \d\d\.\d % of the text", peek(data, config))
