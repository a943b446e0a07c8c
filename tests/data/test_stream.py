"""Streams: exact batches from text that is not prepared, from wherever a checkpoint says that it stood."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch

from minigpt.config import DataConfig
from minigpt.data import stream
from minigpt.data.stream import StreamBatches, prepare_head
from minigpt.data.tokenizers.base import decode
from minigpt.errors import UserError

N_DOCUMENTS = 300


def text(i: int) -> str:
    return f"document {i} says {i * i} " * (1 + i % 4)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A stream of 300 rows, of which the first hundred or so are the head, read some rows at a time."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text(i)}) + "\n" for i in range(N_DOCUMENTS)))
    monkeypatch.setattr(stream, "HEAD_BYTES", 4000)
    monkeypatch.setattr(stream, "TOGETHER", 200)
    monkeypatch.setattr(stream, "BATCHES_PER_POOL", 4)
    monkeypatch.setattr("minigpt.data.sources.reading.ROWS", 3)
    return DataConfig(
        source=str(path), tokenizer="bytes", streaming=True, batch_size=2, val_fraction=0.1, dir=str(tmp_path / "data")
    )


def batches_of(config: DataConfig, n_batches: int = 5000, seed: int = 1) -> StreamBatches:
    return StreamBatches(config, prepare_head(config), context_length=16, n_batches=n_batches, seed=seed)


def windows_of(batches: StreamBatches, n: int) -> list[list[int]]:
    """The first n batches' windows."""
    pairs = [batches[i] for i in range(n)]
    return [[*row, int(last)] for x, y in pairs for row, last in zip(x.tolist(), y[:, -1], strict=True)]


def test_targets_are_the_tokens_one_later(config: DataConfig) -> None:
    tokens, targets = batches_of(config)[3]
    assert tokens.shape == targets.shape == (2, 16)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_a_stream_in_another_encoding_is_the_same_stream(config: DataConfig, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"naïve {text(i)}"}, ensure_ascii=False) + "\n" for i in range(N_DOCUMENTS))
    path = Path(config.source)  # type: ignore[arg-type]
    path.write_text(rows)
    expected = windows_of(batches_of(config), 9)
    path.write_text(rows, encoding="utf-16")
    wide = replace(config, encoding="utf-16", dir=str(tmp_path / "wide"))
    assert windows_of(batches_of(wide), 9) == expected
    (tmp_path / "val.txt").write_text("held out, naïve", encoding="utf-16")
    assert prepare_head(replace(wide, val_source=str(tmp_path / "val.txt"))).manifest.val.n_documents == 1
    with pytest.raises(UserError, match="by its byte-order mark: give --data.encoding utf-16"):
        prepare_head(config)
    path.write_text(rows, encoding="cp1252")
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 12\); it is likely cp1252"):
        prepare_head(config)


def test_what_is_taken_of_a_stream_is_told_once(config: DataConfig, capsys: pytest.CaptureFixture) -> None:
    path = Path(config.source).with_name("rows.csv")  # type: ignore[arg-type]
    path.write_text("id;text\n" + "".join(f"{i};{text(i)}\n" for i in range(N_DOCUMENTS)))
    for told in (1, 0):
        prepare_head(replace(config, source=str(path)))
        assert capsys.readouterr().err.count("are separated by ';'") == told


@pytest.mark.parametrize("passes", [1, 3])
def test_windows_are_the_training_documents_cut_once_a_pass_and_shuffled_nearby(
    passes: int, config: DataConfig
) -> None:
    batches = batches_of(config)
    kept = [text(i) for i in range(N_DOCUMENTS) if not batches._is_val(text(i))]
    assert 0.8 < len(kept) / N_DOCUMENTS < 1
    joined = np.concatenate([[*t.encode(), 256] for t in kept] * passes)
    n_pools = len(joined) // (16 * 8)
    expected = [joined[i * 16 : i * 16 + 17].tolist() for i in range(n_pools * 8)]
    found = windows_of(batches, n_pools * 4)
    assert sorted(found) == sorted(expected)
    assert found != expected
    for pool in range(n_pools):
        assert sorted(found[pool * 8 : pool * 8 + 8]) == sorted(expected[pool * 8 : pool * 8 + 8])


def test_no_document_of_the_val_split_is_trained_on(config: DataConfig) -> None:
    data = prepare_head(config)
    starts = [*data.val.document_starts.tolist(), len(data.val.tokens)]
    held_out = [decode(data.tokenizer, data.val.tokens.read(a, b - 1).tolist()) for a, b in itertools.pairwise(starts)]
    assert held_out
    batches = batches_of(config)
    assert all(batches._is_val(document) for document in held_out)


def test_the_same_stream_and_seed_give_the_same_batches_and_another_seed_another_order(config: DataConfig) -> None:
    one, two, other = (windows_of(batches_of(config, seed=seed), 20) for seed in (1, 1, 2))
    assert one == two != other
    assert sorted(one) == sorted(other)


