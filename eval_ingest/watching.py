"""Which datasets under the roots are new, registered, changed, or can't be ingested and why."""

import contextlib
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from eval_ingest import errors
from eval_ingest.background import Background
from eval_ingest.config_files import read_config_files
from eval_ingest.core.arguments import place_fault
from eval_ingest.core.bounds import Record, kept, read_kept
from eval_ingest.core.entry import Metadata, SourceState, utc
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.spec import RESERVED, DatasetSpec, is_name, name_from
from eval_ingest.core.task import Task
from eval_ingest.decoding.limits import fetchable
from eval_ingest.decoding.metadata import read_metadata as read_window_metadata
from eval_ingest.decoding.rasters import not_there_yet
from eval_ingest.errors import lacking
from eval_ingest.indexing.filters import WindowFilter, selected
from eval_ingest.indexing.wanted import check_storage, groups_to_read
from eval_ingest.inference.resolve import resolve
from eval_ingest.objects.faults import first_line
from eval_ingest.objects.filesystems import weka_mount
from eval_ingest.redaction import holds_secret, redacted, shown, spelled
from eval_ingest.settings import Settings, literal, user_path
from eval_ingest.sources.base import Source, WindowFiles, WindowReader
from eval_ingest.sources.discovery import MAX_DEPTH, SAMPLE, Found, find_datasets, spread
from eval_ingest.sources.looks import Look, Memory, is_due, read_looks
from eval_ingest.sources.open import open_source
from eval_ingest.sources.sqlite import with_database
from eval_ingest.store.atomic import read_bytes, remove_path, write_bytes
from eval_ingest.store.catalog import Removed, read_catalog, removed_datasets
from eval_ingest.store.claims import refuse_theirs
from eval_ingest.store.outcomes import read_source_state
from eval_ingest.store.registry import metadata_at_hand, read_metadata, read_registry
from eval_ingest.store.roots.base import DatasetStore, EvalRoot
from eval_ingest.store.roots.open import open_root

Looks = Background[str, list[Found]]


@dataclass(frozen=True)
class Sighting:
    """A dataset under a root, and the name it goes by."""

    spec: DatasetSpec
    found: Found
    in_catalog: bool
    """True: the spec is the catalog's; False: it is its name and source."""
    problem: str = ""
    """What is wrong with the catalog's spec, where that can't be read."""
    removed: str = ""
    """When a person has removed it, and how it comes back."""
    published: str = ""
    """The fingerprint of what is registered under its name."""
    root: EvalRoot | None = field(default=None, repr=False, compare=False)
    """Where it is, or is to be, registered; None: where the settings say."""
    known: "Judgement | None" = field(default=None, repr=False, compare=False)
    """What an earlier look into the same source gave, and needn't be asked of it again."""

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.spec.name

    @property
    def version(self) -> str:
        """Changes with the source, as far as `Found.fingerprint` sees it, and with the spec."""
        return fingerprint(self.found.fingerprint, self.spec, self.problem)


@dataclass
class Survey:
    """What lies under some roots."""

    sightings: list[Sighting] = field(default_factory=list)
    """Sorted by name."""
    down: dict[str, str] = field(default_factory=dict)
    """Root to the reason why it couldn't be looked into."""
    faults: dict[str, Exception] = field(default_factory=dict)
    """Of those, the ones where something of ours is wrong."""


class State(StrEnum):
    """What is to be done about a dataset."""

    NEW = "new"
    REGISTERED = "registered"
    CHANGED = "changed"
    UNFINISHED = "unfinished"
    """New or changed, but so many windows lack layers that it is probably still being written."""
    THEIRS = "registered by another tool"
    """Its name, or its folder under the eval root, is another tool's, and is left alone."""
    IGNORED = "ignored"
    """A person has removed it."""
    NOT_INGESTABLE = "not ingestable"
    UNKNOWN = "could not be looked at"
    """Something of ours is wrong."""


