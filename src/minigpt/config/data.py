"""`data`: dataset, tokenizer and batches."""

from __future__ import annotations

import codecs
import io
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from minigpt.config.checks import (
    NonNegativeInt,
    PathName,
    PositiveInt,
    Rule,
    Section,
    bounds,
    matches,
    not_empty,
    require,
)


def _is_text_encoding(name: str) -> bool:
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=name).read()  # refuses codecs that do not make text
        return codecs.lookup(name).name not in {"idna", "punycode"}  # these encode single host names
    except (LookupError, ValueError):
        return False


def _is_separator(text: str) -> bool:
    """Whether a separator is a literal or a regular expression that does not match everywhere."""
    if not (len(text) > 1 and text[0] == text[-1] == "/"):
        return bool(text)
    try:
        return not re.compile(text[1:-1], re.MULTILINE).search("")
    except (re.error, RecursionError, OverflowError):
        return False


Separator = Annotated[
    str,
    Rule(
        _is_separator,
        "use line, blank_lines, none, a literal such as <|endoftext|>, or a regular expression between slashes, such "
        r"as /^\* \* \*$/, that is valid and does not match an empty text",
    ),
]
Encoding = Annotated[
    str,
    Rule(
        _is_text_encoding,
        "no encoding that Python knows; such are utf-8, cp1252, latin-1, utf-16, shift_jis, gb18030",
    ),
]
Delimiter = Annotated[
    str, matches(r'\\t|[^\r\n"]', "{name}={value!r}: give one character, such as ';' or \\t for a tab")
]
Tokenizer = Annotated[
    PathName,
    matches(
        r"bytes|chars|gpt2|cl100k_base|o200k_base|bpe:\d+|(?s:.*)\.json",
        "use bytes, chars, bpe:N such as bpe:2048, gpt2, cl100k_base, o200k_base or the path of a tokenizer.json",
    ),
    Rule(
        lambda name: name[:4] != "bpe:" or name.endswith(".json") or 257 < int(name[4:]) <= 1_000_000,
        "a byte-level vocabulary has 256 bytes, one end-of-text token and at least one merge: N lies between 258 and "
        "1000000",
    ),
]
Weight = Annotated[float, bounds(gt=0, text="a weight is a number above 0")]
Fraction = Annotated[float, bounds(gt=0, lt=1, text="must lie between 0 and 1 (0.05 holds out a twentieth)")]
Source = PathName | list[PathName]


@dataclass(frozen=True)
class DataConfig(Section):
    """Dataset, tokenizer and batch size."""

    SECTION = "data"

    source: Annotated[Source, not_empty("name python_stdlib, a file, a folder, a glob or a URL")] = "python_stdlib"
    """Text: python_stdlib, files, folders, globs, URLs, hf:NAME[:CONFIG[:SPLIT]], - (stdin), repeats or references."""
    weights: list[Weight] | None = None
    """Mixture weights, one per source: its share of the training windows; proportional to length by default."""
    text_column: str = "text"
    """Text column of JSON, CSV, Parquet, Arrow and hub datasets; a path such as meta.body, or '{title}\\n{body}'."""
    answer_column: str | None = None
    """Column of answers to the prompts in text_column, or `messages`: loss on answers alone; needs mode=examples."""
    document_separator: Separator | None = None
    """Splits text files into documents: line, blank_lines, a literal, /regex/, or none; by default <|endoftext|>."""
    delimiter: Delimiter | None = None
    """CSV delimiter, \\t for a tab; detected from the header by default."""
    encoding: Encoding = "utf-8"
    """Encoding of text, JSON Lines and CSV files, any that Python knows: cp1252, utf-16, shift_jis."""
    encoding_errors: Literal["error", "replace", "skip"] = "error"
    """Files with invalid bytes: error stops, replace substitutes U+FFFD, skip leaves the file out."""
    tokenizer: Tokenizer = "bpe:2048"
    """bytes, chars, bpe:N (trained on the train split), gpt2, cl100k_base, o200k_base, or a tokenizer.json."""
    token_type: Literal["auto", "uint16", "uint32"] = "auto"
    """dtype of prepared token ids; auto is uint16 for vocabularies of up to 65536."""
    val_source: Annotated[Source, not_empty("leave it out, or name a text")] | None = None
    """Validation text; by default part of the source is held out."""
    val_fraction: Fraction = 0.05
    """Share of the documents held out for validation; of a single document, see val_from."""
    val_from: Literal["end", "spread"] = "end"
    """What of a single document is held out: its end, or up to eight parts spread over it."""
    max_val_tokens: PositiveInt | None = None
    """Validate on at most this many tokens, spread evenly over the val split, always the same; all by default."""
    max_documents: PositiveInt | None = None
    """Use only this many documents of each source, always the same ones; all by default."""
    mode: Literal["packed", "examples"] = "packed"
    """packed concatenates documents and cuts windows; examples trains on each text separately, padded."""
    streaming: bool = False
    """Tokenize while training, for text too large to download or prepare first."""
    batch_size: PositiveInt = 16
    """Micro-batch size per device: windows of context_length tokens, or examples."""
    num_workers: NonNegativeInt = 0
    """DataLoader workers; 0 loads in the main process, which is enough for prepared tokens."""
    dir: Annotated[PathName, not_empty("name a folder such as data")] = "data"
    """Folder for prepared token files, reused while text, tokenizer and split are unchanged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        n_sources = len(self.sources)
        require(
            self.weights is None or len(self.weights) == n_sources,
            f"data.weights={self.weights}: there {'is 1 source' if n_sources == 1 else f'are {n_sources} sources'}; "
            "give one weight for each",
        )
        require(
            len(set(self.sources)) == n_sources,
            f"data.source={self.source}: a source is named twice; name it once, with data.weights for a larger share",
        )
        require(
            self.answer_column is None or self.mode == "examples",
            f"data.answer_column={self.answer_column}: the loss is on answers alone, each after its prompt; set "
            "data.mode=examples",
        )
        self._check_stream()

    def _check_stream(self) -> None:
        for name, given in {
            "source": len(self.sources) > 1,
            "weights": self.weights is not None,
            "mode": self.mode != "packed",
            "num_workers": self.num_workers > 0,
            "max_documents": self.max_documents is not None,
            "tokenizer": self.tokenizer == "chars",
            "encoding_errors": self.encoding_errors == "skip",
            "val_from": self.val_from != "end",
        }.items():
            require(
                not (self.streaming and given),
                f"data.{name}={getattr(self, name)}: not with data.streaming, which reads one source in file order, in "
                "packed windows, in the main process, without knowing its characters in advance; set "
                "data.streaming=false",
            )

    @property
    def answers_in_messages(self) -> bool:
        """Whether answer_column holds conversations, whose answers are the assistant's turns."""
        by_default = self.answer_column == "messages" and self.text_column == DataConfig.text_column
        return self.answer_column is not None and (by_default or self.answer_column == self.text_column)

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
