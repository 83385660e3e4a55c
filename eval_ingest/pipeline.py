"""START HERE: from an rslearn dataset to a registered eval dataset, in five stages.

    window_index -> split_assignment -> norm_stats -> weka_copy -> registry_entry

| stage | does | by |
|---|---|---|
| window_index | reads every window once and judges it: one row per window | indexing/ |
| split_assignment | gives each valid window train, val, test or none | core/splits.py |
| norm_stats | band statistics of the train windows, from the moments in the index | core/norm.py |
| weka_copy | copies the windows and packs the samples | copying/ |
| registry_entry | writes metadata.json, the commit point, and the registry | store/registry.py |

Each stage is a function of the stages before it, and each outcome carries a fingerprint: a hash of
its inputs' fingerprints, of the spec's fields that it reads, and of its own version. An outcome on
disk with the wanted fingerprint is taken as it is, so a second run does nothing, and a stopped one
goes on where it was. `ingest` runs all five; Dagster runs the same functions one by one.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from eval_ingest.copying.rslearn_files import (
    ORIGINALS,
    Samples,
    originals,
    remove_copy,
    write_copy_files,
)
from eval_ingest.copying.transfer import copying_ahead, transfer
from eval_ingest.copying.verify import look_at
from eval_ingest.core.columns import memory_given_back
from eval_ingest.core.copy_config import rslearn_config
from eval_ingest.core.entry import (
    MAX_HISTORY,
    CopyResult,
    Metadata,
    NormStats,
    SourceState,
    Version,
    opening,
)
from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.norm import BandStats, BandSums
from eval_ingest.core.quality import quality_report
from eval_ingest.core.splits import SPLITS_VERSION, SplitAssignment, assign_splits, inherited
from eval_ingest.core.validate import check_invalid_fraction
from eval_ingest.decoding.machine import machine_faults_told
from eval_ingest.errors import IntegrityError, NotIngestedError, StaleStageError, StoreError
from eval_ingest.indexing.arriving import index_arriving
from eval_ingest.indexing.build import finish_index, index_source, partial_rows
from eval_ingest.indexing.wanted import check_storage
from eval_ingest.job import Job, with_config_of, write_config
from eval_ingest.objects.backend import crc32c_text
from eval_ingest.sources.discovery import source_fingerprint
from eval_ingest.store import registry
from eval_ingest.store.atomic import file_crc32c, remove_path
from eval_ingest.store.claims import claim
from eval_ingest.store.index_file import read_index, read_splits, write_splits
from eval_ingest.store.leftovers import GRACE_S, remove_retired, remove_unfinished
from eval_ingest.store.manifest import JOURNAL
from eval_ingest.store.outcomes import read_outcome, read_source_state
from eval_ingest.store.seal import unless_damaged, write_sealed_json
from eval_ingest.store.shards import forget_shards
from eval_ingest.waiting import remove_folder

INPUTS: Mapping[str, tuple[str, ...]] = {
    "window_index": (),
    "split_assignment": ("window_index",),
    "norm_stats": ("window_index", "split_assignment"),
    "weka_copy": ("window_index", "split_assignment"),
    "registry_entry": ("window_index", "split_assignment", "norm_stats", "weka_copy"),
}
"""By stage, whose function below has its name, the stages that it is made from."""
STAGES = tuple(INPUTS)

NORM_VERSION = 3
COPY_VERSION = 4
ENTRY_VERSION = 3

# ---------------------------------------------------------------------------- 1. window_index


def window_index(job: Job) -> WindowIndex:
    """Read and judge every window; rows of unchanged windows are taken from earlier runs.

    Raises:
        SourceError: the source can't be read.
        InvalidWindowsError: more windows are invalid than the spec allows.
    """
    job = index_arriving(job, copying_ahead(job, arriving=True))
    check_storage(job.source, job.config)
    # Looked at before the listing: what arrives in between is then a change, and not overlooked.
    seen = source_fingerprint(job.source.origin)
    index = index_source(job, copying_ahead(job))
    limit, asked = job.spec.max_invalid_fraction, job.spec.asked
    check_invalid_fraction(index.summary, limit, job.spec.name, asked)
    write_config(job, index.fingerprint)
    if seen:
        state = SourceState(fingerprint=seen, window_index=index.fingerprint)
        if read_source_state(job.store) != state:
            write_sealed_json(job.layout.source_state, state.model_dump())
    return index


# ------------------------------------------------------------------------ 2. split_assignment


def split_assignment(job: Job, index: WindowIndex) -> SplitAssignment:
    """Give each valid window a split: column arithmetic and hashes, no pixel is read.

    Raises:
        SplitError: no window is selected, or train is empty.
    """
    wanted = _splits_wanted(job, index)
    old = unless_damaged(lambda: read_splits(job.layout.split_assignment))
    if old is not None and old.fingerprint == wanted:
        return old
    return assign_splits(index, job.config, job.spec, wanted)


# ------------------------------------------------------------------------------ 3. norm_stats


def norm_stats(job: Job, index: WindowIndex, splits: SplitAssignment) -> NormStats:
    """Band statistics of the train windows, summed up from the moments in the index."""
    train = splits.splits == "train"
    stats = NormStats(
        fingerprint=_stats_wanted(index, splits),
        n_windows=int(train.sum()),
        stats={},
    )
    for modality in job.config.modalities:
        sums = BandSums(len(modality.bands))
        for moments in index.moment_parts(modality.name, train, len(modality.bands)):
            sums.add(moments)
        found = dict(zip(modality.bands, sums.stats, strict=True))
        absent = [band for band, s in found.items() if math.isnan(s.mean)]
        flat = [f"{band} (always {s.mean:g})" for band, s in found.items() if s.std == 0]
        stats.stats[modality.name] = {
            band: (s if band not in absent else BandStats(0.0, 0.0, 0.0, 0.0))._asdict()
            for band, s in found.items()
        }
        for bands, what in ((absent, "has no pixel in any train window"), (flat, "does not vary")):
            if bands:
                text = f"{modality.name} {', '.join(bands)} {what}; it is 0 after normalisation"
                stats.warnings.append(text)
        for place, value in index.nodata_values(modality.name, splits.used):
            values = stats.nodata.setdefault(modality.name, {})
            values.setdefault(modality.bands[place], []).append(value)
    return stats


# ------------------------------------------------------------------------------- 4. weka_copy


def weka_copy(job: Job, index: WindowIndex, splits: SplitAssignment) -> CopyResult:
    """Copy the windows of all splits and pack their samples; only what isn't there yet.

    Raises:
        SourceError: a window changed since it was indexed.
        StoreError: the eval root can't be written.
    """
    wanted = _copy_wanted(job, index, splits)
    old: CopyResult | None = unless_damaged(lambda: read_outcome(job.store, "weka_copy"))
    if old is not None and old.fingerprint == wanted and _copy_is_there(job, old):
        job.source.forget()
        return old
    if old is not None:  # it has ended: a journal is of another copy, and so may a manifest be
        remove_path(job.layout.path / JOURNAL)
        if old.manifest is not None and not _manifest_is_of(job, old):
            remove_path(job.layout.copy_manifest)
    # What lies there is about to change: the outcome of the last copy vouches for it no longer.
    remove_path(job.layout.weka_copy)
    job.store.send()
    result = transfer(job, index, splits, wanted)
    if job.spec.copy_mode == "windows":
        samples = Samples(job.config, index, splits)
        files = write_copy_files(job.store, job.files, samples)
        manifest = file_crc32c(job.layout.copy_manifest)
        result = result.model_copy(update={"files": files, "manifest": manifest})
    job.source.forget()
    return result


def _manifest_is_of(job: Job, result: CopyResult) -> bool:
    def look() -> bool:
        job.store.look_at(job.layout.copy_manifest, result.manifest)
        return True

    return bool(unless_damaged(look))


def _copy_is_there(job: Job, result: CopyResult) -> bool:
    """A quick look at what the result names. `eval-ingest verify` looks at every byte."""
    if unless_damaged(lambda: look_at(job.store, result)) is None:
        return False
    # Of the source's own texts no version is made: they are only kept as they are there.
    theirs = originals(job.files) if result.mode == "windows" else {}
    now = {name: crc32c_text(data) for name, (data, _) in theirs.items()}
    return all(result.files.get(name) == now.get(name) for name in ORIGINALS)


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
    # How a dataset is scored is no part of its version: embeddings of it stay right.
    data = job.spec.model_copy(update={"eval": EvalSettings()})
    wanted = fingerprint("registry_entry", ENTRY_VERSION, prints, data, job.config, job.origin)
    old = unless_damaged(lambda: registry.read_metadata(job.store))
    if old is not None and (
        (old.fingerprint, old.splits, old.shards, old.spec.eval, old.their_entry)
        == (wanted, copy.splits, copy.shards, job.spec.eval, job.their_entry)
    ):  # shards are others, if the samples were packed anew
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
        nodata=stats.nodata,
        n_windows=len(index),
        invalid=index.summary.reasons,
        split_report=splits.report,
        quality=quality_report(index, splits, job.config, job.spec.resplit_as),
        warnings=[*job.config.warnings, *stats.warnings, *samples.warnings],
        fingerprints=prints,
        window_size=samples.smallest_side,
        num_timesteps=samples.most_timesteps,
        optional_modalities=samples.optional_modalities,
        timesteps={name: (int(s.min()), int(s.max())) for name, s in samples.timesteps.items()},
        same_timesteps=samples.same_timesteps,
        n_bytes=copy.n_bytes + copy.packed_bytes,
        their_entry=job.their_entry,
        history=_history(old, wanted),
    )


def _history(old: Metadata | None, fingerprint: str) -> list[Version]:
    """The versions before this one; one that is published again is remembered once."""
    if old is None:
        return []
    before = [*old.history, Version.of(old)]
    return [found for found in before if found.fingerprint != fingerprint][-MAX_HISTORY:]


def publish(job: Job, metadata: Metadata) -> None:
    """Write metadata.json and compile the registry.

    Raises:
        StoreError: the eval root can't be written.
    """
    registry.write_metadata(job.store, metadata)
    registry.rebuild_registry(job.root)


def tidy(job: Job, metadata: Metadata) -> None:
    """Clear away what nothing names any more, once readers have had time to let go of it."""
    if metadata.spec.copy_mode != "windows" and not metadata.spec.adopted:
        remove_copy(job.store)
    remove_retired(job.store, metadata, GRACE_S)
    for folder in (job.layout.staging, job.layout.ahead):
        remove_folder(folder)


# --------------------------------------------------------------------------------- running them


BUILD: Mapping[str, Callable[..., Any]] = {
    build.__name__: build
    for build in (window_index, split_assignment, norm_stats, weka_copy, registry_entry)
}


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


def run_stage(job: Job, stage: str, values: dict[str, Any] | None = None) -> Outcome:
    """Run one stage if its outcome on disk is missing or stale, and write it.

    Args:
        job: the dataset.
        stage: one of STAGES.
        values: outcomes of earlier stages, where they are at hand; else they are read from disk.

    Raises:
        NotIngestedError: an earlier stage has not run.
        StaleStageError: one has, but what it made doesn't belong to the rest.
        EvalIngestError: whatever the stage raises.
    """
    if not job.store.is_held:
        with dataset_lock(job):
            return run_stage(job, stage, values)
    started = time.monotonic()
    value: Any
    inputs: dict[str, Any] = {}
    for name in INPUTS[stage]:
        value = (values or {}).get(name)
        if value is None:
            value = read_outcome(job.store, name)
        if value is None:
            raise NotIngestedError(
                f"{job.spec.name}: {stage} needs {name}, which has not run; run: "
                f"dagster asset materialize --select {name} --partition {job.spec.name}"
            )
        inputs[name] = value
    if inputs:
        job, inputs = _belonging_together(job, inputs)
    with memory_given_back():
        value = BUILD[stage](job, *inputs.values())
        ran = write_stage(job, stage, value)
        if stage == "window_index":  # until then its rows lay in files that are gone now
            value = read_index(job.layout.window_index) or value
        job.store.send()
    if stage == "registry_entry":
        tidy(job, value)
    return Outcome(stage, value, ran, time.monotonic() - started)


def _splits_wanted(job: Job, index: WindowIndex) -> str:
    return fingerprint(
        "split_assignment",
        SPLITS_VERSION,
        index.fingerprint,
        job.spec.splits,
        job.spec.max_samples,
        dict(job.config.selectors),
        inherited(job.config.declared_ratios),
    )


def _stats_wanted(index: WindowIndex, splits: SplitAssignment) -> str:
    return fingerprint("norm_stats", NORM_VERSION, index.fingerprint, splits.fingerprint)


def _copy_wanted(job: Job, index: WindowIndex, splits: SplitAssignment) -> str:
    return fingerprint(
        "weka_copy",
        COPY_VERSION,
        index.fingerprint,
        splits.fingerprint,
        job.spec.copy_mode,
        rslearn_config(job.config),
    )


def _belonging_together(job: Job, inputs: dict[str, Any]) -> tuple[Job, dict[str, Any]]:
    """A stage's job and inputs, if all are of one version: of one index, one policy, one spec.

    Raises:
        StaleStageError: one isn't; says which stage is to be run again.
    """
    index, splits = inputs["window_index"], inputs.get("split_assignment")
    job = with_config_of(job, index)
    if splits is not None:
        wanted = {"split_assignment": _splits_wanted(job, index)}
        wanted["norm_stats"] = _stats_wanted(index, splits)
        wanted["weka_copy"] = _copy_wanted(job, index, splits)
        for stage, value in inputs.items():
            if value.fingerprint != wanted.get(stage, value.fingerprint):
                before = "what it is made from, or the spec, changed since it was made"
                raise StaleStageError(job.spec.name, stage, before)
        inputs["split_assignment"] = splits.joined(index)
    return job, inputs


def write_stage(job: Job, stage: str, value: Any) -> bool:
    """Write a stage's outcome, unless it is what is on disk already; True if it was written."""
    old = unless_damaged(lambda: read_outcome(job.store, stage))
    same = old is not None and old.fingerprint == value.fingerprint
    if same and (stage != "registry_entry" or (old == value and _registered(job, value))):
        return False
    match stage:
        case "window_index":
            finish_index(job, value)
        case "split_assignment":
            write_splits(job.layout.split_assignment, value)
        case "registry_entry":
            publish(job, value)
        case _:
            write_sealed_json(getattr(job.layout, stage), value.model_dump())
    return True


