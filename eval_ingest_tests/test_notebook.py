"""The example notebook, run from its first cell to its last."""

from collections.abc import Callable
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "example.ipynb"


def test_the_example_notebook_runs_and_shows_pictures(
    ingested: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(ingested("segmentation")))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept without
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    kinds = [kind for output in shown for kind in output.get("data", {})]
    assert kinds.count("image/png") == 2  # a sample, and one with a prediction
    assert "text/html" in kinds  # what a dataset is
    told = "".join(output.get("text", "") for output in shown)
    assert "labelled pixels of val are right" in told and "num_workers 0" in told
