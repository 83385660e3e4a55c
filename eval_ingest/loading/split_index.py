"""A split's cached index: which windows it holds, and where their samples lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from eval_ingest.core.columns import numbers, one_array
from eval_ingest.errors import IntegrityError

TARGET = "target"


class SplitIndex:
    """A split's index as arrays, a row for each sample; texts are only decoded when asked for.

    Args:
        path: the index file.
        name: the dataset, for messages.
        modalities: of the dataset, all of them.

    Raises:
        IntegrityError: it can't be read.
    """

    def __init__(self, path: Path, name: str, modalities: list[str]) -> None:
        try:
            # Not pq.read_table: that imports pandas, which takes longer than all of the rest.
            with pq.ParquetFile(path, memory_map=True) as file:
                table = file.read(use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise IntegrityError(
                f"the index {path} can't be read ({error}); ingest {name} again"
            ) from error

        def column(name: str) -> NDArray[Any]:
            return numbers(table[name])

        self._table = table
        self.shards, self.rows = column("shard"), column("row")
        self.heights, self.widths = column("height"), column("width")
        self.offsets = {name: column(f"{name}.offset") for name in (*modalities, TARGET)}
        self.timesteps = {name: column(f"{name}.timesteps") for name in modalities}
        self._stamps: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
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
        if modality not in self._stamps:
            column = one_array(self._table[f"{modality}.timestamps"])
            self._stamps[modality] = (numbers(column.offsets), numbers(column.values))
        offsets, values = self._stamps[modality]
        found = values[offsets[row] : offsets[row + 1]].astype(np.int64)
        return torch.from_numpy(found.reshape(-1, 3))


class Texts:
    """A text column, read one by one."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __getitem__(self, row: int) -> str:
        return str(self._column[row].as_py())
