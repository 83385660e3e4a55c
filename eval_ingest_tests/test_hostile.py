"""A window that would crash, hang, fill or deceive a reader is one invalid window, with a code."""

import json
import os
import re
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from rasterio.io import MemoryFile

from eval_ingest import EvalDataset, pipeline
from eval_ingest.decoding import geotiff
from eval_ingest.decoding.geotiff import decode_geotiff
from eval_ingest.decoding.geotiff_header import read_header
from eval_ingest.decoding.grid import Grid
from eval_ingest.decoding.isolation import Isolated, isolated
from eval_ingest.decoding.problems import Unreadable
from eval_ingest.definitions import build_defs
from eval_ingest.errors import EvalIngestError, MachineError
from eval_ingest.inference.resolve import ConfigFiles, resolve
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.dagster_world import World
from eval_ingest_tests.support.deadly import crash_decoder
from eval_ingest_tests.support.factories import first_window, raster_of
from eval_ingest_tests.support.oracle import rslearn_samples
from eval_ingest_tests.support.peaks import peak_of_all

Copied = Callable[[str], Path]


def _sparse(path: Path) -> None:
    with open(path, "wb") as stream:
        stream.write(b"II*\0")
        stream.truncate(30 << 30)


def _json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _huge_bounds(window: Path) -> None:
    _json(window / "metadata.json", bounds=[0, 0, 65_000, 65_000])


def _nested_shape(window: Path) -> None:
    items = json.loads((window / "items.json").read_text())
    deep = "GEOMETRYCOLLECTION (" * 100_000 + "POINT (1 1)" + ")" * 100_000
    items[0]["serialized_item_groups"][0][0]["geometry"]["shp"] = deep
    (window / "items.json").write_text(json.dumps(items))


def _large(window: Path, **profile: object) -> None:
    """2.4 KB or so that unpack to more than 3 GB."""
    path = raster_of(window)
    with rasterio.open(path) as old:
        count, crs, transform = old.count, old.crs, old.transform
    form = {"driver": "GTiff", "dtype": "uint16", "count": count, "crs": crs, **profile}
    with rasterio.open(
        path, "w", width=16_384, height=8_192, transform=transform, SPARSE_OK=True, **form
    ):
        pass
    _json(window / "metadata.json", bounds=[*_bounds(window)[:2], *_far(window)])


def _bounds(window: Path) -> list[int]:
    found: list[int] = json.loads((window / "metadata.json").read_text())["bounds"]
    return found


def _far(window: Path) -> list[int]:
    x0, y0, *_ = _bounds(window)
    return [x0 + 16_384, y0 + 8_192]


