"""`make bench-many DATASETS=1000`: what it costs to look at an eval root with so many datasets.

A small dataset is ingested, and stands there under so many names, each with a source folder and a
spec in the catalog; beside them is the catalog that is built in, of which most can't be reached
from here. Nothing has changed since they were ingested. What is timed: commands, a look for new
datasets, what Dagster loads, and what its page asks for, each as a person waits for it.
"""

import argparse
import json
import logging
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.bench import CACHE, dataset, family, machine
from benchmarks.places import cpu_seconds

WAITS_S = 180.0
QUERIES = {
    "asset graph": (
        "{ assetNodes { assetKey { path } groupName opNames jobNames "
        "dependencyKeys { path } dependedByKeys { path } isPartitioned hasAssetChecks } }"
    ),
    "catalog": (
        "{ assetsOrError { ... on AssetConnection { nodes { key { path } "
        "definition { groupName description kinds computeKind isPartitioned "
        "repository { name location { name } } } } } } }"
    ),
    "latest of every asset": (
        "query($keys: [AssetKeyInput!]!) { assetsLatestInfo(assetKeys: $keys) { assetKey { path } "
        "latestMaterialization { timestamp runId } latestRun { id status } } }"
    ),
    "partitions of registry_entry": (
        '{ assetNodeOrError(assetKey: {path: ["registry_entry"]}) { ... on AssetNode { '
        "partitionStats { numMaterialized numPartitions } assetPartitionStatuses { "
        "... on DefaultPartitionStatuses { materializedPartitions } } } } }"
    ),
    "checks of registry_entry": (
        '{ assetNodeOrError(assetKey: {path: ["registry_entry"]}) { ... on AssetNode { '
        "assetChecksOrError { ... on AssetChecks { checks { name partitionStatuses { "
        "... on AssetCheckDefaultPartitionStatuses { succeededPartitions failedPartitions } "
        "} } } } } } }"
    ),
    "a dataset's page": (
        '{ assetNodeOrError(assetKey: {path: ["NAME"]}) { ... on AssetNode { description '
        "assetMaterializations(limit: 1) { metadataEntries { label ... on MarkdownMetadataEntry "
        "{ mdStr } } } assetChecksOrError { ... on AssetChecks { checks { name "
        "executionForLatestMaterialization { status } } } } } } }"
    ),
}
"""What the page asks for, by what it shows; NAME is a dataset."""


def main() -> int:
    """Print a line a look."""
    parser = argparse.ArgumentParser(prog="make bench-many", description=__doc__)
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--show", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    world = World((CACHE / f"datasets_{options.datasets}").absolute())
    if options.show:
        world.show()
        return 0
    world.write(options.datasets)
    print(f"{machine()}; {options.datasets:,} datasets; load {os.getloadavg()[0]:.1f}")
    print(f"  {'':42} {'seconds':>9} {'of a core':>9}")
    for what, seconds, cpu in world.looks():
        print(f"  {what:42} {seconds:9.2f} {cpu:9.2f}", flush=True)
    return 0


