"""A raster that is replaced by another of equal size and time: where that is seen, and by whom."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import rasterio

from eval_ingest import EvalDataset, pipeline
from eval_ingest.engine import no_progress
from eval_ingest.errors import IntegrityError
from eval_ingest.sources import local
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.verifying import verify_dataset
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import places
from eval_ingest_tests.support.places import Place

Copied = Callable[[str], Path]
place = places.place


def replaced(source: Path) -> str:
    """Exchange one pixel's class, at equal size and time of change; the window's name."""
    raster = min(source.glob("windows/*/*/layers/label_raster/*/geotiff.tif"))
    before = raster.stat()
    with rasterio.open(raster) as found:
        profile, labels = found.profile, found.read()
    profile["compress"] = None
    with rasterio.open(raster.with_name("new.tif"), "w", **profile) as new:
        new.write((labels + 1) % 3)
    data = raster.with_name("new.tif").read_bytes()
    raster.with_name("new.tif").unlink()
    raster.write_bytes(data + bytes(before.st_size - len(data)))
    os.utime(raster, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (raster.stat().st_size, raster.stat().st_mtime_ns) == (
        before.st_size,
        before.st_mtime_ns,
    )
    return "/".join(raster.relative_to(source / "windows").parts[:2])


def grown(copied: Copied) -> Path:
    """A dataset whose rasters have room behind their end, so that any other fits in."""
    source = copied("segmentation")
    for raster in source.glob("windows/*/*/layers/label_raster/*/geotiff.tif"):
        raster.write_bytes(raster.read_bytes() + bytes(5000))
    return source


@pytest.mark.parametrize("copy", ["windows", "stream", "index"])
def test_in_a_folder_it_is_seen_by_everybody(copied: Copied, tmp_path: Path, copy: str) -> None:
    source = grown(copied)
    pipeline.ingest(make_job(source, tmp_path, copy=copy))
    window = replaced(source)
    if copy == "index":
        with pytest.raises(IntegrityError, match="has changed since it was indexed"):
            list(EvalDataset("crops", "train", root=tmp_path))
            list(EvalDataset("crops", "val", root=tmp_path))
            list(EvalDataset("crops", "test", root=tmp_path))
        (told,) = verify_dataset(EvalRoot(tmp_path), "crops", no_progress).problems
        assert told == f"{window} has changed since it was indexed"
    ran = pipeline.ingest(make_job(source, tmp_path, copy=copy))
    assert ran[0].ran and ran[-1].ran
    assert verify_dataset(EvalRoot(tmp_path), "crops", no_progress).problems == []
    fresh = tmp_path / "fresh"
    pipeline.ingest(make_job(source, fresh, copy=copy))
    for split in ("train", "val", "test"):
        ours = EvalDataset("crops", split, root=tmp_path, normalize=None)
        new = EvalDataset("crops", split, root=fresh, normalize=None)
        assert all(a["target"].equal(b["target"]) for a, b in zip(ours, new, strict=True))


def test_an_opening_of_another_version_is_found(copied: Copied, tmp_path: Path) -> None:
    source = copied("segmentation")
    pipeline.ingest(make_job(source, tmp_path))
    opening = tmp_path / "crops" / "opening.json"
    older = opening.read_bytes()
    pipeline.ingest(make_job(source, tmp_path, splits={"strategy": "random", "seed": 3}))
    opening.write_bytes(older)
    (told,) = verify_dataset(EvalRoot(tmp_path), "crops", no_progress).problems
    assert told == "opening.json is of another version than metadata.json"
    pipeline.ingest(make_job(source, tmp_path, splits={"strategy": "random", "seed": 3}))
    assert verify_dataset(EvalRoot(tmp_path), "crops", no_progress).problems == []


def test_where_nothing_shows_it_verify_finds_what_is_decoded_otherwise(
    copied: Copied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a FUSE mount, which has no inodes to rely on."""
    monkeypatch.setattr(local, "keeps_inodes", lambda path: False)
    source = grown(copied)
    pipeline.ingest(make_job(source, tmp_path, copy="index"))
    assert verify_dataset(EvalRoot(tmp_path), "crops", no_progress).problems == []
    window = replaced(source)
    (told,) = verify_dataset(EvalRoot(tmp_path), "crops", no_progress).problems
    assert told == f"the label of {window} have changed"


def test_in_a_bucket_its_checksum_tells(
    place: Place, copied: Copied, tmp_path: Path, servers: dict[str, places.ObjectServer]
) -> None:
    """CRC32C of Google's, the ETag of S3: sizes and times are not even asked for."""
    if place.kind not in ("gs", "s3"):
        pytest.skip("for the two kinds of servers")
    source = grown(copied)
    url = servers[place.kind].upload(source, f"{tmp_path.name}/source")
    place.ingest(url, copy="index")  # type: ignore[arg-type]
    assert not any(outcome.ran for outcome in place.ingest(url, copy="index"))  # type: ignore[arg-type]
    window = replaced(source)
    servers[place.kind].upload(source, f"{tmp_path.name}/source")
    (told,) = verify_dataset(place.root, "crops", no_progress).problems
    assert told == f"{window} has changed since it was indexed"
    with pytest.raises(IntegrityError, match="has changed since it was indexed"):
        for split in ("train", "val", "test"):
            list(EvalDataset("crops", split))
    assert place.ingest(url, copy="index")[0].ran  # type: ignore[arg-type]
    assert verify_dataset(place.root, "crops", no_progress).problems == []