def _instead(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # the whole path would be too long
        server.bind(path.name)


def _deep(window: Path) -> None:
    (raster_of(window).parent / "/".join("d" * 12)).mkdir(parents=True)


def _options(window: Path, **options: object) -> None:
    _json(window / "metadata.json", options=options)


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a sparse raster of 30 GB": (lambda w: _sparse(raster_of(w)), "window_too_large"),
    "a sparse items.json of 30 GB": (lambda w: _sparse(w / "items.json"), "window_too_large"),
    "a sparse metadata.json of 30 GB": (lambda w: _sparse(w / "metadata.json"),
                                        "window_too_large"),
    "bounds of four thousand million pixels": (_huge_bounds, "window_too_large"),
    "100,000 nested collections": (_nested_shape, "metadata_unreadable"),
    "brackets": (lambda w: (w / "items.json").write_text("[" * 500_000), "metadata_unreadable"),
    "a small file of a large raster": (lambda w: _large(w, compress="lzw"), "window_too_large"),
    "LERC": (lambda w: _large(w, compress="lerc"), "window_too_large"),
    "LZMA in one strip": (lambda w: _large(w, compress="lzma", blockysize=8_192),
                          "window_too_large"),
    "a mask": (lambda w: raster_of(w).with_name("geotiff.tif.msk").write_bytes(b"x"),
               "raster_sidecar"),
    "a world file": (lambda w: raster_of(w).with_name("geotiff.tfw").write_text("1"),
                     "raster_sidecar"),
    "overviews": (lambda w: raster_of(w).with_name("GEOTIFF.TIF.OVR").write_bytes(b"x"),
                  "raster_sidecar"),
    "metadata of GDAL that names a file": (
        lambda w: raster_of(w).with_name("geotiff.tif.aux.xml").write_text(
            "<PAMDataset><GeoTransform>0,1,0,0,0,1</GeoTransform></PAMDataset>"),
        "raster_sidecar"),
    "items.json in another encoding": (
        lambda w: (w / "items.json").write_bytes("[]".encode("utf-16")), "metadata_unreadable"),
    "a pipe": (lambda w: _instead(raster_of(w), os.mkfifo), "file_unusable"),
    "a pipe beside": (lambda w: os.mkfifo(raster_of(w).with_name("x")), "file_unusable"),
    "a socket": (lambda w: _instead(raster_of(w), _socket), "file_unusable"),
    "a folder named items.json": (lambda w: _instead(w / "items.json", os.mkdir),
                                  "file_unusable"),
    "a folder named geotiff.tif": (lambda w: _instead(raster_of(w), os.mkdir), "raster_missing"),
    "a link in circles": (lambda w: os.symlink("..", w / "layers" / "sentinel2" / "x"),
                          "file_unusable"),
    "a link to itself": (lambda w: _instead(raster_of(w), lambda path: os.symlink(path.name, path)),
                         "file_unusable"),
    "folders in folders": (_deep, "file_unusable"),
    "options of a megabyte": (lambda w: _options(w, key="x" * 1_000_000), "window_too_large"),
    "an entity bomb": (
        lambda w: raster_of(w).with_name("geotiff.tif.aux.xml").write_text(
            '<!DOCTYPE x [<!ENTITY a "aaaa">]><PAMDataset>&a;</PAMDataset>'),
        "raster_sidecar"),
}  # fmt: skip


