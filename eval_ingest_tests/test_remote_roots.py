"""Eval roots: the same story on a folder, Google Cloud Storage, S3 and Weka's S3."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval_ingest import EvalDataset, pipeline
from eval_ingest.core.spec import SPLITS, DatasetSpec
from eval_ingest.errors import UnknownDatasetError
from eval_ingest.settings import Settings
from eval_ingest.store.layout import EvalRoot
from eval_ingest.store.registry import (
    read_registry,
    rebuild_registry,
    remove_dataset,
)
from eval_ingest.store.uri import open_root
from eval_ingest.verifying import verify_dataset
from eval_ingest_tests.servers import BUCKET, ObjectServer, gcs_server, s3_server

KINDS = ("local", "gs", "s3", "weka")


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, ObjectServer]]:
    with gcs_server() as gcs, s3_server() as s3:
        yield {"gs": gcs, "s3": s3, "weka": s3}


@dataclass
class Place:
    """An eval root, and this machine's view of it."""

    kind: str
    url: str
    machine: Callable[[str], None]
    """Go to another machine: one with a cache of its own."""

    @property
    def root(self) -> EvalRoot:
        return open_root(Settings.load())

    def job(self, source: Path, name: str = "crops", **spec: Any) -> pipeline.Job:
        parsed = DatasetSpec.parse({"name": name, "source": str(source), **spec}, "test")
        return pipeline.open_job(parsed, Settings.load())

    def ingest(self, source: Path, name: str = "crops", **spec: Any) -> list[pipeline.Outcome]:
        return pipeline.ingest(self.job(source, name, **spec))

    def read(self, name: str) -> bytes:
        """A file or object of the root."""
        if self.kind == "local":
            return Path(self.url, name).read_bytes()
        remote = self.root.remote
        assert remote is not None
        return remote.objects.run(remote.objects.read_current(name))[1]

    def names(self) -> set[str]:
        """Every file or object of the root, but for locks and leases."""
        if self.kind == "local":
            base = Path(self.url)
            found = {str(p.relative_to(base)) for p in base.rglob("*") if p.is_file()}
            return {name for name in found if not name.endswith(".lock")}
        remote = self.root.remote
        assert remote is not None
        found = {entry.name for entry in remote.objects.run(remote.objects.find(""))}
        return {name for name in found if not name.endswith(".lease")}


@pytest.fixture(params=KINDS)
def place(
    request: pytest.FixtureRequest,
    servers: dict[str, ObjectServer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Place:
    kind, folder = request.param, f"{tmp_path.name}/evals"
    if kind != "local":
        for key, value in servers[kind].environment.items():
            if kind != "weka" or key != "AWS_ENDPOINT_URL":
                monkeypatch.setenv(key, value)
        if kind == "weka":
            monkeypatch.setenv("WEKA_ENDPOINT_URL", servers[kind].address)
    url = str(tmp_path / "evals") if kind == "local" else f"{kind}://{BUCKET}/{folder}"
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", url)
    monkeypatch.setenv("EVAL_INGEST_WORKERS", "2")

    def machine(name: str) -> None:
        monkeypatch.setenv("EVAL_INGEST_CACHE", str(tmp_path / f"cache_{name}"))

    machine("a")
    return Place(kind, url, machine)


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


def test_ingest_load_resplit_remove(place: Place, small: Path, reference: Path) -> None:
    outcomes = place.ingest(small)
    assert all(outcome.ran for outcome in outcomes)
    assert list(read_registry(place.root)) == ["crops"]
    expected = samples(root=reference)
    assert_same(samples(), expected)
    names = place.names()
    local = {str(p.relative_to(reference)) for p in reference.rglob("*") if p.is_file()}
    assert {n for n in names if "/windows/" in n} == {n for n in local if "/windows/" in n}
    for name in ("crops/config.json", "crops/model.yaml", "registry.json", "crops/metadata.json"):
        assert name in names
    before = eval_splits(place)
    assert before == {w[0]: split for split in SPLITS for w in expected[split]}
    assert _verified(place) == []

    again = place.ingest(small)
    assert not any(outcome.ran for outcome in again)
    assert place.names() == names

    place.machine("b")  # which has nothing of all this
    assert_same(samples(), expected)
    assert not any(outcome.ran for outcome in place.ingest(small))

    resplit = place.ingest(small, splits={"strategy": "random", "seed": 1})
    assert [o.stage for o in resplit if o.ran] == list(pipeline.STAGES[1:])
    moved = samples()
    assert {s[0] for split in SPLITS for s in moved[split]} == set(before)
    after = eval_splits(place)
    assert after == {w[0]: split for split in SPLITS for w in moved[split]} != before
    assert _verified(place) == []

    place.machine("a")  # which still has what was true before
    assert_same(samples(), moved)
    remove_dataset(place.root, "crops")
    assert read_registry(place.root) == {}
    assert {n for n in place.names() if not n.startswith("catalog/")} == {"registry.json"}
    with pytest.raises(UnknownDatasetError, match="no dataset 'crops'"):
        EvalDataset("crops", "val")


def _verified(place: Place) -> list[str]:
    result = verify_dataset(place.root, "crops", pipeline.no_progress)
    assert "10 windows" in result.checked
    return result.problems


def test_registry_rebuild(place: Place, small: Path) -> None:
    place.ingest(small, "one", copy="stream")
    place.ingest(small, "two", copy="stream")
    assert sorted(rebuild_registry(place.root)) == ["one", "two"]
