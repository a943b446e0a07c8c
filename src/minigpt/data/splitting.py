"""Documents -> train and val splits, by a hash of each document's text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from minigpt.config import DataConfig
from minigpt.data.sources.names import Source
from minigpt.data.sources.reading import Chunk, read
from minigpt.errors import UserError

TRAIN, VAL, LEFT_OUT = range(3)
PART_BYTES, MOST_PARTS = 8_000, 8
"""Least length, and most number, of the parts held out of a single text with data.val_from=spread: some 2500 tokens,
so of many contexts only the first reaches back over a cut."""


@dataclass(frozen=True)
class Survey:
    """Digest and length of every document: 24 bytes each, so a corpus larger than memory can be divided."""

    documents: np.ndarray
    """(n_documents, 3) uint64: first and last 8 bytes of the text's SHA-256, and its length in UTF-8."""
    counts: tuple[int, ...]
    """Number of documents of each source."""

    @property
    def ranks(self) -> np.ndarray:
        """(n_documents,) uint64: first 8 bytes of each digest, treated as unique to a text."""
        return self.documents[:, 0]


def survey(*sources: Iterable[Chunk]) -> Survey:
    """Hash every document of some sources in one pass."""
    documents, counts = bytearray(), []
    for chunks in sources:
        before = len(documents)
        digest, n_bytes = hashlib.sha256(), 0
        for chunk in chunks:
            content = chunk.text.encode()
            digest.update(content)
            n_bytes += len(content)
            if chunk.ends:
                ends = digest.digest()
                documents += ends[:8] + ends[:-9:-1] + n_bytes.to_bytes(8, "big")
                digest, n_bytes = hashlib.sha256(), 0
        counts.append((len(documents) - before) // 24)
    return Survey(np.frombuffer(documents, dtype=">u8").astype(np.uint64).reshape(-1, 3), tuple(counts))


def assign(source: Survey, val_source: Survey | None, config: DataConfig) -> tuple[np.ndarray, int]:
    """Assign each document to train or val.

    A document goes to val if its digest, read as a number in [0, 1), is below val_fraction. So it keeps its side when
    others are added or removed, and equal documents are never on both sides. If no digest is below, the document with
    the smallest is held out. A separate val source keeps all documents that are not in train too.

    Returns:
        (n_documents,) int8 of TRAIN, VAL or LEFT_OUT, the documents of val_source after those of the source, and how
        many of val_source are left out. If all documents are copies of one text, none is VAL: `cut_single_text` must
        cut it.

    Raises:
        UserError: one side would be empty.
    """
    ranks, chosen = source.ranks, _chosen(source, config.max_documents)
    if not chosen.any() and config.answer_column is not None:
        who = "conversation has a turn of the assistant" if config.answers_in_messages else "row has prompt and answer"
        raise UserError(f"data.source={config.source}: no {who} (data.answer_column={config.answer_column})")
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


def _chosen(found: Survey, max_documents: int | None) -> np.ndarray:
    """Mask of the documents that data.max_documents keeps of each source: an arbitrary but repeatable choice.

    It sorts by the end of the digest. The beginning decides between train and val, and would bias the choice.
    """
    chosen = np.ones(len(found.documents), dtype=bool)
    first = 0
    for count in found.counts if max_documents is not None else ():
        of_source = np.argsort(found.documents[first : first + count, 1], kind="stable")
        chosen[first + of_source[max_documents:]] = False
        first += count
    return chosen


def val_threshold(val_fraction: float) -> int:
    """Rank below which a document goes to val."""
    return int(val_fraction * 2**64)


@dataclass(frozen=True)
class SplitDocuments:
    """The documents of some sources with the side of each; text is read from disk on each iteration."""

    sources: Sequence[Source]
    config: DataConfig
    sides: np.ndarray
    """(n_documents,) int8: see `assign`."""
    lengths: np.ndarray
    """(n_documents,) uint64: bytes of UTF-8."""
    n_duplicates: int
    """Documents left out of val because train contains the same text."""

    def n_bytes(self, side: int | None = None) -> int:
        """Length in UTF-8 of the kept documents, or of those of a side; a text that is cut later is in TRAIN."""
        return int(self.lengths[self.sides != LEFT_OUT if side is None else self.sides == side].sum())

    def chunks(self) -> Iterator[tuple[int, int, Chunk]]:
        """(TRAIN or VAL, index of the source, chunk) of the kept documents, in order.

        Raises:
            UserError: the text has changed since the survey.
        """
        kept = self._kept()
        if (self.sides == VAL).any():
            yield from kept
            return
        if self.config.answer_column is not None:
            raise UserError(
                f"data.source={self.config.source}: all rows are the same, and a pair is not cut to hold out its end; "
                "give more rows, or data.val_source"
            )
        first = next(kept)
        single = (chunk for _, _, chunk in chain([first], kept))
        for side, chunk in cut_single_text(single, self.n_bytes(), self.config.val_fraction, self._n_parts()):
            yield side, first[1], chunk

    def _n_parts(self) -> int:
        most = int(self.n_bytes() * self.config.val_fraction) // PART_BYTES
        return 1 if self.config.val_from == "end" else max(1, min(MOST_PARTS, most))

    def parts(self) -> str:
        """What is held out of a single text with data.val_from=spread, as a line; empty for other texts."""
        if self.config.val_from == "end" or (self.sides == VAL).any():
            return ""
        n_parts, held_out = self._n_parts(), self.n_bytes() * self.config.val_fraction
        if n_parts == 1:
            return f"held out: the end of the text, too short for several parts of {PART_BYTES / 1e3:.0f} kB"
        return f"held out: {n_parts} parts of about {held_out / n_parts / 1e3:.0f} kB, spread over the text"

    def _kept(self) -> Iterator[tuple[int, int, Chunk]]:
        document = 0
        for number, source in enumerate(self.sources):
            for chunk in read(source, self.config):
                if document == len(self.sides):
                    raise text_changed(self.config)
                if self.sides[document] != LEFT_OUT:
                    yield int(self.sides[document]), number, chunk
                document += chunk.ends
        if document != len(self.sides):
            raise text_changed(self.config)


def text_changed(config: DataConfig) -> UserError:
    """The error for text that differs from the survey."""
    return UserError(f"data.source={config.source}: the text changed while it was read; try again")


def cut_single_text(
    chunks: Iterable[Chunk], n_bytes: int, val_fraction: float, n_parts: int = 1
) -> Iterator[tuple[int, Chunk]]:
    """Hold out the end of a single text, or the ends of equal parts of it, from the start of a line near each cut.

    Args:
        chunks: the text.
        n_bytes: its length in UTF-8.
        val_fraction: share to hold out.
        n_parts: number of parts; of several, a cut is rather at a blank line.

    Yields:
        (TRAIN or VAL, chunk), by turns; the last chunk of each stretch ends its document, so the two sides of a cut
        are separate documents of their splits.

    Raises:
        UserError: the text is too short.
    """
    too_short = UserError(f"data.source: the text is too short ({n_bytes} bytes) to hold out a part of it")
    starts = [round(n_bytes * (part + 1 - val_fraction) / n_parts) for part in range(n_parts)]
    ends = [round(n_bytes * (part + 1) / n_parts) for part in range(n_parts - 1)]
    cuts = sorted([*starts, *ends])
    if not 0 < cuts[0] <= cuts[-1] < n_bytes:
        raise too_short
    most_back = round(n_bytes * min(val_fraction, 1 - val_fraction) / 2 / n_parts)
    marks = (b"\n",) if n_parts == 1 else (b"\n\n", b"\n")
    side, at = TRAIN, 0  # bytes before this chunk
    for chunk in chunks:
        content = chunk.text.encode()
        done = 0
        while cuts and at <= cuts[0] < at + len(content):
            cut = cuts.pop(0) - at
            found = (content.rfind(mark, max(done, cut - most_back), cut) + len(mark) for mark in marks)
            here = next((place for place, mark in zip(found, marks, strict=True) if place >= len(mark)), cut)
            while content[here] & 0xC0 == 0x80:  # a UTF-8 continuation byte: the cut is inside a character
                here -= 1
            if at + here == 0:
                raise too_short
            yield side, Chunk(content[done:here].decode())
            side, done = (VAL if side == TRAIN else TRAIN), here
        yield side, Chunk(content[done:].decode(), chunk.ends) if done else chunk
        at += len(content)
