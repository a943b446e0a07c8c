"""`model`: sizes and architecture of the GPT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from minigpt.config.checks import NonNegativeInt, PositiveFloat, PositiveInt, Section, bounds, require

WindowSize = Annotated[int, bounds(ge=1, text="a window is at least 1 token, the token itself")]


@dataclass(frozen=True)
class GPTConfig(Section):
    """Sizes and architecture. The defaults are Llama-like (RMSNorm, SwiGLU, RoPE); `gpt2_family` gives GPT-2's."""

    SECTION = "model"

    vocab_size: PositiveInt | None = None
    """Vocabulary size; the tokenizer's by default."""
    context_length: PositiveInt = 128
    """Maximum sequence length in tokens (nanoGPT's block_size)."""
    n_layer: PositiveInt = 4
    """Number of transformer blocks."""
    n_head: PositiveInt = 4
    """Number of query heads per block."""
    n_kv_head: PositiveInt | None = None
    """Number of key/value heads (grouped-query attention); n_head by default, 1 is multi-query attention."""
    n_embd: PositiveInt = 192
    """Embedding dimension: width of the residual stream."""
    head_dim: PositiveInt | None = None
    """Dimension of each head; n_embd / n_head by default."""
    mlp_hidden: PositiveInt | None = None
    """Hidden dimension of the MLP; 4 x n_embd by default, or for swiglu 8/3 x n_embd rounded up to a multiple of 64."""
    position: Literal["rotary", "learned", "sinusoidal", "alibi", "none"] = "rotary"
    """Position encoding: rotary (RoPE), learned or sinusoidal embeddings, alibi (linear score bias), or none."""
    rotary_base: Annotated[float, bounds(ge=1)] = 10_000.0
    """RoPE base (theta); the longest wavelength is about 2 pi times this, in tokens."""
    rotary_fraction: Annotated[float, bounds(gt=0, le=1)] = 1.0
    """Share of each head's channels that RoPE rotates (partial rotary); 0.25 in GPT-NeoX."""
    rotary_scaling: dict[str, Any] | None = None
    """RoPE for longer contexts, as Hugging Face writes it: rope_type linear, llama3 or yarn, factor, and its others."""
    similarity: Literal["scaled_dot", "cosine", "gaussian", "hopfield", "symmetric", "uniform", "linear", "hard"] = (
        "scaled_dot"
    )
    """Similarity of query and key; docs/attention.md explains and compares them."""
    softmax_temperature: PositiveFloat = 1.0
    """Divides the scores of scaled_dot, symmetric and hard, in addition to sqrt(head_dim); above 1 is flatter."""
    hopfield_beta: PositiveFloat | None = None
    """Inverse temperature of hopfield; 1 / sqrt(head_dim) by default."""
    hopfield_steps: PositiveInt = 2
    """Update steps of each hopfield query; 1 is scaled dot-product attention."""
    hard_choice: Literal["best", "sampled"] = "best"
    """Key that hard attention selects: best is the argmax; sampled draws it from the softmax during training."""
    window: WindowSize | list[WindowSize | None] | None = None
    """Sliding window in tokens, including the current one, or a list of windows repeated over layers; null is full."""
    logit_softcap: PositiveFloat | None = None
    """Soft-cap attention scores to (-softcap, softcap) with tanh, as Gemma 2 does at 50; null is off."""
    document_mask: bool = False
    """Mask attention across document boundaries in packed windows, and restart absolute positions at each document."""
    end_of_text: NonNegativeInt | None = None
    """Token id that separates documents for document_mask; the tokenizer's by default."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Norm of each block's two halves and before the output head."""
    norm_eps: PositiveFloat | None = None
    """Added to the norm's variance or mean square; 1e-5 for layernorm and 1e-6 for rmsnorm by default."""
    block: Literal["pre_norm", "post_norm", "parallel"] = "pre_norm"
    """pre_norm normalizes what a half reads, post_norm what it writes (OLMo 2); parallel adds both at once (NeoX)."""
    mlp: Literal["swiglu", "gelu", "gelu_exact"] = "swiglu"
    """MLP activation: swiglu, gelu (tanh approximation, GPT-2's), or gelu_exact (erf, nanoGPT's)."""
    qk_norm: bool = True
    """Normalize queries and keys per head (QK-norm), so that only its learned gains can make scores grow."""
    qk_norm_per_head: bool = True
    """Normalize each head on its own; false normalizes the channels of all heads together (OLMo 2)."""
    bias: bool = False
    """Use biases in linear layers and LayerNorm."""
    qkv_bias: bool | None = None
    """Use biases in the projection to queries, keys and values; as bias by default (Qwen2 has these alone)."""
    tie_embeddings: bool = False
    """Tie the output head to the token embedding (weight tying)."""
    dropout: Annotated[float, bounds(ge=0, lt=1)] = 0.0
    """Dropout probability of attention weights, residual updates and embeddings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.vocab_size is None or self.end_of_text is None or self.end_of_text < self.vocab_size,
            f"model.end_of_text={self.end_of_text}: the vocabulary has {self.vocab_size} tokens",
        )
        require(
            self.head_dim is not None or self.n_embd % self.n_head == 0,
            f"model.n_embd={self.n_embd} is not divisible by model.n_head={self.n_head}: "
            "change one of them, or give model.head_dim",
        )
        kv = self.kv_heads
        require(
            self.n_head % kv == 0,
            f"model.n_kv_head={kv} does not divide model.n_head={self.n_head}: each key/value head serves an equal "
            "number of query heads",
        )
        require(
            self.position != "rotary" or self.width_per_head % 2 == 0,
            f"model.position=rotary rotates pairs of channels: the head width {self.width_per_head} must be even",
        )
        self._check_rotary()
        require(
            self.qk_norm_per_head or self.qk_norm,
            "model.qk_norm_per_head=false: says how model.qk_norm normalizes, which is off: leave it out",
        )
        require(
            not isinstance(self.window, list) or 0 < len(self.window) <= self.n_layer,
            f"model.window={self.window}: a pattern has 1 to {self.n_layer} entries, for {self.n_layer} layers",
        )
        self._check_similarity()

    def _check_rotary(self) -> None:
        given = {"rotary_fraction": self.rotary_fraction != 1, "rotary_scaling": self.rotary_scaling is not None}
        for name in given:
            require(
                not given[name] or self.position == "rotary",
                f"model.{name}={getattr(self, name)}: only model.position=rotary uses it, not {self.position}",
            )
        n_rotated = round(self.rotary_fraction * self.width_per_head, 6)  # 30 / 44 of 44 is above 30 by rounding
        require(
            self.rotary_fraction == 1 or (n_rotated >= 2 and n_rotated % 2 == 0),
            f"model.rotary_fraction={self.rotary_fraction}: of {self.width_per_head} channels it rotates "
            f"{n_rotated:g}; an even number is needed",
        )
        if self.rotary_scaling is not None:
            check_rotary_scaling(self.rotary_scaling)

    def _check_similarity(self) -> None:
        for name, users in {
            "softmax_temperature": ("hard", "scaled_dot", "symmetric"),
            "hopfield_beta": ("hopfield",),
            "hopfield_steps": ("hopfield",),
            "hard_choice": ("hard",),
        }.items():
            value, default = getattr(self, name), getattr(GPTConfig, name)
            require(
                value == default or self.similarity in users,
                f"model.{name}={value}: only similarity {' or '.join(users)} uses it, not {self.similarity}",
            )
        require(
            self.similarity != "symmetric" or self.kv_heads == self.n_head,
            f"model.n_kv_head={self.n_kv_head}: with similarity=symmetric the queries are the keys, so both need the "
            f"same number of heads: leave it out or give {self.n_head}",
        )
        require(
            self.similarity != "uniform" or self.position != "rotary",
            "model.position=rotary rotates queries and keys, and similarity=uniform has none: use learned, sinusoidal, "
            "alibi or none",
        )
        check_attention(
            self.similarity,
            softcap=self.logit_softcap,
            dropout=self.dropout,
            alibi=self.position == "alibi",
            names=("model.logit_softcap", "model.dropout", "model.position=alibi"),
        )

    # The settings with defaults filled in; the model reads only these.

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each layer; None for full causal attention."""
        pattern = self.window if isinstance(self.window, list) else [self.window]
        return tuple(pattern[layer % len(pattern)] for layer in range(self.n_layer))

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads (H_kv)."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def width_per_head(self) -> int:
        """Dimension of one head (the axis D)."""
        return self.n_embd // self.n_head if self.head_dim is None else self.head_dim

    @property
    def mlp_width(self) -> int:
        """Hidden dimension of the MLP. SwiGLU has three matrices, not two, so 8/3 keeps the parameter count of 4."""
        if self.mlp_hidden is not None:
            return self.mlp_hidden
        return 4 * self.n_embd if self.mlp != "swiglu" else 64 * math.ceil(8 * self.n_embd / 192)

    @property
    def eps(self) -> float:
        """Added to the norm's variance or mean square. The defaults are those of GPT-2 and of the first Llama."""
        return self.norm_eps or (1e-5 if self.norm == "layernorm" else 1e-6)

    @classmethod
    def gpt2_family(cls, **overrides: Any) -> GPTConfig:
        """GPT-2's architecture (Radford et al. 2019), by default the smallest size: 124,439,808 parameters."""
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


