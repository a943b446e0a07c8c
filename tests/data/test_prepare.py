"""Preparation: tokens that decode to the documents, folders that are complete and reused, after any interruption."""

import hashlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minigpt.config import DataConfig
from minigpt.data import prepare as prepare_module
from minigpt.data import tokenising
from minigpt.data.prepare import prepare
from minigpt.data.relations import read_relations
from minigpt.data.shards import Split
from minigpt.data.sources import scan as scan_module
from minigpt.data.sources.rows import TEXT_CHUNK
from minigpt.data.synthetic.texts import SYNTHETIC
from minigpt.data.tokenizers.base import BytesTokenizer, Tokenizer, decode, save_tokenizer
from minigpt.errors import UserError

TEXTS = [f"document {i}: " + "naïve words " * (i + 1) for i in range(30)]


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Thirty small documents, a tenth held out."""
    for i, text in enumerate(TEXTS):
        put(tmp_path / "texts" / f"{i:02}.txt", text)
    return DataConfig(
        source=str(tmp_path / "texts"), tokenizer="bytes", val_fraction=0.1, dir=str(tmp_path / "prepared")
    )


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts_of(split: Split, tokenizer: Tokenizer) -> list[str]:
    """The documents of a split, cut where it says that they start."""
    ends = [*split.document_starts[1:], len(split.tokens)]
    chunks = [split.tokens.read(a, b).tolist() for a, b in zip(split.document_starts, ends, strict=True)]
    assert all(chunk[-1] == tokenizer.end_of_text for chunk in chunks)
    assert all(tokenizer.end_of_text not in chunk[:-1] for chunk in chunks)
    return [decode(tokenizer, chunk[:-1]) for chunk in chunks]


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder, with a digest of what is in it."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Which files a folder holds, and when they were written."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


def folders_in(config: DataConfig) -> list[str]:
    """Folders in data.dir, those that are being prepared among them."""
    root = Path(config.dir)
    return (
        sorted(path.name for path in root.iterdir() if path.is_dir() and path.name != "huggingface")
        if root.is_dir()
        else []
    )


def refusal(config: DataConfig) -> str:
    """The one line that refuses a text; nothing is left of it."""
    before = folders_in(config)
    with pytest.raises(UserError) as caught:
        prepare(config, quiet=True)
    assert "\n" not in str(caught.value)
    assert folders_in(config) == before
    root = Path(config.dir)
    assert not root.is_dir() or not [path for path in root.rglob("*") if path.name.endswith(".tmp")]
    return str(caught.value)


def in_child(run: Callable[[], None]) -> int:
    """Call a function in a copy of this process; returns how it ended, as of subprocess."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            run()
            code = 0
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# What is prepared


def test_the_tokens_of_the_splits_decode_to_the_documents_in_order(config: DataConfig) -> None:
    data = prepare(config)
    train, val = texts_of(data.train, data.tokenizer), texts_of(data.val, data.tokenizer)
    assert train == [text for text in TEXTS if text not in val]
    assert val == [text for text in TEXTS if text not in train]
    assert len(train) + len(val) == 30
    assert val


def test_the_manifest_counts_what_is_there(config: DataConfig) -> None:
    data = prepare(config)
    for split, files in ((data.train, data.manifest.train), (data.val, data.manifest.val)):
        assert (files.n_tokens, files.n_documents) == (len(split.tokens), len(split.document_starts))
        # Bytes are tokens here, and each document has one end_of_text more.
        assert split.n_bytes == files.n_bytes == files.n_tokens - files.n_documents
    assert sum(split.n_bytes for split in (data.train, data.val)) == sum(len(text.encode()) for text in TEXTS)


def test_token_files_are_read_by_numpy_alone(config: DataConfig) -> None:
    data = prepare(config)
    for split, files in ((data.train, data.manifest.train), (data.val, data.manifest.val)):
        shards = [np.memmap(data.folder / name, dtype=data.manifest.token_type, mode="r") for name in files.shards]
        assert np.array_equal(np.concatenate(shards), split.tokens.read(0, len(split.tokens)))
        assert np.array_equal(np.load(data.folder / files.documents), split.document_starts)


