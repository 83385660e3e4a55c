"""Where and when samples are: `EvalDataset.windows`."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.columns import arrow, floats, matrix, row_numbers
from eval_ingest.core.footprints import outlines
from eval_ingest.errors import IntegrityError, optional_part

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

_KEPT = (
    "group", "name", "crs", "x_resolution", "y_resolution", "time_start", "time_end", "options",
)  # fmt: skip


class SampleWindows:
    """The samples of a dataset on the map, a row each in its order.

    | column | |
    |---|---|
    | group, name | of the window |
    | split | |
    | crs | of the window |
    | x_resolution, y_resolution | units of the CRS a pixel |
    | time_start, time_end | of the window, UTC |
    | options | of the window, JSON |
    | pixel_bounds | left, top, right, bottom of the sample in pixels of the CRS |
    | bounds | left, bottom, right, top of the sample in units of the CRS |
    | geometry | outline of the sample in longitude and latitude (OGC:CRS84), WKB |

    A sample that is cropped lies where its crop does; with crop="random", where its window does.
    What is filled up around it counts not; a sample that is nothing but that lies at its window's
    end, without an extent and an outline.

    Args:
        index: the window index.
        split: of the samples.
        keys: the window of each.
        footprints: top, left, bottom and right of each (N, 4), in pixels of its window.
    """

    def __init__(
        self,
        index: pa.Table,
        split: str,
        keys: Sequence[tuple[str, str]],
        footprints: NDArray[np.int64],
    ) -> None:
        pairs = zip(index["group"].to_pylist(), index["name"].to_pylist(), strict=True)
        rows = {key: k for k, key in enumerate(pairs)}
        lacking = next((key for key in keys if key not in rows), None)
        if lacking is not None:
            what = f"a sample is of the window {'/'.join(lacking)}, which the window index lacks"
            raise IntegrityError(what, "ingest the dataset again")
        table = index.take(row_numbers([rows[key] for key in keys]))
        bounds = matrix(table["bounds"], 4, 0, np.int64)
        bounds = np.tile(bounds[:, :2], 2) + footprints[:, [1, 0, 3, 2]]
        sizes = np.column_stack([floats(table["x_resolution"]), floats(table["y_resolution"])])
        ends = np.stack([bounds[:, :2] * sizes, bounds[:, 2:] * sizes])
        self._boxes = np.column_stack([ends.min(axis=0), ends.max(axis=0)])
        facts = table.select(_KEPT)
        facts = facts.add_column(2, "split", arrow([split] * len(keys), pa.string()))
        for name, values, kind in (
            ("pixel_bounds", bounds, pa.int64()),
            ("bounds", self._boxes, pa.float64()),
        ):
            flat = arrow(values.ravel(), kind)
            facts = facts.append_column(name, pa.FixedSizeListArray.from_arrays(flat, 4))
        self._facts = facts

    def __len__(self) -> int:
        return int(self._facts.num_rows)

    def __getitem__(self, i: Any) -> Any:
        """A row, or a slice of them, without outlines."""
        if isinstance(i, slice):
            return [self[k] for k in range(len(self))[i]]
        if not isinstance(i, int | np.integer):
            raise TypeError(f"rows are numbered; {i!r} may be a column: it is in .to_pandas()")
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return dict(self._facts.slice(i % len(self), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._facts.to_pylist())

    def __repr__(self) -> str:
        return f"{len(self)} samples with {', '.join(self._facts.column_names)}, geometry"

    @cached_property
    def table(self) -> pa.Table:
        """All columns.

        Raises:
            LoadError: shapely or pyproj isn't installed.
        """
        return self._facts.append_column("geometry", arrow(self._shapes_as_wkb(), pa.binary()))

    def _shapes_as_wkb(self) -> list[bytes | None]:
        with optional_part("geo", "an outline of a sample"):
            import pyproj
            import shapely
        shapes = np.full(len(self), None, dtype=object)
        crs = np.array(self._facts["crs"].to_pylist(), dtype=object)
        left, bottom, right, top = self._boxes.T
        has_extent = (left < right) & (bottom < top)
        for name in {text for text in crs if text is not None}:
            here = np.flatnonzero((crs == name) & has_extent)
            try:
                shapes[here] = outlines(name, self._boxes[here])
            except pyproj.exceptions.ProjError:
                continue  # the index has no outline of such a window either
        return list(shapely.to_wkb(shapes).tolist())

    def to_pandas(self) -> Any:
        """All columns as a pandas DataFrame; pandas has to be installed."""
        return self.table.to_pandas()

    def to_geopandas(self) -> "GeoDataFrame":
        """All columns as a GeoDataFrame in longitude and latitude.

        Raises:
            LoadError: geopandas isn't installed.
        """
        with optional_part("geo", "to_geopandas"):
            import geopandas
        frame = self.table.drop_columns("geometry").to_pandas()
        shapes = geopandas.GeoSeries.from_wkb(self.table["geometry"].to_pylist(), crs="OGC:CRS84")
        return geopandas.GeoDataFrame(frame, geometry=shapes)
