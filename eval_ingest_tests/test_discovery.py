"""Finding datasets under roots, naming them, and judging them."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import eval_ingest
from eval_ingest import pipeline, watching
from eval_ingest.cli import main
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.errors import NotOursError, SourceError, SourceNotFoundError
from eval_ingest.job import open_job
from eval_ingest.objects import filesystems
from eval_ingest.settings import Settings
from eval_ingest.sources import discovery
from eval_ingest.sources.discovery import Entry, find_datasets, source_fingerprint
from eval_ingest.sources.open import open_source
from eval_ingest.store.catalog import add_spec
from eval_ingest.store.registry import read_metadata
from eval_ingest.store.roots.open import open_root
from eval_ingest.watching import State, judge, survey
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.servers import gcs_server

Written = Callable[[str], Path]


def shell(folder: Path, groups: Sequence[str] = ("g",), windows: int = 2) -> Path:
    """A folder that looks like a dataset from outside."""
    for group in groups:
        for k in range(windows):
            (folder / "windows" / group / f"w{k}" / "layers").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def names(root: Path, settings: Settings) -> dict[str, str]:
    return {
        s.name: str(Path(s.found.url).relative_to(root))
        for s in survey([str(root)], settings).sightings
    }


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(eval_root=str(tmp_path / "evals"), workers=2)


def test_datasets_are_found_at_any_depth_up_to_the_limit(tmp_path: Path) -> None:
    root = tmp_path / "root"
    shell(root / "one")
    shell(root / "a" / "b" / "c" / "deep", groups=("x", "y"), windows=3)
    shell(root / "a" / "b" / "c" / "d" / "too_deep")
    shell(root / ".hidden" / "no")
    (root / "no_windows").mkdir()
    (root / "no_windows" / "config.json").write_text("{}")
    found = {f.url: f for f in find_datasets(str(root))}
    assert set(found) == {f"{root}/one", f"{root}/a/b/c/deep"}
    deep = found[f"{root}/a/b/c/deep"]
    assert deep.windows == 6 and deep.groups == {"x": 3, "y": 3}


def test_a_root_may_be_a_dataset_itself(tmp_path: Path) -> None:
    shell(tmp_path / "one")
    (found,) = find_datasets(str(tmp_path / "one"))
    assert found.url == str(tmp_path / "one")
    assert source_fingerprint(f"{tmp_path}/one/") == found.fingerprint
    assert source_fingerprint(f"{tmp_path}/nope") == ""


def test_windows_are_not_looked_into(tmp_path: Path) -> None:
    shell(tmp_path / "one")
    shell(tmp_path / "one" / "windows" / "g" / "w0")  # a trap
    listed: list[str] = []
    real = discovery._lister(str(tmp_path))

    def lister(folders: Sequence[str]) -> list[list[Entry]]:
        listed.extend(folders)
        return real(folders)

    assert len(list(find_datasets(str(tmp_path), lister=lister))) == 1
    assert listed == ["", "one", "one/windows", "one/windows/g"]


def test_copies_in_an_eval_root_are_no_sources(
    written: Written, tmp_path: Path, settings: Settings
) -> None:
    pipeline.ingest(make_job(written("segmentation"), tmp_path / "root" / "evals"))
    shell(tmp_path / "root" / "one")
    assert names(tmp_path / "root", settings) == {"one": "one"}


def test_a_link_in_a_circle_ends(tmp_path: Path) -> None:
    shell(tmp_path / "root" / "a" / "one")
    (tmp_path / "root" / "a" / "round").symlink_to(tmp_path / "root")
    shell(tmp_path / "elsewhere" / "linked")
    (tmp_path / "root" / "two").symlink_to(tmp_path / "elsewhere" / "linked")
    found = sorted(Path(f.url).name for f in find_datasets(str(tmp_path / "root")))
    assert found == ["one", "two"]


@pytest.mark.parametrize(
    "link",
    ["model.yaml", "other", "windows/other", "windows/g/other", "one/model.yaml", "one/other"],
)
@pytest.mark.parametrize("target", ["gone", "itself"])
def test_a_link_to_nothing_hides_no_dataset(link: str, target: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    if not link.startswith("windows"):
        shell(root / "one")
    else:
        shell(root)
    path = root / link
    path.symlink_to(path.name if target == "itself" else "gone")
    (found,) = find_datasets(str(root))
    assert found.groups["g"] == len(list(open_source(found.url).names(["g"]) or ()))
    before = found.fingerprint
    path.unlink()
    path.mkdir() if path.name == "other" else path.write_text("task: {}")
    assert ([f.fingerprint for f in find_datasets(str(root))] == [before]) == (
        path.name == "other" or link == "model.yaml"
    )


def test_an_entry_that_vanishes_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell(tmp_path / "root" / "one")
    (tmp_path / "root" / "one" / "model.yaml").write_text("{}")
    local_entry = discovery._local_entry

    def late(folder: str, entry: os.DirEntry[str]) -> Entry:
        if entry.name == "model.yaml":
            os.unlink(entry.path)
        return local_entry(folder, entry)

    monkeypatch.setattr(discovery, "_local_entry", late)
    assert len(list(find_datasets(str(tmp_path / "root")))) == 1


@pytest.mark.parametrize("link", ["windows", "windows/g", "windows/g/w0"])
def test_links_in_a_dataset_are_seen_as_an_ingest_sees_them(link: str, tmp_path: Path) -> None:
    one = shell(tmp_path / "root" / "one")
    (one / link).rename(one / "kept")
    (one / link).symlink_to(one / "kept")
    (found,) = find_datasets(str(tmp_path / "root"))
    source = open_source(str(one))
    assert found.groups == {"g": 2} == {g: len(list(source.names([g]) or ())) for g in ["g"]}


def test_the_fingerprint_follows_configuration_and_windows(tmp_path: Path) -> None:
    folder = shell(tmp_path / "one")
    seen = [source_fingerprint(str(folder))]
    assert source_fingerprint(str(folder)) == seen[0]
    for change in (
        lambda: (folder / "model.yaml").write_text("task:"),
        lambda: (folder / "windows" / "g" / "w9").mkdir(),
        lambda: (folder / "windows" / "h" / "w0").mkdir(parents=True),
        lambda: (folder / "windows" / "g" / "w9").rename(folder / "windows" / "g" / "w8"),
    ):
        change()
        seen.append(source_fingerprint(str(folder)))
    assert len(set(seen)) == len(seen)
    (folder / "notes.txt").write_text("nobody reads this")
    assert source_fingerprint(str(folder)) == seen[-1]


def test_names_come_from_folders_and_collisions_take_the_folder_above(
    tmp_path: Path, settings: Settings
) -> None:
    root = tmp_path / "root"
    for folder in ("Rice 2024", "a/crops", "b/crops", "c/x/maize", "d/x/maize"):
        shell(root / folder)
    found = names(root, settings)
    assert found["rice_2024"] == "Rice 2024"
    assert found["a_crops"] == "a/crops" and found["b_crops"] == "b/crops"
    twins = sorted(name for name in found if "maize" in name)
    assert len(twins) == 2 and all(name.startswith("maize_") for name in twins)


def test_the_catalog_names_its_own(tmp_path: Path, settings: Settings) -> None:
    root = tmp_path / "root"
    shell(root / "x1")
    shell(root / "crops")
    add_spec(settings, DatasetSpec(name="crops", source=str(root / "x1")))
    add_spec(settings, DatasetSpec(name="crops_too", source=str(root / "x1") + "/"))
    assert names(root, settings) == {"crops": "x1", "crops_too": "x1", "root_crops": "crops"}


def test_a_root_that_is_down_does_not_stop_the_others(tmp_path: Path, settings: Settings) -> None:
    shell(tmp_path / "root" / "one")
    (tmp_path / "file").write_text("")
    roots = [str(tmp_path / "gone"), str(tmp_path / "file"), str(tmp_path / "root"), "${UNSET}/x"]
    found = survey(roots, settings)
    assert [s.name for s in found.sightings] == ["one"]
    assert set(found.down) == set(roots) - {str(tmp_path / "root")}
    assert "does not exist or is empty" in found.down[roots[0]]


def test_too_many_folders_are_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "MAX_FOLDERS", 3)
    for k in range(5):
        (tmp_path / f"f{k}").mkdir()
    with pytest.raises(SourceError, match="give roots nearer to the datasets"):
        list(find_datasets(str(tmp_path)))
    with pytest.raises(SourceNotFoundError):
        list(find_datasets(str(tmp_path / "gone")))


def test_a_dataset_is_new_then_registered_then_changed(
    written: Written, tmp_path: Path, settings: Settings
) -> None:
    root = tmp_path / "root"
    shutil.copytree(written("segmentation"), root / "crops")

    def state() -> State:
        (sighting,) = survey([str(root)], settings).sightings
        return judge(sighting, settings).state

    def ingest() -> None:
        pipeline.ingest(make_job(root / "crops", tmp_path / "evals"))

    assert state() is State.NEW
    ingest()
    assert state() is State.REGISTERED
    shutil.move(next((root / "crops" / "windows").glob("*/*")), tmp_path / "aside")
    assert state() is State.CHANGED
    ingest()
    assert state() is State.REGISTERED
    for file in ("metadata.json", "source_state.json"):  # damaged, it is ingested again
        path = tmp_path / "evals" / "crops" / file
        path.write_bytes(path.read_bytes()[:-40])
        assert state() is State.CHANGED
        ingest()
        assert state() is State.REGISTERED


def test_what_can_not_be_ingested_says_why(
    written: Written, tmp_path: Path, settings: Settings
) -> None:
    root = tmp_path / "root"
    shell(root / "no_task")
    shutil.copytree(written("segmentation"), root / "broken")
    (root / "broken" / "model.yaml").write_text("data: [unclosed")
    (root / "empty" / "windows").mkdir(parents=True)
    (root / "empty" / "config.json").write_text("{}")
    judged = {s.name: judge(s, settings) for s in survey([str(root)], settings).sightings}
    assert {j.state for j in judged.values()} == {State.NOT_INGESTABLE}
    assert "model.yaml" in judged["broken"].reason
    assert "holds no windows" in judged["empty"].reason
    assert judged["no_task"].reason


def test_a_bucket_is_looked_through_like_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    for folder in ("one", "a/b/two"):
        shell(root / folder)
        for window in (root / folder).glob("windows/*/*"):
            (window / "metadata.json").write_text("{}")  # buckets have no empty folders
    expected = {f.url.removeprefix(str(root)): f.groups for f in find_datasets(str(root))}
    with gcs_server() as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        url = server.upload(root, "roots")
        found = list(find_datasets(url))
        assert {f.url.removeprefix(url): f.groups for f in found} == expected
        assert source_fingerprint(found[0].url) == found[0].fingerprint
        with pytest.raises(SourceNotFoundError):
            list(find_datasets(f"{url}/nope"))


def test_discover_prints_a_table(
    written: Written,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "root"
    shutil.copytree(written("segmentation"), root / "crops")
    shell(root / "strange")
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path / "evals"))
    monkeypatch.setenv("EVAL_INGEST_STUDIO_ROOTS", f"{root}, {tmp_path}/gone")
    assert main(["discover"]) == 1  # a root is down
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "source", "task", "windows", "state", "reason"]
    assert lines[1].split()[:2] == ["crops", str(root / "crops")] and "new" in lines[1]
    assert lines[2].partition("not ingestable")[2].strip().startswith("config.json: has no layers")
    assert lines[3] == (
        f"could not look everywhere: the root {tmp_path}/gone does not exist or is empty; "
        "check its name"
    )
    assert main(["discover", "--root", f"{tmp_path}/gone"]) == 1
    assert "no dataset" not in capsys.readouterr().out  # nobody has looked
    assert main(["discover", "--root", str(root), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [d["state"] for d in facts["datasets"]] == ["new", "not ingestable"]


def test_what_no_text_names_is_told_with_a_cure_and_hides_no_other(
    written: Written,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, odd = tmp_path / "root", os.fsdecode(b"\xe9")
    shutil.copytree(written("segmentation"), root / "crops")
    for folder in (root / "crops" / "windows").iterdir():
        (folder / odd).mkdir()
    (root / "crops" / "windows" / odd / "w").mkdir(parents=True)
    bad = shell(root / odd / "below")
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path / "evals"))
    for _ in range(2):  # the second remembers the first
        assert main(["discover", "--root", str(root)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].startswith("below") and "udce9/below is not UTF-8 text: re" in lines[1]
        assert lines[2].startswith("crops") and "new" in lines[2]
    assert main(["discover", "--root", str(bad)]) == 1
    assert main(["ingest", str(bad)]) == 1
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_discover_tells_of_a_fault_of_ours_and_goes_on(
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("bad", "good"):
        shutil.copytree(small, tmp_path / "root" / name)

    def faulty(sighting: watching.Sighting, settings: Settings) -> watching.Judgement:
        if sighting.name == "bad":
            raise ValueError("deep inside")
        return judge(sighting, settings)

    judge = watching.judge
    monkeypatch.setattr(watching, "judge", faulty)
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path / "evals"))
    assert main(["discover", "--root", str(tmp_path / "root"), "--json"]) == 1
    bad, good = json.loads(capsys.readouterr().out)["datasets"]
    assert bad["state"] == "could not be looked at" and good["state"] == "new"
    assert bad["reason"].startswith("ValueError: deep inside at test_discovery.py:")


def test_discover_without_roots_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["discover"]) == 1
    assert "--root PATH_OR_URL, or set EVAL_INGEST_STUDIO_ROOTS" in capsys.readouterr().err


def test_weka_is_a_mount_where_it_is_mounted(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a source, as a root to look under, and as an eval root."""
    monkeypatch.setattr(filesystems, "WEKA_MOUNT", tmp_path)
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "studio").symlink_to(small.parent)
    url = f"weka://bucket/studio/{small.name}"
    assert open_source(url).url == str(tmp_path / "bucket" / "studio" / small.name)
    (found,) = [f for f in find_datasets("weka://bucket/studio") if f.url.endswith(small.name)]
    assert found.windows == 10
    assert open_root(Settings(eval_root="weka://bucket/evals")).path == tmp_path / "bucket/evals"
    with pytest.raises(SourceError, match=r"elsewhere is not mounted here, and WEKA_ENDPOINT_URL"):
        open_source("weka://elsewhere/crops")


