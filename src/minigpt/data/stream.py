"""A stream of text -> batches, tokenised on the fly: for text too large to download or to prepare.

The head of the stream is prepared like any text: the tokenizer is trained on it, and its held-out documents are the val
split. Training then reads the whole stream, without the documents whose hash assigns them to val.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from minigpt.config import DataConfig
from minigpt.data.batches import BATCHES_PER_POOL
from minigpt.data.order import hashed, shuffled
from minigpt.data.prepare import prepare
from minigpt.data.shards import PreparedData
from minigpt.data.sources.chunking import grouped
from minigpt.data.sources.columns import NoTextError, text_of
from minigpt.data.sources.hub import open_dataset_stream
from minigpt.data.sources.names import Source, find_source
from minigpt.data.sources.reading import begins_separated, open_stream, reading_notes
from minigpt.data.splitting import val_threshold
from minigpt.errors import UserError
from minigpt.files import note, write_atomically

TOGETHER = 1 << 20
"""Characters tokenised in one call."""
HEAD_BYTES = 32 << 20
"""Length of the head, which is prepared before training."""


def prepare_head(config: DataConfig, *, quiet: bool = False) -> PreparedData:
    """Prepare the head of a stream; its text is kept in data.dir and reused by the next call.

    Raises:
        UserError: the stream cannot be read, or has too few documents for a val split.
    """
    reading = [config.text_column, config.codec, config.encoding_errors, config.delimiter]
    reading += [config.document_separator] if config.document_separator is not None else []
    if not _is_of_the_hub(config) and any(map(begins_separated, _local(config).files)):
        reading.append("separated")  # earlier versions read it as one document
    key = json.dumps([config.source, *reading, _lengths(config)])
    head = Path(config.dir) / "streams" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.jsonl"
    if not head.is_file():
        if not quiet and not _is_of_the_hub(config):
            for line in reading_notes(_local(config), config):
                note(f"note: data.source={config.sources[0]}: {line}")
        write_atomically(head, lambda path: _write_head(path, config))
    # The head holds one document a row: only another text to validate on is still to be separated.
    separator = config.document_separator if config.val_source is not None else None
    rows = dataclasses.replace(config, source=str(head), streaming=False, document_separator=separator)
    data = prepare(rows, quiet=quiet)
    if config.val_source is None and len(data.train.document_starts) + len(data.val.document_starts) < 3:
        raise UserError(
            f"data.source={config.source}: the head of the stream has too few documents for a val split; set "
            "data.val_source, or prepare the whole text (data.streaming=false)"
        )
    return data


def _write_head(path: Path, config: DataConfig) -> None:
    size = 0
    # In data.encoding, as the head is then read with the same settings; json writes ASCII only.
    with path.open("w", encoding=config.codec) as file:
        for texts in _texts(_open(config), config):
            for text in texts:
                file.write(json.dumps({config.text_column: text}) + "\n")
                size += len(text)
            if size >= HEAD_BYTES:
                return


class StreamBatches(Dataset[tuple[Tensor, Tensor]]):
    """Micro-batches of a run from a stream: consecutive windows, shuffled within pools of 64 batches.

    Batch i is a function of the stream and i. So ranks that each read the whole stream see disjoint batches, and a
    resumed run continues exactly. The checkpoint stores the position of the stream; without it the stream would be read
    again from its start.
    """

    def __init__(
        self, config: DataConfig, data: PreparedData, *, context_length: int, n_batches: int, seed: int
    ) -> None:
        """Args: config of the stream; data, its prepared head; tokens per window; batches of the run; seed."""
        self.config, self.tokenizer, self.context_length = config, data.tokenizer, context_length
        self.n_batches, self.seed = n_batches, seed
        self._threshold = 0 if config.val_source is not None else val_threshold(config.val_fraction)
        # By threshold alone, a head without any document below it would not hold out the one that `assign` chose.
        val = data.val.tokens
        ends = pairwise([*data.val.document_starts.tolist(), len(val)])
        self._held_out = {_digest(data.tokenizer.decode_bytes(val.read(a, b - 1).tolist())) for a, b in ends}
        self._stream = _open(config)
        self._start = copy.deepcopy(self._stream.state_dict())
        self._positions: dict[int, dict[str, Any]] = {}
        """Pool -> where the stream stood before it was read, for the last two pools."""
        self._go_to(self._beginning())

    def _beginning(self) -> dict[str, Any]:
        return {"pool": 0, "stream": self._start, "tokens": torch.zeros(0, dtype=torch.int32)}

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """tokens (B, T) and targets (B, T), int64. Fast for growing indices only: a stream cannot be read backwards."""
        if not 0 <= index < self.n_batches:
            raise IndexError(index)
        number, place = divmod(index, BATCHES_PER_POOL)
        if number < self._next_pool - 1:
            self._go_to(self._positions.get(number) or self._beginning())
        while self._next_pool <= number:
            self._read_pool()
        joined = torch.from_numpy(self._pool[place].astype(np.int64))  # (B, T + 1)
        return joined[:, :-1], joined[:, 1:]

    def state_dict(self) -> dict[str, Any]:
        """Stream positions before the last two pools: the loader prefetches, so the run may still be in the first."""
        return {"positions": list(self._positions.values()), "lengths": _lengths(self.config)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position of an earlier run.

        Raises:
            UserError: the length of a local file has changed.
        """
        if state["lengths"] != _lengths(self.config):
            raise UserError(
                f"data.source={self.config.source}: the text has changed since the run began: restore it, or start a "
                "new run"
            )
        self._positions = {position["pool"]: position for position in state["positions"]}
        self._go_to(self._positions[min(self._positions)])

    def _go_to(self, position: dict[str, Any]) -> None:
        self._next_pool = position["pool"]
        # After load_state_dict, datasets (5.2) reports position 0 until a row is read: remember the position here.
        self._stands_at = position["stream"]
        self._pending = position["tokens"].numpy()  # int32: any vocabulary fits, in half of int64's memory
        self._pool = np.zeros((0, 0, 0), dtype=np.int32)
        self._read_from(position["stream"])

    def _read_from(self, state: dict[str, Any]) -> None:
        self._stream.load_state_dict(copy.deepcopy(state))
        self._texts = _texts(self._stream, self.config)

    def _read_pool(self) -> None:
        """Read the tokens of the next 64 batches, and cut them into windows in shuffled order."""
        T, n_windows = self.context_length, BATCHES_PER_POOL * self.config.batch_size
        parts, length = [self._pending], len(self._pending)
        self._positions = dict(sorted(self._positions.items())[-1:])
        self._positions[self._next_pool] = {
            "pool": self._next_pool,
            "stream": self._stands_at,
            "tokens": torch.from_numpy(self._pending.copy()),
        }
        n_ends = 0
        while length <= n_windows * T:
            if (texts := next(self._texts, None)) is None:  # the stream's end: start again
                n_ends += 1
                if n_ends > 1 and len(parts) == 1:
                    raise UserError(f"data.source={self.config.source}: the stream holds no text to train on")
                self._read_from(self._start)
                continue
            encoded = list(self._encoded(texts))
            parts += encoded
            length += sum(map(len, encoded))
        tokens = np.concatenate(parts)
        order = shuffled(np.arange(n_windows), n_windows, hashed(self.seed, self._next_pool))
        # (n_windows, T + 1): neighbours share one token, the last target of one and the first input of the next.
        windows = np.lib.stride_tricks.sliding_window_view(tokens, T + 1)[order * T]
        self._pool = windows.reshape(BATCHES_PER_POOL, self.config.batch_size, T + 1)
        self._pending = tokens[n_windows * T :]
        self._next_pool += 1
        if len(parts) > 1:
            self._stands_at = copy.deepcopy(self._stream.state_dict())

    def _encoded(self, texts: list[str]) -> Iterator[np.ndarray]:
        """Tokens of the train documents, each followed by end_of_text."""
        for tokens in self.tokenizer.encode_batch([text for text in texts if not self._is_val(text)]):
            yield np.append(tokens, self.tokenizer.end_of_text).astype(np.int32)

    def _is_val(self, text: str) -> bool:
        digest = _digest(text.encode())
        return digest < self._threshold or digest in self._held_out


