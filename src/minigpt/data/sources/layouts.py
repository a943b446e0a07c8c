"""A local dataset folder, as `datasets` or the hub lays it out -> the files of its train split, as for `hf:NAME`."""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from minigpt.data.sources.walk import glob_paths
from minigpt.errors import UserError

_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Keyword in names of files and folders, as in `datasets` -> split."""
_WORD = re.compile(rf"(?<![a-z])({'|'.join(_SPLIT_OF)})(?![a-z])")
_SHARD = re.compile(r"(\w+)[-.]\d{5}-of-\d{5}[-.]")
"""Names of uploaded shards: train-00000-of-00001.parquet."""


def snapshot(folder: Path) -> Path:
    """The current snapshot of a dataset in the hub's cache (datasets--owner--name); other folders as they are."""
    try:
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return folder
    newest = folder / "snapshots" / revision
    return newest if revision.isalnum() and newest.is_dir() else folder


def saved_files(folder: Path) -> list[Path] | None:
    """The files of a dataset written by `save_to_disk`, without leftovers of an earlier one; None for other folders."""
    state = _json(folder / "state.json")
    try:
        return [folder / entry["filename"] for entry in state["_data_files"]]
    except (KeyError, TypeError):
        return None


def chosen_split(
    name: str, folder: Path, tables: Sequence[Path], texts: Sequence[Path]
) -> tuple[list[Path], str] | None:
    """The files of a folder's train split, or of its only split, and a note for the user; None without splits.

    Args:
        name: the entry of data.source, for messages.
        folder: path of the folder.
        tables: its tables.
        texts: its other text files.

    Raises:
        UserError: it has several splits but no train, or several configurations but no default.
    """
    saved = _saved_splits(folder)
    splits = saved or _card_splits(name, folder) or _named_splits(folder, tables, texts)
    if not splits:
        return None
    chosen = "train" if "train" in splits else next(iter(splits))
    if len(splits) > 1 and chosen != "train":
        raise UserError(
            f"data.source={name}: the folder has the splits {_quoted(splits)} but no 'train': name the files of one, "
            f"such as {_pattern(splits[chosen])}"
        )
    others = {split: files for split, files in splits.items() if split != chosen}
    note = f"the split {chosen!r} is read"
    if others:
        first = others.get("validation") or next(iter(others.values()))
        note += f", {_quoted(others)} not; to validate on one: --data.val_source {_pattern(first)}"
    unnamed = set(tables) - {file for files in splits.values() for file in files}
    if unnamed and not saved:
        more = f" and {len(unnamed) - 1} more" if len(unnamed) > 1 else ""
        note += f"; not in any split, so left out: {min(unnamed)}{more}"
    return splits[chosen], note


def _saved_splits(folder: Path) -> dict[str, list[Path]]:
    """Splits of a DatasetDict written by `save_to_disk`."""
    listed = _json(folder / "dataset_dict.json")
    if not isinstance(listed, dict) or not isinstance(listed.get("splits"), list):
        return {}
    folders = {str(split): folder / str(split) for split in listed["splits"]}
    return {split: saved_files(place) or sorted(place.glob("*.arrow")) for split, place in folders.items()}


def _card_splits(name: str, folder: Path) -> dict[str, list[Path]]:
    """Splits of the default configuration that the dataset card (README.md) declares."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        card = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError, RecursionError):
        return {}
    listed = card.get("configs") if isinstance(card, dict) else None
    configs: dict[str, dict[str, list[Path]]] = {}
    default = None
    for config in listed if isinstance(listed, list) else ():
        if isinstance(config, dict) and (splits := _files_of(config, folder)):
            title = str(config.get("config_name", "default"))
            configs[title] = splits
            if config.get("default") is True or title == "default":
                default = default or title
    if len(configs) > 1 and default is None:
        example = _pattern(next(iter(next(iter(configs.values())).values())))
        raise UserError(
            f"data.source={name}: the folder has the configurations {_quoted(configs)}: name the files of one, such as "
            f"{example}"
        )
    return configs[default or next(iter(configs))] if configs else {}


def _files_of(config: dict[str, Any], folder: Path) -> dict[str, list[Path]]:
    """Files by split of a card's `data_files`: a pattern, a list of patterns, or a list of {split, path}."""
    entries = config.get("data_files")
    splits: dict[str, list[Path]] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        split, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        for pattern in paths if isinstance(paths, list) else [paths]:
            if not isinstance(split, str) or not isinstance(pattern, str):
                continue
            if not Path(pattern).is_absolute() and ".." not in Path(pattern).parts:  # a card is untrusted
                found = sorted(p for p in glob_paths(Path(glob.escape(str(folder)), pattern)) if p.is_file())
                splits.setdefault(split, []).extend(found)
    return {split: files for split, files in splits.items() if files}


def _named_splits(folder: Path, tables: Sequence[Path], texts: Sequence[Path]) -> dict[str, list[Path]]:
    """Splits by file names. Beside other texts, only shard names of `datasets` count."""
    sharded = {path: shard[1] for path in tables if (shard := _SHARD.search(path.name))}
    if splits := _by_word(sharded):
        return splits
    splits = {} if texts else _by_word({path: str(path.relative_to(folder)) for path in tables})
    return splits if len(splits) > 1 else {}


def _by_word(names: dict[Path, str]) -> dict[str, list[Path]]:
    """Files by the split in their names; empty if none is train."""
    splits: dict[str, list[Path]] = {}
    for path, name in names.items():
        if word := _WORD.search(name.lower()):
            splits.setdefault(_SPLIT_OF[word[1]], []).append(path)
    return splits if "train" in splits else {}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _quoted(names: Any) -> str:
    return ", ".join(map(repr, names))


def _pattern(files: Sequence[Path]) -> str:
    """A shell argument for some files: a glob if it matches exactly these, else the first file."""
    prefix = os.path.commonprefix([str(file) for file in files])  # noqa: RUF071 (a prefix of names, not of folders)
    if len(files) > 1 and set(glob_paths(Path(f"{glob.escape(prefix)}*"))) == set(files):
        return shlex.quote(f"{glob.escape(prefix)}*")
    return shlex.quote(str(files[0]))
