"""A folder with config.json and weights: written, read, and refused where it is damaged or hostile."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import logits_of, opened_by_transformers, same, small_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from minigpt.errors import UserError
from minigpt.interop import folder as folder_module
from minigpt.interop.folder import read_folder, write_folder
from minigpt.model.gpt import GPT

WEIGHTS = "model.safetensors"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_folder(tmp_path / "model", small_model({}))
    return tmp_path / "model"


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_weights(folder: Path, changes: dict[str, Tensor], without: tuple[str, ...] = ()) -> None:
    tensors = load_file(folder / WEIGHTS) | changes
    save_file({name: tensor for name, tensor in tensors.items() if name not in without}, folder / WEIGHTS)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_folder(folder)
    said = str(caught.value)
    assert said.startswith(str(folder))
    assert "\n" not in said
    assert len(said) < 600
    return said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_written_in_each_type_and_read_into_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = small_model({"tie_embeddings": True})
    write_folder(tmp_path, model, dtype, end_of_text=69)
    stored = load_file(tmp_path / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert stored["model.embed_tokens.weight"].shape == (70, 32)  # without the rows that pad the vocabulary
    assert "lm_head.weight" not in stored
    config, generation = (json.loads((tmp_path / f"{n}config.json").read_text()) for n in ("", "generation_"))
    assert config["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert config["eos_token_id"] == generation["eos_token_id"] == 69
    back = read_folder(tmp_path)
    assert not back.training
    for name, parameter in model.named_parameters():
        found = back.get_parameter(name)
        assert found.requires_grad
        assert torch.equal(found, parameter.to(dtype).float()), name


def test_a_written_folder_is_one_that_transformers_opens_in_half_precision(tmp_path: Path) -> None:
    model = small_model({})
    write_folder(tmp_path, model, torch.bfloat16)
    theirs = opened_by_transformers(tmp_path)
    assert theirs.dtype == torch.bfloat16
    tokens = torch.randint(70, (1, 30))
    torch.testing.assert_close(read_folder(tmp_path)(tokens), logits_of(theirs.float(), tokens), rtol=0, atol=1e-4)


def test_a_large_model_is_written_as_shards_with_an_index_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    model, other = small_model({}), small_model({"n_embd": 40})
    write_folder(tmp_path, other)
    write_folder(tmp_path, model, shard_bytes=20_000)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert shards == [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    assert len(shards) > 3
    assert all((tmp_path / name).stat().st_size < 22_000 for name in shards)
    same(read_folder(tmp_path), model)
    tokens = torch.randint(70, (1, 30))
    theirs = opened_by_transformers(tmp_path)
    torch.testing.assert_close(model(tokens), logits_of(theirs, tokens), rtol=0, atol=1e-4)
    write_folder(tmp_path, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "generation_config.json", WEIGHTS]
    same(read_folder(tmp_path), other)


def test_an_interrupted_export_is_not_taken_for_a_model(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(folder_module, "write_safetensors", fail)
    with pytest.raises(UserError, match="full"):
        write_folder(written, small_model({}))
    assert "config.json: no such file" in refusal(written)


def test_pickled_weights_are_read_whole_and_in_shards(written: Path) -> None:
    tensors = load_file(written / WEIGHTS)
    model = read_folder(written)
    (written / WEIGHTS).unlink()
    torch.save(tensors, written / "pytorch_model.bin")
    same(read_folder(written), model)
    (written / "pytorch_model.bin").unlink()
    places = {name: f"part-{i % 2}.bin" for i, name in enumerate(tensors)}
    for part in set(places.values()):
        torch.save({name: tensors[name] for name in tensors if places[name] == part}, written / part)
    (written / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    same(read_folder(written), model)


def test_a_pickle_runs_nothing(written: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (written / "ran",))

    (written / WEIGHTS).unlink()
    torch.save({"a": Attack()}, written / "pytorch_model.bin")
    assert "holds more than tensors and plain values" in refusal(written)
    assert not (written / "ran").exists()
    torch.save({"model": {"a": torch.ones(1)}}, written / "pytorch_model.bin")
    assert "not plain tensors: 'model'" in refusal(written)
    (written / "pytorch_model.bin").write_bytes(b"no zip file")
    assert "pytorch_model.bin: " in refusal(written)


def test_names_that_are_missing_unknown_or_stored_twice_are_said(written: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    tensors = load_file(written / WEIGHTS)
    change_weights(written, {}, without=(name,))
    assert f"the weights lack tensors of the config: '{name}'" in refusal(written)
    save_file(tensors | {"model.layers.0.mlp.experts.weight": torch.ones(2)}, written / WEIGHTS)
    assert "1 tensors that the config has no place for: 'model.layers.0.mlp.experts.weight'" in refusal(written)
    save_file(tensors | {"layers.1.self_attn.o_proj.weight": tensors[name].clone()}, written / WEIGHTS)
    assert "no place for: 'layers.1.self_attn.o_proj.weight'" in refusal(written)


def test_shapes_and_types_are_compared_before_memory_is_taken(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: GPT, **_: Any) -> None:
        raise AssertionError("memory is taken")

    monkeypatch.setattr(GPT, "to_empty", fail)
    name = "model.layers.1.self_attn.o_proj.weight"
    tensors = load_file(written / WEIGHTS)
    change_weights(written, {name: torch.ones(32, 33)})
    assert f"{name} in {WEIGHTS} is 32 x 33; the config says 32 x 32" in refusal(written)
    change_weights(written, {name: torch.ones(32, 32, dtype=torch.int8)})
    assert f"{name} in {WEIGHTS} is not floating-point: quantised weights are not read" in refusal(written)
    save_file(tensors, written / WEIGHTS)
    change_config(written, vocab_size=71)
    assert "model.embed_tokens.weight in model.safetensors is 70 x 32; the config says 71 x 32" in refusal(written)
    change_config(written, vocab_size=70)
    # A tensor of a pickle can claim any shape over one number.
    (written / WEIGHTS).unlink()
    claim = {n: torch.ones(1).expand(tensor.shape) for n, tensor in tensors.items()}
    torch.save(claim | {name: torch.ones(1).expand(2**30, 2**30)}, written / "pytorch_model.bin")
    assert "is 1073741824 x 1073741824; the config says 32 x 32" in refusal(written)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 2**24, "hidden_size": 2**18},
        {"num_hidden_layers": 2**12},
        {"num_hidden_layers": 25, "max_position_embeddings": 2**20},
        {"intermediate_size": 2**20, "hidden_size": 2**18, "num_attention_heads": 2**14},
        {"head_dim": 2**14, "num_attention_heads": 2**14, "num_key_value_heads": 2**14},
        {"head_dim": 2**14},
        {"max_position_embeddings": 2**20, "head_dim": 2**14},
        {
            "model_type": "stablelm",
            "qk_layernorm": True,
            "hidden_size": 2**14,
            "num_attention_heads": 2**14,
            "num_key_value_heads": 2**14,
            "partial_rotary_factor": 1,
            "num_hidden_layers": 20,
        },
    ],
    ids=lambda changes: " ".join(changes),
)
def test_a_config_of_huge_sizes_takes_no_memory(changes: dict[str, Any], written: Path) -> None:
    read_folder(written)  # torch itself takes 70 MB when tensors on `meta` are first used
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    change_config(written, **(changes | {"layer_types": None}))
    refusal(written)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


def test_a_model_larger_than_the_memory_is_refused(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    assert "needs 0.0 GB of memory; 0.0 GB are available" in refusal(written)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("../model.safetensors", "'../model.safetensors' is not the name of a file beside it"),
        ("/etc/passwd", "'/etc/passwd' is not the name of a file beside it"),
        ("sub/model.safetensors", "is not the name of a file beside it"),
        ("..", "is not the name of a file beside it"),
        ("C:model.safetensors", "is not the name of a file beside it"),
        ("\x00", "is not the name of a file beside it"),
        ("absent.safetensors", "absent.safetensors is missing; download it into the same folder"),
        (7, "weight_map must name a file for each tensor"),
    ],
)
def test_an_index_cannot_leave_its_folder(place: object, said: str, written: Path) -> None:
    tensors = load_file(written / WEIGHTS)
    (written / WEIGHTS).rename(written.parent / WEIGHTS)
    places = dict.fromkeys(tensors, place)
    (written / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))
    assert said in refusal(written)


def test_an_index_that_does_not_fit_its_files_is_refused(written: Path) -> None:
    tensors = load_file(written / WEIGHTS)
    (written / WEIGHTS).rename(written / "a.safetensors")
    index = written / f"{WEIGHTS}.index.json"
    first, *others = tensors
    save_file({first: tensors[first]}, written / "b.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(others, "a.safetensors") | {first: "b.safetensors"}}))
    assert f"b.safetensors: holds tensors that another file holds too: '{first}'" in refusal(written)
    index.write_text(json.dumps({"weight_map": dict.fromkeys([*tensors, "x"], "a.safetensors")}))
    assert "the files lack 1 of its tensors: 'x'" in refusal(written)
    for text in ("[]", "{}", '{"weight_map": []}', "[" * 10**5, "{", '{"weight_map": ' + "9" * 5000 + "}"):
        index.write_text(text)
        assert "index.json: " in refusal(written)


def test_damaged_files_are_refused(written: Path) -> None:
    content = (written / WEIGHTS).read_bytes()
    for damaged in (b"", content[:100], content[:-1], b"\xff" * 100, (10**15).to_bytes(8, "little") + content[8:]):
        (written / WEIGHTS).write_bytes(damaged)
        assert f"{WEIGHTS}: damaged or incomplete" in refusal(written)
    (written / WEIGHTS).unlink()
    assert "holds no model.safetensors and no pytorch_model.bin" in refusal(written)
    for text in (b"", b"[]", b"\xff", b"[" * 10**5, b'{"vocab_size": ' + b"9" * 5000 + b"}"):
        (written / "config.json").write_bytes(text)
        assert "config.json: " in refusal(written)
    (written / "config.json").unlink()
    assert "config.json: no such file or directory" in refusal(written)
