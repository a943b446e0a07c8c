"""Documents -> a folder of memory-mapped tokens with a manifest, made once and reused while nothing has changed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minigpt.config import DataConfig, UserError
from minigpt.data.sources import Document, fingerprint, load_documents
from minigpt.data.tokenizer import Tokenizer, load_tokenizer, make_tokenizer, save_tokenizer

FORMAT = 1


@dataclass(frozen=True)
class Split:
    """Tokens of one split: documents one after another, each closed by end_of_text."""

    tokens: np.ndarray
    """(n_tokens,) uint16 or uint32, memory-mapped."""
    document_starts: np.ndarray
    """(n_documents,) int64: where each document begins in `tokens`."""
    n_bytes: int
    """Length of the split's text in UTF-8, without the end_of_text marks."""


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds and where it came from."""

    source: str | list[str]
    tokenizer: str
    val_fraction: float
    text_fingerprint: str
    vocab_size: int
    train_documents: int
    train_tokens: int
    train_bytes: int
    val_documents: int
    val_tokens: int
    val_bytes: int
    format: int = FORMAT


@dataclass(frozen=True)
class PreparedData:
    """Everything training needs of the text."""

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer
    train: Split
    val: Split


def prepare(config: DataConfig, *, quiet: bool = False) -> PreparedData:
    """Prepare the text that the config names, or open what was prepared before.

    Text is read and its fingerprint taken each time, so that a changed file is noticed; it is then prepared anew
    beside the old. The folder is written under a temporary name and renamed: it is complete or not there.

    Raises:
        UserError: no text, text that is not UTF-8, a text too short to hold out a part, or a folder that cannot be
            written.
    """
    root = Path(config.dir)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.dir={root}: cannot be made ({(error.strerror or str(error)).lower()})") from None
    documents = load_documents(config.source, root, config.max_documents)
    text_fingerprint = fingerprint(documents)
    tokenizer_key = config.tokenizer
    if config.tokenizer.endswith(".json"):
        load_tokenizer(Path(config.tokenizer))  # a clear line now if it is missing
        tokenizer_key = hashlib.sha256(Path(config.tokenizer).read_bytes()).hexdigest()
    key = json.dumps([FORMAT, text_fingerprint, tokenizer_key, config.val_fraction])
    folder = root / f"{_readable_name(config)}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"
    if not (folder / "manifest.json").is_file():
        _prepare_folder(config, documents, text_fingerprint, folder, quiet)
    return open_prepared(folder)


def open_prepared(folder: Path) -> PreparedData:
    """Open a folder made by `prepare`; tokens stay on disk until they are read."""
    manifest = Manifest(**json.loads((folder / "manifest.json").read_text(encoding="utf-8")))

    def split(name: str, n_bytes: int) -> Split:
        tokens = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        starts = np.load(folder / f"{name}.documents.npy", mmap_mode="r", allow_pickle=False)
        return Split(tokens, starts, n_bytes)

    return PreparedData(
        folder,
        manifest,
        load_tokenizer(folder / "tokenizer.json"),
        split("train", manifest.train_bytes),
        split("val", manifest.val_bytes),
    )


def split_documents(documents: Sequence[Document], val_fraction: float) -> tuple[list[Document], list[Document]]:
    """Divide documents into train and val.

    A document goes to val if its digest, read as a number in [0, 1), is below val_fraction: it stays where it is when
    others come or go, and two equal documents never end on both sides. A single document is cut near its end, at a
    line's beginning if there is one; of a few, the one with the smallest digest is held out.
    """
    if len({d.digest for d in documents}) == 1:
        name, text = documents[0].name, documents[0].text
        cut = round(len(text) * (1 - val_fraction))
        cut = text.rfind("\n", len(text) // 2, cut) + 1 or cut
        if not 0 < cut < len(text):
            raise UserError(f"data.source: {name} is too short ({len(text)} characters) to hold out a part of it")
        return [Document(name, text[:cut])], [Document(name, text[cut:])]
    threshold = int(val_fraction * 2**64)
    ranked = [int.from_bytes(d.digest[:8], "big") for d in documents]
    if min(ranked) >= threshold:
        threshold = min(ranked) + 1
    if max(ranked) < threshold:
        threshold = max(ranked)
    train = [d for d, rank in zip(documents, ranked, strict=True) if rank >= threshold]
    val = [d for d, rank in zip(documents, ranked, strict=True) if rank < threshold]
    return train, val


def _prepare_folder(
    config: DataConfig, documents: list[Document], text_fingerprint: str, folder: Path, quiet: bool
) -> None:
    train, val = split_documents(documents, config.val_fraction)
    if not quiet and config.tokenizer.startswith("bpe:"):
        n_bytes = sum(len(d.text) for d in train)
        print(f"training a byte-level BPE, {config.tokenizer}, on {n_bytes / 1e6:.1f} MB", flush=True)
    tokenizer = make_tokenizer(config.tokenizer, (d.text for d in train), (d.text for d in documents))
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".preparing-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"data.dir={folder.parent}: cannot be written ({(error.strerror or '').lower()})") from None
    try:
        counts = {}
        for name, part in (("train", train), ("val", val)):
            counts[name] = _write_split(tokenizer, part, temporary / name, quiet)
        manifest = Manifest(
            config.source,
            config.tokenizer,
            config.val_fraction,
            text_fingerprint,
            tokenizer.vocab_size,
            len(train),
            *counts["train"],
            len(val),
            *counts["val"],
        )
        save_tokenizer(tokenizer, temporary / "tokenizer.json")
        (temporary / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        try:
            temporary.replace(folder)
        except OSError:
            if not (folder / "manifest.json").is_file():  # else another process was first with the same content
                raise
    except OSError as error:
        raise UserError(f"{folder}: could not be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_split(tokenizer: Tokenizer, documents: Sequence[Document], stem: Path, quiet: bool) -> tuple[int, int]:
    """Write tokens and document starts; return the numbers of tokens and of bytes of text."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    pieces: list[np.ndarray] = []
    lengths: list[int] = []
    n_bytes = 0
    with tqdm(
        total=sum(len(d.text) for d in documents),
        desc=f"tokenising {stem.name}",
        unit="B",
        unit_scale=True,
        delay=2,  # nothing is shown of what takes less than two seconds
        disable=True if quiet else None,
    ) as bar:
        for batch in _batches_of_text(documents):
            for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
                pieces.append(np.array([*ids, tokenizer.end_of_text], dtype=dtype))
                lengths.append(len(ids) + 1)
                n_bytes += len(document.text.encode())
                bar.update(len(document.text))
    tokens = np.concatenate(pieces)
    np.save(stem.with_suffix(".npy"), tokens)
    np.save(f"{stem}.documents.npy", np.cumsum([0, *lengths[:-1]], dtype=np.int64))
    return len(tokens), n_bytes


def _batches_of_text(documents: Sequence[Document], characters: int = 1 << 20) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _readable_name(config: DataConfig) -> str:
    """A folder name that a person recognises; the key behind it is what counts."""
    first = config.source if isinstance(config.source, str) else config.source[0]
    stem = Path(first).stem or "text"
    tokenizer = Path(config.tokenizer).stem if config.tokenizer.endswith(".json") else config.tokenizer
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{stem}-{tokenizer}").strip("-").lower()[:60]