def test_a_registered_dataset_in_no_catalog_keeps_its_name(
    written: Written, tmp_path: Path, settings: Settings
) -> None:
    root = tmp_path / "root"
    shutil.copytree(written("segmentation"), tmp_path / "elsewhere" / "crops")
    shutil.copytree(written("segmentation"), root / "crops")
    pipeline.ingest(make_job(tmp_path / "elsewhere" / "crops", tmp_path / "evals"))
    assert names(root, settings) == {"root_crops": "crops"}
    # Found where it comes from, it is the registered one, with the spec that it was made by.
    (sighting,) = survey([str(tmp_path / "elsewhere")], settings).sightings
    assert sighting.name == "crops"
    assert judge(sighting, settings).state is State.REGISTERED
    metadata = read_metadata(open_root(settings).dataset("crops"))
    assert metadata is not None and sighting.spec == metadata.spec


def test_variables_in_the_name_of_a_found_folder_are_not_expanded(
    written: Written, tmp_path: Path, settings: Settings
) -> None:
    settings = replace(settings, variables={"DB_PASS": "s3cr3t", "HOME_OF_IT": "/s3cr3t/place"})
    for name in ("${DB_PASS}", "${HOME_OF_IT}", "$${HOME_OF_IT}", "${UNSET:-x}"):
        shutil.copytree(written("segmentation"), tmp_path / "root" / name)
    sightings = survey([str(tmp_path / "root")], settings).sightings
    assert len(sightings) == 4
    for sighting in sightings:
        judgement = judge(sighting, settings)
        assert (judgement.state, judgement.reason) == (State.NEW, "")
        assert settings.expand(sighting.spec.source) == sighting.found.url
        add_spec(settings, sighting.spec)
        pipeline.ingest(open_job(sighting.spec, settings))
    kept = [p.read_bytes() for p in (tmp_path / "evals").rglob("*") if p.is_file()]
    assert kept and not [data for data in kept if b"s3cr3t" in data]
    again = survey([str(tmp_path / "root")], settings).sightings
    assert all(s.in_catalog and judge(s, settings).state is State.REGISTERED for s in again)


def test_a_watched_root_may_begin_with_a_tilde(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell(tmp_path / "root" / "one")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [s.found.url for s in survey(["~/root"], settings).sightings] == [f"{tmp_path}/root/one"]


@pytest.mark.parametrize("source", ["/data/a\0b", "", None, 7, "gs://[", "x" * 9000, "\ud800"])
def test_an_entry_whose_source_is_no_path_hides_no_dataset(
    source: object, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(few)  # no source is not the folder that we stand in
    evals = tmp_path / "evals"
    evals.mkdir()
    entry = {"name": "odd", "source_path": source, "weka_path": source}
    (evals / "registry.json").write_text(json.dumps({"datasets": {"odd": entry}}))
    settings = Settings(eval_root=str(evals), cache=str(tmp_path / "cache"))
    found = survey([str(few)], settings)
    assert found.down == {} and [s.name for s in found.sightings] == [few.name]
    with pytest.raises(NotOursError, match="there is no copy of its windows to adopt"):
        eval_ingest.adopt("odd", root=evals)
