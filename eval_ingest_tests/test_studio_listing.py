"""The files of a window, by the compiled listing and by Python's own, which give the same."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval_ingest.errors import SourceError
from eval_ingest.studio import listing
from eval_ingest.studio.listing import list_window, parse
from eval_ingest.studio.source import LocalSource

LAYERS = frozenset({"sentinel2", "label"})


@pytest.fixture(params=["compiled", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "python":
        monkeypatch.setattr(listing, "_listing", None)
    elif listing._listing is None:
        pytest.skip("no C compiler")
    yield request.param


def write(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


def test_files_of_the_layers_that_are_asked_for(tmp_path: Path, way: str) -> None:
    wanted = [
        "metadata.json",
        "items.json",
        "layers/sentinel2/completed",
        "layers/sentinel2/B02_B03/geotiff.tif",
        "layers/sentinel2.11/B02_B03/geotiff.tif",
        "layers/label/data.geojson",
        "layers/label/ünï.json",
    ]
    others = ["other.json", "layers/sentinel1/completed", "layers/sentinel/x", "layers/label2/x"]
    write(tmp_path, *wanted, *others)
    found = parse(list_window(str(tmp_path), LAYERS))
    assert [path for path, _, _ in found] == sorted(wanted)
    for path, size, time in found:
        stat = (tmp_path / path).stat()
        assert (size, time) == (stat.st_size, str(stat.st_mtime_ns))


@pytest.mark.parametrize("paths", [(), ("metadata.json",), ("layers",), ("layers/label",)])
def test_what_is_missing_is_not_there(tmp_path: Path, way: str, paths: tuple[str, ...]) -> None:
    write(tmp_path, *paths)
    found = [path for path, _, _ in parse(list_window(str(tmp_path), LAYERS))]
    assert found == [path for path in paths if path != "layers"]
    assert list_window(str(tmp_path / "nowhere"), LAYERS) == b""
    found = [path for path, _, _ in parse(list_window(str(tmp_path), frozenset()))]
    assert found == [path for path in paths if path == "metadata.json"]


def test_a_listing_tells_one_state_from_another(tmp_path: Path, way: str) -> None:
    group = tmp_path / "windows" / "g"
    write(tmp_path, "config.json")
    write(group / "w", "metadata.json", "items.json")
    write(group / "w", "layers/label/a", "layers/label.1/b", "layers/sentinel2/B02/geotiff.tif")
    source = LocalSource(str(tmp_path))
    before = source.window("g", "w", LAYERS)
    assert list(source.listing(["g"], LAYERS)) == [before.listed]
    assert list(source.windows(["g"], LAYERS)) == [before]
    seen = {before.digest}
    for path in ("layers/label/a", "metadata.json"):
        (group / "w" / path).write_text("changed")
        seen.add(source.window("g", "w", LAYERS).digest)
    (group / "w" / "layers/label/a").rename(group / "w" / "layers/label/c")
    seen.add(source.window("g", "w", LAYERS).digest)
    assert len(seen) == 4


def test_links_to_files_and_folders_are_followed_but_not_in_circles(
    tmp_path: Path, way: str
) -> None:
    write(tmp_path, "elsewhere/geotiff.tif", "window/metadata.json", "window/layers/label/a")
    window = tmp_path / "window"
    (window / "layers/sentinel2").symlink_to(tmp_path / "elsewhere")
    (window / "layers/label/b").symlink_to(window / "layers/label/a")
    (window / "layers/label/gone").symlink_to(tmp_path / "nothing")
    found = {path for path, _, _ in parse(list_window(str(window), LAYERS))}
    assert found == {
        "metadata.json",
        "layers/sentinel2/geotiff.tif",
        "layers/label/a",
        "layers/label/b",
    }
    (window / "layers/label/round").symlink_to(window / "layers")
    with pytest.raises(OSError, match="levels"):
        list_window(str(window), LAYERS)
    write(tmp_path / "dataset", "config.json")
    (tmp_path / "dataset/windows/g").mkdir(parents=True)
    (tmp_path / "dataset/windows/g/w").symlink_to(window)
    with pytest.raises(SourceError, match="windows/g/w can't be listed"):
        LocalSource(str(tmp_path / "dataset")).window("g", "w", LAYERS)


def test_a_name_longer_than_any_path_is_refused(tmp_path: Path, way: str) -> None:
    deep = tmp_path / "layers" / "label"
    deep.mkdir(parents=True)
    previous = os.getcwd()
    try:
        os.chdir(deep)
        for _ in range(20):  # 20 x 250 characters, deeper than what is looked into
            os.mkdir("x" * 250)
            os.chdir("x" * 250)
    finally:
        os.chdir(previous)
    with pytest.raises(OSError):
        list_window(str(tmp_path), LAYERS)
