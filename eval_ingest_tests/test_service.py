"""Dagster as a service: `dagster dev` with its daemon, a bucket that it watches, and a browser.

One service for all tests here. The browser needs Debian's chromium, and playwright from PyPI.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from eval_ingest import EvalDataset, pipeline
from eval_ingest.testing import demo
from eval_ingest_tests.support.checkout import REPOSITORY, environment
from eval_ingest_tests.support.servers import ObjectServer, gcs_server

pytestmark = pytest.mark.slow

LOCATION = "eval_ingest.definitions"
PATIENCE_S = 180.0
"""Nothing here takes so long, unless the machine is very busy."""


@dataclass
class Service:
    """A running `dagster dev`, on the demo's dataset and on an empty bucket."""

    home: Path
    address: str
    bucket: ObjectServer
    log: Path
    terminated: list[str] = field(default_factory=list)
    """Datasets whose only run was: nothing tries them again, as long as the service runs."""

    @property
    def evals(self) -> Path:
        return self.home / "evals"

    def ask(self, query: str) -> Any:
        """The answer to a GraphQL query."""
        request = urllib.request.Request(
            f"{self.address}/graphql",
            json.dumps({"query": query}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = json.load(answer)
        assert "errors" not in content, content["errors"]
        return content["data"]

    def until(self, what: str, found: Callable[[], Any]) -> Any:
        """Ask until there is something; a server that doesn't answer yet isn't an error."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                value = found()
            except OSError:
                value = None
            if value:
                return value
            time.sleep(0.5)
        raise AssertionError(f"{what}: not in {PATIENCE_S:.0f} s:\n{self.log.read_text()[-4000:]}")

    def nodes(self) -> dict[str, list[str]]:
        """Partitions by asset."""
        found = self.ask("{ assetNodes { assetKey { path } partitionKeys } }")["assetNodes"]
        return {node["assetKey"]["path"][-1]: node["partitionKeys"] for node in found}

    def run_of(self, dataset: str) -> str:
        """Status of the last run on a dataset; "" without one."""
        found = self._runs(dataset)
        return str(found[0]["status"]) if found else ""

    def pools_of(self, dataset: str) -> list[str]:
        """The pools that the last run on a dataset counts for."""
        return list(self._runs(dataset)[0]["allPools"] or ())

    def _runs(self, dataset: str) -> list[dict[str, Any]]:
        tags = f'{{ key: "eval_ingest/dataset", value: "{dataset}" }}'
        found = self.ask(
            f"{{ runsOrError(filter: {{ tags: [{tags}] }}, limit: 1) "
            "{ ... on Runs { results { status allPools } } } }"
        )["runsOrError"]["results"]
        return list(found)

    def launch(self, asset: str) -> str:
        """Materialise an asset, as its button does; the run's id."""
        repository = (
            f'repositoryLocationName: "{LOCATION}", repositoryName: "__repository__", '
            'jobName: "__ASSET_JOB"'
        )
        selected = f'assetSelection: [{{ path: ["{asset}"] }}], assetCheckSelection: []'
        answer = self.ask(
            f"mutation {{ launchRun(executionParams: {{ selector: {{ {repository}, {selected} }}, "
            'runConfigData: "{}", mode: "default" }) '
            "{ ... on LaunchRunSuccess { run { runId } } } }"
        )
        return str(answer["launchRun"]["run"]["runId"])

    def status(self, run: str) -> str:
        """Of a run."""
        query = f'{{ runOrError(runId: "{run}") {{ ... on Run {{ status }} }} }}'
        return str(self.ask(query)["runOrError"]["status"])

    def ended(self, dataset: str) -> str:
        """The same, once it is over."""
        status = self.run_of(dataset)
        return status if status in ("SUCCESS", "FAILURE", "CANCELED") else ""

    def drop(self, folder: Path, name: str) -> None:
        """Copy a folder into the bucket."""
        with pytest.MonkeyPatch.context() as patch:
            for key, value in self.bucket.environment.items():
                patch.setenv(key, value)
            self.bucket.upload(folder, name)

    def reload(self) -> None:
        """As the button Reload definitions."""
        mutation = f'reloadRepositoryLocation(repositoryLocationName: "{LOCATION}")'
        self.ask(f"mutation {{ {mutation} {{ __typename }} }}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("service")
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(REPOSITORY / name, home)
    demo.write_demo_dataset(home / "studio", windows=48)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = home / "dev.log"
    with gcs_server() as bucket:
        (home / ".env").write_text(
            f"STUDIO_ROOT={home}/studio\n"
            f"OLMOEARTH_EVAL_DATASETS={home}/not_this\n"  # what is exported wins
            f"EVAL_INGEST_STUDIO_ROOTS={bucket.url}/datasets\n"
            "EVAL_INGEST_DISCOVERY_SECONDS=5\n"
            "EVAL_INGEST_WORKERS=2\n"
        )
        with log.open("wb") as stream:
            server = subprocess.Popen(
                [sys.executable, "-m", "dagster", "dev", "--port", str(port)],
                cwd=home,
                env=environment(OLMOEARTH_EVAL_DATASETS=f"{home}/evals", **bucket.environment),
                stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip
        found = Service(home, f"http://127.0.0.1:{port}", bucket, log)
        try:
            found.until("the page and the partitions", lambda: found.nodes()["window_index"])
            yield found
            for name in found.terminated:
                assert found.run_of(name) in ("", "CANCELED")
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(120)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
    assert server.wait() != -signal.SIGKILL, log.read_text()[-3_000:]
    assert not list(home.glob(".tmp_dagster_home*")) and not (home / "not_this").exists()
    assert (home / ".dagster" / "schedules").is_dir()


def test_the_page_knows_every_asset_and_lists_the_catalog_as_partitions(service: Service) -> None:
    nodes = service.nodes()
    assert {"tolbi_crops", "eval_sweep", *pipeline.STAGES} <= nodes.keys()
    assert "nandi" in nodes  # and it is no partition: its source isn't here
    assert "tolbi_crops" in nodes["window_index"] and "nandi" not in nodes["window_index"]


def test_the_page_is_served_on_loopback_alone(service: Service) -> None:
    port = int(service.address.rpartition(":")[2])
    listening = "0A"
    bound = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            host, _, number = local.partition(":")
            if state == listening and int(number, 16) == port:
                bound.append(host)
    assert bound == ["0100007F"]  # 127.0.0.1, little-endian


@pytest.fixture(scope="module")
def dropped(service: Service, small: Path) -> None:
    """A dataset that has come into the bucket, and was found and ingested."""
    service.drop(small, "datasets/team/Rice 2024")
    assert service.until("a run of rice_2024", lambda: service.ended("rice_2024")) == "SUCCESS"


@pytest.mark.usefixtures("dropped")
def test_a_dataset_dropped_into_the_bucket_loads_without_reload_or_restart(
    service: Service,
) -> None:
    assert service.pools_of("rice_2024") == ["ingest"]
    assert len(EvalDataset("rice_2024", "train", root=service.evals)) > 0
    assert "rice_2024" in service.nodes()["registry_entry"]
    assert "rice_2024" not in service.nodes()  # its own asset comes with the definitions
    service.reload()
    service.until("the asset rice_2024", lambda: "rice_2024" in service.nodes())


# ------------------------------------------------------------------------------------- a browser


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    from playwright import sync_api

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's chromium")
    arguments = [
        "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update",
    ]  # fmt: skip
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=chromium,
            headless=True,
            args=arguments,
            viewport={"width": 1500, "height": 1400},
        )
        browser.set_default_timeout(1000 * PATIENCE_S / 3)
        page = browser.new_page()
        yield page
        page.screenshot(path=tmp_path / "last.png")
        browser.close()


def look(page: Any, name: str) -> None:
    """Keep a picture where SCREENSHOTS_OF_TESTS says, for people who want to see it."""
    folder = os.environ.get("SCREENSHOTS_OF_TESTS")
    if folder:
        page.wait_for_timeout(1500)
        page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.mark.usefixtures("dropped")
def test_a_person_sees_the_tick_that_found_a_dataset(service: Service, page: Any) -> None:
    page.goto(f"{service.address}/locations/{LOCATION}/sensors/studio_discovery")
    tick = page.get_by_role("row").filter(has_text="1 run requested").filter(has_text="View logs")
    tick.first.get_by_text("View logs").click()
    page.get_by_text("(10 windows); its ingest is requested").first.wait_for()
    look(page, "0_tick")


def test_a_person_materialises_a_dataset_by_clicking_and_sees_it(
    service: Service, page: Any
) -> None:
    page.goto(f"{service.address}/asset-groups")
    for group in ("studio_ingest", "eval_datasets", "not_reachable_here", "eval_scores"):
        page.get_by_text(group, exact=True).first.wait_for()
    look(page, "1_groups")

    page.goto(f"{service.address}/assets/tolbi_crops")
    page.get_by_text("Tolbi tree crops").wait_for()
    page.get_by_role("button", name="Materialize").first.click()
    confirm = page.get_by_role("button", name="Confirm")
    started = page.get_by_text("Launched run")
    confirm.or_(started).first.wait_for()
    if confirm.is_visible():  # asked as long as registry_entry has nothing at all
        confirm.click()
    assert service.until("a run of tolbi_crops", lambda: service.ended("tolbi_crops")) == "SUCCESS"
    assert service.pools_of("tolbi_crops") == ["ingest"]

    page.goto(f"{service.address}/assets/tolbi_crops")
    page.get_by_text("verdict", exact=True).wait_for()
    look(page, "2_dataset")

    page.goto(f"{service.address}/assets/window_index?view=partitions&partition=tolbi_crops")
    page.get_by_text("dagster/row_count").wait_for()
    page.get_by_text("52", exact=True).first.wait_for()  # 48 windows, and 4 broken ones
    page.get_by_text("raster_unreadable").first.wait_for()
    look(page, "3_index")

    page.goto(f"{service.address}/assets/registry_entry?view=partitions&partition=tolbi_crops")
    splits = page.get_by_role("table").filter(has_text="class distance from train").last
    splits.wait_for()
    assert splits.locator("tbody tr td:first-child").all_inner_texts() == ["train", "val", "test"]
    classes = page.get_by_role("table").filter(has_text="test, % of pixels").last
    assert "palm_oil" in classes.locator("tbody tr td:first-child").all_inner_texts()
    look(page, "4_partition")

    page.get_by_text("[Show Markdown]").first.click()
    pictures = page.locator("img[src^='data:image/png']")
    pictures.nth(2).wait_for()
    widths = pictures.evaluate_all("found => found.map(image => image.naturalWidth)")
    assert len(widths) == 3 and min(widths) > 200
    look(page, "5_pictures")

    for asset in ("registry_entry", "tolbi_crops"):
        page.goto(f"{service.address}/assets/{asset}?view=checks")
        page.get_by_text("EvalDataset opens train, val and test").first.wait_for()
        page.get_by_text("verdict", exact=True).first.wait_for()
    for check in ("no_leakage", "units_plausible", "dataset_loads", "verdict"):
        page.get_by_text(check, exact=True).first.wait_for()
    look(page, "6_checks")


# ----------------------------------------------------------------------------------- terminating


def test_terminating_a_run_ends_it_within_seconds_and_nothing_tries_it_again(
    service: Service,
) -> None:
    run = service.launch("tolbi_crop")
    service.until("the run to begin", lambda: service.status(run) == "STARTED")
    began = time.monotonic()
    service.ask(f'mutation {{ terminateRun(runId: "{run}") {{ __typename }} }}')
    service.until("the run to end", lambda: service.status(run) == "CANCELED")
    assert time.monotonic() - began < 20  # two, unless the machine is very busy
    service.terminated.append("tolbi_crop")
