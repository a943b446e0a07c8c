"""What only a GPU shows -> results/gpu_cuda.md, in ten minutes: `benchmarks/gpu.py --against ../nanoGPT --write`.

Each part is a process of its own with its own limit of time: one that fails or hangs is said to, and the others go on.
`--device cpu --quick` runs all of it, small, to see that it works. No network, datasets or wandb is needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import torch
import torch.nn.functional as F
from contenders import CHARS, ENDLESS, ROOT, characters, like, ours, parse, prepared, theirs
from harness import Block, Spread, Table, Turn, ratios, turns
from torch import Tensor

from minigpt.cli import program
from minigpt.config import GenerationConfig, GPTConfig
from minigpt.errors import UserError
from minigpt.generation.engine import Reader, Row, generate, reader_of
from minigpt.generation.model_reader import CompiledDecode, ModelReader
from minigpt.generation.sampling import Generator
from minigpt.interop.folder import write_folder
from minigpt.model.gpt import GPT
from minigpt.model.variants.attend import attend
from minigpt.model.variants.graphs import Causal, Documents, Graph, Prefix, Window
from minigpt.model.variants.similarities import ScaledDot
from minigpt.training.arithmetic import flops_per_token, memory
from minigpt.training.devices import find_device
from minigpt.training.loss import chunk_logits, model_loss

SECONDS = {
    "training": 200,
    "kernels": 130,
    "decode": 90,
    "memory": 55,
    "samples": 50,
    "deterministic": 40,
    "waits": 20,
    "tf32": 15,
}
"""Longest time of each part, in the order in which they run. `training` is first: it compiles with an empty cache."""
RECIPE = ROOT / "configs" / "gpt2_124m.yaml"
TINY = {"n_layer": 2, "n_head": 2, "n_embd": 64, "context_length": 64}
"""Sizes for --quick."""
MINE, NANOGPT, PEAK = "minigpt, gpt2_124m.yaml", "nanoGPT", "matrix product, bfloat16"
SAMPLING: dict[str, Any] = {"temperature": 0.8, "top_k": 50}
WITHOUT_TRITON = "import sys; sys.modules['triton'] = None"
Call = Callable[[], object]


class Waiting:
    """A turn that ends when the GPU has finished its work."""

    def __init__(self, turn: Turn, device: str) -> None:
        self.turn, self.device = turn, device

    def __call__(self) -> None:
        if self.turn.pieces == 0:
            wait(self.device)
        self.turn()


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def settings(chosen: Namespace, *changes: str) -> list[str]:
    """The recipe on random characters, with GPT-2's vocabulary, without what else a run does; small with --quick."""
    accelerator = "gpu" if chosen.device == "cuda" else "cpu"
    known = [
        f"config={RECIPE}",
        f"data.source={characters(Namespace(folder=chosen.folder, text=None))}",
        *CHARS,
        "model.vocab_size=50257",
    ]
    known += [f"data.dir={chosen.folder}/data", f"runs_dir={chosen.folder}/runs", "trainer.logger=false"]
    known += [f"trainer.accelerator={accelerator}", "trainer.devices=1", "attention.enabled=false"]
    known += ["sampling.prompts=[]", "trainer.enable_checkpointing=false", "trainer.limit_val_batches=1"]
    known += ["data.num_workers=0"]  # a contender is a daemon, which may have no children
    if chosen.quick:
        known += [f"model.{name}={size}" for name, size in TINY.items()]
        known += ["model.vocab_size=512", "data.batch_size=2", "trainer.precision=32-true", "compile=false"]
    return [*known, *changes]


def train(changes: list[str]) -> Path:
    """Train in this process; the run's folder."""
    from minigpt.training import run

    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        return run.train(parse(changes), None).path


# training: MFU beside nanoGPT, seconds of compiling


def mine(changes: list[str], device: str, turn: Turn) -> None:
    """A contender: a piece is a micro-batch of `minigpt train`."""
    ours(changes, False, Waiting(turn, device))


def nanogpts(checkout: Path, recipe: Any, tokens: Path, turn: Turn) -> None:
    """A contender: a piece is a micro-batch of nanoGPT's loop."""
    theirs(checkout, recipe, tokens, Waiting(turn, recipe.device))


