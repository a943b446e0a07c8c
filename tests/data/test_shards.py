"""Shards: several files read as one sequence, and no damage to a prepared folder goes unnoticed."""

import dataclasses
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from minigpt.config import DataConfig
from minigpt.data import tokenising
from minigpt.data.prepare import prepare
from minigpt.data.shards import Manifest, PreparedData, ShardWriter, TokenFile, Tokens, open_prepared
from minigpt.data.sources import scan as scan_module
from minigpt.data.sources.names import is_prepared
from minigpt.data.tokenizers.base import BytesTokenizer, CharsTokenizer, save_tokenizer
from minigpt.errors import UserError


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedData:
    """Thirty documents in several shards."""
    monkeypatch.setattr(tokenising, "UNIT_BYTES", 400)
    monkeypatch.setattr(tokenising, "BATCH_CHARACTERS", 100)
    rows = "".join(json.dumps({"text": f"text number {i}" * (i + 1)}) + "\n" for i in range(30))
    (tmp_path / "rows.jsonl").write_text(rows)
    return prepare(DataConfig(source=str(tmp_path / "rows.jsonl"), tokenizer="bytes", dir=str(tmp_path / "data")))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_prepared(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("lengths", [[10], [3, 4, 3], [0, 5, 0, 0, 5, 0], [1] * 10, [10, 0]], ids=str)
def test_shards_of_any_lengths_read_as_one_sequence(lengths: list[int]) -> None:
    whole = np.arange(10, dtype=np.uint16)
    tokens = Tokens(np.split(whole, np.cumsum(lengths)[:-1]))
    assert len(tokens) == 10
    for start in range(11):
        for stop in range(start, 11):
            found = tokens.read(start, stop)
            assert np.array_equal(found, whole[start:stop])
            assert found.dtype == np.uint16


def test_no_shards_are_no_tokens() -> None:
    assert len(Tokens([np.zeros(0, np.uint16)])) == 0
    assert len(Tokens([]).read(0, 0)) == 0


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_written_shard_holds_little_endian_tokens(dtype: type, tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "a.bin", np.dtype(dtype))
    writer.write(np.array([1, 2, 65535]))
    writer.write(np.array([], dtype=np.int64))
    writer.write(np.array([7], dtype=np.uint32))
    entry = writer.finish()
    assert np.fromfile(tmp_path / "a.bin", np.dtype(dtype).newbyteorder("<")).tolist() == [1, 2, 65535, 7]
    assert entry["n_bytes"] == (tmp_path / "a.bin").stat().st_size == 4 * np.dtype(dtype).itemsize


def test_every_file_of_a_folder_is_in_its_manifest(data: PreparedData) -> None:
    assert {path.name for path in data.folder.iterdir()} == {"manifest.json", *data.manifest.files}
    assert len(data.manifest.train.shards) > 3


def test_the_manifest_is_plain_json_that_says_what_and_whence(data: PreparedData, tmp_path: Path) -> None:
    manifest = json.loads((data.folder / "manifest.json").read_text())
    assert (manifest["source"], manifest["tokenizer"]) == ([str(tmp_path / "rows.jsonl")], "bytes")
    assert manifest["settings"]["text_column"] == "text"
    assert Manifest.read(data.folder) == data.manifest


def test_a_folder_opens_where_it_was_moved_and_without_its_text(data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").unlink()
    opened = open_prepared(data.folder.rename(tmp_path / "moved"))
    assert opened.manifest == data.manifest
    for one, other in ((opened.train, data.train), (opened.val, data.val)):
        assert np.array_equal(one.tokens.read(0, len(one.tokens)), other.tokens.read(0, len(other.tokens)))


def test_checksums_are_compared_once(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    open_prepared(data.folder)
    monkeypatch.setattr(scan_module, "scan", lambda file: pytest.fail(f"{file.path} is read again"))
    open_prepared(data.folder)


@pytest.mark.parametrize("damage", ["one bit", "cut off", "longer", "gone", "a folder"])
def test_damage_to_any_file_is_noticed(damage: str, data: PreparedData) -> None:
    for name in data.manifest.files:
        path = data.folder / name
        content = bytearray(path.read_bytes())
        match damage:
            case "one bit" if content:
                path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
                expected = f"{path} is damaged (its checksum differs)"
            case "cut off" if content:
                path.write_bytes(content[:-1])
                expected = f"{path} has {len(content) - 1} bytes instead of {len(content)}"
            case "longer":
                path.write_bytes(content + b"\0")
                expected = f"{path} has {len(content) + 1} bytes instead of {len(content)}"
            case "gone" | "a folder":
                path.unlink()
                if damage == "a folder":
                    path.mkdir()
                expected = f"{path} is missing"
            case _:
                continue
        message = refusal(data.folder)
        assert expected in message
        assert message.endswith(f"delete {data.folder}, and it will be prepared anew")
        if damage == "a folder":
            path.rmdir()
        path.write_bytes(content)
    open_prepared(data.folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text.replace('"n_documents": 2', '"n_documents": 3', 1), "was changed or is damaged"),
        (lambda text: text.replace('"vocab_size": 257', '"vocab_size": 258'), "was changed or is damaged"),
        (lambda text: text.replace('"checksum": "', '"checksum": "0'), "was changed or is damaged"),
        (lambda text: text.replace('"format": ', '"format": 1'), "written by another version of minigpt (format 1"),
        (lambda text: '{"format": 1, "source": "a.txt"}', "written by another version of minigpt (format 1)"),
        (lambda text: text[: len(text) // 2], "is damaged ("),
        (lambda text: "", "is damaged ("),
        (lambda text: "[]", "is damaged ("),
        (lambda text: "null", "is damaged ("),
        (lambda text: "{}", "is damaged ("),
        (lambda text: "[" * 100_000, "is damaged ("),
        (lambda text: "\ud800", "is damaged ("),
    ],
    ids=[
        "counts",
        "vocabulary",
        "checksum",
        "format",
        "old",
        "half",
        "empty",
        "list",
        "null",
        "object",
        "deep",
        "utf-8",
    ],
)
def test_a_manifest_that_is_changed_old_or_damaged_is_refused(change, expected: str, data: PreparedData) -> None:  # type: ignore[no-untyped-def]
    path = data.folder / "manifest.json"
    text = change(path.read_text())
    assert text != path.read_text()
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    message = refusal(data.folder)
    assert expected in message
    assert f"delete {data.folder}, and it will be prepared anew" in message


def test_a_folder_without_a_manifest_is_refused(data: PreparedData) -> None:
    (data.folder / "manifest.json").unlink()
    assert refusal(data.folder) == f"{data.folder / 'manifest.json'}: no such file or directory"


def test_a_folder_whose_tokenizer_has_the_old_name_is_opened(data: PreparedData) -> None:
    (data.folder / "minigpt_tokenizer.json").rename(data.folder / "tokenizer.json")
    files = {name.removeprefix("minigpt_"): entry for name, entry in data.manifest.files.items()}
    (data.folder / "manifest.json").write_text(dataclasses.replace(data.manifest, files=files).to_json())
    assert is_prepared(data.folder)
    assert open_prepared(data.folder).tokenizer.to_dict() == data.tokenizer.to_dict()


@pytest.mark.parametrize("other", [CharsTokenizer("abc"), BytesTokenizer()], ids=lambda t: type(t).__name__)
def test_an_exchanged_tokenizer_is_noticed(other: object, data: PreparedData) -> None:
    path = data.folder / "minigpt_tokenizer.json"
    save_tokenizer(other, path)  # type: ignore[arg-type]
    if isinstance(other, BytesTokenizer):  # the same one
        open_prepared(data.folder)
        return
    message = refusal(data.folder)
    assert "tokenizer.json has" in message or "tokenizer.json is damaged" in message


def test_a_tokenizer_that_does_not_fit_the_tokens_is_refused_though_its_checksum_does(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt.data.shards.load_tokenizer", lambda path: CharsTokenizer("abc"))
    assert "the tokenizer has 4 tokens, but the data was made with one of 257" in refusal(data.folder)


@pytest.mark.parametrize("way", ["preadv", "seek"])
def test_token_files_read_as_one_sequence(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "seek":  # as on Windows
        monkeypatch.delattr(os, "preadv")
    paths = [tmp_path / "a.bin", tmp_path / "b.bin", tmp_path / "empty.bin"]
    for first, path in enumerate(paths):
        np.arange(first * 5000, min(first * 5000 + 5000, 10_000), dtype="<u4").tofile(path)
    tokens = Tokens([TokenFile(path, "uint32") for path in paths])
    for path in paths:
        path.unlink()  # somebody tidies up while a run goes on
    for start in range(4980, 5010):
        assert tokens.read(start, start + 20).tolist() == list(range(start, start + 20))
    assert tokens.read(0, 10_000).tolist() == list(range(10_000))


def test_token_files_can_be_sent_to_another_process(tmp_path: Path) -> None:
    np.arange(100, dtype="<u2").tofile(tmp_path / "a.bin")
    sent = pickle.dumps(Tokens([TokenFile(tmp_path / "a.bin", "uint16")]))
    assert len(sent) < 1000
    assert pickle.loads(sent).read(90, 100).tolist() == list(range(90, 100))


def test_a_token_file_that_was_cut_short_meanwhile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    np.arange(100, dtype="<u2").tofile(path)
    tokens = Tokens([TokenFile(path, "uint16")])
    os.truncate(path, 100)
    assert tokens.read(0, 50).tolist() == list(range(50))
    with pytest.raises(UserError, match=re.escape(f"{path} became shorter while it was read")):
        tokens.read(40, 60)


def test_a_short_read_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.arange(100, dtype="<u2").tofile(tmp_path / "a.bin")
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: preadv(file, [buffers[0][:33]], at))
    assert TokenFile(tmp_path / "a.bin", "uint16")[3:97].tolist() == list(range(3, 97))
