"""A run that trains low-rank adapters: what trains, what its readers see, and that it resumes to the same bits."""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
from small_runs import PowerCutError, small_settings, small_text, train_and_die
from test_resume import assert_same_run

from minigpt.cli import parsing
from minigpt.config import Config, GPTConfig
from minigpt.errors import UserError
from minigpt.inspection import circuits
from minigpt.model.gpt import GPT
from minigpt.runs import loading
from minigpt.runs.adapters import merged_state, without_adapters
from minigpt.runs.folder import RunFolder
from minigpt.runs.loading import load_model, read_checkpoint
from minigpt.training import run
from minigpt.training.finetuning import OWN_LORA_RATE
from minigpt.training.initial import taken_over
from minigpt.training.lora import add_adapters, trained_parameters
from minigpt.training.module import TrainingModule
from minigpt.training.run import train

FAMILIES: dict[str, dict[str, Any]] = {
    "modern, grouped heads": {"n_kv_head": 1},
    "GPT-2": {"bias": True, "mlp": "gelu", "norm": "layernorm", "position": "learned", "tie_embeddings": True},
    "no queries": {"similarity": "uniform", "position": "alibi", "qkv_bias": True},
}


@pytest.fixture(scope="module")
def peft() -> Any:
    return pytest.importorskip("peft")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run whose weights are adapted."""
    quiet: dict[str, Any] = {"attention": {"enabled": False}, "sampling": {"prompts": []}}
    return train(small_settings(tmp_path_factory.mktemp("first"), **quiet))


def adapting(folder: Path, first: RunFolder, **sections: Any) -> Config:
    """A run with adapters on another text."""
    (folder / "text.txt").write_text(small_text(600)[3000:])
    lora = {"initial_weights": str(first.path), "lora": 2, "optimizer": {"learning_rate": 0.02}}
    return small_settings(folder, **(lora | sections))


def adapted(peft: Any, **settings: Any) -> GPT:
    """A model whose adapters change what it computes."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=70, context_length=16, n_layer=2, n_head=2, n_embd=16, **settings)).eval()
    add_adapters(model, 3, peft)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_give_the_logits_of_the_adapted_model(family: str, peft: Any) -> None:
    model = adapted(peft, **FAMILIES[family])
    tokens = torch.randint(70, (2, 16))
    expected = model(tokens)
    loaded = GPT(model.config).eval()
    before = loaded(tokens)
    loaded.load_state_dict(merged_state(model.state_dict()))
    copy = without_adapters(model)
    for plain in (loaded, copy):
        torch.testing.assert_close(plain(tokens), expected, atol=1e-5, rtol=0)
    assert list(copy.state_dict()) == list(loaded.state_dict())
    assert copy.token_embedding.weight is model.token_embedding.weight
    assert not torch.allclose(before, expected, atol=0.1)


def test_each_linear_layer_inside_the_blocks_has_an_adapter_and_nothing_else_trains(peft: Any) -> None:
    model = adapted(peft)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    layers = [f"blocks.{i}.{each}" for i in (0, 1) for each in ("attn.qkv", "attn.proj", "mlp.gate_up", "mlp.proj")]
    assert trained == {f"{layer}.lora_{half}.default.weight" for layer in layers for half in "AB"}
    hidden = model.config.mlp_width
    assert trained_parameters(model) == 2 * 3 * ((16 + 48) + (16 + 16) + (16 + 2 * hidden) + (hidden + 16))


def test_a_model_without_adapters_is_its_own_plain_model() -> None:
    model = GPT(GPTConfig(vocab_size=70, n_layer=1, n_head=2, n_embd=16))
    assert without_adapters(model) is model
    assert merged_state(model.state_dict()).keys() == model.state_dict().keys()


@pytest.mark.parametrize("of", [(1 << 40, 1), (48, 1)])
def test_an_adapter_of_another_shape_than_its_weight_is_refused_before_it_takes_memory(of: tuple[int, int]) -> None:
    state = {
        "blocks.0.attn.qkv.base_layer.weight": torch.zeros(48, 16),
        "blocks.0.attn.qkv.lora_A.default.weight": torch.zeros(1).expand(2, of[0]),
        "blocks.0.attn.qkv.lora_B.default.weight": torch.zeros(1).expand(of),
    }
    with pytest.raises(ValueError, match="blocks.0.attn.qkv: an adapter of"):
        merged_state(state)


