"""Every picture of a dataset, as PNG bytes: what is in it, where, when, and how divided."""

from collections.abc import Callable
from dataclasses import dataclass

from eval_ingest.report.charts import band_histograms, band_statistics, label_histogram, timeline
from eval_ingest.report.map import window_map
from eval_ingest.report.previews import previews
from eval_ingest.report.view import View, open_view
from eval_ingest.store.roots.base import EvalRoot

SMALL_BYTES = 150_000
"""`partition_pictures` together: under 200 kB once they are base64 in a page."""


@dataclass(frozen=True)
class Picture:
    """A picture and what it shows."""

    name: str
    """File name without `.png`."""
    title: str
    png: bytes


def all_pictures(view: View) -> list[Picture]:
    """Every picture of the report, in the order in which a person wants to see them."""
    pictures = [
        Picture(
            f"preview_{modality.name}", f"Samples: {modality.name}", previews(view, modality.name)
        )
        for modality in view.metadata.config.modalities
    ]
    return [
        *pictures,
        Picture("map", "Where the windows lie", window_map(view)),
        Picture("labels", "Labels per split", label_histogram(view)),
        Picture("bands", "Bands beside pretraining", band_statistics(view)),
        Picture("histograms", "Pixel values per band", band_histograms(view)),
        Picture("timeline", "When the images were taken", timeline(view)),
    ]


def partition_pictures(root: EvalRoot, name: str) -> dict[str, bytes]:
    """Small pictures by title, under SMALL_BYTES together, for the metadata of an asset.

    Raises:
        NotIngestedError: the dataset isn't there, or only in part.
    """
    view = open_view(root, name)
    modality = view.metadata.config.modalities[0].name
    makers: dict[str, Callable[[int, int], bytes]] = {
        "samples": lambda dpi, colors: previews(view, modality, 5, dpi, colors),
        "map": lambda dpi, colors: window_map(view, dpi, colors),
        "labels": lambda dpi, colors: label_histogram(view, dpi, colors),
    }
    made: dict[str, bytes] = {}
    for dpi, colors in ((72, 96), (60, 48), (48, 24)):
        made = {title: make(dpi, colors) for title, make in makers.items()}
        if sum(map(len, made.values())) <= SMALL_BYTES:
            return made
    while sum(map(len, made.values())) > SMALL_BYTES:
        del made[max(made, key=lambda title: len(made[title]))]
    return made
