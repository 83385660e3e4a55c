"""Is a dataset still what was ingested? What was written, and where nothing was, the source."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from eval_ingest.copying.verify import Verified, verify
from eval_ingest.core.columns import numbers, row_numbers
from eval_ingest.core.digest import label_digest, pixel_digest
from eval_ingest.core.entry import Metadata, opening
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.splits import SplitAssignment
from eval_ingest.engine import Progress
from eval_ingest.errors import EvalIngestError, IntegrityError, NotIngestedError
from eval_ingest.loading.from_source import SourceSamples
from eval_ingest.loading.packed import PackedSamples
from eval_ingest.sources.open import open_source
from eval_ingest.store.claims import is_published_elsewhere
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.registry import read_opening, require_metadata
from eval_ingest.store.roots.base import DatasetStore, EvalRoot
from eval_ingest.store.seal import cure_for
from eval_ingest.store.shards import target_dtype
from eval_ingest.store.split_index import TARGET, SplitIndex

_TOLD = 20
"""Windows that are told one by one."""


def verify_dataset(root: EvalRoot, name: str, progress: Progress) -> Verified:
    """Read everything back and compare it with what was recorded.

    Raises:
        UnknownDatasetError: there is no such dataset.
        NotIngestedError: an ingest of it was stopped on its way.
        StoreError: the eval root can't be read.
    """
    metadata = require_metadata(root, name)
    found = _verified(root.dataset(name), metadata, progress)
    ours = f"eval-ingest ingest {name} --overwrite"
    return found._replace(cure=cure_for(name, metadata) if metadata.is_untold else ours)


def _verified(store: DatasetStore, metadata: Metadata, progress: Progress) -> Verified:
    name = metadata.name
    stages, wrong = _stages(store, metadata)
    replaced = _replaced(stages, metadata)
    if replaced and is_published_elsewhere(store):  # it arrived so, or was damaged since
        wrong += [f"the outcome of {stage} is missing, or of another version" for stage in replaced]
    elif replaced:
        raise NotIngestedError(
            f"{name}: an ingest was begun and has not ended, so there is nothing to compare with; "
            f"it goes on where it stopped: eval-ingest ingest {name}; until then the version that "
            f"is published, {metadata.fingerprint}, is loaded"
        )
    found = verify(store, metadata, progress)
    if wrong:
        return Verified(found.checked, [*found.problems, *wrong])
    index, splits = stages["window_index"], stages["split_assignment"]
    splits = splits.joined(index)
    beside = _Comparison(store, metadata, index, splits, progress)
    if metadata.spec.copy_mode == "index":
        compared = f"{len(splits.used)} windows of {metadata.source} compared"
        differing = beside.otherwise()
    elif all(array.crc32c for shard in metadata.shards for array in shard.arrays.values()):
        return found  # checksums of the whole files were compared
    else:
        compared = f"{len(splits.used)} samples compared with what was decoded"
        differing = beside.wrong_samples(partial(PackedSamples, store, metadata))
    try:
        problems = list(differing)
    except EvalIngestError as error:
        told = any(problem in str(error) for problem in found.problems)
        return Verified(found.checked, [*found.problems, *([] if told else [str(error)])])
    if len(problems) > _TOLD:
        problems = [*problems[:_TOLD], f"and {len(problems) - _TOLD} more windows"]
    return Verified(f"{found.checked}; {compared}", [*found.problems, *problems])


def _stages(store: DatasetStore, metadata: Metadata) -> tuple[dict[str, Any], list[str]]:
    """The stages' outcomes that metadata.json was made from, and what is wrong with them."""
    stages, problems = {}, []
    for stage in metadata.fingerprints:
        try:
            found = read_outcome(store, stage)
        except IntegrityError as error:
            problems.append(error.what)
            continue
        stages[stage] = found
        if found is None and stage == "window_index":
            text = f"the outcome of {stage} is missing, or of an older version of eval_ingest"
            problems.append(text)
    with suppress(EvalIngestError):  # it is damaged, which is told beside
        if read_opening(store) not in (None, opening(metadata)):
            problems.append("opening.json is of another version than metadata.json")
    return stages, problems


