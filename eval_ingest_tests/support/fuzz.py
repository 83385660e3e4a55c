"""Thousands of damaged inputs: each gives right values or an error of ours, soon and in bounds.

A kind is a class whose instances try one case after the other. `run` does so in a process of its
own: a case that takes too long ends it, and so does one that fills the memory. The short form is
test_fuzz.py, the long one `make torture`.
"""

import contextlib
import faulthandler
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from eval_ingest import EvalDataset, pipeline
from eval_ingest.core.spec import SPLITS, DatasetSpec
from eval_ingest.decoding.judge import read_window
from eval_ingest.errors import EvalIngestError
from eval_ingest.job import Job, open_job
from eval_ingest.settings import Settings
from eval_ingest.sources.local import LocalSource
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.registry import read_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest_tests.support import factories, faults, killing, mutation
from eval_ingest_tests.support.oracle import OracleSample, rslearn_samples
from eval_ingest_tests.test_loading_parity import compare

LONGEST_S = 60.0
"""A case that takes longer hangs."""

MOST_BYTES = 3 << 30
"""Private memory that a process with one case may have, the libraries' own included."""


@dataclass
class Report:
    """What became of the cases of one kind."""

    kind: str
    tried: int = 0
    inputs: int = 0
    """Damaged inputs in these cases: some have several."""
    outcomes: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    """What should not have happened, with the seed of the case."""
    slowest_s: float = 0.0
    peak_bytes: int = 0
    """Of resident memory, the libraries' own included."""


class Fault(AssertionError):
    """A case went wrong."""


# ------------------------------------------------------------------------------------------ kinds


class Kind:
    """Damages one kind of input, and looks at what happens."""

    inputs_per_case = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def try_one(self, rng: random.Random) -> Counter[str]:
        """One case; returns how many inputs came to which end.

        Raises:
            Fault: something happened that must not.
        """
        raise NotImplementedError


class Windows(Kind):
    """Files of windows: metadata, items, rasters, sidecars, features, markers.

    Every window of a dataset gets one damaged file, and the dataset is ingested. What counts as
    valid then must have the values that rslearn reads from the published copy.
    """

    case = "segmentation"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import rslearn.train.dataset  # noqa: F401  # seconds, which aren't the first case's

        self.source = factories.CASES[self.case](folder / "whole")
        self.inputs_per_case = len(list(self.source.glob("windows/*/*")))
        self.root, self.work = folder / "root", folder / "work"

    def try_one(self, rng: random.Random) -> Counter[str]:
        for path in (self.root, self.work):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.source, self.work)
        damaged = {}
        for folder in sorted(path for path in self.work.glob("windows/*/*")):
            damaged[f"{folder.parent.name}/{folder.name}"] = damage_window(rng, folder)
        try:
            pipeline.ingest(_job(self.work, self.root, "fuzzed", max_invalid_fraction=1))
        except EvalIngestError as error:
            _check_message(error)
            return Counter({f"ingest refused ({type(error).__name__})": len(damaged)})
        index = read_outcome(EvalRoot(self.root).dataset("fuzzed"), "window_index")
        problems = index.table["problems"].to_pylist()
        outcome = Counter(found[0]["code"] if found else "valid" for found in problems)
        valid = self._valid(damaged)
        outcome["equal to rslearn"] = len(valid)
        return outcome

    def _valid(self, damaged: dict[str, str]) -> list[str]:
        """Compare every sample with rslearn's."""
        copy = self.root / "fuzzed"
        samples, datasets = {}, {}
        for split in SPLITS:
            dataset = EvalDataset("fuzzed", split, root=self.root, normalize=None, crop=None)
            datasets[split] = dataset
            for sample in dataset:
                samples[sample["window"]] = (split, sample)
        expected = _rslearn_samples(copy, self.source / "model.yaml", samples.keys(), damaged)
        for window, (split, sample) in samples.items():
            try:
                compare(datasets[split], sample, expected[window])
            except AssertionError as error:
                raise Fault(f"{damaged[window]}: not as rslearn reads it: {error}") from error
        return list(samples)


def _rslearn_samples(
    copy: Path, model: Path, windows: Any, damaged: dict[str, str]
) -> dict[str, OracleSample]:
    """rslearn's samples by window; if it fails on all together, one by one to see on which."""
    if not windows:
        return {}
    with contextlib.suppress(Exception):
        found = {f"{s.group}/{s.name}": s for s in rslearn_samples(copy, model)}
        if found.keys() >= set(windows):
            return found
    for window in windows:
        group, name = window.split("/")
        try:
            [_] = rslearn_samples(copy, model, groups=[group], names=[name])
        except Exception as error:
            raise Fault(
                f"{damaged[window]}: valid here, but rslearn: {type(error).__name__}: {error}"
            ) from error
    raise Fault(f"rslearn reads {window} alone, but not all of them")


