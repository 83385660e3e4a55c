"""Damaged eval roots: files of datasets, and what stopped ingests have left."""

import contextlib
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval_ingest.errors import EvalIngestError
from eval_ingest.store.registry import read_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest_tests.support import factories, faults, killing, mutation
from eval_ingest_tests.support.fuzz_kinds import Fault, Kind, check_message


class Stored(Kind):
    """A file of an eval root: read as it was written or an error of ours, and repaired.

    What a quick look doesn't find, pixels and copied windows, `verify` does, and then
    `--overwrite` repairs it. Everything else is repaired by the next ingest, be it the same one, or
    one of other splits or another task.
    """

    patterns: tuple[str, ...] = ()
    """Of the files that are damaged, below the dataset's folder."""
    specs: tuple[dict[str, Any], ...] = ({}, {"splits": {"strategy": "random", "seed": 5}})
    """Of what was ingested, and of what may be afterwards."""
    inputs_per_case = 25
    """One of them is repaired; the others are only read, which takes much less time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        source = str(self.source(folder / "whole"))
        runs = [killing.Run(source, folder / f"root_{k}", spec=s) for k, s in enumerate(self.specs)]
        for run in runs:
            run.do()
        self.run, self.work = runs[0], runs[0].into(folder / "work")
        self.whole = [_contents(run.root) for run in runs]
        self.expected, _ = self.whole[0]
        self.roots = self.prepare(folder)

    def source(self, folder: Path) -> Path:
        """Writes what is ingested."""
        return factories.segmentation(folder, windows=8, timesteps=2)

    def prepare(self, folder: Path) -> list[Path]:
        """Eval roots to damage."""
        return [self.run.root]

    def try_one(self, rng: random.Random) -> Counter[str]:
        root = rng.choice(self.roots)
        shutil.rmtree(self.work.root, ignore_errors=True)
        shutil.copytree(root, self.work.root)
        outcome: Counter[str] = Counter()
        for _ in range(self.inputs_per_case - 1):
            path, before = self._damaged(rng)
            outcome += self._load(path)
            path.write_bytes(before)
        path, _ = self._damaged(rng)
        if root == self.run.root:
            outcome += self._load(path)
            self._verify(path)
        number = rng.randrange(len(self.specs))
        name = f"{path.relative_to(self.work.root)}, then {self.specs[number]}"
        try:
            outcome[self._repair(path, number, rng.random() < 0.3)] += 1
        except EvalIngestError as error:
            raise Fault(f"{name} can't be repaired: {error}") from error
        except Fault as error:
            raise Fault(f"{name}: {error}") from error
        return outcome

    def _repair(self, path: Path, number: int, overwrite: bool) -> str:
        """Ingest what one of the specs asks for; says what it took."""
        run = replace(self.work, spec=self.specs[number], overwrite=overwrite)
        run.do()
        wrong, told = self._wrong(number), "as it was after the next ingest"
        if wrong and not overwrite and _only_verify_finds(path):
            told = "repaired by --overwrite"
            replace(run, overwrite=True).do()
            wrong = self._wrong(number)
        if wrong:
            raise Fault(f"it is not repaired: {wrong}")
        return told

    def _damaged(self, rng: random.Random) -> tuple[Path, bytes]:
        """A file that was damaged, and what was in it."""
        folder = self.work.root / "crops"
        found = {path for pattern in self.patterns for path in folder.glob(pattern)}
        files = sorted(path for path in found if path.is_file())
        while True:
            path = rng.choice(files)
            before = path.read_bytes()
            _damage_file(rng, path)
            if not path.exists() or path.read_bytes() != before:
                return path, before

    def _load(self, path: Path) -> Counter[str]:
        """What readers make of a damaged file."""
        with contextlib.suppress(EvalIngestError):
            if path.name == "registry.json" and path.exists():
                read_registry(EvalRoot(self.work.root))
                raise Fault(f"{path} is damaged, and it is read")
        try:
            same = faults.values(self.work.root) == self.expected
        except EvalIngestError as error:
            check_message(error)
            return Counter({f"not loaded ({type(error).__name__})": 1})
        if not same and path.suffix != ".npy":
            raise Fault(f"{path} is damaged, and other values are loaded")
        return Counter({"loaded, the same" if same else "loaded, other pixels": 1})

    def _verify(self, path: Path) -> None:
        """That `verify` finds a damaged file, if it is one of the dataset's."""
        try:
            told = faults.verified(self.work.root)
        except EvalIngestError as error:
            check_message(error)
            return
        if not told and path.name not in ("registry.json", "source_state.json"):
            raise Fault(f"{path} is damaged, and verify finds nothing")

    def _wrong(self, number: int) -> list[str]:
        """What `verify` finds, and whether values and copy are those of one of the specs."""
        found = faults.verified(self.work.root)
        (values, files), (right, whole) = _contents(self.work.root), self.whole[number]
        if not found and values != right:
            raise Fault("other values, and verify finds nothing")
        told = "\n".join(found)
        for path, _ in {*files.items()} ^ {*whole.items()}:
            if "/".join(path.split("/")[:2]) not in told:
                raise Fault(f"{path} of the copy is another one, and verify finds {found}")
        if not read_registry(EvalRoot(self.work.root)):
            raise Fault("nothing is registered")
        return found


