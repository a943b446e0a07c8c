"""`data`: dataset, tokenizer and batches."""

from __future__ import annotations

import codecs
import io
import math
import re
from dataclasses import dataclass
from typing import Literal

from minigpt.config.checks import require, require_at_least, require_finite, require_types, take_paths


@dataclass(frozen=True)
class DataConfig:
    """Dataset, tokenizer and batch size."""

    source: str | list[str] = "python_stdlib"
    """Text: python_stdlib, files, folders, globs, URLs, hf:NAME[:CONFIG[:SPLIT]], - (stdin), repeats or references."""
    weights: list[float] | None = None
    """Mixture weights, one per source: its share of the training windows; proportional to length by default."""
    text_column: str = "text"
    """Text column of JSON Lines, CSV, Parquet, Arrow and hub datasets."""
    delimiter: str | None = None
    """CSV delimiter, \\t for a tab; detected from the header by default."""
    encoding: str = "utf-8"
    """Encoding of text, JSON Lines and CSV files, any that Python knows: cp1252, utf-16, shift_jis."""
    encoding_errors: Literal["error", "replace", "skip"] = "error"
    """Files with invalid bytes: error stops, replace substitutes U+FFFD, skip leaves the file out."""
    tokenizer: str = "bpe:2048"
    """bytes, chars, bpe:N (trained on the train split), gpt2, cl100k_base, o200k_base, or a tokenizer.json."""
    token_type: Literal["auto", "uint16", "uint32"] = "auto"
    """dtype of prepared token ids; auto is uint16 for vocabularies of up to 65536."""
    val_source: str | list[str] | None = None
    """Validation text; by default part of the source is held out."""
    val_fraction: float = 0.05
    """Share of the documents held out for validation; of a single document, its end."""
    max_documents: int | None = None
    """Use only this many documents of each source, always the same ones; all by default."""
    mode: Literal["packed", "examples"] = "packed"
    """packed concatenates documents and cuts windows; examples trains on each text separately, padded."""
    streaming: bool = False
    """Tokenize while training, for text too large to download or prepare first."""
    batch_size: int = 16
    """Micro-batch size per device: windows of context_length tokens, or examples."""
    num_workers: int = 0
    """DataLoader workers; 0 loads in the main process, which is enough for prepared tokens."""
    dir: str = "data"
    """Folder for prepared token files, reused while text, tokenizer and split are unchanged."""

    def __post_init__(self) -> None:
        take_paths(self, "source", "tokenizer", "val_source", "dir")
        require_types("data", self)
        require_finite("data", self)
        require_at_least("data", self, 1, "batch_size", "max_documents")
        require_at_least("data", self, 0, "num_workers")
        require(
            0 < self.val_fraction < 1,
            f"data.val_fraction={self.val_fraction}: must lie between 0 and 1 (0.05 holds out a twentieth)",
        )
        require(
            bool(self.source) and all([self.source] if isinstance(self.source, str) else self.source),
            "data.source is empty: name python_stdlib, a file, a folder, a glob or a URL",
        )
        self._check_reading()
        self._check_mixture()
        self._check_stream()
        require(
            self.val_source is None or (bool(self.val_source) and all(self.val_sources)),
            "data.val_source is empty: leave it out, or name a text",
        )
        require(bool(self.dir), "data.dir is empty: name a folder such as data")
        named = self.tokenizer in {"bytes", "chars", "gpt2", "cl100k_base", "o200k_base"}
        bpe = re.fullmatch(r"bpe:(\d+)", self.tokenizer)
        require(
            named or bpe is not None or self.tokenizer.endswith(".json"),
            f"data.tokenizer={self.tokenizer}: use bytes, chars, bpe:N such as bpe:2048, gpt2, cl100k_base, "
            "o200k_base or the path of a tokenizer.json",
        )
        require(
            bpe is None or 257 < int(bpe[1]) <= 1_000_000,
            f"data.tokenizer={self.tokenizer}: a byte-level vocabulary has 256 bytes, one end-of-text token and "
            "at least one merge: N lies between 258 and 1000000",
        )

    def _check_reading(self) -> None:
        try:
            io.TextIOWrapper(io.BytesIO(), encoding=self.encoding).read()  # refuses codecs that do not make text
            is_known = self.codec not in {"idna", "punycode"}  # these encode single host names
        except (LookupError, ValueError):
            is_known = False
        require(
            is_known,
            f"data.encoding={self.encoding}: no encoding that Python knows; such are utf-8, cp1252, latin-1, utf-16, "
            "shift_jis, gb18030",
        )
        require(
            self.delimiter is None or (len(self.delimiter_character) == 1 and self.delimiter_character not in '\r\n"'),
            f"data.delimiter={self.delimiter!r}: give one character, such as ';' or \\t for a tab",
        )

    def _check_mixture(self) -> None:
        n_sources = len(self.sources)
        require(
            self.weights is None or len(self.weights) == n_sources,
            f"data.weights={self.weights}: there {'is 1 source' if n_sources == 1 else f'are {n_sources} sources'}; "
            "give one weight for each",
        )
        require(
            self.weights is None or all(weight > 0 and math.isfinite(weight) for weight in self.weights),
            f"data.weights={self.weights}: a weight is a number above 0",
        )
        require(
            len(set(self.sources)) == n_sources,
            f"data.source={self.source}: a source is named twice; name it once, with data.weights for a larger share",
        )

    def _check_stream(self) -> None:
        for name, given in {
            f"source={self.source}": len(self.sources) > 1,
            f"weights={self.weights}": self.weights is not None,
            f"mode={self.mode}": self.mode != "packed",
            f"num_workers={self.num_workers}": self.num_workers > 0,
            f"max_documents={self.max_documents}": self.max_documents is not None,
            f"tokenizer={self.tokenizer}": self.tokenizer == "chars",
            f"encoding_errors={self.encoding_errors}": self.encoding_errors == "skip",
        }.items():
            require(
                not (self.streaming and given),
                f"data.{name}: not with data.streaming, which reads one source in file order, in packed windows, in "
                "the main process, without knowing its characters in advance; set data.streaming=false",
            )

    @property
    def codec(self) -> str:
        """Python's name of the encoding, without -sig: a byte order mark is dropped in any case."""
        return codecs.lookup(self.encoding).name.removesuffix("-sig")

    @property
    def delimiter_character(self) -> str:
        """The delimiter with \\t resolved; empty by default."""
        return "\t" if self.delimiter == "\\t" else self.delimiter or ""

    @property
    def sources(self) -> list[str]:
        """`source` as a list."""
        return [self.source] if isinstance(self.source, str) else list(self.source)

    @property
    def val_sources(self) -> list[str]:
        """`val_source` as a list; empty where part of the source is held out."""
        given = [] if self.val_source is None else self.val_source
        return [given] if isinstance(given, str) else list(given)