def damage_window(rng: random.Random, folder: Path) -> str:
    """Change one file of a window; returns which, and how."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # One of each kind as often as another, though there are more rasters than anything else.
    names = sorted({path.name for path in files} - {"completed"})
    wanted = rng.choice([*names, "metadata.json", "geotiff.tif"])
    path = rng.choice([path for path in files if path.name == wanted])
    data = path.read_bytes()
    action = rng.random()
    text = f"{path.relative_to(folder.parents[2])}"
    if action < 0.04:
        path.unlink()
        return f"{text} removed"
    if action < 0.08:
        marker = rng.choice(sorted(folder.rglob("completed")))
        marker.unlink()
        return f"{marker.relative_to(folder.parents[2])} removed"
    if action < 0.12:
        others = sorted(folder.parents[1].rglob(path.name))
        other = rng.choice(others)
        path.write_bytes(other.read_bytes())
        return f"{text} is that of {other.relative_to(folder.parents[2])}"
    changed = (
        mutation.mutate_json(rng, data)
        if path.suffix in (".json", ".geojson")
        else mutation.mutate_bytes(rng, data)
    )
    path.write_bytes(changed)
    shown = changed[:1500].decode(errors="replace") if path.suffix.endswith("json") else ""
    return f"{text} damaged {shown}"


class VectorWindows(Windows):
    """The same with GeoJSON labels, Sentinel-1 and sidecars."""

    case = "vector_classification"


class ManyModalities(Windows):
    """The same with three modalities, several layers each."""

    case = "three_modalities"


class RegressionWindows(Windows):
    """The same with float labels."""

    case = "per_pixel_regression"


class Configs(Kind):
    """config.json, model.yaml and olmoearth_run.yaml: resolved, or told what is wrong.

    What is resolved must be good enough to read windows with.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sources = [write(folder / name) for name, write in factories.CASES.items()]
        self.work = folder / "work"

    def try_one(self, rng: random.Random) -> Counter[str]:
        source = rng.choice(self.sources)
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        (self.work / "windows").symlink_to(source / "windows")
        names = [n for n in ("config.json", "model.yaml", "olmoearth_run.yaml")
                 if (source / n).exists()]  # fmt: skip
        for name in names:
            shutil.copyfile(source / name, self.work / name)
        self._damage(rng, self.work / rng.choice(names))
        if rng.random() < 0.1:
            (self.work / "model.yaml").unlink()
        spec = mutation.odd_value(rng) if rng.random() < 0.05 else None
        try:
            job = _job(self.work, self.folder / "root", "fuzzed",
                       **({"groups": [str(spec)]} if spec is not None else {}))  # fmt: skip
        except EvalIngestError as error:
            _check_message(error)
            return Counter({type(error).__name__: 1})
        reader = LocalSource(str(source))
        outcome: Counter[str] = Counter({"resolved": 1})
        for group, name, _ in list(reader.names(reader.groups()))[:2]:
            files = reader.window(group, name, job.config.layer_names)
            sample = read_window(reader, files, job.config)
            assert sample is not None
            outcome["windows valid" if not sample.problems else "windows invalid"] += 1
        return outcome

    def _damage(self, rng: random.Random, path: Path) -> None:
        data = path.read_bytes()
        bombs = mutation.json_bombs() if path.suffix == ".json" else mutation.yaml_bombs()
        if rng.random() < 0.05:
            text = rng.choice(list(bombs.values()))
            data = text.encode("utf-8", "surrogatepass")
        elif path.suffix == ".json":
            data = mutation.mutate_json(rng, data)
        elif rng.random() < 0.3:
            data = mutation.mutate_bytes(rng, data)
        else:
            value = mutation.mutate_value(rng, yaml.safe_load(data))
            data = _yaml(value)
        path.write_bytes(data)


def _yaml(value: Any) -> bytes:
    try:
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (RecursionError, yaml.YAMLError):
        return b"data: " + b"[" * 5_000


