"""GGUF files, read by llama.cpp, by transformers and by gguf's own reader."""

import functools
import json
import weakref
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from interop.llama_cpp import ask
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from minigpt.config import GPTConfig
from minigpt.data.tokenizers.base import BytesTokenizer, CharsTokenizer, Tokenizer
from minigpt.data.tokenizers.bpe import END_OF_TEXT, SPLITS, BPETokenizer, byte_symbols
from minigpt.data.tokenizers.huggingface import HuggingFaceTokenizer
from minigpt.errors import UserError
from minigpt.interop.gguf_families import gguf_tensors
from minigpt.interop.gguf_file import modelfile, write_gguf
from minigpt.interop.gguf_tokenizer import PRE_TOKENIZERS, vocabulary
from minigpt.model.gpt import GPT

TEXT = "Мама мыла раму, and the cat didn't see 1234 of them.\n\nWhat's that?  It is a 東京 tower!\n" * 2
GPT2 = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "qk_norm": False}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2 | {"bias": True, "tie_embeddings": True},
    "qwen3": {"n_kv_head": 1, "head_dim": 24},
    "llama": {"n_kv_head": 1, "qk_norm": False, "bias": True},
}
MORE: dict[str, dict[str, Any]] = {
    "gpt2 without biases or positions": GPT2 | {"position": "none"},
    "gpt2 with sinusoidal positions": GPT2 | {"position": "sinusoidal", "bias": True, "norm_eps": 1e-2},
    "gpt2 with a mean": GPT2 | {"similarity": "uniform", "qkv_bias": True},
    "qwen3 with a temperature": {"softmax_temperature": 2.0, "tie_embeddings": True},
    "qwen3 without positions": {"position": "none", "window": 48},
    "qwen3 of one projection": {"similarity": "symmetric", "softmax_temperature": 0.5},
    "qwen3 with linear scaling": {"rotary_scaling": {"rope_type": "linear", "factor": 4.0}, "norm_eps": 1e-3},
    "qwen3 with YaRN": {
        "rotary_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_slow": 1}
    },
    "llama with a temperature": {"qk_norm": False, "softmax_temperature": 2.0, "bias": True},
    "llama of a memory": {"qk_norm": False, "similarity": "hopfield", "hopfield_steps": 1, "hopfield_beta": 0.3},
    "llama of one projection": {"qk_norm": False, "similarity": "symmetric", "qkv_bias": True},
    "llama with a mean": {"similarity": "uniform", "position": "none"},
    "llama with its scaling": {
        "qk_norm": False,
        "rotary_base": 500.0,
        "rotary_scaling": LLAMA3 | {"original_max_position_embeddings": 32},
    },
}
BYTES = BytesTokenizer()


