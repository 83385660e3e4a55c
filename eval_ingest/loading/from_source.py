"""Samples of a dataset ingested with `copy: index`: decoded from its source when asked for.

They are what an ingest would have packed, value for value, as long as the source is what it was.

The one place in loading/ that knows the source side. It is imported for such datasets alone, and
needs what ingesting needs: pip install '.[ingest]' in a checkout.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from eval_ingest.background import OwnLock
from eval_ingest.core.crops import Corner
from eval_ingest.core.entry import Metadata
from eval_ingest.core.forms import is_folder_name
from eval_ingest.decoding.judge import JUDGED_BYTES, read_window, sample_arrays
from eval_ingest.errors import EvalIngestError, IntegrityError, LoadError
from eval_ingest.sources.base import Source, WindowFiles, WindowReader
from eval_ingest.sources.open import open_source
from eval_ingest.store.seal import cure_for
from eval_ingest.store.split_index import SplitIndex

Arrays = dict[str, NDArray[Any]]
"""Per modality (H, W, T, C) in the stored type, and `target`."""

_KEPT = 4
"""Samples of single rows that stay at hand: each is asked for several times, array by array."""


class SourceSamples:
    """Reads a split's windows; safe to use from several threads.

    Args:
        metadata: the dataset.
        index: the split's windows, with a digest of the files that each was indexed with.
    """

    reads_in_background = False

    def __init__(self, metadata: Metadata, index: SplitIndex) -> None:
        self._metadata = metadata
        self._groups, self._names, self._digests = index.groups, index.names, index.digests
        self._kept: dict[int, Arrays] = {}
        self._lock = OwnLock()

    @cached_property
    def _source(self) -> Source:
        name, url = self._metadata.name, self._metadata.source
        try:
            return open_source(url, storage=self._metadata.config.window_storage)
        except EvalIngestError as error:
            raise LoadError(
                f"{name} was ingested with copy: index, so its samples are read from {url}, and "
                f"that fails: {error}. Make it readable there, or ingest {name} anew from where "
                "it is now"
            ) from error

    def array(self, row: int, name: str) -> NDArray[Any]:
        """A modality's pixels (H, W, T, C), or the target, of a row.

        Raises:
            LoadError: the source can't be read.
            IntegrityError: the window isn't what it was when it was indexed.
        """
        with self._lock:
            if row not in self._kept:
                while len(self._kept) >= _KEPT:
                    del self._kept[next(iter(self._kept))]
                [self._kept[row]] = self._read([row])
            return self._kept[row][name]

    def read_ahead(
        self, rows: Sequence[int], corners: Sequence[Corner], height: int | None, names: list[str]
    ) -> None:
        """Have the samples of a batch at hand, and no others: read side by side, and whole.

        Raises:
            LoadError: the source can't be read.
            IntegrityError: a window isn't what it was when it was indexed.
        """
        with self._lock:
            kept = {row: self._kept[row] for row in rows if row in self._kept}
            missing = [row for row in dict.fromkeys(rows) if row not in kept]
            self._kept = kept  # let go of the last batch before this one is read
            kept.update(zip(missing, self._read(missing), strict=True))

    def _read(self, rows: Sequence[int]) -> list[Arrays]:
        try:
            found = self._source.readers(map(self._window, rows))
            if len(rows) == 1:
                return [self._sample(row, *at) for row, at in zip(rows, found, strict=True)]
            with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="from_source") as pool:
                pairs = zip(rows, found, strict=True)
                return list(pool.map(lambda at: self._sample(at[0], *at[1]), pairs))
        except (IntegrityError, LoadError):
            raise
        except EvalIngestError as error:
            raise LoadError(f"{self._metadata.name}: {error}") from error

    def _window(self, row: int) -> WindowFiles:
        key, name = (self._groups[row], self._names[row]), self._metadata.name
        if not all(map(is_folder_name, key)):
            raise IntegrityError(f"{name}: its index names a window {key!r:.200}", cure_for(name))
        return self._source.window(*key, self._metadata.config.layer_names)

    def _sample(self, row: int, files: WindowFiles, reader: WindowReader) -> Arrays:
        metadata = self._metadata
        if files.digest != self._digests[row]:
            what = "has changed since it was indexed" if files.files else "is not there any more"
            raise IntegrityError(
                f"{metadata.name} reads its samples from {metadata.source}, and window "
                f"{files.key} {what}; run: eval-ingest ingest {metadata.name}"
            )
        sample = read_window(reader, files, metadata.config, window_bytes=JUDGED_BYTES)
        if sample is None or sample.problems:
            detail = sample.problems[0].detail if sample is not None else "it can't be read"
            raise IntegrityError(
                f"window {files.key} of {metadata.source} was valid when it was indexed, now: "
                f"{detail}; run: eval-ingest ingest {metadata.name}"
            )
        return sample_arrays(sample, metadata.config)
