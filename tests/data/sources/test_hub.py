"""Downloads: a URL or a hub dataset becomes files here, and what was fetched before serves where no network is."""

import gzip
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

from minigpt.config import DataConfig
from minigpt.data.prepare import prepare
from minigpt.data.sources.hub import download_dataset, download_file, parse_name
from minigpt.data.tokenizers.base import decode
from minigpt.errors import UserError


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A server on this machine that serves the folder `www`."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # the test suite's own choice, for other tests
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "www").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path / "www")))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def serve(server: ThreadingHTTPServer, tmp_path: Path, name: str, content: bytes) -> str:
    (tmp_path / "www" / name).write_bytes(content)
    return f"http://127.0.0.1:{server.server_port}/{name}"


def texts(source: str | list[str], tmp_path: Path, **settings: Any) -> set[str]:
    """The documents of a source, as they are prepared."""
    config = DataConfig(source=source, tokenizer="bytes", dir=str(tmp_path / "data"), **settings)
    data = prepare(config, quiet=True)
    found = set()
    for split in (data.train, data.val):
        ends = [*split.document_starts[1:], len(split.tokens)]
        for start, end in zip(split.document_starts, ends, strict=True):
            found.add(decode(data.tokenizer, split.tokens.read(start, end - 1).tolist()))
    return found


ROWS = "".join(json.dumps({"text": f"row {i}\r\n"}) + "\n" for i in range(5)).encode()
EXPECTED = {f"row {i}\r\n" for i in range(5)}


