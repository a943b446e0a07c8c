"""The layout: imports point one way and in no circle, the spine imports no leaf, and what is light stays light."""

import ast
import functools
import graphlib
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
FILES = LOWEST | {"config", "cores", "files", "frames", "markdown", "signals"}
MODELS = FILES | {"data", "interop", "model", "runs"}
MAY_IMPORT = {
    "errors": set(),
    "environment": set(),
    "cores": set(),
    "markdown": set(),
    "config": {"errors"},
    "files": {"errors"},
    "frames": {"errors", "files"},
    "signals": {"errors"},
    "data": FILES,
    "model": FILES,
    # Below runs: a model of another program is read wherever a run is.
    "interop": FILES | {"data", "model"},
    "runs": FILES | {"data", "interop", "model"},
    "generation": MODELS,
    "inspection": MODELS | {"generation"},
    "pages": MODELS | {"generation", "inspection"},
    "command_line": set(),
    "cli": FILES,
    "training": MODELS | {"command_line", "generation", "inspection", "pages"},
    "lab": MODELS | {"command_line", "generation", "inspection", "pages", "training"},
    "api": MODELS | {"cli", "generation", "inspection", "lab", "pages", "training"},
    "__main__": {"cli", "environment"},
}
"""The parts of minigpt that each part may import, besides itself."""

STAGES = {
    "data": "open prepare splitting tokenising tokenizers.base shards order batches stream",
    "model": "gpt attention tables cache compiling",
    "training": "run module loss optimizer muon qk_clip loaders checkpoints averaging stopping distributed "
    "lightning_compat",
    "generation": "generator engine sampling text",
}
SPINE = [f"{stage}.{name}" for stage, names in STAGES.items() for name in names.split()]
"""The modules that a reader follows from text to loss to text."""

GROUND = {"config", "cores", "environment", "errors", "files", "runs", "signals"}
"""The parts that every module of the spine may stand on."""

