"""Ingests that are disturbed, and what must be true afterwards.

The short form of these checks is test_faults.py, the long one `make torture`.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from eval_ingest import EvalDataset, transfer
from eval_ingest.core.spec import SPLITS
from eval_ingest.engine import no_progress
from eval_ingest.errors import EvalIngestError
from eval_ingest.indexing import build
from eval_ingest.store.layout import EvalRoot
from eval_ingest.store.registry import read_metadata, read_registry
from eval_ingest.verifying import verify_dataset
from eval_ingest_tests import factories
from eval_ingest_tests.killing import KILLED, OUR_ERROR, Run, is_running, start, wait_until

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
    if path.suffix == ".json" and "windows" not in path.relative_to(root).parts:
        return _plain(json.loads(path.read_text()), root)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plain(content: Any, root: Path) -> str:
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in _TIMES}
        if isinstance(files := content.get("files"), dict):
            content["files"] = sorted(files)  # their checksums cover a time: `created_at`
    return json.dumps(content, sort_keys=True).replace(str(root), "ROOT")


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


def values(root: Path, name: str = "crops") -> dict[str, str]:
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


def damage(root: Path) -> list[str]:
    """What is wrong under a root, as lines: the registry, and each dataset that it names."""
    eval_root = EvalRoot(root)
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


def verified(root: Path, name: str = "crops") -> list[str]:
    """What `eval-ingest verify` finds."""
    problems: list[str] = verify_dataset(EvalRoot(root), name, no_progress).problems
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

    def __post_init__(self) -> None:
        self.other = values(self.base, "other")
        if (self.base / "crops" / "metadata.json").exists():
            self.before = values(self.base)
        with self.fresh():
            process = start(self.run, self.log)
            assert process.wait() == 0, process.text
            self.changes = int(process.text)
            self.expected = snapshot(self.work)
            self.after = values(self.work)
            assert verified(self.work) == []

    @property
    def log(self) -> Path:
        """What a process of the scenario says."""
        return self.work.with_suffix(".log")

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
        _expect("damaged after the stop", damage(self.work), [])
        _expect("the other dataset", values(self.work, "other"), self.other)
        if (self.work / "crops" / "metadata.json").exists():
            if (found := values(self.work)) != self.before:
                _expect("the values after the stop", found, self.after)
        else:
            _expect("the older version, which is gone", {}, self.before)

    def check_repeated(self) -> None:
        """The next run completes what was stopped, as if nothing had happened."""
        replace(self.run, overwrite=False, engine="threads").do()
        _expect("the values after the next run", values(self.work), self.after)
        _expect("the other dataset after the next run", values(self.work, "other"), self.other)
        _expect("damaged after the next run", verified(self.work), [])
        _expect("left in the root", strays(self.work), [])
        found, expected = snapshot(self.work), self.expected
        if not self.same_bytes:
            found, expected = _copies(found), _copies(expected)
        _expect("files after the next run", differences(found, expected), [])

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
            workers = process.workers
            process.kill()
            assert wait_until(lambda: not any(map(is_running, workers))), "its workers live on"
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


def _copies(files: dict[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in files.items() if "/windows/" in path}


def _expect(what: str, found: Any, expected: Any) -> None:
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
    _edit(source, changed)
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


def _edit(source: Path, target: Path) -> None:
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
            with patch.object(build, "require_room"), patch.object(transfer, "require_room"):
                case.run.do()
        except EvalIngestError as error:
            said = str(error)
        assert said == "" or "free" in said, said
        case.check_stopped()
        subprocess.run(["mount", "-o", "remount,size=256m", str(disk)], check=True)
        case.check_repeated()
        return said.partition(str(disk))[0]
    finally:
        case.work, case.run = work, run


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
            _expect("damaged", damage(self._root), [])
        if outcome is None:
            _expect("damaged", verified(self._root), [])
            # The packed samples and the copied windows are of the same moment.
            copy = Run(str(self._root / "crops"), self._again, spec={"config": str(self._source)})
            copy.do()
            _expect("the copy's values", _by_window(self._again), _by_window(self._root))
        run.do()
        shutil.rmtree(self._again, ignore_errors=True)
        run.into(self._again).do()
        _expect("values after the next run", values(self._root), values(self._again))
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