class Specs(Kind):
    """Catalog entries."""

    def try_one(self, rng: random.Random) -> Counter[str]:
        from eval_ingest.store.catalog import parse_spec

        whole = DatasetSpec.parse(
            {"name": "crops", "source": "gs://bucket/crops", "classes": ["a", "b"],
             "splits": {"strategy": "spatial", "ratios": [80, 10, 10]}, "tags": {"x": "y"},
             "max_samples": 9, "label_fractions": {"few": 0.1}, "crop_size": 8,
             "temporal_range": ["2024-01-01", "2024-12-31"], "modalities": ["landsat"]}, "test",
        ).model_dump(mode="json", by_alias=True)  # fmt: skip
        data = _yaml(mutation.mutate_value(rng, mutation.mutate_value(rng, whole)))
        if rng.random() < 0.2:
            data = mutation.mutate_bytes(rng, data)
        if rng.random() < 0.1:
            bomb = rng.choice(list(mutation.yaml_bombs().values()))
            data = bomb.encode("utf-8", "surrogatepass")
        try:
            spec = parse_spec(data.decode("utf-8", "replace"), "fuzzed.yaml")
        except EvalIngestError as error:
            _check_message(error)
            return Counter({type(error).__name__: 1})
        again = parse_spec(
            _yaml(spec.model_dump(mode="json", by_alias=True)).decode(), "again.yaml"
        )
        if again != spec:
            raise Fault(f"a spec that isn't what it was written as: {spec}")
        return Counter({"parsed": 1})


class Archives(Kind):
    """Tar archives: unpacked below their folder, or refused; what GNU tar refuses is refused."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        source = factories.segmentation(folder / "whole", windows=2, timesteps=1)
        self.members = {
            f"crops/{path.relative_to(source)}": path.read_bytes()
            for path in sorted(source.rglob("*"))
            if path.is_file()
        }
        self.inside = folder / "inside"

    def try_one(self, rng: random.Random) -> Counter[str]:
        from eval_ingest.sources.archive import open_archive

        shutil.rmtree(self.inside, ignore_errors=True)
        self.inside.mkdir()
        path = self.inside / "crops.tar"
        path.write_bytes(mutation.mutate_archive(rng, self.members))
        outcome = "unpacked"
        try:
            open_archive(str(path), self.inside / "a" / "archives")
        except EvalIngestError as error:
            _check_message(error)
            outcome = type(error).__name__
        if (
            outcome == "unpacked"
            and subprocess.run(["tar", "-tf", path], capture_output=True).returncode
        ):
            raise Fault(f"GNU tar refuses what was unpacked: {path.read_bytes()[:600]!r}")
        outside = [p for p in self.inside.rglob("*escaped*") if "archives" not in p.parts]
        links = [p for p in self.inside.rglob("*") if p.is_symlink()]
        if outside or links or Path("/tmp/eval_ingest_escaped").exists():
            raise Fault(f"an archive left its folder: {outside or links}")
        left = [p.name for p in self.inside.glob("a/archives/.*") if p.suffix != ".lock"]
        if left:
            raise Fault(f"left behind: {left}")
        return Counter({outcome: 1})


class Stored(Kind):
    """A file of an eval root: read as it was written or an error of ours, and repaired.

    What a quick look doesn't find, pixels and copied windows, `verify` does, and then
    `--overwrite` repairs it. Everything else is repaired by the next ingest.
    """

    patterns: tuple[str, ...] = ()
    """Of the files that are damaged, below the dataset's folder."""
    inputs_per_case = 25
    """One of them is repaired; the others are only read, which takes much less time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        source = factories.segmentation(folder / "whole", windows=8, timesteps=2)
        self.run = killing.Run(str(source), folder / "root")
        self.run.do()
        self.expected = faults.values(self.run.root)
        self.work = self.run.into(folder / "work")
        self.roots = self.prepare(folder)

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
        name = path.relative_to(self.work.root)
        try:
            self.work.do()
            wrong = self._wrong()
            if wrong and _only_verify_finds(path):
                outcome["repaired by --overwrite"] += 1
                replace(self.work, overwrite=True).do()
                wrong = self._wrong()
            else:
                outcome["as it was after the next ingest"] += 1
        except EvalIngestError as error:
            raise Fault(f"{name} can't be repaired: {error}") from error
        if wrong:
            raise Fault(f"{name} is not repaired: {wrong}")
        return outcome

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
            _check_message(error)
            return Counter({f"not loaded ({type(error).__name__})": 1})
        if not same and path.suffix != ".npy":
            raise Fault(f"{path} is damaged, and other values are loaded")
        return Counter({"loaded, the same" if same else "loaded, other pixels": 1})

    def _verify(self, path: Path) -> None:
        """That `verify` finds a damaged file, if it is one of the dataset's."""
        try:
            told = faults.verified(self.work.root)
        except EvalIngestError as error:
            _check_message(error)
            return
        if not told and path.name not in ("registry.json", "source_state.json"):
            raise Fault(f"{path} is damaged, and verify finds nothing")

    def _wrong(self) -> list[str]:
        """What `verify` finds, and whether the values are those that they were."""
        found = faults.verified(self.work.root)
        if not found and faults.values(self.work.root) != self.expected:
            raise Fault("other values, and verify finds nothing")
        if not read_registry(EvalRoot(self.work.root)):
            raise Fault("nothing is registered")
        return found


