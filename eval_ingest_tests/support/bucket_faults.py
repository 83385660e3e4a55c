"""Each write and each deletion in a bucket goes wrong in turn: nothing is lost, the next is whole.

python -m eval_ingest_tests.support.bucket_faults [N [WORK...]]     every Nth change: a table
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import pytest

from eval_ingest import api
from eval_ingest.adopting import adopt
from eval_ingest.errors import EvalIngestError
from eval_ingest.integrations import huggingface
from eval_ingest.settings import Settings
from eval_ingest.store.registry import read_registry, rebuild_registry
from eval_ingest_tests.support import factories, faults, stopping
from eval_ingest_tests.support.hub import Hub, running
from eval_ingest_tests.support.killing import Run
from eval_ingest_tests.support.memory_bucket import Died, Fault, MemoryBucket, in_memory

ROOT = "s3://memory/evals"
_SEEDED = {"splits": {"strategy": "random", "seed": 5}}
NAMES = ("first ingest", "packed samples alone", "another split", "a changed source",
         "everything anew", "remove", "adopt", "give back", "registry rebuild",
         "publish")  # fmt: skip


@dataclass(frozen=True)
class State:
    """A moment: what the bucket holds, and what this machine keeps of it."""

    objects: dict[str, tuple[bytes, float]]
    cache: Path


@dataclass
class Work:
    """Something that changes the bucket, and what it is like before and after."""

    name: str
    do: Callable[[], object]
    before: State
    removes: bool = False
    again: Callable[[], object] | None = None
    """What is done after a fault, where that isn't the same: shards may then be named otherwise."""
    objects: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    old_values: dict[str, str] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)


