"""Hooks: every activation that is read is the one that is used, and one that is written is used from there on."""

from typing import Any

import pytest
import torch
from grids import sampled
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.errors import UserError
from minigpt.generation.generator import Writer
from minigpt.generation.plain import intervention
from minigpt.inspection.capture import capture_attention
from minigpt.inspection.hooks import ActivationCache, hook_names, hooks, run_with_cache
from minigpt.model.gpt import GPT

TINY: dict[str, Any] = {"vocab_size": 61, "context_length": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
GPT2: dict[str, Any] = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True, "qk_norm": False}
KINDS: list[dict[str, Any]] = [
    {},
    {**GPT2, "tie_embeddings": True},
    {"block": "post_norm", "qk_norm_per_head": False, "n_kv_head": 2},
    {"block": "parallel", "position": "sinusoidal", "window": [3, None]},
    {"similarity": "cosine", "position": "alibi", "n_kv_head": 2},
    {"similarity": "gaussian", "mlp": "gelu_exact"},
    {"logit_softcap": 3.0},
    {"similarity": "hopfield", "hopfield_steps": 3},
    {"similarity": "symmetric", "position": "none"},
    {"similarity": "uniform", "position": "learned"},
    {"similarity": "linear", "bias": True},
    {"similarity": "hard"},
]


