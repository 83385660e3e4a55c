"""One stage of one dataset inside a Dagster step: what stage assets and front doors share."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import dagster as dg

from eval_ingest import pipeline
from eval_ingest.defs.console import say_last
from eval_ingest.defs.failures import as_failure, retried
from eval_ingest.defs.partitions import add_partition
from eval_ingest.errors import ConfigError, SettingsError, SourceError
from eval_ingest.interrupts import interruptible
from eval_ingest.job import Job, open_job
from eval_ingest.pipeline import Outcome
from eval_ingest.redaction import in_lines
from eval_ingest.report.terminal import describe, how_far
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import find_spec

# DataVersion is the very thing that a fingerprint is, and it has been "in beta" since 2023.
warnings.filterwarnings("ignore", category=dg.BetaWarning, module=r"eval_ingest\.defs")

INGEST_POOL = "ingest"
"""Of the stages that read or write pixels; dagster.yaml says how many runs at a time."""
SWEEP_POOL = "sweep"
POOLS = frozenset({INGEST_POOL, SWEEP_POOL})

PARTITION_TAG = "dagster/partition"
"""On every run of a partition; Dagster's own, and part of what its storage keeps."""
DATASET_TAG = "eval_ingest/dataset"
"""On every run that works on a dataset: front doors have no partition to be found by."""


_OVER = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
NOT_OVER = [status for status in dg.DagsterRunStatus if status not in _OVER]


Context: TypeAlias = (
    dg.AssetExecutionContext | dg.OpExecutionContext | dg.AssetCheckExecutionContext
)


class StageRun(NamedTuple):
    """A stage's outcome, and the job that it was a part of."""

    job: Job
    outcome: Outcome


def run_stage(
    context: Context,
    settings: Settings,
    name: str,
    stage: str,
    check: Callable[[], None],
    values: Mapping[str, Any] | None = None,
    of_many: bool = False,
) -> StageRun | None:
    """Run one stage of a dataset if it is missing or stale, under the dataset's lock.

    Returns None in a run of many datasets for one whose source can't be had from here.

    Args:
        context: of the step.
        settings: say where things are.
        name: the dataset.
        stage: one of STAGES.
        check: of `stoppable`.
        values: outcomes of earlier stages, where they are at hand.
        of_many: True in a run of many datasets.

    Raises:
        dg.Failure: whatever goes wrong.
    """
    with retried(), as_failure(name):
        spec = find_spec(settings, name)
        if DATASET_TAG not in context.run.tags:
            context.instance.add_run_tags(context.run.run_id, {DATASET_TAG: name})
        told = LogProgress(context.log, stage)

        def progress(what: str, done: int, total: int) -> None:
            check()
            told(what, done, total)

        try:
            indexed = stage != pipeline.STAGES[0]
            job = open_job(spec, settings, progress=progress, indexed=indexed)
        except (SourceError, SettingsError) as error:
            if not of_many or isinstance(error, ConfigError):
                raise
            context.log.warning(in_lines(f"{name} is left out: {error}"))
            return None
        add_partition(context.instance, name)
        with pipeline.dataset_lock(job):
            outcome = pipeline.run_stage(job, stage, dict(values or {}))
        context.log.info(f"{stage}: {describe(outcome)}")
    return StageRun(job, outcome)


@contextmanager
def stoppable(context: Context, name: str) -> Iterator[Callable[[], None]]:
    """Have Terminate, Ctrl-C and SIGTERM end a step as cancelled; gives a function that looks.

    What a person has stopped is no failure: nobody is to begin it again.

    Raises:
        dg.DagsterExecutionInterruptedError: it was stopped.
    """
    try:
        with interruptible(dg.DagsterExecutionInterruptedError) as check:
            yield check
    except dg.DagsterExecutionInterruptedError:
        context.instance.report_run_canceling(context.run)
        say_last(name, f"{name} was stopped; run it again: it goes on where it stopped")
        raise


def is_going_on(instance: dg.DagsterInstance, name: str) -> bool:
    """True if some run that works on a dataset, whoever began it, isn't over."""
    return any(
        instance.get_runs_count(dg.RunsFilter(statuses=NOT_OVER, tags={tag: name}))
        for tag in (PARTITION_TAG, DATASET_TAG)
    )


def set_up_pools(instance: dg.DagsterInstance) -> None:
    """Have dagster.yaml's default limit hold for our pools from the very first run on.

    Dagster sets it up itself only once a run of the pool is queued, and starts all runs that are
    queued at that moment: a bucket full of datasets would be ingested all at once.
    """
    storage = instance.event_log_storage
    if storage.supports_global_concurrency_limits:
        for pool in POOLS - storage.get_concurrency_keys():
            storage.initialize_concurrency_limit_to_default(pool)


class LogProgress:
    """Progress as log lines: one every ten seconds, so that a long stage is seen to move."""

    def __init__(
        self,
        log: dg.DagsterLogManager,
        stage: str,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._stage = stage
        self._every_s = every_s
        self._clock = clock
        self._what = ""
        self._begun = self._told = clock()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        if what != self._what:
            self._what, self._begun = what, now
        if now - self._told < self._every_s:
            return
        self._told = now
        self._log.info(f"{self._stage}: {how_far(what, done, total, now - self._begun)}")
