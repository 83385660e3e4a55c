"""START HERE: from an rslearn dataset to a registered eval dataset, in five stages.

    window_index -> split_assignment -> norm_stats -> weka_copy -> registry_entry

| stage | does |
|---|---|
| window_index | reads every window once and judges it: one row per window |
| split_assignment | gives each valid window train, val, test or none |
| norm_stats | band statistics of the train windows, from the moments in the index |
| weka_copy | copies the windows and packs the samples |
| registry_entry | writes metadata.json, the commit point, and the registry |

Each stage is a function of the stages before it, and each outcome carries a fingerprint: a hash of
its inputs' fingerprints, of the spec's fields that it reads, and of its own version. An outcome on
disk with the wanted fingerprint is taken as it is, so a second run does nothing, and a stopped one
goes on where it was. `ingest` runs all five; Dagster runs the same functions one by one.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from eval_ingest.core.entry import CopyResult, Metadata, NormStats
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.index import INDEX_VERSION, WindowIndex
from eval_ingest.core.norm import MOMENTS, combine
from eval_ingest.core.quality import quality_report
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.core.splits import SPLITS_VERSION, SplitAssignment, assign_splits, uniform
from eval_ingest.core.validate import check_invalid_fraction
from eval_ingest.engine import executor
from eval_ingest.errors import ConfigError, NotIngestedError, SpecError, StoreError
from eval_ingest.indexing import (
    Commits,
    IndexTask,
    IndexWork,
    PartialRows,
    Progress,
    WindowFilter,
    add_geometry,
    index_windows,
    make_packer,
    metadata_row,
    row_key,
    selected,
)
from eval_ingest.redaction import holds_secret, redacted
from eval_ingest.rslearn_copy import Samples, remove_copy, write_copy_files
from eval_ingest.settings import Settings
from eval_ingest.store.atomic import read_json, remove_file, write_json
from eval_ingest.store.index_file import read_index, read_splits, write_index, write_splits
from eval_ingest.store.layout import DatasetLayout, EvalRoot
from eval_ingest.store.leftovers import GRACE_S, remove_retired, remove_unfinished, retire
from eval_ingest.store.pack import retire_shards
from eval_ingest.store.registry import (
    locked,
    read_metadata,
    read_registry,
    rebuild_registry,
    write_metadata,
)
from eval_ingest.store.room import require_room
from eval_ingest.store.uri import open_root
from eval_ingest.studio.config import ConfigFiles, resolve
from eval_ingest.studio.discovery import source_fingerprint
from eval_ingest.studio.source import CONFIG_FILES, Listed, LocalSource, Source, open_source
from eval_ingest.studio.window import read_metadata as read_window_metadata
from eval_ingest.transfer import transfer

STAGES = ("window_index", "split_assignment", "norm_stats", "weka_copy", "registry_entry")

NORM_VERSION = 2
COPY_VERSION = 2
ENTRY_VERSION = 3


def no_progress(what: str, done: int, total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Job:
    """One dataset on its way: where it comes from, what it is, where it goes."""

    spec: DatasetSpec
    settings: Settings
    root: EvalRoot
    source: Source
    files: ConfigFiles
    config: ResolvedConfig
    progress: Progress = field(default=no_progress, compare=False)

    @property
    def layout(self) -> DatasetLayout:
        """The dataset's files under the eval root."""
        return self.root.dataset(self.spec.name)

    @property
    def origin(self) -> str:
        """Where the dataset comes from, as it may be shown and kept: without secrets."""
        return redacted(self.source.origin)

    @cached_property
    def row_key(self) -> str:
        """What a window's row depends on besides its files."""
        return row_key(self.config)


def open_job(
    spec: DatasetSpec,
    settings: Settings,
    root: str | Path | None = None,
    progress: Progress = no_progress,
) -> Job:
    """Find the source, read its configuration, and infer what the samples are made of.

    Raises:
        SourceError: the source or its configuration can't be read or understood.
        StoreError: the eval root can't be reached.
        SettingsError: the source names an environment variable that isn't set.
    """
    eval_root = open_root(settings, root)
    staging = eval_root.dataset(spec.name).staging
    # What is kept for a remote root lies in its cache, which has a limit.
    limit = None if eval_root.remote is None else eval_root.remote.cache.limit
    source = open_source(settings.expand(spec.source), staging, eval_root.archives, limit)
    if spec.copy_mode == "index" and holds_secret(source.origin):
        raise SpecError(
            f"{spec.name}: with --copy index samples are read from the source, and the password "
            f"or signature of {source.origin} is kept nowhere; use --copy stream"
        )
    if spec.copy_mode == "index" and source.url != source.origin:
        raise SpecError(
            f"{spec.name}: with --copy index samples are read from the source, and "
            f"{source.origin} is an archive; unpack it and give the folder, or use --copy stream"
        )
    files = read_config_files(source, spec, settings)
    return Job(spec, settings, eval_root, source, files, resolve(files, spec), progress)