BRANCHES = {
    # Documents: the formats of files and hubs, and texts with ground truth, are leaves of the way to shards.
    "data.prepare": {"data.sources", "data.synthetic"},
    "data.splitting": {"data.sources"},
    "data.tokenising": {"data.answers", "data.sources", "data.relations"},
    "data.shards": {"data.sources"},
    "data.stream": {"data.sources"},
    "data.tokenizers.base": {"data.tokenizers"},
    # Attention: the default is on the page, everything else behind one branch.
    "model.attention": {"model.variants"},
    "model.gpt": {"model.variants"},
    # Decoding: faster readers of the same model, and drafts of tokens.
    "generation.engine": {"generation.cpu_backend", "generation.model_reader", "generation.prompt_lookup"},
    "generation.generator": {"generation.cpu_backend", "generation.model_reader", "data.answers"},
    # It puts a run together.
    "training.run": {"training", "data"},
    # QK-clip observes the scores that the fused kernel does not tell.
    "training.qk_clip": {"model.variants"},
}
"""Where the spine reaches a leaf: all such places there are."""


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it, as dotted names; `from a import b` counts as `a.b` too."""
    return imported_in(path.read_text(encoding="utf-8"), path)


@functools.cache
def imported_in(source: str, path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
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


def test_imports_point_down() -> None:
    first = PACKAGE / "__init__.py"
    assert parts_imported(first) == {"api", "config", "errors", "generation", "pages"}
    programs = {first, PACKAGE / "__main__.py", PACKAGE / "cli" / "commands.py"}  # they put the parts together
    for path in set(MODULES) - programs:
        part = part_of(path)
        assert parts_imported(path) - {part} <= MAY_IMPORT[part], path


def graph_of(package: Path) -> dict[str, set[str]]:
    """Each module of a package, as a dotted name, with the modules of it that it imports anywhere in its file."""

    def name_of(path: Path) -> str:
        return ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")

    paths = {name_of(path): path for path in package.rglob("*.py")}
    return {name: (imported(path) & set(paths)) - {name} for name, path in paths.items()}


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, as far as there are any."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


GRAPH = {
    name.partition(".")[2]: {other.partition(".")[2] for other in others} for name, others in graph_of(PACKAGE).items()
}


def test_no_modules_import_one_another() -> None:
    assert circle_in(GRAPH) == []


def test_a_circle_is_found_also_if_it_is_closed_inside_a_function_or_a_folder(tmp_path: Path) -> None:
    package = tmp_path / "made_up"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from made_up.inner import b\n")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "b.py").write_text("import made_up.c\n")
    (package / "c.py").write_text("import os\n")
    assert circle_in(graph_of(package)) == []
    (package / "c.py").write_text("def f():\n    from made_up.a import x\n")
    assert set(circle_in(graph_of(package))) == {"made_up.a", "made_up.inner.b", "made_up.c"}


def leaves_of(module: str) -> set[str]:
    """The leaves that a module of the spine imports."""
    others = {other for other in GRAPH[module] if other not in SPINE and other.split(".")[0] not in GROUND}
    return {other for other in others if not any(each.startswith(f"{other}.") for each in GRAPH)}  # no folders


def is_within(module: str, part: str) -> bool:
    return f"{module}.".startswith(f"{part}.")


@pytest.mark.parametrize("module", SPINE)
def test_the_spine_imports_no_leaf_but_at_its_branches(module: str) -> None:
    branches = BRANCHES.get(module, set())
    assert {leaf for leaf in leaves_of(module) if not any(is_within(leaf, part) for part in branches)} == set()


def test_every_branch_of_the_spine_is_still_one() -> None:
    assert set(BRANCHES) <= set(SPINE) <= set(GRAPH)
    for module, parts in BRANCHES.items():
        assert {part for part in parts if not any(is_within(leaf, part) for leaf in leaves_of(module))} == set(), module


def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def test_only_training_knows_lightning_and_dashboards() -> None:
    know = {path for path in MODULES if top_level(path) & HEAVY}
    assert {part_of(path) for path in know} <= {"training", "lab"}, know


def private_names_of_others(tree: ast.AST) -> set[str]:
    """Names with an underscore that a file uses as attributes or in getattr, but does not itself define and read."""
    nodes = list(ast.walk(tree))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    stored, read = (
        {node.attr for node in attributes if isinstance(node.ctx, kind) and ast.unparse(node.value) in {"self", "cls"}}
        for kind in (ast.Store, ast.Load)
    )
    own = stored & read | {"_asdict", "_exit", "_replace"}  # what is only stored is an attribute of a base class
    own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name)}
    calls = [node for node in nodes if isinstance(node, ast.Call) and len(node.args) > 1]
    named = [node.args[1] for node in calls if ast.unparse(node.func) in {"getattr", "hasattr", "setattr"}]
    used = {node.attr for node in attributes} | {n.value for n in named if isinstance(n, ast.Constant)}
    private = {name for name in used - own if name.startswith("_") and not name.startswith("__")}
    return {name for name in private if not name.startswith("_foreach_")}  # torch documents these


def test_the_finder_of_private_names_sees_each_kind_of_touch() -> None:
    source = "class A:\n  def f(self):\n    self._own = self._own + self._read\n    self._set = other._foreign\n"
    found = private_names_of_others(ast.parse(source + "getattr(x, '_named')\nself._called()\n"))
    assert found == {"_read", "_set", "_foreign", "_named", "_called"}


def test_only_one_module_touches_what_lightning_does_not_promise() -> None:
    """What each touch there is for, and that it still works: tests/training/test_lightning_compat.py."""
    others = [path for path in MODULES if part_of(path) in {"training", "lab"} and path.name != "lightning_compat.py"]
    assert others
    for path in others:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not private_names_of_others(tree), path
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not attributes & {"fit_loop", "epoch_loop", "val_loop", "batch_progress", "scaler", "procs"}, path


def test_only_the_module_writes_into_itself() -> None:
    """Callbacks observe: one optimizer step is read in training/module.py."""
    modules = {"module", "pl_module", "trainer.lightning_module"}
    for path in (PACKAGE / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                assert ast.unparse(node.value) not in modules, f"{path}: {ast.unparse(node)}"


def test_the_package_does_not_import_scripts_tests_or_benchmarks() -> None:
    foreign = {"train", "sample", "tests", "benchmarks", "scripts"}
    assert [path for path in MODULES if top_level(path) & foreign] == []


def test_every_module_begins_with_a_line_that_says_what_it_is() -> None:
    unsaid = [path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert unsaid == []


def test_no_script_at_the_top_hides_a_module_of_the_standard_library() -> None:
    assert not {path.stem for path in ROOT.glob("*.py")} & sys.stdlib_module_names


def loaded_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after a statement."""
    program = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_package_and_opening_a_run_loads_no_torch() -> None:
    assert not loaded_after("import minigpt") & (HEAVY | {"torch", "numpy", "jsonargparse", "yaml"})
    loaded = loaded_after("import minigpt; minigpt.Config(), minigpt.Run('runs/none'), minigpt.UserError")
    assert not loaded & (HEAVY | {"torch", "pandas", "matplotlib"})


def test_opening_a_model_and_writing_with_it_loads_neither_lightning_nor_datasets_nor_wandb() -> None:
    loaded = loaded_after("import sample, minigpt.runs.loading, minigpt.generation.model_reader")
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
