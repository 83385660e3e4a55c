"""The one door to an eval root: one contract for all kinds, and what stress may not do."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval_ingest import EvalDataset, cli, pipeline
from eval_ingest.core.entry import METADATA_VERSION
from eval_ingest.core.spec import SPLITS
from eval_ingest.engine import no_progress
from eval_ingest.errors import IntegrityError, NewerVersionError, OutdatedError, StoreError
from eval_ingest.settings import Settings
from eval_ingest.store.atomic import write_bytes
from eval_ingest.store.ownership import Whose, mark
from eval_ingest.store.registry import read_registry, remove_dataset
from eval_ingest.store.roots.base import DatasetStore, EvalRoot
from eval_ingest.store.roots.lease import _Holder
from eval_ingest.store.seal import sealed_json
from eval_ingest.store.shards import PackRow, ShardWriter, plan_arrays
from eval_ingest.verifying import verify_dataset
from eval_ingest.watching import State, look_at, survey
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import places
from eval_ingest_tests.support.places import Place
from eval_ingest_tests.support.sealed import read_sealed_json
from eval_ingest_tests.support.servers import ObjectServer
from eval_ingest_tests.support.stalled import Stalled

place = places.place


# ------------------------------------------------------------------------------- the contract


def test_a_file_that_is_sent_is_read_on_another_machine(place: Place) -> None:
    store = place.root.dataset("crops")
    assert not store.is_held and store.read(store.layout.norm_stats, _text(store)) is None
    with store.hold(1.0, "test"):
        assert store.is_held
        write_bytes(store.layout.norm_stats, b"one")
        store.send()
    assert not store.is_held
    place.machine("b")
    other = place.root.dataset("crops")
    assert other.read(other.layout.norm_stats, _text(other)) == b"one"
    with other.hold(1.0, "test"):
        other.layout.norm_stats.unlink()
        other.send()
    place.machine("a")
    assert store.read(store.layout.norm_stats, _text(store)) is None


def _text(store: DatasetStore) -> Callable[[], bytes | None]:
    path = store.layout.norm_stats
    return lambda: path.read_bytes() if path.is_file() else None


def test_a_dataset_is_published_withdrawn_and_erased(place: Place) -> None:
    store = place.root.dataset("crops")
    assert not store.is_there()
    with store.hold(1.0, "test"):
        write_bytes(store.layout.window_index, b"of ours")
        store.send()
        assert place.root.dataset_names() == []
        store.publish(b"{}", b"{}")
        assert place.root.dataset_names() == ["crops"]
    place.machine("b")
    other = place.root.dataset("crops")
    assert other.is_there()
    with other.hold(1.0, "test"):
        other.withdraw()
        assert place.root.dataset_names() == []
        other.erase()
    assert not other.is_there()
    assert place.names() == set()


def test_a_dataset_that_was_only_begun_can_be_removed(place: Place) -> None:
    store = place.root.dataset("crops")
    for begun in (store.layout.staging, store.layout.archive, store.layout.ahead, None):
        if begun is not None:
            write_bytes(begun / "file", b"of the source")
        else:
            with store.hold(1.0, "test"):
                mark(store, Whose.INGESTED)
        assert store.is_there()
        remove_dataset(place.root, "crops")
        assert not store.is_there() and not store.layout.path.exists()
        assert place.names() == {"registry.json"}


def test_a_shard_is_put_found_whole_and_missed(place: Place, few: Path) -> None:
    job = place.job(few)
    store, config = job.store, job.config
    steps = {modality.name: 1 for modality in config.modalities}
    rows = [PackRow("g", f"w{k}", "d", 4, 4, steps) for k in (0, 1)]
    plans = plan_arrays(config, rows)
    with store.hold(1.0, "test"):
        writer = ShardWriter.create(store.layout.samples / ".shard.tmp", plans)
        for k in (0, 1):
            writer.write(k, {p.name: np.full(p.shape_of(k), k + 1, p.dtype) for p in plans})
        name = writer.commit(store, "abc", "key", list(enumerate(rows)))
    place.machine("b")
    other = place.root.dataset("crops")
    arrays = _recorded(other, name)
    for array, recorded in arrays.items():
        found = np.load(other.array(name, array, recorded))
        assert found.reshape(2, -1).tolist() == [[1] * found[0].size, [2] * found[0].size]
        other.verify(other.layout.array(name, array), recorded)
    place.remove(f"crops/samples/{name}/target.npy")
    with other.hold(1.0, "test"), pytest.raises(IntegrityError, match="missing"):
        other.look_at(other.layout.array(name, "target"), arrays["target"])
    with pytest.raises(IntegrityError, match="missing"):
        other.verify(other.layout.array(name, "target"), arrays["target"])
    told = "(export it again, or|is missing;) see eval-ingest verify"
    with pytest.raises(IntegrityError, match=told):
        list(other.copy_out([f"samples/{name}/target.npy"], Path("/dev/null")))


def _recorded(store: DatasetStore, shard: str) -> dict[str, Any]:
    from eval_ingest.store.shards import read_shard

    with store.hold(1.0, "test"):
        found = read_shard(store, shard, "key")
    assert found is not None and found[0].num_rows == 2
    return found[1]


def test_what_others_wrote_in_a_folder_goes(place: Place) -> None:
    store = place.root.dataset("crops")
    folder = store.layout.path / "some"
    with store.hold(1.0, "test"):
        for name in ("kept", "goes"):
            write_bytes(folder / name, name.encode())
        store.send()
        store.keep_only(folder, ["kept"])
        store.send()
    assert {n for n in place.names() if "/some/" in n} == {"crops/some/kept"}


# ------------------------------------------------------------------- packed arrays that are gone


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_packed_array_that_is_gone_is_packed_again(
    place: Place, few: Path, few_reference: Path, damage: str
) -> None:
    place.ingest(few, copy="stream")
    assert not any(outcome.ran for outcome in place.ingest(few, copy="stream"))
    gone = next(name for name in sorted(place.names()) if name.endswith(".npy"))
    if damage == "missing":
        place.remove(gone)
    else:
        place.write(gone, place.read(gone)[:-1])
    place.machine("b")
    ran = [outcome.stage for outcome in place.ingest(few, copy="stream") if outcome.ran]
    assert "weka_copy" in ran and "registry_entry" in ran
    assert verify_dataset(place.root, "crops", no_progress).problems == []
    for split in SPLITS:
        ours = EvalDataset("crops", split, normalize=None)
        theirs = EvalDataset("crops", split, root=few_reference, normalize=None)
        for one, other in zip(ours, theirs, strict=True):
            assert one["sentinel2_l2a"].equal(other["sentinel2_l2a"])


# ---------------------------------------------------------------------------- a stalled writer


def test_a_writer_that_stood_still_overwrites_nothing(
    place: Place, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops before one of its writes; another machine publishes; it goes on."""
    if place.kind not in _STOPS:
        pytest.skip("for the two kinds of servers")
    monkeypatch.setenv("EVAL_INGEST_ENGINE", "threads")
    for k, stop_at in enumerate(_STOPS[place.kind]):
        name = f"crops_{k}"
        place.machine("a")
        stalled = Stalled(place.job(few, name), partial(_within, stop_at))
        stalled.start()
        assert stalled.stopped.wait(60), f"{stop_at} was not written"
        place.objects.run(place.objects.delete([f".{name}.lease"]))  # as if it had ended
        place.machine("b")
        place.ingest(few, name, splits={"strategy": "random", "seed": k + 1})
        published = _contents(place, name)
        stalled.goes_on.set()
        stalled.join(120)
        assert isinstance(stalled.error, StoreError), stalled.error
        assert published.items() <= _contents(place, name).items()
        assert verify_dataset(place.root, name, no_progress).problems == []


