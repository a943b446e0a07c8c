"""Runs of many kinds -> real processes, killed at random moments and resumed: is each of them the run never stopped?

`make chaos`, some minutes; it needs the tests' folders on PYTHONPATH, for their small configs and quick start.
"""

from __future__ import annotations

import collections
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from harness import RESULTS, Parser, Table, machine
from scripts import ready_python
from small_runs import small_settings, small_text

from minigpt.cli import program
from minigpt.files import write_text
from minigpt.lab.progress_file import PHASES
from minigpt.lab.prove_resume import Proof, prove

STEPS = 40
COMMON: dict[str, Any] = {
    "model": {"dropout": 0.1},
    "trainer": {"max_steps": STEPS, "val_check_interval": 12},
    "checkpoint_every_n_steps": 5,
    "checkpoint_every_n_minutes": None,
}
KINDS: dict[str, dict[str, Any]] = {
    "muon": {},
    "adamw, cosine": {"optimizer": {"name": "adamw", "schedule": "cosine"}},
    "accumulation 2, clipping": {
        "trainer": {"accumulate_grad_batches": 2, "val_check_interval": 18, "gradient_clip_val": 0.1}
    },
    "loss logged every 4 steps, checkpoint every 3": {
        "trainer": {"log_every_n_steps": 4},
        "checkpoint_every_n_steps": 3,
    },
    "loader workers 1": {"data": {"num_workers": 1}},
    "examples": {"data": {"source": "texts", "mode": "examples"}},
    "mixture of two texts": {"data": {"source": ["texts", "text.txt"], "weights": [1.0, 3.0]}},
    "streaming, 160 steps": {
        "data": {"source": "texts", "streaming": True},
        "trainer": {"max_steps": 160},  # some pools of batches
    },
    "average of the weights": {"optimizer": {"average_decay": 0.9}},
    "weights kept every 2 steps": {"keep_every_n_steps": 2},
    "attention every 3 steps": {"attention": {"every_n_steps": 3}},
    "W&B, offline": {"trainer": {"logger": "wandb"}},
    "compiled, two threads": {
        "compile": True,
        "model": {"context_length": 64, "n_embd": 64},  # large enough for two threads to work
        "data": {"batch_size": 12},
    },
    "two processes (DDP, gloo)": {
        "trainer": {"devices": 2, "strategy": "ddp"},
        "data": {"batch_size": 2},
    },
}


def main(arguments: list[str]) -> None:
    """Kill, compare, print; exit code 1 where a run is another one."""
    parser = Parser(description="Kill runs at random moments, resume them, compare everything.", allow_abbrev=False)
    parser.add_argument("kind", nargs="*", help="only these (default: all)")
    parser.add_argument("--kills", type=int, default=9, help="of each kind")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--write", action="store_true", help="also into benchmarks/results/chaos.md")
    chosen = parser.parse_args(arguments)
    rows, failures, began, total = list[list[str]](), list[str](), time.monotonic(), collections.Counter[str]()
    for number, (kind, settings) in enumerate(KINDS.items()):
        if chosen.kind and kind not in chosen.kind:
            continue
        print(f"\n{kind}", flush=True)
        with tempfile.TemporaryDirectory(prefix="minigpt-chaos-", ignore_cleanup_errors=True) as name:
            proof = killed(Path(name), settings, chosen.kills, chosen.seed + number)
        failures += [f"{kind}: {line}" for line in proof.differences]
        fell = collections.Counter(death.phase for death in proof.deaths)
        total += fell
        resumed = sum(death.resumed_from is not None for death in proof.deaths)
        counts = [len(proof.deaths), *(fell[phase] for phase in PHASES), resumed, proof.runs, len(proof.differences)]
        rows.append([kind, *map(str, counts)])
        print(", ".join(f"{fell[phase]} in {phase}" for phase in PHASES), f"-> {len(proof.differences)} differences")
    sums = [sum(int(row[i]) for row in rows) for i in range(1, len(rows[0]))]
    header = ["kind of run", "kills", *PHASES, "resumed", "runs compared", "differences"]
    table = Table("where the kills fell", header, [*rows, ["all", *map(str, sums)]])
    minutes = (time.monotonic() - began) / 60
    text = (
        f"# Chaos: runs of {STEPS} steps, killed at random moments\n\n{machine('cpu')}; seed {chosen.seed}; "
        f"{minutes:.0f} minutes\n\n"
        "Real processes, their whole group killed by SIGKILL and continued by `train.py --resume RUN` alone; then "
        "every file of the run is\ncompared with those of one that was never stopped: weights, the optimizer's state "
        "and the rest of each checkpoint bit for bit, rows of\nmetrics but clocks, samples, attention. A process that "
        "died before its first checkpoint was started anew, the others were resumed.\n\n"
        f"{table}\n\n" + ("\n".join(failures) or f"{sums[0]} kills, 0 loss mismatches, final weights bitwise equal.")
    )
    print(f"\n{text}")
    if chosen.write:
        write_text(RESULTS / "chaos.md", text + "\n")
    if failures:
        sys.exit(1)


def killed(folder: Path, settings: dict[str, Any], kills: int, seed: int) -> Proof:
    """One kind of run, killed and compared."""
    texts = folder / "texts"
    texts.mkdir()
    for i, line in enumerate(small_text().splitlines()):
        (texts / f"{i:03}.txt").write_text(line * (1 + i % 3))
    sections = {name: merged(COMMON.get(name, {}), settings.get(name, {})) for name in {*COMMON, *settings}}
    source = sections.get("data", {}).get("source", "text.txt")
    names = [source] if isinstance(source, str) else source
    places = [str(folder / name) for name in names]
    sections["data"] = sections.get("data", {}) | {"source": places if len(places) > 1 else places[0]}
    config = small_settings(folder, **sections)
    # Another rank is started by Lightning, which the quick start knows nothing of: it would not die with the first.
    python = sys.executable if config.trainer.devices == 2 else ready_python()
    runs = folder / "runs"
    runs.mkdir()
    # Tiny models lose time with a second thread, but only two can add up compiled sums in another order.
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "2"} if config.compile else {}):
        return prove(config, runs, kills=kills, seed=seed, python=python, on_line=lambda line: print(line, flush=True))


def merged(one: Any, other: Any) -> Any:
    """A section's settings with some changed; a setting that is none of a section as it is given."""
    return one | other if isinstance(one, dict) and isinstance(other, dict) else other or one


if __name__ == "__main__":
    program.run(main)