def read_config_files(source: Source, spec: DatasetSpec, settings: Settings) -> ConfigFiles:
    """config.json, model.yaml and olmoearth_run.yaml; those in `spec.config` come first.

    Raises:
        ConfigError: there is no config.json.
    """
    folders = [source]
    if spec.config is not None:
        folders.insert(0, open_source(settings.expand(spec.config)))

    def first(*names: str) -> str | None:
        for folder in folders:
            for name in names:
                text = folder.read_text(name)
                if text is not None:
                    return text
        return None

    config_json = first(*CONFIG_FILES)
    if config_json is None:
        raise ConfigError(
            f"{source.origin} holds no config.json, so it is no rslearn dataset; "
            "give the folder that holds config.json and windows/"
        )
    return ConfigFiles(
        config_json, first("model.yaml"), first("olmoearth_run.yaml"), where=folders[0].url
    )


# ---------------------------------------------------------------------------- 1. window_index


def window_index(job: Job) -> WindowIndex:
    """Read and judge every window; rows of unchanged windows are taken from earlier runs.

    Valid windows are packed on the way, unless only some of them will be in a split, so that the
    copy stage needs not decode them again.

    Raises:
        SourceError: the source can't be read.
        InvalidWindowsError: more windows are invalid than the spec allows.
    """
    check_storage(job.source, job.config)
    # Looked at before the listing: what arrives in between is then a change, and not overlooked.
    seen = source_fingerprint(job.source.origin)
    old = read_index(job.layout.window_index)
    parts = PartialRows(job.layout.path / ".window_index", job.row_key)
    stopped = parts.read()
    known = old.table if old is not None and old.row_key == job.row_key else None
    if known is None and not stopped and isinstance(job.source, LocalSource):
        # Nothing to compare with: the workers may list each window's files as they read it.
        names = _enough(job, list(job.source.names(wanted_groups(job))))
        index = _build_index(job, IndexWork.of(names), [], parts)
    else:
        listed = _enough(job, _list_windows(job))
        if old is not None and old.fingerprint == _index_fingerprint(job, listed):
            index = old
            parts.clear()  # a run was stopped when it had just written the index
        else:
            index = _build_index(job, IndexWork.of(listed, known, stopped), listed, parts)
    check_invalid_fraction(index.summary, job.spec.max_invalid_fraction, job.spec.name)
    if seen:
        state = {"fingerprint": seen, "window_index": index.fingerprint}
        if read_json(job.layout.source_state) != state:
            write_json(job.layout.source_state, state)
    return index


def check_storage(source: Source, config: ResolvedConfig) -> None:
    """Raise ConfigError if the windows aren't in files."""
    if config.window_storage != "file":
        raise ConfigError(
            f"{source.url} keeps its windows in {config.window_storage}; "
            "only windows in files are supported: convert it with rslearn's "
            "`rslearn dataset migrate_window_storage`"
        )


def _index_fingerprint(job: Job, windows: list[Listed]) -> str:
    """Of every window's group, name and digest, and of what decides over rows."""
    return fingerprint(
        "window_index",
        INDEX_VERSION,
        job.row_key,
        job.spec.tags,
        job.spec.temporal_range,
        sorted(windows),
    )


def _list_windows(job: Job) -> list[Listed]:
    listed = []
    for window in job.source.listing(wanted_groups(job), job.config.layer_names):
        listed.append(window)
        if len(listed) % 1000 == 0:
            job.progress("windows listed", len(listed), 0)
    return listed


