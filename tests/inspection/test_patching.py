"""Patching: equal to single interventions by hand, for every kind of model, and it finds a circuit that is known."""

from typing import Any

import pytest
import torch
from grids import SLOW
from induction_circuit import induction_model
from test_engine import KINDS, make
from torch import Tensor

from minigpt.errors import UserError
from minigpt.inspection import patching
from minigpt.inspection.hooks import hooks
from minigpt.inspection.patching import SITES, Contrast, activation_patching, attribution_patching, path_patching
from minigpt.model.gpt import GPT

MODELS: list[dict[str, Any]] = [
    *KINDS,
    {"block": "post_norm"},
    {"block": "parallel", "n_kv_head": 2},
    {"qk_norm_per_head": False, "document_mask": True, "end_of_text": 7, "position": "learned", "window": 6},
]
QUICK = [{"similarity": name} for name in ("linear", "symmetric")]
QUICK += [KINDS[1], {"similarity": "uniform", "position": "learned"}, *MODELS[-3:]]
GRID = [pytest.param(kind, id=str(kind), marks=() if kind in QUICK else SLOW) for kind in MODELS]
CONTRAST = Contrast(torch.tensor([[1, 2, 3, 4, 5, 2]]), torch.tensor([[1, 9, 3, 4, 5, 2]]), answer=3, minus=8)
CHANGED = 1
"""The one position at which the prompts differ."""


def metric(model: GPT, functions: Any) -> float:
    with torch.no_grad(), hooks(model, functions):
        logits = model(CONTRAST.corrupted)[0, -1]
    return float(logits[3] - logits[8])


