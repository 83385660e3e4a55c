"""Which window goes to which split, in which order."""

import hashlib
from dataclasses import dataclass

from eval_ingest.core.index import WindowIndex
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.splits import SplitAssignment

Key = tuple[str, str, str]
"""A window's group, name and digest: equal keys, equal samples."""


@dataclass(frozen=True)
class Place:
    """A window that is in a split, and where its sample goes or is."""

    group: str
    name: str
    source_digest: str
    split: str
    row: int
    """In the window index."""

    @property
    def key(self) -> Key:
        """Group, name and digest."""
        return self.group, self.name, self.source_digest

    @property
    def order(self) -> tuple[int, str, str]:
        """train, val, test; within a split by the SHA-256 of the name, as rslearn orders windows.

        So sample i of a split is the same window here and in rslearn's ModelDataset, and the
        label fractions that the existing evals take are the same subsets.
        """
        digest = hashlib.sha256(self.name.encode()).hexdigest()
        return SPLITS.index(self.split), digest, self.group


def places_in_splits(index: WindowIndex, splits: SplitAssignment) -> list[Place]:
    """The windows of all splits, in the order of packs and split indexes."""
    digests = index.table["source_digest"].to_pylist()
    places = [
        Place(group, name, digest, split, row)
        for row, (group, name, digest, split) in enumerate(
            zip(index.groups, index.names, digests, splits.splits.tolist(), strict=True)
        )
        if split in SPLITS
    ]
    return sorted(places, key=lambda place: place.order)
