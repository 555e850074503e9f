"""The notebook runs from its first cell to its last."""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]


def test_it_runs(tmp_path, monkeypatch):
    """With two iterations a training, in a process of its own."""
    monkeypatch.setenv("ITERATIONS", "2")
    monkeypatch.setenv("IMAGES", "24")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples/distil_your_detector.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for output in notebook.cells[-2].outputs)
    assert re.fullmatch(r"teacher +AP +[\d.]+\nstudent alone +AP +[\d.]+\nstudent, distilled +AP +[\d.]+\n", printed)
