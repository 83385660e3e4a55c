"""The adapter to OlmoEarth's masked samples: dates, masks, bands, and the package as oracle."""

import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from eval_ingest import EvalDataset
from eval_ingest.core.modality import MODALITIES
from eval_ingest.errors import LoadError
from eval_ingest.loading import collate
from eval_ingest.loading.olmoearth import MISSING, SEEN, OlmoEarthAdapter, align
from eval_ingest_tests.support.fake_evals import write_fake

Ingested = Callable[[str], Path]

S2 = MODALITIES["sentinel2_l2a"].bands
WITHOUT_60M = tuple(band for band in S2 if band not in ("B01", "B09"))


def stamps(*days: int) -> np.ndarray:
    """Dates that many days after 1 March 2023."""
    dates = [datetime(2023, 3, 1, tzinfo=UTC) + timedelta(days=d) for d in days]
    return np.array([[d.day, d.month - 1, d.year] for d in dates]).reshape(-1, 3)


def test_a_method_that_needs_what_pretraining_does_not_tell_is_refused(ingested: Ingested) -> None:
    method = "norm_yes_clip_min_max_int"
    arguments = {"split": "train", "root": ingested("segmentation"), "method": method}
    assert EvalDataset("segmentation", **arguments)[0]["sentinel2_l2a"].max() > 0
    with pytest.raises(LoadError, match=r'minimum and maximum.*use normalize="dataset"'):
        EvalDataset("segmentation", normalize="pretrained", **arguments)


# ------------------------------------------------------------------------------------- slots


def test_one_modality_is_put_in_order_of_time() -> None:
    dates, places = align({"sentinel2_l2a": stamps(60, 0, 30)})
    assert dates.tolist() == stamps(0, 30, 60).tolist()
    assert places["sentinel2_l2a"].tolist() == [1, 2, 0]


def test_as_many_images_that_lie_close_stack_one_to_one() -> None:
    # By the nearest date, the first of Sentinel-1 would go to the second slot.
    found = align({"sentinel2_l2a": stamps(0, 12, 24), "sentinel1": stamps(10, 20, 30)})
    assert found[0].tolist() == stamps(0, 12, 24).tolist()
    assert found[1]["sentinel1"].tolist() == [0, 1, 2]


def test_an_image_takes_the_nearest_free_slot_or_opens_one() -> None:
    dates, places = align({"sentinel1": stamps(3, 28, 200), "sentinel2_l2a": stamps(0, 30)})
    assert dates.tolist() == stamps(0, 30, 200).tolist()
    assert places["sentinel2_l2a"].tolist() == [0, 1, -1]
    assert places["sentinel1"].tolist() == [0, 1, 2]


def test_two_images_of_one_day_have_a_slot_each() -> None:
    dates, places = align({"sentinel2_l2a": stamps(0, 0), "sentinel1": stamps(0)})
    assert len(dates) == 2
    assert places["sentinel2_l2a"].tolist() == [0, 1]
    assert places["sentinel1"].tolist() == [0, -1]


def test_an_absent_modality_takes_no_slot() -> None:
    dates, places = align({"sentinel2_l2a": stamps(0, 30), "sentinel1": stamps()})
    assert len(dates) == 2 and places["sentinel1"].tolist() == [-1, -1]


# --------------------------------------------------------------------- against other packages


@pytest.fixture(scope="module")
def package() -> Any:
    import olmoearth_pretrain_minimal

    return olmoearth_pretrain_minimal


def test_bands_are_in_the_packages_order(package: Any) -> None:
    from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.constants import Modality

    for modality in MODALITIES.values():
        assert list(modality.bands) == Modality.get(modality.name).band_order


def test_masks_have_the_packages_values(package: Any) -> None:
    from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.datatypes import MaskValue

    assert (MaskValue.ONLINE_ENCODER.value, MaskValue.MISSING.value) == (SEEN, MISSING)