def product(device: str, side: int, turn: Turn) -> None:
    """A contender: products of two square matrices, for the rate that the device reaches."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left, right, out = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(3))
    waiting = Waiting(turn, device)
    while True:
        waiting()
        torch.mm(left, right, out=out)


def training(chosen: Namespace) -> Iterator[Block]:
    """A step of GPT-2 small: time, MFU, and what compiling takes, beside nanoGPT's."""
    changes = settings(chosen, *ENDLESS)
    config, tokens = prepared(changes, chosen.folder)
    n_pieces = config.trainer.accumulate_grad_batches  # a round is an optimizer step
    side = 256 if chosen.quick else 8192
    every: dict[str, harness.Contender] = {PEAK: partial(product, chosen.device, side)}
    every[MINE] = partial(mine, changes, chosen.device)
    if chosen.against is not None:
        recipe = dataclasses.replace(
            like(config), vocab_size=(config.model.vocab_size or 0) // 64 * 64 + 64, device=chosen.device,
            accumulate=n_pieces, compile=not chosen.quick,
        )  # fmt: skip
        every[NANOGPT] = partial(nanogpts, chosen.against, recipe, tokens)
    else:
        yield "nanoGPT is skipped: name a checkout with --against."
    first, taken = turns(every, 2 if chosen.quick else 8, n_pieces)
    warm = {} if chosen.quick else turns({name: each for name, each in every.items() if name != PEAK}, 0, n_pieces)[0]
    reached = [2 * side**3 * n_pieces / seconds for seconds in taken.pop(PEAK)]
    spec = find_device(torch.cuda.get_device_name()) if chosen.device == "cuda" else None
    n_tokens = n_pieces * config.data.batch_size * config.model.context_length
    flops, rows = flops_per_token(config.model), []
    for name, seconds in taken.items():
        rates, middle = [n_tokens / each for each in seconds], statistics.median(seconds)
        mfu = Spread([100 * flops * rate / spec.peak("bf16") for rate in rates]) if spec else "no known peak"
        share = Spread([100 * flops * rate / most for rate, most in zip(rates, reached, strict=True)])
        compiling = [f"{each[name] - middle:.1f}" if name in each else "" for each in (first, warm)]
        times = Spread(ratios(taken[NANOGPT], seconds)) if NANOGPT in taken else ""
        rows.append([name, Spread([1e3 * each for each in seconds]), Spread(rates), mfu, share, times, *compiling])
    yield Table(
        f"{n_pieces} micro-batches of {config.data.batch_size} rows of {config.model.context_length}; products reach "
        f"{statistics.median(reached) / 1e12:.4g} Tflop/s",
        ["", "ms a step", "tokens/s", "MFU, % of the maker's peak", "% of a product's rate", "times nanoGPT's tokens/s",
         "compiling cold, s", "warm, s"],
        rows,
    )  # fmt: skip


# kernels


