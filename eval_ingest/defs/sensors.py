"""The discovery sensor: a dataset dropped under a watched root becomes an eval by itself.

What belongs here: what Dagster is asked to do about a dataset. What doesn't: finding datasets
(sources/discovery.py) and judging them (watching.py).

A dataset is asked for when two looks in a row found it the same: folder, configuration, and the
files of some windows. So one that is being copied waits for its last file, and a whole one waits
for a single tick; if a few windows are not complete, it has to be the same for five minutes. What
arrives later all the same makes it changed, and it is asked for again.

A version whose run failed is asked for again after ten minutes, then twenty, and so on up to a
day, since what was wrong may be mended where no listing shows it.
"""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import dagster as dg

from eval_ingest.background import Background
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.defs.assets import STAGE_ASSETS
from eval_ingest.defs.cursor import Cursor, Seen, Step
from eval_ingest.defs.mounted import require_registry
from eval_ingest.defs.partitions import studio_datasets
from eval_ingest.defs.running import PARTITION_TAG, is_going_on, set_up_pools
from eval_ingest.errors import EvalIngestError
from eval_ingest.redaction import in_lines, on_one_line, redacted
from eval_ingest.settings import Settings
from eval_ingest.sources.looks import Memory
from eval_ingest.store.catalog import add_spec
from eval_ingest.store.roots.open import open_root
from eval_ingest.watching import Judgement, Looks, Sighting, State, look_at, survey

NAME = "studio_discovery"
BUDGET_S = 40.0
"""A tick begins nothing new after this long: Dagster stops ticks after 60 s by default."""
ROOTS_S = 25.0
"""Roots that haven't answered by then are told; their answer is taken in a later tick."""
AT_ONCE = 16
"""Datasets that are looked at at the same time."""
INCOMPLETE_S = 300
"""A dataset of whose windows a few are not complete has to be unchanged for so long."""
STUCK_S = 3600
"""What is unfinished and has not changed for so long is asked for, so that a run says what is
wrong with it."""
RETRY_S = 600
MAX_RETRY_S = 86_400
VERSION_TAG = "eval_ingest/version"

ingest_studio_dataset = dg.define_asset_job(
    "ingest_studio_dataset",
    selection=dg.AssetSelection.assets(*STAGE_ASSETS),
    description="All five stages of a dataset that was found under a watched root.",
)

# Kept between ticks: a look that lasts longer than a tick is had in a later one.
_roots: Looks = Background()
_datasets: Background[tuple[str, str, str], Judgement] = Background()


def discovery_sensor(settings: Settings) -> dg.SensorDefinition:
    """The sensor; it runs from the start where there are roots to look at."""
    running = bool(settings.studio_roots)

    @dg.sensor(
        name=NAME,
        job=ingest_studio_dataset,
        minimum_interval_seconds=settings.discovery_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING
        if running
        else dg.DefaultSensorStatus.STOPPED,
        description=(
            "Looks for datasets under EVAL_INGEST_STUDIO_ROOTS, and ingests what is new or changed "
            "and no longer being written. What can't be ingested is told in the tick's log."
        ),
    )
    def studio_discovery(
        context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]
    ) -> dg.SensorResult | dg.SkipReason:
        if not settings.studio_roots:
            return dg.SkipReason("no roots to look at; set EVAL_INGEST_STUDIO_ROOTS, with commas")
        try:
            return look(context, settings)
        except EvalIngestError as error:  # the eval root is out of reach, for example
            return dg.SkipReason(in_lines(str(error)))

    return studio_discovery


def look(context: dg.SensorEvaluationContext, settings: Settings) -> dg.SensorResult:
    """One tick: find, judge what isn't settled in this version, and ask for runs."""
    deadline = time.monotonic() + BUDGET_S
    set_up_pools(context.instance)
    cursor = Cursor.parse(context.cursor, redacted(settings.eval_root))
    cursor.tick += 1
    registered = [name for name, seen in cursor.seen.items() if seen.step is Step.REGISTERED]
    require_registry(context.instance, open_root(settings), registered)
    found = survey(
        settings.studio_roots,
        settings,
        looks=_roots,
        timeout_s=ROOTS_S,
        memory=partial(Memory, patient=True),
    )
    tick = _Tick(context, settings, cursor)
    for root, reason in found.down.items():
        tick.tell(root, reason, found.faults.get(root))
    pending = [sighting for sighting in found.sightings if tick.is_pending(sighting)]
    pending.sort(key=tick.turn)
    left = len(pending)
    for start in range(0, len(pending), AT_ONCE):
        batch = pending[start : start + AT_ONCE]
        work = {_key(s): partial(look_at, tick.with_known(s), settings) for s in batch}
        done = _datasets.outcomes(work, max(deadline - time.monotonic(), 0.0))
        for sighting in batch:
            if _key(sighting) in done:
                tick.decide(sighting, done[_key(sighting)].result())
                left -= 1
        if time.monotonic() > deadline:
            break
    if left:
        tick.notes.append(f"{left} more datasets are looked at in the next tick")
    else:  # what is all right again is told again when it fails anew
        cursor.told = {at: told for at, told in cursor.told.items() if at in tick.problems}
    for where, reason in tick.problems.items():
        cursor.tell(context.log, where, reason, tick.faults.get(where))
    return tick.result(len(found.sightings))