def read(model: GPT, tokens: Tensor, *names: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with torch.no_grad(), hooks(model, dict.fromkeys(names, lambda tensor, name: found.update({name: tensor}))):
        model(tokens)
    return found


def circuit_contrast() -> tuple[GPT, Contrast]:
    """A B ... A, after which the circuit predicts B; in the corrupted prompt, the first A is another token."""
    tokens = torch.tensor([[0, 5, 17, 23, 9, 30, 11, 17]])
    corrupted = tokens.clone()
    corrupted[0, 2] = 4
    return induction_model().model, Contrast(tokens, corrupted, answer=23)


@pytest.mark.parametrize("kind", GRID)
def test_each_patch_is_what_one_copied_activation_does(kind: dict[str, Any]) -> None:
    model = make(kind)
    found = activation_patching(model, CONTRAST)
    for name, (hook, axes) in SITES.items():
        full = f"blocks.1.{hook}"
        clean, head = read(model, CONTRAST.clean, full)[full], 2
        at = [slice(None)] * clean.ndim
        for axis, index in axes.items():
            at[index] = slice(head, head + 1) if axis == "head" else slice(4, 5)

        def copy(tensor: Tensor, _: str, at: Any = tuple(at), clean: Tensor = clean) -> Tensor:
            patched = tensor.clone()
            patched[at] = clean[at]
            return patched

        place = tuple({"head": head, "position": 4}[axis] for axis in axes)
        assert float(found.values[name][1][place]) == pytest.approx(metric(model, {full: copy}), abs=1e-4), name


@pytest.mark.parametrize("kind", GRID)
def test_the_embedding_of_the_changed_token_restores_everything_and_other_positions_nothing(
    kind: dict[str, Any],
) -> None:
    effect = activation_patching(make(kind), CONTRAST, ["resid_pre"]).effect("resid_pre")
    expected = torch.zeros(6)
    expected[CHANGED] = 1.0
    torch.testing.assert_close(effect[0], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", GRID)
def test_for_a_small_change_the_gradient_says_what_each_patch_does(kind: dict[str, Any]) -> None:
    if kind.get("similarity") == "hard":
        pytest.skip("a choice has no gradient: that of its softmax is taken instead")
    model = make(kind).double()
    with torch.no_grad():  # the changed token differs from the other by little
        table = model.token_embedding.weight
        table[9] = table[2] + 0.002 * table[9]
    exact, estimated = activation_patching(model, CONTRAST), attribution_patching(model, CONTRAST)
    for name in SITES:
        largest = float(exact.effect(name).abs().max())
        torch.testing.assert_close(
            estimated.effect(name), exact.effect(name), rtol=0, atol=0.02 * max(largest, 0.05), msg=name
        )


def test_attribution_does_the_same_with_frozen_weights_and_leaves_no_gradient_and_no_hook() -> None:
    model = make({})
    expected = attribution_patching(model, CONTRAST)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    found = attribution_patching(model.requires_grad_(False), CONTRAST)
    for name in SITES:
        assert torch.equal(found.values[name], expected.values[name])
    assert not any(block.attn.hooks for block in model.blocks)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_many_small_passes_give_what_one_large_pass_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = make({"n_kv_head": 2}), []
    expected = [activation_patching(model, CONTRAST), attribution_patching(model, CONTRAST)]
    hidden = GPT.hidden

    def counted(model: GPT, tokens: Tensor, *more: Any) -> Tensor:
        sizes.append(len(tokens))
        return hidden(model, tokens, *more)

    monkeypatch.setattr(GPT, "hidden", counted)
    monkeypatch.setattr(patching, "MOST_NUMBERS", 300)
    for patch, before in zip((activation_patching, attribution_patching), expected, strict=True):
        found = patch(model, CONTRAST)
        for name in SITES:
            torch.testing.assert_close(found.values[name], before.values[name], rtol=0, atol=1e-5)
    assert max(sizes) == 2  # 4 heads have 144 weights each row


@pytest.mark.parametrize("kind", [each for each in GRID if each.values[0].get("block") != "post_norm"])
def test_a_path_is_what_the_clean_head_adds_to_the_input_of_one_receiver(kind: dict[str, Any]) -> None:
    model, sender = make(kind | {"n_layer": 3}), (0, 1)
    found = path_patching(model, CONTRAST, sender)
    result = "blocks.0.attn.result"
    clean, corrupted = (read(model, tokens, result)[result] for tokens in (CONTRAST.clean, CONTRAST.corrupted))
    added = (clean - corrupted)[:, :, sender[1]]
    assert float(found.values["logits"]) == pytest.approx(
        metric(model, {"blocks.2.resid_post": lambda x, _: x + added}), abs=1e-4
    )
    uniform = kind.get("similarity") == "uniform"
    assert set(found.values) == ({"logits", "v"} if uniform else {"logits", "q", "k", "v"})
    for name in set(found.values) - {"logits"}:
        hook = f"blocks.2.{patching.RECEIVERS[name].hook}"
        received: dict[str, Tensor] = {}
        metric(
            model, {"blocks.2.resid_pre": lambda x, _: x + added, hook: lambda x, n, into=received: into.update({n: x})}
        )

        def receive(x: Tensor, name: str, received: dict[str, Tensor] = received) -> Tensor:
            return torch.cat([received[name][:, :, :1], x[:, :, 1:]], dim=2)  # head 0 alone

        assert float(found.values[name][2, 0]) == pytest.approx(metric(model, {hook: receive}), abs=1e-4)
        assert found.values[name][0].isnan().all()
        assert found.values[name][1:].isfinite().all()


def test_through_mlps_a_path_has_the_share_of_the_mlps_too() -> None:
    model = make({})
    direct, through = (path_patching(model, CONTRAST, (0, 1), through_mlps=mlps).values for mlps in (False, True))
    assert not torch.allclose(direct["k"][1], through["k"][1], atol=1e-3)
    for block in model.blocks:
        torch.nn.init.zeros_(block.mlp.proj.weight)
    direct, through = (path_patching(model, CONTRAST, (0, 1), through_mlps=mlps).values for mlps in (False, True))
    torch.testing.assert_close(direct, through, rtol=0, atol=1e-5, equal_nan=True)


def test_with_norms_after_each_half_paths_run_from_every_head_to_later_ones() -> None:
    found = path_patching(make({"block": "post_norm"}), CONTRAST, (0, 3))
    assert all(found.values[name][1].isfinite().all() for name in "qkv")
    assert float(found.effect("v")[1].abs().max()) > 1e-3


# ---- a circuit that is known ---------------------------------------------------------------------------------------


def test_both_heads_of_the_induction_circuit_are_found_with_the_positions_through_which_it_runs() -> None:
    found = activation_patching(*circuit_contrast())
    for name in ("head", "pattern"):
        others = found.effect(name).clone()
        restored = [others[0, 0].item(), others[1, 0].item()]
        others[:, 0] = 0.0
        # Both prompts have the same pattern in head 0.0: it attends by position.
        assert restored == pytest.approx([1.0 if name == "head" else 0.0, 1.0], abs=0.05), name
        assert float(others.abs().max()) < 0.05
    stream = found.effect("resid_pre")
    # From the first A to the B after it, where head 0.0 writes that A came before.
    assert stream[0].tolist() == pytest.approx([0, 0, 1, 0, 0, 0, 0, 0], abs=0.05)
    assert stream[1].tolist() == pytest.approx([0, 0, 0, 1, 0, 0, 0, 0], abs=0.05)
    by_position = found.effect("head_position")
    assert (float(by_position[0, 0, 3]), float(by_position[1, 0, 7])) == pytest.approx((1.0, 1.0), abs=0.05)
    assert float(found.effect("mlp_out").abs().max()) < 1e-5


def test_the_path_runs_from_the_previous_token_head_into_the_key_of_the_induction_head() -> None:
    model, contrast = circuit_contrast()
    found = path_patching(model, contrast, (0, 0))
    keys = found.effect("k")[1]
    assert keys.tolist() == pytest.approx([1, 0, 0, 0], abs=0.05)
    for name in ("q", "v", "logits"):
        assert float(found.effect(name).nan_to_num().abs().max()) < 0.05, name
    other = path_patching(model, contrast, (0, 2))
    assert all(float(other.effect(name).nan_to_num().abs().max()) < 0.05 for name in other.values)


@pytest.mark.parametrize("steps", [1, 4])
def test_attribution_agrees_with_activation_patching_on_the_circuit(steps: int) -> None:
    model, contrast = circuit_contrast()
    exact, estimated = activation_patching(model, contrast), attribution_patching(model, contrast, steps=steps)
    for name in ("resid_pre", "attn_out", "head", "head_position", "pattern"):
        pair = torch.stack([exact.effect(name).flatten(), estimated.effect(name).flatten()])
        assert float(torch.corrcoef(pair)[0, 1]) > 0.9, name


# ---- what cannot be patched ----------------------------------------------------------------------------------------


def test_what_cannot_be_patched_is_said_in_one_line() -> None:
    model, tokens = make({}), CONTRAST.clean
    with pytest.raises(UserError, match="the clean prompt has 6 tokens and the corrupted one 5: patching needs"):
        Contrast(tokens, tokens[:, 1:], 3)
    with pytest.raises(UserError, match="position=6: there are 6 positions"):
        Contrast(tokens, tokens, 3, position=6)
    for patch in (activation_patching, attribution_patching):
        with pytest.raises(UserError, match="both prompts give a logit of .*: there is nothing to restore"):
            patch(model, Contrast(tokens, tokens, 3))
        with pytest.raises(UserError, match="site heads: can patch resid_pre, "):
            patch(model, CONTRAST, ["heads"])
    with pytest.raises(UserError, match=r"sender=2\.0: the model has layers 0 to 1"):
        path_patching(model, CONTRAST, (2, 0))


def test_a_model_that_has_diverged_is_refused() -> None:
    model, contrast = circuit_contrast()
    with torch.no_grad():
        model.blocks[0].attn.proj.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN or infinite logits after the prompts"):
        activation_patching(model, contrast)