@dataclass(frozen=True)
class Judgement:
    """The state of a dataset."""

    state: State
    reason: str = ""
    """Why it is not ingestable or could not be looked at, or which windows are not complete."""
    task: Task | None = None
    """What is predicted, where that is known."""
    stamp: str = ""
    """New or changed: of the dataset and of the files of some windows. While it changes, the
    dataset is still being written."""
    fault: Exception | None = None
    """What went wrong where it could not be looked at."""
    of_source: bool = False
    """True: it follows from what the source holds, so it stays while that does."""


def survey(
    roots: Iterable[str],
    settings: Settings,
    max_depth: int = MAX_DEPTH,
    looks: Looks | None = None,
    timeout_s: float | None = None,
    memory: Callable[[Mapping[str, Look]], Memory] | None = None,
) -> Survey:
    """Look for datasets under some roots at once; one that is down is told, the others go on.

    Args:
        roots: paths and URLs, in which `${VAR}` is expanded.
        settings: say where catalog and eval root are.
        max_depth: levels of folders below a root.
        looks: takes looks that last longer than the timeout, to be had in a later survey.
        timeout_s: a root that takes longer counts as down; default: it is waited for.
        memory: from earlier looks at a root, which are kept in the cache, to what spares this one;
            default: every dataset is looked at in full, and nothing is kept.

    Raises:
        StoreError: the catalog or the registry can't be read, so that no dataset has a sure name.
    """
    looks = Background() if looks is None else looks
    work = {
        root: partial(_look, root, settings, max_depth, memory) for root in dict.fromkeys(roots)
    }
    done = looks.outcomes(work, timeout_s)
    result = Survey()
    found: dict[str, Found] = {}
    for root in work:
        at = spelled(redacted(root))
        if root not in done:
            result.down[at] = (
                f"the root {at} has not answered yet; "
                "if that stays so, check the network or the mount"
            )
            continue
        try:
            for dataset in done[root].result():
                found.setdefault(_plain(dataset.url), dataset)
        except errors.EvalIngestError as error:
            result.down[at] = str(error)
        except Exception as error:
            result.down[at] = fault_text(error)
            result.faults[at] = error
    broken: dict[str, errors.EvalIngestError] = {}
    catalog = read_catalog(settings, broken)
    for path, problem in broken.items():
        if not path.endswith((".yaml", ".yml")):
            raise problem  # the folder itself: every dataset of it would be taken for new
    eval_root = open_root(settings)
    registered = read_registry(eval_root)
    removed = removed_datasets(settings)
    outside = {name: entry for name, entry in registered.items() if name not in catalog}
    outside |= {n: {"source_path": g.source} for n, g in removed.items() if n not in catalog}
    known = {**_registered_specs(found, outside, eval_root), **catalog}
    problems = {PurePath(p).stem: str(e) for p, e in broken.items()}
    taken = registered.keys() | catalog.keys() | removed.keys() | RESERVED
    named = _named(found, known, taken, settings, problems)
    told = {name: _told_removed(gone) for name, gone in removed.items()}
    named = [
        replace(
            s,
            removed=told.get(s.name, ""),
            published=str(registered.get(s.name, {}).get("fingerprint", "")),
            root=eval_root,
        )
        for s in named
    ]
    result.sightings = sorted(named, key=lambda s: s.name)
    return result


def _told_removed(gone: Removed) -> str:
    return (
        f"removed on {utc(gone.removed_at)}; to have it again, ingest it by its "
        f"name, or have it be found: eval-ingest discover --forget {gone.name}"
    )


def _look(
    root: str,
    settings: Settings,
    max_depth: int,
    memory: Callable[[Mapping[str, Look]], Memory] | None,
) -> list[Found]:
    expanded = os.path.expanduser(settings.expand(root))
    if fault := place_fault(expanded):
        raise errors.SourceError(
            f"the root {errors.brief(expanded, 60)} {fault}; give a path or URL"
        )
    if holds_secret(expanded):
        raise errors.SourceError(
            f"the root {expanded} holds a password or a signature, and what is found is kept for "
            "others to read; use the default credentials of the machine"
        )
    if memory is None:
        return list(find_datasets(expanded, max_depth))
    cache = user_path(settings.cache)
    path = cache / "looks" / f"{fingerprint(expanded, max_depth)}.json"
    looks = {}
    with contextlib.suppress(errors.StoreError):  # damaged: then everything is looked at in full
        looks = read_looks(read_bytes(path))
    looked = memory(looks)
    found = list(find_datasets(expanded, max_depth, memory=looked))
    if looked.looks != looks:
        with contextlib.suppress(errors.StoreError):  # then the next look takes as long as this one
            write_bytes(path, kept(looked.dump()).encode())
    return found


