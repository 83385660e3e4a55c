"""Eval roots: the same story on a folder, Google Cloud Storage, S3 and Weka's S3."""

import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from eval_ingest import EvalDataset, cli, pipeline
from eval_ingest.core.spec import SPLITS, DatasetSpec
from eval_ingest.definitions import build_defs
from eval_ingest.defs.assets import STAGE_ASSETS
from eval_ingest.defs.resources import build_resources
from eval_ingest.engine import no_progress
from eval_ingest.errors import (
    IntegrityError,
    LockedError,
    OutdatedError,
    StoreError,
    UnknownDatasetError,
)
from eval_ingest.objects.writing import WritableObjects
from eval_ingest.settings import Settings
from eval_ingest.store import leftovers
from eval_ingest.store.catalog import add_spec
from eval_ingest.store.registry import (
    read_registry,
    rebuild_registry,
    remove_dataset,
    require_metadata,
)
from eval_ingest.store.roots import lease
from eval_ingest.store.roots.open import open_root
from eval_ingest.store.roots.remote_store import RemoteStore
from eval_ingest.verifying import verify_dataset
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import places
from eval_ingest_tests.support.places import Place
from eval_ingest_tests.support.servers import BUCKET, ObjectServer, Proxy, hurry, proxy

place = places.place


def samples(name: str = "crops", root: str | Path | None = None) -> dict[str, list[Any]]:
    """Every sample of every split, by window: pixels, timestamps and target."""
    found = {}
    for split in SPLITS:
        dataset = EvalDataset(name, split, root=root, normalize=None, crop=None)
        found[split] = [
            (
                s["window"],
                {m: s[m].numpy() for m in dataset.bands},
                {m: t.tolist() for m, t in s["timestamps"].items()},
                s["target"].numpy(),
            )
            for s in dataset
        ]
    return found


def assert_same(found: dict[str, list[Any]], expected: dict[str, list[Any]]) -> None:
    for split in SPLITS:
        assert [s[0] for s in found[split]] == [s[0] for s in expected[split]]
        for (_, pixels, times, target), (_, pixels_, times_, target_) in zip(
            found[split], expected[split], strict=True
        ):
            assert times == times_
            np.testing.assert_array_equal(target, target_)
            for modality, values in pixels.items():
                np.testing.assert_array_equal(values, pixels_[modality])


def eval_splits(place: Place) -> dict[str, str]:
    """What the copied windows say about their split."""
    found = {}
    for name in place.names():
        parts = name.split("/")
        if len(parts) == 5 and parts[1] == "windows" and parts[4] == "metadata.json":
            options = json.loads(place.read(name))["options"]
            found[f"{parts[2]}/{parts[3]}"] = options["eval_split"]
    return found


def test_ingest_load_resplit_remove(place: Place, few: Path, few_reference: Path) -> None:
    outcomes = place.ingest(few)
    assert all(outcome.ran for outcome in outcomes)
    assert list(read_registry(place.root)) == ["crops"]
    expected = samples(root=few_reference)
    assert_same(samples(), expected)
    names = place.names()
    local = {str(p.relative_to(few_reference)) for p in few_reference.rglob("*") if p.is_file()}
    assert {n for n in names if "/windows/" in n} == {n for n in local if "/windows/" in n}
    for name in ("crops/config.json", "crops/model.yaml", "registry.json", "crops/metadata.json"):
        assert name in names
    before = eval_splits(place)
    assert before == {w[0]: split for split in SPLITS for w in expected[split]}
    assert _verified(place, 6) == []

    again = place.ingest(few)
    assert not any(outcome.ran for outcome in again)
    assert place.names() == names

    place.machine("b")  # which has nothing of all this
    assert_same(samples(), expected)
    assert not any(outcome.ran for outcome in place.ingest(few))

    resplit = place.ingest(few, splits={"strategy": "random", "seed": 1})
    assert [o.stage for o in resplit if o.ran] == list(pipeline.STAGES[1:])
    moved = samples()
    assert {s[0] for split in SPLITS for s in moved[split]} == set(before)
    after = eval_splits(place)
    assert after == {w[0]: split for split in SPLITS for w in moved[split]} != before
    assert _verified(place, 6) == []

    place.machine("a")  # which still has what was true before
    assert_same(samples(), moved)
    remove_dataset(place.root, "crops")
    assert read_registry(place.root) == {}
    assert {n for n in place.names() if not n.startswith("catalog/")} == {"registry.json"}
    with pytest.raises(UnknownDatasetError, match="no dataset 'crops'"):
        EvalDataset("crops", "val")


