"""Which window goes to which split, in which order."""

import hashlib
from dataclasses import dataclass

import numpy as np

from eval_ingest.core.columns import row_numbers
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.splits import SplitAssignment

Key = tuple[str, str, str]
"""A window's group, name and digest: equal keys, equal samples."""


@dataclass(frozen=True, slots=True)
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


def places_in_splits(index: WindowIndex, splits: SplitAssignment) -> list[Place]:
    """The windows of all splits, in the order of packs and split indexes.

    train, val, test; within a split by the SHA-256 of the name, as rslearn orders windows. So
    sample i of a split is the same window here and in rslearn's ModelDataset, and the label
    fractions that the existing evals take are the same subsets.
    """
    names, digests = index.names, index.table["source_digest"]
    used = splits.used
    split = np.array([SPLITS.index(name) for name in splits.splits[used].tolist()])
    hashed = b"".join(hashlib.sha256(names[row].encode()).digest() for row in used.tolist())
    words = np.frombuffer(hashed, ">u8").reshape(-1, 4)
    # Rows are sorted by group already, and the sort is stable.
    order = np.lexsort((*words.T[::-1], split))
    texts = digests.take(row_numbers(used[order])).to_pylist()
    return [
        Place(index.groups[row], names[row], digest, SPLITS[place], row)
        for row, place, digest in zip(
            used[order].tolist(), split[order].tolist(), texts, strict=True
        )
    ]
