"""Speed of writing, beside other programs and the memory's limit -> tables: `python benchmarks/generation.py`."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch
import torch.nn.functional as F
from harness import Block, Bound, Contender, Spread, Table, Turn, ratios, turns

from minigpt.cli import parsing, program
from minigpt.config import Config, GenerationConfig, GPTConfig
from minigpt.data.batches import IGNORED, ValBatches
from minigpt.data.open import open_data
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.generation.cpu_backend import CPUDecode
from minigpt.generation.engine import Row, generate
from minigpt.generation.generator import Writer
from minigpt.generation.model_reader import ModelReader
from minigpt.generation.sampling import Generator, apply_filters, draw
from minigpt.interop.gguf_file import GGUFDtype, write_gguf
from minigpt.model.gpt import GPT

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # its llama.cpp

SAMPLING: dict[str, Any] = {"temperature": 0.8, "top_k": 50}
SHAPES = {
    "gpt2": GPTConfig.gpt2_family(),
    "demo": GPTConfig.gpt2_family(vocab_size=2048, context_length=128, n_layer=4, n_head=4, n_embd=192),
    "nanogpt": GPTConfig.gpt2_family(
        vocab_size=65, context_length=64, n_layer=4, n_head=4, n_embd=128, bias=False, tie_embeddings=True
    ),
    "modern": GPTConfig(vocab_size=2048, context_length=128, n_layer=4, n_head=4, n_embd=192),
}
"""GPT-2 small; the demo's sizes in GPT-2's family and as they are; nanoGPT's CPU recipe."""

Write = Callable[[int, int], None]
"""(length of the prompt, tokens to write): draws them at SAMPLING."""


def ours(shape: str, against: Path | None, *, int8: bool = False, numpy: bool = True, n_rows: int = 1) -> Write:
    model = GPT(SHAPES[shape]).eval()
    reader = CPUDecode(model, int8=True) if int8 else None if numpy else ModelReader(model)

    def write(n_prompt: int, n_new: int) -> None:
        prompts = [[(i + token) % model.config.vocab_size for token in range(n_prompt)] for i in range(n_rows)]  # type: ignore[operator]
        rows = [Row(prompt, Generator(i), i, n_prompt) for i, prompt in enumerate(prompts)]
        for _ in generate(model, rows, GenerationConfig(max_new_tokens=n_new, **SAMPLING), reader):
            pass

    return write


def uncached(shape: str, against: Path | None) -> Write:
    """Our model, which reads the whole text for each token."""
    model = GPT(SHAPES[shape]).eval()

    @torch.inference_mode()
    def write(n_prompt: int, n_new: int) -> None:
        tokens, generator, config = (
            list(range(n_prompt)),
            Generator(0),
            GenerationConfig(**SAMPLING),
        )
        for _ in range(n_new):
            logits = model.logits(model.hidden(torch.tensor([tokens[-model.config.context_length :]]))[:, -1:])[0, 0]
            *_, (_, choice) = apply_filters(logits.numpy(), config)
            tokens.append(draw(choice, config.temperature, generator))

    return write


def hugging_face(shape: str, against: Path | None) -> Write:
    """GPT2LMHeadModel.generate with its cache."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ours = SHAPES[shape]
    sizes = {"n_positions": ours.context_length, "n_layer": ours.n_layer, "n_head": ours.n_head, "n_embd": ours.n_embd}
    config = GPT2Config(vocab_size=ours.vocab_size, bos_token_id=0, eos_token_id=None, **sizes)
    model = GPT2LMHeadModel(config).eval()

    @torch.inference_mode()
    def write(n_prompt: int, n_new: int) -> None:
        tokens = torch.arange(n_prompt)[None]
        model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n_new, min_new_tokens=n_new, do_sample=True,
            pad_token_id=0, **SAMPLING,
        )  # fmt: skip

    return write


def nanogpt(shape: str, against: Path | None) -> Write:
    """GPT.generate of a checkout of nanoGPT, which has no cache."""
    sys.path.insert(0, str(against))
    module, ours = importlib.import_module("model"), SHAPES[shape]
    sizes = {"n_layer": ours.n_layer, "n_head": ours.n_head, "n_embd": ours.n_embd, "bias": ours.bias, "dropout": 0.0}
    model = module.GPT(module.GPTConfig(block_size=ours.context_length, vocab_size=ours.vocab_size, **sizes)).eval()

    def write(n_prompt: int, n_new: int) -> None:
        with torch.no_grad():
            model.generate(torch.arange(n_prompt)[None], n_new, **SAMPLING)

    return write


def llama_cpp(shape: str, against: Path | None, *, dtype: GGUFDtype) -> Write:
    """llama.cpp with a model of these sizes from `minigpt export`'s writer."""
    from interop.llama_cpp import FOLDER

    script = Path(__file__).with_suffix("").with_name("llama_cpp.mjs")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, GPT(SHAPES[shape]), BytesTokenizer(), shape, dtype)
        command = ["node", script, FOLDER, path, str(torch.get_num_threads())]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def write(n_prompt: int, n_new: int) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{n_prompt} {n_new}\n")
            process.stdin.flush()
            assert int(process.stdout.readline()) == n_new

        write(1, 1)  # it is loaded
    return write