def _only_verify_finds(path: Path) -> bool:
    """True for files of which an ingest looks at size and header alone, or at nothing."""
    return path.suffix == ".npy" or "windows" in path.parts


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


class Stopped(Stored):
    """What a stopped ingest has left to go on from."""

    inputs_per_case = 1
    patterns = (".window_index/**/*", ".copy_journal.jsonl", "*.parquet", "windows/**/*")

    def prepare(self, folder: Path) -> list[Path]:
        moments = (("windows read", 4), ("windows copied", 4))
        return [self._stopped(folder / f"stopped_{k}", *at) for k, at in enumerate(moments)]

    def _stopped(self, root: Path, at: str, after: int) -> Path:
        self.run.into(root).stop(at, after)
        assert not (root / "crops" / "metadata.json").exists()
        return root


KINDS: dict[str, type[Kind]] = {
    "windows with raster labels": Windows,
    "windows with vector labels": VectorWindows,
    "windows with three modalities": ManyModalities,
    "windows with float labels": RegressionWindows,
    "config.json, model.yaml, olmoearth_run.yaml": Configs,
    "catalog entries": Specs,
    "archives": Archives,
    "metadata.json, registry.json": StoredMetadata,
    "other JSON, YAML of an eval root": StoredJson,
    "Parquet of an eval root": StoredTables,
    "packed samples": StoredSamples,
    "copied windows": StoredWindows,
    "what a stopped ingest left": Stopped,
}


def _job(source: Path, root: Path, name: str, **spec: Any) -> Job:
    parsed = DatasetSpec.parse({"name": name, "source": str(source), **spec}, "fuzz")
    return open_job(parsed, Settings(eval_root=str(root), workers=1))


def _check_message(error: EvalIngestError) -> None:
    """A message is for a person: it says something, and not a page of it."""
    text = str(error)
    if not 10 < len(text) < 6_000:
        raise Fault(f"a message of {len(text)} characters: {text[:300]}") from error


# ---------------------------------------------------------------------------------------- running


def run(
    kind: str, folder: Path, seed: int, cases: int, seconds: float = 1e9, first: int = 0
) -> Report:
    """Try cases of a kind, in processes of their own.

    Args:
        kind: one of KINDS.
        folder: an empty folder to work in.
        seed: of all cases; case k is drawn by seed, kind and k.
        cases: how many.
        seconds: stop before, when this time is over.
        first: the number of the first case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / "report.json", folder / "log.txt"
    process = killing.context().Process(
        target=_try_cases, args=(kind, folder / "work", path, log, seed, cases, seconds, first)
    )
    process.start()
    process.join(min(seconds, 1e6) + 5 * LONGEST_S)
    if process.is_alive():
        process.kill()
        process.join()
    report = Report(**json.loads(path.read_text())) if path.exists() else Report(kind)
    if process.exitcode != 0:
        said = log.read_text()[-3000:] if log.exists() else ""
        report.faults.append(
            f"seed {seed} case {first + report.tried}: the process ended with {process.exitcode}, "
            f"after a crash, a case of more than {LONGEST_S:.0f} s, or one that filled the memory: "
            f"{said}"
        )
    return report


def _try_cases(
    kind: str, folder: Path, path: Path, log: Path, seed: int, cases: int, seconds: float,
    first: int,
) -> None:  # fmt: skip
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    deadline = time.monotonic() + seconds
    with open(log, "w") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        report = Report(kind)
        tries = KINDS[kind](folder)
        outcomes: Counter[str] = Counter()
        for k in range(first, first + cases):
            if time.monotonic() > deadline:
                break
            faulthandler.dump_traceback_later(LONGEST_S, exit=True, file=stream)
            started = time.monotonic()
            try:
                outcomes += tries.try_one(random.Random(f"{seed} {kind} {k}"))
            except Exception as error:
                text = "".join(traceback.format_exception(error)[-12:])
                report.faults.append(f"seed {seed} case {k}: {text}")
            report.slowest_s = max(report.slowest_s, time.monotonic() - started)
            faulthandler.cancel_dump_traceback_later()
            report.tried = k + 1 - first
            report.inputs += tries.inputs_per_case
            report.outcomes = dict(outcomes.most_common())
            report.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            path.write_text(json.dumps(asdict(report)))


def failures(report: Report) -> Iterator[str]:
    """The faults, short enough to read."""
    for text in report.faults:
        yield text if len(text) < 4_000 else f"{text[:1_500]}\n...\n{text[-2_500:]}"
