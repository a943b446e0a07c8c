"""What samples copy from the train text: the search against its slow, obvious twin, and where a run says it."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import small_settings

from minigpt.data.open import open_data
from minigpt.data.shards import Tokens
from minigpt.pages.report import render_report
from minigpt.pages.run_record import read_run_folder, read_samples
from minigpt.runs.folder import RunFolder
from minigpt.training import copied
from minigpt.training.copied import Copied, find_copied
from minigpt.training.run import train

TOKENS = st.lists(st.integers(0, 2), max_size=60)


def runs_of(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def obvious(samples: Sequence[Sequence[int]], text: Sequence[int], gram: int) -> Copied:
    """All runs of every length, one by one."""
    lengths = range(1, max(map(len, samples), default=0) + 1)
    longest = [n for n in lengths if any(set(runs_of(sample, n)) & set(runs_of(text, n)) for sample in samples)]
    grams = [each for sample in samples for each in runs_of(sample, gram)]
    known = set(runs_of(text, gram))
    share = sum(each in known for each in grams) / len(grams) if grams else None
    return Copied(max(longest, default=0), share, len(text))


@settings(max_examples=60)
@given(st.lists(TOKENS, max_size=3), st.lists(TOKENS, max_size=4), st.integers(1, 9), st.integers(1, 9), st.data())
def test_the_search_finds_what_comparing_all_runs_finds(
    samples: list[list[int]], shards: list[list[int]], chunk: int, gram: int, data: st.DataObject
) -> None:
    """Several shards, chunks shorter than a sample, and a sample cut out of the text."""
    text = [token for shard in shards for token in shard]
    start = data.draw(st.integers(0, len(text)))
    samples = [*samples, text[start : start + 30]]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copied, "CHUNK", chunk)
        patched.setattr(copied, "GRAM", gram)
        patched.setattr(copied, "_SLOT_BITS", data.draw(st.sampled_from([1, 20])))  # 1: nearly all hashes collide
        found = find_copied(samples, Tokens([np.array(shard, np.uint16) for shard in shards]))
    assert found == obvious(samples, text, gram)


def test_of_a_text_above_the_limit_as_many_tokens_are_searched_evenly_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied, "CHUNK", 4)
    monkeypatch.setattr(copied, "MOST_CHUNKS", 3)
    text = np.arange(100, dtype=np.uint32)
    starts = [i for i in range(100) if find_copied([[i]], Tokens([text])).longest_tokens]
    assert starts == [0, 1, 2, 3, 33, 34, 35, 36, 66, 67, 68, 69]
    assert find_copied([range(3, 9), range(20, 30)], Tokens([text])) == Copied(6, None, 12)
    assert find_copied([range(12)], Tokens([text[:12]])).n_searched == 12


@pytest.fixture(scope="module")
def memorised(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that knows its one sentence by heart."""
    folder = tmp_path_factory.mktemp("memorised")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    config = small_settings(
        folder,
        model={"n_embd": 32},
        optimizer={"learning_rate": 0.02, "schedule": "constant"},
        trainer={"max_steps": 80, "val_check_interval": 40},
        sampling={"prompts": ["The ", "zz"], "max_new_tokens": 30, "temperature": 0.2},
        attention={"enabled": False},
    )
    return train(config)


def test_a_run_that_memorises_says_so_in_samples_metrics_and_report(memorised: RunFolder) -> None:
    with memorised.metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/loss"]]
    assert [row["step"] for row in rows] == ["40", "80"], "one row a step"
    longest, share = (rows[-1][f"samples/{name}"] for name in ("longest_copied_tokens", "copied_20gram_share"))
    assert int(longest) == 30
    assert 0.5 <= float(share) <= 1
    line, _, rest = memorised.samples(80).read_text().partition("\n\n")
    assert (
        line == f"copied from the train text: at most 30 tokens in a row, {float(share):.1%} of all runs of 20 tokens"
    )
    assert rest.startswith("──── step 80, prompt 'The '\nThe ")
    assert [sample[:2] for sample in read_samples(memorised.path)][-2:] == [(80, "The "), (80, "zz")]
    record = read_run_folder(memorised.path)
    assert record.curves["samples/copied_20gram_share"][80] == float(share)
    assert f"<h3>step 80</h3><p>{line}</p>" in render_report(record)
    older = {name: curve for name, curve in record.curves.items() if not name.startswith("samples/")}
    assert "copied from" not in render_report(dataclasses.replace(record, curves=older))


def test_the_figures_are_of_the_generated_tokens_without_their_prompts(memorised: RunFolder) -> None:
    config = small_settings(memorised.path.parent.parent)
    text = open_data(config.data).train.tokens
    content = text.read(0, len(text)).tolist()
    samples = [list(each.text[len(each.prompt) :].encode()) for each in read_samples(memorised.path) if each.step == 80]
    known = obvious(samples, content, 20)
    curves = read_run_folder(memorised.path).curves
    assert curves["samples/longest_copied_tokens"][80] == known.longest_tokens
    assert curves["samples/copied_20gram_share"][80] == known.share


def test_samples_shorter_than_twenty_tokens_have_no_share(tmp_path: Path) -> None:
    run = train(small_settings(tmp_path, attention={"enabled": False}))
    curves = read_run_folder(run.path).curves
    assert set(curves["samples/longest_copied_tokens"]) == {6, 12}
    assert "samples/copied_20gram_share" not in curves


def test_a_stream_is_not_kept_so_nothing_is_said_of_copies(tmp_path: Path) -> None:
    config = small_settings(tmp_path, data={"streaming": True}, attention={"enabled": False})
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "{i} plus {i} is {i + i};"}}\n' for i in range(2000)))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(tmp_path / "text.jsonl")))
    run = train(config)
    assert run.samples(12).read_text().startswith("──── step 12, prompt '1 plus'\n")
    assert not any(name.startswith("samples/") for name in read_run_folder(run.path).curves)