def _enough(job: Job, windows: list[Listed]) -> list[Listed]:
    """The windows to read: all, or with max_samples a random part that is surely enough.

    So that a trial with a few samples of a large dataset reads a few windows. The part is the
    first by hash that tags, time and model.yaml select: four times as many as are asked for, since
    some are invalid and the rarer classes must be found.
    """
    limit = job.spec.max_samples
    count = len(windows) if limit is None else max(4 * limit, limit + 64)
    if count >= len(windows):
        return windows
    wants = WindowFilter.of(job.spec).wants
    numbers = uniform([f"{w.group}/{w.name}" for w in windows], f"enough:{job.spec.splits.seed}")
    ordered = (windows[k] for k in numbers.argsort(kind="stable"))
    files = (job.source.window(w.group, w.name, job.config.layer_names) for w in ordered)
    chosen: list[Listed] = []
    for found, reader in job.source.readers(files, whole=False):
        metadata = read_window_metadata(reader, found)
        if metadata is None or (wants(metadata) and selected(job.config, found, metadata)):
            chosen.append(found.listed)
            if len(chosen) == count:
                break
    return chosen


def _build_index(
    job: Job, work: IndexWork, listed: list[Listed], parts: PartialRows
) -> WindowIndex:
    """Read the windows that have to be read, and add them to the rows that are there."""
    mode = job.spec.copy_mode
    task = IndexTask(job.source, job.config, WindowFilter.of(job.spec), copy_mode=mode)
    packer = commits = None
    if job.spec.max_samples is None and mode != "index":
        packer = make_packer(task, work.new, work.known, parts.packing, job.layout.shard_bytes)
    if packer is not None:
        commits = Commits(packer, job.layout, job.row_key, work.packed(packer, job.config))
    to_read = work.to_read
    if packer is not None:
        require_room(job.layout, 0, len(to_read) * packer.row_bytes)
    try:
        parts.packer = packer
        with executor(job.settings, len(to_read)) as pool:
            shards = index_windows(
                replace(task, packer=packer), to_read, pool, job.settings.workers, parts, commits,
                job.progress,
            )  # fmt: skip
    finally:
        parts.flush()  # kept until the index itself is on disk: see finish_index
    if commits is not None:
        commits.add([], before=None)
    empty = WindowIndex.empty(job.config, "", job.row_key).table
    table = pa.concat_tables([empty, *work.kept, *(shard.table for shard in shards)])
    table = add_geometry(table.sort_by([("group", "ascending"), ("name", "ascending")]))
    filtered_out = [window for shard in shards for window in shard.filtered_out]
    if not listed:
        columns = (table[name].to_pylist() for name in ("group", "name", "source_digest"))
        listed = [*map(Listed, *columns), *filtered_out]
    extra = {"n_filtered_out": len(filtered_out), "n_read": len(work.new)}
    wanted = _index_fingerprint(job, listed)
    return WindowIndex(table, wanted, job.row_key, job.origin, extra)


def wanted_groups(job: Job) -> list[str]:
    """The groups to read: the spec's, else those that model.yaml names, else all.

    Raises:
        SpecError: the spec names a group that the source doesn't have.
    """
    return groups_to_read(job.spec, job.config, job.source.groups(), job.source.url)


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
    named = [set(selector.groups) for selector in config.selectors.values()]
    if named and all(named):
        return [group for group in present if group in set().union(*named)]
    return list(present)


def finish_index(job: Job, index: WindowIndex) -> None:
    """Write the index and drop the partial rows that a stopped run would have gone on from."""
    write_index(job.layout.window_index, index)
    PartialRows(job.layout.path / ".window_index", job.row_key).clear()


# ------------------------------------------------------------------------ 2. split_assignment


def split_assignment(job: Job, index: WindowIndex) -> SplitAssignment:
    """Give each valid window a split: column arithmetic and hashes, no pixel is read.

    Raises:
        SplitError: no window is selected, or train is empty.
    """
    config = job.config
    wanted = fingerprint(
        "split_assignment",
        SPLITS_VERSION,
        index.fingerprint,
        job.spec.splits,
        job.spec.max_samples,
        dict(config.selectors),
        config.declared_ratios,
    )
    old = read_splits(job.layout.split_assignment)
    if old is not None and old.fingerprint == wanted:
        return old
    return assign_splits(index, config, job.spec, wanted)


# ------------------------------------------------------------------------------ 3. norm_stats


