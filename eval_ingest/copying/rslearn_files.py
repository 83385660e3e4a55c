"""What makes the copy a dataset that rslearn, and the existing eval code, read by themselves.

Beside the windows that is config.json, a model.yaml that reads a sample as EvalDataset gives it,
and rslearn's index of each split, so that nobody has to scan the windows.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from eval_ingest.copying.places import Places, places_in_splits
from eval_ingest.copying.rslearn_index import index_key, write_indexes
from eval_ingest.core.columns import numbers, row_numbers, values_of
from eval_ingest.core.copy_config import rslearn_config
from eval_ingest.core.copy_model import copy_inputs, copy_model, split_tags
from eval_ingest.core.crops import split_cut
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.resolved import Pad, ResolvedConfig, sides_of, size_text
from eval_ingest.core.spec import SPLIT_OPTION, SPLITS
from eval_ingest.core.splits import SplitAssignment
from eval_ingest.inference.resolve import ConfigFiles
from eval_ingest.store.atomic import file_crc32c, json_bytes, write_bytes
from eval_ingest.store.manifest import UNFINISHED
from eval_ingest.store.paths import RSLEARN_INDEX
from eval_ingest.store.roots.base import DatasetStore
from eval_ingest.waiting import remove_folder

_HEADER = """\
# Written by eval_ingest: with it rslearn reads this copy as EvalDataset does.
# The dataset's own is model.original.yaml.
"""


@dataclass(frozen=True)
class Samples:
    """What the samples of all splits have in common."""

    config: ResolvedConfig
    index: WindowIndex
    splits: SplitAssignment

    @cached_property
    def timesteps(self) -> dict[str, NDArray[np.int32]]:
        """Timesteps per sample, by modality; 0 where a window lacks it."""
        return {
            modality.name: numbers(self.index.table[f"{modality.name}.timesteps"], 0)[
                self.splits.used
            ]
            for modality in self.config.modalities
        }

    @cached_property
    def _windows(self) -> dict[str, list[tuple[int, int]]]:
        """The heights and widths of each split's windows, in pixels; each size once."""
        sides = np.column_stack([numbers(self.index.table[name], 0) for name in _SIDES])
        return {
            split: [
                (height, width)
                for height, width in np.unique(sides[self.splits.splits == split], axis=0).tolist()
            ]
            for split in SPLITS
        }

    def _sizes(self, split: str) -> set[tuple[int, int]]:
        """Heights and widths of a split's samples, where nothing but every crop is cut."""
        cut = replace(split_cut(self.config, split), sides=None)
        return {cut.size(*size) for size in self._windows[split]}

    @cached_property
    def smallest_side(self) -> int:
        """Of all samples, in pixels: filled up, but before the crop of their middle."""
        smallest = min(min(size) for split in SPLITS for size in self._sizes(split))
        return smallest if self.crop is None else max(smallest, self.crop.size)

    @cached_property
    def crop(self) -> Pad | None:
        """What makes all samples equally large squares; None if they are.

        A crop of the middle, of the splits of which not every crop is a sample. Where no window is
        larger than the dataset's own crop, that is filled up as `core.crops.Cut` does it.
        """
        whole = [split for split in SPLITS if split not in self.config.all_crops]
        sizes = {size for split in whole for size in self._sizes(split)}
        smallest = min((min(size) for size in sizes), default=None)
        if smallest is None:
            return None
        side = min(sides_of(self.config.crop_size or smallest))
        fills = smallest < side and all(max(size) <= side for size in sizes)
        side = side if fills else min(side, smallest)
        return None if sizes == {(side, side)} else Pad(size=side, center=not fills)

    @property
    def crops_fit(self) -> bool:
        """No window is smaller than the crops of its split."""
        return all(
            size[0] >= grid.sides[0] and size[1] >= grid.sides[1]
            for split, grid in self.config.all_crops.items()
            for size in self._windows[split]
        )

    @property
    def most_timesteps(self) -> int:
        """Of any sample and modality."""
        return max(int(steps.max()) for steps in self.timesteps.values())

    @cached_property
    def modalities(self) -> list[str]:
        """Those that every sample has; if there is none, the one that most samples have.

        The existing eval code can't read a sample without one of the modalities that it lists.
        """
        there = {name: int((steps > 0).sum()) for name, steps in self.timesteps.items()}
        whole = [name for name, steps in self.timesteps.items() if there[name] == len(steps)]
        return whole or [max(there, key=lambda name: there[name])]

    @property
    def optional_modalities(self) -> list[str]:
        """Those that are not in `modalities`."""
        return [name for name in self.timesteps if name not in self.modalities]

    @property
    def same_timesteps(self) -> bool:
        """Each sample has equally many of each of `modalities`."""
        first, *others = (self.timesteps[name] for name in self.modalities)
        return all((first == other).all() for other in others)

    @property
    def warnings(self) -> list[str]:
        """What the existing eval code will not see."""
        found = []
        wanted = self.config.crop_size
        if wanted and self.crop is not None and self.crop.size < min(sides_of(wanted)):
            found.append(
                f"some windows are smaller than the crop of {size_text(wanted)} pixels; "
                "EvalDataset fills them up with zeros, what rslearn reads of the copy is cut to "
                f"{self.crop.size}"
            )
        return found + [
            f"{(steps == 0).sum()} of {len(steps)} samples have no {name}; the existing OlmoEarth "
            f"code can't read these, so registry.json lists {', '.join(self.modalities)} alone"
            for name, steps in self.timesteps.items()
            if name in self.optional_modalities
        ]

    def windows(self, places: Places, split: str) -> Iterator[dict[str, Any]]:
        """The windows of a split that have those modalities, as rslearn describes them."""
        whole = np.ones(len(self.index), bool)
        for name in self.modalities:
            whole &= numbers(self.index.table[f"{name}.timesteps"], 0) > 0
        rows = places.in_split(split).rows
        rows = rows[whole[rows]]
        table = self.index.table.select(_WINDOW_COLUMNS).take(row_numbers(rows))
        for batch in table.to_batches(max_chunksize=1000):
            for values in zip(*map(values_of, batch.columns), strict=True):
                yield _window(dict(zip(_WINDOW_COLUMNS, values, strict=True)), split)


