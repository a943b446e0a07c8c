"""Sources -> a folder of token files with a manifest, reused while text and settings are unchanged."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from minigpt.config import DataConfig
from minigpt.data.shards import FORMAT, SCANS, Manifest, PreparedData, open_prepared
from minigpt.data.sources.names import MANIFEST, Source, find_source, is_prepared, local_path
from minigpt.data.sources.reading import reading_notes, refuse_broken_text
from minigpt.data.sources.scan import Scans
from minigpt.data.synthetic.texts import SYNTHETIC_VERSION
from minigpt.data.tokenising import Text, Tokenising, settings
from minigpt.data.tokenizers.base import load_tokenizer
from minigpt.errors import UserError
from minigpt.files import note, reason, sweep

STALE_SECONDS = 7 * 86400
"""Age at which the working folder of a killed preparation is deleted: until then, a new try resumes it."""


def prepare(config: DataConfig, *, quiet: bool = False) -> PreparedData:
    """Prepare the text that the config names, or open the folder of an earlier call.

    Every call checks the files and reads those that have changed. Changed text is prepared into a new folder beside the
    old one. Of several processes, one prepares and the others wait for it. A source may also be a prepared folder,
    which is opened unchanged.

    Raises:
        UserError: no text, text in another encoding, text too short to split, a folder that cannot be written, or a
            damaged prepared file.
    """
    if _is_one_prepared_folder(config):
        return _open_as_it_is(config)
    root = Path(config.dir)
    scans = Scans(root / SCANS)
    text = find_text(config, scans)
    folder = _folder(config, text)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.dir={root}: cannot be made ({reason(error)})") from None
    sweep(root, root / "streams", root / "downloads")
    if not (folder / MANIFEST).is_file():
        with _one_line_errors(root), _locked(root / f".{folder.name}.lock", quiet):
            if not (folder / MANIFEST).is_file():  # no other process has prepared it meanwhile
                _prepare_into(folder, config, text, scans, quiet)
    return open_prepared(folder, scans)


def find_prepared(config: DataConfig) -> tuple[PreparedData | None, int]:
    """The data that `prepare` would open without work, else None; and the bytes of the text. Writes nothing.

    Raises:
        UserError: there is no text, it cannot be read, or a prepared file is damaged.
    """
    if _is_one_prepared_folder(config):
        opened = _open_as_it_is(config)
        return opened, opened.train.n_bytes + opened.val.n_bytes
    scans = Scans(Path(config.dir) / SCANS, read_only=True)
    text = find_text(config, scans)
    files = [file for source in (*text.train, *text.val) for file in source.files]
    folder = _folder(config, text)
    data = open_prepared(folder, scans) if (folder / MANIFEST).is_file() else None
    return data, sum(scan.n_bytes for scan in scans.of(files))


def _is_one_prepared_folder(config: DataConfig) -> bool:
    return len(config.sources) == 1 and not config.val_sources and is_prepared(Path(config.sources[0]))


def _open_as_it_is(config: DataConfig) -> PreparedData:
    data = open_prepared(local_path(config.sources[0]))
    if config.tokenizer not in {DataConfig.tokenizer, data.manifest.tokenizer}:
        raise UserError(
            f"data.tokenizer={config.tokenizer}: {data.folder} was prepared with {data.manifest.tokenizer}; leave the "
            "setting out, or name the text itself"
        )
    if config.answer_column != (asked := data.manifest.settings.get("answer_column")):
        raise UserError(
            f"data.answer_column={config.answer_column}: {data.folder} was prepared with {asked}; give that, or name "
            "the text itself"
        )
    if config.answers_in_messages != data.manifest.settings.get("answers_in_messages", False):
        raise UserError(
            f"data.text_column={config.text_column}: {data.folder} was prepared with "
            f"{data.manifest.settings['text_column']}, and data.answer_column={asked}; give both"
        )
    return data


def find_text(config: DataConfig, scans: Scans) -> Text:
    """The files of the config's sources, each scanned.

    Raises:
        UserError: a source does not exist, cannot be read, or is not text.
    """
    skipped: list[str] = []

    def sources(names: Iterable[str]) -> Iterator[Source]:
        for name in names:
            source, left_out = refuse_broken_text(find_source(name, Path(config.dir), config.codec), scans, config)
            skipped.extend(left_out)
            yield source

    train = tuple(sources(config.sources))
    try:
        val = tuple(sources(config.val_sources))
    except UserError as error:
        raise UserError(str(error).replace("data.source", "data.val_source", 1)) from None
    return Text(train, val, tuple(skipped), _fingerprint(train, val, scans))


def _fingerprint(train: Sequence[Source], val: Sequence[Source], scans: Scans) -> str:
    """Hash of the files' contents, in order.

    Not of their paths, so that text which was moved is not prepared again; nor of their times, which a copy changes.
    """
    digest = hashlib.sha256(str(len(train)).encode())
    for source in (*train, *val):
        made_by = [source.synthetic, source.seed, SYNTHETIC_VERSION] if source.synthetic else []
        digest.update(json.dumps([*made_by, len(source.files)]).encode())
        for file, scan in zip(source.files, scans.of(source.files), strict=True):
            encoding = "" if file.encoding == "utf-8" else f"{file.encoding} "
            digest.update(f"{file.kind} {file.compression} {encoding}{scan.sha256}\n".encode())
            if scan.n_separators:  # earlier versions read it as one document
                digest.update(f"{scan.n_separators} separators\n".encode())
    return digest.hexdigest()


def _folder(config: DataConfig, text: Text) -> Path:
    """Where the prepared text belongs: a name for people, and a hash of everything that the tokens depend on."""
    tokenizer, tokenizer_name = config.tokenizer, config.tokenizer
    if tokenizer.endswith(".json"):
        try:
            load_tokenizer(Path(tokenizer))  # a clear error now if it is missing or wrong
        except UserError as error:
            raise UserError(f"data.tokenizer={tokenizer}: {str(error).split(': ', 1)[1]}") from None
        tokenizer_name = Path(tokenizer).stem
        tokenizer = hashlib.sha256(Path(tokenizer).read_bytes()).hexdigest()
    content = json.dumps([FORMAT, text.fingerprint, tokenizer, settings(config)])
    key = hashlib.sha256(content.encode()).hexdigest()[:10]
    stem = Path(config.sources[0]).stem or "text"
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{stem}-{tokenizer_name}").strip("-").lower()[:60]
    return Path(config.dir) / f"{name}-{key}"


def _prepare_into(folder: Path, config: DataConfig, text: Text, scans: Scans, quiet: bool) -> None:
    if folder.exists():
        raise UserError(f"{folder} has no {MANIFEST}: delete the folder, and it will be prepared anew")
    for path in folder.parent.glob(".preparing-*"):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
    if not quiet:
        _say_how_it_is_read(config, text, scans)
    Tokenising(config, text, folder, quiet).run(
        is_unchanged=lambda: _fingerprint(text.train, text.val, scans) == text.fingerprint
    )
    if not quiet:
        _say_what_is_held_out(config, folder)


def _say_how_it_is_read(config: DataConfig, text: Text, scans: Scans) -> None:
    for setting, sources in (("source", text.train), ("val_source", text.val)):
        for source in sources:
            for line in reading_notes(source, config, scans):
                note(f"note: data.{setting}={source.name}: {line}")
    if skipped := text.skipped_files:
        note(f"note: {len(skipped)} files are skipped because they are not {config.encoding}, such as {skipped[0]}")


def _say_what_is_held_out(config: DataConfig, folder: Path) -> None:
    """Warn where the val share is far from val_fraction: whole documents are held out, and some are long."""
    manifest = Manifest.read(folder)
    if config.document_separator not in {None, "none"}:
        n_documents = manifest.train.n_documents + manifest.val.n_documents
        note(f"note: data.document_separator={config.document_separator}: {n_documents:,} documents")
    share = manifest.val.n_bytes / (manifest.val.n_bytes + manifest.train.n_bytes)
    if config.val_source is None and not config.val_fraction / 2 < share < config.val_fraction * 2:
        note(
            f"note: {100 * share:.0f} % of the text is held out instead of data.val_fraction={config.val_fraction}, as "
            "there are few documents or their lengths differ much; data.val_source names another text to validate on"
        )


@contextmanager
def _locked(path: Path, quiet: bool) -> Iterator[None]:
    """One process at a time; the system releases the lock of a process that dies.

    Unlike `files.locked`, it waits, so the lock file must stay: a waiting process would get the lock of a deleted file.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if not quiet:
            note("another process is preparing the same text: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _one_line_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(root).free
        raise UserError(
            f"data.dir={root}: could not be written ({reason(error)}; {free / 1e6:.0f} MB are "
            "free); nothing was left half-written"
        ) from None