def norm_stats(job: Job, index: WindowIndex, splits: SplitAssignment) -> NormStats:
    """Band statistics of the train windows, summed up from the moments in the index."""
    train = splits.splits == "train"
    stats = NormStats(
        fingerprint=fingerprint("norm_stats", NORM_VERSION, index.fingerprint, splits.fingerprint),
        n_windows=int(train.sum()),
        stats={},
    )
    for modality in job.config.modalities:
        moments = index.moments(modality.name)[train]
        if moments.shape[2] != len(modality.bands):  # no window at all has this modality
            moments = np.zeros((0, len(MOMENTS), len(modality.bands)))
        found = dict(zip(modality.bands, combine(moments), strict=True))
        absent = [band for band, s in found.items() if math.isnan(s.mean)]
        flat = [f"{band} (always {s.mean:g})" for band, s in found.items() if s.std == 0]
        stats.stats[modality.name] = {
            band: {"mean": s.mean, "std": s.std, "min": s.min, "max": s.max}
            if band not in absent
            else dict.fromkeys(("mean", "std", "min", "max"), 0.0)
            for band, s in found.items()
        }
        for bands, what in ((absent, "has no pixel in any train window"), (flat, "does not vary")):
            if bands:
                text = f"{modality.name} {', '.join(bands)} {what}; it is 0 after normalisation"
                stats.warnings.append(text)
    return stats


# ------------------------------------------------------------------------------- 4. weka_copy


def weka_copy(job: Job, index: WindowIndex, splits: SplitAssignment) -> CopyResult:
    """Copy the windows of all splits and pack their samples; only what isn't there yet.

    Raises:
        SourceError: a window changed since it was indexed.
        StoreError: the eval root can't be written.
    """
    wanted = fingerprint(
        "weka_copy", COPY_VERSION, index.fingerprint, splits.fingerprint, job.spec.copy_mode
    )
    old = read_copy(job.layout)
    if old is not None and old.fingerprint == wanted and _copy_is_there(job, old):
        job.source.forget()
        return old
    # What lies there is about to change: the outcome of the last copy vouches for it no longer.
    remove_file(job.layout.weka_copy)
    job.layout.send()
    with executor(job.settings) as pool:
        result = transfer(
            job.source,
            job.config,
            job.layout,
            index,
            splits,
            job.spec.copy_mode,
            wanted,
            pool,
            job.settings.workers,
            job.progress,
        )
    if job.spec.copy_mode == "windows":
        samples = Samples(job.config, index, splits)
        files = write_copy_files(job.layout, job.files, samples)
        result = result.model_copy(update={"files": files})
    job.source.forget()
    return result


def _copy_is_there(job: Job, result: CopyResult) -> bool:
    """A cheap look: what the result names exists. `eval-ingest verify` looks at every byte."""
    paths = [job.layout.path / found.index for found in result.splits.values()]
    paths += [
        job.layout.samples / shard.name / f"{array}.npy"
        for shard in result.shards
        for array in shard.arrays
    ]
    if result.mode == "windows":
        paths += [job.layout.copy_manifest, *(job.layout.path / name for name in result.files)]
    return all(job.layout.is_there(path) for path in paths)


# -------------------------------------------------------------------------- 5. registry_entry


def registry_entry(
    job: Job, index: WindowIndex, splits: SplitAssignment, stats: NormStats, copy: CopyResult
) -> Metadata:
    """Put together metadata.json: whoever reads it sees this version, whole."""
    prints = {
        "window_index": index.fingerprint,
        "split_assignment": splits.fingerprint,
        "norm_stats": stats.fingerprint,
        "weka_copy": copy.fingerprint,
    }
    wanted = fingerprint("registry_entry", ENTRY_VERSION, prints, job.spec, job.config, job.origin)
    old = read_metadata(job.layout)
    if old is not None and (old.fingerprint, old.splits, old.shards) == (
        wanted,
        copy.splits,
        copy.shards,  # others, if the samples were packed anew
    ):
        return old
    samples = Samples(job.config, index, splits)
    prints["registry_entry"] = wanted
    return Metadata(
        name=job.spec.name,
        fingerprint=wanted,
        published_at=datetime.now(UTC).isoformat(timespec="seconds"),
        spec=job.spec,
        config=job.config,
        source=job.origin,
        splits=copy.splits,
        shards=copy.shards,
        norm_stats=stats.stats,
        n_windows=len(index),
        invalid=index.summary.reasons,
        split_report=splits.report,
        quality=quality_report(index, splits, job.config),
        warnings=[*job.config.warnings, *stats.warnings, *samples.warnings],
        fingerprints=prints,
        window_size=samples.smallest_side,
        num_timesteps=samples.most_timesteps,
        optional_modalities=samples.optional_modalities,
        timesteps={name: (int(s.min()), int(s.max())) for name, s in samples.timesteps.items()},
        same_timesteps=samples.same_timesteps,
        n_bytes=copy.n_bytes + copy.packed_bytes,
    )


