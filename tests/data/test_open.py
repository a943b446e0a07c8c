"""The entry to data/: text is prepared or its head is, and no module imports itself through others."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import minigpt.data
from minigpt.config import DataConfig
from minigpt.data.open import open_data
from minigpt.data.prepare import prepare
from minigpt.data.stream import prepare_head

FOLDER = Path(minigpt.data.__file__).parent


def test_a_stream_opens_as_its_head_and_other_text_whole(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(60))
    (tmp_path / "rows.jsonl").write_text(rows)
    whole = DataConfig(source=str(tmp_path / "rows.jsonl"), tokenizer="bytes", dir=str(tmp_path / "data"))
    stream = DataConfig(source=whole.source, tokenizer="bytes", dir=whole.dir, streaming=True)
    assert open_data(whole).manifest == prepare(whole).manifest
    assert open_data(stream).manifest == prepare_head(stream).manifest
    assert open_data(stream).folder != open_data(whole).folder


def test_local_text_is_prepared_without_what_takes_seconds_to_import(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "six"}\n')
    script = "import sys; from minigpt.config import DataConfig; from minigpt.data.open import open_data\n"
    script += "open_data(DataConfig(source=sys.argv[1], tokenizer='bytes', dir=sys.argv[2]), quiet=True)\n"
    script += "print({'torch', 'datasets', 'pyarrow'} & {name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", script, str(tmp_path / "rows.jsonl"), str(tmp_path / "data")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"


def imports_of(path: Path) -> set[str]:
    """Modules of data/ that a file imports anywhere in it, in functions too."""
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = {str(node.module) for node in found if isinstance(node, ast.ImportFrom)}
    return {name for name in names if name.startswith("minigpt.data.")}


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        ".".join(("minigpt", "data", *path.relative_to(FOLDER).with_suffix("").parts)): imports_of(path)
        for path in FOLDER.rglob("*.py")
    }
    assert "minigpt.data.stream" in graph["minigpt.data.open"]
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("minigpt.data.stream") < order.index("minigpt.data.open")
