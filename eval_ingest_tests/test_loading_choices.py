"""What users choose when they load: axes, transforms, parts, versions, loaders, pictures."""

import io
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, WeightedRandomSampler

from eval_ingest import EvalDataset, collate, pipeline
from eval_ingest.errors import EvalIngestError, LoadError, OutdatedError
from eval_ingest_tests.conftest import make_job

Ingested = Callable[[str], Path]
SOME = "segmentation"


@pytest.fixture
def opened(ingested: Ingested) -> Callable[..., EvalDataset]:
    def open_dataset(case: str = SOME, split: str = "train", **arguments: Any) -> EvalDataset:
        return EvalDataset(case, split, root=ingested(case), **arguments)

    return open_dataset


Opened = Callable[..., EvalDataset]


# ---------------------------------------------------------------------------- samples and batches


@pytest.mark.parametrize("case", [SOME, "three_modalities", "ragged_segmentation"])
def test_channels_first_are_the_same_values_with_other_axes(case: str, opened: Opened) -> None:
    last, first = opened(case), opened(case, channels_first=True)
    for name in last.bands:
        assert torch.equal(first[0][name], last[0][name].permute(3, 2, 0, 1))
        assert first.shape()[name] == tuple(first[0][name].shape)
        assert last.shape()[name] == tuple(last[0][name].shape)
    one, other = next(last.batches(3)), next(first.batches(3))
    for name in last.bands:
        assert torch.equal(other[name], one[name].permute(0, 4, 3, 1, 2))
    assert torch.equal(one["target"].nan_to_num(7), other["target"].nan_to_num(7))
    carried = next(first.batches(3, device="cpu"))
    for name in first.bands:
        assert torch.allclose(carried[name], other[name], atol=1e-5)


def add_one(sample: dict[str, Any]) -> dict[str, Any]:
    return {"image": sample["sentinel2_l2a"] + 1, "target": sample["target"]}


@pytest.mark.parametrize("workers", [0, 1])
def test_transforms_are_applied_to_every_sample_wherever_it_is_asked_for(
    workers: int, opened: Opened
) -> None:
    plain, changed = opened(), opened(transforms=add_one)
    assert set(changed[0]) == {"image", "target"}
    wanted = torch.stack([sample["sentinel2_l2a"] + 1 for sample in plain])
    loader = changed.loader(5, workers, shuffle=False)
    for batches in (changed.batches(5), loader, DataLoader(changed, 5, num_workers=workers)):
        assert torch.equal(torch.cat([batch["image"] for batch in batches]), wanted)


def test_one_modality_is_asked_for_by_its_name(opened: Opened) -> None:
    ds = opened("three_modalities", modalities="sentinel1")
    assert list(ds.bands) == ["sentinel1"] and "landsat" not in ds[0]
    with pytest.raises(LoadError, match="has no modality sentinel3; it has"):
        opened("three_modalities", modalities="sentinel3")


def test_parts_of_a_dataset_are_datasets(opened: Opened) -> None:
    ds = opened()
    names = [ds.window(i) for i in range(len(ds))]
    for part, wanted in (
        (ds[2:5], names[2:5]),
        (ds[::-4], names[::-4]),
        (ds[[3, -1]], [names[3], names[-1]]),
        (ds[np.array([1, 0])], names[1::-1]),
        (ds[torch.tensor([4, 2])], [names[4], names[2]]),
        (ds[np.arange(len(ds)) % 2 == 1], names[1::2]),
        (ds[5:][1:3], names[6:8]),
        (ds[3:3], []),
    ):
        assert [sample["window"] for sample in part] == wanted
        assert [w for batch in part.batches(2) for w in batch["window"]] == wanted
        assert [part.window(i) for i in range(len(part))] == wanted
    assert len(ds) == len(names)  # what was cut from it is as it was
    again = pickle.loads(pickle.dumps(ds[2:5]))
    assert [sample["window"] for sample in again] == names[2:5]
    assert torch.equal(ds[np.int64(1)]["target"], ds[1]["target"])


def test_a_part_opens_nothing_again_and_knows_its_own_windows(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = opened()
    assert len(ds.windows) == len(ds) > 3
    monkeypatch.setattr(EvalDataset, "_open", None)
    part = ds[1:3]
    assert torch.equal(part[1]["sentinel2_l2a"], ds[2]["sentinel2_l2a"])
    windows = [f"{row['group']}/{row['name']}" for row in part.windows]
    assert windows == [ds.window(1), ds.window(2)]
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(part))  # travelling is another matter


