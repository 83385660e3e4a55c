"""The files of a window, by the compiled listing and by Python's own, which give the same."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval_ingest.errors import MachineError, SourceError
from eval_ingest.sources import listing
from eval_ingest.sources.listing import list_window, parse
from eval_ingest.sources.local import LocalSource
from eval_ingest.sources.remote import RemoteSource
from eval_ingest_tests.support import compiled
from eval_ingest_tests.support.lacking import no_handles

LAYERS = frozenset({"sentinel2", "label"})


@pytest.fixture(params=compiled.WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    compiled.take(request.param, listing, "_listing", monkeypatch)
    yield request.param


def no_link(path: str) -> None:
    raise AssertionError(f"{path} is no link")


def files_of(window: Path) -> list[tuple[str, int, str]]:
    return parse(list_window(str(window), LAYERS, no_link))


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
    found = files_of(tmp_path)
    assert [path for path, _, _ in found] == sorted(wanted)
    for path, size, time in found:
        stat = (tmp_path / path).stat()
        assert (size, time) == (stat.st_size, str(stat.st_mtime_ns))


@pytest.mark.parametrize("paths", [(), ("metadata.json",), ("layers",), ("layers/label",)])
def test_what_is_missing_is_not_there(tmp_path: Path, way: str, paths: tuple[str, ...]) -> None:
    write(tmp_path, *paths)
    found = [path for path, _, _ in files_of(tmp_path)]
    assert found == [path for path in paths if path != "layers"]
    assert files_of(tmp_path / "nowhere") == []
    found = [path for path, _, _ in parse(list_window(str(tmp_path), frozenset(), no_link))]
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


def test_links_are_followed_once_they_are_checked_and_not_in_circles(
    tmp_path: Path, way: str
) -> None:
    write(tmp_path, "elsewhere/geotiff.tif", "window/metadata.json", "window/layers/label/a")
    window = tmp_path / "window"
    (window / "items.json").symlink_to(window / "metadata.json")
    (window / "layers/sentinel2").symlink_to(tmp_path / "elsewhere")
    (window / "layers/label/b").symlink_to(window / "layers/label/a")
    (window / "layers/label/gone").symlink_to(tmp_path / "nothing")
    checked: list[str] = []
    found = {path for path, _, _ in parse(list_window(str(window), LAYERS, checked.append))}
    assert found == {
        "metadata.json",
        "items.json",
        "layers/sentinel2/geotiff.tif",
        "layers/label/a",
        "layers/label/b",
    }
    names = ("items.json", "layers/label/b", "layers/label/gone", "layers/sentinel2")
    assert sorted(checked) == [f"{window}/{name}" for name in names]
    (window / "layers/label/round").symlink_to(window / "layers")
    ((_, _, version),) = parse(list_window(str(window), LAYERS, checked.append))
    assert version.startswith("unusable: lies more folders deep")


def test_layers_behind_a_link_are_checked_too(tmp_path: Path, way: str) -> None:
    write(tmp_path, "elsewhere/label/a", "window/metadata.json")
    (tmp_path / "window/layers").symlink_to(tmp_path / "elsewhere")
    checked: list[str] = []
    found = parse(list_window(str(tmp_path / "window"), LAYERS, checked.append))
    assert sorted(path for path, _, _ in found) == ["layers/label/a", "metadata.json"]
    assert checked == [str(tmp_path / "window/layers")]


@pytest.mark.parametrize(
    "link",
    ["windows", "windows/g", "windows/g/w", "windows/g/w/layers", "windows/g/w/layers/label"],
)
def test_a_link_out_of_the_dataset_is_refused(tmp_path: Path, way: str, link: str) -> None:
    files = ("g/w/layers/label/a", "w/layers/label/a", "layers/label/a", "label/a")
    write(tmp_path, "dataset/config.json", *(f"outside/{file}" for file in files))
    path = tmp_path / "dataset" / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(tmp_path / "outside")
    for look in (  # the last: whoever has a window's name from elsewhere, such as a database
        lambda source: list(source.windows(source.groups(), LAYERS)),
        lambda source: list(source.listing(source.groups(), LAYERS)),
        lambda source: source.window("g", "w", LAYERS),
    ):
        with pytest.raises(SourceError, match=r"is a link to .*outside, which is outside of the"):
            look(LocalSource(str(tmp_path / "dataset")))


@pytest.mark.parametrize(
    "key", [("..", "w"), ("g", ".."), ("g", "../../out"), ("/", "w"), ("", "w")]
)
def test_a_name_that_leads_out_of_the_dataset_is_refused(
    tmp_path: Path, key: tuple[str, str]
) -> None:
    write(tmp_path, "out/w/metadata.json", "data/windows/g/w/metadata.json", "data/w/metadata.json")
    for source in (LocalSource(str(tmp_path / "data")), RemoteSource("memory://data")):
        with pytest.raises(SourceError, match="which names no folder"):
            source.window(*key, LAYERS)


@pytest.mark.parametrize("link", ["windows", "windows/g", "windows/g/w"])
def test_a_folder_that_is_a_link_within_the_dataset_is_listed(
    tmp_path: Path, way: str, link: str
) -> None:
    write(tmp_path, "windows/g/w/metadata.json", "windows/g/w/layers/label/a")
    (tmp_path / link).rename(tmp_path / "kept")
    (tmp_path / link).symlink_to(tmp_path / "kept")
    source = LocalSource(str(tmp_path))
    (window,) = source.windows(source.groups(), LAYERS)
    assert list(window.by_path) == ["layers/label/a", "metadata.json"]
    assert {f.path for f in window.files} == source.fetch(window, window.files).keys()


@pytest.mark.parametrize("target", ["gone", "w", "/gone/w"])
def test_a_window_that_is_a_link_to_nothing_is_a_window_without_files(
    tmp_path: Path, way: str, target: str
) -> None:
    write(tmp_path, "windows/g/a/metadata.json", "windows/g/file")
    (tmp_path / "windows/g/w").symlink_to(target)
    windows = list(LocalSource(str(tmp_path)).windows(["g"], LAYERS))
    assert [window.name for window in windows] == ["a", "w"]
    assert not windows[1].files or windows[1].unusable.startswith("metadata.json lies")


def test_a_group_that_is_a_link_to_nothing_has_no_windows(tmp_path: Path) -> None:
    write(tmp_path, "windows/g/a/metadata.json")
    (tmp_path / "windows/old").symlink_to("/gone/old")
    source = LocalSource(str(tmp_path))
    assert [window.name for window in source.names(source.groups())] == ["a"]


def test_what_a_source_knows_of_its_groups_does_not_go_with_each_task(tmp_path: Path) -> None:
    write(tmp_path, "windows/g/a/metadata.json")
    source = LocalSource(str(tmp_path))
    before = len(pickle.dumps(source))
    list(source.names(source.groups()))
    assert len(pickle.dumps(source)) == before


@pytest.mark.parametrize("depth", [1, 20])
def test_what_is_in_the_way_is_told_alike_wherever_the_dataset_lies(
    tmp_path: Path, way: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MOST_FILES", 5)
    found = []
    for root in (tmp_path / "a", tmp_path / "b" / "deeper"):
        for layer in ("sentinel2", "label")[:: 1 if root.name == "a" else -1]:
            for k in range(6):
                write(root, f"windows/g/w/layers/{layer}/{'x/' * depth}{k}")
        found.append(LocalSource(str(root)).window("g", "w", LAYERS))
    assert found[0].unusable == found[1].unusable and found[0].digest == found[1].digest
    assert found[0].unusable.startswith("layers/label" + "/x" * min(depth - 1, 8) * (depth > 8))


@pytest.mark.parametrize("name", ["metadata.json", "layers/label/data.geojson"])
def test_a_link_to_a_file_elsewhere_is_refused(tmp_path: Path, way: str, name: str) -> None:
    write(tmp_path, "secret", "dataset/windows/g/w/layers/label/completed")
    (tmp_path / "dataset/windows/g/w" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match="outside of the dataset"):
        LocalSource(str(tmp_path / "dataset")).window("g", "w", LAYERS)


@pytest.mark.parametrize("name", ["metadata.json", "layers/label/data.geojson"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, way: str, name: str) -> None:
    write(tmp_path, "windows/g/w/layers/label/completed")
    os.mkfifo(tmp_path / "windows/g/w" / name)
    found = LocalSource(str(tmp_path)).window("g", "w", LAYERS)
    assert found.unusable == f"{name} is neither a file nor a folder"


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
    ((_, size, version),) = files_of(tmp_path)
    assert not size and version.startswith("unusable: ")


def test_a_file_that_is_replaced_with_equal_size_and_time_is_seen(tmp_path: Path, way: str) -> None:
    (tmp_path / "metadata.json").write_text("{}")
    os.utime(tmp_path / "metadata.json", ns=(5, 5))

    def version(inodes: bool) -> str:
        listed = list_window(str(tmp_path), frozenset(), no_link, inodes)
        return parse(listed)[0][2]

    first = version(True), version(False)
    (tmp_path / "new").write_text("[]")
    os.utime(tmp_path / "new", ns=(5, 5))
    os.replace(tmp_path / "new", tmp_path / "metadata.json")
    assert version(True) != first[0] and version(False) == first[1] == "5"
    second = version(True)
    (tmp_path / "metadata.json").write_text("{}")  # in place: the same inode
    os.utime(tmp_path / "metadata.json", ns=(5, 5))
    assert version(True) != second


def test_file_systems_of_fuse_have_no_inodes_to_rely_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert listing.keeps_inodes(str(tmp_path))
    device = os.stat(tmp_path).st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"36 35 {os.major(device)}:{os.minor(device)} / /mnt rw shared:1 - fuse.gcsfuse b rw\n"
    )
    monkeypatch.setattr("builtins.open", lambda path, open=open, **kw: open(mounts, **kw))
    assert not listing.keeps_inodes(str(tmp_path))


def test_a_machine_without_file_handles_is_told_with_its_cure(tmp_path: Path, way: str) -> None:
    write(tmp_path, "windows/g/w/metadata.json")
    source = LocalSource(str(tmp_path))
    window = source.window("g", "w", LAYERS)
    for work in (
        lambda: source.window("g", "w", LAYERS),
        lambda: source.read("g", "w", window.files[0]),
        lambda: source.names(["g"]).__next__(),
    ):
        with no_handles(), pytest.raises(MachineError, match=r"Too many open files.*ulimit -n"):
            work()


def test_files_that_changed_since_they_were_listed_are_not_had(tmp_path: Path, way: str) -> None:
    paths = ["metadata.json", "layers/label/completed", "layers/label/a/geotiff.tif"]
    write(tmp_path / "windows/g/w", *paths)
    (tmp_path / "windows/g/w/layers/label/completed").write_bytes(b"")
    (tmp_path / "windows/g/w/metadata.json").chmod(0o640)
    source = LocalSource(str(tmp_path))
    window = source.window("g", "w", LAYERS)
    found = source.fetch(window, window.files)
    assert {path: had.data for path, had in found.items()} == {
        path: b"" if path.endswith("completed") else path.encode() for path in paths
    }
    assert found["metadata.json"].permissions == 0o640
    changed = tmp_path / "windows/g/w/layers/label/a/geotiff.tif"
    changed.write_bytes(b"x" * changed.stat().st_size)
    (tmp_path / "windows/g/w/metadata.json").unlink()
    assert list(source.fetch(window, window.files)) == ["layers/label/completed"]
    with pytest.raises(SourceError, match="run again when it is still"):
        source.read("g", "w", window.by_path["layers/label/a/geotiff.tif"])


def test_a_window_of_too_many_files_is_not_listed(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MOST_FILES", 20)
    write(tmp_path, *(f"layers/label/{k}" for k in range(20)))
    assert len(files_of(tmp_path)) == 20
    write(tmp_path, "layers/label/one_more")
    ((_, size, version),) = files_of(tmp_path)
    assert not size and version.startswith("unusable: is one of more than")
