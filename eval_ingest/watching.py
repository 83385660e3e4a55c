"""Which datasets under the roots are new, registered, changed, or can't be ingested and why."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.spec import DatasetSpec, name_from
from eval_ingest.errors import ConfigError, EvalIngestError, StoreError
from eval_ingest.pipeline import check_storage, read_config_files
from eval_ingest.settings import Settings
from eval_ingest.store.atomic import read_json
from eval_ingest.store.catalog import read_catalog
from eval_ingest.store.layout import EvalRoot
from eval_ingest.store.registry import read_metadata
from eval_ingest.store.uri import resolve_eval_root
from eval_ingest.studio.config import resolve
from eval_ingest.studio.discovery import MAX_DEPTH, Found, find_datasets
from eval_ingest.studio.source import open_source


@dataclass(frozen=True)
class Sighting:
    """A dataset under a root, and the name it goes by."""

    spec: DatasetSpec
    found: Found
    in_catalog: bool
    """True: the spec is the catalog's; False: it is its name and source."""

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.spec.name


@dataclass
class Survey:
    """What lies under some roots."""

    sightings: list[Sighting] = field(default_factory=list)
    """Sorted by name."""
    down: dict[str, str] = field(default_factory=dict)
    """Root to the reason why it couldn't be looked into."""


class State(StrEnum):
    """What is to be done about a dataset."""

    NEW = "new"
    REGISTERED = "registered"
    CHANGED = "changed"
    NOT_INGESTABLE = "not ingestable"


@dataclass(frozen=True)
class Judgement:
    """The state of a dataset."""

    state: State
    reason: str = ""
    """Why it is not ingestable."""
    config: ResolvedConfig | None = None


def survey(
    roots: Iterable[str],
    settings: Settings,
    max_depth: int = MAX_DEPTH,
    find: Callable[[str, int], Iterable[Found]] = find_datasets,
) -> Survey:
    """Look for datasets under some roots; one that is down is told, and the others go on."""
    result = Survey()
    found: dict[str, Found] = {}
    for root in dict.fromkeys(roots):
        try:
            for dataset in find(settings.expand(root), max_depth):
                found.setdefault(_plain(dataset.url), dataset)
        except EvalIngestError as error:
            result.down[root] = str(error)
    # A spec that can't be read hides its dataset's name, not the dataset.
    catalog = read_catalog(settings, broken={})
    result.sightings = sorted(_named(found, catalog, settings), key=lambda s: s.name)
    return result


def _plain(url: str) -> str:
    """One way of writing a path or URL."""
    return url.rstrip("/") if "://" in url else os.path.realpath(url)


def _named(
    found: Mapping[str, Found], catalog: Mapping[str, DatasetSpec], settings: Settings
) -> list[Sighting]:
    """Give names: the catalog's, else the folder's, else with the folder above it."""
    by_source: dict[str, list[DatasetSpec]] = {}
    for spec in catalog.values():
        try:
            by_source.setdefault(_plain(settings.expand(spec.source)), []).append(spec)
        except EvalIngestError:
            continue  # it names a variable that isn't set, so it is nowhere
    sightings = []
    free: dict[str, Found] = {}
    for url, dataset in found.items():
        known = by_source.get(url)
        if known is None:
            free[url] = dataset
        else:
            sightings += [Sighting(spec, dataset, in_catalog=True) for spec in known]
    for url, name in _new_names(list(free), set(catalog)).items():
        spec = DatasetSpec(name=name, source=free[url].url)
        sightings.append(Sighting(spec, free[url], in_catalog=False))
    return sightings


def _new_names(urls: list[str], taken: set[str]) -> dict[str, str]:
    """A name for each URL; those that share one are told apart by the folder above.

    >>> _new_names(["/a/crops", "/b/crops", "/b/Rice 2024"], {"x"})
    {'/a/crops': 'a_crops', '/b/crops': 'b_crops', '/b/Rice 2024': 'rice_2024'}
    """
    names: dict[str, str] = {}
    waiting = list(urls)
    attempts: tuple[Callable[[str], str], ...] = (
        lambda url: name_from(_part(url, 1)),
        lambda url: name_from(f"{_part(url, 2)}_{_part(url, 1)}"),
        lambda url: f"{name_from(_part(url, 1))}_{fingerprint(url)[:8]}",
    )
    for attempt in attempts:
        wished = {url: attempt(url) for url in waiting}
        counts: dict[str, int] = {}
        for name in wished.values():
            counts[name] = counts.get(name, 0) + 1
        waiting = []
        for url, name in wished.items():
            if counts[name] > 1 or name in taken:
                waiting.append(url)
            else:
                names[url] = name
        taken = taken | set(names.values())
    return {url: names[url] for url in urls if url in names}


def _part(url: str, place: int) -> str:
    """The last part of a path or URL, or the one before."""
    parts = [part for part in url.partition("://")[2].split("/") if part]
    if "://" not in url:
        parts = [part for part in url.split("/") if part]
    return parts[-place] if len(parts) >= place else ""


def judge(sighting: Sighting, settings: Settings) -> Judgement:
    """What is to be done about a dataset; its configuration is read, its windows are not.

    Raises:
        StoreError: the eval root can't be reached.
    """
    layout = EvalRoot(resolve_eval_root(settings)).dataset(sighting.name)
    metadata = read_metadata(layout)
    if metadata is not None:
        seen = read_json(layout.source_state) or {}
        same = seen.get("fingerprint") == sighting.found.fingerprint
        whole = seen.get("window_index") == metadata.fingerprints.get("window_index")
        if same and whole:
            return Judgement(State.REGISTERED, config=metadata.config)
    try:
        if not sighting.found.windows:
            raise ConfigError(
                f"{sighting.found.url} holds no windows; expected windows/<group>/<window>"
            )
        source = open_source(settings.expand(sighting.spec.source))
        files = read_config_files(source, sighting.spec, settings)
        config = resolve(files, sighting.spec)
        check_storage(source, config)
    except StoreError:
        raise
    except EvalIngestError as error:
        return Judgement(State.NOT_INGESTABLE, str(error))
    return Judgement(State.NEW if metadata is None else State.CHANGED, config=config)
