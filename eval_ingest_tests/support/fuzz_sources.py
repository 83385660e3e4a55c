"""Damaged sources: windows, configurations, catalog entries, archives."""

import contextlib
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from eval_ingest import EvalDataset, pipeline
from eval_ingest.core.spec import SPLITS, DatasetSpec
from eval_ingest.decoding.judge import read_window
from eval_ingest.errors import EvalIngestError
from eval_ingest.sources.local import LocalSource
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest_tests.support import factories, mutation
from eval_ingest_tests.support.comparing import compare
from eval_ingest_tests.support.fuzz_kinds import Fault, Kind, check_message, make_job
from eval_ingest_tests.support.oracle import OracleSample, rslearn_samples


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
            damaged[f"{folder.parent.name}/{folder.name}"] = self.damage(rng, folder)
        try:
            pipeline.ingest(make_job(self.work, self.root, "fuzzed", max_invalid_fraction=1))
        except EvalIngestError as error:
            check_message(error)
            return Counter({f"ingest refused ({type(error).__name__})": len(damaged)})
        index = read_outcome(EvalRoot(self.root).dataset("fuzzed"), "window_index")
        problems = index.table["problems"].to_pylist()
        outcome = Counter(found[0]["code"] if found else "valid" for found in problems)
        valid = self._valid(damaged)
        outcome["equal to rslearn"] = len(valid)
        return outcome

    def damage(self, rng: random.Random, folder: Path) -> str:
        """Change something of a window; returns what."""
        return damage_window(rng, folder)

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


class Configurations(Kind):
    """Configurations of any kind of dataset, whose windows stay whole."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sources = [write(folder / name) for name, write in factories.CASES.items()]
        self.work = folder / "work"

    def copied(self, rng: random.Random) -> tuple[Path, Path]:
        """A source, and a configuration file, to be changed, of its copy in `work`."""
        source = rng.choice(self.sources)
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        (self.work / "windows").symlink_to(source / "windows")
        names = [n for n in ("config.json", "model.yaml", "olmoearth_run.yaml")
                 if (source / n).exists()]  # fmt: skip
        for name in names:
            shutil.copyfile(source / name, self.work / name)
        return source, self.work / rng.choice(names)


class Configs(Configurations):
    """config.json, model.yaml and olmoearth_run.yaml: resolved, or told what is wrong.

    What is resolved must be good enough to read windows with.
    """

    def try_one(self, rng: random.Random) -> Counter[str]:
        source, path = self.copied(rng)
        self._damage(rng, path)
        if rng.random() < 0.1:
            (self.work / "model.yaml").unlink()
        spec = mutation.odd_value(rng) if rng.random() < 0.05 else None
        try:
            job = make_job(self.work, self.folder / "root", "fuzzed",
                       **({"groups": [str(spec)]} if spec is not None else {}))  # fmt: skip
        except EvalIngestError as error:
            check_message(error)
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
            check_message(error)
            return Counter({type(error).__name__: 1})
        again = parse_spec(
            _yaml(spec.model_dump(mode="json", by_alias=True)).decode(), "again.yaml"
        )
        if again != spec:
            raise Fault(f"a spec that isn't what it was written as: {spec}")
        return Counter({"parsed": 1})
