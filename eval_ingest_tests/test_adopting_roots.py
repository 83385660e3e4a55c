"""Another tool's dataset is adopted, and given back, under every kind of root alike."""

import json
import shutil
from pathlib import Path

import pytest

from eval_ingest import EvalDataset, api, cli, pipeline
from eval_ingest.adopting import adopt, adoptable
from eval_ingest.core.registry_text import RegistryText
from eval_ingest.core.spec import SPLITS
from eval_ingest.engine import no_progress
from eval_ingest.errors import NotOursError
from eval_ingest.settings import Settings
from eval_ingest.store.ownership import Whose, whose
from eval_ingest.store.registry import read_registry, rebuild_registry, remove_dataset
from eval_ingest.verifying import verify_dataset
from eval_ingest_tests.support import places
from eval_ingest_tests.support.places import Place

place = places.place

THEIRS = '{"name": "crops",  "task_type": "segmentation", "num_classes": 4, "x": 1e-05}'


@pytest.fixture(scope="module")
def copy(few_reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy as another tool leaves it: windows with `eval_split`, and the configuration."""
    folder = tmp_path_factory.mktemp("theirs") / "crops"
    shutil.copytree(few_reference / "crops" / "windows", folder / "windows")
    for name in ("config.json", "model.yaml"):
        shutil.copy(few_reference / "crops" / name, folder / name)
    return folder


@pytest.fixture
def team(place: Place, copy: Path) -> Place:
    """A root that another tool has filled."""
    registry = '{"version": "1.0", "datasets": {"crops": ' + THEIRS + "}}"
    files = {f"crops/{p.relative_to(copy)}": p for p in copy.rglob("*") if p.is_file()}
    if place.kind == "local":
        shutil.copytree(copy, Path(place.url) / "crops")
    else:
        for name, path in files.items():
            place.write(name, path.read_bytes())
    place.write("registry.json", registry.encode())
    return place


def _contents(place: Place) -> dict[str, bytes]:
    return {name: place.read(name) for name in place.names() if name.startswith("crops/")}


def test_a_dataset_of_another_tool_is_adopted_and_given_back(
    team: Place, few_reference: Path
) -> None:
    before = _contents(team)
    assert adoptable(team.root) == ["crops"]
    with pytest.raises(NotOursError, match="adopt crops"):
        team.job(few_reference / "crops")
    found = adopt(Settings.load(), "crops")
    again = adopt(Settings.load(), "crops")
    assert found.ran and [o.stage for o in again.outcomes if o.ran] == []
    assert adoptable(team.root) == []
    assert before.items() <= _contents(team).items()
    entry = read_registry(team.root)["crops"]
    assert json.loads(THEIRS).items() <= entry.items() and entry["copy"] == "adopted"
    team.machine("b")
    for split in SPLITS:
        ours = EvalDataset("crops", split, normalize=None)
        theirs = EvalDataset("crops", split, root=few_reference, normalize=None)
        for one, other in zip(ours, theirs, strict=True):
            assert one["window"] == other["window"]
            assert one["sentinel2_l2a"].equal(other["sentinel2_l2a"])
            assert one["target"].equal(other["target"])
    assert verify_dataset(team.root, "crops", no_progress).problems == []
    remove_dataset(team.root, "crops")
    assert _contents(team) == before
    assert THEIRS in team.read("registry.json").decode()
    assert whose(team.root.dataset("crops")) is Whose.THEIRS


def test_an_adoption_that_was_stopped_after_any_stage_goes_on(
    team: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _contents(team)
    for k, stage in enumerate(pipeline.STAGES):
        team.machine("ab"[k % 2])  # and goes on on another machine

        def stop(outcome: pipeline.Outcome, stage: str = stage) -> None:
            if outcome.stage == stage:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            adopt(Settings.load(), "crops", each=stop)
        assert whose(team.root.dataset("crops")) is Whose.ADOPTED
        assert before.items() <= _contents(team).items()
    assert adopt(Settings.load(), "crops").metadata.splits["train"].count > 0
    assert len(EvalDataset("crops", "train")) > 0


NEWER = '{"name": "crops", "task_type": "segmentation", "num_classes": 5, "x": NaN, "y": 2e-07}'


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_what_their_tool_registers_after_the_adoption_is_not_lost(
    team: Place, registered: bool, compiled: bool
) -> None:
    """Whoever compiles the registry before it is given back."""
    if team.kind not in ("local", "gs"):
        pytest.skip("for a disk and a bucket")
    if not registered:
        team.write("registry.json", b'{"datasets": {}}')
    adopt(Settings.load(), "crops")
    team.write("registry.json", ('{"datasets": {"crops": ' + NEWER + "}}").encode())
    if compiled:
        rebuild_registry(team.root)
        entry = read_registry(team.root)["crops"]
        assert entry["num_classes"] == 5 and entry["copy"] == "adopted"
    told = {found.field for found in adopt(Settings.load(), "crops").differences}
    assert "num_classes" in told or not compiled
    assert not any(outcome.ran for outcome in adopt(Settings.load(), "crops").outcomes)
    assert read_registry(team.root)["crops"]["num_classes"] == 5
    remove_dataset(team.root, "crops")
    left = RegistryText.parse(team.read("registry.json").decode()).raw["crops"]
    assert '"x": NaN' in left and '"y": 2e-07' in left and '"num_classes": 5' in left
    assert "fingerprint" not in left and "verdict" not in left
    if not compiled or registered:
        assert json.loads(left).keys() == json.loads(NEWER).keys()


def test_nothing_can_be_asked_for_that_changes_their_splits(
    team: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    if team.kind != "local":
        pytest.skip("a spec is the same everywhere")
    adopt(Settings.load(), "crops")
    before = _contents(team)
    for flags in (
        ["--split-strategy", "spatial"], ["--ratios", "50", "25", "25"], ["--tags", "split=train"],
        ["--groups", "20251210"], ["--max-samples", "3"],
        ["--temporal-range", "2020-01-01", "2020-02-01"],
    ):  # fmt: skip
        assert cli.main(["ingest", "crops", *flags]) == 1
        told = capsys.readouterr().err
        assert "crops is adopted" in told and f"ingest crops_2 --source {team.url}/crops" in told
    assert _contents(team) == before
    reasons = api.info("crops").metadata.quality["reasons"]
    assert reasons and not any("ingest crops --split" in reason for reason in reasons)


def test_windows_alone_are_somebody_s(team: Place) -> None:
    for name in ("config.json", "model.yaml"):
        team.remove(f"crops/{name}")
    team.write("registry.json", b'{"datasets": {}}')
    assert whose(team.root.dataset("crops")) is Whose.THEIRS