def _registered(job: Job, metadata: Metadata) -> bool:
    """A run that was stopped between metadata.json and the registry, or at it, has to catch up."""
    layout = job.root.layout
    if any(layout.path.glob(f".{layout.registry.name}.*.[ot][lm][dp]")):  # .old and .tmp
        return False
    try:
        entry = registry.read_registry(job.root).get(job.spec.name, {})
        opened = registry.read_opening(job.store)
    except StoreError:
        return False  # damaged: it is compiled anew
    return (entry.get("fingerprint"), opened) == (metadata.fingerprint, opening(metadata))


@contextmanager
def dataset_lock(job: Job, timeout_s: float = 5.0) -> Iterator[None]:
    """Keep two processes from ingesting the same dataset at once.

    Whoever gets the lock removes what a killed holder left unfinished.

    Raises:
        LockedError: another process is at it.
        NotOursError: the folder or the name is another tool's.
        SpecError: the dataset was published elsewhere, and isn't to be overwritten.
        NewerVersionError: a newer eval_ingest has published it.
        MachineError: this machine can't do what is done meanwhile.
    """
    doing = f"{job.spec.name} is being ingested"
    with machine_faults_told(), job.store.hold(timeout_s, doing):
        with contextlib.suppress(IntegrityError):  # damaged: it is made anew
            registry.read_metadata(job.store)  # raises if a newer eval_ingest has published
        claim(job.store, job.spec, job.overwrite)
        remove_unfinished(job.layout)
        yield


def forget(job: Job) -> None:
    """Drop the outcomes of all stages but what is published, so that the next run does it all.

    Readers are not disturbed: metadata.json and what it names stay until they are replaced.
    """
    with dataset_lock(job):
        layout = job.layout
        outcomes = (getattr(layout, stage) for stage in STAGES[:-1])
        left = (layout.path / JOURNAL, layout.ahead)  # by a run that was stopped
        for path in (layout.resolved, *outcomes, layout.copy_manifest, *left):
            remove_path(path)
        partial_rows(job).clear()
        forget_shards(job.store)
        job.store.send()
