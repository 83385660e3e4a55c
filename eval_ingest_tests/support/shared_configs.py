"""Datasets to the configurations beside the checkout, where they are."""

from pathlib import Path

from eval_ingest.testing.datasets import write_matching

FOLDERS = ("tolbi", "nandi", "worldcover", "lfmc", "landslide")


def generate(folder: Path, root: Path, windows: int = 12) -> Path:
    """A dataset of a folder's configuration, with its olmoearth_run.yaml."""
    texts = [(folder / name).read_text() for name in ("config.json", "model.yaml")]
    path = write_matching(root / folder.name, *texts, windows=windows, side=32, alike=True)
    run = folder / "olmoearth_run.yaml"
    if run.exists():
        (path / run.name).write_text(run.read_text())
    return path