def _replaced(stages: dict[str, Any], metadata: Metadata) -> list[str]:
    """The stages that have begun or ended again since what is published was.

    An ingest that starts anew removes the outcomes of the stages after the first, and one of
    something that has changed replaces them one by one.
    """
    expected = {"split_assignment", "norm_stats"}
    expected |= {"weka_copy"} if metadata.spec.copy_mode == "windows" else set()
    return [
        stage
        for stage, found in stages.items()
        if (
            stage in expected
            if found is None
            else found.fingerprint != metadata.fingerprints[stage]
        )
    ]


@dataclass(frozen=True)
class _Comparison:
    """A dataset beside what was recorded of it."""

    store: DatasetStore
    metadata: Metadata
    index: WindowIndex
    splits: SplitAssignment
    progress: Progress

    def wrong_samples(
        self, open_samples: Callable[[SplitIndex], PackedSamples | SourceSamples]
    ) -> Iterator[str]:
        """Samples that EvalDataset would give, and that aren't what was decoded."""
        metadata, index, splits = self.metadata, self.index, self.splits.splits
        places = zip(index.groups, index.names, strict=True)
        rows = {place: row for row, place in enumerate(places) if splits[row] in SPLITS}
        digests = index.table["pixel_digest"].to_pylist()
        labels = numbers(index.table["label.crc32c"], 0)
        moments = {m.name: index.moments(m.name) for m in metadata.config.modalities}
        total, seen, dtype = len(rows), set(), target_dtype(metadata.config)
        for split, file in metadata.splits.items():
            found = SplitIndex(self.store.layout.path / file.index, metadata.name, list(moments))
            samples = open_samples(found)
            for k in range(len(found)):
                place = found.groups[k], found.names[k]
                if place in seen:
                    continue  # another crop of it
                row = rows.pop(place, None)
                seen.add(place)
                if row is None or splits[row] != split:
                    yield f"{file.index}: {found.window(k)} doesn't belong to {split}"
                    continue
                there = [name for name in moments if found.timesteps[name][k]]
                pixels = {name: samples.array(k, name) for name in there}
                measured = {name: moments[name][row] for name in there}
                wrong = []
                if label_digest(samples.array(k, TARGET).astype(dtype, copy=False)) != labels[row]:
                    wrong.append("label")
                if pixel_digest(pixels, measured) != digests[row]:
                    wrong.append("pixels")
                if wrong:
                    what = "" if metadata.spec.copy_mode == "index" else "packed "
                    yield f"the {what}{' and '.join(wrong)} of {found.window(k)} have changed"
                self.progress("samples compared", total - len(rows), total)
        yield from (f"{group}/{name} is in no split's index" for group, name in rows)

    def otherwise(self) -> Iterator[str]:
        """Windows of a source that aren't what was indexed, by what is listed of their files.

        A bucket lists checksums. In a folder, files are decoded too: a FUSE mount keeps no inodes,
        and a damaged disk says nothing.
        """
        differing = list(self.changed())
        if not differing and "://" not in self.metadata.source:
            yield from self.wrong_samples(partial(SourceSamples, self.metadata))
        yield from differing

    def changed(self) -> Iterator[str]:
        """Windows of the splits whose files aren't those that were indexed."""
        used = self.index.table.take(row_numbers(self.splits.used))
        names = (used[name].to_pylist() for name in ("group", "name", "source_digest"))
        expected = {(group, name): digest for group, name, digest in zip(*names, strict=True)}
        groups = sorted({group for group, _ in expected})
        total = len(expected)
        config = self.metadata.config
        source = open_source(self.metadata.source, storage=config.window_storage)
        for window in source.windows(groups, config.layer_names):
            digest = expected.pop((window.group, window.name), None)
            if digest not in (None, window.digest):
                yield f"{window.key} has changed since it was indexed"
            self.progress("windows compared", total - len(expected), total)
        yield from (f"{group}/{name} is not in the source any more" for group, name in expected)
