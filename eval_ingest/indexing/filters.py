"""Which windows an ingest wants, as far as their metadata tells.

What belongs here: what a worker asks of a window that it has read. What doesn't: which of a
source's windows are listed (wanted.py), which takes the whole job, and that is much to import.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from eval_ingest.core.columns import values_of
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.spec import DatasetSpec, kept_split
from eval_ingest.decoding.metadata import WindowMetadata
from eval_ingest.sources.base import WindowFiles


@dataclass(frozen=True)
class WindowFilter:
    """Which windows are wanted, by their metadata."""

    tags: dict[str, str] = field(default_factory=dict)
    temporal_range: tuple[str, str] | None = None

    @classmethod
    def of(cls, spec: DatasetSpec) -> "WindowFilter":
        """The spec's filter."""
        return cls(spec.tags, spec.temporal_range)

    @property
    def takes_all(self) -> bool:
        """True if there is nothing that a window could lack."""
        return not self.tags and self.temporal_range is None

    def wants(self, metadata: WindowMetadata) -> bool:
        """True if the options have every tag and the time range lies within (whole days)."""
        return self._takes(metadata.options, metadata.time_range)

    def wanted_rows(self, table: pa.Table) -> list[int]:
        """The rows of an index that it takes, and those of windows whose metadata isn't known."""
        if self.takes_all:
            return list(range(table.num_rows))
        columns = (values_of(table[name]) for name in ("options", "time_start", "time_end"))
        return [
            row
            for row, (options, start, end) in enumerate(zip(*columns, strict=True))
            if options is None
            or self._takes(json.loads(options), None if start is None else (start, end))
        ]

    def _takes(
        self, options: Mapping[str, Any], time_range: tuple[datetime, datetime] | None
    ) -> bool:
        for key, value in self.tags.items():
            if key not in options or (value and str(options[key]) != value):
                return False
        if self.temporal_range is None:
            return True
        if time_range is None:
            return False
        first, last = self.temporal_range
        start, end = time_range
        # A range that ends at midnight holds nothing of the day that begins then.
        end = max(start, end - timedelta(microseconds=1))
        return first <= start.date().isoformat() and end.date().isoformat() <= last


def selected(config: ResolvedConfig, files: WindowFiles, metadata: WindowMetadata) -> bool:
    """False for windows that model.yaml gives to no split, nor an earlier ingest did."""
    selectors = config.selectors.values()
    if not selectors or kept_split(metadata.options) is not None:
        return True
    return any(
        selector.selects(files.group, files.name, metadata.options) for selector in selectors
    )