_STOPS = {
    "s3": ("/windows/", "/.rslearn_dataset_index/", "/norm_stats.json"),
    "gs": ("/train/index.", "/samples/"),
}
"""Before which write the ingest stands still."""


def _within(part: str, name: str) -> bool:
    return part in name


def _contents(place: Place, name: str) -> dict[str, bytes]:
    return {n: place.read(n) for n in place.names() if n.startswith(f"{name}/")}


# ------------------------------------------------------------------------------ other versions


def test_what_a_newer_version_published_is_not_rebuilt(few: Path, tmp_path: Path) -> None:
    pipeline.ingest(make_job(few, tmp_path))
    for name in ("metadata.json", "opening.json"):
        path = tmp_path / "crops" / name
        content = read_sealed_json(path, "") or {}
        newer = {**content, "version": METADATA_VERSION + 1, "new": {"a": 1}}
        path.write_bytes(sealed_json(newer))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for do in (
        lambda: pipeline.ingest(make_job(few, tmp_path)),
        lambda: pipeline.ingest(make_job(few, tmp_path, splits={"seed": 7})),
        lambda: pipeline.run_stage(make_job(few, tmp_path), "window_index"),
        lambda: pipeline.forget(make_job(few, tmp_path)),
        lambda: EvalDataset("crops", "val", root=tmp_path),
    ):
        with pytest.raises(NewerVersionError, match=r"newer eval_ingest; .* upgrade it \(git pull"):
            do()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert list(read_registry(EvalRoot(tmp_path))) == ["crops"]


def test_what_can_not_be_read_can_be_removed(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path))
    for number, content in enumerate((b"", b"{}", b"not JSON", None)):
        pipeline.ingest(make_job(few, tmp_path, copy="stream"))
        path = tmp_path / "crops" / "metadata.json"
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert cli.main(["remove", "--name", "crops", "--yes"]) == 0, number
        assert not (tmp_path / "crops").exists()
        assert read_registry(EvalRoot(tmp_path)) == {}