def publish(job: Job, metadata: Metadata) -> None:
    """Write metadata.json and compile the registry.

    Raises:
        StoreError: the eval root can't be written.
    """
    with contextlib.suppress(StoreError):  # of another version, or damaged: nobody reads it
        retire(job.layout, read_metadata(job.layout), metadata)
    write_metadata(job.layout, metadata)
    rebuild_registry(job.root)


def tidy(job: Job, metadata: Metadata) -> None:
    """Clear away what nothing names any more, once readers have had time to let go of it."""
    if metadata.spec.copy_mode != "windows":
        remove_copy(job.layout)
    remove_retired(job.layout, metadata, GRACE_S)
    shutil.rmtree(job.layout.staging, ignore_errors=True)


# --------------------------------------------------------------------------------- running them


@dataclass(frozen=True)
class Outcome:
    """What a stage gave."""

    stage: str
    value: Any
    ran: bool
    """False: the outcome on disk was already the wanted one."""
    seconds: float

    @property
    def fingerprint(self) -> str:
        """The outcome's fingerprint, which is also its Dagster data version."""
        return str(self.value.fingerprint)


@dataclass(frozen=True)
class _Stage:
    build: Callable[..., Any]
    inputs: tuple[str, ...]
    read: Callable[[DatasetLayout], Any]
    write: Callable[[Job, Any], None]


def read_norm_stats(layout: DatasetLayout) -> NormStats | None:
    """norm_stats.json, or None if it isn't there."""
    layout.root.pull(layout.norm_stats)
    content = read_json(layout.norm_stats)
    return None if content is None else NormStats.model_validate(content)


def read_copy(layout: DatasetLayout) -> CopyResult | None:
    """weka_copy.json, or None if it isn't there."""
    layout.root.pull(layout.weka_copy)
    content = read_json(layout.weka_copy)
    return None if content is None else CopyResult.model_validate(content)


_STAGES: dict[str, _Stage] = {
    "window_index": _Stage(
        window_index, (), lambda layout: read_index(_pulled(layout, "window_index")), finish_index
    ),
    "split_assignment": _Stage(
        split_assignment,
        ("window_index",),
        lambda layout: read_splits(_pulled(layout, "split_assignment")),
        lambda job, value: write_splits(job.layout.split_assignment, value),
    ),
    "norm_stats": _Stage(
        norm_stats,
        ("window_index", "split_assignment"),
        read_norm_stats,
        lambda job, value: write_json(job.layout.norm_stats, value.model_dump()),
    ),
    "weka_copy": _Stage(
        weka_copy,
        ("window_index", "split_assignment"),
        read_copy,
        lambda job, value: write_json(job.layout.weka_copy, value.model_dump()),
    ),
    "registry_entry": _Stage(
        registry_entry,
        ("window_index", "split_assignment", "norm_stats", "weka_copy"),
        read_metadata,
        publish,
    ),
}


def _pulled(layout: DatasetLayout, file: str) -> Path:
    path: Path = getattr(layout, file)
    layout.root.pull(path)
    return path


def read_stage(layout: DatasetLayout, stage: str) -> Any | None:
    """The outcome of a stage that is on disk, or None."""
    return _STAGES[stage].read(layout)


def write_stage(job: Job, stage: str, value: Any) -> bool:
    """Write a stage's outcome, unless it is what is on disk already; True if it was written."""
    old = _STAGES[stage].read(job.layout)
    same = old is not None and old.fingerprint == value.fingerprint
    if same and (stage != "registry_entry" or (old == value and _registered(job, value))):
        return False
    _STAGES[stage].write(job, value)
    return True


def _registered(job: Job, metadata: Metadata) -> bool:
    """A run that was stopped between metadata.json and the registry has to catch up."""
    try:
        entry = read_registry(job.root).get(job.spec.name, {})
    except StoreError:
        return False  # damaged: it is compiled anew
    return entry.get("fingerprint") == metadata.fingerprint  # type: ignore[no-any-return]