@pytest.mark.parametrize("stop", [1, 4, 7, 23, 130])
def test_a_stream_goes_on_where_its_state_says_without_reading_from_the_beginning(
    stop: int, config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = batches_of(config)
    batches = [straight[i] for i in range(stop + 12)]
    stopped = batches_of(config)
    for i in range(stop):
        stopped[i]
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    resumed = batches_of(config)
    pools = []
    read = StreamBatches._read_pool
    monkeypatch.setattr(StreamBatches, "_read_pool", lambda self: (pools.append(self._next_pool), read(self))[1])
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for i in range(stop, stop + 12):
        assert all(torch.equal(a, b) for a, b in zip(resumed[i], batches[i], strict=True))
    assert min(pools) >= (stop - 1) // 4 - 1


def test_any_batch_can_be_asked_for_also_backwards_and_without_a_state(config: DataConfig) -> None:
    straight = batches_of(config)
    expected = {i: straight[i] for i in range(40)}
    for i in (39, 3, 17, 17, 0):
        assert torch.equal(straight[i][0], expected[i][0])
    assert torch.equal(batches_of(config)[39][0], expected[39][0])
    with pytest.raises(IndexError):
        straight[5000]


def test_the_head_is_read_once_and_kept(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_head(config)

    def refuse(config: DataConfig) -> Any:
        raise AssertionError("the stream was opened again")

    monkeypatch.setattr(stream, "_open", refuse)
    assert prepare_head(config).folder == first.folder
    assert first.train.n_bytes + first.val.n_bytes < 6000


class FakeApi:
    def dataset_info(self, name: str, timeout: float) -> None:
        if name != "owner/rows":
            raise huggingface_hub.errors.RepositoryNotFoundError("404", response=FakeResponse())


class FakeResponse:
    headers: dict[str, str] = {}  # noqa: RUF012
    status_code = 404
    request = None


@pytest.fixture
def hub(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """The same rows as a hub dataset in two files."""
    load, rows = datasets.load_dataset, str(config.source)

    def fake(path: str, *args: Any, **kwargs: Any) -> Any:
        if path != "owner/rows":
            return load(path, *args, **kwargs)
        assert args == ("small",)
        assert kwargs == {"split": "train", "streaming": True, "cache_dir": str(Path(config.dir) / "huggingface")}
        return load("json", data_files=[rows], split="train", streaming=True)

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(datasets, "load_dataset", fake)
    return replace(config, source="hf:owner/rows:small")


def test_a_hub_dataset_is_streamed_like_a_file(hub: DataConfig, config: DataConfig) -> None:
    assert windows_of(batches_of(hub), 60) == windows_of(batches_of(config), 60)
    stopped, resumed = batches_of(hub), batches_of(hub)
    expected = [stopped[i] for i in range(31)]
    resumed.load_state_dict(stopped.state_dict())
    assert torch.equal(resumed[30][0], expected[30][0])


def test_a_missing_column_or_dataset_of_the_hub_is_one_line(hub: DataConfig) -> None:
    with pytest.raises(UserError, match=r"no column 'body'; give one of these as data\.text_column: 'text'"):
        prepare_head(replace(hub, text_column="body"))
    with pytest.raises(UserError, match="the hub has no dataset nobody/nothing"):
        prepare_head(replace(hub, source="hf:nobody/nothing"))


def test_a_stream_of_one_document_is_refused_with_what_to_do(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one text " * 2000)
    with pytest.raises(UserError, match=r"too few documents for a val split; set data\.val_source"):
        prepare_head(replace(config, source=str(tmp_path / "one.txt")))


def test_with_a_text_of_its_own_to_validate_on_one_document_is_enough(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one text after the other " * 2000)
    (tmp_path / "val.txt").write_text("another text")
    settings = replace(config, source=str(tmp_path / "one.txt"), val_source=str(tmp_path / "val.txt"))
    assert len(windows_of(batches_of(settings), 8)) == 16


def test_a_stream_without_text_is_refused(config: DataConfig, tmp_path: Path) -> None:
    data = prepare_head(config)
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n{"text": null}\n')
    batches = StreamBatches(
        replace(config, source=str(tmp_path / "empty.jsonl")), data, context_length=16, n_batches=9, seed=0
    )
    with pytest.raises(UserError, match="holds no text to train on"):
        batches[0]


@pytest.mark.parametrize(
    "settings",
    [{"weights": [1.0]}, {"mode": "examples"}, {"num_workers": 1}, {"max_documents": 5}, {"source": ["a", "b"]}],
)
def test_what_a_stream_cannot_do_is_refused_when_the_config_is_built(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"not with data\.streaming"):
        DataConfig(streaming=True, **settings)
