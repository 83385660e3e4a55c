"""Encoders by name, what pixels computes, and the cache of embeddings."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval_ingest import EvalDataset
from eval_ingest.errors import SweepError
from eval_ingest.sweep.embed import embed_split, embedding_key
from eval_ingest.sweep.encoders import Embeddings
from eval_ingest.sweep.encoders.olmoearth import OlmoEarthSpec
from eval_ingest.sweep.encoders.pixels import Pixels
from eval_ingest.sweep.encoders.registry import check_encoder, load_encoder
from eval_ingest_tests.support.fake_evals import write_fake

Ingested = Callable[[str], Path]
CPU = torch.device("cpu")


class Mean:
    """The simplest encoder: a patch's mean in the first image. Counts how often it is asked."""

    name, fingerprint, weights = "mean", "mean-1", "none"
    normalize, method = "dataset", "norm_no_clip_2_std"

    def __init__(self, patch_size: int = 4, device: torch.device = CPU) -> None:
        self.patch_size, self.calls = patch_size, 0

    def embed(self, batch: dict[str, Any], dataset: EvalDataset) -> Embeddings:
        self.calls += 1
        p = self.patch_size
        pixels = batch[next(iter(dataset.bands))][:, :, :, 0]
        return Embeddings(pixels.unfold(1, p, p).unfold(2, p, p).mean((-1, -2)))


def opened(root: Path, name: str, split: str, encoder: Any, **more: Any) -> EvalDataset:
    return EvalDataset(
        name, split, root=root, normalize=encoder.normalize, method=encoder.method, **more
    )


# ------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "size", "version", "weights"),
    [
        ("olmoearth:nano@random", "nano", "v1.2", "random"),
        ("olmoearth:v1-base", "base", "v1", "hub"),
        ("olmoearth:v1.1-tiny@.", "tiny", "v1.1", "."),
    ],
)
def test_an_olmoearth_name_is_parsed(text: str, size: str, version: str, weights: str) -> None:
    assert OlmoEarthSpec.parse(text) == OlmoEarthSpec(size, version, weights)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pixel", "no encoder 'pixel'; there are pixels, random, olmoearth:SIZE"),
        ("olmoearth:", "no encoder 'olmoearth:'"),
        ("olmoearth:huge", "with one of nano, tiny, small, base, large and v1, v1.1"),
        ("olmoearth:v7-nano", "with one of nano"),
        ("olmoearth:nano@/nowhere", "there is nothing at /nowhere"),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_loaded(text: str, message: str) -> None:
    with pytest.raises(SweepError) as error:
        check_encoder(text)
    assert message in str(error.value)


def test_a_missing_package_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SweepError, match=r"needs olmoearth_pretrain_minimal; .*'\.\[olmo"):
        check_encoder("olmoearth:nano@random")


CUSTOM = """
import torch
from eval_ingest.sweep.encoders import Embeddings

class First:
    name, fingerprint, weights = "first", "first-1", "none"
    normalize, method = "dataset", "standardize"
    def __init__(self, patch_size, device):
        self.patch_size = patch_size
    def embed(self, batch, dataset):
        p = self.patch_size
        return Embeddings(batch["sentinel2_l2a"][:, ::p, ::p, 0])

def broken(patch_size, device):
    raise RuntimeError("no weights")

def nothing(patch_size, device):
    return object()
"""

