"""Ingests that are disturbed, and what must be true afterwards.

The short form of these checks is test_faults.py, the long one `make torture`.
"""

import contextlib
import copy
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from eval_ingest import EvalDataset
from eval_ingest.core.spec import SPLITS
from eval_ingest.engine import no_progress
from eval_ingest.errors import EvalIngestError, StoreError
from eval_ingest.settings import Settings
from eval_ingest.store.registry import read_metadata, read_registry
from eval_ingest.store.roots.base import DatasetStore, EvalRoot
from eval_ingest.store.roots.open import open_root
from eval_ingest.verifying import verify_dataset
from eval_ingest_tests.support import factories
from eval_ingest_tests.support.killing import KILLED, OUR_ERROR, Run, start, wait_until
from eval_ingest_tests.support.servers import ObjectServer

# ----------------------------------------------------------------------- what lies under a root

_TIMES = {"published_at", "updated_at", "ingested_at", "created_at", "checksum"}
"""Fields that say when something was done, and what depends on them: all that may differ."""


def snapshot(root: Path, name: str = "crops") -> dict[str, str]:
    """Every file of a dataset, and its entry in the registry: relative path to digest.

    Two ingests of the same source into roots of the same path give the same snapshot, byte for
    byte, but for the fields in _TIMES. `weka_path` is given relative to the root.
    """
    found = {}
    for path in sorted((root / name).rglob("*")):
        if path.is_file():
            found[str(path.relative_to(root))] = _digest(path, root)
        elif not any(path.iterdir()):
            found[f"{path.relative_to(root)}/"] = "empty folder"
    entry = read_registry(EvalRoot(root)).get(name)
    found["registry.json"] = _plain(entry, root)
    return found


def _digest(path: Path, root: Path) -> str:
    return plain_object(str(path.relative_to(root)), path.read_bytes(), root)


def _plain(content: Any, root: Path | str) -> str:
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in _TIMES}
        if isinstance(files := content.get("files"), dict):
            content["files"] = sorted(files)  # their checksums cover a time: `created_at`
    return json.dumps(content, sort_keys=True).replace(str(root), "ROOT")


def plain_object(name: str, data: bytes, root: Path | str) -> str:
    """A file's digest, or its content without times."""
    if not name.endswith(".json") or "windows" in name.split("/"):
        return hashlib.sha256(data).hexdigest()
    content = json.loads(data)
    if name.endswith("retired.json"):
        content = sorted(content.keys() - {"checksum"})  # since when: a time
    elif name.endswith("registry.json"):
        content = {key: _plain(entry, root) for key, entry in content["datasets"].items()}
    return _plain(content, root)


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """What two snapshots don't have in common, as lines."""
    lines = [f"missing: {path}" for path in sorted(expected.keys() - found.keys())]
    lines += [f"more: {path}" for path in sorted(found.keys() - expected.keys())]
    both = sorted(found.keys() & expected.keys())
    return lines + [f"differs: {path}" for path in both if found[path] != expected[path]]


def strays(root: Path) -> list[str]:
    """Files right below a root that belong to nothing."""
    return [
        path.name
        for path in sorted(root.iterdir())
        if path.name.startswith(".") and not path.name.endswith(".lock")
    ]


def values(root: Path | str, name: str = "crops") -> dict[str, str]:
    """What EvalDataset gives: split and window to a digest of the sample."""
    return values_of(
        {s: EvalDataset(name, s, root=root, normalize=None, crop=None) for s in SPLITS}
    )


def values_of(datasets: Mapping[str, EvalDataset]) -> dict[str, str]:
    """The same of splits that are open."""
    found = {}
    for split, dataset in datasets.items():
        for k, sample in enumerate(dataset):
            text = hashlib.sha256()
            for modality in dataset.bands:
                text.update(sample[modality].numpy().tobytes())
                text.update(sample["timestamps"][modality].numpy().tobytes())
            text.update(sample["target"].numpy().tobytes())
            found[f"{split} {k} {sample['window']}"] = text.hexdigest()
    return found


def opened(root: Path | str) -> EvalRoot:
    """A folder, or a bucket's, which the environment has to say how to reach."""
    return EvalRoot(root) if isinstance(root, Path) else open_root(Settings.load(), root)