@pytest.mark.parametrize("key", ["train", "sentinel2_l2a", 1.0, None])
def test_what_is_no_sample_is_told_in_words(key: Any, opened: Opened) -> None:
    ds = opened()
    with pytest.raises(TypeError, match=rf"numbered 0 to {len(ds) - 1}; a split is opened by"):
        ds[key]
    with pytest.raises(IndexError, match="sample 1000 of"):
        ds[[0, 1000]]


def test_a_plain_loader_on_ragged_samples_points_to_collate(opened: Opened) -> None:
    ds = opened("ragged_segmentation", crop=None)
    with pytest.raises(LoadError, match=r"collate_fn=eval_ingest\.collate"):
        list(DataLoader(ds, batch_size=len(ds)))
    [batch] = DataLoader(ds, batch_size=len(ds), collate_fn=collate)
    assert len(batch["target"]) == len(ds)
    assert len(list(DataLoader(opened(), batch_size=4))) == -(-len(opened()) // 4)


# ------------------------------------------------------------------------------------- the loader


def test_every_argument_of_a_loader_can_be_given(opened: Opened) -> None:
    ds = opened()
    weights = np.linspace(1, 2, len(ds)).tolist()
    loader = ds.loader(4, sampler=WeightedRandomSampler(weights, 6))
    assert [len(batch["window"]) for batch in loader] == [4, 2]
    assert "order: by the sampler that was given" in loader.why
    batched = ds.loader(batch_sampler=BatchSampler(RandomSampler(ds), 5, drop_last=True))
    assert {len(batch["window"]) for batch in batched} == {5}
    assert "batch_size" not in batched.why and "batch_sampler" in batched.why
    assert len(ds.loader(5, drop_last=True, shuffle=False, timeout=0)) == len(ds) // 5
    with pytest.raises(LoadError, match="exclude each other"):
        ds.loader(4, batch_sampler=BatchSampler(RandomSampler(ds), 5, drop_last=True))


def test_why_tells_what_was_given_and_what_was_chosen(opened: Opened) -> None:
    assert opened().loader(32, num_workers=2).why == (
        "batch_size 32: as given; num_workers 2: as given; shuffle True: the split is train"
    )
    why = opened(split="val").loader().why
    assert "as given" not in why and "MiB" in why and "shuffle False: the split is val" in why
    assert "num_workers 0: reading the memory map" in why


# ------------------------------------------------------------------------------- label fractions


def classes_of(ds: EvalDataset) -> Counter[int]:
    return Counter(int(sample["target"]) for sample in ds)


def test_stratified_fractions_are_nested_and_hold_rare_classes_first(opened: Opened) -> None:
    case = "vector_classification"
    every = classes_of(opened(case))
    before: list[str] = []
    for share in (0.3, 0.6, 0.9, 1.0):
        ds = opened(case, label_fraction=share, stratified=True)
        plain = opened(case, label_fraction=share)
        assert len(ds) == len(plain)
        names = [ds.window(i) for i in range(len(ds))]
        assert set(before) <= set(names)
        before = names
        found = classes_of(ds)
        if len(ds) >= len(every):
            assert set(found) == set(every)
            for label, count in every.items():
                assert abs(found[label] - count * share) <= len(every)
    assert len(opened(case, stratified=True)) == sum(every.values())


@pytest.mark.parametrize("case", [SOME, "scalar_regression", "per_pixel_regression"])
def test_every_kind_of_task_is_stratified_the_same_way_each_time(case: str, opened: Opened) -> None:
    first, second = (opened(case, label_fraction=0.5, stratified=True) for _ in range(2))
    names = [first.window(i) for i in range(len(first))]
    assert names == [second.window(i) for i in range(len(second))]
    other = opened(case, label_fraction=0.5, stratified=True, seed=1)
    assert names != [other.window(i) for i in range(len(other))]
    again = pickle.loads(pickle.dumps(first))
    assert names == [again.window(i) for i in range(len(again))]


def test_the_fifths_of_targets_are_all_there(opened: Opened) -> None:
    values = sorted(float(s["target"]) for s in opened("scalar_regression"))
    few = opened("scalar_regression", max_samples=5, stratified=True)
    ranks = sorted(values.index(float(sample["target"])) for sample in few)
    assert ranks[0] < len(values) / 4 and ranks[-1] >= len(values) * 3 / 4


# ------------------------------------------------------------------------------------- a version


def test_a_version_can_be_pinned(written: Ingested, tmp_path: Path) -> None:
    job = make_job(written(SOME), tmp_path / "evals")
    first = pipeline.ingest(job)[-1].value.fingerprint
    assert EvalDataset("crops", "val", root=tmp_path / "evals", version=first[:8])
    again = make_job(written(SOME), tmp_path / "evals", splits={"strategy": "random"})
    second = pipeline.ingest(again)[-1].value.fingerprint
    with pytest.raises(OutdatedError, match=rf"{second}.*not '{first}': that of .* was replaced"):
        EvalDataset("crops", "val", root=tmp_path / "evals", version=first)
    for unknown in ("abcdef", ""):
        with pytest.raises(OutdatedError, match="no version of it is known"):
            EvalDataset("crops", "val", root=tmp_path / "evals", version=unknown)


# ------------------------------------------------------------------------------- looking at it


@pytest.mark.parametrize(
    "arguments",
    [{}, {"normalize": None, "crop": None}, {"method": "standardize", "channels_first": True},
     {"label_fraction": 0.5, "stratified": True, "modalities": "sentinel2_l2a"}],
)  # fmt: skip
def test_the_repr_opens_it_again(arguments: dict[str, Any], opened: Opened) -> None:
    ds = opened(**arguments)
    text = repr(ds)
    again = eval(text, {"EvalDataset": EvalDataset})
    assert [again.window(i) for i in range(len(again))] == [ds.window(i) for i in range(len(ds))]
    assert torch.equal(again[0]["sentinel2_l2a"], ds[0]["sentinel2_l2a"])
    assert "normalize=" in text and "crop=" in text
    assert str(tuple(ds[0]["sentinel2_l2a"].shape)) in text


def test_the_repr_of_a_part_opens_that_part(opened: Opened) -> None:
    whole = opened()
    for part, shown in ((whole[2:5], "[2:5]"), (whole[[3, -1]], "[[3,"), (whole[2:5][1:], "[3:5]")):
        text = repr(part)
        assert f"){shown}" in text
        again = eval(text)
        assert [s["window"] for s in again] == [s["window"] for s in part]
    assert ")[...]  #" in repr(whole[np.resize([0, 2], 9)])
    assert repr(pickle.loads(pickle.dumps(whole[1:3]))) == repr(whole[1:3])


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": 5},
        {"root": 5},
        {"version": 5},
        {"modalities": 5},
        {"seed": "a"},
        {"seed": None},
        {"max_samples": 2.5},
        {"nodata": "x"},
        {"transforms": 5},
        {"stratified": "no"},
        {"label_fraction": None},
        {"method": 5},
        {"crop": [16]},
        {"split": 5},
        {"normalize": 5},
    ],
    ids=str,
)
def test_an_argument_of_a_wrong_kind_is_told_with_its_value(
    wrong: dict[str, Any], ingested: Ingested
) -> None:
    (value,) = wrong.values()
    with pytest.raises(EvalIngestError) as told:
        EvalDataset(**{"name": SOME, "split": "train", "root": ingested(SOME), **wrong})
    assert repr(value) in str(told.value)