_SIDES = ("height", "width")
_WINDOW_COLUMNS = [
    "group", "name", "crs", "x_resolution", "y_resolution", "bounds", "time_start", "time_end",
    "options",
]  # fmt: skip


def _window(row: dict[str, Any], split: str) -> dict[str, Any]:
    """A window as rslearn's Window.get_metadata gives it."""
    times = [row["time_start"], row["time_end"]]
    return {
        "group": row["group"],
        "name": row["name"],
        "projection": {name: row[name] for name in ("crs", "x_resolution", "y_resolution")},
        "bounds": row["bounds"],
        "time_range": None if None in times else [time.isoformat() for time in times],
        "options": {**json.loads(row["options"] or "{}"), SPLIT_OPTION: split},
    }


def configs(samples: Samples) -> dict[str, bytes]:
    """config.json and model.yaml."""
    config = samples.config
    content = copy_model(config, samples.modalities, samples.crop, samples.crops_fit)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return {
        "config.json": json_bytes(rslearn_config(config)),
        "model.yaml": (_HEADER + text).encode(),
    }


ORIGINALS = {"model.original.yaml": "model.yaml", "olmoearth_run.yaml": "olmoearth_run.yaml"}
"""The source's own texts by what they are called in the copy."""


def originals(files: ConfigFiles) -> dict[str, tuple[bytes, int]]:
    """Those of ORIGINALS that there are, each with its mode bits."""
    texts = {"model.yaml": files.model_yaml, "olmoearth_run.yaml": files.run_yaml}
    return {
        name: (text.encode(), files.permissions.get(own, 0o666))
        for name, own in ORIGINALS.items()
        if (text := texts[own]) is not None
    }


def write_copy_files(store: DatasetStore, files: ConfigFiles, samples: Samples) -> dict[str, str]:
    """Write all that rslearn reads beside the windows; returns paths in the dataset, and CRC32C.

    The indexes come last: what a reader finds before is the old one, which is whole.

    Raises:
        StoreError: they can't be written.
    """
    layout, config, names = store.layout, samples.config, []
    for name, data in configs(samples).items():
        write_bytes(layout.path / name, data)
        names.append(name)
    theirs = originals(files)
    for name, (data, permissions) in theirs.items():
        write_bytes(layout.path / name, data, permissions)
        names.append(name)
    store.remove(layout.path / name for name in ORIGINALS if name not in theirs)
    inputs = copy_inputs(config, samples.modalities)
    places = places_in_splits(samples.index, samples.splits)
    windows = {
        index_key(split_tags(split), inputs): samples.windows(places, split) for split in SPLITS
    }
    indexes = write_indexes(layout.path, windows)
    kept = [path.rpartition("/")[2] for path in indexes]
    store.keep_only(layout.path / RSLEARN_INDEX, kept)  # others are of an earlier copy
    return {path: file_crc32c(layout.path / path) for path in (*names, *indexes)}


_FILES = ("config.json", "model.yaml", *ORIGINALS)


def remove_copy(store: DatasetStore) -> None:
    """Remove a copy that an earlier version of the dataset had; nothing keeps it right any more.

    Raises:
        StoreError: it can't be removed.
    """
    layout = store.layout
    # Not by the manifest alone: an ingest that was to do all anew has dropped it already.
    left = {*_FILES, layout.windows.name, layout.copy_manifest.name, RSLEARN_INDEX, UNFINISHED}
    if not left & store.names():
        return
    store.windows.keep_only(())
    store.keep_only(layout.path / RSLEARN_INDEX, ())
    for name in _FILES:
        (layout.path / name).unlink(missing_ok=True)
    for name in (RSLEARN_INDEX, layout.windows.name, UNFINISHED, layout.ahead.name):
        remove_folder(layout.path / name)
    layout.copy_manifest.unlink(missing_ok=True)  # last: until then the next run goes on
    store.send()