CONTENDERS: dict[str, Callable[[str, Path | None], Write]] = {
    "minigpt": ours,
    "minigpt, 8-bit weights": lambda shape, against: ours(shape, against, int8=True),
    "minigpt, 8 prompts": lambda shape, against: ours(shape, against, n_rows=8),
    "minigpt, PyTorch alone": lambda shape, against: ours(shape, against, numpy=False),
    "minigpt, no cache": uncached,
    "Hugging Face generate": hugging_face,
    "nanoGPT's sampler": nanogpt,
    "llama.cpp": partial(llama_cpp, dtype="float32"),
    "llama.cpp, Q8_0": partial(llama_cpp, dtype="q8_0"),
}


def writing(name: str, shape: str, sizes: tuple[int, int], against: Path | None, turn: Turn) -> None:
    """A contender: (length of the prompt, tokens to write) again and again."""
    write = CONTENDERS[name](shape, against)
    while True:
        turn()
        write(*sizes)


def reading(turn: Turn) -> None:
    """A contender that reads memory: 512 MB, four times."""
    block = torch.ones(2**27)
    while True:
        turn()
        for _ in range(4):
            block.sum()


def seconds(
    names: Sequence[str],
    shape: str,
    sizes: tuple[int, int],
    n_rounds: int,
    against: Path | None = None,
    **others: Contender,
) -> dict[str, list[float]]:
    """Of each contender in each round."""
    writers = {name: partial(writing, name, shape, sizes, against) for name in names}
    return turns(others | writers, n_rounds)[1]


def n_bytes(config: GPTConfig) -> int:
    """Of the weights that are read for each token: all but the tables of which only a row is."""
    model = GPT(config)
    tables = [model.position_embedding.weight] if config.position == "learned" else []
    tables += [] if config.tie_embeddings else [model.token_embedding.weight]
    return sum(p.nbytes for p in model.parameters()) - sum(table.nbytes for table in tables)


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def has_llama_cpp() -> bool:
    """Whether the tests' llama.cpp is there, or can be installed; says why not."""
    from interop.llama_cpp import missing

    if why := missing():
        print(f"llama.cpp is left out: {why}", flush=True)
    return not why