def _verified(place: Place, windows: int = 10) -> list[str]:
    result = verify_dataset(place.root, "crops", no_progress)
    assert f"{windows} windows" in result.checked
    return result.problems


def test_registry_rebuild(place: Place, few: Path) -> None:
    place.ingest(few, "one", copy="stream")
    place.ingest(few, "two", copy="stream")
    assert sorted(rebuild_registry(place.root)) == ["one", "two"]


# ------------------------------------------------------------------------------ what goes wrong


@pytest.fixture
def remote_place(place: Place) -> Place:
    if place.kind in ("local", "weka"):
        pytest.skip("for the two kinds of servers")
    return place


@pytest.fixture
def through(
    remote_place: Place, servers: dict[str, ObjectServer], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    """A proxy in front of the root's server, which everything goes through from now on."""
    server = servers[remote_place.kind]
    hurry(monkeypatch)
    with proxy(server.address) as found:
        for key, value in server.reached_at(found.address).items():
            monkeypatch.setenv(key, value)
        yield found


def test_a_proxy_full_of_faults_changes_nothing(
    through: Proxy, place: Place, small: Path, reference: Path
) -> None:
    through.faults = through.looking_faults = through.writing_faults = 0.2
    place.ingest(small)
    assert set(through.done) >= set(Proxy.WRITING) | set(Proxy.LOOKING)
    place.machine("b")
    through.seen.clear()
    assert_same(samples(), samples(root=reference))
    assert list(read_registry(place.root)) == ["crops"]
    assert _verified(place) == []


def test_unchanged_nothing_is_sent_or_read(through: Proxy, place: Place, few: Path) -> None:
    place.ingest(few)
    through.reset()
    assert not any(outcome.ran for outcome in place.ingest(few))
    assert {Path(name).name for name in through.written} == {".crops.lease"}
    assert not [name for name in through.fetched if "/samples/" in name or "/windows/" in name]
    place.machine("b")
    through.reset()
    assert not any(outcome.ran for outcome in place.ingest(few))
    assert {Path(name).name for name in through.written} == {".crops.lease"}
    # Which samples there are, but none of them.
    assert not [name for name in through.fetched if name.endswith(".npy") or "/windows/" in name]


def test_a_split_is_read_from_the_server_once(through: Proxy, place: Place, few: Path) -> None:
    place.ingest(few, copy="stream")
    place.machine("b")
    through.reset()
    first = samples()
    arrays = {name: n for name, n in through.fetched.items() if name.endswith(".npy")}
    assert set(arrays.values()) == {1} and len(arrays) == 2
    through.reset()
    assert_same(samples(), first)
    assert not [name for name in through.fetched if not name.endswith("metadata.json")]


def test_workers_of_a_loader_fetch_for_themselves(remote_place: Place, few: Path) -> None:
    """They are forked from a process that has a connection, which they can't use."""
    remote_place.ingest(few, copy="stream")
    whole = {s["window"]: s for s in EvalDataset("crops", "train")}
    remote_place.machine("b")
    dataset = EvalDataset("crops", "train")
    for batch in dataset.loader(batch_size=3, num_workers=2):
        for k, window in enumerate(batch["window"]):
            assert batch["sentinel2_l2a"][k].equal(whole.pop(window)["sentinel2_l2a"])
    assert not whole


def test_a_kill_in_any_stage_is_made_up_for(
    remote_place: Place, small: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies before each of its writes in turn; the next one goes on."""
    puts = {"left": 0}
    real = WritableObjects._put

    async def put(self: WritableObjects, name: str, data: bytes, seen: Any) -> Any:
        if not name.endswith(".lease"):
            if puts["left"] == 0:
                raise _Killed
            puts["left"] -= 1
        return await real(self, name, data, seen)

    monkeypatch.setattr(WritableObjects, "_put", put)
    place, k, stopped = remote_place, 0, 0
    while True:
        puts["left"] = k
        place.machine("ab"[k % 2])  # and goes on on another machine
        try:
            place.ingest(small, copy="stream")
            break
        except _Killed:
            stopped += 1
        k += 1
    assert stopped >= 5
    puts["left"] = 10_000
    assert_same(samples(), samples(root=reference))
    (shard,) = _shard_names(place)
    assert (reference / "crops" / "samples" / shard).is_dir()  # as if nothing had happened
    assert {Path(n).parent.name for n in place.names() if "/samples/" in n} == {shard}


class _Killed(Exception):
    """Nobody expects it, so nobody makes up for it."""


def _shards(place: Place) -> int:
    return len(require_metadata(place.root, "crops").shards)


def test_of_two_machines_one_waits_or_is_told(remote_place: Place, few: Path) -> None:
    place = remote_place
    job = place.job(few)
    with pipeline.dataset_lock(job):
        place.machine("b")
        other = place.job(few)
        with (
            pytest.raises(
                LockedError,
                match=r"crops is being ingested: .*, process \d+ holds .*\.crops\.lease",
            ),
            pipeline.dataset_lock(other, timeout_s=0.0),
        ):
            pass
    with pipeline.dataset_lock(other, timeout_s=0.0):
        pass


def test_the_lease_of_a_dead_process_ends(
    remote_place: Place, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its own machine at once, on others when its time is over."""
    place = remote_place
    job = place.job(few)
    monkeypatch.setattr(lease.Lease, "renew", lambda *_: None)  # as if killed
    with pipeline.dataset_lock(job):
        pass
    with pipeline.dataset_lock(place.job(few), timeout_s=0.0):
        pass
    place.machine("b")
    with (
        pytest.raises(LockedError, match="ends by itself at"),
        pipeline.dataset_lock(place.job(few), timeout_s=0.0),
    ):
        pass
    later = time.time() + lease.LEASE_S + 1
    monkeypatch.setattr(lease.time, "time", lambda: later)
    with pipeline.dataset_lock(place.job(few), timeout_s=0.0):
        pass


def test_who_has_lost_the_lease_publishes_nothing(
    remote_place: Place, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = remote_place
    job = place.job(few, copy="stream")
    with pipeline.dataset_lock(job):
        values: dict[str, Any] = {}
        for stage in pipeline.STAGES[:4]:
            values[stage] = pipeline.run_stage(job, stage, values).value
        # Its clock stands still, so it doesn't know; another machine has taken over meanwhile.
        place.objects.run(place.objects.delete([".crops.lease"]))
        place.machine("b")
        place.ingest(few, copy="stream", display_name="the other")
        with pytest.raises(OutdatedError, match=r"metadata\.json was written by another process"):
            pipeline.run_stage(job, "registry_entry", values)
    assert require_metadata(place.root, "crops").spec.display_name == "the other"


def test_a_lease_that_can_not_be_renewed_is_lost(
    remote_place: Place, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    place = remote_place
    job = place.job(few)
    with pipeline.dataset_lock(job):
        held, first = job.store._holding.lease, time.time()
        while held.holder.until < first + lease.LEASE_S + 0.3:  # it is renewed again and again
            time.sleep(0.01)
        place.objects.run(place.objects.put(".crops.lease", b"somebody else's"))
        while held.holder.until:
            time.sleep(0.01)
        with pytest.raises(StoreError, match=r"is lost \(another process took it\); run again"):
            job.store.send()


def test_machines_that_publish_at_once_lose_no_entry(remote_place: Place, few: Path) -> None:
    place, names = remote_place, [f"crops_{k}" for k in range(4)]
    jobs = []
    for name in names:
        place.machine(name)
        jobs.append(place.job(few, name, copy="stream"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(pipeline.ingest, jobs))
    assert sorted(read_registry(place.root)) == names


def test_a_removal_that_was_stopped_is_finished(
    remote_place: Place, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = remote_place
    place.ingest(few, copy="stream")
    with monkeypatch.context() as patch:
        patch.setattr(RemoteStore, "erase", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            remove_dataset(place.root, "crops")
    assert read_registry(place.root) == {}
    assert place.names() > {"registry.json"}
    assert cli.main(["remove", "--name", "crops", "--yes"]) == 0
    assert place.names() == {"registry.json"}


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_nothing_names_any_more_goes_after_an_hour(
    remote_place: Place, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = remote_place
    place.ingest(few, copy="stream")
    job = place.job(few, copy="stream")
    pipeline.forget(job)
    pipeline.ingest(job)
    old = {name for name in place.names() if "/samples/" in name}
    new = _shard_names(place)
    assert {Path(name).parent.name for name in old} > new
    later = time.time() + 3601
    monkeypatch.setattr(leftovers, "_now", lambda _: later)
    place.ingest(few, copy="stream")
    assert {Path(n).parent.name for n in place.names() if "/samples/" in n} == new
    assert len(samples()["train"]) > 0


def _shard_names(place: Place) -> set[str]:
    return {shard.name for shard in require_metadata(place.root, "crops").shards}


def test_damage_in_the_store_is_found(remote_place: Place, few: Path) -> None:
    place = remote_place
    place.ingest(few)
    names = sorted(place.names())
    target = next(name for name in names if name.endswith("target.npy"))
    raster = next(name for name in names if name.endswith("geotiff.tif"))
    gone = next(name for name in names if name.endswith("items.json"))
    for name in (target, raster):
        data = bytearray(place.read(name))
        data[-1] ^= 1
        place.objects.run(place.objects.put(name, bytes(data)))
    place.objects.run(place.objects.delete([gone]))
    problems = "\n".join(_verified(place, 6))
    for name in (target, raster.partition("/layers/")[0], gone.rpartition("/")[0]):
        assert name.removeprefix("crops/") in problems
    place.machine("b")
    with pytest.raises(IntegrityError, match=r"target\.npy arrived with CRC32C"):
        samples()
    assert cli.main(["ingest", "--name", "crops", "--source", str(few), "--overwrite"]) == 0
    assert _verified(place, 6) == []
    assert len(samples()["train"]) > 0


def test_a_root_that_is_out_of_reach_says_what_to_set(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place.kind == "local":
        pytest.skip("it is never")
    monkeypatch.setenv("EVAL_INGEST_ANSWER_SECONDS", "1")
    address = "http://127.0.0.1:9"
    for variable in ("AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST", "WEKA_ENDPOINT_URL"):
        if variable in os.environ:
            monkeypatch.setenv(variable, address)
    with pytest.raises(StoreError, match=r"check the network.* or set OLMOEARTH_EVAL_DATASETS"):
        read_registry(place.root)


def test_the_default_root_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLMOEARTH_EVAL_DATASETS", raising=False)
    with pytest.raises(
        StoreError,
        match=r"weka://dfive-default/olmoearth/eval_datasets can't be reached: /weka/dfive-default "
        r"is not mounted here; set OLMOEARTH_EVAL_DATASETS .*, or WEKA_ENDPOINT_URL",
    ):
        open_root(Settings.load())


# ------------------------------------------------------------------------------------ the cache


def test_the_cache_stays_within_its_limit(
    remote_place: Place, small: Path, reference: Path, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Shards are small then, and those used longest ago make room, also while ingesting."""
    size = sum(p.stat().st_size for p in (reference / "crops").glob("samples/*/*.npy"))
    monkeypatch.setenv("EVAL_INGEST_CACHE_GIB", str(size * 0.6 / 2**30))
    place = remote_place
    place.ingest(small, copy="stream")
    assert _shards(place) > 3
    assert _cached(tmp_path / "cache_a") <= 0.6 * size
    place.machine("b")
    assert_same(samples(), samples(root=reference))
    assert 0 < _cached(tmp_path / "cache_b") <= 0.6 * size


def _cached(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob("roots/*/*/samples/*/*.npy"))


def test_other_file_systems_of_fsspec_work_too(
    small: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"memory://{tmp_path.name}/evals"
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", url)
    monkeypatch.setenv("EVAL_INGEST_CACHE", str(tmp_path / "cache"))
    place = Place("memory", url, lambda name: None)
    place.ingest(small)
    assert_same(samples(), samples(root=reference))
    assert not any(outcome.ran for outcome in place.ingest(small))
    assert list(read_registry(place.root)) == ["crops"]
    assert _verified(place) == []
    remove_dataset(place.root, "crops")
    assert place.names() == {"registry.json"}


# --------------------------------------------------------------- everything that a person can do


def test_the_command_line_on_a_remote_root(
    remote_place: Place,
    few: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = remote_place
    if place.kind == "gs":
        pytest.skip("one server will do")

    def run(*arguments: str) -> str:
        assert cli.main(list(arguments)) == 0, capsys.readouterr()
        return capsys.readouterr().out

    run("ingest", "--name", "crops", "--source", str(few))
    assert "catalog/crops.yaml" in place.names()
    place.machine("b")
    listed = run("list")
    assert f"eval root {place.url}" in listed and "crops" in listed
    assert "nothing to do" in run("ingest", "--name", "crops")  # the catalog travels too
    assert f"{place.url}/crops" in run("info", "--name", "crops")
    assert "everything is as it was written" in run("verify", "--name", "crops")
    drawn = ("crops/README.md", "crops/report/report.html")
    for name in drawn:
        place.write(name, b"of before")
    assert f"look at {place.url}/crops/report/report.html" in run("report", "--name", "crops")
    assert all(len(place.read(name)) > 500 for name in drawn)
    monkeypatch.setenv("EVAL_INGEST_STUDIO_ROOTS", str(few.parent))
    assert "registered" in run("discover")
    run("export", "--name", "crops", "--to", str(tmp_path / "out"))
    assert_same(samples(root=tmp_path / "out"), samples())
    assert list((tmp_path / "out" / "crops" / "windows").glob("*/*/metadata.json"))
    sweep = ["--encoder", "pixels", "--datasets", "all"]
    assert "crops" in run("sweep", *sweep, "--out", str(tmp_path / "sweep"))
    assert run("registry", "rebuild").startswith(f"{place.url}/registry.json: 1 datasets: crops")
    entry = json.loads(place.read("registry.json"))["datasets"]["crops"]
    expected = f"/weka/{BUCKET}/" if place.kind == "weka" else place.url
    assert entry["weka_path"].startswith(expected) and entry["weka_path"].endswith("/evals/crops")
    assert f"is removed from {place.url}" in run("remove", "--name", "crops", "--yes")
    assert not [name for name in place.names() if name.startswith("crops/")]


def test_dagster_on_a_remote_root(
    remote_place: Place, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The front door, a stage of its own, and the code location where the root is down."""
    place = remote_place
    if place.kind == "gs":
        pytest.skip("one server will do")
    spec = DatasetSpec.parse({"name": "crops", "source": str(few)}, "test")
    add_spec(Settings.load(), spec)
    with dg.DagsterInstance.ephemeral() as instance:
        job = build_defs(Settings.load()).resolve_implicit_global_asset_job_def()
        front_door = [dg.AssetKey("crops")]
        assert job.execute_in_process(instance=instance, asset_selection=front_door).success
        assert len(samples()["train"]) > 0
        place.machine("b")
        stage = dg.materialize(
            STAGE_ASSETS,
            selection=["norm_stats"],
            partition_key="crops",
            resources=build_resources(Settings.load()),
            instance=instance,
        )
        (logged,) = stage.asset_materializations_for_node("norm_stats")
        assert logged.metadata["path"].value == f"{place.url}/crops/norm_stats.json"
        assert logged.metadata["was up to date"].value is True
    monkeypatch.setenv("EVAL_INGEST_ANSWER_SECONDS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert build_defs(Settings.load()).resolve_asset_graph().get_all_asset_keys()


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, r"is not allowed with .*(role Storage Object User|check that they may list)"),
        (403, r"is not allowed with .*(role Storage Object User|check that they may list)"),
        (503, r"failed 5 times: .*(503|Service Unavailable).*; check the network"),
        (429, r"failed 5 times: .*429.*; check the network"),
    ],
)
def test_a_server_that_refuses_everything_is_told_in_one_line(
    place: Place,
    servers: dict[str, ObjectServer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
    told: str,
) -> None:
    if place.kind == "local":
        pytest.skip("no server there")
    hurry(monkeypatch)
    with proxy(servers[place.kind].address) as between:
        between.refused = status
        for name, value in servers[place.kind].reached_at(between.address).items():
            monkeypatch.setenv(name, value)
        if place.kind == "weka":
            monkeypatch.delenv("AWS_ENDPOINT_URL")
            monkeypatch.setenv("WEKA_ENDPOINT_URL", between.address)
        assert cli.main(["list"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: eval root {place.url}: looking at registry.json ")
        assert re.search(told, line)


def test_a_root_that_can_not_be_made_is_told(few: Path) -> None:
    with pytest.raises(StoreError, match=r"/proc/nope can't be made; set OLMOEARTH_EVAL_DATASETS"):
        pipeline.ingest(make_job(few, Path("/proc/nope")))


def test_a_damaged_copy_in_the_cache_is_fetched_again(remote_place: Place, few: Path) -> None:
    remote_place.ingest(few, copy="stream")
    expected = samples()
    cache = remote_place.root.path
    files = [cache / "registry.json", *(cache / "crops").glob("metadata.json")]
    files += (cache / "crops").glob("*/index.*.arrow")
    assert len(files) == 5
    for path in files:
        path.write_bytes(path.read_bytes().replace(b"crops", b"crabs").replace(b"PAR1", b"PAR2"))
    assert_same(samples(), expected)
    assert list(read_registry(remote_place.root)) == ["crops"]
