"""A small but real rslearn dataset, as Studio writes them: `python -m eval_ingest.testing.demo`.

Sentinel-2 time series over tree crops in Ivory Coast are simulated, with a signal that a linear
probe finds most of. They go to disk through rslearn's own writers, so that everything after it
meets the real format. The same seed gives the same bytes.
"""

import argparse
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eval_ingest.errors import EvalIngestError, StoreError
from eval_ingest.settings import Settings

if TYPE_CHECKING:
    from rslearn.dataset import Dataset
from eval_ingest.testing import datasets

DEMO_NAME = "tolbi"
"""Folder of the demo's dataset under its root: where the catalog's tolbi_crops looks for it."""

_GROUP = "20251210"

COMPLETE_MARKER = ".demo_complete"
"""In the dataset, before it has its name: says what was written."""

DEFECTS = ("no_metadata", "truncated", "label_not_completed", "unlabelled")
"""What is wrong with the broken windows, one each."""

_MANY_WINDOWS = 48
"""From here on, starting further processes takes less time than they save."""


# ------------------------------------------------------------------------------ what is seen


@dataclass(frozen=True)
class Cover:
    """A land cover and how it looks through the year."""

    name: str
    color: tuple[int, int, int]
    share: float
    """Of the labelled area, about."""
    greenness: float
    """0: bare soil, 1: dense leaves; the year's mean."""
    season: float
    """How far greenness swings to either side."""
    peak_month: float
    """Month from 0 with the most leaves."""
    brightness: float = 1.0
    """Factor on all bands."""
    dryness: float = 1.0
    """Factor on the short-wave infrared bands."""


COVERS = (
    Cover("cacao", (122, 62, 30), 0.26, 0.74, 0.10, 6.5),
    Cover("palm_oil", (240, 150, 30), 0.14, 0.78, 0.05, 7.0, 1.08, 0.95),
    Cover("rubber", (150, 90, 170), 0.14, 0.72, 0.20, 7.5, 1.02, 0.97),
    Cover("tree", (20, 100, 45), 0.20, 0.84, 0.07, 7.0, 0.95, 0.93),
    Cover("shrub", (170, 200, 90), 0.14, 0.55, 0.20, 8.0, 0.97, 1.05),
    Cover("other", (190, 190, 190), 0.12, 0.28, 0.18, 7.5, 1.03, 1.08),
)
"""Label value v is COVERS[v - 1]; 0 is unlabelled."""

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
"""As stored; model.yaml asks for them in another order."""

# Reflectance * 10000 per band, in the order of BANDS.
_LEAF = np.array([900, 960, 1180, 930, 1560, 2900, 3500, 3600, 3750, 3800, 2000, 1120], np.float32)
_SOIL = np.array(
    [1230, 1380, 1720, 2050, 2420, 2620, 2750, 2850, 2960, 3080, 3450, 2850], np.float32
)
_HAZE = np.array([300, 270, 210, 170, 150, 120, 100, 80, 80, 60, 20, 10], np.float32)
_SHORT_WAVE = slice(10, 12)

_FIELD_PIXELS = 500
"""Mean size of a field: it has one cover and its own deviation from that cover's mean."""
_FIELD_SPREAD = 0.65
"""How much fields of one cover differ: with 0 a probe is always right, with 2 it is near chance."""
_PIXEL_NOISE = 80.0
_CLOUDY = 0.08
"""Share of timesteps with clouds."""


def simulate(
    rng: np.random.Generator, size: int, timesteps: int
) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
    """A window's reflectances (T, C, H, W) in the order of BANDS, and its labels (H, W)."""
    field_of = _fields(rng, size)
    count = int(field_of.max()) + 1
    shares = np.array([cover.share for cover in COVERS])
    mixture = 0.6 * rng.dirichlet(5 * shares) + 0.4 * shares / shares.sum()
    covers = rng.choice(len(COVERS), count, p=mixture / mixture.sum())
    spectra = _field_spectra(rng, covers, timesteps)
    images = np.ascontiguousarray(np.moveaxis(spectra[field_of], (2, 3), (0, 1)))
    _add_weather(rng, images)
    unlabelled = _smooth(rng, size, 6)
    known = unlabelled > np.quantile(unlabelled, rng.uniform(0.15, 0.45))
    labels = np.where(known, covers[field_of] + 1, 0).astype(np.int32)
    return np.clip(np.rint(images), 1, 10000).astype(np.uint16), labels


