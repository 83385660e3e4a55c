"""What a look at watched datasets costs, what it sees at once, and what it sees late."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from eval_ingest.core import bounds
from eval_ingest.settings import Settings
from eval_ingest.sources import discovery
from eval_ingest.sources.discovery import Entry, Found, find_datasets
from eval_ingest.sources.looks import Look, Memory, read_looks
from eval_ingest.store.atomic import json_bytes
from eval_ingest.store.registry import rebuild_registry, require_metadata
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.seal import sealed_json, write_sealed_json
from eval_ingest.watching import Judgement, State, judge, judge_all, survey
from eval_ingest_tests.support.fake_evals import write_fake
from eval_ingest_tests.support.servers import ObjectServer, gcs_server, proxy

DATASETS = ("one", "two", "team/three")
MINUTE, DAY = 60.0, 86_400.0


class Clock:
    """The time, as a test sets it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Watch:
    """Looks at one root again and again, with what the look before has left."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = Clock()
        self.memory = Memory(now=self.clock)

    def __call__(self, after_s: float, full: bool = False, patient: bool = False) -> list[Found]:
        """The datasets, so long after the last look."""
        self.clock.now += after_s
        looks = read_looks(json_bytes(self.memory.dump()))  # as it comes from the file
        self.memory = Memory(looks, full, patient, self.clock)
        return sorted(find_datasets(self.url, memory=self.memory), key=lambda found: found.url)


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with gcs_server() as found:
        yield found


@pytest.fixture
def bucket(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ObjectServer, str]:
    """A folder with three datasets of two groups, each of more windows than a page holds."""
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)
    name = tmp_path.name.lower().replace("_", "-")
    files = {}
    for dataset in DATASETS:
        files[f"{dataset}/config.json"] = b"{}"
        for group in "ab":
            for k in range(8):
                files[f"{dataset}/windows/{group}/w{k}/metadata.json"] = b"{}"
    _put(server, name, files)
    return server, f"{server.url}/{name}"


def _put(server: ObjectServer, folder: str, files: dict[str, bytes]) -> None:
    bucket = server.url.partition("://")[2]
    server.filesystem().pipe({f"{bucket}/{folder}/{name}": data for name, data in files.items()})


def test_a_look_at_what_has_not_changed_takes_two_requests_a_dataset(
    bucket: tuple[ObjectServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = bucket
    with proxy(server.address) as through:
        for key, value in server.reached_at(through.address).items():
            monkeypatch.setenv(key, value)
        watch = Watch(url)
        first = watch(0)
        assert {found.groups["a"] for found in first} == {8} and len(first) == len(DATASETS)
        full = through.lists
        watch(20 * MINUTE)  # still within reach of the last change: listed again
        for _ in range(3):
            through.lists, through.requests = 0, 0
            again = watch(30)
            assert again == first and [f.sample for f in again] == [f.sample for f in first]
            # The root, its folder that is no dataset, and two for each dataset.
            assert through.lists == through.requests == 2 + 2 * len(DATASETS) < full
        watch(30 * DAY)  # after so long windows are listed once more, and then it rests
        through.lists = through.requests = 0
        assert watch(MINUTE, patient=True) == first
        assert through.lists == through.requests == 2  # for what may be new beside them
        assert watch(MINUTE) == first  # `discover` looks all the same
        assert through.lists == 2 + 2 + 2 * len(DATASETS)


def test_of_what_is_registered_the_eval_root_is_asked_for_nothing_but_what_all_share(
    bucket: tuple[ObjectServer, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server, url = bucket
    clock, root = Clock(), tmp_path / "evals"
    for found in find_datasets(url):
        _register(root, found)
    rebuild_registry(EvalRoot(root))
    server.upload(root, f"{tmp_path.name}/evals")
    with proxy(server.address) as through:
        for key, value in server.reached_at(through.address).items():
            monkeypatch.setenv(key, value)
        settings = Settings.load(
            {"OLMOEARTH_EVAL_DATASETS": f"{server.url}/{tmp_path.name}/evals",
             "EVAL_INGEST_CACHE": str(tmp_path / "cache"), **os.environ}
        )  # fmt: skip
        asked = []
        for later in (20 * MINUTE, 30, 30):
            through.reset()
            through.asked.clear()
            found = survey([url], settings, memory=partial(Memory, now=clock))
            states = [judge(sighting, settings).state for sighting in found.sightings]
            assert states == [State.REGISTERED] * len(DATASETS)
            asked.append([line.split()[0] for line in through.asked])
            clock.now += later
    last = asked[-1]
    assert not [path for path in last if "source_state" in path or "metadata.json" in path]
    of_root = [path for path in last if "evals" in path]
    assert len(last) - len(of_root) == 2 + 2 * len(DATASETS)
    assert len(of_root) < 10 < len([path for path in asked[0] if "evals" in path])


def test_what_is_new_or_can_not_be_ingested_is_judged_once_while_it_stays_as_it_is(
    bucket: tuple[ObjectServer, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    written: Callable[[str], Path],
) -> None:
    server, url = bucket
    server.upload(written("segmentation"), f"{url.rpartition('/')[2]}/new")
    clock = Clock()
    with proxy(server.address) as through:
        for key, value in server.reached_at(through.address).items():
            monkeypatch.setenv(key, value)
        settings = Settings.load(
            {**os.environ, "OLMOEARTH_EVAL_DATASETS": str(tmp_path / "evals"),
             "EVAL_INGEST_CACHE": str(tmp_path / "cache")}
        )  # fmt: skip

        def look(after_s: float, full: bool = False) -> tuple[list[Judgement], int]:
            clock.now += after_s
            through.reset()
            found = survey([url], settings, memory=partial(Memory, now=clock, full=full))
            return judge_all(found.sightings, settings, full, clock), through.requests

        first, n_first = look(0)
        states = [State.NEW, *[State.NOT_INGESTABLE] * len(DATASETS)]
        assert [found.state for found in first] == states
        look(20 * MINUTE)
        again, n_again = look(30)
        assert again == first  # task, reason and stamp are remembered
        assert n_again == 2 + 2 * (1 + len(DATASETS)) < n_first
        assert look(30, full=True)[1] > n_again
        _put(server, url.rpartition("/")[2], {"one/config.json": b'{"layers": 3}'})
        changed, n_changed = look(30)
        assert changed[1].reason != first[1].reason and changed[0] == first[0]
        assert n_again < n_changed < n_first


def test_what_is_remembered_of_a_judgement_may_be_lost_or_damaged(
    tmp_path: Path, written: Callable[[str], Path]
) -> None:
    settings = Settings(eval_root=str(tmp_path / "evals"), cache=str(tmp_path / "cache"))
    (sighting,) = survey([str(written("segmentation"))], settings).sightings
    (first,) = judge_all([sighting], settings)
    (kept,) = (tmp_path / "cache" / "judged").iterdir()
    for damage in ("", "{", "[]", '{"version": 1}', kept.read_text().replace("new", "old")):
        kept.write_text(damage)
        assert judge_all([sighting], settings) == [first]


def _register(root: Path, found: Found) -> None:
    """Make a dataset of what was found, as if it had been ingested."""
    name = found.url.rpartition("/")[2]
    folder = write_fake(root, name, "segmentation", counts=(2, 1, 1))
    metadata = require_metadata(EvalRoot(root), name)
    spec = metadata.spec.model_copy(update={"source": found.url})
    metadata = metadata.model_copy(update={"spec": spec, "source": found.url})
    (folder / "metadata.json").write_bytes(
        sealed_json(metadata.model_dump(mode="json", by_alias=True))
    )
    index = metadata.fingerprints["window_index"]
    state = {"fingerprint": found.fingerprint, "window_index": index}
    write_sealed_json(EvalRoot(root).dataset(name).layout.source_state, state)


def test_a_cheap_look_sees_configuration_and_groups_and_a_full_one_the_windows(
    bucket: tuple[ObjectServer, str],
) -> None:
    server, url = bucket
    folder = url.rpartition("/")[2]
    watch = Watch(url)

    def changed(after_s: float, **how: bool) -> list[str]:
        before = {url: look.fingerprint for url, look in watch.memory.looks.items()}
        found = watch(after_s, **how)
        return [f.url.rpartition("/")[2] for f in found if before.get(f.url) != f.fingerprint]

    watch(0)
    assert watch(2 * DAY) and changed(1) == []
    _put(server, folder, {"one/model.yaml": b"task:"})
    assert changed(1) == ["one"]
    _put(server, folder, {"two/windows/c/w0/metadata.json": b"{}"})
    assert changed(1) == ["two"]
    _put(server, folder, {"team/three/windows/a/w9/metadata.json": b"{}"})
    assert changed(1) == []  # of a group that was there: late
    assert changed(1, full=True) == ["three"]
    _put(server, folder, {"team/three/windows/a/w8/metadata.json": b"{}"})
    assert changed(9 * MINUTE) == ["three"]  # it has changed a while ago: every look is full
    assert changed(DAY) == []
    _put(server, folder, {"team/three/windows/a/w7b/metadata.json": b"{}"})
    assert changed(MINUTE) == [] and changed(DAY / 3) == ["three"]


def test_a_watched_dataset_that_comes_or_goes_is_noticed_while_others_rest(
    bucket: tuple[ObjectServer, str],
) -> None:
    server, url = bucket
    watch = Watch(url)
    watch(0)
    watch(30 * DAY)
    assert len(watch(MINUTE, patient=True)) == 3
    _put(server, url.rpartition("/")[2], {"new/config.json": b"{}"})
    _put(server, url.rpartition("/")[2], {"new/windows/a/w/metadata.json": b"{}"})
    server.filesystem().rm(f"{url}/two", recursive=True)
    found = [f.url.rpartition("/")[2] for f in watch(MINUTE, patient=True)]
    assert found == ["new", "one", "three"]
    assert all("two" not in url for url in watch.memory.looks)


def test_on_a_disk_every_window_that_comes_or_goes_is_seen_and_none_is_listed(
    tmp_path: Path,
) -> None:
    for k in range(5):
        (tmp_path / "root" / "one" / "windows" / "g" / f"w{k}").mkdir(parents=True)
    (tmp_path / "root" / "one" / "config.json").write_text("{}")
    group = tmp_path / "root" / "one" / "windows" / "g"
    os.utime(group, (1e9, 1e9))
    watch, listed = Watch(str(tmp_path / "root")), list[str]()
    real = discovery._lister(watch.url)

    def lister(folders: Sequence[str]) -> list[list[Entry]]:
        listed.extend(folders)
        return real(folders)

    def look(after_s: float) -> Found:
        listed.clear()
        watch.clock.now += after_s
        watch.memory = Memory(watch.memory.looks, now=watch.clock)
        (found,) = find_datasets(watch.url, lister=lister, memory=watch.memory)
        return found

    first = look(0)
    look(DAY)
    assert look(1) == first and listed == ["", "one", "one/windows"]
    (group / "w9").mkdir()
    os.utime(group, (1.1e9, 1.1e9))  # what comes next has another time, however coarse its clock
    second = look(1)
    assert second != first and second.windows == 6 and listed[-1] == "one/windows/g"
    look(DAY)
    (group / "w9").rmdir()
    assert look(1).windows == 5


def test_a_folder_that_has_just_changed_is_listed_again(tmp_path: Path) -> None:
    """Within one tick of the disk's clock it may change twice, and its time only once."""
    group = tmp_path / "one" / "windows" / "g"
    (group / "w0").mkdir(parents=True)
    (tmp_path / "one" / "config.json").write_text("{}")
    old = Memory(now=lambda: group.stat().st_mtime + 1)
    (before,) = find_datasets(str(tmp_path), memory=old)
    stat = group.stat()
    (group / "w1").mkdir()
    os.utime(group, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    looks = {url: replace(look, changed=0.0) for url, look in old.looks.items()}
    (after,) = find_datasets(str(tmp_path), memory=Memory(looks, now=old._now))
    assert (before.windows, after.windows) == (1, 2)


def test_looks_are_due_by_how_long_a_dataset_has_been_still() -> None:
    def look(still: float, listed: float, seen: float) -> Look:
        return Look("", "", {}, {}, -still, -listed, -seen)

    assert look(5 * MINUTE, 1, 1).is_listing_due(0)
    assert not look(60 * MINUTE, 11 * MINUTE, 1).is_listing_due(0)
    assert look(60 * MINUTE, 13 * MINUTE, 1).is_listing_due(0)
    assert not look(90 * DAY, 0.9 * DAY, 1).is_listing_due(0)
    assert look(90 * DAY, 1.1 * DAY, 1).is_listing_due(0)
    assert look(-MINUTE, 1, 1).is_listing_due(0)  # a clock that went back
    assert look(90 * DAY, -1, 1).is_listing_due(0)
    assert not look(30 * MINUTE, 1, 1).rests(0)
    assert look(90 * DAY, 1, 14 * MINUTE).rests(0) and not look(90 * DAY, 1, 16 * MINUTE).rests(0)


def test_looks_are_kept_from_one_process_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "root" / "one" / "windows" / "g" / "w").mkdir(parents=True)
    (tmp_path / "root" / "one" / "config.json").write_text("{}")
    settings = Settings(eval_root=str(tmp_path / "evals"), cache=str(tmp_path / "cache"))
    clock = Clock()
    seen = []

    def memory(looks: dict[str, Look]) -> Memory:
        seen.append(dict(looks))
        return Memory(looks, now=clock)

    for _ in range(2):
        survey([str(tmp_path / "root")], settings, memory=memory)  # type: ignore[arg-type]
    assert seen[0] == {} and list(seen[1]) == [f"{tmp_path}/root/one"]
    (kept,) = (tmp_path / "cache" / "looks").iterdir()
    kept.write_text("{")
    found = survey([str(tmp_path / "root")], settings, memory=partial(Memory, now=clock))
    assert [s.name for s in found.sightings] == ["one"]
    memory = Memory()
    memory.note("/d\udce9mo", "o", "f", {"g\udce9": 1}, {"g": ("w\udce9", "\U0001f600")})
    ((url, look),) = read_looks(bounds.kept(memory.dump()).encode()).items()
    assert (url, look.groups) == ("/d\\udce9mo", {"g\\udce9": 1})
    assert look.sample == {"g": ("w\\udce9", "\U0001f600")}
    assert read_looks(b'{"a": {"outline": 1}}') == read_looks(b"[1]") == read_looks(None) == {}