def _lengths(config: DataConfig) -> list[int]:
    """Bytes of each local file: a cheap check for changes, without reading them. Empty for a hub dataset."""
    return [] if _is_of_the_hub(config) else [file.path.stat().st_size for file in _local(config).files]


def _is_of_the_hub(config: DataConfig) -> bool:
    return config.sources[0].startswith("hf:")


def _local(config: DataConfig) -> Source:
    return find_source(config.sources[0], Path(config.dir), config.codec)


def _open(config: DataConfig) -> Any:
    """The stream, as an IterableDataset."""
    if _is_of_the_hub(config):
        return open_dataset_stream(config.sources[0], config.text_column, Path(config.dir))
    return open_stream(_local(config), config)


def _texts(stream: Any, config: DataConfig) -> Iterator[list[str]]:
    """Documents from the current position of a stream, in groups of whole rows, as its state counts rows."""

    def texts_of(row: dict[str, Any]) -> list[str]:
        # A row of local files holds several texts (see `open_stream`), a row of a hub dataset one.
        texts = row["text"] if "ends" in row else [_text_of(row, config)]
        return [text for text in texts if text and not text.isspace()]

    for group in grouped(map(texts_of, stream), lambda texts: sum(map(len, texts)), TOGETHER):
        yield list(chain.from_iterable(group))


def _text_of(row: dict[str, Any], config: DataConfig) -> str | None:
    try:
        return text_of(row, config.text_column)
    except NoTextError as error:
        raise UserError(f"data.source={config.source}: {error}") from None


def _digest(text: bytes) -> int:
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