def _plain(url: str) -> str:
    """One way of writing a path or URL."""
    with contextlib.suppress(ValueError):  # no path: others may register any text
        url = str(weka_mount(url) or url)
        if url and "://" not in url:
            return os.path.realpath(url)
    return url.rstrip("/")


def _registered_specs(
    found: Mapping[str, Found], entries: Mapping[str, Any], root: EvalRoot
) -> dict[str, DatasetSpec]:
    """The specs of registered datasets that come from what was found."""
    specs = {}
    for name, entry in entries.items():
        source = str(entry.get("source_path", ""))
        if _plain(source) not in found or not is_name(name) or holds_secret(source):
            continue
        try:
            metadata = _metadata_of(root.dataset(name), str(entry.get("fingerprint", "")))
        except errors.IntegrityError:  # an ingest makes it anew
            specs[name] = DatasetSpec(name=name, source=literal(source))
        except errors.StoreError:
            continue  # of another version, say: its name is taken
        else:
            other = DatasetSpec(name=name, source=literal(source))  # another tool's, or removed
            specs[name] = other if metadata is None else metadata.spec
    return specs


def _named(
    found: Mapping[str, Found],
    catalog: Mapping[str, DatasetSpec],
    taken: Set[str],
    settings: Settings,
    broken: Mapping[str, str],
) -> list[Sighting]:
    """Give names: the catalog's, else the folder's, else with the folder above it.

    Names of datasets that are registered are `taken`, be they in a catalog or not.

    A spec that can't be read (`broken`, by name) keeps its name: a person is to mend it.
    """
    by_source: dict[str, list[DatasetSpec]] = {}
    for spec in catalog.values():
        try:
            by_source.setdefault(_plain(settings.expand(spec.source)), []).append(spec)
        except errors.EvalIngestError:
            continue  # it names a variable that isn't set, so it is nowhere
    sightings = []
    free: dict[str, Found] = {}
    for url, dataset in found.items():
        known = by_source.get(url)
        if known is None:
            free[url] = dataset
        else:
            sightings += [Sighting(spec, dataset, in_catalog=True) for spec in known]
    for url, name in _new_names(list(free), taken).items():
        dataset = replace(free[url], url=spelled(free[url].url))
        spec = DatasetSpec(name=name, source=literal(dataset.url))
        problem = broken.get(name, "")
        in_catalog = bool(problem)
        if fault := place_fault(free[url].url):
            problem = f"{dataset.url} {fault}"
        sightings.append(Sighting(spec, dataset, in_catalog, problem))
    return sightings


def _new_names(urls: list[str], taken: Set[str]) -> dict[str, str]:
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
        counts = Counter(wished.values())
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
    parts = [part for part in url.rpartition("://")[2].split("/") if part]
    return parts[-place] if len(parts) >= place else ""


def look_at(sighting: Sighting, settings: Settings) -> Judgement:
    """The same as `judge`; a fault of ours is a state, so that it holds up no other dataset.

    Raises:
        StoreError: the eval root can't be reached.
    """
    try:
        return judge(sighting, settings)
    except errors.EvalIngestError:
        raise
    except Exception as error:
        return Judgement(State.UNKNOWN, fault_text(error), fault=error)


def fault_text(error: Exception) -> str:
    """An exception that nobody has thought of, and what to do about it."""
    lack = lacking(error)
    if lack is not None:
        return str(lack)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" at {PurePath(frame.filename).name}:{frame.lineno}" for frame in place)
    return shown(
        f"{first_line(error)}{where}; that is a fault in eval_ingest: report it with the log"
    )


