"""Reads and writes model folders in Hugging Face's layout: config.json and weights."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import psutil
import torch

from minigpt.errors import UserError
from minigpt.files import reason, write_text
from minigpt.interop.families import Import, exported, imported
from minigpt.interop.hub import CONFIG
from minigpt.interop.tensor_files import Stored, read_json, stored_tensors, write_safetensors
from minigpt.model.gpt import GPT, position_tables

GENERATION_CONFIG, WEIGHTS = "generation_config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"

LARGEST_TABLE = 2**25
"""Numbers in the table of rotary positions, T D: no weight in the files bounds it. 262,144 tokens with heads of 128."""

Shape = tuple[int, ...]
DTYPE_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def read_folder(path: Path, context_length: int | None = None) -> GPT:
    """Load a model folder of transformers as a GPT, in float32 and eval mode.

    No memory is taken before all shapes are known to fit, and nothing but the tensors of one module is held twice.

    Args:
        path: the folder.
        context_length: less than the model's own, which is the default; for positions without weights.

    Raises:
        UserError: a file is missing or damaged, the config has no counterpart here, or the weights do not fit it.
    """
    file = path / CONFIG
    try:
        values = read_json(file)
        found = _shortened(imported(values), context_length)
        stored = stored_tensors(path)
        model = _model_without_memory(found, stored)
        _check_memory(model)
        model.to_empty(device="cpu")
        for name, table in position_tables(found.config).items():
            setattr(model, name, table)
        _fill(model, found, stored)
    except UserError as error:
        names_a_file = str(error).startswith((f"{path}:", f"{path}{os.sep}"))
        raise UserError(str(error) if names_a_file else f"{file}: {error}") from None
    except (RuntimeError, MemoryError, ArithmeticError) as error:
        raise UserError(f"{file}: no model can be made of this ({reason(error)})") from None
    return model.eval()


def _shortened(found: Import, context_length: int | None) -> Import:
    config = found.config
    if context_length is None or context_length == config.context_length:
        return found
    if context_length > config.context_length or config.position == "learned":
        only = "its positions have weights" if config.position == "learned" else "no more"
        raise UserError(f"context_length={context_length}: the model has {config.context_length:,} tokens, {only}")
    return dataclasses.replace(found, config=dataclasses.replace(config, context_length=context_length))


def _model_without_memory(found: Import, stored: Mapping[str, Stored]) -> GPT:
    """The model on `meta`, where tensors have shapes only, after comparing the shapes with those in the files."""
    config = found.config
    if config.position == "rotary" and config.context_length * config.width_per_head > LARGEST_TABLE:
        raise UserError(
            f"a context of {config.context_length:,} tokens is too long; lower max_position_embeddings in config.json"
        )
    found.find(stored)  # also bounds the layers by the tensors that there are
    with torch.device("meta"):
        model = GPT(config)
    for name, shape in found.shapes(model.state_dict(), stored).items():
        there = stored[name]
        if there.shape != shape:
            raise UserError(f"{name} in {there.file.name} is {_size(there.shape)}; the config says {_size(shape)}")
        if not there.is_float:
            raise UserError(
                f"{name} in {there.file.name} is not floating-point: quantised weights are not read; save "
                "them as float32, float16 or bfloat16"
            )
    return model


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _check_memory(model: GPT) -> None:
    needed, available = sum(each.nbytes for each in model.parameters()), psutil.virtual_memory().available
    if needed > available:
        raise UserError(f"the model needs {needed / 1e9:,.1f} GB of memory; {available / 1e9:,.1f} GB are available")


@torch.no_grad()
def _fill(model: GPT, found: Import, stored: Mapping[str, Stored]) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in found.tensors(lambda name: stored[name].read().float(), stored):
        parameter = parameters.pop(name)
        parameter[: len(tensor)] = tensor
        parameter[len(tensor) :] = 0  # the rows that pad the vocabulary
    assert not parameters, parameters.keys()


def write_folder(
    out: Path,
    model: GPT,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = 5 * 10**9,
    end_of_text: int | None = None,
) -> None:
    """Write a model for transformers: config.json, generation_config.json and model.safetensors.

    config.json is written last, and an older one deleted first: without it no program takes the folder for a model.

    Args:
        out: the folder; it is created. Weights of an earlier export in it are replaced.
        model: its weights are converted and written one at a time.
        dtype: of the files: torch.float32, bfloat16 or float16.
        shard_bytes: larger models are written as several files and their index.
        end_of_text: the token id that ends a text, as the tokenizer has it.

    Raises:
        UserError: no class computes the model exactly, or a file cannot be written.
    """
    export = exported(dataclasses.replace(model.config, end_of_text=end_of_text))
    state = {name: each.detach() for name, each in model.state_dict().items()}
    meta = {name: each.to("meta") for name, each in state.items()}
    shapes = {name: tuple(each.shape) for name, each in export.tensors(meta)}
    shards = _shards(shapes, dtype.itemsize, shard_bytes)
    n = len(shards)
    names = [WEIGHTS] if n == 1 else [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
    tensors = export.tensors(state)
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG).unlink(missing_ok=True)
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(out / name, shard, islice(tensors, len(shard)), dtype)
    stale = {*out.glob("model-*-of-*.safetensors"), out / WEIGHTS, out / INDEX} - {out / name for name in names}
    for file in stale:
        file.unlink(missing_ok=True)
    if n > 1:
        places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
        write_text(out / INDEX, _json({"metadata": {"total_size": total}, "weight_map": places}))
    ids = {name: export.config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_text(out / GENERATION_CONFIG, _json({"do_sample": True} | ids))
    # The older name, which transformers 5 reads too.
    write_text(out / CONFIG, _json(export.config | {"torch_dtype": DTYPE_NAMES[dtype]}))


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def _shards(shapes: Mapping[str, Shape], item_bytes: int, shard_bytes: int) -> list[dict[str, Shape]]:
    """Tensors in their order, as many to a file as fit; a larger one has a file of its own."""
    shards, used = [dict[str, Shape]()], 0
    for name, shape in shapes.items():
        n_bytes = torch.Size(shape).numel() * item_bytes
        if shards[-1] and used + n_bytes > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += n_bytes
    return shards
