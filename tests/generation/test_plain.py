"""What hooks, patches and other modules change is in the text that is written, on the CPU's fast path too."""

from collections.abc import Callable

import pytest
import torch
from test_engine import make, written, written_slowly
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from minigpt.errors import UserError
from minigpt.generation import cpu_products, model_reader
from minigpt.generation.cpu_backend import CPUDecode, can_decode, obstacle
from minigpt.generation.model_reader import CompiledDecode
from minigpt.inspection.ablation import without_head
from minigpt.inspection.capture import capture_attention
from minigpt.model.gpt import GPT, SwiGLUMLP

PROMPT, SETTINGS = [1, 2, 3], {"max_new_tokens": 32, "temperature": 0}  # enough for matrices by columns


class LoRA(nn.Module):
    """A layer with an addition of low rank, as peft puts it in the place of a Linear."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 50 * self.up(self.down(x))


class Negated(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class NegatedWeight(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return -weight


class NegatedGPT(GPT):
    def forward(self, *arguments: object) -> Tensor:
        return -super().forward(*arguments)


def replaced_by_lora(model: GPT, _: pytest.MonkeyPatch) -> None:
    model.blocks[0].attn.qkv = LoRA(model.blocks[0].attn.qkv)


def replaced_by_a_subclass(model: GPT, _: pytest.MonkeyPatch) -> None:
    model.blocks[1].mlp.proj.__class__ = Negated


def replaced_by_a_plain_module(model: GPT, _: pytest.MonkeyPatch) -> None:
    model.blocks[0].mlp = nn.Identity()


def a_norm_without_weight(model: GPT, _: pytest.MonkeyPatch) -> None:
    model.blocks[0].mlp_norm = nn.RMSNorm(32, eps=1e3, elementwise_affine=False)


def a_subclass_of_the_model(model: GPT, _: pytest.MonkeyPatch) -> None:
    model.__class__ = NegatedGPT


def a_patched_forward(model: GPT, _: pytest.MonkeyPatch) -> None:
    mlp = model.blocks[0].mlp
    mlp.forward = lambda x: -type(mlp).forward(mlp, x)


def the_models_forward_patched(model: GPT, _: pytest.MonkeyPatch) -> None:
    model.forward = lambda *arguments: -GPT.forward(model, *arguments)


def a_class_patched(model: GPT, patch: pytest.MonkeyPatch) -> None:
    forward = SwiGLUMLP.forward
    patch.setattr(SwiGLUMLP, "forward", lambda self, x: -forward(self, x))


def a_forward_hook(model: GPT, _: pytest.MonkeyPatch) -> None:
    model.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: -output)


def a_forward_pre_hook(model: GPT, _: pytest.MonkeyPatch) -> None:
    model.blocks[0].mlp.proj.register_forward_pre_hook(lambda module, inputs: (-inputs[0],))


def a_hook_of_the_model(model: GPT, _: pytest.MonkeyPatch) -> None:
    model.register_forward_hook(lambda module, inputs, logits: -logits)


def a_parametrization(model: GPT, _: pytest.MonkeyPatch) -> None:
    parametrize.register_parametrization(model.blocks[0].mlp.proj, "weight", NegatedWeight())


def pruning(model: GPT, _: pytest.MonkeyPatch) -> None:
    prune.ln_structured(model.blocks[0].mlp.proj, "weight", amount=0.9, n=2, dim=0)


def a_global_hook(model: GPT, patch: pytest.MonkeyPatch) -> None:
    hooks = {-1: lambda module, inputs, output: -output if isinstance(module, SwiGLUMLP) else None}
    patch.setattr(nn.modules.module, "_global_forward_hooks", hooks)


CHANGES: list[Callable[[GPT, pytest.MonkeyPatch], None]] = [
    replaced_by_lora,
    replaced_by_a_subclass,
    replaced_by_a_plain_module,
    a_norm_without_weight,
    a_subclass_of_the_model,
    a_patched_forward,
    the_models_forward_patched,
    a_class_patched,
    a_forward_hook,
    a_forward_pre_hook,
    a_hook_of_the_model,
    a_parametrization,
    pruning,
    a_global_hook,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_written_is_what_the_changed_model_says(
    change: Callable[[GPT, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make({})
    plain, int8 = written(model, [PROMPT], **SETTINGS), CPUDecode(model, int8=True)
    change(model, monkeypatch)
    assert written(model, [PROMPT], **SETTINGS) == [written_slowly(model, PROMPT, **SETTINGS)] != plain
    with pytest.raises(UserError, match="load the model without int8"):
        written(model, [PROMPT], reader=int8, **SETTINGS)


def test_dropout_backward_hooks_captures_and_other_dtypes_leave_a_model_to_pytorch() -> None:
    model = make({"dropout": 0.5})
    assert can_decode(model)
    with capture_attention(model):
        assert obstacle(model) == "blocks.0.attn is captured"
    with without_head(model, 1, 0):
        assert obstacle(model) == "blocks.1.attn.proj has a hook"
    handle = model.blocks[1].register_full_backward_hook(lambda *_: None)
    assert obstacle(model) == "blocks.1 has a hook"
    handle.remove()
    model.blocks[0].dropout.train()
    assert obstacle(model) == "blocks.0.dropout has dropout on, in train mode"
    model.eval()
    assert can_decode(model)
    model.blocks[0].mlp.proj.bfloat16()
    assert obstacle(model) == (
        "blocks.0.mlp.proj is Linear(weight: Parameter bfloat16 cpu), "
        "where Linear(weight: Parameter float32 cpu) is expected"
    )
    assert obstacle(make({"similarity": "cosine"})) == "the model has similarity=cosine, document_mask=False"


def test_compiled_decoding_steps_aside_for_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make({})
    monkeypatch.setattr(
        model_reader, "CompiledWithFallback", lambda function, dynamic: function
    )  # nothing of this depends on it
    reader = CompiledDecode(model)
    assert reader.ready()
    a_forward_hook(model, monkeypatch)
    assert not reader.ready()
    assert written(model, [PROMPT], reader=reader, **SETTINGS) == [written_slowly(model, PROMPT, **SETTINGS)]


def optimizer_step(model: GPT) -> None:
    model(torch.tensor([PROMPT])).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad, alpha=30)  # as torch.optim does, whose first step imports for seconds


def loading(model: GPT) -> None:
    model.load_state_dict({name: weight.flip(0) for name, weight in model.state_dict().items()})


def rows_exchanged_behind_autograds_back(model: GPT) -> None:
    model.lm_head.weight.data[:50] = model.lm_head.weight.data[:50].flip(0)


def another_temperature(model: GPT) -> None:
    for block in model.blocks:
        block.attn.similarity.temperature = 100.0


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("change", [optimizer_step, loading, rows_exchanged_behind_autograds_back, another_temperature])
def test_weights_that_change_after_loading_are_what_is_written_with(change: Callable[[GPT], None], int8: bool) -> None:
    model, changed = make({}), make({})
    reader = CPUDecode(model, int8=int8)
    plain = written(model, [PROMPT], reader=reader, **SETTINGS)
    change(model)
    change(changed)
    found = written(model, [PROMPT], reader=reader, **SETTINGS)
    assert found == written(changed, [PROMPT], reader=CPUDecode(changed, int8=int8), **SETTINGS) != plain


@pytest.mark.parametrize("settings", [{"int8": True}, {"n_tokens": 200}], ids=str)
def test_only_matrices_that_changed_are_brought_into_their_form_again(
    settings: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, ...]] = []
    for name in ("to_int8", "to_column_major"):
        make_form = getattr(cpu_products, name)
        monkeypatch.setattr(
            cpu_products, name, lambda weight, form=make_form: made.append(tuple(weight.shape)) or form(weight)
        )
    model = make({})
    CPUDecode(model, **settings)
    reader = CPUDecode(model, **settings)
    made.clear()
    assert reader.ready()
    assert made == []
    model.blocks[0].attn.qkv.weight.data[3, 4] += 1
    assert reader.ready()
    assert made == [(96, 32)]