def make(vocab_size: int = 257, **changes: Any) -> GPT:
    """A small model with norms and biases off their starting values."""
    torch.manual_seed(1)
    sizes = {"vocab_size": vocab_size, "context_length": 48, "n_layer": 2, "n_head": 2, "n_embd": 32, "mlp_hidden": 64}
    model = GPT(GPTConfig(**(sizes | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(4)
    return model.eval()


def learned(tokenizer: Tokenizer, **changes: Any) -> GPT:
    """A model that has learned a text by heart, so that its choices are clear."""
    model = make(tokenizer.vocab_size, **changes)
    tokens = torch.tensor(tokenizer.encode(TEXT))
    rows = tokens[: len(tokens) // 49 * 49].view(-1, 49)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def continued(model: GPT, prompt: list[int], n: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def write(folder: Path, model: GPT, tokenizer: Tokenizer = BYTES, dtype: Any = "float32", name: str = "m") -> Path:
    path = folder / f"{name}.gguf"
    write_gguf(path, model, tokenizer, "a model", dtype)
    return path


@functools.cache
def texts(n: int) -> list[str]:
    """Strings of all scripts, with what splits could stumble over."""
    found = list[str]()
    parts = ["\r\n", "\n\n", " " * 9, "é", "e\u0301", "👩‍👩‍👧", "東京", "'s", "'RE", "don't", "12345", "<|endoftext|>"]

    @seed(0)
    @settings(max_examples=n, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(parts=st.lists(st.sampled_from([*parts, *TEXT.split(" "), " "]) | st.text(st.characters(codec="utf-8"))))
    def collect(parts: list[str]) -> None:
        found.append("".join(parts))

    collect()
    return found


def texts_for(tokenizer: Tokenizer, n: int) -> list[str]:
    """Of the characters that it knows."""
    known = getattr(tokenizer, "alphabet", None)
    return texts(n) if known is None else ["".join(c for c in text if c in known) for text in texts(n)]


def huggingface(split: Any) -> HuggingFaceTokenizer:
    vocab = {symbol: i for i, symbol in enumerate(sorted(byte_symbols()))}
    tokenizer = HFTokenizer(models.BPE(vocab | {"th": 256, "Ġth": 257}, [("t", "h"), ("Ġ", "th")]))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    tokenizer.add_tokens([AddedToken("[CAT]", normalized=False)])
    return HuggingFaceTokenizer(json.loads(tokenizer.to_str()))


def split(pattern: str) -> Any:
    first = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


QWEN2 = next(pattern for pattern, name in PRE_TOKENIZERS.items() if name == "qwen2")
TOKENIZERS = {
    "bytes": BYTES,
    "chars": CharsTokenizer.of([TEXT]),
    "bpe": BPETokenizer.train([TEXT], 300),
    "gpt2": BPETokenizer(SPLITS["gpt2"], BPETokenizer.train([TEXT], 300).ranks, {END_OF_TEXT: 299}),
    "huggingface": huggingface(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "qwen": huggingface(split(QWEN2)),
}
PROMPTS = ["Мама", "and the cat", "What", "1", "It is a 東"]


def test_llama_cpp_continues_and_cuts_text_as_we_do(tmp_path):
    tokenizers = {"gpt2": TOKENIZERS["chars"], "qwen3": TOKENIZERS["bpe"], "llama": BYTES}
    ours = {name: learned(tokenizers[name], **MODELS[name]) for name in MODELS}
    requests, expected = [], []
    for name, model in ours.items():
        tokenizer = tokenizers[name]
        path = write(tmp_path, model, tokenizer, name=name)
        prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
        strings = texts_for(tokenizer, 100)
        requests.append({"model": str(path), "texts": strings, "prompts": prompts, "n": 20})
        expected.append((list(map(tokenizer.encode, strings)), [continued(model, prompt, 20) for prompt in prompts]))
    found = [(answer["tokens"], answer["continued"]) for answer in ask(requests)]
    assert found == expected


@pytest.mark.slow
def test_llama_cpp_gives_the_same_logits_for_every_setting_with_a_counterpart(tmp_path):
    tokens = torch.randint(0, 257, (1, 40), generator=torch.Generator().manual_seed(0))
    ours = {name: make(**changes) for name, changes in (MODELS | MORE).items()}
    paths = [write(tmp_path, model, name=name) for name, model in ours.items()]
    answers = ask([{"model": str(path), "rows": tokens.tolist()} for path in paths])
    for (name, model), answer in zip(ours.items(), answers, strict=True):
        with torch.no_grad():
            difference = (torch.tensor(answer["logits"]) - model(tokens)).abs().max()
        # llama.cpp looks up GELU in a table of half precision.
        assert difference < (2e-3 if name.startswith("gpt2") else 1e-4), name


@pytest.mark.slow
def test_llama_cpp_cuts_a_thousand_strings_as_each_tokenizer_does(tmp_path):
    requests, expected = [], []
    for name, tokenizer in TOKENIZERS.items():
        path = write(tmp_path, make(tokenizer.vocab_size, n_layer=1), tokenizer, name=name)
        strings = texts_for(tokenizer, 1000)
        requests.append({"model": str(path), "texts": strings})
        expected.append(list(map(tokenizer.encode, strings)))
    for name, answer, tokens in zip(TOKENIZERS, ask(requests), expected, strict=True):
        assert answer["tokens"] == tokens, name


@pytest.mark.slow
def test_llama_cpp_loses_little_with_weights_of_eight_bits(tmp_path):
    model = learned(BYTES, **MODELS["qwen3"])
    tokens = torch.tensor(BYTES.encode(TEXT)[:48])[None]
    losses = []
    paths = [write(tmp_path, model, dtype=dtype, name=dtype) for dtype in ("float32", "float16", "q8_0")]
    for answer in ask([{"model": str(path), "rows": tokens.tolist()} for path in paths]):
        logits = torch.tensor(answer["logits"])[0, :-1]
        losses.append(float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:])))
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
    assert losses[2] == pytest.approx(losses[0], abs=3e-2)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_the_same_model(tmp_path, name):
    from transformers import AutoConfig, AutoModelForCausalLM

    model = make(**MODELS[name] | {"bias": name == "gpt2"})  # its reader does not permute llama's biases back
    path = write(tmp_path, model)
    config = AutoConfig.from_pretrained(tmp_path, gguf_file=path.name)
    # What its reader forgets of a GGUF.
    config.head_dim, config.n_positions, config.n_inner = model.config.width_per_head, 48, 64
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, config=config, dtype=torch.float32)
    tokens = torch.arange(48)[None]
    with torch.no_grad():
        assert (theirs.eval()(tokens).logits - model(tokens)).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "q8_0"])