SAID = {"B02": {"mean": "a", "std": 1.0}, "B03": {"mean": 0.0}}
WRONG: dict[str, tuple[Callable[[EvalDataset], Any], str]] = {
    "modality_no_text": (lambda ds: ds.value_range(3), "no modality 3"),  # type: ignore[arg-type]
    "statistics_of_none": (lambda ds: ds.statistics("x"), "no modality x"),
    "shard_a_number": (lambda ds: list(ds.batches(8, shard=3)), "shard is 3"),  # type: ignore[arg-type]
    "shard_no_whole_numbers": (lambda ds: list(ds.batches(8, shard=(0.5, 2))), "shard is"),  # type: ignore[arg-type]
    "device_unknown": (lambda ds: list(ds.batches(8, device="nope")), "device='nope' can't be had"),
    "collate_a_number": (lambda ds: collate(5), "made of a list of samples"),  # type: ignore[arg-type]
    "collate_others": (lambda ds: collate([ds[0], {"a": 1}]), "samples that hold the same"),
    "a_very_long_name": (lambda ds: ds["a" * 3_000], "^'a{,40}\\.\\.\\.a{,40}' is no sample"),  # type: ignore[call-overload]
    "statistics_of_a_list": (lambda ds: ds.statistics([]), "no modality"),  # type: ignore[arg-type]
    "workers_of_a_name": (lambda ds: ds.loader(num_workers="a"), "num_workers='a' can't be"),  # type: ignore[arg-type]
    "a_sampler_of_fractions": (lambda ds: next(iter(ds.loader(sampler=[0.5]))), "0.5 is no sample"),
    "collate_nothing": (lambda ds: collate([]), "no samples"),
    "plot_a_name": (lambda ds: ds.plot("a"), "'a' is no sample"),  # type: ignore[arg-type]
    "a_name_in_a_list": (lambda ds: ds[["a"]], "'a' is no sample"),  # type: ignore[list-item]
    "a_fraction_in_a_list": (lambda ds: ds[np.array([1.5])], "1.5.* is no sample"),
    "a_mask_of_another_length": (lambda ds: ds[np.array([True] * 3)], "a mask of 3 for"),
    "a_column_of_windows": (lambda ds: ds.windows["crs"], "rows are numbered"),  # type: ignore[call-overload]
    "a_row_beyond_windows": (lambda ds: ds.windows[999], "row 999 of"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_can_not_be_asked_is_told_in_our_words(case: str, opened: Opened) -> None:
    ask, words = WRONG[case]
    with pytest.raises((LoadError, TypeError, IndexError), match=words):
        ask(opened())


def test_windows_have_slices(opened: Opened) -> None:
    windows = opened().windows
    assert windows[1:3] == [windows[1], windows[2]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"modalities": [3]}, "no modality 3"),
        ({"method": ["standardize"]}, "method="),
        ({"max_samples": True}, "max_samples=True"),
        ({"normalize": {"sentinel2_l2a": SAID}}, "no statistics for the bands"),
    ],
)
def test_an_argument_that_can_not_be_is_refused_when_it_is_opened(
    given: dict[str, Any], words: str, opened: Opened
) -> None:
    with pytest.raises(EvalIngestError, match=words):
        opened(**given)


