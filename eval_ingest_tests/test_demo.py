"""The demo's dataset: real, whole but for what is broken on purpose, and the same every time."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval_ingest.core.modality import MODALITIES
from eval_ingest.errors import StoreError
from eval_ingest.testing import demo
from eval_ingest_tests.support.factories import windows_of
from eval_ingest_tests.support.oracle import rslearn_samples


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.write_demo_dataset(tmp_path_factory.mktemp("studio"), windows=12)


def good_windows(dataset: Path) -> list[str]:
    return [name for _, name in windows_of(dataset) if not name.startswith("broken_")]


def files(dataset: Path) -> dict[str, bytes]:
    return {str(p.relative_to(dataset)): p.read_bytes() for p in dataset.rglob("*") if p.is_file()}


def test_rslearn_reads_the_demo(written: Path) -> None:
    names = good_windows(written)
    assert len(names) == 12
    samples = {sample.name: sample for sample in rslearn_samples(written, names=names)}
    assert sorted(samples) == names
    for sample in samples.values():
        pixels = sample.inputs["sentinel2_l2a"]
        assert pixels.shape == (12, 12, 64, 64)
        assert sample.bands["sentinel2_l2a"] == MODALITIES["sentinel2_l2a"].bands
        assert pixels.min() >= 1 and pixels.max() <= 10000
        times = sample.timestamps["sentinel2_l2a"]
        assert times is not None and times == sorted(times) and len(set(times)) == 12
        assert demo.YEAR[0] <= times[0][0] and times[-1][1] <= demo.YEAR[1]
        labelled = sample.target["valid"].mean()
        assert 0.5 < labelled < 0.9
        classes = sample.target["classes"][sample.target["valid"] > 0]
        assert set(np.unique(classes)) <= set(range(1, 7))


def test_both_splits_have_windows_and_none_overlap(written: Path) -> None:
    splits, taken = [], []
    for name in good_windows(written):
        metadata = json.loads((written / "windows/20251210" / name / "metadata.json").read_text())
        splits.append(metadata["options"]["split"])
        taken.append(metadata["bounds"])
    assert (splits.count("train"), splits.count("val")) == (8, 4)
    for k, (left, top, right, bottom) in enumerate(taken):
        for x0, y0, x1, y1 in taken[:k]:
            assert x1 <= left or right <= x0 or y1 <= top or bottom <= y0


def test_four_windows_are_broken_each_in_its_way(written: Path) -> None:
    folder = written / "windows/20251210"
    assert {p.name for p in folder.glob("broken_*")} == {f"broken_{d}" for d in demo.DEFECTS}
    assert not (folder / "broken_no_metadata/metadata.json").exists()
    label = folder / "broken_label_not_completed/layers/label_raster"
    assert label.exists() and not (label / "completed").exists()
    (unlabelled,) = rslearn_samples(written, names=["broken_unlabelled"])
    assert not unlabelled.target["valid"].any()
    with pytest.raises(Exception, match=r"geotiff\.tif|[Rr]ead"):
        list(rslearn_samples(written, names=["broken_truncated"]))


def test_it_is_written_once(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    assert demo.write_demo_dataset(written.parent, windows=12) == written
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in written.rglob("*")}


def test_another_size_replaces_it(tmp_path: Path) -> None:
    demo.write_demo_dataset(tmp_path, windows=1)
    path = demo.write_demo_dataset(tmp_path, windows=2)
    assert len(good_windows(path)) == 2
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["tolbi"]


def test_someone_elses_dataset_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tolbi").mkdir()
    (tmp_path / "tolbi" / "config.json").write_text("{}")
    with pytest.raises(StoreError, match="choose another --root"):
        demo.write_demo_dataset(tmp_path, windows=1)
    assert (tmp_path / "tolbi" / "config.json").read_text() == "{}"


def test_a_seed_decides_every_byte_whatever_the_workers(tmp_path: Path) -> None:
    def write(name: str, seed: int, workers: int = 1) -> dict[str, bytes]:
        path = demo.write_tolbi_like(
            tmp_path, name, windows=4, timesteps=2, size=16, seed=seed, workers=workers
        )
        return files(path)

    first = write("first", 3)
    assert write("again", 3, workers=2) == first
    other = write("other", 4)
    assert other.keys() != first.keys() or other != first


def test_the_command_says_in_one_line_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--root", str(tmp_path), "--windows", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1 and str(tmp_path / "tolbi") in captured.out
    assert captured.err == ""


@pytest.mark.parametrize("stopped_at", ["partial", "before", "tolbi"])
def test_a_run_that_was_killed_takes_nothing_for_somebody_elses(
    stopped_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.write_demo_dataset(tmp_path, windows=1)
    renamed, done = Path.rename, monkeypatch.context()

    def killed(self: Path, target: Path) -> Path:
        if stopped_at in ("partial", target.name.removeprefix(".tolbi.")):
            raise KeyboardInterrupt
        return renamed(self, target)

    with done as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        demo.write_demo_dataset(tmp_path, windows=2)
    assert len(good_windows(demo.write_demo_dataset(tmp_path, windows=3))) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["tolbi"]


def test_a_demo_of_an_earlier_version_is_known_by_the_file_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = demo.write_demo_dataset(tmp_path, windows=1)
    (path / demo.COMPLETE_MARKER).rename(tmp_path / demo.COMPLETE_MARKER)
    demo.write_demo_dataset(tmp_path, windows=1)
    assert "nothing to do" in capsys.readouterr().out