def run_stage(job: Job, stage: str, values: dict[str, Any] | None = None) -> Outcome:
    """Run one stage if its outcome on disk is missing or stale, and write it.

    Args:
        job: the dataset.
        stage: one of STAGES.
        values: outcomes of earlier stages, where they are at hand; else they are read from disk.

    Raises:
        NotIngestedError: an earlier stage has not run.
        EvalIngestError: whatever the stage raises.
    """
    if not job.layout.is_held:
        with dataset_lock(job):
            return run_stage(job, stage, values)
    started = time.monotonic()
    inputs = []
    for name in _STAGES[stage].inputs:
        value = (values or {}).get(name)
        if value is None:
            value = read_stage(job.layout, name)
        if value is None:
            raise NotIngestedError(
                f"{job.spec.name}: {stage} needs {name}, which has not run; run: "
                f"dagster asset materialize --select {name} --partition {job.spec.name}"
            )
        inputs.append(value)
    value = _STAGES[stage].build(job, *inputs)
    ran = write_stage(job, stage, value)
    job.layout.send()
    if stage == "registry_entry":
        tidy(job, value)
    return Outcome(stage, value, ran, time.monotonic() - started)


def ingest(
    job: Job,
    each: Callable[[Outcome], None] = lambda _: None,
    stages: Sequence[str] = STAGES,
) -> list[Outcome]:
    """Run the stages, all five unless told otherwise; `each` is called after every one.

    Raises:
        LockedError: another process is ingesting the same dataset.
        EvalIngestError: whatever a stage raises; what was published before stays as it was.
    """
    with dataset_lock(job):
        values: dict[str, Any] = {}
        outcomes = []
        for stage in stages:
            outcome = run_stage(job, stage, values)
            values[stage] = outcome.value
            outcomes.append(outcome)
            each(outcome)
        return outcomes


@contextmanager
def dataset_lock(job: Job, timeout_s: float = 5.0) -> Iterator[None]:
    """Keep two processes from ingesting the same dataset at once.

    Whoever gets the lock removes what a killed holder left unfinished.

    Raises:
        LockedError: another process is at it.
    """
    layout, what = job.layout, f"{job.spec.name} is being ingested"
    with locked(layout.lock, timeout_s, what), layout.held(timeout_s, what):
        remove_unfinished(job.layout)
        yield


def forget(job: Job) -> None:
    """Drop the outcomes of all stages but what is published, so that the next run does it all.

    Readers are not disturbed: metadata.json and what it names stay until they are replaced.
    """
    with dataset_lock(job):
        layout = job.layout
        for path in (
            layout.window_index,
            layout.split_assignment,
            layout.norm_stats,
            layout.weka_copy,
            layout.copy_manifest,
        ):
            remove_file(path)
        retire_shards(layout)
        layout.send()


def summary(job: Job, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What an ingest did, for people and programs."""
    values = {outcome.stage: outcome.value for outcome in outcomes}
    ran = any(outcome.ran for outcome in outcomes)
    return {
        "name": job.spec.name,
        "path": job.layout.url,
        "ran": ran,
        "registered": "registry_entry" in values,
        "stages": {
            outcome.stage: {
                "ran": outcome.ran,
                "seconds": round(outcome.seconds, 3),
                "fingerprint": outcome.fingerprint,
            }
            for outcome in outcomes
        },
        "counts": values["split_assignment"].counts(),
        "report": values["split_assignment"].report if ran else None,
        "classes": [known.name for known in job.config.task.classes],
        "quality": values["registry_entry"].quality if "registry_entry" in values else {},
        "warnings": [*job.config.warnings, *values["norm_stats"].warnings] if ran else [],
    }


def dry_run(job: Job) -> dict[str, Any]:
    """What an ingest would read and write: from the listing and the windows' metadata alone."""
    groups = wanted_groups(job)
    wants = WindowFilter.of(job.spec).wants
    rows = []
    listed = n_files = n_bytes = 0
    windows = job.source.windows(groups, job.config.layer_names)
    for files, reader in job.source.readers(windows, whole=False):
        row = metadata_row(reader, files, wants)
        if row is not None:
            rows.append(row)
        listed, n_files, n_bytes = listed + 1, n_files + len(files.files), n_bytes + files.n_bytes
        job.progress("metadata read", listed, 0)
    schema = WindowIndex.empty(job.config, "", "").table.schema
    index = WindowIndex(add_geometry(pa.Table.from_pylist(rows, schema=schema)), "", "")
    splits = assign_splits(index, job.config, job.spec, "")
    return {
        "name": job.spec.name,
        "source": redacted(job.source.url),
        "groups": groups,
        "n_windows": len(rows),
        "n_filtered_out": listed - len(rows),
        "n_files": n_files,
        "n_bytes": n_bytes,
        "path": job.layout.url,
        "counts": splits.counts(),
        "strategy": splits.report["strategy"],
        "left_out": splits.report["left_out"],
    }
