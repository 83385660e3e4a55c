"""Write everything that a report is: pictures, page and card."""

from collections.abc import Sequence
from pathlib import Path

from eval_ingest.core.quality import quality_report
from eval_ingest.report.page import dataset_card, html_page
from eval_ingest.report.pictures import all_pictures
from eval_ingest.report.tables import Board
from eval_ingest.report.view import open_view
from eval_ingest.store.atomic import write_bytes
from eval_ingest.store.roots.base import EvalRoot


def write_report(
    root: EvalRoot, name: str, scores: Sequence[Board] = (), citation: str = ""
) -> list[Path]:
    """Write {name}/report/*.png, {name}/report/report.html and {name}/README.md.

    Beside the windows of another tool the card is {name}/report/README.md: the other may be its.
    `scores` are what sweeps found, for the page; `citation` is for the card.

    Raises:
        UnknownDatasetError: there is no such dataset.
        NotIngestedError: its index is of another version.
        StoreError: the eval root can't be written.
    """
    view = open_view(root, name)
    known = view.metadata
    quality = quality_report(view.index, view.assignment, known.config, known.spec.resplit_as)
    pictures = all_pictures(view)
    folder = root.dataset(name).layout.path
    files = {folder / "report" / f"{p.name}.png": p.png for p in pictures}
    files[folder / "report" / "report.html"] = html_page(view, quality, pictures, scores).encode()
    inside = "" if view.metadata.spec.adopted else "report/"
    card = folder / "README.md" if inside else folder / "report" / "README.md"
    files[card] = dataset_card(view, quality, pictures, inside, citation).encode()
    for path, data in files.items():
        write_bytes(path, data)
    root.send(*files)
    return list(files)