class World:
    """A bucket in memory, this machine's cache, and every kind of work."""

    def __init__(self, folder: Path, bucket: MemoryBucket, hub: Hub) -> None:
        self.folder, self.bucket, self.hub = folder, bucket, hub
        hub.change = bucket.change
        self.cache = folder / "cache"
        self.source = factories.segmentation(folder / "source", windows=6, timesteps=1, size=16)
        self.changed = folder / "changed"
        faults.edit(self.source, self.changed)

    def work(self, name: str) -> Work:
        """One of NAMES, prepared: done once, without a fault."""
        run = self._run
        changed = run(source=str(self.changed), spec={"max_invalid_fraction": 0.5})
        match name:
            case "first ingest":
                return self._work(name, run().do, self.other)
            case "packed samples alone":
                return self._work(name, run(spec={"copy": "stream"}).do, self.other)
            case "another split":
                return self._work(name, run(spec=_SEEDED).do, self.ours)
            case "a changed source":
                return self._work(name, changed.do, self.ours)
            case "everything anew":
                return self._work(name, run(overwrite=True).do, self.ours, again=run().do)
            case "adopt":
                return self._work(name, self._adopt, self.theirs)
            case "registry rebuild":
                objects = self.ours.objects.copy()
                del objects["memory/evals/registry.json"]
                return self._work(name, self._rebuild, State(objects, self.ours.cache))
            case "publish":
                return self._work(name, self._publish, self.ours)
        before = self.ours if name == "remove" else self._prepared(self.theirs, self._adopt)
        return self._work(name, lambda: api.remove("crops", ROOT), before, removes=True)

    @functools.cached_property
    def other(self) -> State:
        """A root with another dataset alone."""
        return self._prepared(State({}, self.folder / "nothing"), self._run(name="other").do)

    @functools.cached_property
    def ours(self) -> State:
        """The same with the dataset, too."""
        return self._prepared(self.other, self._run().do)

    def _run(self, **more: Any) -> Run:
        cache = {"EVAL_INGEST_CACHE": str(self.cache)}
        return replace(Run(str(self.source), ROOT, environment=cache), **more)

    @staticmethod
    def _rebuild() -> None:
        rebuild_registry(faults.opened(ROOT))

    @staticmethod
    def _publish() -> None:
        huggingface.publish("crops", "hf://org/evals", root=ROOT, licence="MIT", citation="")

    def _adopt(self) -> None:
        adopt(Settings(eval_root=ROOT, workers=2, cache=str(self.cache)), "crops")

    def _prepared(self, before: State, do: Callable[[], object]) -> State:
        self._restore(before)
        do()
        kept = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copytree(self.cache, kept, dirs_exist_ok=True)
        return State(dict(self.bucket.objects), kept)

    @functools.cached_property
    def theirs(self) -> State:
        """The same where another tool has left and registered the dataset."""
        local = stopping.their_root(self.folder / "theirs")
        entries = json.loads(self.other.objects["memory/evals/registry.json"][0])["datasets"]
        text = json.dumps({"datasets": entries})[:-2] + f', "crops": {stopping.THEIRS}' + "}}"
        found = self.other.objects | {"memory/evals/registry.json": (text.encode(), 1e9)}
        for path in (local / "crops").rglob("*"):
            if path.is_file():
                found[f"memory/evals/{path.relative_to(local)}"] = path.read_bytes(), 1e9
        return State(found, self.other.cache)

    def _work(self, name: str, do: Callable[[], object], before: State, **more: Any) -> Work:
        work = Work(name, do, before, **more)
        self._restore(before)
        work.other = faults.values(ROOT, "other")
        if self._is_ours():
            work.old_values = faults.values(ROOT)
        with self.bucket.failing() as changes:
            do()
        work.changes, work.objects = list(changes), self._objects()
        work.values = {} if work.removes else faults.values(ROOT)
        return work

    def _is_ours(self) -> bool:
        return "fingerprint" in read_registry(faults.opened(ROOT)).get("crops", {})

    def _restore(self, state: State) -> None:
        self.bucket.objects = dict(state.objects)
        self.hub.clear()
        shutil.rmtree(self.cache, ignore_errors=True)
        if state.cache.exists():
            shutil.copytree(state.cache, self.cache)

    def _objects(self) -> dict[str, str]:
        repos = self.hub.repos
        published = {
            f"hub/{name}": "there" if name == "registry.json" else hashlib.sha256(data).hexdigest()
            for name, data in (self.hub.files("org/evals") if repos else {}).items()
        }
        return published | {
            name: faults.plain_object(name, data, ROOT) if "/catalog/" not in name else "there"
            for name, (data, _) in self.bucket.objects.items()
            if not name.endswith(".lease") and "/registry.2" not in name
        }

    def fail(self, work: Work, number: int, fault: Fault, elsewhere: bool) -> None:
        """One case: a change goes wrong, and the work is done again, perhaps on another machine."""
        self._restore(work.before)
        with self.bucket.failing(number, fault), contextlib.suppress(Died, EvalIngestError):
            work.do()
        if elsewhere:
            shutil.rmtree(self.cache)
            for name in [n for n in self.bucket.objects if n.endswith(".lease")]:
                del self.bucket.objects[name]  # it has ended by then
        self._check_stopped(work)
        if not work.removes or self._is_ours():
            (work.again or work.do)()
        if work.again is None:
            faults.expect("objects", faults.differences(self._objects(), work.objects), [])
        faults.expect("the other dataset", faults.values(ROOT, "other"), work.other)
        if not work.removes:
            faults.expect("values", faults.values(ROOT), work.values)
            faults.expect("damaged", faults.verified(ROOT), [])

    def _check_stopped(self, work: Work) -> None:
        api.list_datasets(ROOT)  # any command at all
        faults.expect("the other dataset", faults.values(ROOT, "other"), work.other)
        if self._is_ours():
            now = faults.values(ROOT)
            if now not in (work.values, work.old_values):
                raise AssertionError(f"neither the old samples nor the new: {sorted(now)}")
        elif work.old_values and not work.removes:
            raise AssertionError("the old version is gone")


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """A bucket of its own, as this process's eval root."""
    environment = {"OLMOEARTH_EVAL_DATASETS": ROOT, "EVAL_INGEST_CACHE": str(folder / "cache"),
                   "EVAL_INGEST_WORKERS": "2"}  # fmt: skip
    with (
        in_memory() as bucket,
        patch.dict(os.environ, environment),
        running() as hub,
        pytest.MonkeyPatch.context() as changed,
    ):
        hub.is_used_by(changed)
        yield World(folder, bucket, hub)


def main(every: int = 1, *names: str) -> int:
    """Fail every change of each kind of work, in each way."""
    failed = 0
    print("| | changes | cases | lost |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, world(Path(folder)) as found:
        for work in map(found.work, names or NAMES):
            lost, tried = [], 0
            for fault in get_args(Fault):
                for number in range(1, len(work.changes) + 1, every):
                    tried += 1
                    try:
                        found.fail(work, number, fault, elsewhere=number % 2 == 0)
                    except Exception as error:
                        what = f"{work.name}, {fault} at {number}, {work.changes[number - 1]}"
                        lost.append(f"{what}: {type(error).__name__} {str(error)[:600]}")
            failed += len(lost)
            print(f"| {work.name} | {len(work.changes)} | {tried} | {len(lost)} |", flush=True)
            print(*lost, sep="\n", file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(main(*map(int, sys.argv[1:2]), *sys.argv[2:]), 1))
