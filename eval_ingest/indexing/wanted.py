"""Which windows of a source an ingest reads."""

from collections.abc import Iterator, Sequence

from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.spec import DatasetSpec, kept_split
from eval_ingest.core.splits import uniform
from eval_ingest.decoding.limits import fetchable
from eval_ingest.decoding.metadata import read_metadata
from eval_ingest.errors import ConfigError, SpecError
from eval_ingest.indexing.filters import WindowFilter, selected
from eval_ingest.indexing.listed import WindowList
from eval_ingest.job import Job
from eval_ingest.sources.base import Listed, Source
from eval_ingest.sources.sqlite import DATABASE, SqliteSource


def check_storage(source: Source, config: ResolvedConfig) -> None:
    """Raise ConfigError if the windows are in a database that isn't there."""
    if config.window_storage != "file" and not isinstance(source, SqliteSource):
        raise ConfigError(
            f"{source.origin} keeps its windows in a database, by its config.json, but {DATABASE} "
            "isn't there; put it there, or convert the dataset: rslearn dataset migrate"
        )


def wanted_groups(job: Job) -> list[str]:
    """The groups to read: the spec's, else those that model.yaml names, else all.

    Beside those that model.yaml names, the ones that an earlier ingest gave splits to.

    Raises:
        SpecError: the spec names a group that the source doesn't have.
    """
    present = job.source.groups()
    groups = groups_to_read(job.spec, job.config, present, job.source.url)
    if job.spec.groups or job.spec.splits.strategy != "auto":
        return groups
    others = [group for group in present if group not in groups]
    return sorted([*groups, *_with_kept_splits(job, others)])


def _with_kept_splits(job: Job, groups: list[str]) -> list[str]:
    """Those of the groups whose first window has the split of an earlier ingest.

    Looked for in folders alone, where earlier ingests lie: in a bucket each group would be listed.
    """
    found: list[str] = []
    for group in groups:
        first = next(iter(job.source.names([group]) or ()), None)
        if first is None:
            continue
        files = job.source.window(first.group, first.name, frozenset())
        for window, reader in job.source.readers([files], whole=False, fetchable=fetchable):
            metadata = read_metadata(reader, window)
            if metadata is not None and kept_split(metadata.options) is not None:
                found.append(group)
    return found


def groups_to_read(
    spec: DatasetSpec, config: ResolvedConfig, present: Sequence[str], where: str
) -> list[str]:
    """Those of the groups present that the spec names, else those that model.yaml names, else all.

    Raises:
        SpecError: the spec names a group that isn't present.
    """
    if spec.groups:
        absent = sorted(set(spec.groups) - set(present))
        if absent:
            raise SpecError(
                f"{spec.name}: {where} has no group {', '.join(absent)}; "
                f"it has {', '.join(present[:12]) or 'no windows at all'} (--groups)"
            )
        return sorted(spec.groups)
    named = groups_named(spec, config)
    return [group for group in present if named is None or group in named]


def groups_named(spec: DatasetSpec, config: ResolvedConfig) -> set[str] | None:
    """The groups that the spec names, else those that model.yaml does; None: all are wanted."""
    if spec.groups:
        return set(spec.groups)
    named = [set(selector.groups) for selector in config.selectors.values()]
    return set().union(*named) if named and all(named) else None


def list_windows(job: Job, groups: list[str]) -> WindowList:
    """Every window of the groups, with the digest of its files."""

    def listed() -> Iterator[Listed]:
        for count, window in enumerate(job.source.listing(groups, job.config.layer_names), 1):
            yield window
            if count % 1000 == 0:
                job.progress("windows listed", count, 0)

    return WindowList(listed())


def enough(job: Job, windows: WindowList) -> WindowList:
    """The windows to read: all, or with max_samples a random part that is surely enough.

    So that a trial with a few samples of a large dataset reads a few windows. The part is the
    first by hash that tags, time and model.yaml select: four times as many as are asked for, since
    some are invalid and the rarer classes must be found.
    """
    limit = job.spec.max_samples
    count = len(windows) if limit is None else max(4 * limit, limit + 64)
    if count >= len(windows):
        return windows
    job.source.ensure_listed(sorted({w.group for w in windows}), job.config.layer_names)
    wants = WindowFilter.of(job.spec).wants
    numbers = uniform([f"{w.group}/{w.name}" for w in windows], f"enough:{job.spec.splits.seed}")
    ordered = windows.take(numbers.argsort(kind="stable"))
    files = (job.source.window(w.group, w.name, job.config.layer_names) for w in ordered)
    chosen: list[Listed] = []
    for found, reader in job.source.readers(files, whole=False, fetchable=fetchable):
        metadata = read_metadata(reader, found)
        if metadata is None or (wants(metadata) and selected(job.config, found, metadata)):
            chosen.append(found.listed)
            if len(chosen) == count:
                break
    return WindowList(chosen)
