"""The discovery sensor: a dataset dropped under a watched root becomes an eval by itself.

What belongs here: what Dagster is asked to do about a dataset. What doesn't: finding datasets
(studio/discovery.py) and judging them (watching.py).
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from eval_ingest.defs.assets import STAGE_ASSETS
from eval_ingest.defs.partitions import studio_datasets
from eval_ingest.errors import EvalIngestError, SourceError
from eval_ingest.objects.reading import Entry
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import add_spec
from eval_ingest.studio.discovery import Found, find_datasets
from eval_ingest.watching import Sighting, State, judge, survey

NAME = "studio_discovery"
INTERVAL_S = 60
BUDGET_S = 30.0
"""A tick begins nothing new after this long: Dagster stops ticks after 60 s by default."""

ingest_studio_dataset = dg.define_asset_job(
    "ingest_studio_dataset",
    selection=dg.AssetSelection.assets(*STAGE_ASSETS),
    description="All five stages of a dataset that was found under a watched root.",
)


@dataclass
class Cursor:
    """What earlier ticks have seen and told."""

    seen: dict[str, str] = field(default_factory=dict)
    """Dataset to the fingerprint that was last asked to be ingested, or found to be."""
    told: dict[str, str] = field(default_factory=dict)
    """Folder that can't be ingested, or root that is down, to the reason as it was told."""

    @classmethod
    def parse(cls, text: str | None) -> "Cursor":
        """The cursor of the last tick; an unreadable one begins anew, since run keys protect."""
        try:
            values = json.loads(text or "{}")
            return cls(dict(values.get("seen", {})), dict(values.get("told", {})))
        except (ValueError, TypeError, AttributeError):
            return cls()

    def dump(self) -> str:
        """As Dagster keeps it."""
        return json.dumps({"seen": self.seen, "told": self.told}, sort_keys=True)

    def tell(self, log: logging.Logger, where: str, reason: str) -> None:
        """Log a problem, once."""
        if self.told.get(where) != reason:
            self.told[where] = reason
            log.warning(reason)


