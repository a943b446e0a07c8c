"""Preparation: an honest split, tokens that decode to the documents, and folders that are complete and reused."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minigpt.config import DataConfig, UserError
from minigpt.data import prepare as prepare_module
from minigpt.data.prepare import PreparedData, Split, open_prepared, prepare, split_documents
from minigpt.data.sources import Document, fingerprint, load_documents
from minigpt.data.tokenizer import BytesTokenizer, Tokenizer, decode, save_tokenizer

MANY = [Document(f"{i:03}", f"text number {i}") for i in range(400)]


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Thirty small documents, a tenth held out."""
    for i in range(30):
        path = tmp_path / "texts" / f"{i:02}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"document {i}: " + "naïve words " * (i + 1))
    return DataConfig(
        source=str(tmp_path / "texts"), tokenizer="bytes", val_fraction=0.1, dir=str(tmp_path / "prepared")
    )


def texts_of(split: Split, tokenizer: Tokenizer) -> list[str]:
    """The documents of a split, cut where it says that they start."""
    ends = [*split.document_starts[1:], len(split.tokens)]
    pieces = [split.tokens[a:b].tolist() for a, b in zip(split.document_starts, ends, strict=True)]
    assert all(piece[-1] == tokenizer.end_of_text for piece in pieces)
    return [decode(tokenizer, piece[:-1]) for piece in pieces]


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Which files a folder holds, and when they were written."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


def folders_in(config: DataConfig) -> list[str]:
    return sorted(path.name for path in Path(config.dir).iterdir() if path.name != "huggingface")


def test_train_and_val_share_no_document_and_lose_none() -> None:
    train, val = split_documents(MANY, 0.1)
    assert not set(train) & set(val)
    assert sorted([*train, *val], key=lambda d: d.name) == MANY
    assert 20 <= len(val) <= 60


def test_equal_texts_end_on_the_same_side() -> None:
    copies = [Document(f"copy of {d.name}", d.text) for d in MANY]
    train, val = split_documents([*MANY, *copies], 0.1)
    assert not {d.text for d in train} & {d.text for d in val}


def test_documents_stay_on_their_side_when_others_are_added() -> None:
    few_train, few_val = split_documents(MANY[::2], 0.1)
    train, val = split_documents(MANY, 0.1)
    assert set(few_train) <= set(train)
    assert set(few_val) <= set(val)


def test_a_larger_val_fraction_only_adds_to_val() -> None:
    assert set(split_documents(MANY, 0.1)[1]) < set(split_documents(MANY, 0.3)[1])


@pytest.mark.parametrize("val_fraction", [1e-9, 0.5, 1 - 1e-9])
def test_of_two_documents_one_is_on_each_side(val_fraction: float) -> None:
    train, val = split_documents(MANY[:2], val_fraction)
    assert (len(train), len(val)) == (1, 1)


def test_a_single_document_is_cut_near_its_end_where_a_line_begins() -> None:
    text = "".join(f"line {i}\n" for i in range(100))
    train, val = split_documents([Document("one", text)], 0.1)
    assert train[0].text + val[0].text == text
    assert val[0].text.startswith("line 90\n")
    assert 0.1 <= len(val[0].text) / len(text) < 0.12


def test_a_single_document_without_lines_is_cut_at_the_fraction() -> None:
    train, val = split_documents([Document("one", "x" * 100)], 0.25)
    assert (len(train[0].text), len(val[0].text)) == (75, 25)


def test_a_document_given_twice_is_still_one_text_and_is_cut() -> None:
    train, val = split_documents([Document("one", "x" * 100), Document("again", "x" * 100)], 0.25)
    assert (train[0].text + val[0].text, len(train), len(val)) == ("x" * 100, 1, 1)


def test_a_text_too_short_to_hold_out_a_part_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"data\.source: one is too short \(1 characters\)"):
        split_documents([Document("one", "x")], 0.05)


def test_the_tokens_of_a_split_decode_to_its_documents_in_order(config: DataConfig) -> None:
    data = prepare(config)
    documents = load_documents(config.source, Path(config.dir))
    train, val = split_documents(documents, 0.1)
    assert texts_of(data.train, data.tokenizer) == [d.text for d in train]
    assert texts_of(data.val, data.tokenizer) == [d.text for d in val]


def test_the_manifest_counts_what_is_there(config: DataConfig) -> None:
    data = prepare(config)
    manifest = data.manifest
    assert (manifest.train_tokens, manifest.val_tokens) == (len(data.train.tokens), len(data.val.tokens))
    assert (manifest.train_documents, manifest.val_documents) == (
        len(data.train.document_starts),
        len(data.val.document_starts),
    )
    # Bytes are tokens here, and each document has one end_of_text more.
    assert data.train.n_bytes == manifest.train_bytes == manifest.train_tokens - manifest.train_documents
    assert data.val.n_bytes == manifest.val_bytes == manifest.val_tokens - manifest.val_documents


def test_tokens_are_memory_mapped_and_not_writable(config: DataConfig) -> None:
    data = prepare(config)
    assert isinstance(data.train.tokens, np.memmap)
    assert not data.train.tokens.flags.writeable


def test_an_unchanged_text_is_not_prepared_again(config: DataConfig) -> None:
    first = prepare(config)
    before = state_of(first.folder)
    second = prepare(config)
    assert second.folder == first.folder
    assert state_of(first.folder) == before


def test_a_changed_file_is_prepared_anew_beside_the_old(config: DataConfig) -> None:
    first = prepare(config)
    before = state_of(first.folder)
    (Path(str(config.source)) / "03.txt").write_text("another text")
    second = prepare(config)
    assert second.folder != first.folder
    assert "another text" in texts_of(second.train, second.tokenizer) + texts_of(second.val, second.tokenizer)
    assert state_of(first.folder) == before


