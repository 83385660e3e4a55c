"""A write or a deletion in a bucket that goes wrong loses nothing, and the next run is whole.

Every change is tried by `python -m eval_ingest_tests.support.bucket_faults`; here, some of them.
"""

import asyncio
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import pytest

from eval_ingest.core import registry_text
from eval_ingest.errors import IntegrityError, UnknownDatasetError
from eval_ingest.objects import retry
from eval_ingest.objects.backend import Entries, Entry
from eval_ingest.objects.filesystems import root_of
from eval_ingest.settings import Settings
from eval_ingest.store.registry import rebuild_registry, remove_dataset, require_metadata
from eval_ingest.store.roots import remote_windows
from eval_ingest.store.roots.open import open_root
from eval_ingest_tests.support.bucket_faults import ROOT, world
from eval_ingest_tests.support.memory_bucket import Fault, MemoryBackend, MemoryBucket, in_memory


def test_whatever_change_goes_wrong_the_next_run_is_whole(tmp_path: Path) -> None:
    rng = random.Random(1)
    with world(tmp_path) as found:
        for name in ("another split", "remove", "adopt", "registry rebuild"):
            work = found.work(name)
            numbers = range(1, len(work.changes) + 1)
            # The last ones are where what is new takes the place of what was.
            for number in (rng.choice(numbers), numbers[-2:][0]):
                found.fail(work, number, rng.choice(get_args(Fault)), elsewhere=number % 2 == 0)


OTHER = registry_text.Entry("other", '"other"', '{"a": 1}')


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryBucket]:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", ROOT)
    monkeypatch.setenv("EVAL_INGEST_CACHE", str(tmp_path / "cache"))
    with in_memory() as found:
        yield found


def test_a_large_dataset_is_removed_and_listed_in_portions(
    bucket: MemoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 240,000 windows the files are millions: too many to be listed, or deleted, at once."""
    top = f"{root_of(ROOT)}/crops"
    names = [f"g{k % 2}/w{k}/{file}" for k in range(60) for file in "abcd"]
    names += ["stray", "g0/stray"]
    for name in (".ingested_by_eval_ingest", *(f"windows/{name}" for name in names)):
        bucket.objects[f"{top}/{name}"] = b"x", 0.0
    listed, tasks, find, delete = [0], [0], MemoryBackend.find, MemoryBackend.delete

    async def found(self: MemoryBackend, folder: str, prefix: str = "") -> Entries:
        entries = await find(self, folder, prefix)
        listed.append(len(entries))
        return entries

    async def deleted(self: MemoryBackend, entries: Sequence[Entry]) -> None:
        tasks.append(len(asyncio.all_tasks()))
        await delete(self, entries)

    async def below(self: MemoryBackend, folder: str) -> Entries:
        inside = f"{self.path(folder)}/"
        rests = {path.removeprefix(inside) for path in bucket.objects if path.startswith(inside)}
        firsts = {rest.partition("/")[0]: "/" in rest for rest in rests}
        return [Entry(f"{folder}/{n}".strip("/"), 0, "", folder=f) for n, f in firsts.items()]

    monkeypatch.setattr(MemoryBackend, "list", below)
    monkeypatch.setattr(MemoryBackend, "find", found)
    monkeypatch.setattr(MemoryBackend, "delete", deleted)
    monkeypatch.setattr(MemoryBackend, "deleted_at_once", 1)
    monkeypatch.setattr(retry, "AT_ONCE", 10)
    monkeypatch.setattr(remote_windows, "_LISTED_TOGETHER", 5)
    root = open_root(Settings.load())
    assert sorted(root.dataset("crops").windows.paths()) == sorted(set(names) - {"stray"})
    remove_dataset(root, "crops")
    assert max(listed) <= 5 and 10 < max(tasks) < 25
    assert not [path for path in bucket.objects if path.startswith(f"{top}/")]


@pytest.mark.parametrize("damage", ["", '{"datasets": {'])
def test_entries_that_a_damaged_registry_has_lost_are_restored_on_any_machine(
    damage: str, bucket: MemoryBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{root_of(ROOT)}/registry.json"
    copy = '{"datasets": {"theirs": {"weka_path": "/weka/theirs", "x": 1e-05}}}'
    bucket.objects[path] = copy.encode(), 0.0
    root = open_root(Settings.load())
    root.update_registry(lambda text: text.put([OTHER]))
    assert len([name for name in bucket.objects if "/registry.2" in name]) == 1
    bucket.objects[path] = damage.encode(), 0.0
    monkeypatch.setenv("EVAL_INGEST_CACHE", str(tmp_path / "another"))
    entries = rebuild_registry(open_root(Settings.load()))
    assert entries["theirs"] == {"weka_path": "/weka/theirs", "x": 1e-05}


def test_a_file_of_others_is_kept_once_and_not_by_each_machine(
    bucket: MemoryBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{root_of(ROOT)}/registry.json"
    for machine in ("a", "b", "c"):
        monkeypatch.setenv("EVAL_INGEST_CACHE", str(tmp_path / machine))
        bucket.objects[path] = b'{"datasets": {"theirs": {"weka_path": "/weka/theirs"}}}', 0.0
        open_root(Settings.load()).update_registry(lambda text: text.put([OTHER]))
    assert len([name for name in bucket.objects if "/registry.2" in name]) == 1


def test_a_damaged_dataset_is_no_unknown_one_on_any_machine(bucket: MemoryBucket) -> None:
    """Whose it is, is said by files that this machine hasn't got."""
    top = f"{root_of(ROOT)}/crops"
    bucket.objects |= {f"{top}/metadata.json": (b'{"a": 1}', 0.0)}
    with pytest.raises(UnknownDatasetError):
        require_metadata(open_root(Settings.load()), "crops")
    bucket.objects |= {f"{top}/.ingested_by_eval_ingest": (b"", 0.0)}
    with pytest.raises(IntegrityError, match=r"crops/metadata\.json"):
        require_metadata(open_root(Settings.load()), "crops")