def judge(sighting: Sighting, settings: Settings) -> Judgement:
    """What is to be done about a dataset: its configuration and some windows' files are looked at.

    Raises:
        StoreError: the eval root can't be reached.
    """
    if sighting.known is not None and not sighting.published:
        return sighting.known
    store = (sighting.root or open_root(settings)).dataset(sighting.name)
    metadata, damaged = None, False
    try:
        metadata = _metadata_of(store, sighting.published)
    except errors.IntegrityError:
        damaged = True  # an ingest makes it anew
    except errors.NewerVersionError as error:
        return Judgement(State.NOT_INGESTABLE, str(error))
    if metadata is None and not damaged and sighting.removed:
        return Judgement(State.IGNORED, sighting.removed)
    if (metadata is None and not damaged) or (metadata is not None and metadata.is_untold):
        try:  # of what is damaged, a run says so
            refuse_theirs(store, sighting.spec)
        except errors.NotOursError as error:
            return Judgement(State.THEIRS, str(error))
        except errors.SpecError as error:
            return Judgement(State.NOT_INGESTABLE, str(error))
    # What is here of a bucket is looked at first: what it says of a version stays true.
    states = (read_source_state(store, at_hand) for at_hand in (True, False))
    if metadata is not None and any(_is_of_now(sighting, metadata, seen) for seen in states):
        return Judgement(State.REGISTERED, task=metadata.config.task)
    return sighting.known or _judge_source(
        sighting, settings, State.NEW if metadata is None and not damaged else State.CHANGED
    )


def _judge_source(sighting: Sighting, settings: Settings, state: State) -> Judgement:
    """What the source says of a dataset that is to be ingested."""
    try:
        if sighting.problem:
            raise errors.ConfigError(sighting.problem)
        if not sighting.found.windows:
            raise errors.ConfigError(
                f"{sighting.found.url} holds no windows; expected windows/<group>/<window>"
            )
        source = open_source(settings.expand(sighting.spec.source))
        files = read_config_files(source, sighting.spec, settings)
        config = resolve(files, sighting.spec)
        source = with_database(source, config.window_storage)
        check_storage(source, config)
        inside = look_inside(sighting, source, config)
    except errors.StoreError:
        raise
    except errors.EvalIngestError as error:
        of_source = isinstance(error, errors.ConfigError | errors.SpecError)
        return Judgement(State.NOT_INGESTABLE, str(error), of_source=of_source)
    if len(inside.lacking) > sighting.spec.max_invalid_fraction * inside.looked_at:
        state = State.UNFINISHED
    return Judgement(state, inside.reason, config.task, inside.stamp, of_source=True)


JUDGED_AT_ONCE = 8
JUDGED_S = 3600.0
"""What a source was judged to be is judged again after so long at the latest."""


def judge_all(
    sightings: Iterable[Sighting],
    settings: Settings,
    full: bool = False,
    now: Callable[[], float] = time.time,
) -> list[Judgement]:
    """What is to be done about each of some datasets, each judged as `look_at` does.

    To read a configuration and to list some windows takes requests. What came of it is kept in the
    cache, and counts while the dataset looks the same, for as long as its windows needn't be
    listed anew: see looks.py.

    Args:
        sightings: what a survey found.
        settings: say where eval root and cache are.
        full: True to judge all anew.
        now: the time, in seconds since 1970.

    Raises:
        StoreError: the eval root can't be reached.
    """
    folder = user_path(settings.cache) / "judged"

    def one(sighting: Sighting) -> Judgement:
        path = folder / f"{fingerprint(settings.eval_root, sighting.name)}.json"
        version = fingerprint(sighting.version, sighting.published, sighting.removed)
        old, time_s = _read_judged(path, version), now()
        if old and not full and not is_due(old.since, old.at, time_s, JUDGED_S):
            return look_at(replace(sighting, known=old.judgement), settings)
        found = look_at(sighting, settings)
        if found.of_source and sighting.spec.config is None:
            since = old.since if old and old.judgement == found else time_s
            with contextlib.suppress(errors.StoreError):  # then it is judged anew the next time
                judged = _Judged(
                    version=version, since=since, at=time_s, state=found.state,
                    reason=found.reason, stamp=found.stamp, task=found.task,
                )  # fmt: skip
                write_bytes(path, kept(judged.model_dump(mode="json")).encode())
        elif old:
            remove_path(path)
        return found

    with ThreadPoolExecutor(JUDGED_AT_ONCE, thread_name_prefix="judge_all") as pool:
        return list(pool.map(one, sightings))


