"""How fast the live page is: `python benchmarks/live.py --run runs/demo`.

page: the page of a run for each type of weights: its size, the change of the loss, and the time to the first view.
sizes: models of several sizes with random weights, in the page's engine: loading, decoding, many tokens at once, and
one more token as somebody types it. All in headless Chromium, from a file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import torch
from harness import Block, Bound, Spread, Table

from minigpt.cli import program
from minigpt.config import GPTConfig, LiveConfig
from minigpt.data.tokenizers.base import BytesTokenizer
from minigpt.errors import UserError
from minigpt.lab.live import make_live
from minigpt.model.gpt import GPT
from minigpt.pages.live.page import live_page

SIZE_MB, FIRST_VIEW_SECONDS, LOSS_CHANGE = 4.0, 1.5, 0.005
"""Bounds of the demo's page at int8."""
AT_ONCE_SECONDS = 0.8
"""Bound of 128 new tokens at once, for the demo's sizes."""
N_AT_ONCE = 128

SIZES: dict[str, tuple[GPTConfig, float | None]] = {
    "demo": (GPTConfig(vocab_size=2048), 120.0),
    "10M": (GPTConfig(vocab_size=1024, context_length=256, n_layer=6, n_head=6, n_embd=384), 25.0),
    "GPT-2 small": (GPTConfig.gpt2_family(), None),
}
"""Model -> config, and the fewest tokens a second that it must decode."""

# In the page, on its own thread: the model alone, as the worker has it. Returns seconds; of decoding, a token.
MEASURE = """async ({ n, atOnce, rounds, warmUp }) => {
  const chunks = [...document.querySelectorAll("script.weights")].map((element) => element.textContent);
  const seconds = async (work) => {
    const began = performance.now();
    await work();
    return (performance.now() - began) / 1e3;
  };
  const found = { decoding: [], atOnce: [] }, V = data.config.vocab_size;
  let model;
  found.loading = await seconds(async () => { model = new GPT(data.config, await loadTensors(data.header, chunks)); });
  const tokens = Array.from({ length: Math.max(n, atOnce) + 1 }, (_, i) => (i * 7919) % V);
  for (let round = -warmUp; round < rounds; round++) {
    const cache = model.cache(), each = [];
    for (let i = 0; i < n; i++) {
      each.push(await seconds(() => model.forward([tokens[i]], { cache, logits: "last" })));
    }
    const trace = new Trace(data.config), some = tokens.slice(0, atOnce);
    const whole = await seconds(() => model.forward(some, { trace, logits: "all" }));
    if (round >= 0) {
      found.decoding.push(each.reduce((sum, value) => sum + value, 0) / n);
      found.atOnce.push(whole);
    }
  }
  return found;
}"""

# As somebody types: the worker reads one token more, and its answer is drawn.
TYPE = """async ({ n }) => {
  const found = [];
  for (let i = 0; i < n; i++) {
    const began = performance.now();
    await change({ tokens: [...state.tokens, 100 + i] });
    found.push((performance.now() - began) / 1e3);
  }
  return found;
}"""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser.

    Raises:
        UserError: there is none.
    """
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("MINIGPT_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise UserError("no Chromium: install one, or set MINIGPT_CHROMIUM to its path")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def opened(browser: Any, file: Path) -> tuple[Any, float]:
    """A page that has shown its first numbers, and after how many seconds."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    began = time.perf_counter()
    page.goto(file.as_uri(), wait_until="commit")  # an unfinished page delays its load event
    page.wait_for_selector("html[data-ready='1']", timeout=120_000)
    return page, time.perf_counter() - began


def first_views(browser: Any, file: Path, n_rounds: int) -> Spread:
    """Seconds from opening to the first numbers; the first round warms up."""
    times = []
    for _ in range(n_rounds + 1):
        page, taken = opened(browser, file)
        page.close()
        times.append(taken)
    return Spread(times[1:])


