"""URLs and hub datasets -> local files, through `datasets`; without network, the files of the last download."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt.data.sources.columns import columns_of
from minigpt.errors import UserError
from minigpt.files import listed, note, write_text

ANSWER_SECONDS = 5
"""Timeout for asking the hub whether a dataset exists; `datasets` itself retries for half a minute."""


def download_file(url: str, cache: Path) -> Path:
    """Download a URL; if it cannot be reached, use the last download.

    Raises:
        UserError: it cannot be reached and was never downloaded.
    """
    kept = _kept_path(url, cache, "")

    def fetch() -> list[Path]:
        import datasets  # takes a second

        # The content of a URL may change, and a server without ETag does not report it.
        settings = datasets.DownloadConfig(cache_dir=str(cache / "huggingface" / "downloads"), force_download=True)
        downloaded = Path(datasets.DownloadManager(download_config=settings).download(url))
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(downloaded, kept)
        return [kept]

    return _fetched_or_remembered(url, cache, fetch)[0]


def download_dataset(name: str, cache: Path) -> list[Path]:
    """Download a whole split of a hub dataset, as Arrow files.

    Args:
        name: hf:NAME[:CONFIG[:SPLIT]]; the default split is train.
        cache: folder for downloads.

    Raises:
        UserError: there is no such dataset, configuration or split, or the hub cannot be reached and the dataset was
            never downloaded.
    """

    def fetch() -> list[Path]:
        import datasets

        path, config, split = parse_name(name)
        require_dataset(name, path)
        try:
            table = datasets.load_dataset(path, config, split=split, cache_dir=str(cache / "huggingface"))
        except (ValueError, RuntimeError) as error:  # unknown configuration or split, or a loading script
            raise UserError(f"data.source={name}: {_reason(error)}") from None
        return [Path(file["filename"]) for file in table.cache_files]

    return _fetched_or_remembered(name, cache, fetch)


def open_dataset_stream(name: str, column: str, cache: Path) -> Any:
    """A split of a hub dataset as an IterableDataset of the columns of data.text_column, downloaded while it is read.

    Raises:
        UserError: there is no such dataset, configuration, split or column, or the hub cannot be reached.
    """
    import datasets

    path, config, split = parse_name(name)
    try:
        require_dataset(name, path)
        kept = str(cache / "huggingface")
        stream = datasets.load_dataset(path, config, split=split, streaming=True, cache_dir=kept)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"data.source={name}: could not be opened ({_reason(error)})") from None
    columns = columns_of(column, stream.column_names or [column])
    if columns is None:
        raise UserError(
            f"data.source={name}: no column {column!r}; give one of these as data.text_column: "
            f"{listed(stream.column_names)}"
        )
    return stream.select_columns(columns)


def parse_name(name: str) -> tuple[str, str | None, str]:
    """Split hf:NAME[:CONFIG[:SPLIT]] into its parts.

    Raises:
        UserError: the name has another form.
    """
    path, config, split, *rest = [*name.removeprefix("hf:").split(":"), "", ""]
    if not path or any(rest) or "[" in split:
        raise UserError(
            f"data.source={name}: a hub dataset is written hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT; "
            "data.max_documents takes a part of it"
        )
    return path, config or None, split or "train"


def require_dataset(name: str, path: str) -> None:
    """Ask the hub whether a dataset exists.

    Raises:
        UserError: it does not.
        Exception: network errors, of many types.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().dataset_info(path, timeout=ANSWER_SECONDS)
    except RepositoryNotFoundError:
        raise UserError(
            f"data.source={name}: the hub has no dataset {path}, or it needs a login (`hf auth login`)"
        ) from None


def is_kept(name: str, cache: Path) -> bool:
    """Whether a URL or a dataset was downloaded before, so that it works without network."""
    return bool(_remembered(_kept_path(name, cache, ".json")))


def _kept_path(name: str, cache: Path, ending: str) -> Path:
    return cache / "downloads" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}{ending}"


def _fetched_or_remembered(name: str, cache: Path, fetch: Callable[[], list[Path]]) -> list[Path]:
    """The files that `fetch` downloads, or those of the last download if the network fails."""
    memory = _kept_path(name, cache, ".json")
    try:
        files = fetch()
    except UserError:
        raise
    except Exception as error:  # network errors have many types
        reason = _reason(error)
        if remembered := _remembered(memory):
            note(f"data.source={name}: could not be reached ({reason}); using the last download")
            return remembered
        raise UserError(
            f"data.source={name}: could not be fetched ({reason}); without network, use local files"
        ) from None
    write_text(memory, json.dumps([str(file.absolute()) for file in files]))
    return files


def _remembered(memory: Path) -> list[Path]:
    try:
        paths = [Path(file) for file in json.loads(memory.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []
    return paths if all(path.is_file() for path in paths) else []


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {(str(cause) or 'no answer').splitlines()[0]}"[:200]
