"""Nothing -> every knob of the project, as frozen dataclasses that refuse bad settings when they are built.

The line under a field is its `--help`. No heavy import belongs here: the command line is parsed and checked before
torch is loaded. The defaults are the demo recipe (`configs/demo.yaml`) without its time limit.
"""

from __future__ import annotations

import codecs
import dataclasses
import io
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class UserError(ValueError):
    """A mistake that one line can explain: programs print it and exit with code 2, without a traceback."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # what is quoted, as a path, may hold line breaks


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)


def _require_finite(prefix: str, config: Any) -> None:
    for field_ in dataclasses.fields(config):
        value = getattr(config, field_.name)
        _require(
            not isinstance(value, float) or math.isfinite(value),
            f"{f'{prefix}.{field_.name}'.strip('.')}={value}: must be a finite number",
        )


def _require_types(prefix: str, config: Any) -> None:
    """For settings that are given in Python, where no parser looks at them; a tuple becomes the list it stands for."""
    section: Any = type(config)
    for name, wanted in _hints(section).items():
        value = getattr(config, name)
        if isinstance(value, tuple):
            value = list(value)
            object.__setattr__(config, name, value)
        expected = str(wanted).replace("typing.", "") if get_origin(wanted) else wanted.__name__
        _require(_is_of(value, wanted), f"{f'{prefix}.{name}'.strip('.')}={value!r}: expected {expected}")


@cache
def _hints(section: Any) -> dict[str, Any]:
    return get_type_hints(section)


def _take_paths(config: Any, *names: str) -> None:
    """Paths may be given as a Path; settings keep them as text, as files and checkpoints do."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, list | tuple):
            value = [os.fspath(each) if isinstance(each, os.PathLike) else each for each in value]
        elif isinstance(value, os.PathLike):
            value = os.fspath(value)
        object.__setattr__(config, name, value)


def _is_of(value: object, wanted: Any) -> bool:
    if wanted is Any:
        return True
    if get_origin(wanted) in {Union, UnionType}:
        return any(_is_of(value, each) for each in get_args(wanted))
    if get_origin(wanted) is dict:
        return isinstance(value, dict)
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if get_origin(wanted) is list:
        return isinstance(value, list | tuple) and all(_is_of(each, *get_args(wanted)) for each in value)
    if wanted in {int, float} and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if wanted is float else wanted)


def _require_device(device: str) -> None:
    _require(
        re.fullmatch(r"(cpu|cuda|mps|xpu|hpu)(:\d+)?", device) is not None,
        f"device={device}: there are cpu, cuda, cuda:1, mps",
    )


def _is_object(value: Mapping[str, Any]) -> bool:
    """Whether a mapping names a class and its arguments."""
    path, arguments = value.get("class_path"), value.get("init_args", {})
    named = isinstance(path, str) and re.fullmatch(r"\w+(\.\w+)+", path) is not None
    return named and isinstance(arguments, dict) and set(value) <= {"class_path", "init_args"}


