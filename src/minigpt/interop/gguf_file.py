"""A model and its tokenizer as one GGUF file, for llama.cpp, Ollama and LM Studio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from minigpt.config import GPTConfig
from minigpt.data.tokenizers.base import Tokenizer, decode, first_token
from minigpt.data.tokenizers.bpe import well_formed
from minigpt.errors import UserError
from minigpt.files import reason, refuse_url, write_atomically
from minigpt.interop.family import READ_AS, Family
from minigpt.interop.gguf_families import gguf_family, gguf_tensors, rotary_scaling
from minigpt.interop.gguf_tokenizer import Vocabulary, vocabulary
from minigpt.model.gpt import GPT

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

GGUFDtype = Literal["float32", "float16", "q8_0"]

MAGIC = b"GGUF"
FRACTIONS = {"norm_eps", "rotary_base"}
"""Settings that llama.cpp reads as floating point, though a YAML file may say 10000."""


def write_gguf(path: Path, model: GPT, tokenizer: Tokenizer, name: str, dtype: GGUFDtype) -> None:
    """Write a GGUF file, atomically. One tensor at a time is converted.

    Norms, biases and position embeddings stay in float32. Q8_0 stores blocks of 32 weights as integers of 8 bits with a
    common scale; a matrix whose rows are no multiple of 32 long is stored in float16 instead.

    Args:
        path: the file; an existing GGUF file is replaced.
        model: the model.
        tokenizer: the model's.
        name: what other programs show.
        dtype: type of the matrices.

    Raises:
        UserError: llama.cpp cannot compute the model or split text as its tokenizer does, a weight exceeds the range of
            the type, or the file cannot be written.
    """
    if dtype not in get_args(GGUFDtype):
        raise UserError(f"dtype={dtype}: a GGUF file is written in {', '.join(get_args(GGUFDtype))}")
    _require_gguf(path)
    family, config = gguf_family(model.config)
    assert config.vocab_size is not None  # GPT refuses that
    vocab = vocabulary(tokenizer, config.vocab_size)
    plan = {each: (tuple(weight.shape), _stored_as(each, weight.shape, dtype)) for each, weight in gguf_tensors(model)}
    n_bytes = sum(_n_bytes(shape, kind) for shape, kind in plan.values())
    n_bytes += sum(len(text.encode()) + 16 for text in (*vocab.tokens, *vocab.merges))

    def write(temporary: Path) -> None:
        from gguf import GGUFWriter

        writer = GGUFWriter(temporary, family.model_type)
        try:
            _describe(writer, family, config, well_formed(name), dtype)
            _add_vocabulary(writer, vocab, tokenizer)
            for each, (shape, kind) in plan.items():
                writer.add_tensor_info(each, shape, np.dtype(np.float32), _n_bytes(shape, kind), kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for array in _converted(model, plan):
                writer.write_tensor_data(array)
        finally:
            writer.close()

    write_atomically(path, write, n_bytes)


def modelfile(gguf_name: str, model: GPTConfig, tokenizer: Tokenizer) -> str:
    """An Ollama Modelfile for a GGUF file in the same folder: `ollama create NAME -f Modelfile`.

    The template passes the prompt on as it is: a model trained on plain text continues it.

    Args:
        gguf_name: file name.
        model: for the context.
        tokenizer: for the text that ends a document, where Ollama stops.

    Raises:
        UserError: a Modelfile cannot say that name.
    """
    if not gguf_name.isprintable() or "/" in gguf_name or gguf_name != gguf_name.strip() or not gguf_name:
        raise UserError(f"{gguf_name!r}: an Ollama Modelfile cannot name this file: rename it, as model.gguf")
    end = decode(tokenizer, [tokenizer.end_of_text])
    return (
        f"FROM ./{gguf_name}\n"
        'TEMPLATE """{{ .Prompt }}"""\n'
        f"PARAMETER num_ctx {model.context_length}\n"
        f'PARAMETER stop "{end}"\n'
    )


def _require_gguf(path: Path) -> None:
    """Refuse URLs, folders, and existing files of another kind."""
    refuse_url(path, "a GGUF file")
    try:
        if Path(path).is_dir():
            raise UserError(f"{path}: is a folder; name a file, as model.gguf")
        if Path(path).exists():
            with Path(path).open("rb") as file:
                if file.read(4) not in {b"", MAGIC}:
                    raise UserError(f"{path}: already exists and is not a GGUF file; name another file")
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from None


def _describe(writer: GGUFWriter, family: Family, config: GPTConfig, name: str, dtype: GGUFDtype) -> None:
    """The sizes and settings that llama.cpp builds the model from."""
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    types = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_name(name)
    writer.add_file_type(LlamaFileType[types[dtype]])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    for ours, theirs in family.keys.items():
        add = writer.add_float32 if ours in FRACTIONS else writer.add_uint32
        add(f"{family.model_type}.{theirs}", getattr(config, READ_AS.get(ours, ours)))
    if "rotary" in family.positions:
        writer.add_value_length(config.width_per_head)
        _describe_rotary(writer, config)


def _describe_rotary(writer: GGUFWriter, config: GPTConfig) -> None:
    from gguf import RopeScalingType

    writer.add_rope_dimension_count(config.width_per_head)
    scaling = rotary_scaling(config)
    writer.add_rope_scaling_type(RopeScalingType(scaling["rope_type"]))
    writer.add_rope_scaling_factor(scaling.get("factor", 1.0))
    if scaling["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(scaling["original_max_position_embeddings"]))


def _add_vocabulary(writer: GGUFWriter, vocab: Vocabulary, tokenizer: Tokenizer) -> None:
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre(vocab.pre)
    writer.add_token_list(vocab.tokens)
    writer.add_token_types(vocab.types)
    writer.add_token_merges(vocab.merges)
    # llama.cpp takes token 11 for one that is not given.
    writer.add_bos_token_id(first_token(tokenizer))
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(tokenizer.begin_of_text is not None)  # llama-bpe has one before each prompt by default


Plan = dict[str, tuple[tuple[int, ...], "GGMLQuantizationType"]]
"""Shape and type of each tensor, in the order of the file."""


def _stored_as(name: str, shape: tuple[int, ...], dtype: GGUFDtype) -> GGMLQuantizationType:
    """The type of one tensor. llama.cpp computes with norms, biases and positions in float32 only."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if dtype == "float32" or len(shape) == 1 or name == "position_embd.weight":
        return GGMLQuantizationType.F32
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0]
    return GGMLQuantizationType.Q8_0 if dtype == "q8_0" and shape[-1] % block == 0 else GGMLQuantizationType.F16


def _n_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    from gguf import GGML_QUANT_SIZES

    block, n_bytes = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * n_bytes


def _converted(model: GPT, plan: Plan) -> Iterator[np.ndarray]:
    """Each tensor in the type that the plan gives it.

    Raises:
        UserError: a weight is NaN, or exceeds the range of its type.
    """
    from gguf import GGMLQuantizationType, quants

    half = float(np.finfo(np.float16).max)
    largest = {GGMLQuantizationType.F16: half, GGMLQuantizationType.Q8_0: half * 127}
    for name, weight in gguf_tensors(model):
        kind = plan[name][1]
        limit = largest.get(kind, float(np.finfo(np.float32).max))
        low, high = map(float, weight.aminmax())  # NaN if one is NaN, which no comparison holds for
        if not (-limit <= low and high <= limit):
            raise UserError(f"{name}: has weights that are NaN or beyond {limit:.0e}, the range of {kind.name}")
        yield quants.quantize(weight.contiguous().numpy(), kind)
