"""The package in Python: what a user sees of `import eval_ingest`."""

import errno
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import eval_ingest
from eval_ingest import cli
from eval_ingest.core.spec import SplitPolicy
from eval_ingest.errors import (
    EvalIngestError,
    InvalidWindowsError,
    SourceError,
    SpecError,
    UnknownDatasetError,
)
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.sweep.results import write_row
from eval_ingest_tests.support.fake_scores import score

Written = Callable[[str], Path]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path / "evals"))
    return tmp_path / "evals"


def test_importing_the_package_loads_nothing_that_is_slow() -> None:
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import eval_ingest\n"
        "assert {'ingest', 'EvalDataset'} <= set(dir(eval_ingest))\n"
        "new = set(sys.modules) - before\n"
        "packages = {name.partition('.')[0] for name in new}\n"
        "assert packages - sys.stdlib_module_names == {'eval_ingest'}, packages\n"
        "assert len(new) < 20, new\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_public_name_is_there_and_says_what_it_does() -> None:
    for name in eval_ingest.__all__:
        found = getattr(eval_ingest, name)
        assert name.startswith("__") or inspect.getdoc(found), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        eval_ingest.nothing  # noqa: B018


def test_a_dataset_is_validated_ingested_listed_and_loaded(root: Path, written: Written) -> None:
    source = written("segmentation")
    found = eval_ingest.validate(source=source)
    assert found.config.task.num_classes == len(found.config.task.classes) > 1
    assert "from" in str(found)
    assert eval_ingest.plan("crops", source).facts["n_windows"] > 0
    assert not root.exists()

    told: list[str] = []
    done = eval_ingest.ingest("crops", source, tell=told.append)
    assert done.ran and done.metadata is not None and len(told) == 5
    assert "crops is registered" in repr(done)
    assert not eval_ingest.ingest("crops").ran

    listed = eval_ingest.list_datasets()
    assert list(listed) == ["crops"]
    assert listed["crops"].ingested and listed["crops"].splits == done.facts["counts"]
    assert "crops" in repr(listed)
    about = eval_ingest.info("crops")
    assert about.classes == [known.name for known in found.config.task.classes]
    assert about.splits == listed["crops"].splits
    assert about.fingerprint == done.metadata.fingerprint and "windows" in repr(about)
    assert eval_ingest.EvalDataset("crops", "val").bands == about.bands
    assert eval_ingest.verify("crops").problems == []
    asked: list[str] = []
    assert eval_ingest.remove("crops", agreed=lambda what: bool(asked.append(what))) is None
    assert asked == [f"{root / 'crops'} and everything in it"] and (root / "crops").exists()
    assert f"crops is removed from {root}" in repr(eval_ingest.remove("crops"))
    assert list(eval_ingest.list_datasets()) == [] and not (root / "crops").exists()
    with pytest.raises(UnknownDatasetError):
        eval_ingest.remove("crops")


def test_the_data_behind_a_link_stay_where_they_are_and_it_is_told(
    root: Path, written: Written, tmp_path: Path
) -> None:
    eval_ingest.ingest("crops", written("segmentation"))
    data = (root / "crops").rename(tmp_path / "elsewhere")
    (root / "crops").symlink_to(data)
    before = sorted(data.rglob("*"))
    asked: list[str] = []
    eval_ingest.remove("crops", agreed=lambda what: bool(asked.append(what)))
    assert asked == [f"the link {root / 'crops'}, but not the data, which are in {data},"]
    removed = eval_ingest.remove("crops")
    assert removed is not None and removed.left == (str(data),)
    assert f"not deleted, and still taking room: {data}" in repr(removed)
    assert {path for path in data.rglob("*") if path.suffix != ".lock"} == {
        path for path in before if path.suffix != ".lock"
    }
    assert not (root / "crops").is_symlink() and not list(root.glob(".removed.*"))
    assert list(eval_ingest.list_datasets()) == []