def graphs(T: int, device: str) -> dict[str, Graph]:
    """Masks by name, for T tokens."""
    index = torch.arange(T, device=device)
    padded = torch.where(index < T // 4, -1, 0)
    return {
        "window T/16": Causal() & Window(T // 16),
        "documents of T/8": Causal() & Documents(index // (T // 8)),
        "prefix T/8": Causal() | Prefix(T // 8),
        "padded by T/4": Causal() & Documents(padded),
    }


def rounds(calls: Mapping[str, Call], n_rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each call in each round, in a new order each round, after one that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(n_rounds + 1):
        for name in random.sample(list(calls), len(calls)):
            wait(device)
            began = time.perf_counter()
            calls[name]()
            wait(device)
            if number:
                taken[name].append(time.perf_counter() - began)
    return taken


def with_gradients(call: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """What a call gives, and the gradients of its sum of squares."""
    inputs = [each.detach().requires_grad_() for each in inputs]
    gathered = call(*inputs)
    return [gathered.detach(), *torch.autograd.grad(gathered.float().square().sum(), inputs)]


def kernels(chosen: Namespace) -> Iterator[Block]:
    """Masks through the kernel that `attend` chooses (FlexAttention on a GPU), a dense mask, and the causal flag."""
    device, dtype = chosen.device, torch.bfloat16 if chosen.device == "cuda" else torch.float32
    H, D, n_tokens = (2, 16, 256) if chosen.quick else (12, 64, 2**16)
    rows, began = [], time.perf_counter()
    for T in (128, 256) if chosen.quick else (1024, 16384, 4096):
        B = max(1, n_tokens // T)
        for name, graph in graphs(T, device).items():
            if time.perf_counter() - began > 0.8 * SECONDS["kernels"]:
                yield f"{name} of {T:,} tokens is skipped: the part's {0.8 * SECONDS['kernels']:.0f} s are used up."
                continue
            torch.compiler.reset()  # each mask is a program, of which few are kept for one function
            mask = graph.mask(range(T), range(T), torch.device(device))
            attends = mask.any(dim=-1, keepdim=True)

            def ours(query: Tensor, key: Tensor, value: Tensor, graph: Graph = graph) -> Tensor:
                return attend(query, key, value, similarity=ScaledDot(), graph=graph)

            def dense(
                query: Tensor, key: Tensor, value: Tensor, mask: Tensor = mask, attends: Tensor = attends
            ) -> Tensor:
                gathered = F.scaled_dot_product_attention(query, key, value, attn_mask=mask | ~attends)
                return gathered.masked_fill(~attends, 0.0)

            def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                return F.scaled_dot_product_attention(query, key, value, is_causal=True)

            ways = {"ours": ours, "dense": dense, "causal": causal}
            inputs = [torch.randn(B, H, T, D, device=device, dtype=dtype) for _ in range(3)]
            exact = with_gradients(dense, [each[:1].float() for each in inputs])
            found = with_gradients(ours, [each[:1] for each in inputs])
            errors = [
                (mine.float() - true).abs().max() / true.abs().max() for mine, true in zip(found, exact, strict=True)
            ]
            del exact, found
            forward = {way: partial(torch.no_grad()(call), *inputs) for way, call in ways.items()}
            both = {way: partial(with_gradients, call, inputs) for way, call in ways.items()}
            cells = []
            for calls in (forward, both):
                taken = rounds(calls, 2 if chosen.quick else 7, device)
                cells += [Spread([1e3 * each for each in taken["ours"]])]
                cells += [Spread(ratios(taken[way], taken["ours"])) for way in ("dense", "causal")]
            rows.append([f"{T:,}", name, *cells, f"{errors[0]:.1e}", f"{max(errors[1:]):.1e}"])
    yield Table(
        f"{n_tokens:,} tokens in rows of T, {H} heads of {D}, {str(dtype).removeprefix('torch.')}; errors are the "
        "largest, beside a dense mask in float32",
        ["T", "graph", "forward, ms", "dense mask's time over ours", "causal's over ours", "forward and backward, ms",
         "dense mask's time over ours", "causal's over ours", "error", "error of gradients"],
        rows,
    )  # fmt: skip


# decode


COMPILED = "minigpt --compile"
READERS: dict[str, Callable[[GPT], Reader]] = {
    "minigpt": reader_of,
    "minigpt, uncompiled, call by call": ModelReader,
    COMPILED: CompiledDecode,
}
"""What reads tokens for our loop: its own choice for the device, and others."""


def decoder(way: str, folder: Path, device: str) -> Callable[[int, int, int], object]:
    """(Rows, length of the prompt, tokens to write) -> writes them, with the weights of the folder."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if way.startswith("transformers"):
        import transformers

        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        static = {"cache_implementation": "static"} if "static" in way else {}  # generate compiles its forward pass

        def write_theirs(n_rows: int, n_prompt: int, n_new: int) -> None:
            tokens = torch.arange(n_prompt, device=device).repeat(n_rows, 1)
            theirs.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n_new, min_new_tokens=n_new,
                do_sample=True, pad_token_id=0, eos_token_id=None, **SAMPLING, **static,
            )  # fmt: skip

        return write_theirs
    from minigpt.interop.folder import read_folder

    model = read_folder(folder).to(device=device, dtype=dtype).eval()
    reader: Reader = READERS[way](model)

    def write(n_rows: int, n_prompt: int, n_new: int) -> None:
        rows = [Row(list(range(n_prompt)), Generator(i), i, n_prompt) for i in range(n_rows)]
        for _ in generate(model, rows, GenerationConfig(max_new_tokens=n_new, **SAMPLING), reader):
            pass

    return write


def decoding(way: str, folder: Path, device: str, sizes: tuple[int, int, int], turn: Turn) -> None:
    """A contender: writes again and again."""
    write, waiting = decoder(way, folder, device), Waiting(turn, device)
    while True:
        waiting()
        write(*sizes)


def decode(chosen: Namespace) -> Iterator[Block]:
    """Tokens per second of GPT-2 small, beside transformers' generate with the same weights."""
    sizes = {"vocab_size": 512, **TINY} if chosen.quick else {}
    write_folder(chosen.folder / "gpt2", GPT(GPTConfig.gpt2_family(**sizes)), end_of_text=0)
    ways = [*READERS, "transformers", "transformers, static cache"]
    if chosen.quick:  # nothing that compiles
        ways = [way for way in ways if way not in {COMPILED, "transformers, static cache"}]
    n_prompt, n_new = (8, 8) if chosen.quick else (32, 128)
    rows = []
    for n_rows in (1, 2) if chosen.quick else (1, 8, 64):
        work = (n_rows, n_prompt, n_new)
        every = {way: partial(decoding, way, chosen.folder / "gpt2", chosen.device, work) for way in ways}
        taken = turns(every, 2 if chosen.quick else 3)[1]
        for way in ways:
            rates = Spread([n_rows * n_new / each for each in taken[way]])
            rows.append([str(n_rows), way, rates, Spread(ratios(taken["transformers"], taken[way]))])
    yield Table(
        f"prompts of {n_prompt}, {n_new} new tokens, {'bfloat16' if chosen.device == 'cuda' else 'float32'}",
        ["rows", "", "tokens/s", "times transformers'"],
        rows,
    )


# memory


def memory_peak(chosen: Namespace) -> Iterator[Block]:
    """The allocator's peak in two steps, beside the estimate of `minigpt doctor --for`."""
    rows = []
    cases = {
        "eager": (16, ["compile=false"]),
        "eager, all rows": (64, ["compile=false"]),
        "eager, all rows, activation_checkpointing": (64, ["compile=false", "activation_checkpointing=true"]),
        "compiled, all rows": (64, ["compile=true"]),
    }
    for name, (n_rows, more) in ({"eager": (2, ["compile=false"])} if chosen.quick else cases).items():
        changes = settings(
            chosen, "trainer.max_steps=2", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4",
            f"data.batch_size={n_rows}", *more,
        )  # fmt: skip
        config, _ = prepared(changes, chosen.folder)
        precision = "bf16-mixed" if chosen.device == "cuda" else "32-true"
        need = memory(config, precision, chunk_logits=chunk_logits(torch.device(chosen.device)))
        estimated = need.total(n_rows, checkpointed=config.activation_checkpointing)
        if chosen.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        train(changes)
        peak = torch.cuda.max_memory_allocated() if chosen.device == "cuda" else None
        measured = [f"{peak / 1e9:.2f}", f"{peak / estimated:.2f}"] if peak else ["a GPU's allocator tells it", ""]
        rows.append([name, str(n_rows), f"{estimated / 1e9:.2f}", *measured])
    yield Table(
        "GB of training", ["", "rows", "estimated by doctor --for", "peak allocated", "peak over estimate"], rows
    )


# samples


def command(program_text: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`minigpt` in a process of its own, after some Python."""
    start = f"{program_text}\nimport sys\nfrom minigpt.__main__ import main\nsys.argv[0] = 'minigpt'\nmain()"
    return subprocess.run(
        [sys.executable, "-c", start, *words], cwd=folder, capture_output=True, text=True, check=False
    )


def samples(chosen: Namespace) -> Iterator[Block]:
    """A run that writes its default prompts, which are padded to one length, and `sample` of it; without Triton too."""
    device, accelerator = chosen.device, "gpu" if chosen.device == "cuda" else "cpu"
    rows = []
    for name, before, window in (
        ("default", "", "null"),
        ("default, without Triton", WITHOUT_TRITON, "null"),
        ("window of 16, without Triton", WITHOUT_TRITON, "16"),
        ("window of 16", "", "16"),
    )[: 2 if chosen.quick else 4]:
        run = name.replace(" ", "-").replace(",", "")
        words = ["train", str(ROOT / "configs" / "tiny.yaml"), f"--name={run}", f"--trainer.accelerator={accelerator}"]
        words += [f"--model.window={window}", "--trainer.logger=false", "--trainer.max_steps=20"]
        trained = command(before, *words, folder=chosen.folder)
        texts = [
            command(
                before, "sample", f"runs/{run}", "--temperature=0", "--max_new_tokens=48", f"--device={where}",
                folder=chosen.folder,
            )
            for where in ("cpu", device)
        ]  # fmt: skip
        last = [*trained.stderr.strip().splitlines(), "", ""][-2:] if trained.returncode else [""]
        n_files = len(list((chosen.folder / "runs" / run / "samples").glob("*")))
        equal = "yes" if texts[0].stdout == texts[1].stdout and texts[0].stdout else "no"
        codes = [str(each.returncode) for each in (trained, texts[1])]
        rows.append([name, *codes, str(n_files), equal, " ".join(last)[-200:]])
    header = ["", "train's exit code", "sample's", "files of samples", "greedy text equals the CPU's", "error"]
    yield Table("the tiny recipe", header, rows)


# deterministic


def deterministic(chosen: Namespace) -> Iterator[Block]:
    """Two runs each: are their weights the same to the bit?"""
    variants = {
        "default": [],
        "linear attention": ["model.similarity=linear"],
        "window of 64": ["model.window=64"],
        "window of 64, compiled": ["model.window=64", "compile=true"],
    }
    rows = []
    for name, changes in list(variants.items())[: 2 if chosen.quick else 4]:
        for exact in ("true", "null"):
            digests, began, error = set(), time.perf_counter(), ""
            # the default model: rotary, RMSNorm, SwiGLU, Muon
            known = [
                *settings(chosen, "model.position=rotary", "model.norm=rmsnorm", "model.mlp=swiglu"),
                "model.n_layer=2", "model.context_length=256", "data.batch_size=8", "model.bias=false",
                "trainer.max_steps=10", "trainer.accumulate_grad_batches=1", "trainer.val_check_interval=10",
                "trainer.enable_checkpointing=true", "compile=false", f"trainer.deterministic={exact}", *changes,
            ]  # fmt: skip
            try:
                for _ in range(2):
                    weights = (train(known) / "model.safetensors").read_bytes()
                    # the tensors alone: the header holds times
                    start = 8 + int.from_bytes(weights[:8], "little")
                    digests.add(hashlib.sha256(weights[start:]).hexdigest())
            except Exception as found:
                error = f"{type(found).__name__}: {found}".partition("\n")[0][:200]
            finally:
                torch.use_deterministic_algorithms(False)
            equal = "" if error else "yes" if len(digests) == 1 else "no"
            rows.append([name, exact, equal, f"{time.perf_counter() - began:.1f}", error])
    yield Table("two runs of 10 steps", ["", "trainer.deterministic", "weights equal", "seconds", "error"], rows)


# waits


def waits(chosen: Namespace) -> Iterator[Block]:
    """How often a step waits for the GPU, and from where."""
    from lightning.pytorch.callbacks import LambdaCallback

    from minigpt.training import run

    n_steps, first, rows = 20, 10, []
    for name, changes in {"default": [], "averages": ["optimizer.average_decay=0.9"]}.items():
        found: Counter[str] = Counter()

        def count(trainer: Any, *_: Any) -> None:
            if trainer.global_step == first and chosen.device == "cuda":
                torch.cuda.set_sync_debug_mode("warn")

        known = settings(
            chosen, f"trainer.max_steps={n_steps}", "trainer.accumulate_grad_batches=2", "data.batch_size=2",
            f"trainer.val_check_interval={2 * n_steps}", "trainer.log_every_n_steps=10", "compile=false", *changes,
        )  # fmt: skip
        make, gate = run.make_callbacks, LambdaCallback(on_train_batch_start=count)
        stop = LambdaCallback(on_train_end=lambda *_: stopped(chosen.device))
        with (
            mock.patch.object(run, "make_callbacks", lambda *given: [*make(*given), gate, stop]),  # noqa: B023
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            train(known)
        for each in caught:
            if "synchronizing" in str(each.message):
                found[f"{Path(each.filename).name}:{each.lineno}"] += 1
        counted = f"{sum(found.values()) / (n_steps - first):.1f}" if chosen.device == "cuda" else "a GPU tells it"
        rows.append([name, counted, ", ".join(f"{place} {n}" for place, n in found.most_common(6))])
    title = f"steps {first} to {n_steps}, of 2 micro-batches each; the last step logs, and the validation is in it"
    yield Table(title, ["", "waits a step", "where, how often"], rows)


def stopped(device: str) -> None:
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("default")


# TF32


def tf32(chosen: Namespace) -> Iterator[Block]:
    """float32 products with and without TF32: a plain one, and forward and backward of GPT-2 small."""
    device, side = chosen.device, 256 if chosen.quick else 4096
    left, right = (torch.randn(side, side, device=device) for _ in range(2))
    exact = left.double() @ right.double()
    sizes = {"vocab_size": 512, **TINY} if chosen.quick else {}
    model = GPT(GPTConfig.gpt2_family(**sizes)).to(device)
    tokens = torch.randint(500, (2 if chosen.quick else 8, model.config.context_length + 1), device=device)

    def step() -> None:
        model_loss(model, tokens[:, :-1], tokens[:, 1:]).backward()
        model.zero_grad()

    def as_set(precision: str, call: Call) -> object:
        torch.set_float32_matmul_precision(precision)
        return call()

    before, errors = torch.get_float32_matmul_precision(), {}
    try:
        for precision in ("highest", "high"):
            product = as_set(precision, lambda: left @ right)
            assert isinstance(product, Tensor)
            errors[precision] = float((product - exact).abs().max() / exact.abs().max())
        rows = []
        for name, call in {f"product of {side} cubed": lambda: left @ right, "GPT-2 small": step}.items():
            calls = {precision: partial(as_set, precision, call) for precision in errors}
            taken = rounds(calls, 2 if chosen.quick else 7, device)
            faster = Spread(ratios(taken["highest"], taken["high"]))
            rows.append([name, *(Spread([1e3 * each for each in taken[precision]]) for precision in errors), faster])
    finally:
        torch.set_float32_matmul_precision(before)
    yield Table(
        f"float32; largest error of the product {errors['highest']:.1e} and {errors['high']:.1e} of its largest entry",
        ["", "float32, ms", "TF32, ms", "times as fast"],
        rows,
    )


PARTS: dict[str, harness.Part] = {
    "training": training,
    "kernels": kernels,
    "decode": decode,
    "memory": memory_peak,
    "samples": samples,
    "deterministic": deterministic,
    "waits": waits,
    "tf32": tf32,
}


def alone(part: str, arguments: list[str], seconds: float) -> str | None:
    """Measure a part in a process of its own, which prints and keeps its tables; why it failed, if it did."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
        process = subprocess.Popen(
            [sys.executable, __file__, part, *arguments], stderr=complaints, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"it took more than its {seconds:.0f} seconds"
        finally:
            with contextlib.suppress(ProcessLookupError):  # with its contenders
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode == 0:
            return None
        complaints.seek(0)
        lines = [line for line in complaints.read().splitlines() if line.strip()]
        return f"exit code {process.returncode}: {lines[-1][-300:] if lines else ''}"


def main(arguments: list[str]) -> None:
    """Measure."""
    if not any(word.startswith("--device") for word in arguments):
        arguments = [*arguments, "--device=cuda"]
    device = "cuda" if "--device=cuda" in "=".join(arguments) else "cpu"
    options: dict[str, dict[str, Any]] = {
        "--device": {"choices": ["cuda", "cpu"], "help": "cpu only shows that all works, with --quick"},
        "--against": {"type": harness.checkout, "help": "a checkout of nanoGPT, which takes part"},
    }
    measure = partial(harness.main, name="gpu", title="What only a GPU shows", options=options)
    named = [word for word in arguments if word in PARTS]
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no NVIDIA GPU here; --device cpu --quick runs the script on the CPU")
    if named or {"-h", "--help"} & set(arguments):
        measure(arguments, PARTS)
        return
    measure(arguments, {})  # the command line is checked once, before anything runs
    os.environ.setdefault("WANDB_MODE", "disabled")
    failed = []
    with tempfile.TemporaryDirectory(prefix="minigpt-compiled-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # empty, and shared by all parts
        for part in PARTS:
            why = alone(part, arguments, SECONDS[part])
            if why is not None:
                failed.append(part)
                print(f"\n{part} failed: {why}", flush=True)
                if "--write" in arguments:
                    path = harness.RESULTS / f"gpu_{device}.md"
                    blocks = [harness.machine(device), f"Failed: {why}."]
                    harness.write(path, f"What only a GPU shows on {device}", PARTS, part, blocks)
    if failed:
        raise UserError(f"{', '.join(failed)}: failed, see above; the other parts are done")


if __name__ == "__main__":
    program.run(main)