@pytest.mark.parametrize("name", MODELS)
def test_matrices_are_stored_in_the_type_asked_for_and_all_else_in_float32(tmp_path, name, dtype):
    model = make(**MODELS[name] | {"mlp_hidden": 48})
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(write(tmp_path, model, dtype=dtype)).tensors}
    ours = dict(gguf_tensors(model))
    assert stored.keys() == ours.keys()
    for each, tensor in stored.items():
        is_matrix = ours[each].ndim == 2 and each != "position_embd.weight"
        fits = dtype == "q8_0" and ours[each].shape[-1] % 32 == 0  # in blocks of 32 weights
        expected = ("Q8_0" if fits else "F16") if is_matrix else "F32"
        assert tensor.tensor_type.name == expected, each
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(ours[each].shape)
        largest = float(ours[each].abs().max())
        error = {"F32": 0.0, "F16": largest / 2048, "Q8_0": largest / 127}[expected]
        assert np.abs(weight - ours[each].numpy()).max() <= error, each


def test_a_file_says_what_llama_cpp_builds_the_model_and_the_tokenizer_from(tmp_path):
    tokenizer = TOKENIZERS["bpe"]
    model = make(320, **MODELS["qwen3"] | {"rotary_base": 500})
    fields = gguf.GGUFReader(write(tmp_path, model, tokenizer, "q8_0")).fields
    said = {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}
    assert len(said.pop("tokenizer.ggml.merges")) == 43
    names, types = said.pop("tokenizer.ggml.tokens"), said.pop("tokenizer.ggml.token_type")
    assert names[299:301] == [END_OF_TEXT, "<|unused_300|>"]
    assert types == [1] * 299 + [3] + [5] * 20
    assert isinstance(said["qwen3.rope.freq_base"], float)
    assert said == {
        "general.architecture": "qwen3",
        "general.name": "a model",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "qwen3.context_length": 48,
        "qwen3.embedding_length": 32,
        "qwen3.block_count": 2,
        "qwen3.feed_forward_length": 64,
        "qwen3.attention.head_count": 2,
        "qwen3.attention.head_count_kv": 1,
        "qwen3.attention.key_length": 24,
        "qwen3.attention.value_length": 24,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "qwen3.vocab_size": 320,
        "qwen3.rope.dimension_count": 24,
        "qwen3.rope.freq_base": 500.0,
        "qwen3.rope.scaling.type": "none",
        "qwen3.rope.scaling.factor": 1.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.bos_token_id": 299,
        "tokenizer.ggml.eos_token_id": 299,
        "tokenizer.ggml.add_bos_token": False,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"window": 8},
            "model.window=8: llama.cpp's qwen3 has no counterpart; the nearest that works is model.window=null$",
        ),
        ({"window": [None, 8], "qk_norm": False}, r"model.window=\[None, 8\]: llama.cpp's llama has no counterpart"),
        ({"bias": True}, "model.bias=true: llama.cpp's qwen3 has no counterpart; .* is model.bias=false"),
        ({"qkv_bias": True}, "model.qkv_bias=true: llama.cpp's qwen3 .* model.qkv_bias=false"),
        ({"qk_norm_per_head": False}, "model.qk_norm_per_head=false: llama.cpp's qwen3 .* model.qk_norm_per_head=true"),
        (
            {"mlp": "gelu", "block": "post_norm"},
            "model.block=post_norm, model.mlp=gelu: .* model.block=pre_norm, model.mlp=swiglu$",
        ),
        ({"similarity": "cosine"}, "model.similarity=cosine: .* model.similarity=scaled_dot"),
        ({"similarity": "hopfield"}, "model.hopfield_steps=2: .* model.hopfield_steps=1"),
        ({"logit_softcap": 50.0}, "model.logit_softcap=50.0: .* model.logit_softcap=null"),
        ({"position": "alibi"}, "model.position=alibi: .* model.position=rotary"),
        ({"position": "learned"}, "model.position=learned: .* model.position=rotary"),
        ({"rotary_fraction": 0.5}, "model.rotary_fraction=0.5: .* model.rotary_fraction=1"),
        ({"block": "parallel"}, "model.block=parallel: .* model.block=pre_norm"),
        ({"mlp": "gelu"}, "model.mlp=gelu: llama.cpp's qwen3 .* model.mlp=swiglu"),
        (GPT2 | {"mlp": "gelu_exact"}, "model.mlp=gelu_exact: llama.cpp's gpt2 .* model.mlp=gelu"),
        (GPT2 | {"position": "rotary"}, "model.position=rotary: llama.cpp's gpt2 .* model.position=learned"),
        (GPT2 | {"qk_norm": True}, "model.qk_norm=true: llama.cpp's gpt2 .* model.qk_norm=false"),
        (GPT2 | {"n_kv_head": 1}, "model.n_kv_head=1: llama.cpp's gpt2 .* model.n_kv_head=null"),
        (GPT2 | {"head_dim": 24}, "model.head_dim=24: llama.cpp's gpt2 .* model.head_dim=null"),
        (
            {"rotary_scaling": LLAMA3 | {"original_max_position_embeddings": 32}},
            "model.rotary_scaling=.*: llama.cpp's qwen3 has no counterpart of llama3; the nearest that works is yarn",
        ),
        (
            {
                "rotary_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                    "beta_fast": 8,
                }
            },
            "model.rotary_scaling=.*: llama.cpp reads no beta_fast; without it there is a counterpart",
        ),
    ],
)
def test_a_setting_without_a_counterpart_is_refused_with_the_nearest_that_has_one(tmp_path, changes, message):
    with pytest.raises(UserError, match=f"^{message}") as error:
        write(tmp_path, make(**changes))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_llama_cpp_cannot_say_is_refused(tmp_path, capsys):
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    for unknown, message in [
        (
            huggingface(split(r"\d+|\D+")),
            r"splits text by .* which llama.cpp has no name for: train with a tokenizer",
        ),
        (huggingface(digits), "pre_tokenizer is none of those that llama.cpp has a name for"),
        (BPETokenizer(SPLITS["bpe"], [*map(bytes, zip(range(256))), b"[X]"], {END_OF_TEXT: 257, "[X]": 258}), r"\[X\]"),
    ]:
        with pytest.raises(UserError, match=message):
            write(tmp_path, make(300), unknown)
    with pytest.raises(UserError, match="model.vocab_size=200: the tokenizer has 257 tokens"):
        write(tmp_path, make(200))
    for name in ("cl100k_base", "o200k_base"):
        vocabulary(BPETokenizer(SPLITS[name], [*map(bytes, zip(range(256)))], {END_OF_TEXT: 256}), 257)
        assert "note: llama.cpp may split" in capsys.readouterr().err


