"""What a machine lacks is told as that, whoever raised the error: not as network, data or root."""

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import rasterio

from eval_ingest import EvalDataset, cli, pipeline
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.decoding.isolation import isolated
from eval_ingest.decoding.machine import blame
from eval_ingest.decoding.problems import Unreadable
from eval_ingest.errors import IntegrityError, MachineError, StoreError, lacking
from eval_ingest.job import Job, open_job
from eval_ingest.objects import connection
from eval_ingest.objects.explain import EvalRootWords, SourceWords
from eval_ingest.objects.reading import Objects
from eval_ingest.objects.retry import Limits
from eval_ingest.settings import Settings
from eval_ingest.sources.discovery import find_datasets
from eval_ingest.store import npy
from eval_ingest.store.atomic import store_error
from eval_ingest.waiting import COPIES, SOURCES
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.factories import first_window, raster_of

Copied = Callable[[str], Path]

THREADS = "raise the limit of processes"
HANDLES = "raise the limit of open files"
MEMORY = "free memory"


def _botocore(error: Exception) -> Exception:
    from botocore.exceptions import HTTPClientError

    return HTTPClientError(error=error)  # type: ignore[no-any-return]


def _aiohttp(error: OSError) -> Exception:
    from aiohttp import ClientOSError

    outer = ClientOSError(error.errno, "Cannot connect to host")
    outer.__cause__ = error
    return outer


LACKS: dict[str, tuple[Exception, str]] = {
    "threads": (RuntimeError("can't start new thread"), THREADS),
    "memory": (MemoryError(), MEMORY),
    "handles": (OSError(errno.EMFILE, "Too many open files"), HANDLES),
    "the machine's handles": (OSError(errno.ENFILE, "Too many open files in system"), "close some"),
    "memory, as the system says it": (OSError(errno.ENOMEM, "Cannot allocate memory"), MEMORY),
    "threads, as botocore says it": (_botocore(RuntimeError("can't start new thread")), THREADS),
    "handles, as botocore says it": (_botocore(OSError(errno.EMFILE, "Too many open files")),
                                     HANDLES),
    "handles, as aiohttp says it": (_aiohttp(OSError(errno.EMFILE, "Too many open files")),
                                    HANDLES),
}  # fmt: skip


@pytest.mark.parametrize("lack", sorted(LACKS))
@pytest.mark.parametrize("words", [SourceWords("s3://b/x"), EvalRootWords("gs://b/x")])
def test_no_bucket_is_blamed_for_what_the_machine_lacks(lack: str, words: SourceWords) -> None:
    error, cure = LACKS[lack]
    for told in (
        words.failed("reading x", error, Limits(), "your credentials"),
        words.unusable(error),
        words.silent("host", 3.0, error),
    ):
        assert isinstance(told, MachineError)
        assert cure in str(told) and "network" not in str(told)


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(errno.ECONNRESET, "reset"), TimeoutError(), OSError(errno.EIO, "x"),
     _aiohttp(OSError(errno.ECONNREFUSED, "refused")), _botocore(ValueError("x"))],
)  # fmt: skip
def test_what_a_network_does_is_no_fault_of_the_machine(error: Exception) -> None:
    told = SourceWords("s3://b/x").failed("reading x", error, Limits(), "your credentials")
    assert not isinstance(told, MachineError) and "check the network" in str(told)


def test_without_handles_whatever_is_said_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        told = lacking(OSError("Name or service not known"))
    assert told is not None and HANDLES in str(told)


# --------------------------------------------------------------------------- in whole ingests


def _job(source: str, root: Path) -> Job:
    spec = DatasetSpec.parse({"name": "crops", "source": source}, "test")
    settings = Settings(eval_root=str(root), workers=2, cache=str(root.parent / "cache"))
    return open_job(spec, settings)


@pytest.fixture
def in_a_bucket(small: Path) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    for path in small.rglob("*"):
        if path.is_file():
            memory.pipe(f"/threads/crops/{path.relative_to(small)}", path.read_bytes())
    yield "memory://threads/crops"
    memory.rm("/threads", recursive=True)