class World:
    """Sources, an eval root, and a DAGSTER_HOME."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.studio, self.evals, self.home = (folder / n for n in ("studio", "evals", "home"))
        self.environment = {
            **{key: value for key, value in os.environ.items() if key != "STUDIO_ROOT"},
            "OLMOEARTH_EVAL_DATASETS": str(self.evals),
            "EVAL_INGEST_CATALOG": str(folder / "catalog"),
            "EVAL_INGEST_STUDIO_ROOTS": str(self.studio),
            "EVAL_INGEST_CACHE": str(folder / "cache"),
            "DAGSTER_HOME": str(self.home),
        }

    # ---------------------------------------------------------------------------------- writing

    def write(self, datasets: int) -> None:
        """Everything that is looked at, once."""
        marker = self.folder / ".complete"
        if marker.exists():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        print(f"writing {datasets:,} datasets (once) ...", file=sys.stderr)
        source = dataset(24, size=16, timesteps=4)
        first, *others = [f"crops_{k:04}" for k in range(datasets)]
        shutil.copytree(source, self.studio / first)
        self._run("-m", "eval_ingest", "ingest", first, "--source", str(self.studio / first))
        for name in others:
            self._repeat(first, name)
        self._register()
        with tempfile.TemporaryDirectory(dir="/dev/shm") as home:  # each event is synced
            self._run(
                "-m", "benchmarks.many_datasets", "--show", "--datasets", str(datasets), home=home
            )
            shutil.copytree(home, self.home)
        marker.touch()

    def _repeat(self, first: str, name: str) -> None:
        """Another dataset with the same bytes, its own name, and its own source."""
        from eval_ingest.sources.discovery import source_fingerprint
        from eval_ingest.store.outcomes import read_source_state
        from eval_ingest.store.registry import require_metadata, write_metadata
        from eval_ingest.store.roots.base import EvalRoot
        from eval_ingest.store.seal import write_sealed_json

        for place in (self.studio, self.evals):
            shutil.copytree(place / first, place / name, copy_function=_link)
        root, source = EvalRoot(self.evals), str(self.studio / name)
        store = root.dataset(name)
        entry = require_metadata(root, first)
        spec = entry.spec.model_copy(update={"name": name, "source": source})
        changed = {"name": name, "spec": spec, "source": source}
        for path in (store.layout.metadata, store.layout.opening, store.layout.source_state):
            path.unlink()
        write_metadata(store, entry.model_copy(update=changed))
        state = read_source_state(root.dataset(first))
        assert state is not None
        state = state.model_copy(update={"fingerprint": source_fingerprint(source)})
        write_sealed_json(store.layout.source_state, state.model_dump())
        (self.folder / "catalog" / f"{name}.yaml").write_text(f"name: {name}\nsource: {source}\n")

    def _register(self) -> None:
        from eval_ingest.store.registry import rebuild_registry
        from eval_ingest.store.roots.base import EvalRoot

        rebuild_registry(EvalRoot(self.evals))

    def show(self) -> None:
        """Have Dagster know them all, each with the first one's pictures and one of its checks."""
        import dagster as dg

        from eval_ingest.defs import known_datasets
        from eval_ingest.defs.checks import VERDICT
        from eval_ingest.defs.resources import build_resources
        from eval_ingest.settings import Settings

        drawn: list[Any] = []

        def once(*args: Any) -> Any:
            return drawn[0] if drawn else drawn.append(draw(*args)) or drawn[0]

        draw, known_datasets.draw_pictures = known_datasets.draw_pictures, once
        known_datasets.LOOK_S = 3600.0
        known_datasets.evaluations = partial(known_datasets.evaluations, wanted=[VERDICT])
        settings = Settings.load()
        with dg.DagsterInstance.get() as instance:
            context = dg.build_sensor_context(
                instance=instance, resources=build_resources(settings)
            )
            found = known_datasets.known_datasets(context)
            assert isinstance(found, dg.SensorResult), found
            for request in found.dynamic_partitions_requests or ():
                instance.add_dynamic_partitions(
                    request.partitions_def_name, list(request.partition_keys)
                )
            for event in found.asset_events:
                instance.report_runless_asset_event(event)

    # ------------------------------------------------------------------------------------ looks

    def looks(self) -> Iterator[tuple[str, float, float]]:
        """What is looked at, seconds until it is there, and seconds of processor time."""
        for words in (["list"], ["info", "crops_0000"], ["discover"], ["discover"]):
            yield f"eval-ingest {' '.join(words)}", *self._timed("-m", "eval_ingest", *words)
        yield "import eval_ingest.definitions", *self._timed("-c", "import eval_ingest.definitions")
        yield "the same, and load them", *self._timed("-c", _LOAD)
        with self._page() as (page, seconds, cpu):
            yield "page: from start to the first answer", seconds, cpu
            keys = [
                node["assetKey"]
                for node in page.ask("{ assetNodes { assetKey { path } } }")["assetNodes"]
            ]
            for what, query in QUERIES.items():
                asked = query.replace("NAME", "crops_0000")
                variables = {"keys": keys} if "$keys" in query else {}
                for turn in ("first", "again"):
                    yield f"page: {what}, {turn}", *page.timed(asked, variables)

    def _timed(self, *arguments: str) -> tuple[float, float]:
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        self._run(*arguments)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        return time.perf_counter() - began, cpu

    def _run(self, *arguments: str, home: str = "") -> None:
        environment = {**self.environment, "DAGSTER_HOME": home or str(self.home)}
        subprocess.run(
            [sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL
        )

    @contextmanager
    def _page(self) -> Iterator[tuple["Page", float, float]]:
        """Dagster's page, and the seconds until it had loaded the definitions."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "dagster_webserver", "--host", "127.0.0.1", "--port",
                   str(port), "-m", "eval_ingest.definitions"]  # fmt: skip
        began = time.perf_counter()
        with open(self.folder / "webserver.log", "w") as log:
            server = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=log, stderr=log
            )
        page = Page(port, server.pid)
        try:
            while time.perf_counter() - began < WAITS_S:
                try:
                    page.ask("{ repositoriesOrError { __typename } }")
                    break
                except OSError:
                    time.sleep(0.1)
            yield page, time.perf_counter() - began, _cpu(server.pid)
        finally:
            server.terminate()
            server.wait()


class Page(NamedTuple):
    """Dagster's page, as a browser asks it."""

    port: int
    pid: int

    def timed(self, query: str, variables: dict[str, Any]) -> tuple[float, float]:
        """Seconds of an answer, and of processor time."""
        began, before = time.perf_counter(), _cpu(self.pid)
        self.ask(query, variables)
        return time.perf_counter() - began, _cpu(self.pid) - before

    def ask(self, query: str, variables: dict[str, Any] | None = None) -> Any:
        """What is answered."""
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            json.dumps({"query": query, "variables": variables or {}}).encode(),
            {"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(asked, timeout=WAITS_S) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode()[:1000]) from None
        if found.get("errors"):
            raise ValueError(str(found["errors"])[:1000])
        return found["data"]


def _cpu(pid: int) -> float:
    return sum(map(cpu_seconds, family(pid)))


def _link(source: str, target: str) -> None:
    """Windows and packs take no room; the few files that looks go by have times of their own."""
    (os.link if "/windows/" in source or "/samples/" in source else shutil.copy2)(source, target)


_LOAD = """
from eval_ingest.definitions import build_defs
build_defs().get_repository_def().asset_graph
"""


if __name__ == "__main__":
    sys.exit(main())
