"""What attention costs -> tables of its time and memory: `python benchmarks/attention.py memory --quick`.

All calls run once a round in one process, in a new order each round. A memory is the peak of a process of its own, as a
process never gives back all that it once took.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType
from unittest import mock

import harness
import torch
import torch.nn.functional as F
from harness import Block, Bound, Spread, Table, ratios
from torch import Tensor

from minigpt.cli import program
from minigpt.errors import UserError
from minigpt.model.variants import kernels, linear_attention
from minigpt.model.variants import similarities as sim
from minigpt.model.variants.attend import attend
from minigpt.model.variants.graphs import Causal, Documents, Graph, Prefix, Window

BOUND = 1.15
"""Times the plain fused call that a similarity may take which only chooses another query, key and scale."""
SCORES_BOUND = 1.2
"""Times what the causal call takes for as many scores that a window or documents may take."""
BOUNDED = ("symmetric", "cosine", "gaussian", "hopfield")
SIMILARITIES: dict[str, Callable[[int, int], sim.Similarity]] = {  # of n_head and head_dim
    "scaled_dot": lambda H, D: sim.ScaledDot(),
    "symmetric": lambda H, D: sim.Symmetric(),
    "cosine": lambda H, D: sim.Cosine(H),
    "gaussian": lambda H, D: sim.Gaussian(H, D**0.25),
    "hopfield": lambda H, D: sim.Hopfield(),
    "hopfield, 2 steps": lambda H, D: sim.Hopfield(steps=2),
    "uniform": lambda H, D: sim.Uniform(),
    "linear": lambda H, D: sim.Linear(),
    "hard": lambda H, D: sim.Hard(),
}
GRAPHS: dict[str, Callable[[int, str], Graph]] = {  # of the number of tokens and the device
    "causal": lambda T, device: Causal(),
    "causal & window 64": lambda T, device: Causal() & Window(64),
    "causal & window 256": lambda T, device: Causal() & Window(256),
    "causal | prefix 512": lambda T, device: Causal() | Prefix(512),
    "causal & documents of 256": lambda T, device: Causal() & Documents(torch.arange(T, device=device) // 256),
    "causal & documents of 1000": lambda T, device: Causal() & Documents(torch.arange(T, device=device) // 1000),
}
FUSED, DENSE_MASK, WRITTEN_OUT = "plain causal call", "plain call, dense mask", "weights written out"
Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to gather values, at one size."""

    way: str
    """A name of SIMILARITIES, for `attend` with it; or FUSED, DENSE_MASK or WRITTEN_OUT, to compare it with."""
    shape: tuple[int, int, int, int]
    """B, H, T, D."""
    device: str
    graph: str = "causal"
    softcap: float | None = None

    def inputs(self, *, backward: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, those to be learned that the similarity projects to."""
        named = SIMILARITIES[self.way](1, 1).projections if self.way in SIMILARITIES else ("query", "key", "value")
        query, key, value = (
            torch.randn(self.shape, device=self.device, requires_grad=backward and name in named)
            for name in ("query", "key", "value")
        )
        return (key if self.way == "symmetric" else query), key, value

    def call(self, query: Tensor, key: Tensor, value: Tensor) -> Call:
        """The pass to be measured: with gradients of all that learns, or forward alone where nothing does."""
        _, H, T, D = self.shape
        graph, learned = GRAPHS[self.graph](T, self.device), {query, key, value}
        if self.way in SIMILARITIES:
            similarity = SIMILARITIES[self.way](H, D).to(self.device).requires_grad_(value.requires_grad)
            learned |= set(similarity.parameters())

        def gather() -> Tensor:
            if self.way in SIMILARITIES:
                return attend(query, key, value, similarity=similarity, graph=graph, softcap=self.softcap)
            if self.way == FUSED:
                return F.scaled_dot_product_attention(query, key, value, is_causal=True)
            if self.way == DENSE_MASK:
                return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            return (query @ key.mT * D**-0.5).masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value

        if self.way in (DENSE_MASK, WRITTEN_OUT):
            mask = graph.mask(range(T), range(T), self.device)
        leaves = [leaf for leaf in learned if leaf.requires_grad]
        if not leaves:
            return torch.no_grad()(gather)

        def forward_and_backward() -> tuple[Tensor, ...]:
            gathered = gather()
            return torch.autograd.grad(gathered, leaves, torch.ones_like(gathered))

        return forward_and_backward


def cost(chosen: argparse.Namespace) -> Iterator[Block]:
    """Time of each softmax similarity, and its ratio to the plain fused call."""
    names = [FUSED, *(name for name in SIMILARITIES if name not in ("linear", "hard"))]
    shape = (4, 8, 1024, 64)
    for what, backward in (("forward", False), ("forward and backward", True)):
        cases = {name: Case(name, shape, chosen.device) for name in names}
        times = interleaved(cases, 5 if chosen.quick else 31, backward=backward)
        rows = []
        for name in names:
            ratio = ratios(times[name], times[FUSED])
            bound: str = ""
            if name in BOUNDED:
                bound = Bound(f"{name}, {what}: times the plain call", ratio, at_most=BOUND)
            rows.append([name, Spread(times[name]), Spread(ratio), bound])
        header = ["similarity", "ms", "times the plain call", "bound"]
        yield Table(f"{what}, causal, (B, H, T, D) = {shape}", header, rows)


def memory(chosen: argparse.Namespace) -> Iterator[Block]:
    """Peak of a forward and backward pass, for each similarity, graph and length."""
    if chosen.device == "cpu" and not Path("/proc/self/status").exists():
        raise UserError("memory: peaks on the CPU are read from /proc, which only Linux has")
    lengths = [1024 * 2**n for n in range(2 if chosen.quick else 6 if chosen.device == "cuda" else 4)]
    cases: list[tuple[str, str, float | None]] = [
        (name, graph, None)
        for graph in ("causal", "causal & window 256", "causal | prefix 512", "causal & documents of 1000")
        for name in ("scaled_dot", "cosine", "gaussian", "hopfield, 2 steps", "uniform")
    ]
    cases += [("linear", "causal", None), ("hard", "causal", None), ("scaled_dot", "causal", 50.0)]
    cases += [(FUSED, "causal", None), (DENSE_MASK, "causal & window 256", None), (WRITTEN_OUT, "causal", None)]
    cases = cases[::4] if chosen.quick else cases
    rows = []
    for n, size in ((3, "query, key and value, which are there before"), (5, "output and 4 gradients, the least")):
        rows.append([size, "", *(f"{n * 4 * 64 * 4 * T / 1e6:.1f}" for T in lengths), "1.00"])
    for way, graph, softcap in cases:
        peaks = [peak_apart(Case(way, (1, 4, T, 64), chosen.device, graph, softcap)) for T in lengths]
        label = way if softcap is None else f"{way}, softcap {softcap:g}"
        exponent = math.log2(peaks[-1] / peaks[-2]) if min(peaks[-2:]) > 0 else math.nan
        rows.append([label, graph, *(f"{peak / 1e6:.1f}" for peak in peaks), f"{exponent:.2f}"])
    header = ["way", "graph", *(f"MB at {T // 1024}k" for T in lengths), f"growth to {lengths[-1] // 1024}k"]
    title = "peak of forward and backward over what was held before, (B, H, D) = (1, 4, 64), float32"
    yield Table(title + "; growth 1 is linear in T, 2 quadratic, nan out of memory", header, rows)


def linear(chosen: argparse.Namespace) -> Iterator[Block]:
    """From which length on linear attention is faster than the fused softmax, and its best chunk."""
    lengths = [256 * 2**n for n in range(4 if chosen.quick else 7)]
    rows, slower = [], []
    for T in lengths:
        cases = {name: Case(name, (1, 4, T, 64), chosen.device) for name in (FUSED, "linear")}
        times = interleaved(cases, 5 if chosen.quick else 9 if T > 4096 else 21)
        ratio = ratios(times["linear"], times[FUSED])
        slower.append(statistics.median(ratio) >= 1)
        rows.append([str(T), *(Spread(times[name]) for name in cases), Spread(ratio)])
    header = ["T", f"{FUSED}, ms", "linear, ms", "linear : causal"]
    yield Table("linear attention, forward and backward, causal, (B, H, D) = (1, 4, 64)", header, rows)
    first = max((n + 1 for n, slow in enumerate(slower) if slow), default=0)
    yield f"Linear attention overtakes at T = {lengths[first]}." if first < len(lengths) else "It does not overtake."
    scanned = [Case("linear", (1, 4, T, D), chosen.device) for D in (32, 64) for T in (1024, 4096)]
    yield scan(linear_attention, "CHUNK", (32, 64, 128, 256), scanned, chosen.quick)


def graphs(chosen: argparse.Namespace) -> Iterator[Block]:
    """Time of sparse graphs: attend's way, one dense mask that is made beforehand, and the causal kernel."""
    rows = []
    every = ("causal & window 256", "causal & documents of 256", "causal | prefix 512")
    for graph in every[:2] if chosen.quick else every:
        for T in (4096,) if chosen.quick else (1024, 4096):
            ways = ("scaled_dot", DENSE_MASK, FUSED)
            times = interleaved(
                {way: Case(way, (1, 4, T, 64), chosen.device, graph) for way in ways}, 5 if chosen.quick else 21
            )
            compared = [ratios(times["scaled_dot"], times[way]) for way in (DENSE_MASK, FUSED)]
            share = float(GRAPHS[graph](T, "cpu").mask(range(T), range(T), "cpu").sum()) / (T * (T + 1) / 2)
            bound: str = ""
            if T == 4096 and graph in every[:2]:
                bound = Bound(
                    f"{graph}, {T} tokens: times the causal call's time for as many scores",
                    [each / share for each in compared[1]],
                    at_most=SCORES_BOUND,
                    limited_by=f"{share:.0%} of the causal scores are asked for",
                )
            times_taken = (Spread(times[way]) for way in ways)
            rows.append([graph, str(T), *times_taken, *map(Spread, compared), f"{share:.3f}", bound])
    header = ["graph", "T", "attend, ms", f"{DENSE_MASK}, ms", f"{FUSED}, ms", "attend : mask", "attend : causal"]
    header += ["its scores : causal", "bound"]
    yield Table("graphs, forward and backward, scaled_dot, (B, H, D) = (1, 4, 64)", header, rows)
    if chosen.device == "cpu" and not chosen.quick:  # FlexAttention, which a GPU takes, cuts no pieces
        windows = [(T, f"causal & window {size}") for T in (1024, 4096) for size in (64, 256)]
        scanned = [Case("scaled_dot", (1, 4, T, 64), chosen.device, window) for T, window in windows]
        yield scan(kernels, "ROWS_PER_CHUNK", (64, 128, 256, 512), scanned, chosen.quick)


PARTS = {"cost": cost, "memory": memory, "linear": linear, "graphs": graphs}


def scan(module: ModuleType, constant: str, values: Sequence[int], cases: Iterable[Case], quick: bool) -> Table:
    """A table of times with a module's constant set to each of the values."""
    rows = []
    for case in cases:
        settings = {str(value): mock.patch.object(module, constant, value) for value in values}
        times = interleaved(dict.fromkeys(settings, case), 5 if quick else 21, settings=settings)
        best = min(times, key=lambda value: statistics.median(times[value]))
        rows.append([case.graph, str(case.shape[2]), str(case.shape[3]), *map(Spread, times.values()), best])
    header = ["graph", "T", "D", *(f"{value}, ms" for value in values), "best"]
    name = f"{module.__name__}.{constant}"
    return Table(f"{name} = {getattr(module, constant)}, and others, forward and backward", header, rows)


def interleaved(
    cases: dict[str, Case],
    n_rounds: int,
    *,
    backward: bool = True,
    settings: Mapping[str, contextlib.AbstractContextManager[object]] | None = None,
) -> dict[str, list[float]]:
    """Milliseconds of each case in each round, measured within its setting; two rounds more come first, uncounted."""
    calls = {label: case.call(*case.inputs(backward=backward)) for label, case in cases.items()}
    times: dict[str, list[float]] = {label: [] for label in calls}
    order = random.Random(0)
    for n in range(-2, n_rounds):
        for label in order.sample(list(calls), len(calls)):
            # a GPU answers before its work is done
            wait = torch.cuda.synchronize if cases[label].device == "cuda" else lambda: None
            with settings[label] if settings else contextlib.nullcontext():
                wait()
                began = time.perf_counter()
                result = calls[label]()
                wait()
                elapsed = time.perf_counter() - began
            del result  # only now, as giving back its memory is no part of the call
            if n >= 0:
                times[label].append(1e3 * elapsed)
    return times


def peak_apart(case: Case) -> float:
    """`peak` in a new process; NaN where memory runs out."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(peak, case).result()
        except (BrokenProcessPool, torch.OutOfMemoryError):
            return math.nan


def peak(case: Case) -> float:
    """Bytes at the highest moment of a forward and backward pass, over what is held right before it.

    A dense mask counts, as it is made for the pass. Small passes come first: they load libraries and start threads.
    """
    B, H, _, D = case.shape
    for graph in (case.graph, "causal & documents of 256"):  # the second is cut into pieces even where it is small
        small = dataclasses.replace(case, shape=(B, H, 64, D), graph=graph)
        with mock.patch.object(kernels, "ROWS_PER_CHUNK", 32):
            small.call(*small.inputs())()
    inputs = case.inputs()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case.call(*inputs)()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(PermissionError):  # then the peak may be an earlier one, and memory looks worse than it is
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM falls to VmRSS
    before = resident("VmRSS")
    case.call(*inputs)()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes of this process that are in main memory: VmRSS now, VmHWM at their highest (proc_pid_status(5))."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in status if line.startswith(f"{field}:"))


def device(name: str) -> str:
    """For argparse."""
    if name not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{name}: write cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("cuda: this machine, or its PyTorch, has none; leave it out for the CPU")
    return name


def main(arguments: list[str]) -> list[Bound]:
    """Measure."""
    options = {"--device": {"type": device, "default": "cpu", "help": "cpu or cuda (default: cpu)"}}
    return harness.main(arguments, PARTS, name="attention", title="Attention: time and memory", options=options)


if __name__ == "__main__":
    program.run(main)
