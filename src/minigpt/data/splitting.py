"""Sources -> their documents, each for training or for validation, from one look at all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from minigpt.config import DataConfig
from minigpt.data.sources.names import Source
from minigpt.data.sources.reading import Piece, read
from minigpt.errors import UserError

TRAIN, VAL, LEFT_OUT = range(3)


@dataclass(frozen=True)
class Survey:
    """What one look at every document says: 24 bytes for each, whatever its length."""

    documents: np.ndarray
    """(n_documents, 3) uint64: the first and the last 8 bytes of the text's SHA-256, and its length in UTF-8."""
    counts: tuple[int, ...]
    """Documents of each source, in order."""

    @property
    def ranks(self) -> np.ndarray:
        """(n_documents,) uint64: the beginning of each digest; equal only for equal texts."""
        return self.documents[:, 0]

    @property
    def n_bytes(self) -> int:
        """Length of all texts in UTF-8."""
        return int(self.documents[:, 2].sum())


def survey(*sources: Iterable[Piece]) -> Survey:
    """Look at every document of some sources once."""
    documents, counts = bytearray(), []
    for pieces in sources:
        before = len(documents)
        digest, n_bytes = hashlib.sha256(), 0
        for piece in pieces:
            content = piece.text.encode()
            digest.update(content)
            n_bytes += len(content)
            if piece.ends:
                ends = digest.digest()
                documents += ends[:8] + ends[:-9:-1] + n_bytes.to_bytes(8, "big")
                digest, n_bytes = hashlib.sha256(), 0
        counts.append((len(documents) - before) // 24)
    return Survey(np.frombuffer(documents, dtype=">u8").astype(np.uint64).reshape(-1, 3), tuple(counts))


def assign(source: Survey, val_source: Survey | None, config: DataConfig) -> tuple[np.ndarray, int]:
    """Divide the documents.

    A document goes to val if its digest, read as a number in [0, 1), is below val_fraction: it stays where it is when
    others come or go, and two equal documents never end on both sides. Of a few, the one with the smallest digest is
    held out. A text of its own for validation keeps all its documents but those that train has too.

    Returns:
        (n_documents,) int8 of TRAIN, VAL or LEFT_OUT, the documents of val_source behind those of the source, and how
        many of val_source are left out. Where the source is a single text, given once or often, nothing is VAL:
        `cut_single_text` has to cut it.

    Raises:
        UserError: nothing is left for one side.
    """
    ranks, chosen = source.ranks, _chosen(source, config.max_documents)
    if not chosen.any():
        raise UserError(f"data.source={config.source}: no text in it, nothing but white space")
    sides = np.where(chosen, TRAIN, LEFT_OUT).astype(np.int8)
    if val_source is not None:
        left_out = np.isin(val_source.ranks, ranks[chosen])
        if left_out.all():
            reason = "each text of it is in the train split too" if len(left_out) else "no text in it"
            raise UserError(f"data.val_source={config.val_source}: {reason}; name another text")
        return np.concatenate([sides, np.where(left_out, LEFT_OUT, VAL).astype(np.int8)]), int(left_out.sum())
    lowest, highest = ranks[chosen].min(), ranks[chosen].max()
    if lowest == highest:
        sides[np.flatnonzero(chosen)[1:]] = LEFT_OUT
        return sides, 0
    threshold = np.uint64(val_threshold(config.val_fraction))
    if lowest >= threshold:
        threshold = lowest + np.uint64(1)
    if highest < threshold:
        threshold = highest
    sides[chosen & (ranks < threshold)] = VAL
    return sides, 0


@dataclass(frozen=True)
class Documents:
    """The documents of some sources, read again each time somebody asks, with the side that each is on."""

    sources: Sequence[Source]
    config: DataConfig
    sides: np.ndarray
    """(n_documents,) int8: see `assign`."""
    lengths: np.ndarray
    """(n_documents,) uint64: bytes of UTF-8."""
    n_duplicates: int
    """Documents left out of val because train has the same text."""

    def n_bytes(self) -> int:
        """Length of the documents that are kept."""
        return int(self.lengths[self.sides != LEFT_OUT].sum())

    def pieces(self) -> Iterator[tuple[int, int, Piece]]:
        """(TRAIN or VAL, number of the source, piece) of the documents that are kept, in order.

        Raises:
            UserError: the text is not the one that was looked at.
        """
        if (self.sides == VAL).any():
            yield from self._kept()
            return
        kept = self._kept()
        _, number, first = next(kept)
        single = chain([first], (piece for _, _, piece in kept))
        for side, piece in cut_single_text(single, self.n_bytes(), self.config.val_fraction):
            yield side, number, piece

    def _kept(self) -> Iterator[tuple[int, int, Piece]]:
        document = 0
        for number, source in enumerate(self.sources):
            for piece in read(source, self.config):
                if document == len(self.sides):
                    raise text_changed(self.config)
                if self.sides[document] != LEFT_OUT:
                    yield int(self.sides[document]), number, piece
                document += piece.ends
        if document != len(self.sides):
            raise text_changed(self.config)


def val_threshold(val_fraction: float) -> int:
    """Rank below which a document is for validation."""
    return int(val_fraction * 2**64)


def text_changed(config: DataConfig) -> UserError:
    """What to say when a second look finds another text than the first."""
    return UserError(f"data.source={config.source}: the text changes while it is read; try again")


def cut_single_text(pieces: Iterable[Piece], n_bytes: int, val_fraction: float) -> Iterator[tuple[int, Piece]]:
    """Hold out the end of the one text there is, from a line's beginning if there is one nearby.

    Args:
        pieces: of the text.
        n_bytes: its length in UTF-8.
        val_fraction: share to hold out.

    Yields:
        (TRAIN or VAL, piece), the last piece of each side ending its document.

    Raises:
        UserError: the text is too short.
    """
    too_short = UserError(f"data.source: the text is too short ({n_bytes} bytes) to hold out a part of it")
    cut = round(n_bytes * (1 - val_fraction))
    if not 0 < cut < n_bytes:
        raise too_short
    at = 0
    for piece in pieces:
        content = piece.text.encode()
        if at <= cut < at + len(content):
            earliest = cut - round(n_bytes * min(val_fraction, 1 - val_fraction) / 2)
            here = content.rfind(b"\n", max(0, earliest - at), cut - at) + 1 or cut - at
            while content[here] & 0xC0 == 0x80:  # in the middle of a character
                here -= 1
            if at + here == 0:
                raise too_short
            yield TRAIN, Piece(content[:here].decode())
            yield VAL, Piece(content[here:].decode(), piece.ends)
        else:
            yield (TRAIN if at < cut else VAL), piece
        at += len(content)


def _chosen(found: Survey, max_documents: int | None) -> np.ndarray:
    """Which documents of each source data.max_documents keeps: an arbitrary but repeatable choice.

    By the digest's end: its beginning decides between train and val, and the choice must not prefer one.
    """
    chosen = np.ones(len(found.documents), dtype=bool)
    first = 0
    for count in found.counts if max_documents is not None else ():
        of_source = np.argsort(found.documents[first : first + count, 1], kind="stable")
        chosen[first + of_source[max_documents:]] = False
        first += count
    return chosen