def page_of_run(chosen: Namespace) -> Iterator[Block]:
    """Size, change of the loss and first view of a run's page."""
    rows, n_rounds = [], 2 if chosen.quick else 9
    with chromium() as browser:
        for kind in ("int8",) if chosen.quick else ("int8", "float16", "float32"):
            live = make_live(LiveConfig(chosen.run, weights=kind))
            file = chosen.folder / f"{kind}.html"
            file.write_text(live.page, encoding="ascii")
            size, change, view = len(live.page) / 1e6, live.measured.change, first_views(browser, file, n_rounds)
            bounds = [
                Bound("a run's page: size", size, at_most=SIZE_MB, unit="MB", limited_by="the weights at 8 bits"),
                Bound("a run's page: change of the loss", abs(change), at_most=LOSS_CHANGE, unit="nats"),
                Bound("a run's page: first view", view.values, at_most=FIRST_VIEW_SECONDS, unit="s"),
            ]
            bounds = bounds if kind == "int8" else ["", "", ""]
            figures = [f"{size:.1f}", f"{change:+.4f}", view]
            rows.append([kind, *(cell for pair in zip(figures, bounds, strict=True) for cell in pair)])
    yield Table(
        f"the page of {Path(chosen.run).name}, {live.n_parameters:,} parameters; loss {live.measured.loss:.4f} on "
        f"{live.measured.text}; {n_rounds} rounds",
        ["weights", "MB", "bound", "change of the loss, nats", "bound", "first view, seconds", "bound"],
        rows,
    )  # fmt: skip


def sizes(chosen: Namespace) -> Iterator[Block]:
    """Speed of models with random weights, at int8."""
    rows, n_rounds = [], 2 if chosen.quick else 5
    wanted = {"demo": SIZES["demo"]} if chosen.quick else SIZES
    with chromium() as browser:
        for name, (config, fewest) in wanted.items():
            torch.manual_seed(0)
            model = GPT(config).eval()
            n_parameters = sum(weight.numel() for weight in model.parameters())
            file = chosen.folder / f"{len(rows)}.html"
            file.write_text(
                live_page(model, BytesTokenizer(), "Once upon a time", title=name, facts={}), encoding="ascii"
            )
            page, view = opened(browser, file)
            big = n_parameters > 5e7
            typing = page.evaluate(TYPE, {"n": 4 if big else 16})
            given = {
                "n": 4 if big else 64,
                "atOnce": N_AT_ONCE,
                "rounds": 2 if big else n_rounds,
                "warmUp": int(not big),
            }
            found = page.evaluate(MEASURE, given)
            page.close()
            decoding = Spread([1 / seconds for seconds in found["decoding"]])
            at_once = Spread(found["atOnce"])
            bounds = ["", ""]
            if fewest is not None:
                bounds[0] = Bound(f"a page of {name}: decoding", decoding.values, at_least=fewest, unit="tokens/s")
            if name == "demo":
                what = f"a page of {name}: {N_AT_ONCE} tokens at once"
                bounds[1] = Bound(what, at_once.values, at_most=AT_ONCE_SECONDS, unit="s")
            rows.append(
                [name, f"{n_parameters / 1e6:.1f}", f"{file.stat().st_size / 1e6:.1f}", f"{view:.2f}",
                 f"{found['loading']:.2f}", decoding, bounds[0], at_once, bounds[1], Spread(typing)]
            )  # fmt: skip
    yield Table(
        f"int8, random weights; {n_rounds} rounds (GPT-2 small: 2)",
        ["model", "million parameters", "MB", "first view, s", "loading, s", "decoding, tokens/s", "bound",
         f"{N_AT_ONCE} tokens at once, s", "bound", "one token typed and drawn, s"],
        rows,
    )  # fmt: skip


def main(arguments: list[str]) -> None:
    """Measure."""
    harness.main(
        arguments,
        {"page": page_of_run, "sizes": sizes},
        name="live",
        title="The live page: how fast it thinks",
        options={"--run": {"help": "a trained run, such as runs/demo"}},
        needs={"page": ["run"]},
    )


if __name__ == "__main__":
    program.run(main)
