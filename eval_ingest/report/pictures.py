"""Every picture of a dataset, as PNG bytes: what is in it, where, when, and how divided."""

from dataclasses import dataclass

from eval_ingest.report.charts import band_histograms, band_statistics, label_histogram, timeline
from eval_ingest.report.drawing import to_png
from eval_ingest.report.map import window_map
from eval_ingest.report.previews import previews
from eval_ingest.report.view import View, open_view
from eval_ingest.store.roots.base import EvalRoot

SMALL_BYTES = 150_000
"""`partition_pictures` together: under 200 kB once they are base64 in a page."""

_COLORS = 96
"""Of charts, which are drawn in few."""


@dataclass(frozen=True)
class Picture:
    """A picture and what it shows."""

    name: str
    """File name without `.png`."""
    title: str
    png: bytes


_CHARTS = {
    "map": ("Where the windows lie", window_map),
    "labels": ("Labels per split", label_histogram),
    "bands": ("Bands beside pretraining", band_statistics),
    "histograms": ("Pixel values per band", band_histograms),
    "timeline": ("When the images were taken", timeline),
}


def all_pictures(view: View) -> list[Picture]:
    """Every picture of the report, in the order in which a person wants to see them."""
    names = [modality.name for modality in view.metadata.config.modalities]
    return [
        *(Picture(f"preview_{m}", f"Samples: {m}", to_png(previews(view, m))) for m in names),
        *(
            Picture(name, title, to_png(draw(view), colors=_COLORS))
            for name, (title, draw) in _CHARTS.items()
        ),
    ]


def partition_pictures(root: EvalRoot, name: str) -> dict[str, bytes]:
    """Small pictures by title, under SMALL_BYTES together, for the metadata of an asset.

    Raises:
        NotIngestedError: the dataset isn't there, or only in part.
    """
    view = open_view(root, name)
    figures = {
        "samples": previews(view, view.metadata.config.modalities[0].name, 5),
        "map": window_map(view),
        "labels": label_histogram(view),
    }
    made: dict[str, bytes] = {}
    for dpi, colors in ((72, 96), (60, 48), (48, 24)):
        made = {title: to_png(figure, dpi, colors) for title, figure in figures.items()}
        if sum(map(len, made.values())) <= SMALL_BYTES:
            return made
    while sum(map(len, made.values())) > SMALL_BYTES:
        del made[max(made, key=lambda title: len(made[title]))]
    return made