ROTARY_SCALINGS: dict[str, tuple[set[str], set[str]]] = {
    "linear": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}, set()),
    "yarn": (
        {"factor", "original_max_position_embeddings"},
        {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    ),
}
"""Kind of RoPE scaling -> its required and its optional keys."""


def check_rotary_scaling(scaling: dict[str, Any]) -> None:
    """Refuse a kind, a key or a value that `rotary_table` does not know.

    Raises:
        UserError: naming it.
    """
    name, kind = f"model.rotary_scaling={scaling}", scaling.get("rope_type")
    require(kind in ROTARY_SCALINGS, f"{name}: rope_type must be {', '.join(ROTARY_SCALINGS)}")
    required, optional = ROTARY_SCALINGS[str(kind)]
    require(scaling.keys() >= required, f"{name}: {kind} needs {', '.join(sorted(required - scaling.keys()))}")
    unknown = ", ".join(map(str, scaling.keys() - required - optional - {"rope_type"}))
    require(not unknown, f"{name}: {kind} does not know {unknown}")
    for key, value in scaling.items():
        if key == "truncate":
            require(isinstance(value, bool), f"{name}: truncate must be true or false")
        elif key != "rope_type" and not (value is None and key in optional):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            require(is_number and 0 < value < math.inf, f"{name}: {key} must be a positive number")
    if kind == "llama3":
        is_above = scaling["high_freq_factor"] > scaling["low_freq_factor"]
        require(is_above, f"{name}: high_freq_factor must be above low_freq_factor")


def check_attention(
    similarity: str,
    *,
    softcap: float | None,
    dropout: float,
    alibi: bool,
    names: tuple[str, str, str] = ("softcap", "dropout", "key_bias"),
) -> None:
    """Refuse a softcap, dropout or ALiBi bias that the similarity does not support.

    Args: `names` are the settings' names in the message.

    Raises:
        UserError: naming the setting, its value and the reason.
    """
    no_scores = {"uniform": "has no scores", "linear": "has no softmax and so no scores"}
    shifted = {"gaussian": "scores by distance up to a constant, which softmax ignores but a cap would not"}
    weightless = {
        "linear": "never forms the weights",
        "hard": "puts all weight on one key; dropping it would leave none",
    }
    for name, value, reasons in (
        (names[0], softcap, no_scores | shifted),
        (names[1], dropout, weightless),
        (names[2], alibi, {"linear": no_scores["linear"]}),
    ):
        shown = name if value is True else f"{name}={value}"
        require(not value or similarity not in reasons, f"{shown}: similarity={similarity} {reasons.get(similarity)}")
    require(softcap is None or softcap > 0, f"{names[0]}={softcap}: must be above 0")
