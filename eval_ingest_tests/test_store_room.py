"""Room on the disk is looked at before it is used up."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval_ingest import EvalDataset, pipeline
from eval_ingest.errors import StoreError
from eval_ingest.store import room
from eval_ingest_tests.conftest import make_job


def free(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    """Have so much free on every disk, for those that look first."""
    usage = SimpleNamespace(free=n_bytes)
    monkeypatch.setattr(room, "shutil", SimpleNamespace(disk_usage=lambda path: usage))


def test_samples_that_do_not_fit_are_told_before_a_window_is_read(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 100_000)
    with pytest.raises(
        StoreError,
        match=r"crops needs \d+\.\d [GM]iB \([\d,]+ bytes\) in \S+ \(packed samples .*\), and "
        r"0.1 MiB \(100,000 bytes\) are free; free space there, or ingest with --copy index",
    ):
        pipeline.ingest(make_job(small, tmp_path))
    assert not (tmp_path / "crops" / "samples").exists()
    pipeline.ingest(make_job(small, tmp_path, copy="index"))
    assert len(EvalDataset("crops", "train", root=tmp_path)) > 0


def test_windows_that_do_not_fit_are_told_before_one_is_copied(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 1 << 30)  # for packs; so little that no window is copied ahead
    for stage in pipeline.STAGES[:3]:
        pipeline.run_stage(make_job(small, tmp_path), stage)
    files = [path for path in (small / "windows").rglob("*") if path.is_file()]
    needed = sum(path.stat().st_size + room.FILE_BYTES for path in files)
    free(monkeypatch, needed - 1)
    with pytest.raises(
        StoreError,
        match=rf"\(copied windows \S+ MiB \({needed:,} bytes\)\), .* are free; free space there, "
        r"or ingest with --copy stream: packed samples alone, which are there already, or ingest "
        "with --copy index",
    ):
        pipeline.run_stage(make_job(small, tmp_path), "weka_copy")
    assert not (tmp_path / "crops" / "windows").exists()
    free(monkeypatch, needed)
    outcomes = pipeline.ingest(make_job(small, tmp_path))
    assert [o.stage for o in outcomes if o.ran] == ["weka_copy", "registry_entry"]


def test_what_is_there_already_needs_no_room(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.ingest(make_job(small, tmp_path))
    free(monkeypatch, 0)
    assert not any(o.ran for o in pipeline.ingest(make_job(small, tmp_path)))
    resplit = {"strategy": "random", "seed": 1}
    assert pipeline.ingest(make_job(small, tmp_path, splits=resplit))[-1].ran


def test_stream_writes_the_samples_alone(small: Path, tmp_path: Path, reference: Path) -> None:
    pipeline.ingest(make_job(small, tmp_path, copy="stream"))
    folder = tmp_path / "crops"
    there = {path.name for path in folder.iterdir()}
    assert there & {"windows", "config.json", "model.yaml", "copy_manifest.parquet"} == set()
    packed = {p.name: p.read_bytes() for p in folder.glob("samples/*/*.npy")}
    expected = {p.name: p.read_bytes() for p in (reference / "crops").glob("samples/*/*.npy")}
    assert packed == expected


def test_overwrite_repairs_damaged_samples(small: Path, tmp_path: Path, reference: Path) -> None:
    pipeline.ingest(make_job(small, tmp_path))
    (path,) = (tmp_path / "crops").glob("samples/*/target.npy")
    data = bytearray(path.read_bytes())
    data[-100:] = bytes(100)
    path.write_bytes(data)
    job = make_job(small, tmp_path)
    pipeline.forget(job)
    pipeline.ingest(job)
    shutil.rmtree(path.parent)  # nobody needs it any more
    for found, expected in zip(
        EvalDataset("crops", "train", root=tmp_path),
        EvalDataset("crops", "train", root=reference),
        strict=True,
    ):
        assert found["target"].equal(expected["target"])
