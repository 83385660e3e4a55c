"""A split's cached index: which windows it holds, and where their samples lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from eval_ingest.core.columns import numbers, one_array
from eval_ingest.core.entry import SPLIT_INDEX_VERSION
from eval_ingest.errors import IntegrityError
from eval_ingest.store.seal import again
from eval_ingest.store.tables import read_table

TARGET = "target"


class SplitIndex:
    """A split's index as arrays, a row for each sample; texts are only decoded when asked for.

    Args:
        path: the index file.
        name: the dataset, for messages.
        modalities: of the dataset, all of them.

    Raises:
        IntegrityError: it is missing or damaged.
    """

    def __init__(self, path: Path, name: str, modalities: list[str]) -> None:
        found = read_table(path, "split_index", SPLIT_INDEX_VERSION, name, use_threads=False)
        if found is None:
            raise IntegrityError(f"the index {path} is missing, or of another version", again(name))
        table = found[0]

        def column(name: str) -> NDArray[Any]:
            return numbers(table[name])

        self.shards, self.rows = column("shard"), column("row")
        self.heights, self.widths = column("height"), column("width")
        self.offsets = {name: column(f"{name}.offset") for name in (*modalities, TARGET)}
        self.timesteps = {name: column(f"{name}.timesteps") for name in modalities}
        self._stamps: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        for modality in modalities:
            stamps = one_array(table[f"{modality}.timestamps"])
            ends = numbers(stamps.offsets)
            if not np.array_equal(np.diff(ends), 3 * self.timesteps[modality]):
                raise IntegrityError(
                    f"the index {path} doesn't have day, month and year of each timestep of "
                    f"{modality}",
                    again(name),
                )
            self._stamps[modality] = ends, numbers(stamps.values)
        self.groups = Texts(table["group"])
        self.names = Texts(table["name"])
        if "source_digest" in table.column_names:
            self.digests = Texts(table["source_digest"])

    def __len__(self) -> int:
        return len(self.rows)

    def window(self, row: int) -> str:
        """`group/name`."""
        return f"{self.groups[row]}/{self.names[row]}"

    def size(self, row: int) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.heights[row]), int(self.widths[row])

    def timestamps(self, modality: str, row: int) -> torch.Tensor:
        """Long (T, 3): day, month from 0, year."""
        offsets, values = self._stamps[modality]
        found = values[offsets[row] : offsets[row + 1]].astype(np.int64)
        return torch.from_numpy(found.reshape(-1, 3))


class Texts:
    """A text column, read one by one."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __getitem__(self, row: int) -> str:
        return str(self._column[row].as_py())
