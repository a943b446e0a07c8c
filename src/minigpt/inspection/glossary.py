"""What each number of inspection means: one sentence, range, unit, and which way is more. For tooltips and legends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

RELATION = "relation: "
"""Prefix of relation scores. Their value is the lift: weight beyond what distance alone explains."""
FEW_LINKS = "relation, few links: "
"""The same of a relation with too few links for a label."""


@dataclass(frozen=True)
class Term:
    """One number of a page, table or curve."""

    name: str
    """As in tables and curves: `induction`, `attn/sink_rate`."""
    sentence: str
    low: float | None
    """Smallest possible value, or None."""
    high: float | None
    unit: str
    """Empty for shares and other plain numbers."""
    higher_means: str
    differs: str | None = None
    """What TransformerLens or bertviz calls by this name, where it is another number."""

    @property
    def range(self) -> str:
        """`0 to 1`, `0 or more nats`, `any number of nats per token`."""
        if self.low is None:
            return f"any number{f' of {self.unit}' if self.unit else ''}"
        bounds = f"{self.low:g} or more" if self.high is None else f"{self.low:g} to {self.high:g}"
        return f"{bounds} {self.unit}".rstrip()

    @property
    def text(self) -> str:
        """All of it as one paragraph of plain text."""
        said = f"{self.sentence} Range: {self.range}. Higher means {self.higher_means}."
        return said if self.differs is None else f"{said} {self.differs}"


_DETECTOR = (
    "TransformerLens' head detector divides by the attention of all queries, so it shows less: 0.46 where this is 0.72."
)
_SHARE = (0.0, 1.0, "")
_NATS = (None, None, "nats per token")

_HEAD_SCORES = (
    Term(
        "entropy",
        "How evenly a query's weight is spread over the keys it may attend to: -sum a ln a over ln of their number, "
        "mean over queries.",
        *_SHARE,
        "more even; 1 is uniform, 0 one key",
        "Elsewhere entropy is often in nats or bits; here it is divided by its maximum, so lengths compare.",
    ),
    Term(
        "previous_token",
        "Weight on the token just before the query, mean over queries.",
        *_SHARE,
        "the head attends to the previous token",
        "TransformerLens' head detector has the same numerator, and divides by all attention, the first row included.",
    ),
    Term("current_token", "Weight of each token on itself, mean over queries.", *_SHARE, "the token attends to itself"),
    Term(
        "first_token",
        "Weight on the first token of the window, mean over queries: where heads without a match put it (sink).",
        *_SHARE,
        "more of the head's attention goes to the sink",
        "The first token is whatever the window begins with. TransformerLens prepends BOS and measures that.",
    ),
    Term(
        "mean_distance",
        "Mean distance from query to key, by weight.",
        0.0,
        None,
        "tokens",
        "it attends to more distant tokens",
    ),
    Term(
        "near_zero",
        "Share of the keys with less than a hundredth of an even share of the weight, mean over queries.",
        *_SHARE,
        "a sparser head",
    ),
    Term("keys_for_90", "Fewest keys that have 90 % of a query's weight, mean.", 1.0, None, "keys", "a broader head"),
    Term("keys_for_99", "Fewest keys that have 99 % of a query's weight, mean.", 1.0, None, "keys", "a broader head"),
    Term(
        "largest_score",
        "Largest attention score before the softmax, over all queries and keys of the text.",
        *(None, None, ""),
        "a sharper softmax; growth without bound makes training unstable",
    ),
    Term(
        "induction",
        "On random tokens repeated once: weight of a token of the second copy on the token after its first occurrence.",
        *_SHARE,
        "an induction head, which predicts by copying what came next",
        _DETECTOR,
    ),
    Term(
        "duplicate_token",
        "On random tokens repeated once: weight of a token of the second copy on its first occurrence.",
        *_SHARE,
        "a duplicate-token head",
        _DETECTOR,
    ),
    Term(
        "copying",
        "sum Re l / sum |l| of the eigenvalues l of W_U W_O W_V W_E: what attending to a token does to its own logit.",
        *(-1.0, 1.0, ""),
        "the head raises the logits of tokens it attends to; below 0 it lowers them",
        "As in TransformerLens' demos, but gains of the norms and LayerNorm's centring are folded in.",
    ),
    Term(
        "symmetry",
        "tr(M M) / |M|^2 of M = W_Q^T W_K, from the weights alone.",
        *(-1.0, 1.0, ""),
        "a scores b as b scores a; -1 is antisymmetric",
    ),
    Term(
        "redundancy",
        "Similarity of the head's map to the closest one of its layer: 1 - Jensen-Shannon divergence.",
        *_SHARE,
        "another head of the layer has nearly this map",
    ),
)

_CAUSES = (
    Term(
        "ablation",
        "Loss of the measured text without the head's output, minus the loss with it. Zero ablation sets the output to "
        "0; mean to its mean over the text; resample to that in another window. Zero unless another kind is named.",
        *_NATS,
        "the text needs the head; below 0, the head harms",
        "Equals TransformerLens with hook_z set to 0.",
    ),
    Term(
        "ablation_spread",
        "Standard deviation of the ablation over the windows of the text.",
        *(0.0, None, "nats per token"),
        "the effect differs more between parts of the text",
    ),
    Term(
        "ablation_repeated",
        "Zero ablation on the second copy of random tokens repeated once, not on the text. Measured only where the "
        "model predicts that copy better than chance.",
        *_NATS,
        "the head helps to copy",
    ),
    Term(
        "logit_lens",
        "The output's norm and head applied to the residual stream after each layer: the prediction so far.",
        *_SHARE,
        "the layer already makes this token likely",
        "The same as in TransformerLens with apply_ln.",
    ),
    Term(
        "direct_logit_attribution",
        "What a head, MLP or embedding adds to a logit, or to the difference of two, along the residual stream alone; "
        "the scale of the final norm is held fixed.",
        *(None, None, "logits"),
        "it raises the token; all of them add up to the logit",
        "TransformerLens' logit_attrs; here biases are components of their own.",
    ),
    Term(
        "loss_attribution",
        "Expected logit that a component adds under the output's distribution, minus what it adds to the token that "
        "came. The contributions and the output's entropy add up to the loss.",
        *_NATS,
        "the component raises this token's loss; below 0 it lowers it",
    ),
    Term(
        "activation_patching",
        "Run the corrupted prompt with one activation of the clean one: how much of the metric comes back.",
        *(None, None, ""),
        "the activation carries what differs; 0 is the corrupted prompt, 1 the clean one",
    ),
    Term(
        "attribution_patching",
        "Gradient times difference of activations: activation patching to first order, from a few gradients.",
        *(None, None, ""),
        "as for activation patching",
    ),
    Term(
        "path_patching",
        "Activation patching of one path, from a head to the inputs of later heads or to the logits.",
        *(None, None, ""),
        "the path carries what differs",
    ),
    Term(
        "composition",
        "|W_QK W_OV| / (|W_QK| |W_OV|), Frobenius norms: how strongly a head reads what an earlier one writes, through "
        "its queries, keys or values.",
        *_SHARE,
        "stronger composition; compare with the value for random matrices",
        "TransformerLens' composition scores, with the gains of the norms folded in.",
    ),
    Term(
        "qk_attribution",
        "Part of an attention score that one component of the query's residual stream and one of the key's make.",
        *(None, None, ""),
        "the pair makes the query attend to the key; all pairs add up to the score",
    ),
)

_CURVES = (
    Term("train/loss", "Mean cross-entropy of the training batches since the last point.", *_NATS, "worse"),
    Term("val/loss", "Mean cross-entropy on held-out text.", *_NATS, "worse"),
    Term("val/bits_per_byte", "Held-out loss in bits, per byte of text.", 0.0, None, "bits", "worse; any tokenizer"),
    Term("val/tokens", "Held-out tokens whose mean loss val/loss is.", 0.0, None, "tokens", "a more exact val/loss"),
    Term("learning_rate", "Step size of the optimizer.", 0.0, None, "", "larger steps"),
    Term("grad_norm", "Length of the gradient before clipping.", 0.0, None, "", "a steeper loss; spikes warn"),
    Term("perf/tokens_per_second", "Training speed, without validation.", 0.0, None, "tokens per second", "faster"),
    Term("perf/mfu", "Share of the device's peak floating-point rate that training uses.", *_SHARE, "better use"),
    Term(
        "samples/longest_copied_tokens",
        "Longest run of tokens that a sample shares with the training text.",
        *(0.0, None, "tokens"),
        "more copied word for word",
    ),
    Term(
        "samples/copied_20gram_share",
        "Share of the samples' runs of 20 tokens that occur in the training text.",
        *_SHARE,
        "more memorised",
    ),
    Term(
        "attn/icl_score",
        "In-context learning: loss in the last tenth of the context minus loss in the second tenth.",
        *_NATS,
        "less use of context; below 0, earlier tokens help",
        "Olsson et al. 2022 take the 500th token minus the 50th.",
    ),
    Term(
        "attn/first_copy_loss",
        "Loss on random tokens, before they repeat.",
        *_NATS,
        "surer of other tokens; ln of the vocabulary size is chance",
    ),
    Term(
        "attn/second_copy_loss",
        "Loss on the same random tokens when they come again: it falls when induction heads form.",
        *_NATS,
        "less copying; ln of the vocabulary size is chance",
    ),
    Term("attn/entropy_mean", "Mean entropy of all heads, each from 0 to 1.", *_SHARE, "more even attention"),
    Term(
        "attn/entropy_min",
        "Smallest entropy of a head.",
        *_SHARE,
        "more even attention; many heads near 0 at once precede instability",
    ),
    Term("attn/largest_score", "Largest attention score of all heads.", None, None, "", "sharper softmaxes"),
    Term("attn/sink_rate", "Share of heads with more than 0.3 on the first token.", *_SHARE, "more sinks"),
    Term("attn/probe_seconds", "Time that this inspection took.", 0.0, None, "seconds", "slower"),
)

GLOSSARY: Mapping[str, Term] = MappingProxyType({term.name: term for term in (*_HEAD_SCORES, *_CAUSES, *_CURVES)})
"""Every head score, causal number and curve by its name in tables, pages and dashboards."""


def term_of(name: str) -> Term | None:
    """The term of a name, those of relations (`relation: pronoun`) and maxima (`attn/max/induction`) included."""
    if name in GLOSSARY:
        return GLOSSARY[name]
    if (relation := name.removeprefix(FEW_LINKS).removeprefix(RELATION)) != name:
        few = " Too few links for a label." if name.startswith(FEW_LINKS) else ""
        sentence = f"Weight from the source to the target of {relation!r}, minus what distance alone explains.{few}"
        return Term(name, sentence, -1.0, 1.0, "", "the head follows this relation")
    if (score := name.removeprefix("attn/max/")) != name:
        term = GLOSSARY.get(score) or term_of(RELATION + score.replace("_", " "))
        assert term is not None
        return replace(term, name=name, sentence=f"Largest value of all heads. {term.sentence}")
    return None
