"""Eval roots of every kind: a folder, Google Cloud Storage, S3 and Weka's S3, as fixtures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eval_ingest import pipeline
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.job import Job, open_job
from eval_ingest.objects.writing import WritableObjects
from eval_ingest.settings import Settings
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.roots.open import open_root
from eval_ingest_tests.support.servers import BUCKET, ObjectServer

KINDS = ("local", "gs", "s3", "weka")


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

    def job(self, source: Path, name: str = "crops", **spec: Any) -> Job:
        parsed = DatasetSpec.parse({"name": name, "source": str(source), **spec}, "test")
        return open_job(parsed, Settings.load())

    def ingest(self, source: Path, name: str = "crops", **spec: Any) -> list[pipeline.Outcome]:
        return pipeline.ingest(self.job(source, name, **spec))

    @property
    def objects(self) -> WritableObjects:
        """Of a remote root."""
        root: Any = self.root
        return root.mirror.objects

    def read(self, name: str) -> bytes:
        """A file or object of the root."""
        if self.kind == "local":
            return Path(self.url, name).read_bytes()
        return self.objects.run(self.objects.read_current(name))[1]

    def write(self, name: str, data: bytes) -> None:
        """Put a file or object, as somebody else would."""
        if self.kind == "local":
            Path(self.url, name).write_bytes(data)
        else:
            self.objects.run(self.objects.put(name, data))

    def remove(self, name: str) -> None:
        """Remove a file or object."""
        if self.kind == "local":
            Path(self.url, name).unlink()
        else:
            self.objects.run(self.objects.delete([name]))

    def names(self) -> set[str]:
        """Every file or object of the root, but for locks and leases."""
        if self.kind == "local":
            base = Path(self.url)
            found = {str(p.relative_to(base)) for p in base.rglob("*") if p.is_file()}
            return {name for name in found if not name.endswith(".lock")}
        found = {entry.name for entry in self.objects.run(self.objects.find(""))}
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
