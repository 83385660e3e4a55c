"""Servers that can't be reached, say nothing, or want to know who pays; and what users are told."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from eval_ingest.errors import SettingsError, SourceError, StoreError
from eval_ingest.objects import connection, greeting
from eval_ingest.objects.filesystems import payer_of
from eval_ingest.objects.reading import Objects
from eval_ingest.objects.writing import WritableObjects
from eval_ingest.settings import Settings
from eval_ingest.sources.discovery import find_datasets
from eval_ingest.sources.open import open_source
from eval_ingest_tests.support.servers import BUCKET, _serving, gcs_server, proxy, s3_server


@contextmanager
def silent_server() -> Iterator[str]:
    """Accepts every connection, and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    held.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for connection in held:
                connection.close()


@pytest.fixture(params=["gs", "s3", "weka"])
def silent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A URL whose server says nothing."""
    monkeypatch.setenv("EVAL_INGEST_ANSWER_SECONDS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with silent_server() as address:
        for variable in ("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL", "WEKA_ENDPOINT_URL"):
            monkeypatch.setenv(variable, address)
        yield f"{request.param}://{BUCKET}/crops"


@contextmanager
def ticking() -> Iterator[list[float]]:
    """When a thread woke up that sleeps for 10 ms in turn: on a busy machine less often."""
    ticks: list[float] = []
    ended = threading.Event()

    def count() -> None:
        while not ended.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.01)

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield ticks
    finally:
        ended.set()
        thread.join()


def test_a_server_that_says_nothing_is_told_at_once_and_others_go_on(silent: str) -> None:
    with pytest.raises(SourceError, match=r"http://127\.0\.0\.1:\d+ does not answer \(waited 1 s"):
        list(find_datasets(silent))
    began = time.monotonic()  # the client is made by now
    with ticking() as ticks, pytest.raises(SourceError) as told:
        open_source(silent)
    took = time.monotonic() - began
    assert "goes on where it stopped" not in str(told.value)
    assert "check the network" in str(told.value)
    assert "EVAL_INGEST_ANSWER_SECONDS=10" in str(told.value)
    assert took >= 1 and 10 < len(ticks) < 300  # nothing held the interpreter meanwhile


def test_an_archive_and_an_eval_root_behind_a_silent_server_are_told(
    silent: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("eval_ingest.objects.greeting.PATIENCE", 2)
    with pytest.raises(SourceError, match="does not answer"):
        open_source(f"{silent}/crops.tar.gz", archives=tmp_path)
    with pytest.raises(StoreError, match=r"does not answer \(waited 2 s\).* OLMOEARTH_EVAL_DATASE"):
        WritableObjects(silent).greet()
    assert "has not answered for 1 s; it is waited for up to 2 s" in caplog.text


def test_a_login_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVAL_INGEST_ANSWER_SECONDS", "1")
    hangs = threading.Event()
    monkeypatch.setattr(
        "eval_ingest.objects.filesystems.google_token", lambda: hangs.wait(30) and "anon"
    )
    monkeypatch.setattr("eval_ingest.objects.greeting.LOGIN_PATIENCE", 1)
    connection._server.cache_clear()  # nobody has logged in yet
    try:
        with pytest.raises(SourceError, match="the server that gives credentials does not answer"):
            Objects("gs://never-opened/crops", resumes=False).greet()
    finally:
        hangs.set()


def test_a_server_without_a_way_to_it_is_told_within_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVAL_INGEST_ANSWER_SECONDS", "20")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"  # free again: it refuses
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    for variable in ("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL", "WEKA_ENDPOINT_URL"):
        monkeypatch.setenv(variable, address)
    for scheme in ("gs", "s3", "weka"):
        with pytest.raises(SourceError):  # imports, and the client
            open_source(f"{scheme}://{BUCKET}/crops")
        refused = pytest.raises(
            SourceError, match=rf"{address} can't be reached.*check the network"
        )
        with ticking() as ticks, refused:
            open_source(f"{scheme}://{BUCKET}/crops")
        assert len(ticks) < 200


def test_validate_of_a_silent_or_refusing_server_ends_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = (
        "import sys, time; from eval_ingest.cli import main; t = time.monotonic(); "
        "rc = main(['validate', '--source', 'gs://bucket/crops']); "
        "print(rc, time.monotonic() - t)"
    )
    monkeypatch.setenv("EVAL_INGEST_ANSWER_SECONDS", "1")
    for kind in ("silent", "refusing"):
        with silent_server() as address:
            address = address if kind == "silent" else "http://127.0.0.1:9"
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
            )
        status, took = done.stdout.split()
        assert status == "1" and float(took) < 20  # imports and all, on a busy machine
        assert done.stderr.count("\n") == 1 and f"{address} " in done.stderr
        assert "goes on where it stopped" not in done.stderr


# ------------------------------------------------------------------------------ who pays for it


@contextmanager
def _answering(answer: "type[BaseHTTPRequestHandler]") -> Iterator[str]:
    with _serving(answer) as address:
        yield address


class _Billed(BaseHTTPRequestHandler):
    """Google's answer to whoever names no project that pays."""

    def do_GET(self) -> None:
        text = "Bucket is a requester pays bucket but no user project provided."
        if "userProject=my-project" in self.path and "/o/" in self.path:
            data, status = b"{}", 404
        elif "userProject=my-project" in self.path:
            data, status = json.dumps({"kind": "storage#objects", "items": []}).encode(), 200
        else:
            errors = [{"message": text, "domain": "global", "reason": "required"}]
            error = {"code": 400, "message": text, "errors": errors}
            data, status = json.dumps({"error": error}).encode(), 400
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_requester_pays_bucket_of_google_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVAL_INGEST_ANSWER_SECONDS", "30")
    with _answering(_Billed) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        with pytest.raises(SourceError) as told:
            open_source("gs://costly/crops")
        assert "costly is a requester-pays bucket" in str(told.value)
        assert "EVAL_INGEST_REQUESTER_PAYS=gs://costly=PROJECT" in str(told.value)
        assert "check the network" not in str(told.value)
        monkeypatch.setenv("EVAL_INGEST_REQUESTER_PAYS", "gs://other=x, gs://costly=my-project")
        with pytest.raises(SourceError, match="there is no bucket costly, or nothing in it"):
            open_source("gs://costly/crops")  # listed now; there is nothing in it