def test_an_empty_text_is_no_eval_root() -> None:
    with pytest.raises(EvalIngestError, match="root='' is empty; give a path or URL"):
        EvalDataset(SOME, "train", root="")


@pytest.mark.parametrize("wrong", [{"mean": "a", "std": 1.0}, {"mean": 0.0}])
def test_statistics_that_are_no_numbers_are_refused(wrong: Any, opened: Opened) -> None:
    bands = dict.fromkeys(opened().bands["sentinel2_l2a"], wrong)
    with pytest.raises(LoadError, match="the statistics of band B02 are"):
        opened(normalize={"sentinel2_l2a": bands})


def test_what_is_for_workers_alone_makes_workers(opened: Opened) -> None:
    loader = opened().loader(4, prefetch_factor=2)
    assert loader.num_workers > 0 and "prefetch_factor is for workers alone" in loader.why
    assert sum(len(batch["window"]) for batch in loader) == len(opened())


@pytest.mark.parametrize("size", [0, -1, 2.5, "8"])
def test_a_batch_size_that_can_not_be_is_refused_everywhere(size: Any, opened: Opened) -> None:
    for make in (opened().loader, opened().batches):
        with pytest.raises(LoadError, match=r"batch_size is .*; it must be a whole number"):
            list(make(size))


@pytest.mark.parametrize("dpi", [100, 250])
@pytest.mark.parametrize(
    "case", [SOME, "vector_classification", "per_pixel_regression", "scalar_regression"]
)
def test_nothing_of_a_plot_lies_beyond_its_edge(case: str, dpi: int, opened: Opened) -> None:
    ds = opened(case)
    for prediction in (None, np.zeros(ds[0]["target"].shape)):
        figure = ds.plot(0, prediction)
        figure.savefig(io.BytesIO(), dpi=dpi)  # as a user's first drawing of it
        drawn = figure.get_tightbbox()  # inches
        width, height = figure.get_size_inches()
        slack = 0.02
        assert drawn.x0 > -slack and drawn.y0 > -slack
        assert drawn.x1 < width + slack and drawn.y1 < height + slack


