"""An ingested dataset, opened for looking at."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.entry import Metadata
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.splits import AssignedWindows
from eval_ingest.core.task import IGNORE_LABEL, Task
from eval_ingest.errors import IntegrityError, NotIngestedError, StaleStageError
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.registry import require_metadata
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.seal import cure_for

if TYPE_CHECKING:
    import torch

    from eval_ingest.loading import EvalDataset


@dataclass(frozen=True)
class View(AssignedWindows):
    """An ingested dataset, opened for looking at."""

    root: EvalRoot
    metadata: Metadata

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.metadata.config.task

    @cached_property
    def class_counts(self) -> NDArray[np.int64]:
        """Pixels or samples per class, (N, classes), of all rows."""
        return self.index.class_counts(self.task.num_classes, self.cuts)

    @cached_property
    def means(self) -> NDArray[np.float64]:
        """Mean target per row, for regressions; NaN without one."""
        moments = self.index.label_moments(self.cuts)[:, :, 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(moments[:, 1] / moments[:, 0])

    @cached_property
    def _samples(self) -> dict[str, "tuple[EvalDataset, dict[str, list[int]]]"]:
        from eval_ingest.loading import EvalDataset  # torch: not for the map or the histograms

        opened = {}
        for split in SPLITS:
            data = EvalDataset(
                self.metadata.name,
                split,
                root=self.root.address,
                version=self.metadata.fingerprint,
                normalize=None,
                crop=None,
            )
            places: dict[str, list[int]] = {}
            for i in range(len(data)):
                places.setdefault(data.window(i), []).append(i)
            opened[split] = data, places
        return opened

    def opened(self, split: str) -> "EvalDataset":
        """A split in stored units: whole windows, or every crop of them."""
        return self._samples[split][0]

    def sample(self, row: int) -> dict[str, Any]:
        """The packed sample of a row of the index: stored units, the whole window.

        Where every crop is a sample, the first that has a label.
        """
        data, places = self._samples[str(self.splits[row])]
        here = places.get(self.index.keys[row])
        if here is None:
            what = f"window {self.index.keys[row]} is in {self.splits[row]}, and no sample is of it"
            raise IntegrityError(what, cure_for(self.metadata.name, self.metadata))
        samples = (data[i] for i in here)
        return next((found for found in samples if _has_label(found["target"])), data[here[0]])


def _has_label(target: "torch.Tensor") -> bool:
    kept = target.isfinite() if target.is_floating_point() else target != IGNORE_LABEL
    return bool(kept.any())


def open_view(root: EvalRoot, name: str) -> View:
    """Open a published dataset.

    Raises:
        UnknownDatasetError: there is none of that name.
        NotIngestedError: its window index or split assignment is gone, or of another version
            than what is published.
    """
    metadata = require_metadata(root, name)
    store = root.dataset(name)
    layout = store.layout
    index, assignment = read_outcome(store, "window_index"), read_outcome(store, "split_assignment")
    if index is None or assignment is None:
        missing = layout.window_index if index is None else layout.split_assignment
        raise NotIngestedError(
            f"{name}: {missing} is not there or of another version; run: eval-ingest ingest {name}"
        )
    for stage, found in (("window_index", index), ("split_assignment", assignment)):
        if found.fingerprint != metadata.fingerprints.get(stage):
            why = f"{stage} has run again since, without the stages after it"
            raise StaleStageError(name, "registry_entry", why)
    return View(index, assignment.joined(index), metadata.config, root, metadata)
