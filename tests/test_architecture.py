"""The layout: imports point one way, and what is light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import ROOT

PACKAGE = ROOT / "src" / "minigpt"
MODULES = sorted(PACKAGE.rglob("*.py"))
PARTS = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
HEAVY = {"lightning", "pytorch_lightning", "wandb"}

LOWEST = {"errors", "environment"}
FILES = LOWEST | {"config", "cores", "files", "markdown", "signals"}
MODELS = FILES | {"data", "model", "runs"}
MAY_IMPORT = {
    "errors": set(),
    "environment": set(),
    "cores": set(),
    "markdown": set(),
    "config": {"errors"},
    "files": {"errors"},
    "signals": {"errors"},
    "data": FILES,
    "model": FILES,
    "runs": FILES | {"data", "model"},
    "generation": MODELS,
    "inspection": MODELS | {"generation"},
    "pages": MODELS | {"generation", "inspection"},
    "interop": MODELS,
    "command_line": set(),
    "cli": FILES,
    "training": MODELS | {"command_line", "generation", "inspection", "pages"},
    "lab": MODELS | {"command_line", "generation", "inspection", "pages", "training"},
    "__main__": {"cli", "environment"},
}
"""The parts of minigpt that each part may import, besides itself."""


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it, as dotted names; `from a import b` counts as `a.b` too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def parts_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("minigpt.")} & PARTS


def test_the_parser_of_imports_sees_every_kind_of_import(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "import a.b as c\nfrom minigpt import model\ndef f():\n    from minigpt.data.prepare import prepare\n"
    )
    assert {"a.b", "minigpt.model", "minigpt.data.prepare"} <= imported(file)
    assert parts_imported(file) == {"model", "data"}


def test_every_part_has_a_rule() -> None:
    assert PARTS <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        assert parts_imported(path) == {"generation"}
        return
    part = part_of(path)
    if path.name == "__main__.py" or path.parts[-2:] == ("cli", "commands.py"):
        return  # a program puts the parts together
    assert parts_imported(path) - {part} <= MAY_IMPORT[part]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_training_knows_lightning_and_dashboards(path: Path) -> None:
    top_level = {name.split(".")[0] for name in imported(path)}
    assert part_of(path) in {"training", "lab"} or not top_level & HEAVY


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_does_not_import_scripts_tests_or_benchmarks(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & {"train", "sample", "tests", "benchmarks", "scripts"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_begins_with_a_line_that_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_no_script_at_the_top_hides_a_module_of_the_standard_library() -> None:
    assert not {path.stem for path in ROOT.glob("*.py")} & sys.stdlib_module_names


def loaded_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after a statement."""
    program = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_opening_a_model_and_writing_with_it_loads_neither_lightning_nor_datasets_nor_wandb() -> None:
    loaded = loaded_after("import sample, minigpt.runs.loading, minigpt.generation.generator")
    assert "torch" in loaded
    assert not loaded & (HEAVY | {"datasets", "pyarrow", "pandas", "tensorboard"})


def test_the_files_of_a_run_are_found_without_loading_torch() -> None:
    assert not loaded_after("import minigpt.runs.folder") & (HEAVY | {"torch", "numpy"})


def test_a_report_of_a_run_needs_neither_torch_nor_lightning_nor_wandb() -> None:
    loaded = loaded_after("import minigpt.cli.main, minigpt.pages.report")
    assert "numpy" in loaded
    assert not loaded & (HEAVY | {"torch", "matplotlib", "PIL"})


def test_the_command_line_is_understood_without_loading_torch() -> None:
    loaded = loaded_after("import train, minigpt.__main__\nfrom minigpt.cli import parsing\nparsing.parse_training([])")
    assert "jsonargparse" in loaded
    assert not loaded & (HEAVY | {"torch", "datasets", "numpy"})