class _Judged(Record):
    """A judgement that goes by the source, as it is kept."""

    version: str
    """Changes with the dataset as it was seen, and with what judges it."""
    since: float
    """When it came to be so, in seconds since 1970, as the next."""
    at: float
    """When it was last judged."""
    state: State
    reason: str
    stamp: str
    task: Task | None

    @property
    def judgement(self) -> Judgement:
        """As `look_at` gives it."""
        return Judgement(self.state, self.reason, self.task, self.stamp, of_source=True)


def _read_judged(path: Path, version: str) -> _Judged | None:
    """What is kept of this version of a dataset."""
    found: _Judged | None = None
    with contextlib.suppress(errors.StoreError):  # damaged: as none
        found = read_kept(_Judged, read_bytes(path))
    return found if found and found.version == version else None


def _metadata_of(store: DatasetStore, published: str) -> Metadata | None:
    """A dataset's metadata, without a request where the file here is of the version registered.

    Raises:
        StoreError: as `read_metadata` does.
    """
    with contextlib.suppress(errors.StoreError):
        found = metadata_at_hand(store.layout)
        if found is not None and found.fingerprint == published:
            return found
    return read_metadata(store)


def _is_of_now(sighting: Sighting, metadata: Metadata, seen: SourceState | None) -> bool:
    """True if the source was as it is now when what is published was indexed."""
    index = metadata.fingerprints.get("window_index", "")
    return seen == SourceState(fingerprint=sighting.found.fingerprint, window_index=index)


@dataclass(frozen=True)
class Inside:
    """A look into some windows of a dataset."""

    stamp: str
    """Changes with the dataset's fingerprint and with any file of the windows looked into."""
    looked_at: int
    """Windows that the dataset's configuration selects."""
    lacking: dict[str, str]
    """`group/name` of the incomplete ones to what they lack."""

    @property
    def reason(self) -> str:
        """What is incomplete; "" if nothing is."""
        if not self.lacking:
            return ""
        window, lacks = next(iter(self.lacking.items()))
        return (
            f"of {self.looked_at} windows looked into {len(self.lacking)} lack something, such as "
            f"{window}: {lacks}; the dataset may still be being written"
        )


def look_inside(sighting: Sighting, source: Source, config: ResolvedConfig) -> Inside:
    """List the files of up to SAMPLE windows of the groups that an ingest would read.

    Raises:
        SpecError: the spec names a group that isn't there.
        SourceError: the source can't be listed.
    """
    sample = sighting.found.sample
    groups = groups_to_read(sighting.spec, config, sorted(sample), source.url)
    places = spread([(group, name) for group in groups for name in sample[group]], SAMPLE)
    with ThreadPoolExecutor(8, thread_name_prefix="look_inside") as pool:
        windows = list(pool.map(lambda at: source.window(at[0], at[1], config.layer_names), places))
    incomplete = [window for window in windows if not_there_yet(window, config)]
    lacks = {
        window.key: not_there_yet(window, config)
        for window, reader in source.readers(incomplete, whole=False, fetchable=fetchable)
        if _is_wanted(window, reader, sighting.spec, config)
    }
    return Inside(
        fingerprint(sighting.found.fingerprint, [window.listed for window in windows]),
        len(windows) - len(incomplete) + len(lacks),
        lacks,
    )


def _is_wanted(
    window: WindowFiles, reader: WindowReader, spec: DatasetSpec, config: ResolvedConfig
) -> bool:
    """False for windows that an ingest passes over, by their tags or time."""
    try:
        metadata = read_window_metadata(reader, window)
    except errors.SourceError:
        return True  # it has gone or changed since it was listed
    if metadata is None:
        return True
    return WindowFilter.of(spec).wants(metadata) and selected(config, window, metadata)