def test_a_url_is_read_as_its_ending_says(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    urls = [
        serve(server, tmp_path, "a.jsonl", ROWS) + "?download=true",
        serve(server, tmp_path, "b.jsonl.gz", gzip.compress(ROWS.replace(b"row", b"packed"))),
        serve(server, tmp_path, "c.txt", b"\xef\xbb\xbfplain\r\ntext\0"),
        serve(server, tmp_path, "d.txt.gz", gzip.compress(b"packed text")),
    ]
    expected = EXPECTED | {text.replace("row", "packed") for text in EXPECTED} | {"plain\r\ntext\0", "packed text"}
    assert texts(urls, tmp_path) == expected


def test_a_url_that_gives_another_text_is_prepared_anew(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    url = serve(server, tmp_path, "a.jsonl", ROWS)
    assert texts(url, tmp_path) == EXPECTED
    serve(server, tmp_path, "a.jsonl", ROWS.replace(b"row", b"new"))
    assert texts(url, tmp_path) == {text.replace("row", "new") for text in EXPECTED}


def test_without_the_server_what_it_gave_before_is_used_and_said(
    server: ThreadingHTTPServer, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    url = serve(server, tmp_path, "a.jsonl", ROWS)
    assert texts(url, tmp_path) == EXPECTED
    (tmp_path / "www" / "a.jsonl").unlink()
    capfd.readouterr()
    assert texts(url, tmp_path) == EXPECTED
    (note,) = capfd.readouterr().err.splitlines()
    assert note.startswith(f"data.source={url}: could not be reached (")
    assert note.endswith("using the last download")


def test_a_url_that_is_not_there_is_refused_in_one_line(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    url = serve(server, tmp_path, "a.txt", b"") + ".gone"
    with pytest.raises(
        UserError, match=r"a\.txt\.gone: could not be fetched \(.*\); without network, use local files"
    ) as caught:
        download_file(url, tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_a_url_without_network_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(datasets.DownloadConfig, "max_retries", 0, raising=False)
    with pytest.raises(UserError, match=r"could not be fetched \(.*\); without network, use local files") as caught:
        download_file("http://127.0.0.1:9/a.txt", tmp_path / "data")  # the discard port: refused at once
    assert "\n" not in str(caught.value)


# The hub


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf:owner/name", ("owner/name", None, "train")),
        ("hf:name", ("name", None, "train")),
        ("hf:owner/name:en", ("owner/name", "en", "train")),
        ("hf:owner/name:en:test", ("owner/name", "en", "test")),
        ("hf:owner/name::test", ("owner/name", None, "test")),
    ],
)
def test_a_hub_datasets_name_has_a_configuration_and_a_split(name: str, expected: tuple) -> None:
    assert parse_name(name) == expected


@pytest.mark.parametrize("name", ["hf:", "hf::en", "hf:a:b:c:d", "hf:a:b:train[:10]"])
def test_another_form_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a hub dataset is written hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT"):
        download_dataset(name, tmp_path)


class Hub:
    """A hub with one dataset, which may be cut off."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.online, self.asked = folder, True, 0
        self.loads: list[tuple] = []

    def dataset_info(self, path: str, **_: object) -> None:
        self.asked += 1
        if not self.online:
            raise OfflineModeIsEnabled("Cannot reach https://huggingface.co: offline mode is enabled.\nSecond line")
        if path != "owner/name":
            answer = SimpleNamespace(headers={}, request=None, status_code=404)
            raise RepositoryNotFoundError("404", response=answer)  # type: ignore[arg-type]

    def load_dataset(self, path: str, config: str | None, *, split: str, cache_dir: str) -> datasets.Dataset:
        self.loads.append((path, config, split))
        if split == "nowhere":
            raise ValueError("Unknown split \"nowhere\". Should be one of ['train', 'test'].\nMore of it")
        folder = self.folder / f"{config}-{split}"
        if not folder.exists():
            rows = [f"{config} {split} {i}" for i in range(6)]
            datasets.Dataset.from_dict({"id": range(6), "text": rows}).save_to_disk(folder, num_shards=2)
        return datasets.load_from_disk(str(folder))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    return hub


def test_a_hub_dataset_is_read_with_its_configuration_and_split(hub: Hub, tmp_path: Path) -> None:
    assert texts("hf:owner/name:en:test", tmp_path) == {f"en test {i}" for i in range(6)}
    assert hub.loads == [("owner/name", "en", "test")]


def test_two_splits_of_a_hub_dataset_are_two_sources(hub: Hub, tmp_path: Path) -> None:
    found = texts("hf:owner/name", tmp_path, val_source="hf:owner/name::validation")
    assert found == {f"None {split} {i}" for split in ("train", "validation") for i in range(6)}


def test_a_dataset_that_the_hub_does_not_have_is_refused_in_one_line(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source=hf:owner/nome: the hub has no dataset owner/nome, or") as caught:
        texts("hf:owner/nome", tmp_path)
    assert "\n" not in str(caught.value)
    assert hub.loads == []


def test_a_split_that_the_dataset_does_not_have_is_refused_with_those_it_has(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Should be one of \['train', 'test'\]") as caught:
        texts("hf:owner/name::nowhere", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_column_of_a_hub_dataset_names_those_there(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'story'; give one of these as data\.text_column: 'id', 'text'"):
        texts("hf:owner/name", tmp_path, text_column="story")


def test_without_network_a_dataset_never_fetched_is_refused_at_once(hub: Hub, tmp_path: Path) -> None:
    hub.online = False
    with pytest.raises(UserError, match=r"could not be fetched \(OfflineModeIsEnabled: Cannot reach") as caught:
        texts("hf:owner/name", tmp_path)
    assert "\n" not in str(caught.value)
    assert "without network, use local files" in str(caught.value)
    assert (hub.asked, hub.loads) == (1, [])


def test_without_network_what_was_fetched_before_is_used_and_said(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    before = texts("hf:owner/name", tmp_path)
    hub.online, hub.loads = False, []
    capfd.readouterr()
    assert texts("hf:owner/name", tmp_path) == before
    (note,) = capfd.readouterr().err.splitlines()
    assert "hf:owner/name: could not be reached (OfflineModeIsEnabled: " in note
    assert hub.loads == []  # nor is `datasets` asked to try for half a minute


@pytest.mark.parametrize("damage", ["[", '["/nowhere/a.arrow"]', "3"])
def test_a_memory_of_what_is_gone_is_no_memory(damage: str, hub: Hub, tmp_path: Path) -> None:
    texts("hf:owner/name", tmp_path)
    for memory in (tmp_path / "data" / "downloads").glob("*.json"):
        memory.write_text(damage)
    hub.online = False
    with pytest.raises(UserError, match="could not be fetched"):
        texts("hf:owner/name", tmp_path)
