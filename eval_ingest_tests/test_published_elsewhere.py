"""What was published elsewhere, and pulled or copied here, is never taken for its source's."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eval_ingest
from eval_ingest import EvalDataset, cli, pipeline
from eval_ingest.errors import IntegrityError, SpecError
from eval_ingest.integrations.huggingface import _refuse_own
from eval_ingest.report.export import export_dataset
from eval_ingest.settings import Settings
from eval_ingest.sources.discovery import find_datasets
from eval_ingest.store.atomic import file_crc32c
from eval_ingest.store.claims import is_published_elsewhere
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.roots.open import open_root
from eval_ingest.store.seal import sealed_json
from eval_ingest.watching import Judgement, Sighting, State, judge
from eval_ingest_tests.conftest import make_job

Ingested = Callable[[str], Path]
SOME = "segmentation"
BANDS = "sentinel2_l2a"


def edited(path: Path, **changes: Any) -> None:
    """Say something else in a sealed record, and seal it again."""
    content = json.loads(path.read_text())
    del content["checksum"]
    path.write_bytes(sealed_json({**content, **changes}))


@pytest.fixture
def forged(ingested: Ingested, tmp_path: Path) -> Path:
    """An eval root with an export, in which every pixel is another than the source's."""
    root = tmp_path / "evals"
    folder = export_dataset(EvalRoot(ingested(SOME)), SOME, root)
    shards = json.loads((folder / "metadata.json").read_text())["shards"]
    for shard in shards:
        path = folder / "samples" / shard["name"] / f"{BANDS}.npy"
        pixels = np.load(path)
        pixels[...] = 7
        np.save(path, pixels)
        shard["arrays"][BANDS]["crc32c"] = file_crc32c(path)
    for name in ("metadata.json", "opening.json"):
        edited(folder / name, shards=shards)
    return root


def pixels(root: Path) -> list[Any]:
    split = EvalDataset(SOME, "train", root=root, normalize=None, crop=None)
    return [sample[BANDS].numpy() for sample in split]


@pytest.mark.parametrize("unpublished", [False, True])
def test_no_door_ingests_over_it_unless_it_is_to_be_replaced(
    unpublished: bool, forged: Path, ingested: Ingested, written: Ingested, tmp_path: Path
) -> None:
    """Nor over what a pull that was stopped, or damage, has left of one."""
    source, root = written(SOME), forged
    job = make_job(source, tmp_path / "elsewhere", SOME, max_invalid_fraction=0.5)
    if unpublished:
        (root / SOME / "metadata.json").unlink()
    doors: list[Callable[[], object]] = [
        lambda: eval_ingest.ingest(SOME, source, root=root, max_invalid_fraction=0.5),
        lambda: eval_ingest.plan(SOME, source, root=root),
        lambda: make_job(source, root, SOME),
        lambda: pipeline.ingest(replace(job, store=EvalRoot(root).dataset(SOME))),
        lambda: pipeline.run_stage(
            replace(job, store=EvalRoot(root).dataset(SOME)), "window_index"
        ),
    ]
    for door in doors:
        with pytest.raises(SpecError, match=r"published elsewhere.*pull or copy.*--overwrite"):
            door()
    if not unpublished:
        assert all((found == 7).all() for found in pixels(root))  # as it was
    done = eval_ingest.ingest(SOME, source, root=root, max_invalid_fraction=0.5, overwrite=True)
    assert done.ran
    for found, real in zip(pixels(root), pixels(ingested(SOME)), strict=True):
        np.testing.assert_array_equal(found, real)
    assert eval_ingest.verify(SOME, root).problems == []
    assert not eval_ingest.ingest(SOME, source, root=root, max_invalid_fraction=0.5).ran


def test_a_replacement_that_was_stopped_goes_on_as_an_ingest_of_the_source(
    forged: Path, ingested: Ingested, written: Ingested
) -> None:
    stopped = RuntimeError("stopped")

    def tell(line: str) -> None:
        raise stopped

    with pytest.raises(RuntimeError, match="stopped"):
        eval_ingest.ingest(
            SOME, written(SOME), root=forged, overwrite=True, tell=tell, max_invalid_fraction=0.5
        )
    assert (pixels(forged)[0] == 7).all()  # what readers hold
    _refuse_own(open_root(Settings(eval_root=str(forged))).dataset(SOME))  # it may be pulled again
    eval_ingest.ingest(SOME, written(SOME), root=forged, max_invalid_fraction=0.5)
    np.testing.assert_array_equal(pixels(forged)[0], pixels(ingested(SOME))[0])


@pytest.mark.parametrize("unpublished", [False, True])
def test_discovery_asks_for_no_run_that_would_be_refused(
    unpublished: bool, forged: Path, written: Ingested
) -> None:
    if unpublished:
        (forged / SOME / "metadata.json").unlink()
    [found] = find_datasets(str(written(SOME)))
    spec = make_job(written(SOME), forged / "elsewhere", SOME).spec
    judged: Judgement = judge(Sighting(spec, found, True), Settings(eval_root=str(forged)))
    assert judged.state is State.NOT_INGESTABLE and "published elsewhere" in judged.reason


def test_its_damage_is_cured_by_pulling_or_copying_it_again(
    forged: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    again = "pull or copy it again: it was published elsewhere"
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(forged))
    folder = forged / SOME
    (folder / "norm_stats.json").unlink()
    assert cli.main(["verify", SOME]) == 1
    told = capsys.readouterr().out
    assert "the outcome of norm_stats is missing" in told and f"repair it: {again}" in told
    assert "eval-ingest ingest" not in told
    [index] = folder.glob("train/index.*.arrow")
    index.write_bytes(index.read_bytes()[:-9])
    with pytest.raises(IntegrityError, match=again):
        EvalDataset(SOME, "train", root=forged)
    shutil.rmtree(folder / "samples")
    with pytest.raises(IntegrityError, match=again):
        EvalDataset(SOME, "val", root=forged)


def test_what_was_ingested_here_is_not_taken_for_published(ingested: Ingested) -> None:
    assert not is_published_elsewhere(EvalRoot(ingested(SOME)).dataset(SOME))
    assert not is_published_elsewhere(EvalRoot(ingested(SOME)).dataset("nothing"))