def _placed(where: str, reason: str) -> str:
    """A reason that says what folder it is about, once."""
    return reason if reason.startswith(where) else f"{where}: {reason}"


def _until(reason: str, at: float) -> str:
    return f"{reason}; if nothing changes, its ingest is requested at {_clock(at)}"


def _clock(at: float) -> str:
    """A time for people.

    >>> _clock(1_700_000_000)
    '2023-11-14 22:13:20 UTC'
    """
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _key(sighting: Sighting) -> tuple[str, str, str]:
    return sighting.name, sighting.found.url, sighting.version


class _Tick:
    """What one tick finds out and asks for."""

    def __init__(
        self,
        context: dg.SensorEvaluationContext,
        settings: Settings,
        cursor: Cursor,
    ) -> None:
        self.context = context
        self.settings = settings
        self.cursor = cursor
        self.problems: dict[str, str] = {}
        """Root, folder or dataset to what is wrong with it."""
        self.faults: dict[str, Exception] = {}
        """Of those, the ones where something of ours is wrong."""
        self.notes: list[str] = []
        self.requests: list[dg.RunRequest] = []

    def tell(self, where: str, reason: str, fault: Exception | None) -> None:
        """Note what is wrong with a root or a folder."""
        if fault is not None:
            reason = f"{where} could not be looked at: {reason}; the next tick looks again"
            self.faults[where] = fault
        self.problems[where] = reason

    def version(self, sighting: Sighting) -> str:
        """Of a dataset, in the eval root that it goes to."""
        return fingerprint(sighting.version, self.settings.eval_root)

    def is_pending(self, sighting: Sighting) -> bool:
        """True if a dataset has to be looked at; False if there is nothing to do, or not yet."""
        seen = self.cursor.seen.get(sighting.name)
        if seen is None or seen.version != self.version(sighting):
            return True
        if seen.step is Step.REGISTERED:
            return False
        if seen.step is Step.TOLD and not seen.is_due(time.time()):
            where = redacted(sighting.found.url)
            self.problems[where] = self.cursor.told.get(where, "")
            return False
        if seen.step is not Step.REQUESTED:
            return True
        runs = self._runs(sighting)
        if runs.cancelled:  # a person who cancels a run doesn't want it back
            self.notes.append(
                f"{sighting.name}: its ingest was cancelled, and is not asked for again; run it"
            )
        return not (runs.going_on or runs.cancelled)

    def with_known(self, sighting: Sighting) -> Sighting:
        """Of a version whose run failed, the source isn't asked again until that is tried again."""
        seen, runs = self.cursor.seen.get(sighting.name), self._runs(sighting)
        if seen is None or not runs.count or not time.time() < runs.next_try:
            return sighting
        return replace(sighting, known=Judgement(State.CHANGED, stamp=seen.stamp))

    def turn(self, sighting: Sighting) -> int:
        """Whom a tick looked at longest ago comes first, so that a slow one starves no other."""
        seen = self.cursor.seen.get(sighting.name)
        return 0 if seen is None else seen.tick

    def decide(self, sighting: Sighting, judgement: Judgement) -> None:
        """Ask for a run, wait for another look, or tell why neither."""
        name, version = sighting.name, self.version(sighting)
        where = redacted(sighting.found.url)
        old = self.cursor.seen.get(name)
        same = old is not None and old.version == version and old.stamp == judgement.stamp
        now = int(time.time())
        since = old.since if old is not None and same else now
        seen = Seen(version, Step.TOLD, judgement.stamp, since, self.cursor.tick, now)
        runs = self._runs(sighting)
        match judgement.state:
            case State.REGISTERED:
                seen = replace(seen, step=Step.REGISTERED)
            case State.IGNORED:
                pass
            case State.THEIRS:
                self.notes.append(f"{where}: {judgement.reason}")
            case State.UNKNOWN:
                self.tell(where, judgement.reason, judgement.fault)
            case State.NOT_INGESTABLE:
                self.problems[where] = _placed(where, judgement.reason)
            case State.UNFINISHED if now - since < STUCK_S:
                seen = replace(seen, step=Step.WAITING)
                self.problems[where] = _until(_placed(where, judgement.reason), since + STUCK_S)
            case _ if runs.going_on:
                seen = replace(seen, step=Step.WAITING)
                self.notes.append(f"{name} is {judgement.state}, and waits for the run going on")
            case _ if runs.count and now < runs.next_try:
                seen = replace(seen, step=Step.REQUESTED)
                self.problems[name] = runs.told(name)
            case _ if not same:
                seen = replace(seen, step=Step.WAITING)
                self.notes.append(
                    f"{name} is {judgement.state}, and waits for a second look, in about "
                    f"{self.settings.discovery_seconds} s: if it is the same then, its ingest is "
                    "requested"
                )
            case _ if judgement.reason and now - since < INCOMPLETE_S:
                seen = replace(seen, step=Step.WAITING)
                self.notes.append(
                    _until(
                        f"{name} is {judgement.state}, and waits: {judgement.reason}",
                        since + INCOMPLETE_S,
                    )
                )
            case _:
                seen = replace(seen, step=Step.REQUESTED)
                self._request(sighting, judgement.state, runs)
        self.cursor.seen[name] = seen

    def _request(self, sighting: Sighting, state: State, runs: "_Runs") -> None:
        if not sighting.in_catalog:
            add_spec(self.settings, sighting.spec)  # from here on, stage assets know the dataset
        self.requests.append(
            dg.RunRequest(
                # One run per version and try, should this tick be cut off and done again.
                run_key=f"{sighting.name}:{self.version(sighting)}:{runs.count + 1}",
                partition_key=sighting.name,
                tags={
                    VERSION_TAG: self.version(sighting),
                    "eval_ingest/source": on_one_line(sighting.found.url, 255),
                    "eval_ingest/state": str(state),
                },
            )
        )
        again = f" for the {runs.count + 1}. time" if runs.count else ""
        self.context.log.info(
            in_lines(
                f"{sighting.name} is {state}: {sighting.found.url} "
                f"({sighting.found.windows} windows); its ingest is requested{again}"
            )
        )

    def _runs(self, sighting: Sighting) -> "_Runs":
        return _runs_of(self.context.instance, sighting.name, self.version(sighting))

    def result(self, n_found: int) -> dg.SensorResult:
        """What Dagster is to do."""
        partitions = str(studio_datasets.name)
        names = [str(request.partition_key) for request in self.requests]
        known = set(self.context.instance.get_dynamic_partitions(partitions))
        new = [name for name in names if name not in known]
        skipped = None
        if self.requests:
            for note in self.notes:
                self.context.log.info(in_lines(note))
        else:
            lines = [f"{n_found} dataset{'' if n_found == 1 else 's'} found"]
            lines += self.notes or ["nothing new or changed"]
            skipped = "; ".join(map(in_lines, [*lines, *self.problems.values()]))
        return dg.SensorResult(
            run_requests=self.requests,
            dynamic_partitions_requests=[studio_datasets.build_add_request(new)] if new else [],
            skip_reason=skipped,
            cursor=self.cursor.dump(),
        )