def discovery_sensor(roots: Sequence[str]) -> dg.SensorDefinition:
    """The sensor; it runs from the start where there are roots to look at."""
    status = dg.DefaultSensorStatus.RUNNING if roots else dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        name=NAME,
        job=ingest_studio_dataset,
        minimum_interval_seconds=INTERVAL_S,
        default_status=status,
        description=(
            "Finds datasets under EVAL_INGEST_STUDIO_ROOTS, and ingests what is new or changed."
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
            return dg.SkipReason(str(error))

    return studio_discovery


def look(context: dg.SensorEvaluationContext, settings: Settings) -> dg.SensorResult:
    """One tick: find, judge what isn't known in this version, and ask for runs."""
    deadline = time.monotonic() + BUDGET_S
    cursor = Cursor.parse(context.cursor)
    found = survey(settings.studio_roots, settings, find=find)
    problems = dict(found.down)
    wanted: list[tuple[Sighting, State]] = []
    unknown = [s for s in found.sightings if cursor.seen.get(s.name) != s.found.fingerprint]
    left = 0
    for sighting in unknown:
        if time.monotonic() > deadline:
            left += 1
            continue
        judgement = judge(sighting, settings)
        if judgement.state is State.NOT_INGESTABLE:
            problems[sighting.found.url] = f"{sighting.found.url}: {judgement.reason}"
            continue
        if judgement.state is not State.REGISTERED:
            wanted.append((sighting, judgement.state))
        cursor.seen[sighting.name] = sighting.found.fingerprint
    if not left:  # what is all right again is told again when it fails anew
        cursor.told = {where: told for where, told in cursor.told.items() if where in problems}
    for where, reason in problems.items():
        cursor.tell(context.log, where, reason)
    if left:
        context.log.info(f"{left} more datasets are looked at in the next tick")
    return _result(context, settings, cursor, wanted, problems, len(found.sightings))


def _result(
    context: dg.SensorEvaluationContext,
    settings: Settings,
    cursor: Cursor,
    wanted: Sequence[tuple[Sighting, State]],
    problems: dict[str, str],
    n_found: int,
) -> dg.SensorResult:
    for sighting, state in wanted:
        if not sighting.in_catalog:
            add_spec(settings, sighting.spec)  # from here on, stage assets know the dataset
        context.log.info(
            f"{sighting.name} is {state}: {sighting.found.url} "
            f"({sighting.found.windows} windows); its ingest is requested"
        )
    partitions = str(studio_datasets.name)
    names = [sighting.name for sighting, _ in wanted]
    new = [name for name in names if not context.instance.has_dynamic_partition(partitions, name)]
    skipped = None
    if not wanted:
        lines = [f"{n_found} datasets found, nothing new or changed"]
        skipped = "; ".join([*lines, *problems.values()])
    return dg.SensorResult(
        run_requests=[_request(sighting, state) for sighting, state in wanted],
        dynamic_partitions_requests=[studio_datasets.build_add_request(new)] if new else [],
        skip_reason=skipped,
        cursor=cursor.dump(),
    )


def _request(sighting: Sighting, state: State) -> dg.RunRequest:
    return dg.RunRequest(
        # One run per version of a dataset, however often it is asked for.
        run_key=f"{sighting.name}:{sighting.found.fingerprint}",
        partition_key=sighting.name,
        tags={
            "eval_ingest/source": sighting.found.url[:255],
            "eval_ingest/state": str(state),
        },
    )


def find(root: str, max_depth: int) -> Iterable[Found]:
    """Datasets under a root: gs:// through dagster-gcp, where there are credentials for it."""
    lister = gcs_lister(root) if root.startswith("gs://") else None
    return find_datasets(root, max_depth, lister)


def gcs_lister(root: str) -> "GcsLister | None":
    """Lists a bucket with dagster-gcp's resource; None where it needs credentials we lack."""
    # Four seconds to import: the code location has to load without it.
    from dagster_gcp.gcs import GCSResource
    from google.auth.exceptions import GoogleAuthError

    try:
        client = GCSResource().get_client()
    except (GoogleAuthError, OSError):
        return None  # a public bucket, perhaps: gcsfs asks without credentials
    bucket, _, folder = root.removeprefix("gs://").strip("/").partition("/")
    return GcsLister(client, bucket, folder)


@dataclass(frozen=True)
class GcsLister:
    """Lists folders of a bucket level by level, several at a time."""

    client: Any
    """A google.cloud.storage.Client."""
    bucket: str
    folder: str

    def __call__(self, folders: Sequence[str]) -> list[list[Entry]]:
        with ThreadPoolExecutor(16, thread_name_prefix="discovery") as pool:
            return list(pool.map(lambda folder: list(self._list(folder)), folders))

    def _list(self, folder: str) -> Iterator[Entry]:
        prefix = "".join(f"{part}/" for part in (self.folder, folder) if part)
        try:
            listed: Any = self.client.list_blobs(
                self.bucket, prefix=prefix, delimiter="/", timeout=20
            )
            for blob in listed:
                if blob.name != prefix:
                    yield Entry(self._relative(blob.name), blob.size or 0, f"crc32c:{blob.crc32c}")
            for found in sorted(listed.prefixes):
                yield Entry(self._relative(found), 0, "", folder=True)
        except Exception as error:  # google-cloud's and requests' errors have no common root
            raise SourceError(
                f"source gs://{self.bucket}/{self.folder}: listing {folder or 'it'} failed: "
                f"{type(error).__name__}: {str(error).splitlines()[0][:200]}; "
                "check the URL, the network and your credentials "
                "(gcloud auth application-default login)"
            ) from error

    def _relative(self, name: str) -> str:
        return name.removeprefix(f"{self.folder}/" if self.folder else "").rstrip("/")
