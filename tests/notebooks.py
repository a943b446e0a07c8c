"""Executes a notebook in a fresh kernel; `python tests/notebooks.py docs/your-text.ipynb` keeps the outputs in it."""

import os
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbformat import NotebookNode


def execute(notebook: NotebookNode, folder: Path, python: str = sys.executable) -> None:
    """Run all cells in a folder, with their outputs put into the notebook, without times and names of this machine.

    Args:
        notebook: changed in place.
        folder: working directory of the cells.
        python: what runs the kernel, whatever kernels the user has.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raises.
    """

    class Kernels(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=[python, "-m", "ipykernel_launcher", "-f", "{connection_file}"])

    client = nbclient.NotebookClient(
        notebook,
        kernel_manager_class=Kernels,  # a class and no object, so that the client ends the kernel too
        timeout=1800,
        record_timing=False,
        coalesce_streams=True,  # a progress bar's last state, as a notebook shows it
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def main(path: Path) -> None:
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `python` in what is printed
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    notebook.metadata["language_info"] = {"name": "python"}  # without this Python's version
    nbformat.write(notebook, path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