def tiny(**settings: Any) -> GPT:
    """A model in float64, with weights large enough for each part to matter."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**TINY | settings)).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def pass_(model: GPT, seed: int, names: str = "*") -> tuple[Tensor, ActivationCache, Tensor]:
    """Logits, cache and tokens of two random rows, the second of two documents."""
    tokens = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(seed))
    return *run_with_cache(model, tokens, names, document_ids()), tokens


def document_ids() -> Tensor:
    return torch.tensor([[0] * 9, [0] * 4 + [1] * 5])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_activations_add_up_to_the_stream_and_to_the_logits(kind: dict[str, Any]) -> None:
    model = tiny(**kind)
    logits, cache, tokens = pass_(model, 1)
    assert torch.equal(logits, model(tokens, document_ids()))
    assert cache.names == list(hook_names(model))
    sizes = {"B": 2, "T": 9, "S": 9}
    for name, shape in hook_names(model).items():
        assert tuple(cache[name].shape) == tuple(sizes.get(n) or int(n) for n in shape[1:-1].split(", ")), name
    positions = cache.get("pos_embed", 0)
    pairs = [(cache["embed"] + positions, cache["resid_pre", 0])]
    pairs += [(model.logits(cache["final_norm"]), logits), (cache["logits"], logits)]
    for layer, block in enumerate(model.blocks):
        value = cache["v", layer].transpose(1, 2)  # (B, H_kv, T, D)
        z = (cache["pattern", layer] @ value.repeat_interleave(4 // value.shape[1], dim=1)).transpose(1, 2)
        gathered = cache["result", layer].sum(2) + (0 if block.attn.proj.bias is None else block.attn.proj.bias)
        is_post = kind.get("block") == "post_norm"
        update = block.attn_norm(gathered) if is_post else gathered
        pairs += [(z, cache["z", layer]), (update, cache["attn_out", layer])]
        middle = cache["resid_pre", layer] + cache["attn_out", layer]
        if kind.get("block") != "parallel":
            pairs.append((cache["resid_mid", layer], middle))
        pairs.append(
            (block.mlp.proj(cache["mlp.post", layer]), block.mlp(middle if is_post else cache["ln2.out", layer]))
        )
        pairs.append((middle + cache["mlp_out", layer], cache["resid_post", layer]))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("kind", sampled([kind for kind in KINDS if kind != {"similarity": "hard"}], strength=1))
def test_what_is_written_changes_the_logits_as_the_gradient_says(kind: dict[str, Any]) -> None:
    model = tiny(**kind)
    hooked = intervention(model)
    _, _, tokens = pass_(model, 1, "embed")
    logits, cache = run_with_cache(model, tokens, "*", document_ids(), gradients=True)
    torch.testing.assert_close(logits, model(tokens, document_ids()), atol=1e-9, rtol=1e-7)
    torch.manual_seed(2)
    weight = torch.randn_like(logits)
    gradients = torch.autograd.grad((logits * weight).sum(), list(cache.values()))
    for name, gradient in zip(cache, gradients, strict=True):
        direction = torch.randn_like(gradient)

        def moved(by: float, name: str = name, direction: Tensor = direction) -> float:
            with torch.no_grad(), hooks(model, {name: lambda activation, _: activation + by * direction}):
                return float((model(tokens, document_ids()) * weight).sum())

        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-4, abs=1e-4), name
    assert intervention(model) == hooked


@pytest.mark.parametrize("kind", sampled(KINDS, strength=1))
def test_a_stream_from_another_pass_makes_the_rest_of_the_pass_that_one(kind: dict[str, Any]) -> None:
    model = tiny(**kind)
    logits, other, _ = pass_(model, 1)
    _, _, tokens = pass_(model, 2, "embed")
    for name in ("resid_pre", "resid_mid", "resid_post"):
        if f"blocks.0.{name}" not in other:
            continue
        with hooks(model, {f"blocks.0.{name}": lambda _, name: other[name]}):
            patched, cache = run_with_cache(model, tokens, "*", document_ids())
        torch.testing.assert_close(patched, logits, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(cache["resid_post", 0], other["resid_post", 0], atol=1e-9, rtol=1e-7)
        assert not torch.equal(cache["embed"], other["embed"])


def test_a_pattern_of_the_previous_token_moves_values_one_position_on() -> None:
    model = tiny(n_kv_head=2)
    pattern = torch.zeros(9, 9, dtype=torch.float64).diagonal_scatter(torch.ones(8, dtype=torch.float64), -1)
    with hooks(model, {"blocks.1.attn.pattern": lambda old, _: pattern.expand_as(old)}):
        _, cache, _ = pass_(model, 1)
    value = cache["v", 1].repeat_interleave(2, dim=2)
    torch.testing.assert_close(cache["z", 1][:, 1:], value[:, :-1])
    assert not cache["z", 1][:, 0].any()


def test_written_scores_pass_through_the_softmax() -> None:
    model, scores = tiny(), torch.randn(2, 4, 9, 9, dtype=torch.float64)
    with hooks(model, {"blocks.0.attn.attn_scores": lambda *_: scores}):
        _, cache, _ = pass_(model, 1)
    torch.testing.assert_close(cache["pattern", 0], scores.softmax(-1))


def test_reading_leaves_the_fused_kernel_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny(), list[int]()
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), kernel(*a, **k))[1]
    )
    with hooks(model, {"*.pattern": lambda *_: None}):
        model(torch.zeros(1, 5).long())
    assert len(calls) == 2
    with hooks(model, {"*.pattern": lambda pattern, _: pattern}):
        model(torch.zeros(1, 5).long())
    assert len(calls) == 2


WRITES: dict[str, Any] = {
    "pos_embed": lambda x, _: 2 * x,
    "blocks.0.attn.k": lambda x, _: x.roll(1, dims=-1),
    "blocks.1.attn.rot_k": lambda x, _: -x,
    "blocks.0.attn.pattern": lambda x, _: x.square(),
    "blocks.1.attn.attn_scores": lambda x, _: 3 * x,
    "blocks.*.attn.z": lambda x, _: x.flip(2),
    "blocks.*.attn.result": lambda x, _: 1.5 * x,
    "blocks.*.resid_mid": lambda x, _: x.sin(),
    "logits": lambda x, _: x.roll(1, dims=-1),
}


@pytest.mark.parametrize("kind", [GPT2, {**GPT2, "n_kv_head": 2, "document_mask": True, "end_of_text": 256}], ids=str)
def test_hooks_act_on_each_generated_token_as_on_the_whole_text(kind: dict[str, Any]) -> None:
    model = tiny(**kind, vocab_size=257)
    writer, tokens = Writer(model, BytesTokenizer()), list(b"ab")
    plain = writer.generate("ab", max_new_tokens=6, temperature=0).tokens
    with hooks(model, WRITES):
        found = writer.generate("ab", max_new_tokens=6, temperature=0)
        for _ in found.tokens:
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert tokens[2:] == list(found.tokens) != list(plain)
    assert writer.generate("ab", max_new_tokens=6, temperature=0).tokens == plain


def test_inside_linear_attention_that_generates_nothing_can_be_read() -> None:
    model = tiny(similarity="linear", vocab_size=257)
    writer = Writer(model, BytesTokenizer())
    with (
        hooks(model, {"*.pattern": lambda *_: None}),
        pytest.raises(UserError, match=r"attn.pattern: .* run_with_cache"),
    ):
        writer.generate("ab", max_new_tokens=2)
    with capture_attention(model), pytest.raises(UserError, match="attention weights: linear attention keeps sums"):
        writer.generate("ab", max_new_tokens=2)
    with hooks(model, {"*.z": lambda z, _: 0 * z}):
        assert len(writer.generate("ab", max_new_tokens=2, min_new_tokens=2).tokens) == 2


def test_nested_hooks_are_called_in_order_and_each_builds_on_those_before() -> None:
    model, order = tiny(**GPT2), list[str]()

    def adding(label: str, amount: float) -> Any:
        def add(x: Tensor, name: str) -> Tensor:
            order.append(label)
            return x * amount + 1

        return add

    names = ("blocks.0.attn.pattern", "blocks.0.attn.rot_q", "blocks.1.resid_mid", "blocks.0.attn.q", "pos_embed")
    names += ("blocks.0.attn.result", "blocks.1.ln1.normalized", "ln_final.normalized")
    before = pass_(model, 1)[1]
    for name in names:
        order.clear()
        outer, inner = hooks(model, {name: adding("outer", 2)}), hooks(model, {name: adding("inner", 3)})
        with outer, inner:
            _, cache, tokens = pass_(model, 1)
        assert order == ["outer", "inner"]
        torch.testing.assert_close(cache[name], (before[name] * 2 + 1) * 3 + 1, atol=1e-9, rtol=1e-7)
        outer, inner = hooks(model, {name: adding("outer", 2)}), hooks(model, {name: adding("inner", 3)})
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        torch.testing.assert_close(pass_(model, 1)[1][name], before[name] * 3 + 1, atol=1e-9, rtol=1e-7)
        inner.__exit__(None, None, None)
        assert intervention(model) is None
    # Positions are those that are added, whatever a later hook makes of the embedding.
    with hooks(model, {"pos_embed": lambda x, _: 0 * x}), hooks(model, {"embed": lambda x, _: x + 5}):
        _, cache = run_with_cache(model, tokens)
    torch.testing.assert_close(cache["resid_pre", 0], before["embed"] + 5, atol=1e-9, rtol=1e-7)


def test_a_capture_shows_the_weights_that_hooks_put_in_place() -> None:
    model = tiny()
    zero = hooks(model, {"blocks.0.attn.pattern": lambda pattern, _: 0 * pattern})
    with capture_attention(model) as maps, zero:
        model(torch.randint(61, (2, 6)))
    assert [float(each.sum().round()) for each in maps] == [0.0, 2 * 4 * 6]


@pytest.mark.parametrize("name", ["*", "pos_embed", "blocks.1.attn.pattern", "blocks.0.resid_mid"])
def test_nothing_stays_behind_after_an_error_in_the_pass(name: str) -> None:
    model = tiny(**GPT2)
    for tokens, error in ((torch.zeros(1, 3).long(), ZeroDivisionError), (torch.tensor([[70]]), IndexError)):
        with pytest.raises(error), hooks(model, {name: lambda *_: 1 // 0}):
            model.token_embedding(tokens)
            model(tokens)
        assert intervention(model) is None


def test_a_failed_pass_leaves_no_change_to_the_next() -> None:
    model, tokens = tiny(), torch.zeros(1, 3).long()
    answers: list[Any] = [lambda x: x + 1, lambda x: None]
    with hooks(model, {"blocks.0.resid_mid": lambda x, _: answers.pop(0)(x)}):
        with pytest.raises(ZeroDivisionError), hooks(model, {"blocks.0.mlp_out": lambda *_: 1 // 0}):
            model(tokens)
        changed = model(tokens)
    assert torch.equal(changed, model(tokens))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blocks.0.attn.paterns", r"unknown activation blocks.0.attn.paterns: did you mean blocks.0.attn.pattern\?"),
        ("attn.hook_z", r"did you mean blocks\.\*\.attn\.z\?"),
        ("blocks.7.resid_post", r"did you mean blocks.\d.resid_post\?"),
        ("pos_embed", "unknown activation pos_embed"),
        ("??", r"hook_names\(model\) lists them"),
    ],
)
def test_an_unknown_name_is_refused_with_the_closest_one(name: str, words: str) -> None:
    model = tiny()
    with pytest.raises(UserError, match=words), hooks(model, {name: lambda *_: None}):
        pass
    with pytest.raises(UserError, match=words):
        run_with_cache(model, torch.zeros(1, 3).long(), name)


def test_what_a_function_returns_is_checked_and_moved_to_the_models_precision() -> None:
    model, tokens = tiny(), torch.zeros(1, 3).long()
    for wrong, words in ((torch.zeros(3), r"embed: .* shape \(3,\): return \(1, 3, 32\)"), (3, "returned a int")):
        with pytest.raises(UserError, match=words), hooks(model, {"embed": lambda *_, wrong=wrong: wrong}):
            model(tokens)
    with hooks(model, {"blocks.1.attn.hook_z": lambda z, _: z.float()}):
        assert model(tokens).dtype == torch.float64


def test_a_cache_answers_to_names_of_transformer_lens_and_of_layers() -> None:
    _, cache, _ = pass_(tiny(), 1)
    assert cache["blocks.1.attn.hook_pattern"] is cache["pattern", 1] is cache["attn.pattern", -1]
    assert cache["blocks.0.mlp.hook_post"] is cache["post", 0]
    assert cache["ln_final.hook_out"] is cache["final_norm"]
    assert cache["hook_embed"] is cache["embed"]
    assert ("pattern", 5) not in cache
    assert cache.get("pos_embed") is None
    assert cache.to("cpu").names == list(cache) == cache.names
    with pytest.raises(KeyError, match="blocks.1.patern is not in the cache"):
        cache["patern", 1]
    with pytest.raises(UserError, match=r"resid_past .* did you mean blocks.0.resid_post\?"):
        cache["blocks.0.resid_past"]


def test_a_cache_keeps_what_was_even_if_a_function_changes_it_in_place() -> None:
    model = tiny()
    _, before, tokens = pass_(model, 1)
    with hooks(model, {"blocks.1.resid_pre": lambda x, _: x.zero_()}):
        _, cache = run_with_cache(model, tokens, ["*.resid_p*"], document_ids())
    assert torch.equal(cache["resid_post", 0], before["resid_post", 0])
    assert not cache["resid_pre", 1].any()
    assert "blocks.0.attn.result" not in run_with_cache(model, tokens)[1]


def test_gradients_of_a_frozen_model_reach_its_activations() -> None:
    model = tiny().requires_grad_(requires_grad=False)
    logits, cache = run_with_cache(model, torch.zeros(1, 3).long(), "*.pattern", gradients=True)
    assert all(each.any() for each in torch.autograd.grad(logits[0, -1, 5], list(cache.values())))
    logits, cache = run_with_cache(tiny(), torch.zeros(1, 3).long())
    assert not any(each.requires_grad for each in [logits, *cache.values()])
