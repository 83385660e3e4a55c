"""How fast a .tar.gz of many windows is ingested, beside gunzip and tar alone, in one run.

    python -m benchmarks.archive --windows 12000 --folder /tmp/oil [--bucket]

Windows are like oil spill's: 128 x 128, two float32 bands, one timestep, a label raster. The packs
of 240,000 are 35 GB: with --give-back the disk gets their room again as soon as each is published,
so that 12 GB are enough. They have been on the disk by then.
"""

import argparse
import contextlib
import ctypes
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import yaml
from isal import igzip
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from benchmarks.bench import family, remove
from benchmarks.places import emulator

BANDS = ["vv", "vh"]
SIZE = 128
PR_SET_CHILD_SUBREAPER = 36
PUNCH_HOLE_KEEP_SIZE = 3
HEAD = 1 << 16
GROUP = "oil"
PLACE = 123456.0, 7654321.0
DIFFERENT = 512
"""Windows with pixels of their own."""


def configuration() -> dict[str, bytes]:
    """config.json and model.yaml."""
    layers = {
        "sentinel1": {"type": "raster", "band_sets": [{"bands": BANDS, "dtype": "float32"}]},
        "label": {"type": "raster", "band_sets": [{"bands": ["label"], "dtype": "uint8"}]},
    }
    inputs = {
        "sentinel1": {"data_type": "raster", "layers": ["sentinel1"], "bands": BANDS,
                      "dtype": "FLOAT32", "passthrough": True},
        "targets": {"data_type": "raster", "layers": ["label"], "bands": ["label"],
                    "dtype": "INT32", "is_target": True},
    }  # fmt: skip
    task = {
        "class_path": "rslearn.train.tasks.segmentation.SegmentationTask",
        "init_args": {"num_classes": 2},
    }
    data = {
        "class_path": "rslearn.train.data_module.RslearnDataModule",
        "init_args": {"path": ".", "inputs": inputs, "task": task},
    }
    return {
        "config.json": json.dumps({"layers": layers}).encode(),
        "model.yaml": yaml.safe_dump({"data": data}).encode(),
    }


def raster(pixels: np.ndarray) -> bytes:
    """A GeoTIFF as rslearn writes it, at a place that `placed` changes."""
    count, height, width = pixels.shape
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", dtype=pixels.dtype, count=count, height=height, width=width,
            crs="EPSG:32630", transform=Affine(10, 0, PLACE[0], 0, -10, PLACE[1]),
            compress="lzw",
        ) as target:  # fmt: skip
            target.write(pixels)
        return bytes(memory.read())


def placed(data: bytes, x: float, y: float) -> bytes:
    """The raster with its upper left corner there: two numbers of its header are exchanged."""
    old = struct.pack("<dd", *PLACE)
    assert data.count(old) == 1
    return data.replace(old, struct.pack("<dd", x, y))