@pytest.mark.parametrize("place", ["a folder", "a bucket"])
def test_a_thread_that_can_not_be_started_ends_a_run_that_can_be_repeated(
    place: str, small: Path, in_a_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(small) if place == "a folder" else in_a_bucket
    whole, left = threading.Thread.start, [0]

    def start(thread: threading.Thread) -> None:
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("can't start new thread")
        whole(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    for waiting in (SOURCES, COPIES):  # threads read ahead and write behind
        monkeypatch.setattr(waiting, "is_long", True)
    ended = 0
    for number in range(1, 30, 3):
        connection._server.cache_clear()
        left[0], root = number, tmp_path / f"root_{number}"
        try:
            outcomes = pipeline.ingest(_job(source, root))
        except MachineError as error:
            assert THREADS in str(error)
            ended += 1
            assert not (root / "crops" / "metadata.json").exists()
            outcomes = pipeline.ingest(_job(source, root))
        assert outcomes[0].value.summary.reasons == {}
    assert ended > 3


@pytest.mark.parametrize(
    ("error", "cure"), [(OSError(errno.EMFILE, "x"), HANDLES), (MemoryError(), MEMORY)]
)
def test_packed_samples_are_not_damaged_where_the_machine_lacks_something(
    error: Exception, cure: str, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = EvalDataset("crops", "train", root=reference)

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(npy, "open", refuse, raising=False)
    monkeypatch.setattr(npy.pa, "memory_map", refuse)
    for ask in (lambda: train[0], lambda: EvalDataset("crops", "train", root=reference)):
        with pytest.raises((MachineError, MemoryError)) as caught:
            ask()
        if isinstance(error, OSError):
            assert cure in str(caught.value)


@pytest.mark.parametrize("error", [errno.EACCES, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT])
def test_packed_samples_out_of_reach_are_not_made_anew(
    error: int, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open

    def refuse(path: Any, *more: Any, **others: Any) -> Any:
        if str(path).endswith("target.npy"):
            raise OSError(error, os.strerror(error))
        return opened(path, *more, **others)

    pipeline.ingest(make_job(small, tmp_path))
    before = {path.name for path in (tmp_path / "crops" / "samples").iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(npy, "open", refuse, raising=False)
        with pytest.raises(StoreError, match=os.strerror(error)) as caught:
            pipeline.ingest(make_job(small, tmp_path, splits={"strategy": "random", "seed": 5}))
    assert not isinstance(caught.value, IntegrityError)
    pipeline.ingest(make_job(small, tmp_path))
    assert {path.name for path in (tmp_path / "crops" / "samples").iterdir()} == before


@pytest.mark.parametrize("where", ["root", "root/crops", "crops/samples", "crops/val"])
def test_a_root_that_can_not_be_listed_ends_the_run_with_its_cure(
    where: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if str(path).endswith(where):
            raise OSError(errno.ENFILE, "Too many open files in system")
        return scandir(path)

    job = make_job(small, tmp_path / "root")
    pipeline.ingest(job)
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", refuse)
        with pytest.raises(MachineError):
            pipeline.ingest(job)
    assert pipeline.ingest(job)[0].value.summary.reasons == {}


def test_a_folder_that_can_not_be_listed_for_want_of_handles_is_not_empty(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("windows"):
            raise OSError(errno.EMFILE, "Too many open files")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(MachineError, match=HANDLES):
        list(find_datasets(str(small)))


def test_files_of_a_root_are_not_to_blame_either() -> None:
    with pytest.raises(MachineError, match=HANDLES):
        store_error("x", "writing", OSError(errno.EMFILE, "Too many open files"))
    full = store_error("x", "writing", OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(full, StoreError) and not isinstance(full, IntegrityError)


@pytest.mark.parametrize("lack", ["threads", "memory", "handles"])
def test_a_command_says_it_in_a_line(
    lack: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, cure = LACKS[lack]

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("eval_ingest.api.list_datasets", fail)
    assert cli.main(["list"]) == 1
    told = capsys.readouterr()
    assert cure in told.err and "Traceback" not in told.err


# ------------------------------------------------------------------------ decoders in processes


def load_libraries() -> None:
    """Nothing is needed."""


def killed_from_outside() -> tuple[None, int]:
    os.kill(os.getpid(), signal.SIGKILL)
    return None, 0


def test_a_decoder_that_is_killed_is_no_verdict_on_what_it_read() -> None:
    with pytest.raises(MachineError, match="lack of memory"):
        isolated.run(killed_from_outside)


def pid() -> tuple[None, int]:
    return None, os.getpid()


@pytest.mark.parametrize("held", [False, True], ids=["idle", "held by another thread"])
def test_a_process_that_is_forked_has_decoders_of_its_own(held: bool) -> None:
    objects, before = Objects("memory://crops"), isolated.run(pid)[1]
    ours, theirs = multiprocessing.Pipe()

    def tell() -> None:
        theirs.send((isolated.run(pid)[1], objects.run(objects.find(""))))

    child = multiprocessing.get_context("fork").Process(target=tell)
    with contextlib.ExitStack() as held_here:
        if held:
            held_here.enter_context(isolated._lock)
            held_here.enter_context(objects._opening)
        child.start()
        try:
            assert ours.poll(20)
            assert ours.recv()[0] != before
        finally:
            child.kill()
            child.join()
    assert isolated.run(pid)[1] != os.getpid()


@pytest.mark.parametrize("limit_mib", [64, None])
def test_little_memory_is_the_datas_fault_only_where_there_is_more(limit_mib: int | None) -> None:
    code = f"""
import resource
from eval_ingest.decoding import isolation
limit = {limit_mib}
if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (isolation.MIB * (300 + limit),) * 2)
try:
    isolation._call(lambda: (None, len(bytearray(1 << 30))), (), limited=True)
except Exception as error:
    print(type(error).__name__, error)
"""
    code = "def load_libraries(): pass\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ("MachineError" if limit_mib else "decoder_stopped") in done.stdout, done


# -------------------------------------------------------------------------- libraries and decoders


def _ingest_elsewhere(source: Path, root: Path, before: str, **environment: str) -> str:
    """What an ingest in another process says, with something amiss there."""
    script = f"""
        {before}
        from pathlib import Path
        from eval_ingest import pipeline
        from eval_ingest_tests.conftest import make_job
        try:
            job = make_job(Path({str(source)!r}), Path({str(root)!r}), max_invalid_fraction=1.0)
            print(pipeline.ingest(job)[0].value.summary.reasons)
        except Exception as error:
            print(type(error).__name__, error)
    """
    folder = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | {"PYTHONPATH": str(folder)} | environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout + done.stderr[-2_000:]


def _by_gdal(window: Path) -> None:
    """Store a raster so that nothing but GDAL reads it."""
    path = raster_of(window)
    with rasterio.open(path) as old:
        pixels, profile = old.read(), old.profile
    with rasterio.open(path, "w", **profile | {"compress": "lzma"}) as new:
        new.write(pixels)


def test_a_broken_proj_ends_the_run_and_judges_nothing(copied: Copied, tmp_path: Path) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    _by_gdal(first_window(source))
    said = _ingest_elsewhere(source, root, "", PROJ_DATA=str(tmp_path), PROJ_LIB=str(tmp_path))
    assert "MachineError" in said and "PROJ_DATA" in said
    index = pipeline.ingest(make_job(source, root))[0].value
    assert index.summary.n_invalid == 0


def test_a_library_that_is_not_there_ends_the_run(copied: Copied, tmp_path: Path) -> None:
    before = "import sys; sys.modules['shapely'] = None"
    said = _ingest_elsewhere(copied("segmentation"), tmp_path / "root", before)
    assert "shapely" in said and "unreadable" not in said


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError(errno.ENOSPC, "No space left on device"), "free space"),
        (PermissionError(errno.EACCES, "Permission denied"), "let this user"),
        (MemoryError(), "free memory"),
        (ImportError("libgdal.so: cannot open shared object file"), "install it anew"),
        (ValueError("x.tif: Too many open files"), "ulimit -n"),
    ],
)
def test_a_machines_fault_is_told_with_its_cure(error: Exception, cure: str) -> None:
    with pytest.raises(MachineError, match=cure):
        blame(error)
    wrapped = ValueError("can't be read")
    wrapped.__cause__ = error
    with pytest.raises(MachineError, match=cure):
        blame(wrapped)


@pytest.mark.parametrize(
    "error", [ValueError("x"), FileNotFoundError(2, "x"), OSError("not an image"), KeyError("x")]
)
def test_an_error_of_data_stays_one(error: Exception) -> None:
    blame(error)


def test_invalid_windows_are_judged_again_by_others(
    copied: Copied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval_ingest.decoding import judge
    from eval_ingest.indexing import work

    source, root = copied("segmentation"), tmp_path / "root"
    first = pipeline.ingest(make_job(source, root))[0].value

    def refuse(*_: object) -> None:
        raise Unreadable("raster_unreadable", "no codec")

    with monkeypatch.context() as patch:
        patch.setattr(work, "judges", lambda: "older")
        patch.setattr(judge, "decode_geotiff", refuse)
        (first_window(source) / "metadata.json").touch()
        old = pipeline.ingest(make_job(source, root))[0].value
        assert old.summary.reasons == {"raster_unreadable": 1}
    again = pipeline.ingest(make_job(source, root))
    assert again[0].value.summary.n_invalid == 0
    assert again[0].value.fingerprint == first.fingerprint or again[0].ran


@pytest.mark.parametrize(
    ("error", "cure"),
    [(MemoryError(), "free memory"), (RuntimeError("can't start new thread"), "ulimit -u"),
     (RuntimeError("a thread: Resource temporarily unavailable"), "ulimit -u"),
     (OSError(errno.EMFILE, "Too many open files"), "ulimit -n")],
)  # fmt: skip
@pytest.mark.parametrize("place", ["copying.transfer.map_ordered", "pipeline.quality_report"])
def test_a_machine_that_lacks_something_in_any_stage_says_what(
    place: str, error: Exception, cure: str, small: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"eval_ingest.{place}", fail)
    with pytest.raises(MachineError, match=cure):
        pipeline.ingest(make_job(small, tmp_path / "root"))
    monkeypatch.undo()
    pipeline.ingest(make_job(small, tmp_path / "root"))
    assert len(EvalDataset("crops", "train", root=tmp_path / "root"))