def test_a_document_longer_than_a_piece_is_one_document(config: DataConfig, tmp_path: Path) -> None:
    text = "".join(f"line {i} of a long text\n" for i in range(3 * TEXT_CHUNK // 20))
    path = put(tmp_path / "long" / "b.txt", text)
    put(tmp_path / "long" / "a.txt", "short")
    data = prepare(replace(config, source=[str(path.parent), str(config.source)]))
    texts = texts_of(data.train, data.tokenizer) + texts_of(data.val, data.tokenizer)
    assert sorted(texts) == sorted([text, "short", *TEXTS])


def test_a_single_long_text_is_cut_once_and_nothing_of_it_is_lost(config: DataConfig, tmp_path: Path) -> None:
    text = "".join(f"line {i} of a naïve text\r\n" for i in range(3 * TEXT_CHUNK // 20))
    data = prepare(replace(config, source=str(put(tmp_path / "long.txt", text))))
    ((train,), (val,)) = (texts_of(split, data.tokenizer) for split in (data.train, data.val))
    assert train + val == text
    assert val.startswith("line ")


def test_each_sources_part_of_a_split_is_known(config: DataConfig, tmp_path: Path) -> None:
    rows = [f"row {i}" for i in range(50)]
    path = put(tmp_path / "rows.jsonl", "".join(json.dumps({"text": row}) + "\n" for row in rows))
    data = prepare(replace(config, source=[str(path), str(config.source)], weights=[1.0, 3.0]))
    assert [part.name for part in data.train.sources] == [str(path), config.source]
    for split in (data.train, data.val):
        texts, tokens, documents = texts_of(split, data.tokenizer), 0, 0
        for part in split.sources:
            assert (part.first_token, part.first_document) == (tokens, documents)
            mine = texts[documents : documents + part.n_documents]
            assert set(mine) <= set(rows if part.name == str(path) else TEXTS)
            assert part.n_bytes == sum(len(text.encode()) for text in mine) == part.n_tokens - part.n_documents
            tokens, documents = tokens + part.n_tokens, documents + part.n_documents
        assert (tokens, documents) == (len(split.tokens), len(split.document_starts))


def test_a_source_of_which_no_document_is_left_keeps_its_place(config: DataConfig, tmp_path: Path) -> None:
    blank = put(tmp_path / "blank.txt", " \n")
    data = prepare(replace(config, source=[str(config.source), str(blank)]))
    assert [(part.name, part.n_documents) for part in data.train.sources][1] == (str(blank), 0)


@pytest.mark.parametrize("name", ["repeats", "references", "references:7"])
def test_a_synthetic_source_comes_with_its_ground_truth(name: str, config: DataConfig) -> None:
    data = prepare(replace(config, source=name, max_documents=60))
    kind, _, seed = name.partition(":")
    expected = dict(pair for pair, _ in zip(SYNTHETIC[kind](int(seed or 0)), range(60), strict=False))
    seen = {}
    for side, split in (("train", data.train), ("val", data.val)):
        examples = list(read_relations(data.folder / f"{side}.relations.jsonl"))
        assert [text for text, _ in examples] == texts_of(split, data.tokenizer)
        seen |= {text: list(relations) for text, relations in examples}
        assert f"{side}.relations.jsonl" in data.manifest.files
    assert seen == {text: list(relations) for text, relations in expected.items()}


def test_a_bpe_learns_from_the_train_split_alone(config: DataConfig, tmp_path: Path) -> None:
    held = put(tmp_path / "held.txt", "qqqqqqqqqqqqqqqq " * 500)
    data = prepare(replace(config, tokenizer="bpe:300", val_source=str(held)))
    assert "qq" not in [decode(data.tokenizer, [token]) for token in range(data.manifest.vocab_size)]
    assert texts_of(data.val, data.tokenizer) == [held.read_text()]


def test_an_alphabet_holds_the_characters_of_val_too(config: DataConfig, tmp_path: Path) -> None:
    data = prepare(replace(config, tokenizer="chars", val_source=str(put(tmp_path / "held.txt", "Ω and ψ"))))
    assert texts_of(data.val, data.tokenizer) == ["Ω and ψ"]


class WideTokenizer(BytesTokenizer):
    """Bytes, moved to the end of a large vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.end_of_text = vocab_size, vocab_size - 1

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int64) + self.end_of_text - 256 for text in texts]


@pytest.mark.parametrize(
    ("vocab_size", "token_type", "dtype"),
    [
        (257, "auto", np.uint16),
        (2**16, "auto", np.uint16),
        (2**16 + 1, "auto", np.uint32),
        (200_000, "auto", np.uint32),
        (257, "uint32", np.uint32),
        (2**16, "uint16", np.uint16),
    ],
)
def test_tokens_have_the_smallest_type_that_holds_the_vocabulary_or_the_one_that_is_asked_for(
    vocab_size: int, token_type: str, dtype: type, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = WideTokenizer(vocab_size)
    monkeypatch.setattr(tokenising, "make_tokenizer", lambda *_: wide)
    monkeypatch.setattr(tokenising, "load_tokenizer", lambda *_: wide)
    monkeypatch.setattr("minigpt.data.shards.load_tokenizer", lambda *_: wide)
    tokens = prepare(replace(config, token_type=token_type)).train.tokens  # type: ignore[arg-type]
    found = tokens.read(0, len(tokens))
    assert found.dtype == dtype
    assert found.max() == vocab_size - 1
    assert found[0] == vocab_size - 257 + ord("d")


def test_a_vocabulary_too_large_for_the_type_is_refused(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenising, "load_tokenizer", lambda *_: WideTokenizer(2**16 + 1))
    message = refusal(replace(config, token_type="uint16"))
    assert "data.token_type=uint16: holds 65536 different tokens, but the tokenizer has 65537" in message


# Validation


def test_a_text_of_its_own_validates_without_what_train_has(config: DataConfig, tmp_path: Path) -> None:
    for i, text in enumerate(["new", TEXTS[3], "newer", TEXTS[20]]):
        put(tmp_path / "held" / f"{i}.txt", text)
    data = prepare(replace(config, val_source=str(tmp_path / "held")))
    assert texts_of(data.train, data.tokenizer) == TEXTS
    assert texts_of(data.val, data.tokenizer) == ["new", "newer"]
    assert data.manifest.duplicates_left_out == 2
    assert [part.name for part in data.val.sources] == [str(tmp_path / "held")]


def test_a_text_to_validate_on_that_train_has_whole_is_refused(config: DataConfig) -> None:
    message = refusal(replace(config, val_source=f"{config.source}/03.txt"))
    assert "each text of it is in the train split too; name another text" in message


def test_a_source_to_train_on_and_one_to_validate_on_are_not_two_to_train_on(
    config: DataConfig, tmp_path: Path
) -> None:
    held = str(put(tmp_path / "held.txt", "held out"))
    both, apart = prepare(replace(config, source=[str(config.source), held])), prepare(replace(config, val_source=held))
    assert both.folder != apart.folder
    assert texts_of(apart.val, apart.tokenizer) == ["held out"]


# Prepared once, and noticed when something changes


@pytest.fixture
def count_work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read or tokenised, in order."""
    work: list[str] = []
    scan, encode = scan_module.scan, BytesTokenizer.encode_batch
    monkeypatch.setattr(scan_module, "scan", lambda file: (work.append(file.path.name), scan(file))[1])
    monkeypatch.setattr(
        BytesTokenizer, "encode_batch", lambda self, texts: (work.append(f"{len(texts)} texts"), encode(self, texts))[1]
    )
    return work


def test_an_unchanged_text_is_neither_prepared_nor_read_again(config: DataConfig, count_work: list[str]) -> None:
    first = prepare(config)
    before = state_of(first.folder)
    assert "30 texts" in count_work
    count_work.clear()
    assert prepare(config).folder == first.folder
    assert state_of(first.folder) == before
    assert count_work == []


def test_a_changed_file_is_prepared_anew_beside_the_old(config: DataConfig, count_work: list[str]) -> None:
    first = prepare(config)
    before = state_of(first.folder)
    put(Path(str(config.source)) / "03.txt", "another text")
    count_work.clear()
    second = prepare(config)
    assert second.folder != first.folder
    assert "another text" in texts_of(second.train, second.tokenizer) + texts_of(second.val, second.tokenizer)
    assert state_of(first.folder) == before
    assert [name for name in count_work if name.endswith(".txt")] == ["03.txt"]


def test_a_change_is_noticed_though_length_and_time_are_set_back(config: DataConfig) -> None:
    path = Path(str(config.source)) / "03.txt"
    os.utime(path, (1e9, 1e9))
    first = prepare(config)
    path.write_bytes(path.read_bytes().replace(b"naive", b"wrong").replace(b"document", b"Document"))
    os.utime(path, (1e9, 1e9))
    assert prepare(config).folder != first.folder


def test_a_text_that_is_only_touched_is_not_prepared_again(config: DataConfig, count_work: list[str]) -> None:
    first = prepare(config)
    for path in Path(str(config.source)).iterdir():
        path.touch()
    count_work.clear()
    assert prepare(config).folder == first.folder
    assert "30 texts" not in count_work


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer": "chars"},
        {"val_fraction": 0.4},
        {"max_documents": 20},
        {"token_type": "uint32"},
        {"encoding_errors": "replace"},
        {"encoding": "cp1252"},
        {"delimiter": ";"},
        {"val_source": "README.md"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_are_prepared_beside_each_other(change: dict[str, object], config: DataConfig) -> None:
    first, second = prepare(config), prepare(replace(config, **change))  # type: ignore[arg-type]
    assert first.folder != second.folder
    assert len(folders_in(config)) == 2


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 3}, {"num_workers": 1}, {"mode": "examples"}, {"weights": [2.0]}],
    ids=lambda c: next(iter(c)),
)
def test_settings_that_do_not_touch_the_tokens_reuse_them(change: dict[str, object], config: DataConfig) -> None:
    assert prepare(config).folder == prepare(replace(config, **change)).folder  # type: ignore[arg-type]


def test_the_order_of_the_file_system_changes_neither_folder_nor_tokens(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rglob = prepare(config), Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: sorted(rglob(self, pattern), reverse=True))
    assert prepare(config).folder == before.folder


def test_the_same_text_elsewhere_is_the_same_text(config: DataConfig, tmp_path: Path) -> None:
    before = contents(prepare(config).folder)
    other = tmp_path / "elsewhere" / "texts"
    shutil.copytree(str(config.source), other)
    again = replace(config, source=str(other), dir=str(tmp_path / "other"))
    after = contents(prepare(again).folder)
    assert before.pop("manifest.json") != after.pop("manifest.json")  # it names the source
    assert before == after


def test_a_folder_name_tells_text_and_tokenizer(config: DataConfig) -> None:
    assert prepare(config).folder.name.startswith("texts-bytes-")


def test_a_prepared_folder_is_a_source_without_the_text(config: DataConfig, tmp_path: Path) -> None:
    data = prepare(config)
    shutil.rmtree(str(config.source))
    moved = data.folder.rename(tmp_path / "moved")
    opened = prepare(replace(config, source=str(moved)))
    assert opened.manifest == data.manifest
    assert texts_of(opened.val, opened.tokenizer) == texts_of(data.val, data.tokenizer)


@pytest.mark.parametrize("settings", [{"source": ["{}", "README.md"]}, {"source": "README.md", "val_source": "{}"}])
def test_a_prepared_folder_is_no_part_of_a_mixture(settings: dict, config: DataConfig) -> None:
    folder = str(prepare(config).folder)
    filled = {
        k: [n.format(folder) for n in v] if isinstance(v, list) else v.format(folder) for k, v in settings.items()
    }
    assert "is a prepared folder, with a val split: it can only be the one source" in refusal(replace(config, **filled))


def test_preparing_the_folder_that_data_dir_lies_in_comes_to_an_end(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(config.source))
    here = replace(config, source=".", dir="data")
    first = prepare(here)
    assert len(texts_of(first.train, first.tokenizer)) + len(texts_of(first.val, first.tokenizer)) == 30
    assert prepare(here).folder == first.folder


def test_a_tokenizer_file_of_ours_is_used_and_its_content_counts(config: DataConfig, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    save_tokenizer(BytesTokenizer(), path)
    with_bytes = prepare(replace(config, tokenizer=str(path)))
    assert with_bytes.manifest.vocab_size == 257
    assert texts_of(with_bytes.val, with_bytes.tokenizer) == texts_of(prepare(config).val, BytesTokenizer())
    save_tokenizer(prepare(replace(config, tokenizer="chars")).tokenizer, path)
    assert prepare(replace(config, tokenizer=str(path))).folder != with_bytes.folder


def test_a_missing_tokenizer_file_is_refused_before_anything_is_written(config: DataConfig) -> None:
    assert "data.tokenizer=nowhere.json: no such file" in refusal(replace(config, tokenizer="nowhere.json"))


def test_a_bpe_learns_from_an_evenly_spread_sample_of_a_large_text(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As many bytes as its vocabulary calls for: of a single document, of many, and of train alone."""
    learned_from: list[list[str]] = []
    make = tokenising.make_tokenizer

    def watched(name: str, train: Iterable[str], all_texts: Iterable[str]) -> Tokenizer:
        learned_from.append(list(train))
        return make(name, learned_from[-1], all_texts)

    monkeypatch.setattr(tokenising, "make_tokenizer", watched)
    monkeypatch.setattr(tokenising, "BPE_BYTES_PER_TOKEN", 100)
    monkeypatch.setattr(tokenising, "SAMPLE_CHARACTERS", 500)
    lines = [f"line {i} of this text is one of {i * i}" for i in range(3000)]
    one, many, val = (tmp_path / name for name in ("one.txt", "many.jsonl", "val.txt"))
    one.write_text("\n".join(lines))
    many.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    val.write_text("something else\n" * 30_000)
    for source in (one, many):
        text = replace(config, source=str(source), val_source=str(val), tokenizer="bpe:280")
        prepare(text)
        sample = "\n".join(learned_from.pop())
        n_bytes = sum(map(len, lines))
        assert len(sample) == pytest.approx(28_000, rel=0.15)
        assert f"bpe:280, on 0.0 of {n_bytes / 1e6:.1f} MB" in capsys.readouterr().out
        places = [int(place) for place in re.findall(r"line (\d+) of this text", sample)]
        assert max(b - a for a, b in itertools.pairwise([0, *places, 3000])) < 200
    prepare(replace(text, tokenizer="bpe:1500"))
    assert "".join(learned_from.pop()) == "".join(lines), "all that there is"


def test_a_bpe_is_trained_once_and_comes_with_the_folder(config: DataConfig, capsys: pytest.CaptureFixture) -> None:
    data = prepare(replace(config, tokenizer="bpe:280"))
    assert "training a byte-level BPE, bpe:280" in capsys.readouterr().out
    again = prepare(replace(config, tokenizer="bpe:280"))
    assert capsys.readouterr().out == ""
    assert again.tokenizer.vocab_size == data.manifest.vocab_size == 280
    assert again.tokenizer.to_dict() == data.tokenizer.to_dict()


def test_quiet_preparation_says_nothing(config: DataConfig, capfd: pytest.CaptureFixture) -> None:
    prepare(replace(config, tokenizer="bpe:280"), quiet=True)
    assert capfd.readouterr() == ("", "")


# Interruptions

MOMENTS = [
    "_encode:1",
    "_encode:2",
    "_encode:6",
    "survey",
    "assign",
    "save_tokenizer",
    "write_text:1",
    "write_text:2",
    "_join_files:1",
    "_join_files:2",
    "_sha256:2",
    "Manifest",
    "Tokenising._clean",
]


def interrupted(config: DataConfig, where: str, how: signal.Signals = signal.SIGKILL) -> int:
    """Prepare in a process of its own, which dies before some call of a function; returns how it ended."""
    name, _, number = where.partition(":")
    owner_name, _, name = name.rpartition(".")
    owner = getattr(tokenising, owner_name) if owner_name else tokenising
    function, calls = getattr(owner, name), 0

    def deadly(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == int(number or 1):
            os.kill(os.getpid(), how)
        return function(*arguments, **options)

    def run() -> None:
        setattr(owner, name, deadly)
        prepare(config, quiet=True)

    return in_child(run)


@pytest.fixture
def small_units(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """Documents of which some are longer than a unit; units of a few documents."""
    monkeypatch.setattr(tokenising, "UNIT_BYTES", 3000)
    monkeypatch.setattr(tokenising, "BATCH_CHARACTERS", 700)
    put(Path(str(config.source)) / "00.txt", "a long document, " * 500)
    return config


def test_units_of_any_size_hold_the_same_tokens(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    put(Path(str(config.source)) / "07.txt", "".join(f"a long document in {i} lines\n" for i in range(TEXT_CHUNK // 8)))
    whole = prepare(config)
    monkeypatch.setattr(tokenising, "UNIT_BYTES", 5000)
    monkeypatch.setattr(tokenising, "BATCH_CHARACTERS", 500)
    parts = prepare(replace(config, dir=f"{config.dir}2"))
    assert len(parts.manifest.train.shards) > 3
    for one, other in ((whole.train, parts.train), (whole.val, parts.val)):
        assert np.array_equal(one.tokens.read(0, len(one.tokens)), other.tokens.read(0, len(other.tokens)))
        assert np.array_equal(one.document_starts, other.document_starts)
        assert one.sources == other.sources


def test_a_long_text_has_no_more_shards_than_may_be_open_at_once(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenising, "UNIT_BYTES", 1)
    monkeypatch.setattr(tokenising, "BATCH_CHARACTERS", 1)
    monkeypatch.setattr(tokenising, "MOST_UNITS", 3)
    assert 2 <= len(prepare(config).manifest.train.shards) <= 3


@pytest.mark.parametrize("source", ["texts", "references:3"])
@pytest.mark.parametrize("where", MOMENTS)
def test_a_preparation_that_is_killed_goes_on_to_the_same_files(
    where: str, source: str, small_units: DataConfig, tmp_path: Path
) -> None:
    config = small_units if source == "texts" else replace(small_units, source=source, max_documents=60)
    undisturbed = prepare(replace(config, dir=str(tmp_path / "undisturbed")))
    assert interrupted(config, where) == -signal.SIGKILL
    (left,) = folders_in(config)
    assert left.startswith(".preparing-")
    data = prepare(config)
    assert contents(data.folder) == contents(undisturbed.folder)
    assert folders_in(config) == [data.folder.name]


def test_a_preparation_that_is_killed_again_and_again_comes_to_its_end(small_units: DataConfig, tmp_path: Path) -> None:
    undisturbed = prepare(replace(small_units, dir=str(tmp_path / "undisturbed")))
    for where in (*MOMENTS, *MOMENTS):
        interrupted(small_units, where)
    assert contents(prepare(small_units).folder) == contents(undisturbed.folder)


def test_finished_units_are_not_tokenised_again(small_units: DataConfig, count_work: list[str]) -> None:
    prepare(replace(small_units, dir=f"{small_units.dir}2"))
    batches = [work for work in count_work if work.endswith("texts")]
    count_work.clear()
    assert interrupted(small_units, "_encode:7") == -signal.SIGKILL
    prepare(small_units)
    again = [work for work in count_work if work.endswith("texts")]
    assert again == batches[-len(again) :]
    assert 0 < len(again) <= len(batches) - 4


def test_a_preparation_that_is_interrupted_with_the_keyboard_goes_on(small_units: DataConfig, tmp_path: Path) -> None:
    undisturbed = prepare(replace(small_units, dir=str(tmp_path / "undisturbed")))
    assert interrupted(small_units, "_encode:5", signal.SIGINT) == 130
    assert len(folders_in(small_units)) == 1
    assert contents(prepare(small_units).folder) == contents(undisturbed.folder)


def test_a_preparation_of_a_text_that_was_changed_meanwhile_begins_anew(small_units: DataConfig) -> None:
    interrupted(small_units, "_encode:5")
    put(Path(str(small_units.source)) / "29.txt", "another text")
    data = prepare(small_units)
    assert "another text" in texts_of(data.train, data.tokenizer) + texts_of(data.val, data.tokenizer)


def test_what_was_left_long_ago_is_swept_away(config: DataConfig) -> None:
    old, fresh = (put(Path(config.dir) / f".preparing-{name}" / "f", "").parent for name in ("old", "fresh"))
    os.utime(old, (time.time() - prepare_module.STALE_SECONDS - 60,) * 2)
    prepare(config)
    assert not old.exists()
    assert fresh.exists()


def test_of_two_processes_one_prepares_and_the_other_says_that_it_waits(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    ready, go_on, encode = threading.Event(), threading.Event(), BytesTokenizer.encode_batch
    calls = []

    def slow(self: BytesTokenizer, texts: Sequence[str]) -> list[np.ndarray]:
        calls.append(len(texts))
        ready.set()
        assert go_on.wait(240)
        return encode(self, texts)

    monkeypatch.setattr(BytesTokenizer, "encode_batch", slow)
    found: list[Path] = []
    first = threading.Thread(target=lambda: found.append(prepare(config, quiet=True).folder))
    first.start()
    assert ready.wait(240)
    script = "import sys; from minigpt.config import DataConfig; from minigpt.data.prepare import prepare\n"
    script += (
        "print(prepare(DataConfig(source=sys.argv[1], tokenizer='bytes', val_fraction=0.1, dir=sys.argv[2])).folder)"
    )
    command = [sys.executable, "-c", script, str(config.source), config.dir]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as second:
        assert second.stderr is not None
        assert second.stderr.readline() == "another process is preparing the same text: waiting for it\n"
        assert second.poll() is None
        go_on.set()
        out, errors = second.communicate(timeout=240)
    first.join(240)
    assert (out, errors) == (f"{found[0]}\n", "")
    assert calls == [30]
    assert folders_in(config) == [found[0].name]


# What goes wrong


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), UserError("broken")])
def test_a_preparation_that_fails_leaves_no_folder_behind(
    error: Exception, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, texts: object) -> None:
        raise error

    monkeypatch.setattr(BytesTokenizer, "encode_batch", fail)
    message = refusal(config)
    if isinstance(error, OSError):
        assert "no space left on device" in message
        assert "MB are free" in message
    monkeypatch.undo()
    assert len(prepare(config).train.tokens) > 0


@pytest.mark.parametrize("most", [1000, 20_000, 60_000])
def test_a_file_that_grows_too_large_is_said_with_what_is_free(
    most: int, config: DataConfig, capfd: pytest.CaptureFixture
) -> None:
    put(Path(str(config.source)) / "00.txt", "a long document, " * 10_000)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        with pytest.raises(UserError) as caught:
            prepare(config, quiet=True)
        print(caught.value, flush=True)

    assert in_child(limited) == 0
    (message,) = capfd.readouterr().out.splitlines()
    assert "file too large" in message.lower()
    assert "could not be written (" in message
    if most > 10_000:
        assert "MB are free" in message
    assert folders_in(config) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no disk may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("documents", [1, 60_000])
def test_a_small_disk_is_filled_without_a_crash(documents: int, small_disk: Path, config: DataConfig) -> None:
    text = "x" * 1_000_000 if documents == 1 else "x"
    path = put(Path(str(config.source)).parent / "rows.jsonl", (json.dumps({"text": text}) + "\n") * documents)
    put(small_disk / "of the user", "y" * 300_000)
    message = refusal(replace(config, source=[str(path), str(config.source)], dir=str(small_disk / "data")))
    assert "no space left on device" in message.lower()
    assert (small_disk / "of the user").stat().st_size == 300_000


def test_white_space_alone_is_refused(config: DataConfig, tmp_path: Path) -> None:
    blank = put(tmp_path / "blank.txt", " \r\n\t\n")
    assert "blank.txt: no text in it, nothing but white space" in refusal(replace(config, source=str(blank)))


def test_a_text_of_one_character_is_refused(config: DataConfig, tmp_path: Path) -> None:
    message = refusal(replace(config, source=str(put(tmp_path / "x.txt", "x"))))
    assert "the text is too short (1 bytes) to hold out a part of it" in message


def test_broken_files_that_are_skipped_are_in_the_manifest_and_told(
    config: DataConfig, capsys: pytest.CaptureFixture
) -> None:
    broken = put(Path(str(config.source)) / "13.txt", b"caf\xe9")
    assert "13.txt is not UTF-8 text (byte 3)" in refusal(config)
    data = prepare(replace(config, encoding_errors="skip"))
    assert data.manifest.skipped_files == (str(broken),)
    assert len(data.train.document_starts) + len(data.val.document_starts) == 29
    assert f"note: 1 files are skipped because they are not utf-8, such as {broken}" in capsys.readouterr().err
    replaced = prepare(replace(config, encoding_errors="replace"))
    told = f"note: data.source={config.source}: 1 character not in utf-8 replaced by U+FFFD, in {broken}\n"
    assert told in capsys.readouterr().err
    prepare(replace(config, encoding_errors="replace"))
    assert capsys.readouterr().err == ""
    assert "caf\ufffd" in texts_of(replaced.train, replaced.tokenizer) + texts_of(replaced.val, replaced.tokenizer)


@pytest.mark.parametrize("moment", ["survey", "_encode"])
@pytest.mark.parametrize("change", ["other words", "one more", "gone"])
def test_a_text_that_changes_while_it_is_prepared_is_refused(
    change: str, moment: str, config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "rows.jsonl", '{"text": "one"}\n{"text": "two"}\n{"text": "six"}\n')
    function = getattr(tokenising, moment)

    def meanwhile(*arguments: object) -> object:
        match change:
            case "gone":
                path.unlink(missing_ok=True)
            case "one more":
                put(path, '{"text": "one"}\n{"text": "two"}\n{"text": "six"}\n{"text": "ten"}\n')
            case _:
                put(path, '{"text": "one"}\n{"text": "2wo"}\n{"text": "six"}\n')
        return function(*arguments)

    monkeypatch.setattr(tokenising, moment, meanwhile)
    message = refusal(replace(config, source=str(path)))
    assert "the text changed while it was read" in message or "rows.jsonl: no such file" in message


def test_a_folder_without_its_manifest_is_not_overwritten(config: DataConfig) -> None:
    folder = prepare(config).folder
    (folder / "manifest.json").unlink()
    before = state_of(folder)
    assert "has no manifest.json: delete the folder, and it will be prepared anew" in refusal(config)
    assert state_of(folder) == before


@pytest.mark.parametrize("place", ["file/data", "file"])
def test_a_data_folder_that_cannot_be_made_is_refused_in_one_line(
    place: str, config: DataConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"data\.dir=.*{place}: cannot be made") as caught:
        prepare(replace(config, dir=str(tmp_path / place)))
    assert "\n" not in str(caught.value)


def test_a_data_folder_that_cannot_be_written_is_refused_in_one_line(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    Path(config.dir).mkdir()
    for name in ("filelock._unix.os.open", "tempfile.mkstemp"):
        monkeypatch.setattr(name, forbidden)
    assert "could not be written (permission denied" in refusal(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tokenizer"),
    [
        ("text", "bytes"),
        ("text", "bpe:300"),
        ("small rows", "bytes"),
        ("large rows", "bytes"),
        ("large rows", "bpe:300"),
        ("parquet", "bytes"),
    ],
)
def test_a_large_text_is_prepared_in_bounded_memory(kind: str, tokenizer: str, tmp_path: Path) -> None:
    line = "".join(f"Some words of line {i}, not all the same.\n" for i in range(25_000))  # about a megabyte
    path = tmp_path / {"text": "a.txt", "parquet": "a.parquet"}.get(kind, "a.jsonl")
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": [f"{i} {line[:1000]}" for i in range(300_000)]}), path, row_group_size=300_000)
    else:
        with path.open("w") as file:
            for i in range(5 if kind == "large rows" else 300):
                if kind == "text":
                    file.write(line)
                elif kind == "large rows":
                    file.write(json.dumps({"text": f"{i} {line * 60}"}) + "\n")
                else:
                    file.writelines(json.dumps({"text": f"{i} {row}"}) + "\n" for row in line.split("7."))
    script = "import sys; from minigpt.config import *; from minigpt.data.prepare import prepare\n"
    script += "data = prepare(DataConfig(source=sys.argv[1], tokenizer=sys.argv[2], dir=sys.argv[3]), quiet=True)\n"
    script += "print(data.train.n_bytes + data.val.n_bytes)\n"
    script += "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    command = [sys.executable, "-c", script, str(path), tokenizer, str(tmp_path / "data")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    n_bytes, kilobytes = map(int, result.stdout.split())
    assert n_bytes > 250 << 20
    assert kilobytes < (1 << 20 if kind != "large rows" else 2 << 20)