def large(chosen: Namespace) -> Iterator[Block]:
    """GPT-2 small against the speed of memory, Hugging Face's generate and llama.cpp."""
    names = ["minigpt", "minigpt, 8-bit weights", "minigpt, PyTorch alone"]
    names += ["Hugging Face generate"] if installed("transformers") else []
    names += ["llama.cpp", "llama.cpp, Q8_0"] if has_llama_cpp() else []
    sizes, n_rounds = ((32, 32), 2) if chosen.quick else ((32, 256), 5)
    taken = seconds(names, "gpt2", sizes, n_rounds, memory=reading)
    bytes_a_token = n_bytes(SHAPES["gpt2"])
    limits = [4 * 2**29 / each / bytes_a_token for each in taken["memory"]]
    limit = statistics.median(limits)
    bounds = {
        "minigpt": Bound(
            "GPT-2 small, float32: share of the memory's limit",
            [sizes[1] / each / limit for each, limit in zip(taken["minigpt"], limits, strict=True)],
            at_least=0.85,
            limited_by="some 250 numpy calls a token beside the products, and sampling from 50,257 logits",
        ),
        "minigpt, 8-bit weights": Bound(
            "GPT-2 small: int8 over float32",
            ratios(taken["minigpt"], taken["minigpt, 8-bit weights"]),
            at_least=1.6,
            limited_by="the same calls; reading a quarter of the bytes allows 4",
        ),
    }
    rows = []
    for name in names:
        rates = [sizes[1] / each for each in taken[name]]
        rate = statistics.median(rates)
        is_8_bit = "8-bit" in name or "Q8" in name
        share = "" if is_8_bit else f"{rate / limit:.0%}"
        gigabytes = "" if is_8_bit else f"{rate * bytes_a_token / 1e9:.1f}"
        times = Spread(ratios(taken[name], taken["minigpt"]))
        rows.append([name, Spread(rates), gigabytes, share, times, bounds.get(name, "")])
    yield Table(
        f"GPT-2 small, float32, batch 1, prompt of {sizes[0]}, {sizes[1]} new tokens, {n_rounds} rounds; reading "
        f"{bytes_a_token / 1e6:.0f} MB a token at {limit * bytes_a_token / 1e9:.1f} GB/s would be {limit:.1f} tokens/s",
        ["", "tokens/s", "GB/s", "share of the limit", "times minigpt's seconds", "bound"],
        rows,
    )
    sizes = (32, 4) if chosen.quick else (256, 16)
    names = ["minigpt", "minigpt, no cache"]
    taken = seconds(names, "gpt2", sizes, 2 if chosen.quick else 3)
    title = f"GPT-2 small, prompt of {sizes[0]}, {sizes[1]} new tokens: what the cache saves"
    yield rates_table(title, names, taken, sizes)


def batch(chosen: Namespace) -> Iterator[Block]:
    """Eight prompts at once against one."""
    names, sizes, n_rounds = (
        ["minigpt", "minigpt, 8 prompts"],
        (32, 8 if chosen.quick else 64),
        2 if chosen.quick else 5,
    )
    taken = seconds(names, "gpt2", sizes, n_rounds)
    more = [8 * each for each in ratios(taken["minigpt"], taken["minigpt, 8 prompts"])]
    rates = {"minigpt": 1, "minigpt, 8 prompts": 8}
    rows = [[name, Spread([n * sizes[1] / each for each in taken[name]]), ""] for name, n in rates.items()]
    rows[1][2] = Bound(
        "GPT-2 small: tokens/s of 8 prompts over one",
        more,
        at_least=4,
        limited_by="OpenBLAS copies the weights before it multiplies 8 vectors: 1.8 to 2.9 times the time of one",
    )
    yield Table(f"GPT-2 small, prompts of {sizes[0]}, {sizes[1]} new tokens", ["", "tokens/s", "bound"], rows)