@pytest.mark.parametrize("normalize", ["dataset", None])
@pytest.mark.parametrize("method", ["norm_no_clip_2_std", "norm_yes_clip_3_std_int", "standardize"])
def test_the_range_that_it_tells_is_that_of_its_values(
    normalize: Any, method: str, opened: Opened
) -> None:
    ds = opened("three_modalities", normalize=normalize, method=method, crop=None)
    for name in ds.bands:
        values = torch.cat([sample[name].reshape(-1) for sample in ds])
        low, high = ds.value_range(name)
        assert low == pytest.approx(float(values.min()), rel=1e-3, abs=1e-3)
        assert high == pytest.approx(float(values.max()), rel=1e-3, abs=1e-3)


def test_a_crop_is_told_beside_the_shape(opened: Opened) -> None:
    assert "(16, 16, 3, 12), a crop of 24 x 24" in repr(opened())
    assert "a crop of" not in repr(opened(crop=None))


def test_a_notebook_shows_classes_in_their_colours_and_no_markup_of_names(opened: Opened) -> None:
    html = opened()._repr_html_()
    assert "rgb(122,62,30)" in html and "cacao" in html and "<table>" in html
    assert "<script" not in html
    assert opened().task.ignored_id == 0 and "0 class_0" not in html  # only marks missing labels


@pytest.mark.parametrize(
    "case", [SOME, "vector_classification", "per_pixel_regression", "scalar_regression"]
)
def test_a_sample_is_drawn_with_its_label_and_a_prediction(case: str, opened: Opened) -> None:
    ds = opened(case)
    target = ds[0]["target"]
    figure = ds.plot(0, prediction=target)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert len(ds.plot(0).axes) < len(figure.axes) or not target.ndim
    words = " ".join(
        text.get_text() for text in figure.findobj(match=lambda o: hasattr(o, "get_text"))
    )
    assert ds.window(0) in words and "prediction" in words
    if ds.classes:
        scores = torch.nn.functional.one_hot(target.clamp(min=0), len(ds.classes)).movedim(-1, 0)
        assert ds.plot(0, prediction=scores.float().requires_grad_())
    with pytest.raises(LoadError, match="the prediction has shape"):
        ds.plot(0, prediction=np.zeros((3, 5, 7)))
    assert ds.plot(0, prediction=target.to(torch.bfloat16))
    for wrong in ("cacao", [1, [2]], {}, np.full(target.shape, 1j), np.full(target.shape, None)):
        with pytest.raises(LoadError, match="no array of numbers"):
            ds.plot(0, prediction=wrong)
    if ds.classes:
        assert ds.plot(0, prediction=np.full(target.shape, 1e30))  # no class, as NaN is none
        with pytest.raises(LoadError, match="numbers that are no classes"):
            ds.plot(0, prediction=np.full(target.shape, 0.5))


def test_another_modality_is_drawn_by_its_name(opened: Opened) -> None:
    ds = opened("three_modalities")
    for name in ds.bands:
        assert name in ds.plot(0, modality=name).axes[0].get_xlabel()
    with pytest.raises(LoadError, match="no modality"):
        ds.plot(0, modality="sentinel3")


# --------------------------------------------------------------------------- where samples lie


def test_the_table_says_where_and_when_each_sample_is(opened: Opened) -> None:
    whole, cropped = opened(crop=None), opened()
    assert len(whole.windows) == len(whole)
    for i in (0, len(whole) - 1):
        row, inner = whole.windows[i], cropped.windows[i]
        assert f"{row['group']}/{row['name']}" == whole.window(i)
        assert row["crs"] == "EPSG:32630" and row["split"] == "train"
        left, bottom, right, top = row["bounds"]
        assert (right - left, top - bottom) == (240, 240)
        assert inner["bounds"] == [left + 40, bottom + 40, right - 40, top - 40]
        assert row["time_start"].year == 2024
    assert [row["name"] for row in whole[3:5].windows] == [row["name"] for row in whole.windows][
        3:5
    ]
    with pytest.raises(IndexError):
        whole.windows[len(whole)]


def test_samples_are_outlines_in_geopandas(opened: Opened) -> None:
    import geopandas

    ds = opened()
    frame = ds.windows.to_geopandas()
    assert isinstance(frame, geopandas.GeoDataFrame) and frame.crs == "OGC:CRS84"
    assert frame.to_crs("EPSG:32630").area.to_numpy() == pytest.approx(160**2, rel=1e-3)
    bounds = frame.to_crs("EPSG:32630").total_bounds
    assert bounds[0] == pytest.approx(min(row["bounds"][0] for row in ds.windows), abs=0.1)