def _require_at_least(prefix: str, config: object, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(
            value is None or value >= minimum,
            f"{f'{prefix}.{name}'.strip('.')}={value}: must be at least {minimum:g}",
        )


def _require_seed(name: str, seed: int) -> None:
    _require(0 <= seed < 2**31, f"{name}={seed}: must lie between 0 and 2147483647")


@dataclass(frozen=True)
class GPTConfig:
    """Shape of the model. The defaults are the modern family; `gpt2_family` names the other one."""

    vocab_size: int | None = None
    """Number of token ids; taken from the tokenizer when not given."""
    context_length: int = 128
    """Longest sequence the model can read, in tokens."""
    n_layer: int = 4
    """Number of transformer blocks."""
    n_head: int = 4
    """Number of query heads in a block."""
    n_kv_head: int | None = None
    """Number of key/value heads (grouped-query attention); n_head when not given, 1 is multi-query."""
    n_embd: int = 192
    """Width of the residual stream."""
    head_dim: int | None = None
    """Width of one head; n_embd / n_head when not given."""
    mlp_hidden: int | None = None
    """Width inside the MLP; when not given 4 x n_embd, or for swiglu 8/3 x n_embd rounded up to 64."""
    position: Literal["rotary", "learned", "sinusoidal", "alibi", "none"] = "rotary"
    """rotary turns queries and keys, learned and sinusoidal add a vector, alibi lowers the scores of far keys."""
    rotary_base: float = 10_000.0
    """Longest wavelength of rotary positions is about 2 pi times this, in tokens."""
    similarity: Literal["scaled_dot", "cosine", "gaussian", "hopfield", "symmetric", "uniform", "linear", "hard"] = (
        "scaled_dot"
    )
    """How much a query weighs a key; docs/attention.md shows and compares them."""
    softmax_temperature: float = 1.0
    """Divides the scores of scaled_dot, symmetric and hard, besides sqrt(head_dim): above 1 is flatter."""
    hopfield_beta: float | None = None
    """Inverse temperature of hopfield; 1 / sqrt(head_dim) when not given."""
    hopfield_steps: int = 2
    """Updates of a query by hopfield; 1 is the scaled dot product."""
    hard_choice: Literal["best", "sampled"] = "best"
    """The one key of hard attention: the best, or in training one sampled by its probability."""
    window: int | list[int | None] | None = None
    """Tokens that attention reaches back, itself included, or a pattern that repeats over the layers; null is all."""
    logit_softcap: float | None = None
    """Bend attention scores into (-softcap, softcap) by a tanh, as Gemma 2 does with 50; not when not given."""
    document_mask: bool = False
    """Keep documents apart: a token never attends across the end of one, and absolute positions start anew."""
    end_of_text: int | None = None
    """Token id at which document_mask begins a new document; taken from the tokenizer when not given."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation before attention, before the MLP and at the end."""
    mlp: Literal["swiglu", "gelu", "gelu_exact"] = "swiglu"
    """The MLP's nonlinearity: gated SiLU, GPT-2's GELU (tanh approximation), or GELU itself, as in nanoGPT."""
    qk_norm: bool = True
    """Normalise queries and keys per head before their product: bounds the scores."""
    bias: bool = False
    """Biases in linear layers and LayerNorm."""
    tie_embeddings: bool = False
    """Use the token embedding as the output head."""
    dropout: float = 0.0
    """Probability of dropping an attention weight, a residual update or an embedding in training."""

    def __post_init__(self) -> None:
        _require_types("model", self)
        _require_finite("model", self)
        _require_at_least(
            "model",
            self,
            1,
            "vocab_size",
            "context_length",
            "n_layer",
            "n_head",
            "n_kv_head",
            "n_embd",
            "head_dim",
        )
        _require_at_least("model", self, 1, "mlp_hidden", "rotary_base", "hopfield_steps")
        _require_at_least("model", self, 0, "end_of_text")
        _require(
            self.vocab_size is None or self.end_of_text is None or self.end_of_text < self.vocab_size,
            f"model.end_of_text={self.end_of_text}: the vocabulary has {self.vocab_size} tokens",
        )
        for name in ("softmax_temperature", "hopfield_beta", "logit_softcap"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"model.{name}={value}: must be above 0")
        _require(0 <= self.dropout < 1, f"model.dropout={self.dropout}: must be at least 0 and below 1")
        if self.head_dim is None:
            _require(
                self.n_embd % self.n_head == 0,
                f"model.n_embd={self.n_embd} is not divisible by model.n_head={self.n_head}: "
                "change one of them, or give model.head_dim",
            )
        kv = self.kv_heads
        _require(
            self.n_head % kv == 0,
            f"model.n_kv_head={kv} does not divide model.n_head={self.n_head}: each key/value head serves an equal "
            "number of query heads",
        )
        _require(
            self.position != "rotary" or self.width_per_head % 2 == 0,
            f"model.position=rotary rotates pairs of channels: the head width {self.width_per_head} must be even",
        )
        self._check_windows()
        self._check_similarity()

    def _check_windows(self) -> None:
        pattern = self.window if isinstance(self.window, list) else [self.window]
        _require(
            all(window is None or window >= 1 for window in pattern),
            f"model.window={self.window}: a window is at least 1 token, the token itself",
        )
        _require(
            0 < len(pattern) <= self.n_layer,
            f"model.window={self.window}: a pattern has 1 to {self.n_layer} entries, for {self.n_layer} layers",
        )

    def _check_similarity(self) -> None:
        settings = {
            "softmax_temperature": (self.softmax_temperature != 1.0, {"scaled_dot", "symmetric", "hard"}),
            "hopfield_beta": (self.hopfield_beta is not None, {"hopfield"}),
            "hopfield_steps": (self.hopfield_steps != 2, {"hopfield"}),
            "hard_choice": (self.hard_choice != "best", {"hard"}),
        }
        for name, (given, users) in settings.items():
            _require(
                not given or self.similarity in users,
                f"model.{name}={getattr(self, name)}: only similarity {' or '.join(sorted(users))} uses it, "
                f"not {self.similarity}",
            )
        _require(
            self.similarity != "symmetric" or self.kv_heads == self.n_head,
            f"model.n_kv_head={self.n_kv_head}: with similarity=symmetric queries are the keys, so there are as many "
            f"of one as of the other: leave it out or give {self.n_head}",
        )
        _require(
            self.similarity != "uniform" or self.position != "rotary",
            "model.position=rotary turns queries and keys, and similarity=uniform has none: use learned, sinusoidal, "
            "alibi or none",
        )
        check_attention(
            self.similarity,
            softcap=self.logit_softcap,
            dropout=self.dropout,
            alibi=self.position == "alibi",
            names=("model.logit_softcap", "model.dropout", "model.position=alibi"),
        )

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each layer; None where attention reaches all that came before."""
        pattern = self.window if isinstance(self.window, list) else [self.window]
        return tuple(pattern[layer % len(pattern)] for layer in range(self.n_layer))

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def width_per_head(self) -> int:
        """Width of one head (the axis D)."""
        return self.n_embd // self.n_head if self.head_dim is None else self.head_dim

    @property
    def mlp_width(self) -> int:
        """Width inside the MLP. SwiGLU has three matrices instead of two, so 8/3 keeps the parameter count."""
        if self.mlp_hidden is not None:
            return self.mlp_hidden
        return 4 * self.n_embd if self.mlp != "swiglu" else -(-8 * self.n_embd // 3 // 64) * 64

    @classmethod
    def gpt2_family(cls, **overrides: Any) -> GPTConfig:
        """GPT-2's choices (Radford et al. 2019), by default of the smallest model: 124,439,808 parameters."""
        settings: dict[str, Any] = {
            "vocab_size": 50257,
            "context_length": 1024,
            "n_layer": 12,
            "n_head": 12,
            "n_embd": 768,
            "position": "learned",
            "norm": "layernorm",
            "mlp": "gelu",
            "qk_norm": False,
            "bias": True,
            "tie_embeddings": True,
        }
        return cls(**(settings | overrides))


def check_attention(
    similarity: str,
    *,
    softcap: float | None,
    dropout: float,
    alibi: bool,
    names: tuple[str, str, str] = ("softcap", "dropout", "key_bias"),
) -> None:
    """Refuse what a kind of attention cannot do, with the reason; `names` are the settings' names in the message.

    Raises:
        UserError: the combination has no meaning, or would change one that has.
    """
    no_scores = {"uniform": "has no scores", "linear": "has no softmax and so no scores"}
    shifted = {"gaussian": "counts distances, of which a softmax sees only the differences; a cap would change them"}
    weightless = {
        "linear": "never forms the weights",
        "hard": "puts all weight on one key, and without it is nothing left",
    }
    for name, value, reasons in (
        (names[0], softcap, no_scores | shifted),
        (names[1], dropout, weightless),
        (names[2], alibi, {"linear": no_scores["linear"]}),
    ):
        shown = name if value is True else f"{name}={value}"
        _require(not value or similarity not in reasons, f"{shown}: similarity={similarity} {reasons.get(similarity)}")
    _require(softcap is None or softcap > 0, f"{names[0]}={softcap}: must be above 0")


@dataclass(frozen=True)
class DataConfig:
    """Which text, which tokenizer, and how much of it at once."""

    source: str | list[str] = "python_stdlib"
    """Text: python_stdlib, files, folders, globs, URLs, hf:NAME[:CONFIG[:SPLIT]], - (stdin), repeats or references."""
    weights: list[float] | None = None
    """Share of the windows that each source gets, one number a source; by their lengths when not given."""
    text_column: str = "text"
    """Column that holds the text in JSON Lines, CSV, Parquet, Arrow and hub datasets."""
    delimiter: str | None = None
    """What separates the fields of a CSV file, \\t for a tab; found in the heading when not given."""
    encoding: str = "utf-8"
    """Encoding of text, JSON Lines and CSV, any that Python knows: cp1252, utf-16, shift_jis."""
    encoding_errors: Literal["error", "replace", "skip"] = "error"
    """A file that is not in that encoding: stop, replace what is wrong with U+FFFD, or leave the file out."""
    tokenizer: str = "bpe:2048"
    """bytes, chars, bpe:N (trained on the train split), gpt2, cl100k_base, o200k_base, or a tokenizer.json."""
    token_type: Literal["auto", "uint16", "uint32"] = "auto"
    """How a token is stored; auto takes uint16 for vocabularies of up to 65536."""
    val_source: str | list[str] | None = None
    """Text to validate on; when not given, a part of the source is held out."""
    val_fraction: float = 0.05
    """Share of the documents held out for validation (of the text's end, if there is a single document)."""
    max_documents: int | None = None
    """Use only this many documents of each source, the same ones every time; all when not given."""
    mode: Literal["packed", "examples"] = "packed"
    """packed cuts the joined documents into windows; examples trains on each text by itself, padded."""
    streaming: bool = False
    """Tokenise while training instead of before, for text that is too large to download or prepare."""
    batch_size: int = 16
    """Windows of context_length tokens, or examples, per micro-batch and device."""
    num_workers: int = 0
    """Processes that read batches ahead; 0 reads in the main process, which is enough for prepared tokens."""
    dir: str = "data"
    """Folder for prepared token files; they are reused while text, tokenizer and split are unchanged."""

    def __post_init__(self) -> None:
        _take_paths(self, "source", "tokenizer", "val_source", "dir")
        _require_types("data", self)
        _require_finite("data", self)
        _require_at_least("data", self, 1, "batch_size", "max_documents")
        _require_at_least("data", self, 0, "num_workers")
        _require(
            0 < self.val_fraction < 1,
            f"data.val_fraction={self.val_fraction}: must lie between 0 and 1 (0.05 holds out a twentieth)",
        )
        _require(
            bool(self.source) and all([self.source] if isinstance(self.source, str) else self.source),
            "data.source is empty: name python_stdlib, a file, a folder, a glob or a URL",
        )
        self._check_reading()
        self._check_mixture()
        self._check_stream()
        _require(
            self.val_source is None or (bool(self.val_source) and all(self.val_sources)),
            "data.val_source is empty: leave it out, or name a text",
        )
        _require(bool(self.dir), "data.dir is empty: name a folder such as data")
        named = self.tokenizer in {"bytes", "chars", "gpt2", "cl100k_base", "o200k_base"}
        bpe = re.fullmatch(r"bpe:(\d+)", self.tokenizer)
        _require(
            named or bpe is not None or self.tokenizer.endswith(".json"),
            f"data.tokenizer={self.tokenizer}: use bytes, chars, bpe:N such as bpe:2048, gpt2, cl100k_base, "
            "o200k_base or the path of a tokenizer.json",
        )
        _require(
            bpe is None or 257 < int(bpe[1]) <= 1_000_000,
            f"data.tokenizer={self.tokenizer}: a byte-level vocabulary has 256 bytes, one end-of-text token and "
            "at least one merge: N lies between 258 and 1000000",
        )

    def _check_reading(self) -> None:
        try:
            io.TextIOWrapper(io.BytesIO(), encoding=self.encoding).read()  # refuses codecs that do not make text
            is_known = self.codec not in {"idna", "punycode"}  # names of hosts, one at a time
        except (LookupError, ValueError):
            is_known = False
        _require(
            is_known,
            f"data.encoding={self.encoding}: no encoding that Python knows; such are utf-8, cp1252, latin-1, utf-16, "
            "shift_jis, gb18030",
        )
        _require(
            self.delimiter is None or (len(self.delimiter_character) == 1 and self.delimiter_character not in '\r\n"'),
            f"data.delimiter={self.delimiter!r}: give one character, such as ';' or \\t for a tab",
        )

    def _check_mixture(self) -> None:
        n_sources = len(self.sources)
        _require(
            self.weights is None or len(self.weights) == n_sources,
            f"data.weights={self.weights}: there {'is 1 source' if n_sources == 1 else f'are {n_sources} sources'}; "
            "give one weight for each",
        )
        _require(
            self.weights is None or all(weight > 0 and math.isfinite(weight) for weight in self.weights),
            f"data.weights={self.weights}: a weight is a number above 0",
        )
        _require(
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
            _require(
                not (self.streaming and given),
                f"data.{name}: not with data.streaming, which reads one source in its own order, in windows, in the "
                "main process, and does not know its characters in advance; prepared text can do this",
            )

    @property
    def codec(self) -> str:
        """The encoding by Python's name for it; a mark at a file's beginning is dropped in any of them."""
        return codecs.lookup(self.encoding).name.removesuffix("-sig")

    @property
    def delimiter_character(self) -> str:
        """The delimiter, a tab spelled out; empty where none is given."""
        return "\t" if self.delimiter == "\\t" else self.delimiter or ""

    @property
    def sources(self) -> list[str]:
        """The sources, also where there is one."""
        return [self.source] if isinstance(self.source, str) else list(self.source)

    @property
    def val_sources(self) -> list[str]:
        """The sources to validate on; none where a part of the others is held out."""
        given = [] if self.val_source is None else self.val_source
        return [given] if isinstance(given, str) else list(given)


@dataclass(frozen=True)
class OptimizerConfig:
    """How the loss turns into new weights."""

    name: Literal["adamw", "muon"] = "muon"
    """muon for the matrices inside the blocks and adamw for the rest, or adamw for all parameters."""
    learning_rate: float = 8e-3
    """Peak learning rate; with muon one serves all widths, adamw alone wants less for wide models (6e-4 for GPT-2)."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "linear"
    """Decay after the warm-up, to its end at max_steps or max_time; wsd is constant at first and then linear."""
    decay_fraction: float = 0.4
    """Share of the run over which wsd falls, at the end."""
    final_lr_fraction: float = 0.0
    """Learning rate at the end, as a share of the peak."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from zero; muon needs none."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices only: never on biases, norms or embeddings."""
    momentum: float = 0.95
    """Decay of Muon's mean of gradients."""
    momentum_warmup_steps: int = 300
    """Steps over which Muon's momentum rises from 0.85: the first gradients are soon out of date."""
    ns_steps: Literal[3, 5] = 3
    """Newton-Schulz steps of Muon; 5 come nearer to an orthogonal update, 3 are faster."""
    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: float = 0.95
    """Decay of AdamW's mean of squared gradients."""
    average_decay: float | None = None
    """Validate and save a moving average of the weights, of which this share stays at each step; null for none."""

    def __post_init__(self) -> None:
        _require_types("optimizer", self)
        _require_finite("optimizer", self)
        _require(self.learning_rate > 0, f"optimizer.learning_rate={self.learning_rate}: must be above 0")
        _require_at_least(
            "optimizer", self, 0, "warmup_steps", "weight_decay", "final_lr_fraction", "momentum_warmup_steps"
        )
        _require(
            self.final_lr_fraction <= 1,
            f"optimizer.final_lr_fraction={self.final_lr_fraction}: must be at most 1, since learning_rate is the peak",
        )
        _require(
            0 < self.decay_fraction <= 1,
            f"optimizer.decay_fraction={self.decay_fraction}: must be above 0 and at most 1",
        )
        _require(
            self.schedule == "wsd" or self.decay_fraction == 0.4,
            f"optimizer.decay_fraction={self.decay_fraction}: only schedule wsd uses it, not {self.schedule}",
        )
        for name in ("momentum", "beta1", "beta2", "average_decay"):
            value = getattr(self, name)
            _require(value is None or 0 <= value < 1, f"optimizer.{name}={value}: must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How text is written. What narrows the choice of a token is applied in the order in which it stands here."""

    max_new_tokens: int = 200
    """Tokens to write; the text may end sooner, where the model ends its document."""
    min_new_tokens: int = 0
    """The model cannot end its document before this many tokens."""
    forbidden_tokens: list[int] = field(default_factory=list)
    """Ids of tokens that are never drawn."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that occurred, and multiplies negative ones: above 1 avoids repetitions."""
    temperature: float = 0.8
    """Flattens (above 1) or sharpens (below 1) the distribution; 0 always takes the likeliest token."""
    top_k: int | None = 50
    """Draw among this many likeliest tokens; null for all."""
    top_p: float | None = None
    """Draw among the likeliest tokens that together have this probability; null for all."""
    min_p: float | None = None
    """Draw among the tokens of at least this share of the likeliest one's probability; null for all."""
    stop: str | list[str] = field(default_factory=list)
    """A text, or several, that ends what is written where it would come; it is not shown."""
    stop_tokens: list[int] = field(default_factory=list)
    """Ids of tokens that end the text, besides the end of the document."""
    draft_tokens: int = 0
    """Guess so many tokens from where the text said the same before, and check them at once: the same text, sooner."""
    overflow: Literal["slide", "stop"] = "slide"
    """Past the context: slide forgets its oldest quarter and reads the rest again, stop ends the text."""
    seed: int = 1337
    """Seed of the first text, the next one has the next seed: the same seed writes the same text."""

    def __post_init__(self) -> None:
        prefix = self._prefix()
        _require_types(prefix, self)
        _require_finite(prefix, self)
        _require_at_least(prefix, self, 1, "max_new_tokens", "top_k")
        _require_at_least(prefix, self, 0, "min_new_tokens", "temperature", "draft_tokens")
        dot = f"{prefix}." if prefix else ""
        for name, fits, what in (
            ("repetition_penalty", 1e-3 <= self.repetition_penalty <= 1e3, "must lie in 0.001 to 1000; 1 is none"),
            ("temperature", not 0 < self.temperature < 1e-30, "must be 0, for the likeliest token, or at least 1e-30"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "must be above 0 and at most 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "must lie between 0 and 1"),
            (
                "min_new_tokens",
                self.min_new_tokens <= self.max_new_tokens,
                f"is above {dot}max_new_tokens={self.max_new_tokens}",
            ),
            ("stop", all(self.stops), "has an empty text, which stands everywhere; leave it out"),
        ):
            _require(fits, f"{dot}{name}={getattr(self, name)}: {what}")
        _require_seed(f"{dot}seed", self.seed)

    @property
    def stops(self) -> list[str]:
        """The texts that end what is written."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @classmethod
    def _prefix(cls) -> str:
        return ""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(GenerationConfig):
    """Text written at each validation."""

    prompts: list[str] | None = None
    """Prompts continued at each validation; beginnings of the val text when not given, [] for none."""
    max_new_tokens: int = 96
    """Tokens to write after each prompt; the text may end sooner, where the model ends its document."""
    seed: int = 1
    """Seed of the draws: the same seed writes the same text."""

    @classmethod
    def _prefix(cls) -> str:
        return "sampling"


@dataclass(frozen=True)
class SampleConfig(GenerationConfig):
    """What `sample.py` is asked for."""

    run: str
    """A run folder such as runs/demo, or a .ckpt or .safetensors file."""
    prompt: str | None = None
    """Text to continue; the run's first prompt when not given, and an empty one starts a new document."""
    prompt_file: str | None = None
    """Read the prompt from this file, or from standard input if it is '-'."""
    num_samples: int = 1
    """Texts to write after each prompt, each with the next seed."""
    prompts: str | None = None
    """Instead, a file of JSON lines, each {"prompt": ...} and settings of its own if wanted; the texts go to `out`."""
    out: str | None = None
    """JSON lines of what was written after `prompts`; started again, what it has is not written again."""
    interactive: bool = False
    """Ask for prompts at the terminal; settings change on the fly, and Ctrl-C stops a text only."""
    compare: str | None = None
    """A second run: both write after the same prompt with the same seeds, side by side."""
    explain: str | None = None
    """An HTML file for why each token was written: what heads listened to, and what else was likely."""
    checkpoints: str | None = None
    """An HTML file for what each checkpoint of the run writes, with the same prompt and seed."""
    int8: bool = False
    """Read the weights with 8 bits each, on a CPU: models of 50 million parameters and more are faster then."""
    compile: bool = False
    """Decode through torch.compile, which takes a minute first: for a GPU; a CPU is faster without."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        _take_paths(self, "run", "prompt_file", "prompts", "out", "compare", "explain", "checkpoints")
        super().__post_init__()
        _require_device(self.device)
        _require(not (self.int8 and self.compile), "int8 and compile are both given: leave one out")
        _require_at_least("", self, 1, "num_samples")
        last = self.seed + self.num_samples - 1
        _require(
            last < 2**31, f"seed={self.seed}: the last of num_samples={self.num_samples} would be above 2147483647"
        )
        _require(bool(self.run), "run is empty: name a run folder such as runs/demo, or a checkpoint")
        for name in ("prompts", "out", "compare", "explain", "checkpoints"):
            _require(getattr(self, name) != "", f"{name} is empty: name a {'run' if name == 'compare' else 'file'}")
        modes = ("prompts", "interactive", "compare", "explain", "checkpoints")
        given = [name for name in modes if getattr(self, name)]
        _require(len(given) < 2, f"{' and '.join(given)} are given together: give one at a time")
        _require(
            self.prompts is None or self.out is not None, "prompts: name a file for the texts, as in --out texts.jsonl"
        )
        _require(self.out is None or self.prompts is not None, "out: is for what follows --prompts FILE; leave it out")
        sources = [name for name in ("prompts", "prompt_file", "prompt") if getattr(self, name) is not None]
        _require(len(sources) < 2, f"{' and '.join(sources)} are given together: give one of them")
        single = next((name for name in ("explain", "checkpoints") if getattr(self, name)), None)
        _require(
            single is None or self.num_samples == 1,
            f"{single} shows one text: leave out num_samples={self.num_samples}",
        )
        changed = next((name for name in ("int8", "compile") if getattr(self, name)), None)
        _require(single is None or changed is None, f"{single} shows the model as it was trained: leave out {changed}")

    @property
    def generation(self) -> GenerationConfig:
        """How text is written, without whose, after what and where it goes."""
        return GenerationConfig(
            **{each.name: getattr(self, each.name) for each in dataclasses.fields(GenerationConfig)}
        )

    def of_sample(self, number: int) -> GenerationConfig:
        """How the sample of this number, from 0, is written: with its own seed."""
        return dataclasses.replace(self.generation, seed=self.seed + number)


@dataclass(frozen=True)
class InspectConfig:
    """What `python -m minigpt.inspection` is asked for."""

    run: str
    """A run folder such as runs/demo, or a .ckpt or .safetensors file; with report also a W&B run's folder."""
    report: bool = False
    """Look at no model, but make one HTML file of what the run left: losses, samples, attention."""
    text: str | None = None
    """The text to look at; when not given, the one that was looked at while the run trained."""
    file: str | None = None
    """Read the text from this file, or from standard input if it is '-'."""
    relations: str | None = None
    """Instead, a file of JSON lines with texts and what refers to what in them, see docs/data.md."""
    compare: str | None = None
    """A second run or checkpoint with the same tokenizer and the same number of layers and heads."""
    max_tokens: int = 96
    """Tokens whose maps are shown (at most 256, and at most the context); more of the text is measured."""
    out: str | None = None
    """Where the page goes; when not given inspection.html beside the weights, or report.html in the run's folder."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        _take_paths(self, "run", "file", "relations", "compare", "out")
        _require_types("", self)
        _require(bool(self.run), "run is empty: name a run folder such as runs/demo, or a checkpoint")
        given = [name for name in ("text", "file", "relations") if getattr(self, name) is not None]
        _require(len(given) < 2, f"{' and '.join(given)} are both given: leave one out")
        for name in ("text", "file", "relations", "compare"):
            _require(
                not self.report or getattr(self, name) is None,
                f"report and {name} are both given: a report shows what one run left; leave one out",
            )
        _require(1 <= self.max_tokens <= 256, f"max_tokens={self.max_tokens}: must lie between 1 and 256")
        _require_device(self.device)


@dataclass(frozen=True)
class CompareConfig:
    """What `python -m minigpt.training.compare` is asked for."""

    recipes: list[str]
    """YAML recipes that differ in model or optimizer alone."""
    seeds: list[int] = field(default_factory=lambda: [1, 2])
    """Each recipe is trained once with each seed."""
    max_steps: int | None = None
    """Optimizer steps of every run, instead of the recipes' own trainer.max_steps and max_time."""
    out: str = "runs/compare"
    """Folder for the runs, runs.csv, table.md and table.png; what it has finished is not trained again."""
    jobs: int = 1
    """Runs at the same time, each with its share of the CPU's cores."""

    def __post_init__(self) -> None:
        _take_paths(self, "recipes", "out")
        _require_types("", self)
        _require(bool(self.recipes), "recipes: name at least one, such as configs/attention/*.yaml")
        _require(bool(self.seeds), "seeds=[]: give at least one, as in --seeds 1 2")
        for seed in self.seeds:
            _require_seed("seeds", seed)
        _require(len(set(self.seeds)) == len(self.seeds), f"seeds={self.seeds}: each seed once")
        _require_at_least("", self, 1, "max_steps", "jobs")
        _require(bool(self.out), "out is empty: name a folder such as runs/compare")


@dataclass(frozen=True)
class ProofConfig:
    """What `python -m minigpt.training.prove_resume` is asked for, besides the config."""

    steps: int = 60
    """Optimizer steps of the run, instead of trainer.max_steps."""
    kills: int = 5
    """Processes to kill on the way."""
    kill_seed: int = 1
    """Seed of the moments at which they are killed."""

    def __post_init__(self) -> None:
        _require_types("", self)
        _require_at_least("", self, 4, "steps")
        _require_at_least("", self, 1, "kills")
        _require_seed("kill_seed", self.kill_seed)


@dataclass(frozen=True)
class AttentionConfig:
    """What is shown of attention while the model trains."""

    enabled: bool = True
    """Probe a fixed text at each validation: maps as an image grid and an interactive page."""
    text: str | None = None
    """The probed text; the beginning of the val split when not given."""
    relations: str | None = None
    """Instead, a file of JSON lines with texts and what refers to what in them, see docs/data.md."""
    every_n_steps: int | None = None
    """Look every so many optimizer steps, and at the end; at each validation when not given."""
    max_tokens: int = 96
    """Length of the probe, in tokens (at most 256, and at most the context)."""
    max_snapshots: int = 12
    """Training steps kept in the page; beyond that, an even selection with the first and the newest."""

    def __post_init__(self) -> None:
        _take_paths(self, "relations")
        _require_types("attention", self)
        _require(2 <= self.max_tokens <= 256, f"attention.max_tokens={self.max_tokens}: must lie between 2 and 256")
        _require_at_least("attention", self, 2, "max_snapshots")
        _require_at_least("attention", self, 1, "every_n_steps")
        _require(
            self.text is None or self.relations is None,
            "attention.text and attention.relations are both given: leave one out, as the file has its own texts",
        )


_ONE_EPOCH = "a run is one epoch of trainer.max_steps optimizer steps"
_WITHOUT_USE: dict[str, tuple[tuple[Any, ...], str]] = {
    "limit_train_batches": (
        (None, 1.0),
        f"{_ONE_EPOCH}: give fewer of them, or trainer.overfit_batches to repeat a few batches",
    ),
    "limit_test_batches": ((None, 1.0), "there is no test loop; trainer.limit_val_batches shortens validation"),
    "limit_predict_batches": ((None, 1.0), "there is no predict loop; trainer.limit_val_batches shortens validation"),
    "check_val_every_n_epoch": ((1, None), f"{_ONE_EPOCH}: give trainer.val_check_interval"),
    "max_epochs": ((None,), f"{_ONE_EPOCH}: give trainer.max_steps"),
    "min_epochs": ((None,), f"{_ONE_EPOCH}: give trainer.min_steps"),
    "reload_dataloaders_every_n_epochs": ((0,), f"{_ONE_EPOCH}, and its batches are a function of the step"),
    "use_distributed_sampler": ((False,), "the batches are divided among the devices already"),
    "sync_batchnorm": ((False,), "the model has no batch norm; model.norm names its own"),
    "barebones": ((False,), "it switches off what a run is made of; trainer.profiler=simple shows where time goes"),
}
"""Arguments of Lightning's Trainer without a use here -> the values that change nothing, and what to say to others."""


@dataclass(frozen=True)
class TrainerConfig:
    """Lightning's Trainer, by Lightning's own names; the defaults that differ from Lightning's say so."""

    max_steps: int = 600
    """Number of optimizer steps."""
    max_time: str | None = None
    """Stop after this time, as DD:HH:MM:SS; the learning rate reaches its end by then, or at max_steps if sooner."""
    val_check_interval: int | float | None = 200
    """Validate every so many micro-batches (int) or share of the run (float); and always at the end."""
    accumulate_grad_batches: int = 1
    """Micro-batches per optimizer step."""
    gradient_clip_val: int | float | None = 1.0
    """Clip the gradient's norm to this value."""
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    """Clip by norm (default) or by value."""
    precision: str | int | None = "auto"
    """auto is bf16-mixed where the GPU has bfloat16, else 32-true; or any of Lightning's own names."""
    accelerator: str | dict[str, Any] = "auto"
    """cpu, gpu, mps, or auto for the best one there."""
    devices: int | str | list[int] = "auto"
    """How many devices, or which ones; by default as many as torchrun or SLURM starts on a node, else all there are."""
    strategy: str | dict[str, Any] = "auto"
    """How several devices work together: ddp, fsdp2 (shares of weights), Lightning's, or {class_path, init_args}."""
    num_nodes: int = 1
    """Number of machines."""
    logger: (
        Literal["wandb", "tensorboard"] | bool | dict[str, Any] | list[Literal["wandb", "tensorboard"] | dict[str, Any]]
    ) = "wandb"
    """wandb (online if logged in), tensorboard, false for files alone, {class_path, init_args}, or a list of those."""
    callbacks: list[dict[str, Any]] | None = None
    """More callbacks, each as {class_path, init_args}; those of Lightning's that do not fit a run here are refused."""
    plugins: list[dict[str, Any]] | None = None
    """Plugins, each as {class_path, init_args}."""
    profiler: str | dict[str, Any] | None = None
    """simple, advanced, pytorch, or {class_path, init_args}."""
    log_every_n_steps: int | None = 10
    """Write training metrics every so many steps."""
    limit_train_batches: int | float | None = None
    """Lightning's; a run here is one epoch, so give max_steps, or overfit_batches to repeat a few batches."""
    limit_val_batches: int | float | None = None
    """Validate on this many (int) or this share (float) of the val batches: then val/loss is not that of the whole."""
    limit_test_batches: int | float | None = None
    """Lightning's; there is no test loop here."""
    limit_predict_batches: int | float | None = None
    """Lightning's; there is no predict loop here."""
    overfit_batches: int | float = 0.0
    """Train and validate on this many batches again and again: a check that learning works."""
    num_sanity_val_steps: int | None = 0
    """Validation batches before training starts; Lightning's own default is 2."""
    check_val_every_n_epoch: int | None = 1
    """Lightning's; a run here is one epoch, so give val_check_interval."""
    max_epochs: int | None = None
    """Lightning's; a run here is one epoch, so give max_steps."""
    min_epochs: int | None = None
    """Lightning's; a run here is one epoch, so give min_steps."""
    min_steps: int | None = None
    """Do not stop before this step."""
    fast_dev_run: int | bool = False
    """Run this many batches of everything, as a check; nothing is saved."""
    enable_checkpointing: bool | None = None
    """false writes no checkpoint and no weights."""
    enable_progress_bar: bool | None = None
    """false for no progress bar."""
    enable_model_summary: bool | None = False
    """Lightning's table of layers; Lightning's own default is true."""
    deterministic: bool | Literal["warn"] | None = None
    """Use only deterministic kernels, or warn about others."""
    benchmark: bool | None = None
    """cuDNN's autotuner."""
    inference_mode: bool = True
    """Validate under torch.inference_mode rather than torch.no_grad."""
    use_distributed_sampler: bool = False
    """Batches are already divided among devices here; Lightning's own default is true."""
    detect_anomaly: bool = False
    """Find the operation that made a NaN; slow."""
    barebones: bool = False
    """Lightning's; it switches off what a run here is made of."""
    sync_batchnorm: bool = False
    """Lightning's; there is no batch norm here."""
    reload_dataloaders_every_n_epochs: int = 0
    """Lightning's; a run here is one epoch."""
    default_root_dir: str | None = None
    """Folder for what Lightning itself writes; the run folder when not given."""
    enable_autolog_hparams: bool = True
    """Log hyperparameters at the start."""
    model_registry: str | None = None
    """Lightning's model registry."""

    def __post_init__(self) -> None:
        _take_paths(self, "default_root_dir")
        _require_types("trainer", self)
        _require_finite("trainer", self)
        _require_at_least("trainer", self, 1, "max_steps", "accumulate_grad_batches", "log_every_n_steps", "num_nodes")
        _require_at_least("trainer", self, 0, "gradient_clip_val", "overfit_batches")
        _require_at_least("trainer", self, 0, "limit_train_batches", "limit_val_batches")
        _require_at_least("trainer", self, -1, "num_sanity_val_steps")
        _require(
            isinstance(self.overfit_batches, int) or self.overfit_batches <= 1,
            f"trainer.overfit_batches={self.overfit_batches}: a whole number of batches, or a share of at most 1.0",
        )
        interval = self.val_check_interval
        _require(
            interval is None or (isinstance(interval, int) and interval >= 1) or 0 < interval <= 1,
            f"trainer.val_check_interval={interval}: a whole number of batches from 1, or a share in (0, 1]",
        )
        _require(
            self.max_time is None or re.fullmatch(r"\d+:\d\d:\d\d:\d\d", self.max_time) is not None,
            f"trainer.max_time={self.max_time}: must look like 00:00:03:00 (days:hours:minutes:seconds)",
        )
        _require(self.max_time_seconds != 0, f"trainer.max_time={self.max_time}: must be above zero")
        _require(
            not isinstance(self.devices, int) or self.devices >= 1 or self.devices == -1,
            f"trainer.devices={self.devices}: must be at least 1, or -1 for all there are",
        )
        for name in ("accelerator", "strategy", "logger", "profiler", "callbacks", "plugins"):
            value = getattr(self, name)
            for each in value if isinstance(value, list) else [value]:
                _require(
                    not isinstance(each, dict) or _is_object(each),
                    f"trainer.{name}={each}: an object is {{class_path: module.Class, init_args: {{name: value}}}}",
                )
        for name, (neutral, instead) in _WITHOUT_USE.items():
            value = getattr(self, name)
            # 1.0 is all of the batches and 1 is one of them, which Python takes for equal.
            known = any(type(value) is type(each) and value == each for each in neutral)
            _require(known, f"trainer.{name}={value}: {instead}")
        _require(
            self.limit_val_batches is None or self.limit_val_batches > 0,
            f"trainer.limit_val_batches={self.limit_val_batches}: a run validates at its end, where it saves the "
            "model: give 1 or more, and a long trainer.val_check_interval",
        )
        _require(
            self.min_steps is None or self.min_steps <= self.max_steps,
            f"trainer.min_steps={self.min_steps}: is above trainer.max_steps={self.max_steps}",
        )

    @property
    def loggers(self) -> list[str | dict[str, Any]]:
        """What `logger` asks for, one by one."""
        named = ["wandb"] if self.logger is True else [] if self.logger is False else self.logger
        return list(named) if isinstance(named, list) else [named]

    @property
    def max_time_seconds(self) -> float | None:
        """max_time in seconds, None when there is no limit."""
        if self.max_time is None:
            return None
        days, hours, minutes, seconds = map(int, self.max_time.split(":"))
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


@dataclass(frozen=True)
class Config:
    """Everything that defines a run."""

    model: GPTConfig = field(default_factory=GPTConfig)
    """The model's shape."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text and its tokens."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer and its schedule."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Lightning's Trainer."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Text written during training."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Attention shown during training."""
    name: str = "demo"
    """Name of the run; its folder is runs_dir/name, or name-2, name-3, ... when that is taken."""
    runs_dir: str = "runs"
    """Folder that holds the run folders."""
    seed: int = 1337
    """Seed of the weights, of dropout and of the order of the batches."""
    compile: bool | None = None
    """Compile the model with torch.compile, a minute at the start; null: on a GPU, in runs of 1000 steps or more."""
    checkpoint_every_n_steps: int | None = None
    """Save last.ckpt every so many steps, besides at each validation."""
    checkpoint_every_n_minutes: float | None = 10.0
    """Save last.ckpt when so many minutes have passed since it was saved; null for steps and validations alone."""
    keep_checkpoints: int = 2
    """How many checkpoints to keep: last.ckpt and those before it, which are used when it is damaged."""
    keep_every_n_steps: int | None = None
    """Keep the weights every so many steps, as checkpoints/step_000200.safetensors, for looking back; null for none."""
    on_non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """Where a loss or gradient is NaN or infinite: stop, skip the step, or go on with the last checkpoint's weights."""

    def __post_init__(self) -> None:
        _take_paths(self, "runs_dir")
        _require_types("", self)
        _require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) is not None,
            f"name={self.name!r}: use letters, digits, '.', '_' and '-', since it names a folder",
        )
        _require_seed("seed", self.seed)
        _require(bool(self.runs_dir), "runs_dir is empty: name a folder such as runs")
        _require(
            "-" not in self.data.sources or self.trainer.devices in {"auto", "1", 1},
            f"data.source=-: only one process can read what is piped in, and there are trainer.devices="
            f"{self.trainer.devices}: keep it in a file",
        )
        divides = any(word in str(self.trainer.strategy).lower() for word in ("fsdp", "deepspeed", "modelparallel"))
        _require(
            self.optimizer.name != "muon" or not divides,
            f"optimizer.name=muon: needs whole matrices on each device, and trainer.strategy={self.trainer.strategy} "
            "divides them: use ddp, or optimizer.name=adamw",
        )
        _require(
            self.optimizer.average_decay is None or not divides,
            f"optimizer.average_decay={self.optimizer.average_decay}: needs whole weights on each device, and "
            f"trainer.strategy={self.trainer.strategy} divides them: use ddp, or leave it out",
        )
        _require(
            self.on_non_finite != "rollback" or not divides or self.trainer.strategy == "fsdp2",
            f"on_non_finite=rollback: needs whole weights on each device, and trainer.strategy={self.trainer.strategy} "
            "divides them: use fsdp2, ddp, or on_non_finite=skip",
        )
        _require(
            not self.trainer.gradient_clip_val
            or self.trainer.gradient_clip_algorithm == "value"
            or "fsdp" not in str(self.trainer.strategy).lower()
            or self.trainer.strategy == "fsdp2",
            f"trainer.gradient_clip_val={self.trainer.gradient_clip_val}: the norm of all gradients is not known under "
            f"trainer.strategy={self.trainer.strategy}: use fsdp2, or trainer.gradient_clip_val=null",
        )
        _require_finite("", self)
        _require_at_least("", self, 1, "checkpoint_every_n_steps", "keep_every_n_steps", "keep_checkpoints")
        minutes = self.checkpoint_every_n_minutes
        _require(minutes is None or minutes > 0, f"checkpoint_every_n_minutes={minutes}: must be above 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, so that a checkpoint opens with `torch.load(weights_only=True)`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`.

        Raises:
            UserError: a key that no field has, or a value that is refused.
        """
        sections = {f.name: f.default_factory for f in dataclasses.fields(cls) if f.name in _SECTIONS}
        arguments: dict[str, Any] = {}
        for key, value in settings.items():
            arguments[key] = _build(sections[key], key, value) if key in sections else value  # type: ignore[arg-type]
        return _build(cls, "config", arguments)


_SECTIONS = ("model", "data", "optimizer", "trainer", "sampling", "attention")


def _build(section: type, name: str, values: Mapping[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(section)}
    unknown = sorted(set(values) - known)
    _require(
        not unknown,
        f"{name} has no setting {', '.join(unknown)}: it was written by another version of minigpt",
    )
    return section(**values)