def prompts(chosen: Namespace) -> Iterator[Block]:
    """Reading a prompt and writing one token."""
    if not installed("transformers"):
        return
    names = ["minigpt", "Hugging Face generate"]
    for shape, title, n_prompt in (("gpt2", "GPT-2 small", 512), ("demo", "the demo's sizes", 96)):
        sizes = (n_prompt // 4 if chosen.quick else n_prompt, 1)
        taken = seconds(names, shape, sizes, 2 if chosen.quick else 7)
        rates = [[name, Spread([sizes[0] / each for each in taken[name]]), ""] for name in names]
        faster = ratios(taken["Hugging Face generate"], taken["minigpt"])
        rates[0][2] = Bound(f"{title}: speed of reading a prompt over transformers'", faster, at_least=1)
        yield Table(f"{title}, prompt of {sizes[0]} and one token", ["", "tokens read/s", "bound"], rates)


def small(chosen: Namespace) -> Iterator[Block]:
    """Models whose calls cost more than their arithmetic."""
    n_rounds = 3 if chosen.quick else 11
    hugging = ["Hugging Face generate"] if installed("transformers") else []
    names, sizes = ["minigpt", "minigpt, PyTorch alone", "minigpt, 8-bit weights", *hugging], (32, 95)
    names += ["llama.cpp"] if has_llama_cpp() else []
    yield rates_table(
        "the demo's sizes in GPT-2's family, prompt of 32, 95 new tokens",
        names,
        seconds(names, "demo", sizes, n_rounds),
        sizes,
        {"Hugging Face generate": 3},
    )
    names = ["minigpt", "minigpt, PyTorch alone"]
    yield rates_table(
        "the demo's own model (rotary, QK-norm, SwiGLU)", names, seconds(names, "modern", sizes, n_rounds), sizes
    )
    if chosen.against is not None:
        names, sizes = ["minigpt", "minigpt, PyTorch alone", "nanoGPT's sampler"], (1, 256)
        title = (
            "nanoGPT's CPU recipe (4 layers, 4 heads, 128 wide, context 64), 256 new tokens, so past the context too"
        )
        taken = seconds(names, "nanogpt", sizes, n_rounds, chosen.against)
        yield rates_table(title, names, taken, sizes, {"nanoGPT's sampler": 4})


def rates_table(
    title: str,
    names: Sequence[str],
    taken: dict[str, list[float]],
    sizes: tuple[int, int],
    at_least: Mapping[str, float] | None = None,
) -> Table:
    """Args: at_least: how many times as fast as a contender minigpt has to be."""
    rows = []
    for name in names:
        times, bound = ratios(taken[name], taken["minigpt"]), ""
        if name in (at_least or {}):
            bound = Bound(f"{title.partition(',')[0]}: over {name}", times, at_least=(at_least or {})[name])
        rows.append([name, Spread([sizes[1] / s for s in taken[name]]), Spread(times), bound])
    return Table(title, ["", "tokens/s", "times minigpt's seconds", "bound"], rows)


def trained(chosen: Namespace) -> Iterator[Block]:
    """What only a trained model shows: how often drafts are right, and what 8 bits cost."""
    writer, rounded = Writer.load(chosen.run), Writer.load(chosen.run, int8=True)
    config = parsing.parse_training(["--resume", str(chosen.run)])[0]
    text = Path(__file__).read_text(encoding="utf-8")
    n_prompt = writer.model.config.context_length // 2
    prompts = [text[i : i + n_prompt] for i in range(0, len(text), len(text) // (4 if chosen.quick else 16))]
    rows = []
    for name, repeat in (("code as it is", 1), ("a line of code said again and again", 3)):
        said = [(prompt[: n_prompt // repeat] * repeat) for prompt in prompts]
        for temperature in (0.0, 0.8):
            times: dict[int, list[float]] = {0: [], 7: []}
            for prompt in said:
                settings = {"max_new_tokens": n_prompt, "temperature": temperature}
                texts = set()
                for draft_tokens in times:
                    began = time.perf_counter()
                    texts.add(writer.generate(prompt, draft_tokens=draft_tokens, **settings).tokens)
                    times[draft_tokens].append(time.perf_counter() - began)
                assert len(texts) == 1, "a draft changed the text"
            rows.append([name, str(temperature), Spread(ratios(times[0], times[7]))])
    yield Table(
        f"{chosen.run}: plain seconds over seconds with draft_tokens=7",
        ["prompts", "temperature", "times as fast"],
        rows,
    )
    losses = [val_loss(each, config, 4 if chosen.quick else None) for each in (writer, rounded)]
    yield Table(
        f"{chosen.run}: loss over its val split, nats a token",
        ["float32", "8-bit weights", "difference"],
        [[f"{losses[0]:.4f}", f"{losses[1]:.4f}", f"{losses[1] - losses[0]:+.4f}"]],
    )


@torch.inference_mode()
def val_loss(writer: Writer, config: Config, most: int | None) -> float:
    """Mean loss over the val split, or over the first so many batches of it."""
    data, sizes = open_data(config.data, quiet=True), config.model
    batches = ValBatches(
        data.val, context_length=sizes.context_length, batch_size=config.data.batch_size,
        end_of_text=data.manifest.end_of_text, mode=config.data.mode,
    )  # fmt: skip
    total, n_tokens, reader = 0.0, 0, writer.reader or ModelReader(writer.model)
    for index in range(min(len(batches), most or len(batches))):
        tokens, targets = batches[index]
        B, T = tokens.shape
        logits = torch.from_numpy(reader.read(tokens.numpy(), reader.new_cache(B, T), n_wanted=T))
        total += float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"))
        n_tokens += int((targets != IGNORED).sum())
    return total / n_tokens


PARTS = {"large": large, "batch": batch, "prompts": prompts, "small": small, "trained": trained}


def main(arguments: list[str]) -> list[Bound]:
    """Measure."""
    options = {
        "--against": {"type": harness.checkout, "help": "a checkout of nanoGPT, whose sampler takes part"},
        "--run": {"type": Path, "help": "a run such as runs/demo, for `trained`"},
    }
    title, needs = "Writing: tokens per second", {"trained": ["run"]}
    return harness.main(arguments, PARTS, name="generation", title=title, options=options, needs=needs)


if __name__ == "__main__":
    program.run(main)