@pytest.fixture(scope="module")
def normal_peak(written: Copied, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes that an ingest takes anyway, all its processes together."""
    with peak_of_all() as peak:
        pipeline.ingest(make_job(written("segmentation"), tmp_path_factory.mktemp("normal")))
    return peak.n_bytes


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_a_hostile_window_is_one_invalid_window(
    kind: str,
    normal_peak: int,
    copied: Copied,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    source = copied("segmentation")
    make, code = HOSTILE[kind]
    make(first_window(source))
    with peak_of_all() as peak:
        index = pipeline.ingest(make_job(source, tmp_path / "root"))[0].value
    assert index.summary.reasons == {code: 1}
    record_property("row", (kind, code, (peak.n_bytes - normal_peak) >> 20))  # see support/peaks.py
    assert peak.n_bytes - normal_peak < 1 << 30


def _noise(path: Path, side: int) -> None:
    """A raster that only GDAL decodes, and that is as large as its pixels."""
    with rasterio.open(path) as old:
        profile = old.profile | {"compress": "lerc", "width": side, "height": side}
    pixels = np.random.default_rng(1).integers(
        1, 60_000, (profile["count"], side, side), dtype=np.uint16
    )
    with rasterio.open(path, "w", **profile) as new:
        new.write(pixels)


def test_the_largest_raster_that_gdal_may_decode_takes_less_than_four_times_a_windows_bytes(
    copied: Copied, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    mib, peaks, source = 64, [], copied("segmentation")
    window = first_window(source)
    with rasterio.open(raster_of(window)) as raster:
        largest = int((0.45 * mib * 2**20 / 2 / raster.count) ** 0.5)
    for side in (32, largest):
        root = tmp_path / f"root_{side}"
        _noise(raster_of(window), side)
        x0, y0, *_ = _bounds(window)
        _json(window / "metadata.json", bounds=[x0, y0, x0 + side, y0 + side])
        job = make_job(source, root)
        with peak_of_all() as peak:
            index = pipeline.ingest(replace(job, settings=replace(job.settings, window_mib=mib)))
        assert "window_too_large" not in index[0].value.summary.reasons
        peaks.append(peak.n_bytes)
    kind = f"the largest raster that GDAL alone may decode, with {mib} MiB a window"
    record_property("row", (kind, "valid", (peaks[1] - peaks[0]) >> 20))
    assert peaks[1] - peaks[0] < (1 << 30) * mib // 256  # a GiB for the usual 256 MiB


@pytest.mark.parametrize("value", [10**400, "x" * 1_000_000, "\ud800", float("nan"), [1]])
def test_a_label_that_is_no_number_is_told_in_few_words(
    value: object, copied: Copied, tmp_path: Path
) -> None:
    source = copied("scalar_regression")
    path = next(first_window(source).rglob("data.geojson"))
    content = json.loads(path.read_text())
    for feature in content["features"]:
        feature["properties"] = dict.fromkeys(feature["properties"], value)
    path.write_text(json.dumps(content))
    index = pipeline.ingest(make_job(source, tmp_path / "root"))[0].value
    assert sum(index.summary.reasons.values()) == 1
    assert (tmp_path / "root" / "crops" / "window_index.parquet").stat().st_size < 100_000


def test_a_window_has_no_more_samples_than_can_be_kept(copied: Copied, tmp_path: Path) -> None:
    source = copied("segmentation")
    content = yaml.safe_load((source / "model.yaml").read_text())
    content["data"]["init_args"].setdefault("train_config", {}).update(
        load_all_crops=True, crop_size=1
    )
    (source / "model.yaml").write_text(yaml.safe_dump(content))
    path = first_window(source) / "metadata.json"
    x0, y0, *_ = _bounds(first_window(source))
    _json(path, bounds=[x0, y0, x0 + 1_000, y0 + 1_000])
    index = pipeline.ingest(make_job(source, tmp_path / "root"))[0].value
    assert index.summary.reasons == {"window_too_large": 1}


def test_an_item_group_has_a_plain_number(copied: Copied, tmp_path: Path) -> None:
    source = copied("segmentation")
    odd = first_window(source) / "layers" / "sentinel2.\N{SUPERSCRIPT TWO}"
    odd.mkdir()
    (odd / "completed").touch()
    index = pipeline.ingest(make_job(source, tmp_path / "root"))[0].value
    assert index.summary.reasons == {}


def test_statistics_that_qgis_leaves_change_nothing(copied: Copied, tmp_path: Path) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    raster_of(first_window(source)).with_name("geotiff.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><Histograms/><Metadata>'
        '<MDI key="STATISTICS_MEAN">3</MDI></Metadata></PAMRasterBand></PAMDataset>'
    )
    index = pipeline.ingest(make_job(source, root))[0].value
    assert index.summary.n_invalid == 0
    expected = {(s.group, s.name): s.inputs for s in rslearn_samples(root / "crops")}
    assert len(expected) == len(index)


@pytest.mark.parametrize("seconds", [9_223_372_037, 2**34 - 1])
def test_a_time_of_change_after_2262_is_a_time(
    seconds: int, copied: Copied, tmp_path: Path
) -> None:
    source = copied("segmentation")
    path = raster_of(first_window(source))
    os.utime(path, ns=(0, seconds * 10**9 + 5))
    if path.stat().st_mtime_ns != seconds * 10**9 + 5:
        pytest.skip("this file system ends its times earlier")
    index = pipeline.ingest(make_job(source, tmp_path / "root"))[0].value
    assert index.summary.n_invalid == 0


def test_names_that_are_not_utf8_are_invalid_windows(copied: Copied, tmp_path: Path) -> None:
    source = copied("segmentation")
    first = first_window(source)
    stray = os.fsencode(raster_of(first)).replace(b"geotiff.tif", b"stray\xff.txt")
    os.close(os.open(stray, os.O_CREAT))
    second = sorted(first.parent.iterdir())[1]
    os.rename(os.fsencode(second), os.fsencode(first.parent) + b"/window_\xff")
    index = pipeline.ingest(make_job(source, tmp_path / "root"))[0].value
    assert index.summary.reasons == {"name_unusable": 2}
    again = pipeline.ingest(make_job(source, tmp_path / "root"))
    assert not [outcome.stage for outcome in again if outcome.ran]


# ------------------------------------------------------------------------------ isolated decoders

GRID = Grid("EPSG:32630", 10.0, -10.0, (50_000, -100_000, 50_032, -99_968))


def load_libraries() -> None:
    """Nothing is needed."""


def crash() -> tuple[None, int]:
    os.abort()


def hang() -> tuple[None, int]:
    time.sleep(1_000)
    return None, 0


def fill() -> tuple[None, int]:
    return None, len([bytearray(64 << 20) for _ in range(1_000)])


def pid() -> tuple[None, int]:
    return None, os.getpid()


def stand_in(folder: str) -> tuple[None, int]:
    os.chdir(folder)
    return None, 0


def where() -> tuple[None, str]:
    return None, os.getcwd()


def break_machine() -> tuple[None, int]:
    raise OSError(24, "Too many open files")


@pytest.mark.parametrize("function", [crash, hang, fill])
def test_a_decoder_that_crashes_hangs_or_grows_is_stopped(function: Callable[[], object]) -> None:
    with pytest.raises(Unreadable) as caught:
        isolated.run(function, seconds=30 if function is fill else 3)  # type: ignore[arg-type]
    assert caught.value.code == "decoder_stopped"
    assert isolated.run(pid)[1] != os.getpid()


def test_a_folder_removed_beneath_a_decoder_is_no_verdict_on_data(tmp_path: Path) -> None:
    """Libraries that it loads late end a process that stands in one."""
    helpers = Isolated()
    helpers.run(stand_in, str(tmp_path))
    tmp_path.rmdir()
    assert helpers.run(where)[1] == "/"
    helpers.close()


@pytest.mark.parametrize(
    ("profile", "decoder"),
    [
        ({"compress": "deflate"}, "decode_shared"),
        ({"compress": "none"}, "decode_shared"),
        ({"compress": "lzw", "crs": "EPSG:32631"}, "warp"),  # simple, and on another grid
        ({"compress": "deflate", "width": 12_000, "height": 12_000}, "decode_shared"),  # 137 MiB
    ],
    ids=["compressed", "uncompressed", "warped", "large"],
)
def test_what_ends_a_decoder_ends_no_command(
    profile: dict[str, Any], decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Affine(10, 0, 500_000, 0, -10, 1_000_000)
    profile = {"crs": "EPSG:32630", "width": 32, "height": 32, "transform": place} | profile
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", count=1, dtype="uint8", **profile) as raster:
            raster.write(np.ones((1, raster.height, raster.width), np.uint8))
        data = memory.read()
    monkeypatch.setattr(geotiff, decoder, crash_decoder)
    with pytest.raises(Unreadable) as caught:
        decode_geotiff(
            data,
            replace(
                GRID, bounds=(50_000, -100_000, 50_000 + raster.width, -100_000 + raster.height)
            ),
        )
    assert caught.value.code == "decoder_stopped"


def test_pixels_that_are_kept_keep_no_file_handles(copied: Copied) -> None:
    data = raster_of(first_window(copied("segmentation"))).read_bytes()
    header = read_header(data)._replace(blocks=None)
    before = len(os.listdir("/proc/self/fd"))
    kept = [geotiff._decode_pixels(data, header) for _ in range(24)]
    assert len(os.listdir("/proc/self/fd")) < before + len(kept)  # a helper has some
    isolated.close()


def test_its_process_is_kept_and_tells_of_the_machine() -> None:
    _, first = isolated.run(pid)
    with pytest.raises(MachineError, match="ulimit -n"):
        isolated.run(break_machine)
    assert isolated.run(pid)[1] == first


def _without_sizes() -> bytes:
    """A TIFF of one strip whose directory doesn't say how long it is."""
    scale = struct.pack("<3d", 10, 10, 0)
    tie = struct.pack("<6d", 0, 0, 0, 500_000, 1_000_000, 0)
    keys = struct.pack("<12H", 1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32630)
    tags = [(256, 3, 1, 32), (257, 3, 1, 32), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
            (277, 3, 1, 1), (278, 3, 1, 32)]  # fmt: skip
    at = 8 + 2 + 12 * (len(tags) + 4) + 4
    tags += [(273, 4, 1, at + len(scale + tie + keys))]
    tags += [(33550, 12, 3, at), (33922, 12, 6, at + len(scale))]
    tags += [(34735, 3, 12, at + len(scale + tie))]
    body = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + body + bytes(4)
    return head + scale + tie + keys + bytes(range(256)) * 4


def test_a_strip_without_its_size_is_read_as_gdal_reads_it() -> None:
    pixels, stored = decode_geotiff(_without_sizes(), GRID)
    assert stored.dtype == "uint8"
    np.testing.assert_array_equal(pixels[:, :, 0].reshape(-1), np.arange(1024, dtype=np.uint8))


# ------------------------------------------------------------------------------------------ texts

LONG = {
    "letters": "a" * 20_000,
    "parameters": "?" + "sig" * 6_000,
    "questions": "?key" * 5_000,
    "underscores": "a_" * 10_000,
    "item groups": ".0" * 10_000,
    "placeholders": "${" * 10_000,
    "schemes": "://" * 7_000,
    "escapes": "\x1b[2J" * 5_000,
}


@pytest.mark.parametrize("kind", sorted(LONG))
def test_long_names_take_no_time(kind: str, written: Copied) -> None:
    from eval_ingest.core.spec import DatasetSpec

    source = written("segmentation")
    content = json.loads((source / "config.json").read_text())
    name, layer = next(iter(content["layers"].items()))
    spec = DatasetSpec.parse({"name": "crops", "source": "x"}, "test")
    model = (source / "model.yaml").read_text()
    for layers in ({LONG[kind]: layer, **content["layers"]}, {LONG[kind]: layer}):
        for text in (model, None):
            started = time.process_time()
            try:
                resolve(ConfigFiles(json.dumps(content | {"layers": layers}), text), spec)
            except EvalIngestError as error:
                assert len(str(error)) < 6_000
            assert time.process_time() - started < 1, name


def test_class_names_are_words_wherever_they_are_shown(
    copied: Copied, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from eval_ingest import cli
    from eval_ingest.report.writing import write_report
    from eval_ingest.settings import Settings
    from eval_ingest.store.roots.open import open_root

    evil = ["\x1b[2J\x1b]0;title\x07", "![x](http://127.0.0.1:9/x.png)", "<img src=x onerror=a()>",
            "\u202egpj.exe", "| a | b |"]  # fmt: skip
    source, root = copied("segmentation"), tmp_path / "root"
    pipeline.ingest(make_job(source, root, classes=[*evil, "plain"][:6]))
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    for command in (["info", "--name", "crops"], ["info", "--name", "crops", "--json"], ["list"]):
        cli.main(command)
    said = capsys.readouterr()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said.out + said.err)
    write_report(open_root(Settings(eval_root=str(root))), "crops")
    page = (root / "crops" / "report" / "report.html").read_text()
    card = (root / "crops" / "README.md").read_text()
    assert "<img src=x" not in page and "<img src=x" not in card
    assert "](http:" not in card and "\x1b" not in page + card


_OBEYED = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u2028\u202e\U000e0041]"
NAMES = (
    "\x1b[2J\x1b]0;title\x07",
    "![x](http:x.png)",
    "<img src=x onerror=a()>",
    "| a | b |",
    "\u202egpj.exe\U000e0041\xad",
    "$\\frac$ $x^{$",
    "_",
    "\r\nx\u2028",
    "%s %d {0} {x}",
    "`a`",
)