def test_the_project_that_pays_is_named_in_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVAL_INGEST_REQUESTER_PAYS", f"gs://{BUCKET}=my-project, s3://{BUCKET}")
    for start, sign in ((gcs_server, "userProject=my-project"), (s3_server, "requester")):
        with start() as server, proxy(server.address) as through:
            for key, value in server.reached_at(through.address).items():
                monkeypatch.setenv(key, value)
            objects = WritableObjects(f"{server.url}/paid")
            run = objects.run
            run(objects.put("a", b"1"))
            run(objects.replace(run(objects.stat("a")), b"2"))  # type: ignore[arg-type]
            assert run(objects.read("a")) == b"2"
            run(objects.list_folder(""))
            run(objects.find(""))
            run(objects.delete(["a"]))
            assert through.requests >= 7
            assert [line for line in through.asked if sign not in line] == []


def test_a_bucket_of_s3_that_refuses_names_the_variable_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with s3_server() as server, proxy(server.address) as through:
        through.refused = 403
        for key, value in server.reached_at(through.address).items():
            monkeypatch.setenv(key, value)
        with pytest.raises(SourceError, match=rf"EVAL_INGEST_REQUESTER_PAYS=s3://{BUCKET}$"):
            open_source(f"{server.url}/crops")


@pytest.mark.parametrize("text", ["costly", "gs://costly", "gs://a/b=c", "s3://b=x", "http://b=x"])
def test_a_payer_that_can_not_be_meant_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"takes gs://BUCKET=PROJECT"):
        Settings.load({"EVAL_INGEST_REQUESTER_PAYS": text})


def test_who_pays_goes_by_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVAL_INGEST_REQUESTER_PAYS", "gs://a=p, s3://b")
    assert payer_of("gs://a/x") == payer_of("gcs://a") == "p"
    assert payer_of("s3://b/x/y") == payer_of("s3a://b") == "requester"
    assert payer_of("gs://ab") == payer_of("s3://a") == payer_of("weka://b") == ""


def test_what_is_waited_for_is_noted_while_libraries_are_imported(
    silent: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    notes = []

    def load(url: str) -> None:
        deadline = time.monotonic() + 20
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        notes.extend(caplog.messages)

    monkeypatch.setattr(greeting, "load_library", load)
    monkeypatch.setattr(greeting, "_SILENT_S", 0.05)
    with caplog.at_level("INFO", "eval_ingest"), pytest.raises(SourceError):
        open_source(silent)
    assert len(notes) == 1
    assert silent in notes[0]
    assert "waiting for http://127.0.0.1:" in notes[0]
