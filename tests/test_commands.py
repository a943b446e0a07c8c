"""README and docs: every command runs, in the order in which a reader types them, in one folder like a fresh clone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml
from scripts import ROOT, cold_too, ready_python, run_line, run_script

PAGES = (
    "README.md",
    "docs/inspection.md",
    "docs/live.md",
    "docs/data.md",
    "docs/attention.md",
    "docs/generation.md",
    "docs/interop.md",
    "docs/reliability.md",
    "studies/README.md",
)
"""In reading order; `test_every_page_with_commands_is_typed` finds any other."""
NOT_TYPED = {
    "python -m venv .venv && . .venv/bin/activate": "the tests have an environment",
    ". .venv/bin/activate": "the tests have an environment",
    "pip install -c constraints.txt torch": "the tests have an environment",
    "pip install -c constraints.txt -e .": "the tests have an environment",
    "minigpt train demo": "the same as `make demo`, which is typed",
}
SLOW = re.compile(r"minigpt (prove-resume|compare|doctor|study [\w-]+$)")
"""Many trainings or measurements, each tested elsewhere; `make test-slow` types these too."""
SMALLER = "--model.n_layer 1 --model.n_head 2 --model.n_embd 32 --data.batch_size 4"
"""What the quick suite adds to a budget; `make test-slow` has it choose all by itself."""
NUMBERS = re.compile(r"(--trainer.max_steps|--keep_every_n_steps|--data.max_documents) (\d+)")
"""Of these the quick suite types an eighth."""
RECIPES_COMPARED = ("scaled_dot.yaml", "uniform.yaml")


def shell_lines(page: str) -> list[str]:
    """The lines of a page's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = [re.sub(r"\s+#\s.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def python_blocks(page: str) -> list[str]:
    """The Python blocks that open a run, or an exported one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n((?:import minigpt|from transformers import [^\n]+)\n.*?)```", text, re.DOTALL)


def clone(folder: Path, cold: bool) -> None:
    """What a fresh clone has; recipes with fewer, smaller steps and less text, and two of those that are compared."""
    tiny_steps, steps, batch_size, n_embd = (60, 4, 16, 192) if cold else (8, 2, 4, 64)
    for name in ("train.py", "sample.py", "README.md", "Makefile", "pyproject.toml", "constraints.txt", "src"):
        (folder / name).symlink_to(ROOT / name)
    for recipe in (ROOT / "configs").rglob("*.yaml"):
        if recipe.parent.name == "attention" and recipe.name not in RECIPES_COMPARED:
            continue
        settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        trainer = settings.setdefault("trainer", {})
        trainer["max_steps"] = min(trainer.get("max_steps", 600), tiny_steps if recipe.stem == "tiny" else steps)
        trainer["val_check_interval"] = trainer["max_steps"]
        trainer.pop("max_time", None)
        model = settings.setdefault("model", {})
        model["n_embd"] = min(model.get("n_embd", n_embd), n_embd)
        data = settings.setdefault("data", {})
        data["batch_size"] = min(data.get("batch_size", 16), batch_size)
        if data.get("source", "python_stdlib") == "python_stdlib":
            data.setdefault("max_documents", 40)
        settings.setdefault("sampling", {}).setdefault("max_new_tokens", 16)
        target = folder / recipe.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(yaml.safe_dump(settings), encoding="utf-8")


def typed(line: str, page: str, cold: bool) -> str:
    """The line as the shell gets it: `make` takes the tests' environment and installs nothing."""
    python = Path(sys.executable if cold else ready_python())
    if not cold:
        smaller = "" if "--from" in line else f" {SMALLER}"
        line = line.replace("--budget 30s", f"--budget '2 steps'{smaller}")
        line = NUMBERS.sub(lambda found: f"{found[1]} {int(found[2]) // 8 + 1}", line)
    # In the quick suite, W&B logs what the README trains, and nothing of the other pages.
    logged = "" if cold or page == "README.md" else "export WANDB_MODE=disabled; "
    return logged + re.sub(r"^make ", f"make -o .venv/installed BIN={python.parent} ", line)


@cold_too
def test_every_command_runs_in_the_order_in_which_a_reader_types_it(cold: bool, tmp_path: Path) -> None:
    clone(tmp_path, cold)
    for page in PAGES:
        for line in shell_lines(page):
            if line in NOT_TYPED or (SLOW.search(line) and not cold):
                continue
            result = run_line(typed(line, page, cold), tmp_path, cold)
            said = f"{page}: {line}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
            assert result.returncode == 0, said
            assert "Traceback" not in result.stderr, said
            # A page that trains a name again makes another folder, and then shows the first one.
            assert not list((tmp_path / "runs").glob("*-[0-9]")), f"{page}: {line}: a second run of one name"
        for block in python_blocks(page):
            result = run_script("-c", block, cwd=tmp_path, cold=cold)
            assert result.returncode == 0, f"{page}\n{result.stderr}"
            if page == "README.md":
                assert "torch.Size([1, 2, 14, 14])" in result.stdout


def test_every_page_with_commands_is_typed() -> None:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    for page in listed.stdout.split():
        assert page in PAGES or not shell_lines(page), page


def test_what_is_not_typed_stands_on_a_page_and_make_demo_does_what_it_stands_for() -> None:
    lines = {line for page in PAGES for line in shell_lines(page)}
    assert set(NOT_TYPED) <= lines
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "train.py --config configs/demo.yaml" in recipe
    assert os.access(ROOT / "train.py", os.R_OK)