def test_a_folder_that_is_not_ours_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path))
    for name in ("catalog", "theirs"):
        write_bytes(tmp_path / name / "config.json", b"{}")
        assert cli.main(["remove", "--name", name, "--yes"]) == 1
        assert (tmp_path / name / "config.json").exists()
    assert "no dataset 'theirs'" in capsys.readouterr().err


def test_who_opened_a_version_that_is_gone_is_told(few: Path, tmp_path: Path) -> None:
    pipeline.ingest(make_job(few, tmp_path, copy="stream"))
    opened = EvalDataset("crops", "train", root=tmp_path)
    shards = list((tmp_path / "crops" / "samples").iterdir())
    job = make_job(few, tmp_path, copy="stream")
    pipeline.forget(job)
    pipeline.ingest(job)
    for shard in shards:
        shutil.rmtree(shard)  # an hour later
    with pytest.raises(OutdatedError, match=r"opened is gone: .* again: EvalDataset\('crops'"):
        opened[0]
    again = EvalDataset("crops", "train", root=tmp_path)
    assert again[0]["target"].shape == again[1]["target"].shape


def test_a_machine_that_only_loads_needs_no_checksums(reference: Path) -> None:
    code = (
        "import sys; sys.modules['google_crc32c'] = None\n"
        "from eval_ingest import EvalDataset\n"
        "print(len(EvalDataset('crops', 'train', root=sys.argv[1])[0]['window']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(reference)], capture_output=True, text=True
    )
    assert done.returncode == 0 and int(done.stdout) > 0, done.stderr


# ---------------------------------------------------------------------------------------- names


def test_a_folder_with_colons_in_its_name_is_a_folder(
    place: Place, servers: dict[str, ObjectServer], few: Path, tmp_path: Path
) -> None:
    """To fsspec `::` joins two URLs; the other datasets of the bucket are there all the same."""
    if place.kind not in ("s3", "gs"):
        pytest.skip("for the two kinds of servers")
    for name in ("aaa::file", "crops"):
        shutil.copytree(few, tmp_path / "watched" / name)
    url = servers[place.kind].upload(tmp_path / "watched", f"{tmp_path.name}/watched")
    found = survey([url], Settings.load())
    assert found.down == {}
    states = {sighting.name: look_at(sighting, Settings.load()) for sighting in found.sightings}
    assert {name: state.state for name, state in states.items()} == {
        "aaa_file": State.NEW, "crops": State.NEW,
    }  # fmt: skip
    place.ingest(f"{url}/aaa::file", "aaa_file", copy="stream")  # type: ignore[arg-type]
    assert len(EvalDataset("aaa_file", "train")) > 0


# ----------------------------------------------------------------- what another one has written


def test_who_has_lost_the_lease_deletes_nothing_that_another_one_wrote(
    place: Place, few: Path
) -> None:
    if place.kind == "local":
        pytest.skip("a lock file of the machine's own is not lost")
    place.ingest(few, copy="stream")
    store = place.root.dataset("crops")
    with store.hold(1.0, "test"):
        place.write("crops/norm_stats.json", b"of another process")
        with pytest.raises(OutdatedError, match=r"norm_stats\.json was written by another"):
            store.remove([store.layout.norm_stats])
    assert place.read("crops/norm_stats.json") == b"of another process"


def test_what_a_newer_version_published_is_left_alone_in_every_root(
    place: Place, few: Path
) -> None:
    place.ingest(few, copy="stream")
    for name in ("metadata.json", "opening.json"):
        content = json.loads(place.read(f"crops/{name}"))
        del content["checksum"]
        place.write(f"crops/{name}", sealed_json({**content, "version": METADATA_VERSION + 1}))
    before = {name: place.read(name) for name in place.names()}
    place.machine("b")
    for do in (
        lambda: place.ingest(few, copy="stream"),
        lambda: pipeline.forget(place.job(few, copy="stream")),
        lambda: EvalDataset("crops", "val"),
    ):
        with pytest.raises(NewerVersionError, match=r"upgrade it \(git pull"):
            do()
    assert {name: place.read(name) for name in place.names()} == before


@pytest.mark.parametrize("said", [{"until": "x"}, {"until": None}, {"who": 5}, {"nonce": [1]}])
def test_a_lease_that_says_no_such_thing_is_none(said: dict[str, object]) -> None:
    whole = {"who": "host", "place": "host:/x", "nonce": "n", "until": 0}
    assert _Holder.parse(json.dumps(whole).encode()) == _Holder(**whole)  # type: ignore[arg-type]
    assert _Holder.parse(json.dumps({**whole, **said}).encode()) is None
