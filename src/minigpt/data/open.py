"""A data config -> its text as tokens. The entry to this folder, and its map.

files, URLs, hub -> documents   sources/ (names.py finds files, rows.py reads them, reading.py joins both)
documents -> train, val         splitting.py: by a hash of each document's text
documents -> tokens -> shards   prepare.py decides what and where, tokenising.py writes, tokenizers/ encode
shards -> one token sequence    shards.py
(seed, i) -> rows of batch i    order.py: permutations that are computed, not stored
rows -> (B, T) batches          batches.py
a stream -> (B, T) batches      stream.py: the same without shards, for text too large to prepare
"""

from __future__ import annotations

from minigpt.config import DataConfig
from minigpt.data.prepare import prepare
from minigpt.data.shards import PreparedData


def open_data(config: DataConfig, *, quiet: bool = False) -> PreparedData:
    """Prepare all text, or with data.streaming only the head of the stream. Prepared text is opened, not made again.

    Raises:
        UserError: see `prepare` and `prepare_head`.
    """
    if config.streaming:
        from minigpt.data.stream import prepare_head  # needs torch, which takes seconds to import

        return prepare_head(config, quiet=quiet)
    return prepare(config, quiet=quiet)