def _fields(rng: np.random.Generator, size: int) -> NDArray[np.intp]:
    """Each pixel's field (H, W): the nearest of random centres, with crooked borders."""
    count = max(4, round(size * size / _FIELD_PIXELS))
    centres = rng.uniform(0, size, (count, 2)).astype(np.float32)
    places = np.mgrid[:size, :size].astype(np.float32)
    places += 4 * np.stack([_smooth(rng, size, 5), _smooth(rng, size, 5)])
    distances = ((places[None] - centres[:, :, None, None]) ** 2).sum(axis=1)
    return np.asarray(distances.argmin(axis=0))


def _field_spectra(
    rng: np.random.Generator, covers: NDArray[np.intp], timesteps: int
) -> NDArray[np.float32]:
    """Each field's reflectances (field, T, C), around those of its cover."""
    count = len(covers)
    kinds = [COVERS[cover] for cover in covers]

    def vary(values: list[float], spread: float) -> NDArray[np.float64]:
        factors = np.exp(rng.normal(0, spread * _FIELD_SPREAD, count))
        return np.asarray(np.array(values) * factors)[:, None]

    months = np.arange(timesteps) * 12 / max(timesteps, 12)
    season = vary([kind.season for kind in kinds], 0.3)
    peak = np.array([kind.peak_month for kind in kinds]) + rng.normal(0, _FIELD_SPREAD, count)
    green = np.array([kind.greenness for kind in kinds])[:, None]
    green = green + rng.normal(0, 0.08 * _FIELD_SPREAD, (count, 1))
    green = green + season * np.cos(2 * np.pi * (months - peak[:, None]) / 12)
    spectra = _SOIL + (_LEAF - _SOIL) * green[:, :, None]
    spectra *= vary([kind.brightness for kind in kinds], 0.05)[:, :, None]
    spectra[..., _SHORT_WAVE] *= vary([kind.dryness for kind in kinds], 0.05)[:, :, None]
    spectra *= 1 + rng.normal(0, 0.03 * _FIELD_SPREAD, (count, 1, len(BANDS)))
    result: NDArray[np.float32] = spectra.astype(np.float32)
    return result


def _add_weather(rng: np.random.Generator, images: NDArray[np.float32]) -> None:
    """Add illumination, haze, noise and the odd cloud to images (T, C, H, W), in place."""
    timesteps, _, size, _ = images.shape
    light = np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.04, timesteps)).astype(np.float32)
    images *= light[:, None, None, None] * (1 + 0.06 * _smooth(rng, size, 12))
    haze = rng.gamma(1.5, 0.6, (timesteps, 1)).astype(np.float32) * _HAZE
    images += haze[:, :, None, None]
    images += _PIXEL_NOISE * rng.standard_normal(images.shape, dtype=np.float32)
    for t in np.flatnonzero(rng.random(timesteps) < _CLOUDY):
        cover = np.clip(0.6 + 0.5 * _smooth(rng, size, 3), 0, 1)
        cloud = 6500 + 800 * _smooth(rng, size, 8)
        images[t] += cover * (cloud - images[t])


def _smooth(rng: np.random.Generator, size: int, cells: int) -> NDArray[np.float32]:
    """A smooth random field (H, W) of about unit variance, varying over size / cells pixels."""
    knots = rng.standard_normal((cells + 1, cells + 1), dtype=np.float32)
    at = np.linspace(0, cells, size, dtype=np.float32)[:, None]
    weights = np.maximum(0, 1 - np.abs(at - np.arange(cells + 1, dtype=np.float32)))
    field: NDArray[np.float32] = weights @ knots @ weights.T
    return field