def _named(source: Path) -> list[Path]:
    """Have windows with such names."""
    windows = sorted(path.parent for path in source.glob("windows/*/*/layers"))
    return [w.rename(w.with_name(f"{NAMES[k % len(NAMES)]}{k}")) for k, w in enumerate(windows)]


def test_names_of_windows_and_properties_are_words_too(
    copied: Copied, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from eval_ingest import cli

    source, root, name = copied("scalar_regression"), tmp_path / "root", NAMES[5]
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    windows = _named(source)
    model = yaml.safe_load((source / "model.yaml").read_text())
    (source / "model.yaml").write_text(
        json.dumps(model).replace("lfmc_value", json.dumps(name)[1:-1])
    )
    for path in source.rglob("data.geojson"):
        path.write_text(path.read_text().replace("lfmc_value", json.dumps(name)[1:-1]))
    commands = ("ingest crops --source {}", "info crops", "verify crops", "report crops",
                "validate crops", "ingest broken --source {}")  # fmt: skip
    for command in commands:
        if "broken" in command:
            for window in windows[: len(NAMES)]:
                (window / "metadata.json").write_text("{}")
        cli.main([part.format(source) for part in command.split()])
    said = capsys.readouterr()
    dataset = EvalDataset("crops", "train", root=root)
    assert dataset.plot(0)._repr_png_()
    texts = [said.out, said.err, repr(dataset), dataset._repr_html_(), repr(dataset.windows)]
    texts += [path.read_text() for path in root.rglob("*.html")]
    texts += [path.read_text() for path in root.rglob("README.md")]
    assert "invalid" in said.out + said.err and len(texts) > 6
    for text in texts:
        assert not re.search(_OBEYED, text)
    for text in texts[3:]:
        assert "<img src=x" not in text
    assert "![x](" not in texts[-1]  # the card


def test_names_are_words_on_dagsters_page_too(copied: Copied, tmp_path: Path) -> None:
    evil = ["\x1b[2J\x1b]0;title\x07", "![x](http://127.0.0.1:9/x.png)", "<img src=x onerror=a()>",
            "\u202egpj.exe\U000e0041\xad", "| a | b |"]  # fmt: skip
    source = tmp_path / "<img src=x onerror=a()> ![x](y) \u202egpj \x1b[2J"
    copied("segmentation").rename(source)
    for k, path in enumerate(sorted(source.glob("windows/*/*/metadata.json"))):
        metadata = json.loads(path.read_text())
        metadata["options"] |= {evil[k % 5]: evil[(k + 1) % 5]}
        path.write_text(json.dumps(metadata))
    (_named(source)[0] / "metadata.json").write_text("{}")
    with dg.DagsterInstance.ephemeral() as instance:
        world = World(tmp_path, source, instance)
        world.add("crops", classes=[*evil, "plain"][:6], display_name=evil[1], notes=evil[2],
                  licence=evil[0])  # fmt: skip
        result = world.front_door()
        assert result.success
        node = build_defs(world.settings).resolve_asset_graph().get(dg.AssetKey("crops"))
        shown = [("description", str(node.description))]
        for entry in instance.all_logs(result.run_id):
            shown.append(("log", entry.user_message))
        events = result.get_asset_materialization_events()
        found = [e.step_materialization_data.materialization for e in events]
        for event in (*found, *result.get_asset_check_evaluations()):
            shown.append(("description", event.description or ""))
            shown += [(key, str(value.value)) for key, value in event.metadata.items()]
    assert any("plain" in text for _, text in shown)
    for key, text in shown:
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u202e\U000e0041]", text), key
        if key not in ("source", "path", "log"):  # those are plain text there, and stay as they are
            assert "<img src=x" not in text and "![x](" not in text and "](http:" not in text, key


def test_samples_are_read_after_all_that(copied: Copied, tmp_path: Path) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    HOSTILE["a mask"][0](first_window(source))
    pipeline.ingest(make_job(source, root))
    from_copy = {(s.group, s.name) for s in rslearn_samples(root / "crops")}
    ours = sum(len(EvalDataset("crops", split, root=root)) for split in ("train", "val", "test"))
    assert len(from_copy) == ours


@pytest.mark.parametrize("file", ["config.json", "model.yaml", "olmoearth_run.yaml"])
def test_half_a_character_in_a_configuration_is_told(
    file: str, copied: Copied, tmp_path: Path
) -> None:
    source = copied("segmentation")
    path = source / file
    half = r'"\ud800"'
    text = re.sub('"?cacao"?', lambda found: half, path.read_text())
    path.write_text(text.replace("groups: [", f"groups: [{half}, "))
    assert half in path.read_text()
    with pytest.raises(EvalIngestError, match="half a character"):
        pipeline.ingest(make_job(source, tmp_path / "root"))
