"""What `eval-ingest report` and `eval-ingest export` do: values for --json, and lines to print."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval_ingest.report.export import export_dataset
from eval_ingest.report.writing import write_report
from eval_ingest.store.roots.base import EvalRoot


def report(root: EvalRoot, name: str) -> tuple[dict[str, Any], list[str]]:
    """Write a dataset's report.

    Raises:
        EvalIngestError: see `write_report`.
    """
    paths = [root.shown(path) for path in write_report(root, name)]
    page = next(path for path in paths if path.endswith("report.html"))
    return {"name": name, "files": paths}, [*(f"  {path}" for path in paths), f"look at {page}"]


def export(
    root: EvalRoot,
    name: str,
    to: str,
    windows: bool,
    progress: Callable[[str, int, int], None],
) -> tuple[dict[str, Any], list[str]]:
    """Write a folder to publish.

    Raises:
        EvalIngestError: see `export_dataset`.
    """
    path = export_dataset(root, name, Path(to).expanduser(), windows, progress)
    lines = [
        f"{name} is in {path}; its card is {path / 'README.md'}",
        f'load it: OLMOEARTH_EVAL_DATASETS={path.parent} and EvalDataset("{name}")',
    ]
    return {"name": name, "path": str(path), "windows": windows}, lines
