"""docs/quickstart.ipynb runs from its first cell to its last, and shows what it says."""

from __future__ import annotations

import nbformat
from nbclient import NotebookClient

from helpers.paths import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    (trains,) = (cell for cell in notebook.cells if "train.steps=30" in cell.source)
    trains.source = trains.source.replace("train.steps=30", "train.steps=6")  # which shows as much
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert "160 images of 7 classes" in text
    assert "after: " in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
