"""One stage of one dataset inside a Dagster step: what stage assets and front doors share."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
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
from eval_ingest.report.printing import how_far
from eval_ingest.report.terminal import describe
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import find_spec

INGEST_POOL = "ingest"
"""Of the stages that read or write pixels; dagster.yaml says how many runs at a time."""
SWEEP_POOL = "sweep"
POOLS = frozenset({INGEST_POOL, SWEEP_POOL})

PARTITION_TAG = "dagster/partition"
"""On every run of a partition; Dagster's own, and part of what its storage keeps."""
DATASET_TAG = "eval_ingest/dataset"
"""On every run that works on a dataset: front doors have no partition to be found by."""

STOPPED = "stopped; run the same again: it goes on where it was"

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
        check: of `step_on`, inside of which this is called.
        values: outcomes of earlier stages, where they are at hand.
        of_many: True in a run of many datasets.

    Raises:
        EvalIngestError: whatever goes wrong.
    """
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
def step_on(dataset: str) -> Iterator[Callable[[], None]]:
    """What a step on a dataset does; gives a function that raises if the run was stopped.

    Raises:
        dg.Failure: whatever goes wrong, in our words.
        dg.RetryRequested: the same, where another try may help.
        dg.DagsterExecutionInterruptedError: Terminate, Ctrl-C or SIGTERM: see StoppableExecutor.
    """
    with (
        interruptible(partial(dg.DagsterExecutionInterruptedError, STOPPED)) as check,
        retried(),
        as_failure(dataset),
    ):
        yield check


class StoppableExecutor(dg.Executor):
    """Runs steps as another executor does, and a run that is stopped ends as cancelled.

    What a person has stopped is no failure, be it at a step, between steps, or before the first:
    nobody is to begin it again.
    """

    def __init__(self, inner: dg.Executor) -> None:
        self._inner = inner

    @property
    def retries(self) -> Any:
        """How steps are tried again."""
        return self._inner.retries

    @property
    def step_dependency_config(self) -> Any:
        """Which of a step's inputs it waits for."""
        return self._inner.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        """Run the steps of a plan."""
        try:
            yield from self._inner.execute(plan_context, execution_plan)
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
            plan_context.instance.report_run_canceling(plan_context.dagster_run)
            say_last("", STOPPED)
            raise


def _in_one_process(context: dg.InitExecutorContext) -> StoppableExecutor:
    create = dg.in_process_executor.executor_creation_fn
    assert create is not None
    return StoppableExecutor(create(context))


# Stages use all cores by themselves; a process a step would only add its start.
ONE_PROCESS = dg.ExecutorDefinition(
    "in_process",
    dg.in_process_executor.config_schema,  # type: ignore[arg-type]
    executor_creation_fn=_in_one_process,
)


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
