"""Layouts: of what `datasets` and hubs write, the train split is read, as it is of `hf:NAME`; and that is said."""

import shlex
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minigpt.data.sources.names import Source, find_source
from minigpt.errors import UserError


def put(path: Path, content: str = "some text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def parquet(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": [name]}), folder / name)


def found(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    source: Source = find_source(str(folder), folder.parent / "cache")
    return [file.path.relative_to(folder).as_posix() for file in source.files], source.notes


def save(folder: Path, *splits: str, shards: int = 1) -> None:
    content = datasets.Dataset.from_dict({"text": ["one", "two", "six"]})
    datasets.disable_progress_bars()
    datasets.DatasetDict(dict.fromkeys(splits, content)).save_to_disk(folder, num_shards=dict.fromkeys(splits, shards))


def test_of_a_dataset_dict_that_was_saved_train_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    save(tmp_path / "saved", "test", "train", "validation", shards=2)
    files, notes = found(tmp_path / "saved")
    assert files == [f"train/data-0000{i}-of-00002.arrow" for i in range(2)]
    (note,) = notes
    assert note.startswith(
        "the split 'train' is read, 'test', 'validation' not; to validate on one: --data.val_source "
    )
    (val,) = shlex.split(note.split("val_source ")[1])
    assert [f.path.parent.name for f in find_source(val, tmp_path).files] == ["validation"] * 2


def test_what_an_earlier_save_left_in_a_folder_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "saved" / "train"
    save(tmp_path / "saved", "train", shards=3)
    put(folder / "keep.txt", "")
    stale = folder / "data-00000-of-00003.arrow"
    kept = shutil.copy(stale, tmp_path / "stale")
    shutil.rmtree(tmp_path / "saved")
    save(tmp_path / "saved", "train")
    shutil.copy(kept, stale)
    assert found(folder)[0] == ["data-00000-of-00001.arrow"]
    assert found(tmp_path / "saved") == (["train/data-00000-of-00001.arrow"], ("the split 'train' is read",))


def test_splits_none_of_which_is_train_are_refused_unless_there_is_one(tmp_path: Path) -> None:
    save(tmp_path / "saved", "en", "fr")
    with pytest.raises(
        UserError, match=r"the splits 'en', 'fr' but no 'train': name the files of one, such as .*/en/dat"
    ):
        found(tmp_path / "saved")
    save(tmp_path / "one", "en")
    assert found(tmp_path / "one") == (["en/data-00000-of-00001.arrow"], ("the split 'en' is read",))


def clone(folder: Path, *names: str, card: str = "# A dataset\n") -> Path:
    """A dataset of a hub as git clones it."""
    put(folder / "README.md", card)
    put(folder / ".git" / "config")
    put(folder / ".gitattributes")
    put(folder / "CITATION.bib")
    parquet(folder, *names)
    return folder


TRAIN = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]


def test_of_a_clone_of_a_hubs_dataset_train_is_read_whatever_lies_beside(tmp_path: Path) -> None:
    assert found(clone(tmp_path / "one", *TRAIN)) == (TRAIN, ("the split 'train' is read",))
    folder = clone(
        tmp_path / "two", *TRAIN, "data/validation-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
    )
    files, (note,) = found(folder)
    assert files == TRAIN
    assert "'test', 'validation' not" in note
    assert note.endswith(f"--data.val_source {folder}/data/validation-00000-of-00001.parquet")


def test_a_cards_configurations_say_which_files_are_which_split(tmp_path: Path) -> None:
    files = ("a/0.parquet", "a/1.parquet", "b.parquet", "c.parquet")
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: a/*\n  - split: test\n"
    folder = clone(tmp_path / "clone", *files, card=f"{card}    path: [b.parquet, ../../*]\n---\n# A dataset\n")
    found_files, (note,) = found(folder)
    assert found_files == ["a/0.parquet", "a/1.parquet"]
    assert "the split 'train' is read, 'test' not" in note
    assert note.endswith(f"; not in any split, so left out: {folder / 'c.parquet'}")


def test_a_card_with_several_configurations_says_how_to_name_one(tmp_path: Path) -> None:
    entry = "- config_name: {0}\n  data_files: {0}/*\n"
    card = "---\nconfigs:\n" + entry.format("en") + entry.format("fr")
    folder = clone(tmp_path / "clone", "en/0.parquet", "en/1.parquet", "fr/0.parquet", card=f"{card}---\n")
    with pytest.raises(UserError, match=r"the configurations 'en', 'fr': name the files of one, such as .*/en/"):
        found(folder)
    put(folder / "README.md", f"{card}  default: true\n---\n")
    assert found(folder)[0] == ["fr/0.parquet"]


@pytest.mark.parametrize(
    "card", ["---", "---\n[\n---\n", "---\nconfigs: 3\n---\n", "---\nconfigs: [{data_files: 3}]\n---"]
)
def test_a_card_that_says_nothing_is_passed_over(card: str, tmp_path: Path) -> None:
    assert found(clone(tmp_path / "clone", *TRAIN, card=card))[0] == TRAIN


def test_the_hubs_cache_of_a_dataset_is_read_through_its_links(tmp_path: Path) -> None:
    folder = tmp_path / "datasets--owner--name"
    put(folder / "refs" / "main", "abc123")
    put(folder / "blobs" / "5678", "# A dataset\n")
    parquet(folder / "blobs", "1234")
    snapshot = folder / "snapshots" / "abc123"
    for name, blob in {"README.md": "5678", TRAIN[0]: "1234"}.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(folder / "blobs" / blob)
    parquet(folder / "snapshots" / "old", TRAIN[0])
    assert found(folder)[0] == [f"snapshots/abc123/{TRAIN[0]}"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.parquet", "test.parquet"], ["train.parquet"]),
        (["training/a.parquet", "training/b.parquet", "dev/a.parquet"], ["training/a.parquet", "training/b.parquet"]),
        (["my_train_1.parquet", "my-valid-1.parquet"], ["my_train_1.parquet"]),
        (["train.parquet", "more.parquet"], ["more.parquet", "train.parquet"]),
        (["a.parquet", "test.parquet"], ["a.parquet", "test.parquet"]),
        (["trains.parquet", "contest.parquet"], ["contest.parquet", "trains.parquet"]),
    ],
    ids=" ".join,
)
def test_tables_are_divided_by_the_names_that_datasets_knows(
    names: list[str], expected: list[str], tmp_path: Path
) -> None:
    parquet(tmp_path / "tables", *names)
    files, notes = found(tmp_path / "tables")
    assert files == expected
    assert bool(notes) == (len(expected) < len(names))


def test_plain_text_is_not_divided_by_its_names(tmp_path: Path) -> None:
    for name in ("train.txt", "test.txt"):
        put(tmp_path / "texts" / name)
    assert found(tmp_path / "texts") == (["test.txt", "train.txt"], ())
