"""Eval roots that released versions have written are read by this one.

Each archive in data/ is the root of one format, small: `crops` with its windows, `packed` without,
and expected.json with the sums of what EvalDataset gave then. A change of format adds an archive.
"""

import json
import tarfile
from pathlib import Path

import pytest

from eval_ingest import EvalDataset, cli, pipeline
from eval_ingest.errors import NewerVersionError
from eval_ingest.store.ownership import Whose, whose
from eval_ingest.store.registry import read_registry, rebuild_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.seal import sealed_json
from eval_ingest_tests.conftest import make_job

ARCHIVES = sorted((Path(__file__).parent / "data").glob("root_*.tar.gz"))
NAMES = ("crops", "packed")


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.partition(".")[0])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path / "root", filter="data")
    return tmp_path / "root"


def found(root: Path) -> dict[str, list[list[object]]]:
    """What EvalDataset gives of every split: windows, and sums of pixels and labels."""
    values: dict[str, list[list[object]]] = {}
    for name in NAMES:
        for split in ("train", "val", "test"):
            dataset = EvalDataset(name, split, root=root, normalize=None)
            values[f"{name}/{split}"] = [
                [s["window"], float(s["sentinel2_l2a"].double().sum()), int(s["target"].sum())]
                for s in dataset
            ]
    return values


def test_its_samples_are_what_they_were(root: Path) -> None:
    assert found(root) == json.loads((root / "expected.json").read_text())


def test_commands_read_it_and_take_it_for_ours(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    before = read_registry(EvalRoot(root))
    for name in NAMES:
        assert whose(EvalRoot(root).dataset(name)) is Whose.INGESTED
        assert cli.main(["info", "--name", name]) == 0
    assert cli.main(["list"]) == 0
    assert "not ours" not in capsys.readouterr().out
    entries = rebuild_registry(EvalRoot(root))
    assert list(entries) == list(before)
    assert entries["crops"]["weka_path"] == str(root / "crops")
    assert not list(root.glob("registry.*.json"))  # it was ours already


def test_an_ingest_whose_source_is_gone_leaves_it_as_it_is(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    assert cli.main(["ingest", "--name", "crops"]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert found(root) == json.loads((root / "expected.json").read_text())


def test_what_a_newer_version_has_written_is_left_alone(root: Path, small: Path) -> None:
    path = root / "crops" / "metadata.json"
    content = json.loads(path.read_bytes())
    del content["checksum"]
    path.write_bytes(sealed_json({**content, "version": 99, "new": True}))
    before = path.read_bytes()
    entry = read_registry(EvalRoot(root))["crops"]
    with pytest.raises(NewerVersionError, match="upgrade"):
        EvalDataset("crops", "val", root=root)
    with pytest.raises(NewerVersionError, match="upgrade"):
        pipeline.ingest(make_job(small, root))
    assert path.read_bytes() == before
    assert rebuild_registry(EvalRoot(root))["crops"] == entry
    assert len(EvalDataset("packed", "val", root=root)) == 1