@pytest.mark.parametrize(
    "change", [{"tokenizer": "chars"}, {"val_fraction": 0.4}, {"max_documents": 20}], ids=lambda c: next(iter(c))
)
def test_other_settings_are_prepared_beside_each_other(change: dict[str, object], config: DataConfig) -> None:
    first, second = prepare(config), prepare(replace(config, **change))  # type: ignore[arg-type]
    assert first.folder != second.folder
    assert len(folders_in(config)) == 2


@pytest.mark.parametrize("change", [{"batch_size": 3}, {"num_workers": 1}], ids=lambda c: next(iter(c)))
def test_settings_that_do_not_touch_the_tokens_reuse_them(change: dict[str, int], config: DataConfig) -> None:
    assert prepare(config).folder == prepare(replace(config, **change)).folder  # type: ignore[arg-type]


def test_a_tokenizer_file_of_ours_is_used_and_its_content_counts(config: DataConfig, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    save_tokenizer(BytesTokenizer(), path)
    with_bytes = prepare(replace(config, tokenizer=str(path)))
    assert with_bytes.manifest.vocab_size == 257
    assert texts_of(with_bytes.val, with_bytes.tokenizer) == texts_of(prepare(config).val, BytesTokenizer())
    save_tokenizer(prepare(replace(config, tokenizer="chars")).tokenizer, path)
    assert prepare(replace(config, tokenizer=str(path))).folder != with_bytes.folder


def test_a_missing_tokenizer_file_is_refused_before_anything_is_written(config: DataConfig) -> None:
    with pytest.raises(UserError, match=r"tokenizer nowhere\.json: no such file"):
        prepare(replace(config, tokenizer="nowhere.json"))
    assert folders_in(config) == []


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


@pytest.mark.parametrize("error", [MemoryError("broken"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_preparation_leaves_no_folder_behind(
    error: BaseException, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, texts: object) -> None:
        raise error

    monkeypatch.setattr(BytesTokenizer, "encode_batch", fail)
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        prepare(config)
    assert folders_in(config) == []
    monkeypatch.undo()
    assert len(prepare(config).train.tokens) > 0


def test_a_folder_that_another_process_finished_first_is_taken_as_it_is(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_folder = prepare_module._prepare_folder
    states = []

    def late(*arguments: object) -> None:
        prepare_folder(*arguments)  # type: ignore[arg-type]
        states.append(state_of(arguments[3]))  # type: ignore[arg-type]
        prepare_folder(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare_module, "_prepare_folder", late)
    data = prepare(config)
    assert state_of(data.folder) == states[0]
    assert folders_in(config) == [data.folder.name]


def test_the_order_of_the_file_system_changes_neither_folder_nor_tokens(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare(config)
    rglob = Path.rglob

    def backwards(self: Path, pattern: str) -> Iterator[Path]:
        yield from sorted(rglob(self, pattern), reverse=True)

    monkeypatch.setattr(Path, "rglob", backwards)
    assert fingerprint(load_documents(config.source, Path(config.dir))) == before.manifest.text_fingerprint
    assert prepare(config).folder == before.folder


def test_a_folder_name_tells_text_and_tokenizer(config: DataConfig) -> None:
    assert prepare(config).folder.name.startswith("texts-bytes-")


class WideTokenizer(BytesTokenizer):
    """Bytes, moved to the end of a large vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.end_of_text = vocab_size, vocab_size - 1

    def encode_batch(self, texts: list[str]) -> list[list[int]]:  # type: ignore[override]
        return [[self.end_of_text - 256 + byte for byte in text.encode()] for text in texts]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(257, np.uint16), (2**16, np.uint16), (2**16 + 1, np.uint32), (200_000, np.uint32)]
)
def test_tokens_have_the_smallest_type_that_holds_the_vocabulary(
    vocab_size: int, dtype: type, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "make_tokenizer", lambda *_: WideTokenizer(vocab_size))
    tokens = prepare(config).train.tokens
    assert tokens.dtype == dtype
    assert tokens.max() == vocab_size - 1
    assert tokens[0] == vocab_size - 257 + ord("d")


def test_long_texts_are_tokenised_in_several_batches_without_a_seam(tmp_path: Path) -> None:
    documents = [Document(str(i), chr(97 + i) * 700_000) for i in range(4)]
    batches = list(prepare_module._batches_of_text(documents))
    assert [d for batch in batches for d in batch] == documents
    assert len(batches) == 2
    counts = prepare_module._write_split(BytesTokenizer(), documents, tmp_path / "train", quiet=True)
    assert counts == (4 * 700_001, 4 * 700_000)
    assert np.load(tmp_path / "train.documents.npy").tolist() == [0, 700_001, 1_400_002, 2_100_003]


def test_a_prepared_folder_opens_without_its_source(config: DataConfig) -> None:
    data = prepare(config)
    for path in Path(str(config.source)).iterdir():
        path.unlink()
    opened: PreparedData = open_prepared(data.folder)
    assert opened.manifest == data.manifest
    assert np.array_equal(opened.train.tokens, data.train.tokens)


def test_the_manifest_is_plain_json_that_names_the_source(config: DataConfig) -> None:
    manifest = json.loads((prepare(config).folder / "manifest.json").read_text())
    assert (manifest["source"], manifest["tokenizer"]) == (config.source, "bytes")


def test_a_data_folder_that_cannot_be_made_is_refused_in_one_line(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.dir=.*file/data: cannot be made") as caught:
        prepare(replace(config, dir=str(tmp_path / "file" / "data")))
    assert "\n" not in str(caught.value)