def _contents(root: Path | str) -> tuple[dict[str, str], dict[str, bytes]]:
    """What EvalDataset gives of a root, and the files of the copied windows."""
    folder = Path(root, "crops", "windows")
    files = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return faults.values(root), {str(path): data for path, data in files.items()}


def _only_verify_finds(path: Path) -> bool:
    """True for files of which an ingest looks at size and header alone, or at nothing."""
    return path.suffix == ".npy" or not {"windows", ".copied_ahead"}.isdisjoint(path.parts)


def _damage_file(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    if rng.random() < 0.05:
        path.unlink()
    elif path.suffix == ".json" and rng.random() < 0.7:
        path.write_bytes(mutation.mutate_json(rng, data))
    else:
        path.write_bytes(mutation.mutate_bytes(rng, data))


class StoredMetadata(Stored):
    """metadata.json, and the registry that is compiled from it."""

    patterns = ("metadata.json", "../registry.json")


class StoredJson(Stored):
    """The other JSON and YAML files beside the windows."""

    patterns = ("norm_stats.json", "weka_copy.json", "source_state.json", "*.yaml", "config.json",
                ".rslearn_dataset_index/*")  # fmt: skip


class StoredTables(Stored):
    """Parquet files."""

    patterns = ("*.parquet", "*/*.parquet", "samples/*/*.parquet")


class StoredSamples(Stored):
    """Packed samples: headers and pixels."""

    patterns = ("samples/*/*.npy",)


class StoredWindows(Stored):
    """The copied windows, which EvalDataset doesn't read."""

    inputs_per_case = 1
    patterns = ("windows/**/*",)


class StoredLabels(StoredWindows):
    """Copied windows whose labels are written as one of two tasks has them."""

    specs = ({"task": "plain"}, {"task": "merged"},
             {"task": "merged", "splits": {"strategy": "random", "seed": 5}})  # fmt: skip

    def source(self, folder: Path) -> Path:
        return factories.two_tasks(folder)


class Stopped(Stored):
    """What a stopped ingest has left to go on from."""

    inputs_per_case = 1
    patterns = (".window_index/**/*", ".copy_journal.jsonl", "*.parquet", "windows/**/*",
                ".copied_ahead/**/*")  # fmt: skip

    def prepare(self, folder: Path) -> list[Path]:
        moments = (("windows read", 4), ("windows copied", 4))
        return [self._stopped(folder / f"stopped_{k}", *at) for k, at in enumerate(moments)]

    def _stopped(self, root: Path, at: str, after: int) -> Path:
        self.run.into(root).stop(at, after)
        assert not (root / "crops" / "metadata.json").exists()
        return root