def test_what_of_a_removed_dataset_may_not_be_deleted_is_told(
    root: Path, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    eval_ingest.ingest("crops", written("segmentation"))
    unlink = os.unlink

    def refused(path: Any, **at: Any) -> None:
        if os.fspath(path) == "target.npy":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        unlink(path, **at)

    monkeypatch.setattr(os, "unlink", refused)
    removed = eval_ingest.remove("crops")
    [left] = root.glob(".removed.crops.*")
    assert removed is not None and removed.left == (str(left),)
    assert {path.name for path in left.rglob("*") if path.is_file()} == {"target.npy"}
    assert list(eval_ingest.list_datasets()) == [] and not list(root.glob(".removing.*"))
    monkeypatch.undo()
    EvalRoot(root).sweep()
    assert not left.exists()


def test_a_relative_source_gives_the_version_that_its_name_gives_elsewhere(
    root: Path, written: Written, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = written("segmentation")
    monkeypatch.chdir(source.parent)
    first = eval_ingest.ingest("crops", source.name)
    monkeypatch.chdir(tmp_path)
    again = eval_ingest.ingest("crops")
    assert first.metadata is not None and again.metadata is not None
    assert first.metadata.source == str(source)
    assert not again.ran and again.metadata.fingerprint == first.metadata.fingerprint


def test_the_catalog_is_listed_too_when_asked_for(root: Path) -> None:
    assert list(eval_ingest.list_datasets()) == []
    known = eval_ingest.list_datasets(catalog=True)
    assert "tolbi_crops" in known and not known["tolbi_crops"].ingested


def test_another_root_is_named_and_not_set(root: Path, written: Written, tmp_path: Path) -> None:
    other = tmp_path / "other"
    eval_ingest.ingest("crops", written("segmentation"), root=other)
    assert list(eval_ingest.list_datasets(other)) == ["crops"]
    assert list(eval_ingest.list_datasets()) == []
    assert eval_ingest.info("crops", other).path == str(other / "crops")


@pytest.mark.parametrize(
    "policy",
    [
        {"strategy": "random", "ratios": (50, 25, 25)},
        {"splits": {"strategy": "random", "ratios": [0.5, 0.25, 0.25]}},
        {"splits": SplitPolicy(strategy="random", ratios=(0.5, 0.25, 0.25))},
    ],
)
def test_splits_are_said_flat_or_together(
    root: Path, written: Written, policy: dict[str, object]
) -> None:
    planned = eval_ingest.plan("crops", written("segmentation"), **policy)
    assert planned.facts["strategy"].startswith("random")


def test_what_is_wrong_is_told_with_the_near_names(root: Path, written: Written) -> None:
    eval_ingest.ingest("crops", written("segmentation"))
    with pytest.raises(UnknownDatasetError, match="did you mean crops"):
        eval_ingest.info("corps")
    with pytest.raises(SpecError, match="did you mean groups"):
        eval_ingest.ingest("crops", grops=["a"])
    with pytest.raises(SpecError, match="is ingested already, from"):
        eval_ingest.ingest("crops", written("class_mapping"))
    with pytest.raises(SpecError, match="source"):
        eval_ingest.validate()


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: eval_ingest.list_datasets(5), "root=5 can't be; give a path or URL"),
        (lambda: eval_ingest.list_datasets(""), "root='' is empty; give a path or URL, or None"),
        (lambda: eval_ingest.list_datasets([]), "root=\\[\\] can't be"),
        (lambda: eval_ingest.remove("x", b"/evals"), "root=b'/evals' can't be"),
        (lambda: eval_ingest.remove("x", agreed=True), "agreed=True can't be; give a function"),
        (lambda: eval_ingest.info("x", "a" * 300), "has a part of 300 bytes, and 255 are"),
        (lambda: eval_ingest.info("x", "a\0"), "holds a character NUL"),
        (lambda: eval_ingest.info("x" * 200), "up to 128 lower-case letters"),
        (lambda: eval_ingest.validate(source=""), "source='' is empty"),
        (lambda: eval_ingest.validate(source=["/data"]), "source=.'/data'. can't be"),
        (lambda: eval_ingest.validate(source="/data", splits=5), "splits=5 can't be"),
        (lambda: eval_ingest.validate("x", "/data", seed=True), "splits.seed: can't be True"),
        (lambda: eval_ingest.validate("x", "/data", licence=b"a"), "licence: can't be b'a'"),
        (lambda: eval_ingest.ingest("x", "/data", overwrite="no"), "overwrite='no' can't be"),
        (lambda: eval_ingest.ingest("x", "/data", tell=1), "tell=1 can't be; give a function"),
        (lambda: eval_ingest.write_report("x", out=None), "out=None can't be; give a folder"),
        (lambda: eval_ingest.leaderboard("s3://b/x"), "out='s3://b/x' is a URL; give a folder"),
        (lambda: eval_ingest.export("x", 5), "to=5 can't be"),
        (lambda: eval_ingest.publish("x", 5), "to=5 can't be"),
        (lambda: eval_ingest.publish("x", "hf://a/b", licence=5), "licence=5 can't be"),
        (lambda: eval_ingest.publish("x", "hf://a/b", citation=["a"]), "citation=.'a'. can't be"),
        (lambda: eval_ingest.signal(5), "names=5 can't be; give names of datasets"),
        (lambda: eval_ingest.signal([5]), r"datasets\.0: Input should be a valid string"),
        (lambda: eval_ingest.signal("x", encoders=b"a"), "encoders=b'a' can't be"),
        (lambda: eval_ingest.signal("x", encoders=[5]), "no encoder 5"),
        (lambda: eval_ingest.signal("x", most_windows="a"), "most_windows='a' can't be"),
        (lambda: eval_ingest.pull(5), "url=5 can't be; give hf://ORG/REPO/NAME"),
    ],
)
def test_an_argument_that_can_not_be_is_told_before_anything_is_done(
    ask: Callable[[], object], words: str, root: Path
) -> None:
    with pytest.raises(EvalIngestError, match=words):
        ask()
    assert not root.exists()


