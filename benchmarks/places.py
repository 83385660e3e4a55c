"""How fast an ingest is by where windows lie and how they are stored: rows of `make bench`.

Belongs here: slow mounts, a bucket, other GeoTIFFs, other storages. Each is set beside the same
windows as rslearn writes them by default, on this disk, in the same run.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from benchmarks.bench import CACHE, GROUP, Row, compare, open_job, remove, run_ingest
from benchmarks.bench_peers import warm
from benchmarks.storages import rewritten

SHIM = Path(__file__).parent / "slow_opens.c"

GEOTIFFS: dict[str, dict[str, Any]] = {
    "deflate": {"compress": "deflate"},
    "zstd": {"compress": "zstd"},
    "LZW with predictor": {"compress": "lzw", "predictor": 2},
    "tiled 512": {"compress": "lzw", "tiled": True, "blockxsize": 512, "blockysize": 512},
    "float32": {"compress": "lzw", "dtype": "float32"},
}


_COMPILER = shutil.which("gcc") or shutil.which("cc")


def slow_opens(below: Path, milliseconds: float) -> dict[str, str]:
    """The environment of processes for which each open below a path takes so much longer."""
    assert _COMPILER is not None, "the shim needs a C compiler"
    shim = CACHE.absolute() / "slow_opens.so"
    subprocess.run([_COMPILER, "-O2", "-shared", "-fPIC", "-o", shim, SHIM, "-ldl"], check=True)
    return {
        "LD_PRELOAD": str(shim),
        "SLOW_OPENS_BELOW": str(below),
        "SLOW_OPENS_US": str(round(1000 * milliseconds)),
    }


def latency_rows(source: Path, delays_ms: tuple[int, ...] = (0, 1, 5)) -> list[Row]:
    """Whole ingests where each open below source and root waits, as on a network mount."""
    if _COMPILER is None:
        return [Row("slow mounts", "not measured", "no C compiler")]
    root = CACHE.absolute() / "slow"
    names = {f"{delay} ms more an open": delay for delay in delays_ms}
    names["nothing of the source in memory"] = delays_ms[0]
    seconds: dict[str, float] = {}
    for what, delay in names.items():
        remove(root)
        warm(source)
        if "memory" in what:
            forget(source)
        seconds[what] = _by_command(source.absolute(), root, slow_opens(CACHE.absolute(), delay))
    remove(root)
    plain = next(iter(seconds.values()))
    return [
        Row(
            f"whole ingest, {what}",
            f"{found:.2f} s",
            f"none added {plain:.2f} s",
            f"{found / plain:.2f} of its time",
        )
        for what, found in seconds.items()
    ]


def _by_command(source: Path, root: Path, environment: dict[str, str]) -> float:
    """Seconds of an ingest as a user has it: nobody looks at its threads meanwhile."""
    command = Path(sys.executable).parent / "eval-ingest"
    began = time.perf_counter()
    subprocess.run(
        [command, "ingest", "tolbi_crops", "--source", source],
        env={**os.environ, **environment, "OLMOEARTH_EVAL_DATASETS": str(root)},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - began


def forget(folder: Path) -> None:
    """Have the system drop what it holds in memory of files' bytes; names and sizes stay."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def stored_rows(source: Path, count: int = 48) -> list[Row]:
    """Reading and judging windows that are stored in other ways, beside rslearn's default."""
    small = CACHE / "stored" / "default"
    shutil.rmtree(small.parent, ignore_errors=True)
    _take(source, small, count)
    variants = {name: small.parent / name.replace(" ", "_") for name in GEOTIFFS}
    for name, target in variants.items():
        shutil.copytree(small, target)
        _rewrite(target, **GEOTIFFS[name])
    variants["one GeoTIFF of 144 bands"] = _joined(small, small.parent / "joined")
    variants["PerLayer, numpy"] = rewritten(
        small, small.parent / "per_layer", per_layer=True, numpy=True
    )
    works = {name: _indexing(path, count) for name, path in {"": small, **variants}.items()}
    times = dict(zip(works, compare(list(works.values()), repeat=3), strict=True))
    shutil.rmtree(small.parent)
    return [
        Row(
            f"read, judge a window: {name}",
            f"{times[name] / count * 1e3:.2f} ms",
            f"LZW, a file a timestep {times[''] / count * 1e3:.2f} ms",
            f"{times[name] / times['']:.2f} of its time",
        )
        for name in variants
    ]


def _take(source: Path, target: Path, count: int) -> None:
    """So many of a dataset's windows."""
    (target / "windows" / GROUP).mkdir(parents=True)
    for name in ("config.json", "model.yaml"):
        shutil.copy(source / name, target / name)
    for window in sorted((source / "windows" / GROUP).iterdir())[:count]:
        shutil.copytree(window, target / "windows" / GROUP / window.name)