class Watch(L.Callback):
    """Keeps copies of the adapters after each step."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.states.append({name: value.clone() for name, value in pl_module.model.state_dict().items()})


def test_a_killed_run_with_adapters_and_their_average_goes_on_bit_for_bit(
    first: RunFolder, tmp_path: Path, peft: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = adapting(
        tmp_path,
        first,
        model={"dropout": 0.1},
        optimizer={"learning_rate": 0.02, "average_decay": 0.8},
        attention={},
        checkpoint_every_n_steps=5,
        keep_every_n_steps=12,
    )
    watch, make, page = Watch(), run.make_callbacks, mock.Mock(wraps=circuits.copying)
    monkeypatch.setattr(run, "make_callbacks", lambda *given: [watch, *make(*given)])
    monkeypatch.setattr("minigpt.inspection.heads.copying", page)
    straight = train(config)
    said = capsys.readouterr().out
    source, ends = load_model(first.path), watch.states[-1]
    n_trained = sum(value.numel() for name, value in ends.items() if "lora_" in name)
    frozen = f"model   {source.model.n_parameters:,} frozen parameters, {n_trained:,} that train (LoRA of rank 2), "
    assert frozen in said
    assert f"from    {first.path}: adamw at 0.02, 3 warmup steps, dropout 0.1, weight decay 0\n" in said
    assert len(read_checkpoint(straight.last)["optimizer_states"][0]["state"]) == 16  # two for each of eight layers

    # The frozen weights are, also in the average, those of the first run to the bit.
    content = read_checkpoint(straight.last)
    for name, weight in source.model.state_dict().items():
        for state in (content["state_dict"], content["current_model_state"]):
            layer, _, kind = name.rpartition(".")
            assert torch.equal(weight, state.get(f"model.{name}", state.get(f"model.{layer}.base_layer.{kind}")))
    average = watch.states[0]
    for state in watch.states[1:]:
        average = {name: 0.8 * average[name] + 0.2 * value for name, value in state.items()}
    for file in (straight.weights, straight.last):
        found = load_model(file).model.state_dict()
        for name, weight in merged_state(average).items():
            torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5)
    kept = load_model(straight.kept(12)).model.state_dict()  # weights of the step, not their average
    assert all(torch.equal(value, kept[name]) for name, value in merged_state(ends).items())
    assert not torch.equal(kept["blocks.0.attn.qkv.weight"], source.model.blocks[0].attn.qkv.weight)

    # The head scores read the merged weights.
    (seen,) = page.call_args.args
    torch.testing.assert_close(circuits.copying(seen), circuits.copying(load_model(straight.last).model))

    train_and_die(config, 7)
    resumed = RunFolder(tmp_path / "runs" / "small-2")
    again, path = parsing.parse_training(["--resume", str(resumed.path)])
    with pytest.raises(UserError, match=r"this would be another run: lora=4 \(was 2\)"):
        train(dataclasses.replace(again, lora=4), path)
    train(again, path)
    assert_same_run(straight, resumed)


def test_a_rollback_restores_the_adapters(first: RunFolder, tmp_path: Path, peft: Any) -> None:
    quiet = {"attention": {"enabled": False}}
    config = adapting(tmp_path, first, on_non_finite="rollback", checkpoint_every_n_steps=4, **quiet)
    step, states = TrainingModule.training_step, dict[int, Any]()

    def bad(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        states[batch_idx] = {name: value.clone() for name, value in self.model.state_dict().items()}
        if batch_idx == 7:
            raise PowerCutError
        return step(self, batch, batch_idx) * (torch.nan if batch_idx == 5 else 1.0)

    with mock.patch.object(TrainingModule, "training_step", bad), contextlib.suppress(PowerCutError):
        train(config)
    assert all(torch.equal(value, states[6][name]) for name, value in states[4].items())
    assert not all(torch.equal(value, states[5][name]) for name, value in states[4].items())


def test_another_run_starts_from_the_merged_weights(
    first: RunFolder, tmp_path: Path, peft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(adapting(tmp_path, first, attention={"enabled": False}, sampling={"prompts": []}))
    monkeypatch.chdir(tmp_path)
    config, state = taken_over(Config(initial_weights=str(folder.last)))
    assert config.lora is None
    assert state is not None
    expected = merged_state(loading.read_checkpoint(folder.last)["state_dict"])
    assert all(torch.equal(expected[f"model.{name}"], value) for name, value in state.items())


def test_adapters_need_weights_to_start_from() -> None:
    with pytest.raises(UserError, match=r"lora=8: adapters need trained weights to start from: add --from RUN"):
        Config(lora=8)


def test_adapters_take_adamw_where_no_optimizer_is_given_and_refuse_muon(first: RunFolder) -> None:
    arguments = ["--from", str(first.path), "--lora", "8"]
    optimizer = taken_over(parsing.parse_training(arguments)[0])[0].optimizer
    assert (optimizer.name, optimizer.learning_rate) == ("adamw", OWN_LORA_RATE)
    with pytest.raises(UserError, match=r"lora=8: adapters train with AdamW, not optimizer.name=muon"):
        taken_over(parsing.parse_training([*arguments, "--optimizer.name", "muon"])[0])


def test_a_missing_peft_is_named_before_anything_is_written(
    first: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"lora=2: needs peft .*: pip install peft$"):
        train(adapting(tmp_path, first))
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "data").exists()