@dataclass(frozen=True)
class _Runs:
    """What has become of a dataset's runs."""

    going_on: bool
    """Some run of the dataset, whoever began it, isn't over."""
    count: int
    """Runs of this version."""
    last_id: str = ""
    last_status: dg.DagsterRunStatus | None = None
    last_end: float = 0.0

    @property
    def cancelled(self) -> bool:
        return self.last_status is dg.DagsterRunStatus.CANCELED

    @property
    def next_try(self) -> float:
        """Seconds since 1970."""
        return self.last_end + float(min(RETRY_S * 2 ** min(self.count - 1, 10), MAX_RETRY_S))

    def told(self, name: str) -> str:
        """Why nothing is asked for now."""
        what = "failed"
        if self.last_status is dg.DagsterRunStatus.SUCCESS:
            what = "went well but did not register this version"
        return (
            f"{name}: its last ingest {what}: see run {self.last_id[:8]}; it is tried again at "
            f"{datetime.fromtimestamp(self.next_try, UTC):%Y-%m-%d %H:%M} UTC, or when you run it"
        )


def _runs_of(instance: dg.DagsterInstance, name: str, version: str) -> _Runs:
    going_on = is_going_on(instance, name)
    ours = dg.RunsFilter(tags={PARTITION_TAG: name, VERSION_TAG: version})
    count = instance.get_runs_count(ours)
    if not count:
        return _Runs(going_on, 0)
    (last,) = instance.get_run_records(ours, limit=1)
    end = last.end_time or last.update_timestamp.timestamp()
    return _Runs(going_on, count, last.dagster_run.run_id, last.dagster_run.status, end)