def _rewrite(dataset: Path, **options: Any) -> None:
    """The images of a dataset, by other options of GDAL's."""
    for path in sorted(dataset.glob("windows/*/*/layers/sentinel2*/*/geotiff.tif")):
        with rasterio.open(path) as raster:
            pixels, profile = raster.read(), raster.profile
        profile = {"driver": "GTiff", **{k: profile[k] for k in ("count", "crs", "transform",
                   "height", "width", "dtype")}, **options}  # fmt: skip
        with rasterio.open(path, "w", **profile) as raster:
            raster.write(pixels.astype(profile["dtype"]))
    if "dtype" in options:
        content = json.loads((dataset / "config.json").read_text())
        for band_set in content["layers"]["sentinel2"]["band_sets"]:
            band_set["dtype"] = options["dtype"]
        (dataset / "config.json").write_text(json.dumps(content))


def _joined(source: Path, target: Path) -> Path:
    """A dataset whose timesteps lie in one file: C * T bands, with the dates beside."""
    shutil.copytree(source, target)
    for window in sorted((target / "windows" / GROUP).iterdir()):
        folders = sorted(
            (window / "layers").glob("sentinel2*"),
            key=lambda folder: int(folder.name.partition(".")[2] or 0),
        )
        parts, profile = [], {}
        for folder in folders:
            (path,) = folder.glob("*/geotiff.tif")
            with rasterio.open(path) as raster:
                parts.append(raster.read())
                profile = raster.profile
        (first,) = folders[0].glob("*/geotiff.tif")
        channels, steps = len(parts[0]), len(parts)
        stack = np.stack(parts, axis=1).reshape(channels * steps, *parts[0].shape[1:])
        with rasterio.open(first, "w", **{**profile, "count": len(stack)}) as raster:
            raster.write(stack)
        months = [[f"2022-{k + 1:02d}-01T00:00:00+00:00", f"2022-{k + 1:02d}-28T00:00:00+00:00"]
                  for k in range(steps)]  # fmt: skip
        facts = {"num_channels": channels, "num_timesteps": steps, "timestamps": months}
        (first.parent / "metadata.json").write_text(json.dumps(facts))
        for folder in folders[1:]:
            shutil.rmtree(folder)
    return target


def _indexing(source: Path, count: int) -> Callable[[], Any]:
    from eval_ingest.indexing.filters import WindowFilter
    from eval_ingest.indexing.work import IndexTask

    job = open_job(source, CACHE / "none")
    items = list(enumerate(job.source.names([GROUP])))[:count]
    task = IndexTask(job.source, job.config, WindowFilter())
    status = task(items).table["status"].to_pylist()
    assert status == ["valid"] * count, task(items).table["problems"].to_pylist()[0]
    return lambda: task(items)


def bucket_rows(source: Path, windows: int) -> list[Row]:
    """A whole ingest from a bucket: the emulator is a process of its own, its share told apart."""
    small, root = CACHE / "bucket", CACHE.absolute() / "from_bucket"
    on_disk = CACHE.absolute() / "from_disk"
    remove(small, root, on_disk)
    _take(source, small / "tolbi", windows)
    with emulator() as (environment, server):
        upload(small, environment)
        before = cpu_seconds(server)
        found = run_ingest("gs://bench/tolbi", root, environment=environment)
        served = cpu_seconds(server) - before
    here = run_ingest(small.absolute() / "tolbi", on_disk)
    for folder in (small, root, on_disk):
        shutil.rmtree(folder)
    return [
        Row(
            f"whole ingest of {windows} from a bucket",
            f"{found['seconds']:.2f} s",
            f"from this disk {here['seconds']:.2f} s",
            f"the emulator worked {served:.2f} s of it",
        )
    ]


@contextlib.contextmanager
def emulator() -> Iterator[tuple[dict[str, str], int]]:
    """A GCS emulator on this machine: the environment of its clients, and its process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory", "--quiet",
               "--host", "127.0.0.1", "--port", str(port), "--default-bucket", "bench"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}, process.pid
    finally:
        process.kill()
        process.wait()


def upload(folder: Path, environment: dict[str, str], pattern: str = "**/*") -> None:
    """Put a folder's files into the emulator's bucket."""
    code = (
        "import sys, pathlib, gcsfs; root = pathlib.Path(sys.argv[1]);"
        "fs = gcsfs.core.GCSFileSystem(token='anon', project='bench');"
        "fs.pipe({f'bench/{p.relative_to(root)}': p.read_bytes() "
        "for p in root.glob(sys.argv[2]) if p.is_file()})"
    )
    command = [sys.executable, "-c", code, str(folder), pattern]
    subprocess.run(command, check=True, env={**os.environ, **environment})


def cpu_seconds(pid: int) -> float:
    """That a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