def test_no_weight_is_in_memory_twice_for_longer_than_its_own_layer():
    model, alive = make(n_layer=4).bfloat16(), list[weakref.ref[torch.Tensor]]()
    size = sum(weight.nbytes for _, weight in gguf_tensors(model))
    largest = 0
    for _, weight in gguf_tensors(model):
        alive.append(weakref.ref(weight))
        largest = max(largest, sum(each.nbytes for ref in alive if (each := ref()) is not None))
    assert largest < size / 4


def test_a_file_of_another_kind_is_not_replaced_and_a_failed_write_leaves_the_old_file(tmp_path):
    model = make()
    text = tmp_path / "story.txt"
    text.write_text("Once upon a time")
    with pytest.raises(UserError, match=r"story.txt: already exists and is not a GGUF file; name another file"):
        write_gguf(text, model, BYTES, "a", "float32")
    with pytest.raises(UserError, match="is a folder; name a file, as model.gguf"):
        write_gguf(tmp_path, model, BYTES, "a", "float32")
    with pytest.raises(UserError, match="a GGUF file is opened from disk only"):
        write_gguf(Path("https://example.org/m.gguf"), model, BYTES, "a", "float32")
    with pytest.raises(UserError, match=r"story.txt/m.gguf: could not be written|story.txt/m.gguf: not a directory"):
        write_gguf(text / "m.gguf", model, BYTES, "a", "float32")
    with pytest.raises(UserError, match="dtype=int4: a GGUF file is written in float32, float16, q8_0"):
        write_gguf(tmp_path / "m.gguf", model, BYTES, "a", "int4")  # type: ignore[arg-type]
    path = write(tmp_path, model)
    before = path.read_bytes()
    for value, dtype, limit in ((float("nan"), "float32", "3e[+]38"), (1e5, "float16", "7e[+]04")):
        model.lm_head.weight.data[3, 3] = value  # the last tensor of the file
        with pytest.raises(UserError, match=f"output.weight: has weights that are NaN or beyond {limit}"):
            write(tmp_path, model, dtype=dtype)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path, text]


def test_a_model_may_have_any_name(tmp_path):
    for name in ("", "день \n \ud800 \"'", "x" * 10_000):
        path = tmp_path / "ein Häuschen '\".gguf"
        write_gguf(path, make(), BYTES, name, "float32")
        found = gguf.GGUFReader(path).fields.get("general.name")
        assert (found.contents() if found else "") == name.replace("\ud800", "?")


def test_the_modelfile_passes_the_prompt_on_as_it_is():
    assert modelfile("my model.gguf", make().config, BYTES) == (
        'FROM ./my model.gguf\nTEMPLATE """{{ .Prompt }}"""\nPARAMETER num_ctx 48\nPARAMETER stop "<|endoftext|>"\n'
    )
    for name in ("a\nb.gguf", "../m.gguf", " m.gguf", "\ud800.gguf"):
        with pytest.raises(UserError, match="an Ollama Modelfile cannot name this file: rename it, as model.gguf"):
            modelfile(name, make().config, BYTES)
