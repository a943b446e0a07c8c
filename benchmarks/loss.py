"""What the loss of a large vocabulary costs -> tables of its memory and time: `python benchmarks/loss.py --quick`.

Forward and backward of the output head and the cross-entropy alone. Memory and time of a large vocabulary are those of
a process for each way; small vocabularies take turns in one process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import harness
import torch
import torch.nn.functional as F
from attention import resident
from harness import Block, Bound, Spread, Table, ratios
from torch import Tensor

from minigpt.cli import program
from minigpt.errors import UserError
from minigpt.training import loss

PLAIN, OWN = "plain", "torch's own, 256 rows"
Shape = tuple[int, int, int]
"""B*T, C and V."""


def make(way: str, shape: Shape, device: str) -> Callable[[], tuple[Tensor, ...]]:
    """Loss and gradients of hidden and weight; way is PLAIN, OWN or a number of logits at a time."""
    N, C, V = shape
    torch.manual_seed(0)
    hidden = torch.randn(1, N, C, device=device, requires_grad=True)
    weight = torch.empty(-(-V // 64) * 64, C, device=device).normal_(std=0.02).requires_grad_()
    targets = torch.randint(V, (1, N), device=device)

    def run() -> tuple[Tensor, ...]:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            if way == PLAIN and device == "cpu":
                value = loss.next_token_loss(F.linear(hidden, weight[:V]), targets)
            elif way == PLAIN:
                value = loss.next_token_loss(F.linear(hidden, weight)[..., :V], targets)
            elif way == OWN:
                dtype = torch.bfloat16 if device == "cuda" else torch.float32
                options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=256)
                value = F.linear_cross_entropy(
                    hidden[0].to(dtype), weight[:V].to(dtype), targets[0], ignore_index=loss.IGNORED, options=options
                )
            else:
                with mock.patch.object(loss, "CHUNK_LOGITS", int(way)):
                    value = loss.chunked_loss(hidden, weight, targets, V)
        return value, *torch.autograd.grad(value, (hidden, weight))

    return run


def large(chosen: Namespace) -> Iterator[Block]:
    """Peak memory and time at GPT-2's vocabulary."""
    device, quick = require(chosen.device), chosen.quick
    if device == "cpu" and not Path("/proc/self/status").exists():
        raise UserError("large: peaks on the CPU are read from /proc, which only Linux has")
    shape = (512, 64, 50257) if quick else (8192, 768, 50257)
    chunks = [2**n for n in ((24, 26) if quick else (23, 24, 25, 26, 27))]
    ways = [PLAIN, *([OWN] if hasattr(torch.nn, "LinearCrossEntropyOptions") else []), *map(str, chunks)]
    rows = []
    for way in ways:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peak, seconds, cpu_seconds, value, norm = pool.submit(peak_and_time, way, shape, device).result()
        name = f"{int(way) // 2**20}M logits at a time" if way.isdigit() else way
        rows.append([name, f"{peak / 1e6:.0f}", f"{seconds:.2f}", f"{cpu_seconds:.2f}", f"{value:.6f}", f"{norm:.6f}"])
    header = ["way", "peak MB", "seconds", "CPU seconds", "loss", "norm of the weight's gradient"]
    yield Table(f"forward and backward over what was held before, (B*T, C, V) = {shape}", header, rows)


def peak_and_time(way: str, shape: Shape, device: str) -> tuple[float, float, float, float, float]:
    """Of one pass: bytes over what is held before, seconds, CPU seconds, loss and norm of the weight's gradient."""
    make(way, (64, *shape[1:]), device)()  # loads libraries and starts threads
    run = make(way, shape, device)
    if device == "cuda":
        run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        with contextlib.suppress(PermissionError):
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM falls to VmRSS
        before = resident("VmRSS")
    began, cpu_began = time.perf_counter(), time.process_time()
    value, _, grad = run()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
    return peak - before, seconds, cpu_seconds, value.item(), grad.norm().item()


def small(chosen: Namespace) -> Iterator[Block]:
    """Time of pieces where all logits are few: why they are not made in pieces there."""
    device, quick = require(chosen.device), chosen.quick
    rows = []
    for name, shape in (("nanoGPT's CPU recipe", (768, 128, 65)), ("the demo", (2048, 192, 2048))):
        whole = shape[0] * shape[2]
        runs = {way: make(way, shape, device) for way in (PLAIN, str(whole), str(whole // 4))}
        times: dict[str, list[float]] = {way: [] for way in runs}
        for n in range(-2, 5 if quick else 31):
            for way in list(runs)[:: 1 if n % 2 else -1]:
                began = time.perf_counter()
                runs[way]()
                if device == "cuda":
                    torch.cuda.synchronize()
                if n >= 0:
                    times[way].append(1e3 * (time.perf_counter() - began))
        rows.append([name, *map(Spread, times.values()), *(Spread(ratios(t, times[PLAIN])) for t in times.values())])
    header = ["recipe", *(f"{way}, ms" for way in (PLAIN, "1 piece", "4 pieces")), PLAIN, "1 piece", "4 pieces"]
    yield Table("forward and backward of small vocabularies; the last columns are multiples of plain", header, rows)


def require(device: str) -> str:
    """Raises UserError where there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine, or its PyTorch, has none; leave it out for the CPU")
    return device


PARTS: dict[str, harness.Part] = {"large": large, "small": small}


def main(arguments: list[str]) -> list[Bound]:
    """Measure."""
    options = {"--device": {"choices": ("cpu", "cuda"), "default": "cpu", "help": "cuda is in bfloat16 (default: cpu)"}}
    return harness.main(arguments, PARTS, name="loss", title="Loss: memory and time", options=options)


if __name__ == "__main__":
    program.run(main)