def damage(root: Path | str) -> list[str]:
    """What is wrong under a root, as lines: the registry, and each dataset that it names."""
    eval_root = opened(root)
    entries = read_registry(eval_root)
    lines = []
    for name in sorted({*entries, *eval_root.dataset_names()}):
        metadata = read_metadata(eval_root.dataset(name))
        if metadata is None:
            lines.append(f"{name} is in the registry but has no metadata.json")
            continue
        counts = {split: found.count for split, found in metadata.splits.items()}
        read = Counter(key.split()[0] for key in values(root, name))
        lines += [
            f"{name} {split}: {read[split]} of {count} samples"
            for split, count in counts.items()
            if read[split] != count
        ]
    return lines


def verified(root: Path | str, name: str = "crops") -> list[str]:
    """What `eval-ingest verify` finds."""
    problems: list[str] = verify_dataset(opened(root), name, no_progress).problems
    return problems


# ------------------------------------------------------------------------------------ scenarios


@dataclass
class Scenario:
    """A run that is going to be disturbed, in a root where there is something to lose."""

    name: str
    run: Run
    base: Path
    """An eval root with the dataset `other` and perhaps an older version of `crops`."""
    work: Path
    """Where it happens; `base` is copied there for each case."""
    same_bytes: bool = True
    """False where an undisturbed run and a repeated one may name shards differently."""
    expected: dict[str, str] = field(default_factory=dict)
    """The snapshot after an undisturbed run."""
    before: dict[str, str] = field(default_factory=dict)
    """Values of the older version, if there is one."""
    after: dict[str, str] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    changes: int = 0
    """Changes that an undisturbed run makes."""
    seconds: float = 0.0
    """How long it takes."""

    def __post_init__(self) -> None:
        self.other = values(self.base, "other")
        if (self.base / "crops" / "metadata.json").exists():
            self.before = values(self.base)
        with self.fresh():
            started = time.monotonic()
            process = start(self.run, self.log)
            assert process.wait() == 0, process.text
            self.seconds = time.monotonic() - started
            self.changes = int(process.text)
            self.expected = snapshot(self.work)
            self.after = values(self.work)
            assert verified(self.work) == []

    @property
    def log(self) -> Path:
        """What a process of the scenario says."""
        return self.work.with_suffix(".log")

    def run_by(self, engine: str) -> "Scenario":
        """The same scenario with another engine: what is expected stays the same."""
        other = copy.copy(self)
        other.run = replace(self.run, engine=engine)
        return other

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Path]:
        """The base, ready to be damaged, and gone afterwards."""
        shutil.copytree(self.base, self.work, symlinks=True)
        try:
            yield self.work
        finally:
            shutil.rmtree(self.work, ignore_errors=True)

    def check_stopped(self) -> None:
        """What must be true at any moment: nothing is damaged, and nothing is half published."""
        expect("damaged after the stop", damage(self.work), [])
        expect("the other dataset", values(self.work, "other"), self.other)
        if (self.work / "crops" / "metadata.json").exists():
            if (found := values(self.work)) != self.before:
                expect("the values after the stop", found, self.after)
        else:
            expect("the older version, which is gone", {}, self.before)

    def check_repeated(self) -> None:
        """The next run completes what was stopped, as if nothing had happened."""
        replace(self.run, overwrite=False, engine="threads").do()
        expect("the values after the next run", values(self.work), self.after)
        expect("the other dataset after the next run", values(self.work, "other"), self.other)
        expect("damaged after the next run", verified(self.work), [])
        expect("left in the root", strays(self.work), [])
        found, expected = snapshot(self.work), self.expected
        if not self.same_bytes:
            found, expected = _copies(found), _copies(expected)
        expect("files after the next run", differences(found, expected), [])

    def kill_at(self, change: int) -> None:
        """One case: killed instead of making a change."""
        with self.fresh():
            process = start(self.run, self.log, kill_at=change)
            # Threads may do with a folder or two fewer; then it was done before.
            assert process.wait() in (KILLED, 0), process.text
            self.check_stopped()
            self.check_repeated()

    def kill_after(self, seconds: float) -> bool:
        """One case: killed after some time; False if the run was faster."""
        with self.fresh():
            process = start(self.run, self.log)
            process.process.join(seconds)
            process.kill()
            self.check_stopped()
            self.check_repeated()
            return process.process.exitcode == KILLED

    def kill_worker(self, seconds: float) -> bool:
        """One case: one worker is killed some time after it began; False if there was none."""
        with self.fresh():
            process = start(self.run, self.log)
            wait_until(lambda: bool(process.workers) or not process.alive)
            process.process.join(seconds)
            workers = process.workers
            with contextlib.suppress(ProcessLookupError):
                for pid in workers[:1]:
                    os.kill(pid, signal.SIGKILL)
            code = process.wait()
            assert code in (0, OUR_ERROR), process.text
            assert code == 0 or "a worker process was killed" in process.text, process.text
            self.check_stopped()
            self.check_repeated()
            return bool(workers)