def rasters(number: int, step: float, size: int) -> tuple[bytes, bytes]:
    """A window's pixels: power with speckle in steps of so many decibels, and a dark spill."""
    rng = np.random.default_rng(number)
    spill = np.zeros((1, size, size), np.uint8)
    x, y, width = rng.integers(0, 96, 3)
    spill[0, y : y + width, x : x + width // 2] = 1
    speckle = rng.normal([[[-12.0]], [[-19.0]]], 1.5, (2, size, size)) - 6 * spill
    decibels = np.round(speckle / step) * step
    return raster((10 ** (decibels / 10)).astype(np.float32)), raster(spill)


def window(
    number: int, pixels: tuple[bytes, bytes], size: int = SIZE
) -> Iterator[tuple[str, bytes]]:
    """A window's files."""
    column, row = 30000 + number % 500 * 160, -400000 + number // 500 * 160
    name = f"windows/{GROUP}/window_{number:06d}"
    yield f"{name}/metadata.json", json.dumps({
        "projection": {"crs": "EPSG:32630", "x_resolution": 10, "y_resolution": -10},
        "bounds": [column, row, column + size, row + size],
        "time_range": ["2024-05-01T00:00:00+00:00", "2024-05-02T00:00:00+00:00"],
        "options": {},
    }).encode()  # fmt: skip
    corner = column * 10.0, row * -10.0
    yield f"{name}/layers/sentinel1/vv_vh/geotiff.tif", placed(pixels[0], *corner)
    yield f"{name}/layers/sentinel1/completed", b""
    yield f"{name}/layers/label/label/geotiff.tif", placed(pixels[1], *corner)
    yield f"{name}/layers/label/completed", b""


def write_archive(path: Path, windows: int, step: float = 0.1, size: int = SIZE) -> None:
    """The archive, unless it is there; the pixels of some windows are repeated at other places."""
    if path.exists():
        return
    aside = path.with_suffix(".part")
    known = [rasters(number, step, size) for number in range(min(windows, DIFFERENT))]
    with (
        igzip.open(aside, "wb", compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w|", bufsize=1 << 20) as archive,
    ):
        files = list(configuration().items())
        for number in range(-1, windows):
            for name, data in (
                files if number < 0 else window(number, known[number % DIFFERENT], size)
            ):
                member = tarfile.TarInfo(f"oil_spill/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    aside.rename(path)


class Took(NamedTuple):
    """What a command took."""

    seconds: float
    cpu: float


def timed(what: str, *command: str, environment: Mapping[str, str] = MappingProxyType({})) -> Took:
    """Run a command; what it took is told."""
    # Workers of workers are ours when their own parents end, so that their time counts.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    env = {**os.environ, **environment}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
    seconds = time.monotonic() - started
    time.sleep(0.5)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what:28} {seconds:8.1f} s  {cpu:8.1f} s of processors", flush=True)
    return Took(seconds, cpu)


INGEST = """
import sys, time
from eval_ingest import pipeline
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.job import open_job
from eval_ingest.settings import Settings

source, root, mode = sys.argv[1:]
spec = DatasetSpec.parse({"name": "oil", "source": source, "copy": mode}, "benchmark")
started = time.monotonic()
job = open_job(spec, Settings(eval_root=root, workers=2))
print(f"  unpacked {time.monotonic() - started:.1f} s", file=sys.stderr)
pipeline.ingest(job, lambda outcome: print(
    f"  {outcome.stage} {outcome.seconds:.1f} s", file=sys.stderr))
"""


class Watch:
    """Looks at something every so many seconds, on a thread, until it is stopped."""

    every_s = 2.0

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(self.every_s):
            self.look()

    def look(self) -> None:
        """Look once."""

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        """No more looks, but for a last one."""
        self._stopped.set()
        self._thread.join()
        self.look()


class Peaks(Watch):
    """The most memory that each process below this one has held (VmHWM)."""

    every_s = 0.5

    def __init__(self) -> None:
        self._most: dict[int, int] = {}
        super().__init__()

    def look(self) -> None:
        for pid in family(os.getpid())[1:]:
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                line = next(line for line in lines if line.startswith("VmHWM"))
                self._most[pid] = int(line.split()[1]) >> 10

    def __str__(self) -> str:
        return ", ".join(map(str, sorted(self._most.values(), reverse=True)[:6]))


class DiskUse(Watch):
    """The most that a folder has held."""

    def __init__(self, folder: Path) -> None:
        self.most, self._folder = 0, folder
        super().__init__()

    def look(self) -> None:
        self.most = max(self.most, self.of(self._folder))

    @staticmethod
    def of(folder: Path) -> int:
        """Bytes of it."""
        found = subprocess.run(
            ["du", "-s", "-B1", str(folder)], capture_output=True, text=True, check=False
        )
        return int((found.stdout or "0").split()[0])


class GivenBack(Watch):
    """Gives the disk its room again for each shard of a root that is published.

    Its head stays, which the copy stage looks at; the rest reads as zeros.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._seen = root, set[Path]()
        super().__init__()

    def look(self) -> None:
        for path in set(self._root.glob("*/samples/[!.]*/*.npy")) - self._seen:
            with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
                most = max(0, os.fstat(file.fileno()).st_size - HEAD)
                ctypes.CDLL(None).fallocate(file.fileno(), PUNCH_HOLE_KEEP_SIZE,
                                            ctypes.c_int64(HEAD), ctypes.c_int64(most))  # fmt: skip
                self._seen.add(path)


def send(path: Path, environment: Mapping[str, str]) -> None:
    """Put a file into the emulator's bucket, which holds it in memory once."""
    url = f"{environment['STORAGE_EMULATOR_HOST']}/upload/storage/v1/b/bench/o"
    headers = {"Content-Length": str(path.stat().st_size),
               "Content-Type": "application/octet-stream"}  # fmt: skip
    with open(path, "rb") as body:
        request = urllib.request.Request(
            f"{url}?uploadType=media&name={path.name}", body, headers, method="POST"
        )
        urllib.request.urlopen(request).close()


def unpacked_by_tar(path: Path, out: Path) -> Took:
    """What tar alone takes; what it has written is removed again."""
    out.mkdir()
    took = timed("tar -xzf alone", "tar", "-xzf", str(path), "-C", str(out))
    print(f"  {DiskUse.of(out) / 1e6:.0f} MB on disk", flush=True)
    remove(out)
    return took


def main() -> None:
    """Generate, and measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--windows", type=int, default=12_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--step", type=float, default=0.1, help="in decibels: coarse is small")
    parser.add_argument("--size", type=int, default=SIZE, help="sides of windows, in pixels")
    parser.add_argument("--modes", nargs="+", default=["windows", "stream"])
    parser.add_argument("--bucket", action="store_true", help="from a bucket that is emulated")
    parser.add_argument("--give-back", action="store_true", help="of packs no bytes stay")
    parser.add_argument("--without-tar", action="store_true", help="beside gunzip alone")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"oil_{options.windows}_{options.size}.tar.gz"
    write_archive(path, options.windows, options.step, options.size)
    print(f"{options.windows} windows, {path.stat().st_size / 1e6:.0f} MB packed")
    unzipped = timed("gunzip alone", "gzip", "-dc", str(path))
    beside = {"gunzip": unzipped}
    if not options.without_tar:
        beside["tar -xzf"] = unpacked_by_tar(path, folder / "out")
    with contextlib.ExitStack() as stack:
        source, environment = str(path), dict[str, str]()
        if options.bucket:
            environment, _ = stack.enter_context(emulator())
            send(path, environment)
            source = f"gs://bench/{path.name}"
        for mode in options.modes:
            root = folder / f"root_{mode}"  # none is removed meanwhile: deletions are slow
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            os.sync()
            use, peaks = DiskUse(root), Peaks()
            given_back = GivenBack(root) if options.give_back else contextlib.nullcontext()
            with use, peaks, given_back:
                took = timed(f"ingest --copy {mode}", sys.executable, "-c", INGEST, source,
                             str(root), mode, environment=environment)  # fmt: skip
            for what, other in beside.items():
                print(f"  of {what}: {took.seconds / other.seconds:.2f} of its time, "
                      f"{took.cpu / other.cpu:.2f} of its CPU time")  # fmt: skip
            print(f"  {use.most / 1e6:.0f} MB on disk at the most, {use.of(root) / 1e6:.0f} MB in "
                  f"the end; {1000 * took.cpu / options.windows:.2f} ms CPU a window; at the "
                  f"most {peaks} MiB of memory, by process")  # fmt: skip
    for mode in options.modes:
        shutil.rmtree(folder / f"root_{mode}")


if __name__ == "__main__":
    main()
