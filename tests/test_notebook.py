"""docs/your-text.ipynb: its cells run, and the outputs in it are whole, small, and of no machine in particular."""

import copy
import getpass
import re
import socket
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbformat import NotebookNode
from notebooks import code_cells, execute
from scripts import ROOT, bare_environment, ready_python

PATH = ROOT / "docs" / "your-text.ipynb"
SMALLER = {
    'budget="1m"': 'budget="4 steps", n_layer=1, n_embd=32, n_head=2, batch_size=2',
    'budget="100 steps"': 'budget="2 steps"',
    "(references(seed=1), 3000)": "(references(seed=1), 60)",
    "stories[:300]": "stories[:40]",
    "in (1, 2, 3)": "in (1, 2)",
}
"""What the test types in place of the notebook's own text: the same cells in seconds."""


@pytest.fixture(scope="module")
def committed() -> NotebookNode:
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def executed(committed: NotebookNode, tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    """A copy of the notebook, executed with the smaller settings."""
    notebook = copy.deepcopy(committed)
    cells = code_cells(notebook)
    for own, smaller in SMALLER.items():
        assert sum(cell.source.count(own) for cell in cells) == 1, own
        for cell in cells:
            cell.source = cell.source.replace(own, smaller)
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patched:
        for name, value in (bare_environment() | {"IPYTHONDIR": str(folder / "ipython")}).items():
            patched.setenv(name, value)
        execute(notebook, folder, ready_python())
    return notebook


def outputs_of(notebook: NotebookNode, containing: str) -> str:
    """All that the cell which contains a text has put out, of each kind."""
    (cell,) = [cell for cell in code_cells(notebook) if containing in cell.source]
    outputs = [{"text": output.text} if output.output_type == "stream" else output.data for output in cell.outputs]
    return "\n".join(f"{kind}: {content}" for output in outputs for kind, content in output.items())


def kinds(notebook: NotebookNode) -> list[list[str]]:
    """For each cell, the kinds of its outputs."""
    return [
        [kind for output in cell.outputs for kind in (sorted(output.data) if "data" in output else [output.name])]
        for cell in code_cells(notebook)
    ]


@pytest.mark.parametrize("which", ["committed", "executed"])
def test_the_notebook_goes_from_a_text_to_samples_a_page_and_a_comparison(
    which: str, request: pytest.FixtureRequest
) -> None:
    notebook = request.getfixturevalue(which)
    training = outputs_of(notebook, 'train("story.txt"')
    assert re.search(r"^budget  ", training, re.MULTILINE)
    assert re.search(r"^done: \d+ steps", training, re.MULTILINE)
    losses = outputs_of(notebook, "losses.tail()")
    assert "val/bits_per_byte" in losses
    assert re.search(r"\d\.\d{6}", losses)
    assert "image/png" in outputs_of(notebook, "run.plot()")
    assert len(outputs_of(notebook, "run.samples[-1]")) > 40
    assert "Nora's cat" in outputs_of(notebook, "run.generate(prompt")
    assert "srcdoc=" in outputs_of(notebook, "seen = run.inspect")
    assert "image/png" in outputs_of(notebook, "seen.plot")
    comparison = outputs_of(notebook, "minigpt.compare(")
    assert re.search(r"text/plain: +bits per byte +difference +interval\n", comparison)
    assert re.search(r"weight decay 0.1 +\d\.\d+ +NaN +NaN\n", comparison)
    assert re.search(r"weight decay 1.0 +\d\.\d+ +-?\d\.\d+ +\d\.\d+", comparison)


def test_its_outputs_are_those_of_one_pass_over_the_cells_as_they_are(
    committed: NotebookNode, executed: NotebookNode
) -> None:
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert kinds(committed) == kinds(executed)


def test_what_training_prints_is_readable_line_by_line(committed: NotebookNode) -> None:
    text = outputs_of(committed, 'train("story.txt"')
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.count("%|") == 1
    assert re.search(r"^step \d+/\d+   train/loss", text, re.MULTILINE)


def test_it_is_small_and_names_no_folder_user_or_host() -> None:
    content = PATH.read_text(encoding="utf-8")
    assert len(content) < 400_000
    shown = re.sub(r'"[A-Za-z0-9+/=\\n]{1000,}"|srcdoc=\'.*?\'', "", content)
    assert not re.findall(r"(?:/home|/root|/tmp|/work|/Users|/usr)/[^\s\"]*|[A-Z]:\\\\\\\\", shown)
    names = {getpass.getuser(), socket.gethostname()} - {"root", "localhost"}
    assert not [name for name in names if len(name) > 3 and re.search(rf"\b{re.escape(name)}\b", shown)]
    assert str(Path.home()) not in shown


def test_a_mistake_in_a_cell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    shell = InteractiveShell()
    shell.run_cell('import minigpt\nminigpt.open_run("runs/none")')
    assert "Traceback" not in (output := capsys.readouterr().out)
    assert output.splitlines()[-1].startswith("error: runs/none: there is no runs/none/config.yaml; name")