class BucketScenario:
    """The first ingest into an eval root in a bucket, beside a dataset that is there.

    Args:
        server: has the bucket.
        source: the dataset.
        folder: an empty one, for the cache.
    """

    def __init__(self, server: ObjectServer, source: Path, folder: Path) -> None:
        self.server, self.folder, self.cases = server, folder, 0
        self.environment = {**server.environment, "EVAL_INGEST_CACHE": str(folder / "cache")}
        self.log = folder / "log"
        self._run = Run(str(source), f"{server.url}/undisturbed", environment=self.environment)
        with self._reached():
            self._run.do()
            self.expected, self.after = self._objects(self._run), values(str(self._run.root))
            started = time.monotonic()
            process = start(self._run.into(f"{server.url}/timed"), self.log)
            assert process.wait() == 0, process.text
            self.seconds = time.monotonic() - started

    def kill_after(self, seconds: float) -> bool:
        """One case: killed after some time; False if the run was faster."""
        self.cases += 1
        root = f"{self.server.url}/case_{self.cases}"
        run = self._run.into(root)
        with self._reached():
            self._run.into(root, name="other").do()
            process = start(run, self.log)
            process.process.join(seconds)
            process.kill()
            expect("damaged after the stop", damage(root), [])
            expect("the other dataset", "other" in read_registry(opened(root)), True)
            run.do()
            expect("values", values(root), self.after)
            expect("damaged", verified(root), [])
            expect("registered", sorted(read_registry(opened(root))), ["crops", "other"])
            expect("objects", differences(self._objects(run), self.expected), [])
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        return process.process.exitcode == KILLED

    def _reached(self) -> Any:
        return patch.dict(os.environ, self.environment)

    def _objects(self, run: Run) -> dict[str, str]:
        """Every object of the dataset: name to digest."""
        root: Any = opened(run.root)
        objects = root.mirror.objects
        found = {}
        for entry in objects.run(objects.find(run.name)):
            data = objects.run(objects.read_current(entry.name))[1]
            found[entry.name] = plain_object(entry.name, data, run.root)
        return found