def test_a_url_is_no_folder_to_export_to(root: Path, written: Written) -> None:
    eval_ingest.ingest("crops", written("segmentation"))
    with pytest.raises(SpecError, match="s3://b/x is a URL; give --to a folder"):
        eval_ingest.export("crops", "s3://b/x")


def test_a_filter_that_no_window_fits_is_named_beside_broken_windows(
    root: Path, written: Written, tmp_path: Path
) -> None:
    source = shutil.copytree(written("segmentation"), tmp_path / "source")
    next(source.glob("windows/*/*/metadata.json")).unlink()
    with pytest.raises(InvalidWindowsError, match=r"no other window has .*: tag nope=1"):
        eval_ingest.ingest("crops", source, tags={"nope": "1"})


def test_the_command_line_prints_what_the_functions_return(
    root: Path, written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    eval_ingest.ingest("crops", written("segmentation"))
    for arguments, found in (
        (["list"], eval_ingest.list_datasets(catalog=True)),
        (["info", "--name", "crops"], eval_ingest.info("crops")),
        (["validate", "--name", "crops"], eval_ingest.validate("crops")),
    ):
        assert cli.main(arguments) == 0
        assert capsys.readouterr().out.strip() == str(found).strip()


def test_an_export_and_a_report_are_paths(root: Path, written: Written, tmp_path: Path) -> None:
    eval_ingest.ingest("crops", written("segmentation"))
    assert (root / "crops" / "report" / "report.html") in eval_ingest.write_report("crops")
    path = eval_ingest.export("crops", tmp_path / "out", windows=False)
    shutil.rmtree(root)
    data = eval_ingest.EvalDataset("crops", "val", root=path.parent)
    assert data[0]["target"].ndim == 2


def test_a_report_has_the_scores_of_sweeps_and_the_versions_that_were_published(
    root: Path, written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eval_ingest.ingest("crops", written("segmentation"))
    first = eval_ingest.info("crops").fingerprint
    eval_ingest.ingest("crops", strategy="random", ratios=(60, 20, 20))
    second = eval_ingest.info("crops").fingerprint
    assert [found.fingerprint for found in eval_ingest.info("crops").metadata.history] == [first]
    for row in (
        score("crops", first, "pixels", 0.41, "2026-01-01T00:00:00"),
        score("crops", second, "pixels", 0.52, "2026-01-02T00:00:00"),
        score("trees", second, "pixels", 0.99, "2026-01-02T00:00:00"),
    ):
        write_row(tmp_path / "sweep_results", row)
    paths = eval_ingest.write_report("crops")
    [page] = [path.read_text() for path in paths if path.name == "report.html"]
    assert page.index("0.520") < page.index("0.410") and "0.990" not in page
    assert "0.420 to 0.620" in page and page.index(second[:8]) < page.index(first[:8])
    assert len(eval_ingest.leaderboard(datasets=["crops"])[0].cells) == 1

    known = eval_ingest.info("crops")
    assert [row[4] for row in known.scores] == ["score", "0.520", "0.410"]
    assert [line for line in str(known).splitlines() if "0.420 to 0.620" in line]
    (tmp_path / "sweep_results").rename(tmp_path / "elsewhere")
    assert eval_ingest.info("crops").scores == []
    assert cli.main(["info", "crops", "--out", "elsewhere"]) == 0
    assert "0.420 to 0.620" in capsys.readouterr().out
    for flags, is_there in (([], False), (["--out", "elsewhere"], True)):
        assert cli.main(["report", "crops", *flags]) == 0
        [page] = [path.read_text() for path in paths if path.name == "report.html"]
        assert ("0.420 to 0.620" in page) is is_there


def test_workers_begin_to_import_with_the_parent_where_many_windows_are_new(
    written: Written, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[None] = []
    monkeypatch.setattr("eval_ingest.api.import_ahead", lambda: begun.append(None))
    monkeypatch.setenv("EVAL_INGEST_WORKERS", "2")
    source = written("segmentation")
    eval_ingest.ingest("few", source)
    assert not begun
    monkeypatch.setenv("EVAL_INGEST_ENGINE", "processes")
    eval_ingest.ingest("few", source)
    assert not begun
    eval_ingest.ingest("new", source)
    assert len(begun) == 1
    with pytest.raises(SourceError):
        eval_ingest.ingest("far", root / "nowhere")