# ----------------------------------------------------------------------------- where and when

YEAR = (datetime(2024, 11, 1, tzinfo=UTC), datetime(2025, 11, 1, tzinfo=UTC))

_CORNER = (25500, -74500)
"""Upper left pixel of the region, west of Yamoussoukro."""
_REGION_PIXELS = 4000
_MARGIN = 8
"""Windows keep this many pixels apart, on average."""
_TRAIN_SHARE = 0.7


@dataclass(frozen=True)
class _Plan:
    """A window to be written."""

    number: int
    """Seeds the window's pixels, together with the dataset's seed."""
    name: str
    split: str
    bounds: tuple[int, int, int, int]
    defect: str | None = None


def _plan(windows: int, size: int, seed: int, broken: bool) -> list[_Plan]:
    """The windows: scattered over the region without overlap, each in a split."""
    defects = DEFECTS if broken else ()
    total = windows + len(defects)
    rng = np.random.default_rng(seed)
    step = size + _MARGIN
    columns = max(_REGION_PIXELS // step, int(np.ceil(np.sqrt(2 * total))))
    cells = rng.choice(columns * columns, total, replace=False)
    shifts = rng.integers(0, _MARGIN + 1, (total, 2))
    held_out = set(rng.permutation(windows)[: round((1 - _TRAIN_SHARE) * windows)].tolist())
    plans = []
    for number in range(total):
        x = _CORNER[0] + int(cells[number] % columns) * step + int(shifts[number, 0])
        y = _CORNER[1] + int(cells[number] // columns) * step + int(shifts[number, 1])
        defect = defects[number - windows] if number >= windows else None
        plans.append(
            _Plan(
                number=number,
                name=f"broken_{defect}" if defect else f"tolbi_{number:06d}",
                split="val" if number in held_out else "train",
                bounds=(x, y, x + size, y + size),
                defect=defect,
            )
        )
    return plans


def _acquisitions(rng: np.random.Generator, timesteps: int) -> list[datasets.Interval]:
    """When each mosaic's scene was taken: a pass of Sentinel-2 within each of the periods."""
    orbit = int(rng.integers(2))
    first = YEAR[0] + timedelta(days=2 * orbit, hours=10, minutes=34 + 10 * orbit, seconds=29)
    times = []
    for period in range(timesteps):
        passes = first + timedelta(days=30 * period + 5 * int(rng.integers(5)))
        times.append((passes, passes))
    return times


# --------------------------------------------------------------------------- how it is written


def write_demo_dataset(root: Path, *, windows: int = 120) -> Path:
    """Write `<root>/tolbi` if it isn't there yet; returns its path.

    Besides `windows` good windows there are four broken ones, see DEFECTS.

    Raises:
        StoreError: `<root>/tolbi` exists and isn't a demo.
    """
    wanted = {"seed": 0, "windows": windows}
    target, beside = root / DEMO_NAME, root / COMPLETE_MARKER  # where earlier versions wrote it
    found = _read_marker(target / COMPLETE_MARKER) or _read_marker(beside)
    if target.exists():
        if found == wanted:
            print(f"{target} is there already: {windows} windows; nothing to do")
            return target
        if found is None:
            raise StoreError(
                f"{target} exists, but no {COMPLETE_MARKER} in it says that it is a demo dataset; "
                "choose another --root or move it away"
            )
    aside, before = root / f".{DEMO_NAME}.partial", root / f".{DEMO_NAME}.before"
    for left in (aside, before):
        shutil.rmtree(left, ignore_errors=True)
    workers = min(Settings.load().workers, 8) if windows >= _MANY_WINDOWS else 1
    write_tolbi_like(root, aside.name, windows=windows, seed=0, workers=workers)
    (aside / COMPLETE_MARKER).write_text(json.dumps(wanted) + "\n")
    if target.exists():
        target.rename(before)
    aside.rename(target)
    beside.unlink(missing_ok=True)
    shutil.rmtree(before, ignore_errors=True)
    print(
        f"{target}: {windows} windows of 64 x 64 pixels and 12 months, {len(COVERS)} classes, "
        f"and {len(DEFECTS)} broken windows on purpose"
    )
    return target


def _read_marker(marker: Path) -> object:
    try:
        return json.loads(marker.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def write_tolbi_like(
    root: Path,
    name: str,
    *,
    windows: int,
    timesteps: int = 12,
    size: int = 64,
    seed: int,
    broken: bool = True,
    workers: int = 1,
) -> Path:
    """Write a dataset like the demo's to `<root>/<name>`, in any size; returns its path.

    Args:
        root: the folder of datasets.
        name: the new dataset's folder; must not exist.
        windows: good windows.
        timesteps: item groups of the Sentinel-2 layer.
        size: side of the windows in pixels; model.yaml's crop is 16.
        seed: of everything random; the number of workers changes nothing.
        broken: add one window for each of DEFECTS.
        workers: processes that write; 1 writes in this one.
    """
    path = root / name
    path.mkdir(parents=True)
    values = {"group": _GROUP, "timesteps": timesteps, "days": 30 * timesteps}
    for name in ("config.json", "model.yaml", "olmoearth_run.yaml"):
        text = (files("eval_ingest.testing") / "demo_files" / name).read_text()
        (path / name).write_text(Template(text).safe_substitute(values))
    batch = _Batch(path, timesteps, size, seed)
    plans = _plan(windows, size, seed, broken)
    if workers == 1:
        batch.write(plans)
        return path
    # Not forked: GDAL doesn't survive a fork while another thread is in it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for _ in pool.map(batch.write, (plans[k::workers] for k in range(workers))):
            pass
    return path


@dataclass(frozen=True)
class _Batch:
    """Writes windows of one dataset, in this process or another."""

    dataset: Path
    timesteps: int
    size: int
    seed: int

    def write(self, plans: list[_Plan]) -> None:
        with datasets.quiet_rslearn():
            dataset = datasets.open_dataset(self.dataset)
            for plan in plans:
                self._write_one(dataset, plan)

    def _write_one(self, dataset: "Dataset", plan: _Plan) -> None:
        rng = np.random.default_rng([self.seed, plan.number])
        images, labels = simulate(rng, self.size, self.timesteps)
        times = _acquisitions(rng, self.timesteps)
        if plan.defect == "unlabelled":
            labels = np.zeros_like(labels)
        window = datasets.add_window(
            dataset, _GROUP, plan.name, plan.bounds, YEAR, {"split": plan.split}
        )
        for item_group, (image, time) in enumerate(zip(images, times, strict=True)):
            datasets.write_raster(
                window, "sentinel2", BANDS, image[:, None], times=[time], item_group=item_group
            )
        datasets.write_raster(window, "label_raster", ("label",), labels[None, None])
        datasets.save_items(window, {"sentinel2": times})
        datasets.complete(window, "sentinel2", self.timesteps)
        datasets.complete(window, "label_raster")
        if plan.defect:
            _break(self.dataset / "windows" / _GROUP / plan.name, plan.defect)


def _break(window: Path, defect: str) -> None:
    """Spoil a whole window in the way that `defect` says."""
    if defect == "no_metadata":
        (window / "metadata.json").unlink()
    elif defect == "label_not_completed":
        (window / "layers" / "label_raster" / "completed").unlink()
    elif defect == "truncated":
        raster = sorted((window / "layers").glob("sentinel2*/*/geotiff.tif"))[-1]
        os.truncate(raster, raster.stat().st_size // 3)


def main(arguments: list[str] | None = None) -> int:
    """Write the demo dataset."""
    parser = argparse.ArgumentParser(prog="python -m eval_ingest.testing.demo", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(".demo/studio"), help="folder to write")
    parser.add_argument("--windows", type=int, default=120, help="besides four broken ones")
    options = parser.parse_args(arguments)
    try:
        write_demo_dataset(options.root, windows=options.windows)
    except EvalIngestError as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