def _copies(files: dict[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in files.items() if "/windows/" in path}


def expect(what: str, found: Any, expected: Any) -> None:
    if found == expected:
        return
    if isinstance(found, dict):
        found, expected = differences(found, expected), []
    raise AssertionError(f"{what}: {found}")


def scenarios(folder: Path) -> Iterator[tuple[str, Callable[[], Scenario]]]:
    """Ingests of every kind, by name; each is prepared when it is asked for."""
    source = factories.segmentation(folder / "plain", windows=10, timesteps=2)
    ragged = factories.ragged_segmentation(folder / "ragged", windows=10)
    changed = folder / "changed"
    first = folder / "root" / "other_only"
    Run(str(source), first, "other").do()
    published = folder / "root" / "published"
    shutil.copytree(first, published)
    Run(str(source), published).do()
    edit(source, changed)
    work = folder / "root" / "work"
    seeded = {"splits": {"strategy": "random", "seed": 5}}
    again = Run(str(source), work)

    def of(name: str, run: Run, base: Path, **more: Any) -> tuple[str, Callable[[], Scenario]]:
        return name, lambda: Scenario(name, run, base, work, **more)

    yield of("first", again, first)
    yield of("split", replace(again, spec=seeded), published)
    yield of("changed", Run(str(changed), work), published)
    yield of("ragged", Run(str(ragged), work, spec={"max_invalid_fraction": 0.5}), first)
    yield of("shards", replace(again, shard_bytes=90_000), first)
    yield of("stream", replace(again, spec={"copy": "stream"}), first)
    # The same folder through fsspec, as a bucket would be read.
    yield of("remote", Run(f"local://{source}", work), first)
    yield of("overwrite", replace(again, overwrite=True), published, same_bytes=False)
    archive = factories.pack(source, folder / "crops.tar.gz")
    # Where a run is stopped decides which samples lie together, in which shard.
    yield of("archive", Run(str(archive), work), first, same_bytes=False)
    packed = Run(str(archive), work, spec={"copy": "stream"}, shard_bytes=90_000)
    yield of("archive packed", packed, first, same_bytes=False)


def edit(source: Path, target: Path) -> None:
    """A later version of a dataset: a window more, a window less, and one with other pixels."""
    shutil.copytree(source, target)
    windows = sorted(path.parent for path in target.glob("windows/*/*/metadata.json"))
    shutil.copytree(windows[1], windows[1].with_name("added"))
    shutil.rmtree(windows[2])
    labels = [next(windows[k].glob("layers/label_raster/*/geotiff.tif")) for k in (3, 4)]
    shutil.copyfile(labels[0], labels[1])


# ----------------------------------------------------------------------------------- other faults


def fill_disk(case: Scenario, disk: Path) -> str:
    """One case: the run meets the end of a disk, which then grows; returns what was being done."""
    work, case.work = case.work, disk / "root"
    run, case.run = case.run, case.run.into(disk / "root")
    try:
        shutil.copytree(case.base, case.work)
        said = ""
        try:
            # Somebody else writes there too: what was free before is free no more.
            looks = "eval_ingest.sources.unpacking._Files.require_room"
            with patch.object(DatasetStore, "require_room"), patch(looks):
                case.run.do()
        except EvalIngestError as error:
            said = str(error)
        assert said == "" or "free" in said, said
        case.check_stopped()
        subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
        case.check_repeated()
        return said.partition(str(disk))[0]
    finally:
        case.work, case.run = work, run


class CannotMount(Exception):
    """This machine lets no test mount a disk."""


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Gives what mounts a disk of some size in memory, or changes its options.

    That raises CannotMount where this machine lets nobody do so.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotMount(f"no disk can be mounted here: {done.stderr.strip()}")
        return folder

    try:
        yield mount
    finally:
        while os.path.ismount(folder):
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def pages(folder: Path) -> int:
    """What a folder takes on a disk, about, in pages of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) for path in folder.rglob("*"))


def write_to_read_only(source: Path, mount: Callable[[str], Path]) -> None:
    """One case: the root can't be written; that is said, and what is there is read."""
    disk = mount("size=64m")
    Run(str(source), disk / "root").do()
    mount("remount,ro")
    for run in (Run(str(source), disk / "root"), Run(str(source), disk / "new")):
        try:
            run.do()
            raise AssertionError("written to a disk that is read-only")
        except StoreError as error:
            said = bool(re.search("mounted read-only; give .* OLMOEARTH_EVAL_DATASETS", str(error)))
            expect(f"the message {error}", said, True)
    expect("damaged", damage(disk / "root"), [])


def many_at_once(source: Path, folder: Path, count: int = 8) -> None:
    """One case: ingests of different datasets at once into one root; none loses its entry."""
    names = [f"crops_{k}" for k in range(count)]
    root = folder / "root"
    running = [start(Run(str(source), root, name), folder / f"{name}.log") for name in names]
    expect("exit codes", [process.wait() for process in running], [0] * count)
    expect("entries", sorted(read_registry(EvalRoot(root))), names)
    expect("damaged", damage(root), [])


def two_at_once(source: Path, folder: Path) -> list[int]:
    """One case: two ingests of one dataset at once; one works, the other waits or says so.

    Returns their exit codes.
    """
    run = Run(str(source), folder / "root")
    running = [start(run, folder / f"{k}.log") for k in range(2)]
    codes = [process.wait() for process in running]
    expect("one that worked", 0 in codes, True)
    for code, process in zip(codes, running, strict=True):
        said = code == 0 or (code == OUR_ERROR and "another process" in process.text)
        expect(f"exit code {code}, {process.text}", said, True)
    expect("damaged", verified(folder / "root"), [])
    run.into(folder / "alone").do()
    alone = snapshot(folder / "alone")
    expect("files", differences(snapshot(folder / "root"), alone), [])
    return codes


def read_while_replaced(source: Path, folder: Path, seeds: Sequence[int]) -> None:
    """One case: a reader holds a version while others replace it again and again."""
    run = Run(str(source), folder)
    run.do()
    expected = values(folder)
    for path in (folder / "crops").rglob("*"):
        os.utime(path, (1e9, 1e9))  # in use for years, and replaced now
    held = {split: EvalDataset("crops", split, root=folder, normalize=None, crop=None)
            for split in SPLITS}  # fmt: skip
    for k, seed in enumerate(seeds):
        spec = {"splits": {"strategy": "random", "seed": seed}}
        replace(run, spec=spec, overwrite=k % 2 == 0).do()
        expect("values of the version that is held", values_of(held), expected)
        expect("that the new version is another", values(folder) != expected, True)


def clock_goes_back(source: Path, folder: Path, seconds: float) -> None:
    """One case: what is there was written in the future, and a file of the source in the past."""
    changing = folder / "source"
    shutil.copytree(source, changing)
    run = Run(str(changing), folder / "root")
    run.do()
    later = time.time() + seconds
    for path in [folder / "root", *(folder / "root").rglob("*")]:
        os.utime(path, (later, later))
    labels = sorted(changing.glob("windows/*/*/layers/label_raster/*/geotiff.tif"))
    labels[0].write_bytes(labels[1].read_bytes())
    os.utime(labels[0], (0, 0))
    run.do()
    run.into(folder / "fresh").do()
    expect("values", values(folder / "root"), values(folder / "fresh"))
    expect("damaged", verified(folder / "root"), [])


class ChangingSource:
    """A source whose rasters are written again and again, each in one of two versions."""

    def __init__(self, source: Path, folder: Path, seed: int, url: str = "{}") -> None:
        self._source = folder / "changing"
        shutil.copytree(source, self._source)
        self._root, self._again = folder / "changing_root", folder / "changing_again"
        self._rng = random.Random(seed)
        self._url = url.format(self._source)
        self._versions = {
            path: (path.read_bytes(), _rolled(path))
            for path in sorted(self._source.rglob("geotiff.tif"))
        }

    def ingest_while_changing(self, pause_s: float) -> type[EvalIngestError] | None:
        """One case; returns the class of the error, if there was one."""
        run = Run(self._url, self._root)
        stop = threading.Event()
        changing = threading.Thread(target=self._change, args=(stop, pause_s))
        changing.start()
        outcome = None
        try:
            run.do()
        except EvalIngestError as error:
            outcome = type(error)
        finally:
            stop.set()
            changing.join()
        if (self._root / "crops" / "metadata.json").exists():
            expect("damaged", damage(self._root), [])
        if outcome is None:
            expect("damaged", verified(self._root), [])
            # The packed samples and the copied windows are of the same moment.
            copy = Run(str(self._root / "crops"), self._again, spec={"config": str(self._source)})
            copy.do()
            expect("the copy's values", _by_window(self._again), _by_window(self._root))
        run.do()
        shutil.rmtree(self._again, ignore_errors=True)
        run.into(self._again).do()
        expect("values after the next run", values(self._root), values(self._again))
        shutil.rmtree(self._again)
        return outcome

    def _change(self, stop: threading.Event, pause_s: float) -> None:
        while not stop.is_set():
            path, versions = self._rng.choice(list(self._versions.items()))
            if self._rng.random() < 0.5:
                path.write_bytes(self._rng.choice(versions))
            else:
                aside = path.with_suffix(".new")
                aside.write_bytes(self._rng.choice(versions))
                os.replace(aside, path)
            stop.wait(self._rng.uniform(0, 2 * pause_s))


def _rolled(path: Path) -> bytes:
    """The same raster with its pixels moved to the right."""
    import rasterio

    aside = path.with_suffix(".rolled")
    with rasterio.open(path) as raster:
        pixels, profile = raster.read(), raster.profile
    with rasterio.open(aside, "w", **profile) as raster:
        raster.write(np.roll(pixels, 1, axis=-1))
    data = aside.read_bytes()
    aside.unlink()
    return data


def _by_window(root: Path) -> dict[str, str]:
    return {key.split()[2]: digest for key, digest in values(root).items()}
