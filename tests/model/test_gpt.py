"""The whole model: sizes, causality, the loss it starts from, and that it can learn."""

import contextlib
import itertools
import math
import typing
from typing import Any

import pytest
import torch
from grids import sampled
from torch import Tensor

from minigpt.config import GPTConfig, OptimizerConfig
from minigpt.errors import UserError
from minigpt.model import gpt
from minigpt.model.cache import KVCache
from minigpt.model.gpt import GPT
from minigpt.model.variants.similarities import SIMILARITIES
from minigpt.training.loss import next_token_loss
from minigpt.training.optimizer import make_optimizer

MLPS = typing.get_args(typing.get_type_hints(GPTConfig)["mlp"])
TINY: dict[str, Any] = {"vocab_size": 61, "context_length": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
CHOICES = [
    dict(zip(("position", "norm", "mlp", "qk_norm", "n_kv_head"), values, strict=True))
    for values in itertools.product(
        ("rotary", "learned", "sinusoidal", "alibi", "none"),
        ("rmsnorm", "layernorm"),
        ("swiglu", "gelu"),
        (True, False),
        (4, 2),
    )
] + [{"mlp": mlp} for mlp in MLPS if mlp not in {"swiglu", "gelu"}]
OF_OTHERS: list[dict[str, Any]] = [
    {"block": "post_norm", "qk_norm_per_head": False, "n_kv_head": 2},
    {"block": "parallel", "rotary_fraction": 0.25, "norm": "layernorm", "bias": True, "mlp": "gelu_exact"},
    {"qk_norm": False, "qkv_bias": True, "norm_eps": 1e-5, "rotary_scaling": {"rope_type": "linear", "factor": 2.0}},
]
"""What models of other programs need: OLMo 2, GPT-NeoX, Qwen2."""
CHOICES += OF_OTHERS
POSITIONS = ("rotary", "learned", "sinusoidal", "alibi", "none")


def built(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of some settings that compose; the others are refused, which test_config looks at."""
    good = []
    for choice in choices:
        with contextlib.suppress(UserError):
            GPTConfig(**{**TINY, **choice})
            good.append(choice)
    return good


KINDS = built(
    [
        {"similarity": similarity, "position": position, "window": window, "n_kv_head": n_kv_head}
        for similarity, position, window, n_kv_head in itertools.product(
            SIMILARITIES, POSITIONS, (None, [5, None]), (4, 2)
        )
    ]
    + [
        {"similarity": similarity, "logit_softcap": 5.0, "position": position}
        for similarity, position in itertools.product(SIMILARITIES, ("rotary", "alibi"))
    ]
    + [{"similarity": "hopfield", "hopfield_steps": 3}, {"similarity": "hard", "hard_choice": "sampled"}]
)
"""Every kind of attention with every kind of position, windows and grouped heads."""
ONE_OF_EACH = built([{"similarity": s, "position": p} for s in SIMILARITIES for p in ("rotary", "learned")])
FAMILIES = {"modern": GPTConfig(**TINY), "gpt2": GPTConfig.gpt2_family(**TINY)}
LEARNERS = FAMILIES | {str(choice["block"]): GPTConfig(**TINY, **choice) for choice in OF_OTHERS if "block" in choice}
LEARNERS |= {mlp: GPTConfig(**TINY, mlp=mlp) for mlp in MLPS if mlp not in {"swiglu", "gelu"}}
"""Both families, and every block and MLP that neither has."""


def name_of(choice: dict[str, Any]) -> str:
    return "-".join(map(str, choice.values()))


def make(config: GPTConfig) -> GPT:
    torch.manual_seed(0)
    return GPT(config)


def test_gpt2_small_has_exactly_its_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig.gpt2_family())
    assert model.n_parameters == 124_439_808


def test_the_number_of_parameters_of_the_modern_family_is_what_its_shapes_say() -> None:
    C, V, L, hidden = 32, 61, 2, 128
    per_layer = C * 3 * C + C * C + 2 * (C // 4) + 3 * C * hidden + 2 * C
    assert make(GPTConfig(**TINY)).n_parameters == 2 * V * C + L * per_layer + C


@pytest.mark.parametrize("position", POSITIONS)
def test_in_16_bits_logits_are_those_of_32_but_for_rounding(position: str) -> None:
    # Beyond 256 tokens, bfloat16 does not hold every position. With three times the initial weights, attention matters.
    config = GPTConfig(vocab_size=61, context_length=512, n_layer=1, n_head=6, n_embd=48, position=position)
    rounded, exact = make(config).eval(), GPT(config).eval()
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
        rounded.bfloat16()
        exact.load_state_dict({name: value.float() for name, value in rounded.state_dict().items()})
        tokens = torch.randint(61, (1, 512), generator=torch.Generator().manual_seed(1))
        expected = exact(tokens)
        error = (rounded(tokens) - expected).square().mean().sqrt() / expected.std()
    assert error < 0.01  # a few roundings of 2^-9 each: 0.005 in all positions, as without any


@pytest.mark.parametrize("choice", sampled(CHOICES + KINDS), ids=name_of)
def test_changing_a_later_token_moves_no_earlier_logit(choice: dict[str, Any]) -> None:
    model = make(GPTConfig(**TINY, **choice)).eval()
    tokens = torch.randint(61, (2, 24))
    changed = tokens.clone()
    changed[:, 13] = (changed[:, 13] + 1) % 61
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :13], after[:, :13], atol=1e-6, rtol=1e-5)
    moved = (before != after).any(dim=-1)
    # Hard attention chooses whom to hear; all others hear everyone in reach.
    reached = moved[:, 13] if choice.get("similarity") == "hard" else moved[:, 13:]
    assert reached.all(), "the change must reach every later position"


@pytest.mark.parametrize("choice", sampled(CHOICES + KINDS), ids=name_of)
def test_the_loss_before_training_is_that_of_a_uniform_guess(choice: dict[str, Any]) -> None:
    model = make(GPTConfig(**{**TINY, "vocab_size": 1000, "n_embd": 64}, **choice)).eval()
    tokens = torch.randint(1000, (8, 25))
    with torch.no_grad():
        loss = next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])
    assert float(loss) == pytest.approx(math.log(1000), rel=0.03)


def test_every_similarity_and_every_position_is_among_the_kinds_that_are_tested() -> None:
    assert {kind["similarity"] for kind in KINDS} == set(SIMILARITIES) == set(allowed("similarity"))
    assert {kind.get("position") for kind in KINDS} - {None} == set(POSITIONS) == set(allowed("position"))


def allowed(name: str) -> tuple[str, ...]:
    return typing.get_args(typing.get_type_hints(GPTConfig)[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_gives_the_same_logits_as_the_whole_text(family: str) -> None:
    model = make(FAMILIES[family]).eval()
    tokens = torch.randint(61, (1, 24))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[:, :9], model(tokens[:, :9]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", LEARNERS)
def test_one_batch_is_learned_by_heart(family: str) -> None:
    model = make(LEARNERS[family])
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=1e-2, weight_decay=0.0))
    tokens = torch.randint(61, (4, 25))
    for _ in range(60):
        loss = next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize("choice", sampled(ONE_OF_EACH, 1), ids=name_of)
def test_every_kind_of_attention_learns_one_batch_by_heart(choice: dict[str, Any]) -> None:
    model = make(GPTConfig(**TINY, **choice))
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=1e-2, weight_decay=0.0))
    tokens = torch.randint(61, (4, 25))
    for _ in range(60):
        loss = next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < (0.3 if choice["similarity"] == "hard" else 0.05)


@pytest.mark.parametrize("choice", ONE_OF_EACH, ids=name_of)
def test_every_parameter_of_every_kind_of_attention_gets_a_gradient(choice: dict[str, Any]) -> None:
    model = make(GPTConfig(**TINY, **choice))
    tokens = torch.randint(61, (2, 25))
    next_token_loss(model(tokens[:, :-1]), tokens[:, 1:]).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("choice", sampled(KINDS), ids=name_of)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_says_of_each_text_what_the_text_alone_says(choice: dict[str, Any], side: str) -> None:
    model = make(GPTConfig(**TINY, **choice)).eval()
    lengths = [24, 7, 1, 15]
    texts = [torch.randint(61, (length,)) for length in lengths]
    tokens, owner = torch.randint(61, (4, 24)), torch.full((4, 24), -1)  # padding is any token at all
    for row, text in enumerate(texts):
        place = slice(24 - len(text), 24) if side == "left" else slice(len(text))
        tokens[row, place], owner[row, place] = text, 0
    with torch.no_grad():
        together = model(tokens, owner)
        for row, text in enumerate(texts):
            torch.testing.assert_close(together[row, owner[row] == 0], model(text[None])[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("choice", ONE_OF_EACH, ids=name_of)
def test_the_loss_and_the_gradient_of_a_padded_batch_are_those_of_its_texts(choice: dict[str, Any]) -> None:
    model = make(GPTConfig(**TINY, **choice))
    texts = [torch.randint(61, (length,)) for length in (24, 7, 15)]
    tokens, targets, owner = torch.zeros(3, 23, dtype=torch.long), torch.full((3, 23), -1), torch.full((3, 23), -1)
    for row, text in enumerate(texts):
        n = len(text) - 1
        tokens[row, :n], targets[row, :n], owner[row, :n] = text[:-1], text[1:], 0
    together = next_token_loss(model(tokens, owner), targets, reduction="sum")
    alone = sum(next_token_loss(model(t[None, :-1]), t[None, 1:], reduction="sum") for t in texts)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(together, parameters), torch.autograd.grad(alone, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("choice", sampled(KINDS), ids=name_of)
def test_with_a_document_mask_a_document_reads_the_same_alone_and_in_a_packed_window(choice: dict[str, Any]) -> None:
    model = make(GPTConfig(**TINY, **choice, document_mask=True, end_of_text=60)).eval()
    documents = [torch.randint(60, (length,)) for length in (5, 1, 9)]
    begin = torch.tensor([60])
    # The first document was cut by the window's edge, so it has no mark at its beginning.
    pieces = [documents[0], torch.cat([begin, documents[1]]), torch.cat([begin, documents[2]])]
    with torch.no_grad():
        packed = model(torch.cat(pieces)[None])[0]
        alone = torch.cat([model(piece[None])[0] for piece in pieces])
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)


def test_without_a_document_mask_documents_hear_each_other() -> None:
    model = make(GPTConfig(**TINY, end_of_text=60)).eval()
    tokens = torch.tensor([[1, 2, 60, 3, 4]])
    with torch.no_grad():
        assert not torch.allclose(model(tokens)[0, -1], model(tokens[:, 2:])[0, -1], atol=1e-4)


@pytest.mark.parametrize(("window", "hears"), [(4, 3), (1, 0), ([4, 4], 6), ([4, 2], 4), ([4, None], 23)])
def test_a_window_lets_a_token_hear_just_that_far(window: int | list[int | None], hears: int) -> None:
    n_layer = 1 if isinstance(window, int) else 2
    model = make(GPTConfig(**{**TINY, "n_layer": n_layer}, window=window)).eval()
    tokens = torch.randint(61, (1, 24))
    with torch.no_grad():
        before = model(tokens)[0, 23]
        for distance in range(24):
            changed = tokens.clone()
            changed[0, 23 - distance] = (changed[0, 23 - distance] + 1) % 61
            assert torch.equal(before, model(changed)[0, 23]) == (distance > hears), distance


def test_a_pattern_of_windows_repeats_over_the_layers() -> None:
    assert GPTConfig(n_layer=5, window=[8, None]).windows == (8, None, 8, None, 8)
    assert GPTConfig(n_layer=2, window=8).windows == (8, 8)
    assert GPTConfig(n_layer=2).windows == (None, None)


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param(choice, marks=() if choice["similarity"] in {"scaled_dot", "linear"} else pytest.mark.slow)
        for choice in {c["similarity"]: c for c in ONE_OF_EACH}.values()
    ],
    ids=name_of,
)
def test_a_compiled_model_says_the_same(choice: dict[str, Any]) -> None:
    """Through the tracer and autograd's part of torch.compile; `make test-slow` has the default compiler."""
    torch._dynamo.reset()
    model = make(GPTConfig(**TINY, **choice, window=[5, None]))
    tokens = torch.randint(61, (2, 25))
    parameters = list(model.parameters())
    losses = [
        next_token_loss(forward(tokens[:, :-1]), tokens[:, 1:])
        for forward in (model, torch.compile(model, backend="aot_eager"))
    ]
    torch.testing.assert_close(losses[0], losses[1])
    for a, b in zip(*(torch.autograd.grad(loss, parameters) for loss in losses), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_without_positions_a_token_order_before_the_last_does_not_matter() -> None:
    """One layer: the last position sums over a set. (Deeper layers see order through the causal mask itself.)"""
    model = make(GPTConfig(**{**TINY, "n_layer": 1}, position="none")).eval()
    tokens = torch.randint(61, (1, 10))
    shuffled = torch.cat([tokens[:, :9].flip(1), tokens[:, 9:]], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[:, -1], model(shuffled)[:, -1], atol=1e-5, rtol=1e-4)
    ordered = make(GPTConfig(**{**TINY, "n_layer": 1}, position="rotary")).eval()
    with torch.no_grad():
        assert not torch.allclose(ordered(tokens)[:, -1], ordered(shuffled)[:, -1], atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    model = make(GPTConfig(**TINY, dropout=0.5))
    tokens = torch.randint(61, (1, 24))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_a_tied_head_is_stored_once() -> None:
    tied, untied = make(GPTConfig(**TINY, tie_embeddings=True)), make(GPTConfig(**TINY))
    assert untied.n_parameters - tied.n_parameters == 61 * 32
    assert "lm_head.weight" not in tied.state_dict()


VOCABULARIES = pytest.mark.parametrize("vocab_size", [1, 63, 64, 65, 128, 50257])
TIED = pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])


def tables(model: GPT) -> list[torch.nn.Parameter]:
    """The weights that have a row for each token."""
    return [p for name, p in model.named_parameters() if name in ("token_embedding.weight", "lm_head.weight")]


@VOCABULARIES
@TIED
def test_there_are_logits_of_the_vocabulary_only_though_its_tables_are_padded(
    vocab_size: int, tie_embeddings: bool
) -> None:
    model = make(GPTConfig(**{**TINY, "vocab_size": vocab_size}, tie_embeddings=tie_embeddings))
    assert model(torch.randint(vocab_size, (2, 24))).shape == (2, 24, vocab_size)
    assert len(tables(model)) == (1 if tie_embeddings else 2)
    for table in tables(model):
        assert table.shape == (-(-vocab_size // 64) * 64, 32)
    others = sum(p.numel() for p in model.parameters()) - sum(table.numel() for table in tables(model))
    assert model.n_parameters == others + len(tables(model)) * vocab_size * 32


@VOCABULARIES
@TIED
def test_rows_of_padding_change_nothing_and_get_no_gradient(vocab_size: int, tie_embeddings: bool) -> None:
    model = make(GPTConfig(**{**TINY, "vocab_size": vocab_size}, tie_embeddings=tie_embeddings))
    tokens = torch.randint(vocab_size, (2, 25))
    before = model(tokens[:, :-1])
    with torch.no_grad():
        for table in tables(model):
            table[vocab_size:] = 1e4
    after = model(tokens[:, :-1])
    assert torch.equal(before, after)
    next_token_loss(after, tokens[:, 1:]).backward()
    for table in tables(model):
        assert table.grad is not None
        assert not table.grad[vocab_size:].any()


@TIED
def test_off_the_cpu_the_padded_product_is_cut_to_the_vocabulary(tie_embeddings: bool) -> None:
    model = make(GPTConfig(**TINY, tie_embeddings=tie_embeddings)).to("meta")
    assert model(torch.zeros(2, 24, dtype=torch.long, device="meta")).shape == (2, 24, 61)


@VOCABULARIES
@TIED
def test_weights_with_padding_come_back_from_their_state_dict(vocab_size: int, tie_embeddings: bool) -> None:
    config = GPTConfig(**{**TINY, "vocab_size": vocab_size}, tie_embeddings=tie_embeddings)
    first = make(config)
    torch.manual_seed(1)
    second = GPT(config)
    second.load_state_dict(first.state_dict())
    tokens = torch.randint(vocab_size, (2, 24))
    assert torch.equal(first(tokens), second(tokens))


@TIED
def test_padding_moves_none_of_the_initial_weights(tie_embeddings: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GPTConfig(**TINY, tie_embeddings=tie_embeddings)
    padded = make(config).state_dict()
    monkeypatch.setattr(gpt, "VOCABULARY_MULTIPLE", 1)
    for name, weight in make(config).state_dict().items():
        assert torch.equal(padded[name][: len(weight)], weight)
        assert not padded[name][len(weight) :].any()


def test_a_text_longer_than_the_context_is_refused_with_both_lengths() -> None:
    with pytest.raises(ValueError, match="25 tokens do not fit the context of 24"):
        make(GPTConfig(**TINY))(torch.zeros(1, 25, dtype=torch.long))


def test_a_model_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size is not set"):
        GPT(GPTConfig())


def test_a_document_mask_without_a_mark_to_go_by_is_refused() -> None:
    with pytest.raises(ValueError, match="end_of_text is not set"):
        GPT(GPTConfig(**TINY, document_mask=True))


def test_numbers_of_texts_in_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"document_ids has shape \(1, 3\), tokens \(1, 4\)"):
        make(GPTConfig(**TINY))(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_numbers_of_texts_that_are_no_whole_numbers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"document_ids is {dtype}: give whole numbers"):
        make(GPTConfig(**TINY))(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=dtype))


def test_only_layers_named_proj_begin_smaller_not_all_whose_names_end_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class LikeLlamas(gpt.GELUMLP):
        def __init__(self, config: GPTConfig) -> None:
            super().__init__(config)
            self.up_proj = torch.nn.Linear(config.n_embd, config.mlp_width)

    monkeypatch.setitem(gpt.MLPS, "swiglu", LikeLlamas)
    mlp = make(GPTConfig(**{**TINY, "n_embd": 64})).blocks[0].mlp
    assert mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert mlp.proj.weight.std().item() == pytest.approx(0.02 / (2 * TINY["n_layer"]) ** 0.5, rel=0.05)


def test_weight_decay_reaches_matrices_only() -> None:
    model = make(FAMILIES["gpt2"])
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.1))
    names = {id(p): n for n, p in model.named_parameters()}
    decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    others = {names[id(p)] for g in optimizer.param_groups if not g["weight_decay"] for p in g["params"]}
    assert decayed == {
        n for n in names.values() if n.startswith("blocks") and n.endswith(("qkv.weight", "proj.weight", "up.weight"))
    }
    assert decayed | others == set(names.values())
    assert not decayed & others


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"n_kv_head": 2, "position": "learned"},
        {"window": [5, None], "position": "alibi"},
        {"similarity": "linear"},
        {"similarity": "hopfield"},
        {"document_mask": True, "end_of_text": 7},
    ],
    ids=str,
)
def test_gradients_through_a_cache_are_those_without_one(kind: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=50, context_length=24, n_layer=2, n_head=4, n_embd=32, **kind)
    model, tokens = GPT(config).double(), torch.randint(50, (2, 20))
    cache, parts = KVCache(config, 2, 24, dtype=torch.float64), []
    for start, stop in ((0, 9), (9, 10), (10, 20)):
        parts.append(model(tokens[:, start:stop], cache=cache))
        cache.position = stop
    with torch.no_grad():
        model(tokens[:, :3], cache=cache)  # does not disturb what the backward pass needs
    weights = torch.randn(2, 20, 50, dtype=torch.float64)
    names = [name for name, parameter in model.named_parameters()]
    found = torch.autograd.grad((torch.cat(parts, dim=1) * weights).sum(), list(model.parameters()))
    expected = torch.autograd.grad((model(tokens) * weights).sum(), list(model.parameters()))
    for name, ours, theirs in zip(names, found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_tokens_read_under_no_grad_are_constants_to_what_follows() -> None:
    config = GPTConfig(vocab_size=50, context_length=8, n_layer=1, n_head=2, n_embd=16)
    model, tokens = GPT(config), torch.randint(50, (1, 6))
    cache = KVCache(config, 1, 8)
    with torch.no_grad():
        model(tokens[:, :5], cache=cache)
    cache.position = 5
    assert not cache.layers[0].key.requires_grad
    model(tokens[:, 5:], cache=cache).sum().backward()
    seen = model.token_embedding.weight.grad.any(dim=1).nonzero().flatten().tolist()
    assert seen == [int(tokens[0, 5])]


@pytest.mark.parametrize(
    ("tokens", "n_rows", "message"),
    [
        (torch.zeros(3).long(), None, r"tokens has shape \(3,\): give \(B, T\)"),
        (torch.zeros(2, 3).long(), 1, "tokens has 2 rows, but the cache was made for 1: give KVCache n_rows=2"),
        (torch.zeros(1, 9).long(), 1, "9 tokens do not fit the cache of 8"),
    ],
)
def test_tokens_of_another_shape_are_refused(tokens: Tensor, n_rows: int | None, message: str) -> None:
    config = GPTConfig(vocab_size=50, context_length=8, n_layer=1, n_head=2, n_embd=16)
    with pytest.raises(ValueError, match=message):
        GPT(config)(tokens, cache=None if n_rows is None else KVCache(config, n_rows, 8))