UNFINISHED = "import torch\n1 / 0\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(CUSTOM)
    (tmp_path / f"unfinished_{name}.py").write_text(UNFINISHED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_an_encoder_of_ones_own_is_a_function_in_a_module(module: str) -> None:
    encoder = load_encoder(f"{module}:First", 4, CPU)
    assert (encoder.name, encoder.patch_size) == ("first", 4)


def test_what_is_wrong_with_an_encoder_of_ones_own_is_told(module: str) -> None:
    for text, message in (
        ("not_there_at_all:make", "importing not_there_at_all failed"),
        (f"{module}:second", "has no function second; it has torch, Embeddings, First"),
        (f"{module}:broken", "failed with RuntimeError: no weights"),
        (f"{module}:nothing", "lacks name, fingerprint, weights"),
    ):
        with pytest.raises(SweepError) as error:
            load_encoder(text, 4, CPU)
        assert message in str(error.value)
    with pytest.raises(SweepError, match="failed with ZeroDivisionError: division by zero"):
        load_encoder(f"unfinished_{module}:make", 4, CPU)


def test_a_typo_in_ones_own_encoder_is_told_before_anything_is_loaded(module: str) -> None:
    check_encoder(f"{module}:broken")  # it would fail, but isn't called
    for text in ("not_there_at_all:make", f"{module}:second"):
        with pytest.raises(SweepError):
            check_encoder(text)


# ------------------------------------------------------------------------------------- pixels


def test_pixels_are_statistics_over_space_and_real_timesteps(tmp_path: Path) -> None:
    write_fake(tmp_path, "uneven", "segmentation", counts=(4, 1, 1), steps=(2, 4))
    dataset = EvalDataset("uneven", "train", root=tmp_path, method="standardize")
    batch = next(iter(dataset.batches(4)))
    found = Pixels(4).embed(batch, dataset).patches
    assert found is not None and found.shape == (4, 2, 2, 12 * (4 + 4))
    for b, steps in enumerate((2, 4, 2, 4)):
        cell = dataset[b]["sentinel2_l2a"][4:8, 0:4].numpy()  # (4, 4, T, C)
        assert cell.shape[2] == steps
        over = (0, 1, 2)
        expected = [cell.mean(over), cell.std(over), cell.min(over), cell.max(over)]
        series = [cell[:, :, t].mean((0, 1)) if t < steps else cell.mean(over) for t in range(4)]
        assert np.allclose(
            found[b, 1, 0].numpy(), np.concatenate([*expected, *series]), rtol=1e-3, atol=2e-3
        )


def test_pixels_of_an_absent_modality_are_zero() -> None:
    class Dataset:
        class metadata:
            num_timesteps = 1

        bands = {"sentinel1": ("vv", "vh")}  # noqa: RUF012

    batch = {
        "sentinel1": torch.zeros(2, 4, 4, 1, 2),
        "timesteps": {"sentinel1": torch.tensor([0, 1])},
    }
    batch["sentinel1"][1] = 3.0
    found = Pixels(4).embed(batch, Dataset()).pooled  # type: ignore[arg-type]
    assert found is not None
    assert found.tolist() == [[0.0] * 8, [3.0, 3.0, 0.0, 0.0, 3.0, 3.0, 3.0, 3.0]]


# -------------------------------------------------------------------------------------- cache


def test_embeddings_are_made_once(ingested: Ingested, tmp_path: Path) -> None:
    encoder = Mean()
    dataset = opened(ingested("segmentation"), "segmentation", "train", encoder)
    first = embed_split(dataset, encoder, tmp_path)
    calls = encoder.calls
    second = embed_split(dataset, encoder, tmp_path)
    assert calls > 0 and encoder.calls == calls
    assert isinstance(second.features, np.memmap)
    assert np.array_equal(first.features, second.features)
    assert np.array_equal(first.target, second.target)
    assert not list(tmp_path.rglob("*.tmp"))


def test_anything_that_changes_embeddings_changes_their_key(
    ingested: Ingested, tmp_path: Path
) -> None:
    root, encoder = ingested("segmentation"), Mean()
    keys = [
        embedding_key(opened(root, "segmentation", s, encoder), encoder) for s in ("train", "val")
    ]
    other = Mean()
    for name, value in (
        ("fingerprint", "mean-2"),
        ("patch_size", 8),
        ("normalize", None),
        ("method", "standardize"),
    ):
        setattr(other, name, value)
        keys.append(embedding_key(opened(root, "segmentation", "train", other), other))
    other = Mean()
    for version in ("one", "two"):
        write_fake(tmp_path / version, "fake", "segmentation", counts=(1, 1, 1), version=version)
        keys.append(embedding_key(opened(tmp_path / version, "fake", "train", other), other))
    assert len(set(keys)) == len(keys) == 8


@pytest.mark.parametrize("damage", ["truncate", "no marker", "not json"])
def test_damaged_embeddings_are_made_anew(damage: str, ingested: Ingested, tmp_path: Path) -> None:
    encoder = Mean()
    dataset = opened(ingested("segmentation"), "segmentation", "val", encoder)
    embed_split(dataset, encoder, tmp_path)
    calls = encoder.calls
    folder = tmp_path / "embeddings" / embedding_key(dataset, encoder)
    if damage == "truncate":
        (folder / "features.f32").write_bytes(b"1234")
    elif damage == "no marker":
        (folder / "embeddings.json").unlink()
    else:
        (folder / "embeddings.json").write_text(json.dumps({"version": -1}))
    embed_split(dataset, encoder, tmp_path)
    assert encoder.calls > calls


@pytest.mark.parametrize(("crop", "p"), [("center", 2), (None, 1)])
def test_each_row_has_the_pixels_and_labels_of_its_patch(
    crop: str | None, p: int, ingested: Ingested, tmp_path: Path
) -> None:
    """Also where windows differ in size."""
    encoder = Mean(patch_size=p)
    name = "ragged_segmentation"
    dataset = opened(ingested(name), name, "train", encoder, crop=crop)
    found = embed_split(dataset, encoder, tmp_path)
    assert len(found) == len(dataset)
    for i, (first, count, rows, columns) in enumerate(found.places):
        sample = dataset[i]
        height, width = sample["target"].shape
        assert (rows, columns) == (height // p, width // p)
        corners = [(y, x) for y in range(0, height, p) for x in range(0, width, p)]
        assert count == len(corners)
        for row, (y, x) in enumerate(corners, start=first):
            labels = sample["target"][y : y + p, x : x + p].flatten()
            assert found.target[row].tolist() == labels.tolist()
            pixels = sample["sentinel2_l2a"][y : y + p, x : x + p, 0].mean((0, 1))
            assert np.allclose(found.features[row], pixels, rtol=1e-3, atol=1e-4)


def test_window_tasks_keep_one_row_a_window(ingested: Ingested, tmp_path: Path) -> None:
    encoder = Mean()
    name = "scalar_regression"
    dataset = opened(ingested(name), name, "train", encoder)
    found = embed_split(dataset, encoder, tmp_path)
    assert found.features.shape[0] == len(dataset) and found.target.shape == (len(dataset), 1)
    assert found.target[:, 0].tolist() == [float(dataset[i]["target"]) for i in range(len(dataset))]


def test_sizes_that_do_not_divide_are_told_with_those_that_do(
    ingested: Ingested, tmp_path: Path
) -> None:
    encoder = Mean(patch_size=5)
    dataset = opened(ingested("segmentation"), "segmentation", "train", encoder)
    with pytest.raises(SweepError, match=r"16 x 16 pixels.*5 x 5; say --patch-size 1 or 2 or 4"):
        embed_split(dataset, encoder, tmp_path)


def test_what_an_encoder_returns_is_checked(ingested: Ingested, tmp_path: Path) -> None:
    dataset = opened(ingested("segmentation"), "segmentation", "train", Mean())
    pixels = torch.zeros(64, 4, 4, 3)
    for made, message in (
        (lambda n: Embeddings(None, torch.zeros(n, 3)), r"patches must have the shape .*not None"),
        (lambda n: Embeddings(pixels[:n, :2]), r"\(\d+, 4, 4, D\), not \(\d+, 2, 4, 3\)"),
        (lambda n: Embeddings(pixels[:n] / 0), "embeddings are not finite"),
        (lambda n: pixels[:n], r"returned a Tensor; it must return Embeddings\(patches, pooled\)"),
        (lambda n: pixels.no_such_thing, "failed on segmentation train with AttributeError"),
    ):
        encoder = Mean()
        encoder.embed = lambda batch, _, made=made: made(len(batch["window"]))  # type: ignore
        with pytest.raises(SweepError, match=message):
            embed_split(dataset, encoder, tmp_path)
    assert not list(tmp_path.rglob("embeddings.json"))


def test_embeddings_that_are_nan_because_pixels_are_are_told(
    ingested: Ingested, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(ingested("segmentation"), "segmentation", "train", Mean())
    encoder = Mean()

    def embed(batch: dict[str, Any], _: Any) -> Embeddings:
        batch["sentinel2_l2a"][0] = float("nan")  # as if the samples had held it
        return Embeddings(batch["sentinel2_l2a"][:, ::4, ::4, 0])

    monkeypatch.setattr(encoder, "embed", embed)
    with pytest.raises(SweepError, match="nor are all pixels of sentinel2_l2a: it must replace"):
        embed_split(dataset, encoder, tmp_path)


def test_a_cache_that_cannot_be_written_is_told(ingested: Ingested, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    dataset = opened(ingested("segmentation"), "segmentation", "val", Mean())
    with pytest.raises(SweepError, match="set EVAL_INGEST_CACHE"):
        embed_split(dataset, Mean(), tmp_path / "file" / "cache")


# ---------------------------------------------------------------------------------- OlmoEarth


@pytest.fixture(scope="module")
def nano() -> Any:
    return load_encoder("olmoearth:nano@random", 4, CPU)


def test_random_initialisation_says_so_and_is_the_same_every_time(nano: Any) -> None:
    again = load_encoder("olmoearth:nano@random", 4, CPU)
    assert again.fingerprint == nano.fingerprint
    assert "random initialisation" in nano.weights and nano.name == "olmoearth:v1.2-nano@random"
    assert load_encoder("olmoearth:v1.1-nano@random", 4, CPU).fingerprint != nano.fingerprint


def test_weights_are_loaded_from_a_file(nano: Any, tmp_path: Path) -> None:
    import olmoearth_pretrain_minimal as package

    torch.manual_seed(5)
    model = package.OlmoEarthPretrain_v1("nano", "v1.2").model
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    loaded = load_encoder(f"olmoearth:nano@{tmp_path}/weights.pth", 4, CPU)
    assert loaded.fingerprint != nano.fingerprint and loaded.name == "olmoearth:v1.2-nano"
    assert loaded.weights == str(tmp_path / "weights.pth")
    mine = dict(loaded._model.state_dict())  # type: ignore[attr-defined]
    theirs = model.encoder.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_weights_that_cannot_be_loaded_are_told(nano: Any, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"not weights")
    for place in (tmp_path, tmp_path / "weights.pth"):
        with pytest.raises(SweepError, match=r"can't be loaded .*config.json and weights.pth"):
            load_encoder(f"olmoearth:nano@{place}", 4, CPU)


def test_a_hub_that_cannot_be_reached_is_told(nano: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import olmoearth_pretrain_minimal as package

    def unreachable(model_id: Any) -> None:
        raise FileNotFoundError("no network\nmore")

    monkeypatch.setattr(package, "load_model_from_id", unreachable)
    with pytest.raises(SweepError) as error:
        load_encoder("olmoearth:base", 4, CPU)
    message = str(error.value)
    assert "allenai/OlmoEarth-v1_2-Base can't be had from the Hugging Face hub (no network)" in (
        message
    )
    assert "hf download" in message and "olmoearth:base@random" in message


@pytest.mark.parametrize("case", ["three_modalities", "ragged_segmentation"])
def test_an_embedding_is_its_windows_own_whatever_else_is_in_the_batch(
    case: str, nano: Any, ingested: Ingested
) -> None:
    dataset = opened(ingested(case), case, "train", nano)
    indices = list(range(4))
    from eval_ingest.loading import collate

    together = nano.embed(collate([dataset[i] for i in indices]), dataset)
    for i in indices:
        alone = nano.embed(collate([dataset[i]]), dataset)
        assert torch.allclose(together.patches[i], alone.patches[0], atol=1e-4)
        assert torch.allclose(together.pooled[i], alone.pooled[0], atol=1e-4)


def test_pixels_that_are_nan_are_missing_and_the_others_count(
    nano: Any, ingested: Ingested
) -> None:
    from eval_ingest.loading import collate

    dataset = opened(ingested("three_modalities"), "three_modalities", "train", nano)
    batch = collate([dataset[0], dataset[1]])
    whole = nano.embed(batch, dataset)
    batch["sentinel1"][0, :5] = float("nan")  # the first row of patches, and a part of the second
    found = nano.embed(batch, dataset)
    assert torch.isfinite(found.patches).all() and torch.isfinite(found.pooled).all()
    assert torch.allclose(found.patches[1], whole.patches[1], atol=1e-4)
    assert not torch.allclose(found.patches[0], whole.patches[0], atol=1e-4)
    batch["sentinel1"][0] = float("nan")  # nothing is left
    assert torch.isfinite(nano.embed(batch, dataset).patches).all()


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", 6.5), ("max", 12.0), ("center", 7.0), ("own", 99.0)]
)
def test_windows_are_pooled_as_their_dataset_says(
    pooling: str, expected: float, tmp_path: Path
) -> None:
    """Of 3 x 4 patches the middle one is row 1, column 2, as in the existing eval code."""

    class Numbered:
        name, fingerprint, weights, patch_size = "n", "n", "none", 4
        normalize, method = "dataset", "standardize"

        def embed(self, batch: Any, dataset: Any) -> Embeddings:
            n = len(batch["window"])
            if pooling == "own":
                return Embeddings(None, torch.full((n, 2), 99.0))
            grid = torch.arange(1.0, 13).view(1, 3, 4, 1).expand(n, 3, 4, 2)
            return Embeddings(grid)

    write_fake(tmp_path, "one", "classification", counts=(4, 2, 2))
    dataset = EvalDataset("one", "val", root=tmp_path)
    wanted = "center" if pooling == "own" else pooling
    found = embed_split(dataset, Numbered(), tmp_path / "cache", pooling=wanted)  # type: ignore[arg-type]
    assert (found.features == expected).all() and found.pooling == pooling
    again = embed_split(dataset, Numbered(), tmp_path / "cache", pooling=wanted)  # type: ignore[arg-type]
    assert again.pooling == pooling