@pytest.mark.parametrize("case", ["three_modalities", "per_pixel_regression"])
def test_pretrained_normalisation_equals_the_packages(
    case: str, package: Any, ingested: Ingested
) -> None:
    from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.constants import Modality

    normalizer = package.Normalizer(std_multiplier=2)
    raw = EvalDataset(case, "train", root=ingested(case), normalize=None)[0]
    dataset = EvalDataset(case, "train", root=ingested(case), normalize="pretrained")
    for name in dataset.bands:
        stored = raw[name].double().numpy()
        if name == "sentinel1":
            stored = 10 * np.log10(np.maximum(stored, 1e-10))
        expected = normalizer.normalize(Modality.get(name), stored)
        assert np.allclose(dataset[0][name].numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_slots_equal_those_of_rslearns_wrapper(seed: int, package: Any) -> None:
    """Random dates, of which rslearn's greedy assignment is the oracle."""
    from rslearn.models.olmoearth_pretrain.model import OlmoEarth
    from rslearn.train.model_context import ModelContext, RasterImage

    rng = np.random.default_rng(seed)
    batch: dict[str, Any] = {"timestamps": {}, "timesteps": {}}
    inputs = {}
    for name, count in (("sentinel2_l2a", 4), ("sentinel1", 5), ("landsat", 2)):
        days = np.sort(rng.choice(90, count, replace=False))
        bands = len(MODALITIES[name].bands)
        pixels = torch.from_numpy(rng.normal(size=(2, 2, count, bands)).astype(np.float32))
        batch[name] = pixels[None]
        batch["timestamps"][name] = torch.from_numpy(stamps(*days.tolist()))[None]
        batch["timesteps"][name] = torch.tensor([count])
        dates = [datetime(2023, 3, 1, tzinfo=UTC) + timedelta(days=int(d)) for d in days]
        inputs[name] = RasterImage(pixels.permute(3, 2, 0, 1), [(d, d) for d in dates])
    wrapper = SimpleNamespace(
        timestamp_error_tolerance=timedelta(days=15),
        datetimes_to_timestamps=OlmoEarth.datetimes_to_timestamps,
    )
    context = ModelContext(inputs=[inputs], metadatas=[])
    expected, _, _ = OlmoEarth._prepare_modality_inputs(wrapper, context)
    found = adapter_of(list(inputs))(batch)
    assert torch.equal(found.timestamps, expected.timestamps.long())
    for name in inputs:
        assert torch.equal(getattr(found, name), getattr(expected, name))
        assert torch.equal(getattr(found, f"{name}_mask"), getattr(expected, f"{name}_mask"))


def adapter_of(modalities: list[str]) -> OlmoEarthAdapter:
    """An adapter of a dataset with these modalities, whole and normalised."""
    dataset = SimpleNamespace(
        name="any",
        channels_first=False,
        bands={name: MODALITIES[name].bands for name in modalities},
        metadata=SimpleNamespace(config=SimpleNamespace(modalities=())),
        _normalizers={name: SimpleNamespace(scale=1, then="") for name in modalities},
        _arguments={"normalize": "pretrained", "method": "norm_no_clip_2_std"},
    )
    return OlmoEarthAdapter(dataset)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------- samples


def test_a_sample_has_the_rasters_own_dates_and_nothing_masked(
    package: Any, ingested: Ingested
) -> None:
    dataset = EvalDataset(
        "segmentation", "train", root=ingested("segmentation"), normalize="pretrained"
    )
    sample, target = OlmoEarthAdapter(dataset).collate([dataset[0], dataset[1]])
    assert torch.equal(sample.timestamps[0], dataset[0]["timestamps"]["sentinel2_l2a"])
    assert torch.equal(sample.sentinel2_l2a[1], dataset[1]["sentinel2_l2a"])
    assert sample.sentinel2_l2a_mask.shape == (*sample.sentinel2_l2a.shape[:4], 3)
    assert sample.sentinel2_l2a_mask.dtype == torch.int64
    assert (sample.sentinel2_l2a_mask == 0).all()
    assert torch.equal(target[0], dataset[0]["target"])


def test_missing_timesteps_of_a_modality_are_masked(package: Any, ingested: Ingested) -> None:
    dataset = EvalDataset(
        "three_modalities", "train", root=ingested("three_modalities"), normalize="pretrained"
    )
    sample = OlmoEarthAdapter(dataset)(next(iter(dataset.batches(4))))
    steps = {name: dataset[0]["timestamps"][name] for name in dataset.bands}
    assert len(steps["sentinel2_l2a"]) == 3 and len(steps["sentinel1"]) == 2
    assert torch.equal(sample.timestamps[0], steps["sentinel2_l2a"])
    assert (sample.sentinel2_l2a_mask == 0).all()
    mask = sample.sentinel1_mask[0]
    assert mask.shape[-2:] == (3, 1)
    assert (mask[:, :, :2] == 0).all() and (mask[:, :, 2] == 3).all()
    assert (sample.sentinel1[0, :, :, 2] == 0).all()


def test_a_modality_that_a_window_lacks_is_masked(package: Any, ingested: Ingested) -> None:
    root = ingested("three_modalities")
    dataset = EvalDataset("three_modalities", "train", root=root, normalize="pretrained")
    adapter = OlmoEarthAdapter(dataset)
    steps = [len(dataset[i]["timestamps"]["landsat"]) for i in range(len(dataset))]
    without, beside = steps.index(0), steps.index(2)
    for rows in ([without], [beside, without]):
        sample, _ = adapter.collate([dataset[i] for i in rows])
        assert sample.landsat.shape == (len(rows), 16, 16, 3, 11)
        assert (sample.landsat[-1] == 0).all() and (sample.landsat_mask[-1] == 3).all()
        assert (sample.sentinel2_l2a_mask == 0).all()
    sample, _ = adapter.collate([dataset[beside], dataset[without]])
    assert (sample.landsat_mask[0, :, :, :2] == 0).all()


def test_samples_of_differing_length_and_size_are_padded_and_masked(
    package: Any, ingested: Ingested
) -> None:
    root = ingested("ragged_segmentation")
    dataset = EvalDataset("ragged_segmentation", "train", root=root, crop=None)
    samples = [dataset[i] for i in range(len(dataset))]
    sample, target = OlmoEarthAdapter(dataset).collate(samples)
    assert len({tuple(s["sentinel2_l2a"].shape) for s in samples}) > 1
    for b, one in enumerate(samples):
        height, width, steps, _ = one["sentinel2_l2a"].shape
        mask = sample.sentinel2_l2a_mask[b]
        assert (mask[:height, :width, :steps] == 0).all()
        assert (mask == 0).sum() == height * width * steps * 3
        assert ((mask == 0) | (mask == 3)).all()
        assert torch.equal(sample.sentinel2_l2a[b, :height, :width, :steps], one["sentinel2_l2a"])
        assert (target[b, height:] == -1).all() and (target[b, :, width:] == -1).all()


def test_missing_bands_are_imputed_as_the_packages_v1_normaliser_does(
    package: Any, tmp_path: Path
) -> None:
    from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.constants import Modality

    write_fake(tmp_path, "few", "segmentation", counts=(2, 1, 1), bands=WITHOUT_60M)
    raw = EvalDataset("few", "train", root=tmp_path, normalize=None)[0]["sentinel2_l2a"]
    whole = np.full((*raw.shape[:-1], 12), np.nan)
    whole[..., [S2.index(band) for band in WITHOUT_60M]] = raw.numpy()
    expected = package.NormalizerV1().normalize(Modality.SENTINEL2_L2A, whole)
    dataset = EvalDataset("few", "train", root=tmp_path, normalize="pretrained")
    sample, _ = OlmoEarthAdapter(dataset).collate([dataset[0]])
    assert np.allclose(sample.sentinel2_l2a[0].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert (sample.sentinel2_l2a_mask == 0).all()


def test_missing_bands_are_zero_for_later_models_and_their_own_group_masked(
    package: Any, tmp_path: Path
) -> None:
    write_fake(tmp_path, "few", "segmentation", counts=(2, 1, 1), bands=WITHOUT_60M)
    dataset = EvalDataset("few", "train", root=tmp_path, normalize="pretrained")
    adapter = OlmoEarthAdapter(dataset, missing_bands="zero")
    sample, _ = adapter.collate([dataset[0]])
    assert (sample.sentinel2_l2a[..., 10:] == 0).all()
    assert torch.equal(sample.sentinel2_l2a[0, ..., :10], dataset[0]["sentinel2_l2a"])
    assert (sample.sentinel2_l2a_mask[..., :2] == 0).all()
    assert (sample.sentinel2_l2a_mask[..., 2] == 3).all()
    one = OlmoEarthAdapter(
        dataset, missing_bands="zero", band_groups={"sentinel2_l2a": [list(range(12))]}
    )
    assert (one.collate([dataset[0]])[0].sentinel2_l2a_mask == 0).all()


def test_with_the_datasets_own_statistics_the_stand_in_is_taken_as_it_is(
    package: Any, tmp_path: Path
) -> None:
    write_fake(tmp_path, "few", "segmentation", counts=(2, 1, 1), bands=WITHOUT_60M)
    dataset = EvalDataset("few", "train", root=tmp_path, normalize="dataset")
    pixels = OlmoEarthAdapter(dataset).collate([dataset[0]])[0].sentinel2_l2a
    assert torch.equal(pixels[..., S2.index("B01")], pixels[..., S2.index("B02")])


def test_an_unnormalised_dataset_is_refused(package: Any, ingested: Ingested) -> None:
    dataset = EvalDataset("segmentation", "train", root=ingested("segmentation"), normalize=None)
    with pytest.raises(LoadError, match=r"normalize=None.*open it with normalize="):
        OlmoEarthAdapter(dataset)
    turned = EvalDataset(
        "segmentation", "train", root=ingested("segmentation"), channels_first=True
    )
    with pytest.raises(LoadError, match="channels_first=True; leave it out"):
        OlmoEarthAdapter(turned)


# ------------------------------------------------------------------------------------- models


@pytest.fixture(scope="module")
def encoder(package: Any) -> Any:
    torch.manual_seed(0)
    model = package.OlmoEarthPretrain_v1("nano", "v1.2")
    return model.encoder.eval().requires_grad_(False)


def test_a_model_embeds_the_samples_of_a_loader(
    encoder: Any, package: Any, ingested: Ingested
) -> None:
    dataset = EvalDataset(
        "three_modalities", "train", root=ingested("three_modalities"), normalize="pretrained"
    )
    adapter = OlmoEarthAdapter(dataset)
    loader = DataLoader(dataset, batch_size=3, collate_fn=adapter.collate)
    sample, _ = next(iter(loader))
    tokens = encoder(sample, patch_size=8)["tokens_and_masks"]
    assert tokens.sentinel1.shape[:4] == (3, 2, 2, 3)
    assert torch.isfinite(tokens.sentinel2_l2a).all()
    assert pickle.loads(pickle.dumps(adapter)) is not None  # for workers that are spawned


def test_masked_slots_leave_an_embedding_as_it_is(
    encoder: Any, package: Any, tmp_path: Path
) -> None:
    write_fake(tmp_path, "uneven", "segmentation", counts=(2, 1, 1), steps=(2, 4))
    dataset = EvalDataset("uneven", "train", root=tmp_path, normalize="pretrained")
    adapter = OlmoEarthAdapter(dataset)
    alone = adapter(collate([dataset[0]]))
    beside = adapter(collate([dataset[0], dataset[1]]))
    padded = type(beside)(**{k: v[:1] for k, v in beside.as_dict(return_none=False).items()})
    assert padded.sentinel2_l2a.shape[3] == 4 and alone.sentinel2_l2a.shape[3] == 2
    expected = encoder(alone, patch_size=4)["tokens_and_masks"].sentinel2_l2a
    found = encoder(padded, patch_size=4)["tokens_and_masks"].sentinel2_l2a
    assert torch.allclose(expected, found[:, :, :, :2], atol=1e-5)
