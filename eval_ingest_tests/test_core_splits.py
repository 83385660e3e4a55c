"""Splits: hashed, so that listing order and new windows change nothing."""

import json
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_ingest.core.footprints import equal_area
from eval_ingest.core.index import WindowIndex, index_schema
from eval_ingest.core.resolved import (
    BandSet,
    InputPart,
    LabelInput,
    Layer,
    LayerRead,
    ModalityInput,
    ResolvedConfig,
    SplitSelector,
)
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.core.splits import SplitAssignment, assign_splits, inherited
from eval_ingest.core.task import LabelClass, Task, TaskKind
from eval_ingest.errors import SplitError


def make_config(selectors: dict[str, SplitSelector] | None = None) -> ResolvedConfig:
    part = InputPart(key="s2", reads=(LayerRead(layer="sentinel2", item_group=None),), stack=True)
    return ResolvedConfig(
        task=Task(
            kind=TaskKind.CLASSIFICATION,
            num_classes=3,
            classes=tuple(LabelClass(name=name) for name in "abc"),
            property_name="category",
        ),
        label=LabelInput(part=part),
        modalities=(
            ModalityInput(name="sentinel2_l2a", bands=("B02",), parts=(part,), dtype="uint16"),
        ),
        layers=(Layer(name="sentinel2", band_sets=(BandSet(bands=("B02",), dtype="uint16"),)),),
        selectors=selectors or {},
    )


def make_index(windows: list[dict[str, Any]], config: ResolvedConfig) -> WindowIndex:
    rows = []
    for k, window in enumerate(windows):
        lon, lat = window.get("place", (k * 0.1 % 90, k * 0.1 // 90))
        counts = [0, 0, 0]
        counts[window.get("class", k % 3)] = 1
        rows.append(
            {
                "group": window.get("group", "g"),
                "name": window["name"],
                "options": json.dumps(window.get("options", {})),
                "geometry": shapely.to_wkb(shapely.box(lon, lat, lon + 0.001, lat + 0.001)),
                "status": window.get("status", "valid"),
                "label.class_counts": counts,
                "sentinel2_l2a.timesteps": 1,
            }
        )
    rows.sort(key=lambda row: (row["group"], row["name"]))
    return WindowIndex(pa.Table.from_pylist(rows, schema=index_schema(config)), "fp", "key")


def assign(
    windows: list[dict[str, Any]],
    config: ResolvedConfig | None = None,
    **spec: Any,
) -> tuple[dict[str, str], SplitAssignment]:
    config = config or make_config()
    index = make_index(windows, config)
    found = assign_splits(
        index, config, DatasetSpec.parse({"name": "d", "source": "x", **spec}, "test"), "fp"
    )
    return dict(zip(index.names, found.splits.tolist(), strict=True)), found


def named(count: int) -> list[dict[str, Any]]:
    return [{"name": f"w{k:04d}"} for k in range(count)]


STRATEGIES = ["auto", "random", "spatial"]


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 60), st.randoms(), st.sampled_from(STRATEGIES))
def test_the_order_of_listing_does_not_matter(count: int, random: Any, strategy: str) -> None:
    windows = [{**w, "place": (k * 0.3, 0.0)} for k, w in enumerate(named(count))]
    shuffled = list(windows)
    random.shuffle(shuffled)
    splits = {"strategy": strategy}
    assert assign(windows, splits=splits)[0] == assign(shuffled, splits=splits)[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 60), st.integers(1, 20), st.sampled_from(STRATEGIES))
def test_adding_a_window_moves_no_other_window(count: int, more: int, strategy: str) -> None:
    windows = [{**w, "place": (k * 0.3, 0.0)} for k, w in enumerate(named(count + more))]
    before, _ = assign(windows[:count], splits={"strategy": strategy})
    after, _ = assign(windows, splits={"strategy": strategy})
    assert before == {name: after[name] for name in before}


@pytest.mark.parametrize("strategy", ["auto", "random", "stratified"])
def test_ratios_are_kept_on_the_whole(strategy: str) -> None:
    _, found = assign(named(3000), splits={"strategy": strategy, "ratios": [80, 10, 10]})
    counts = found.counts()
    assert sum(counts.values()) == 3000
    assert abs(counts["train"] - 2400) < 80
    assert abs(counts["val"] - 300) < 60


def test_another_seed_is_another_split() -> None:
    assert assign(named(100))[0] != assign(named(100), splits={"seed": 7})[0]


def test_declared_train_and_val_are_kept_and_val_is_divided() -> None:
    windows = [
        {"name": f"w{k}", "options": {"split": "train" if k < 60 else "val"}} for k in range(100)
    ]
    splits, found = assign(windows)
    assert {splits[f"w{k}"] for k in range(60)} == {"train"}
    assert {splits[f"w{k}"] for k in range(60, 100)} == {"val", "test"}
    assert "val divided into val and test" in found.report["strategy"]


def test_declared_train_and_test_divide_test() -> None:
    windows = [
        {"name": f"w{k}", "options": {"split": "train" if k < 60 else "test"}} for k in range(100)
    ]
    splits, _ = assign(windows)
    assert {splits[f"w{k}"] for k in range(60, 100)} == {"val", "test"}


def test_groups_named_after_splits_are_splits() -> None:
    windows = [
        {"name": f"{group}{k}", "group": group}
        for group in ("train", "valid", "test")
        for k in range(4)
    ]
    splits, _ = assign(windows)
    expected = {"train": "train", "valid": "val", "test": "test"}
    assert all(split == expected[name[:-1]] for name, split in splits.items())


def test_an_unknown_group_does_not_become_train() -> None:
    windows = [{"name": f"{g}{k}", "group": g} for g in ("train", "val", "extra") for k in range(4)]
    splits, found = assign(windows)
    assert {splits[f"extra{k}"] for k in range(4)} == {"none"}
    assert found.report["left_out"] == {"no split declared by group names": 4}


def test_model_yaml_selects_windows_and_splits() -> None:
    config = make_config(
        {
            "train": SplitSelector(groups=("g",), tags={"fold": "a"}),
            "val": SplitSelector(groups=("g",), tags={"fold": "b"}),
            "test": SplitSelector(groups=("g",), tags={"fold": "b"}),
        }
    )
    windows = [{"name": f"w{k}", "options": {"fold": "aabc"[k % 4]}} for k in range(80)]
    splits, found = assign(windows, config)
    assert {splits[f"w{k}"] for k in range(80) if k % 4 < 2} == {"train"}
    assert {splits[f"w{k}"] for k in range(80) if k % 4 == 2} == {"val", "test"}
    assert {splits[f"w{k}"] for k in range(80) if k % 4 == 3} == {"none"}
    assert found.report["left_out"] == {"not selected by model.yaml": 20}


def test_an_empty_tag_value_means_the_key_is_present() -> None:
    selector = SplitSelector(tags={"oep_eval": ""})
    assert selector.selects("g", "w", {"oep_eval": "anything"})
    assert not selector.selects("g", "w", {})


def with_options(*options: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": f"w{k}", "options": o} for k, o in enumerate(options)]


def test_splits_of_an_earlier_ingest_stay_before_any_other_rule() -> None:
    windows = with_options(
        {"eval_split": "test", "split": "train"},
        {"eval_split": "train", "split": "val"},
        {"eval_split": "val", "split": "train"},
        {"split": "train"},
    )
    config = make_config(
        {"train": SplitSelector(tags={"split": "train"}), "val": SplitSelector(groups=("none",))}
    )
    splits, found = assign(windows, config)
    assert splits == {"w0": "test", "w1": "train", "w2": "val", "w3": "none"}
    assert found.report["strategy"] == "declared by window option eval_split"


def test_kept_splits_are_not_divided() -> None:
    windows = with_options(*[{"eval_split": "train" if k < 20 else "val"} for k in range(40)])
    splits, _ = assign(windows)
    assert [splits[f"w{k}"] for k in range(40)] == ["train"] * 20 + ["val"] * 20


@pytest.mark.parametrize("declared", [True, False])
def test_a_few_windows_keep_their_split_beside_what_goes_for_the_others(declared: bool) -> None:
    options: list[dict[str, Any]] = [{"eval_split": "val"} for _ in range(10)]
    options += [{"split": "train" if k < 60 else "val"} if declared else {} for k in range(90)]
    splits, _ = assign(with_options(*options))
    assert {splits[f"w{k}"] for k in range(10)} == {"val"}
    assert set(splits.values()) == {"train", "val", "test"}


def test_another_strategy_asks_for_other_splits() -> None:
    windows = with_options(*[{"eval_split": "train" if k < 90 else "val"} for k in range(100)])
    splits, _ = assign(windows, splits={"strategy": "random"})
    assert len({splits[f"w{k}"] for k in range(90)}) == 3


def test_num_samples_takes_the_first_windows_in_rslearn_s_order() -> None:
    windows = [*named(60)]
    windows[0]["status"] = "invalid"
    config = make_config(
        {
            "train": SplitSelector(num_samples=20),
            "val": SplitSelector(num_samples=35),
            "test": SplitSelector(groups=("none",)),
        }
    )
    splits, found = assign(windows, config)
    order = sorted((w["name"] for w in windows), key=lambda n: sha256(n.encode()).hexdigest())
    wanted = dict.fromkeys(order[:20], "train") | {name: splits[name] for name in order[20:35]}
    wanted["w0000"] = "none"
    assert {name: split for name, split in splits.items() if split != "none"} == {
        name: split for name, split in wanted.items() if split != "none"
    }
    assert {splits[name] for name in order[20:35]} <= {"val", "test", "none"}
    assert found.report["left_out"]["beyond num_samples of model.yaml"] >= 24


def test_invalid_windows_are_in_no_split() -> None:
    windows = [
        {**w, "status": "invalid" if k % 5 == 0 else "valid"} for k, w in enumerate(named(50))
    ]
    splits, found = assign(windows)
    assert all(splits[f"w{k:04d}"] == "none" for k in range(0, 50, 5))
    assert found.report["left_out"] == {"invalid": 10}


def test_stratified_gives_rare_classes_to_every_split() -> None:
    windows = [{**w, "class": 2 if k < 4 else k % 2} for k, w in enumerate(named(200))]
    splits, found = assign(windows, splits={"strategy": "stratified"})
    assert {splits[f"w{k:04d}"] for k in range(4)} == {"train", "val", "test"}
    assert found.report["classes_missing"] == {"train": [], "val": [], "test": []}


def test_spatial_keeps_blocks_together_and_a_buffer_free() -> None:
    rng = np.random.default_rng(0)
    windows = [
        {**w, "place": tuple(rng.uniform(0, 0.5, 2))} for w in named(400)
    ]  # half a degree: 55 km
    policy = {"strategy": "spatial", "block_size_m": 5000, "buffer_m": 500, "ratios": [60, 20, 20]}
    config = make_config()
    index = make_index(windows, config)
    splits, found = assign(windows, config, splits=policy)
    shapes = shapely.from_wkb(index.table["geometry"].to_pylist())
    centres = equal_area(shapely.get_coordinates(shapely.centroid(shapes)))
    sides = found.splits
    by_block: dict[tuple[int, ...], set[str]] = {}
    for centre, side in zip(centres, sides, strict=True):
        if side != "none":
            by_block.setdefault(tuple((centre // 5000).astype(int)), set()).add(side)
    assert all(len(found_sides) == 1 for found_sides in by_block.values())
    held_out = shapes[np.isin(sides, ["val", "test"])]
    train = shapes[sides == "train"]
    degree_m = 110_574  # near the equator, and at least
    assert shapely.distance(held_out[:, None], train[None]).min() * degree_m > 0.99 * 500
    assert set(splits.values()) == {"train", "val", "test", "none"}


def test_max_samples_keeps_each_class_in_proportion() -> None:
    windows = [{**w, "class": 0 if k < 800 else 1} for k, w in enumerate(named(1000))]
    splits, _ = assign(windows, max_samples=50)
    kept = [name for name, split in splits.items() if split != "none"]
    assert len(kept) == 50
    assert sum(int(name[1:]) < 800 for name in kept) == 40


def test_max_samples_are_nested() -> None:
    few, _ = assign(named(300), max_samples=30)
    more, _ = assign(named(300), max_samples=60)
    assert {n for n, s in few.items() if s != "none"} <= {n for n, s in more.items() if s != "none"}


def test_an_empty_train_split_is_an_error() -> None:
    with pytest.raises(SplitError, match=r"train split is empty \(0 of 30 windows\); check splits"):
        assign(named(30), splits={"ratios": [0, 50, 50]})


def test_selecting_nothing_is_an_error() -> None:
    config = make_config({"train": SplitSelector(groups=("elsewhere",))})
    with pytest.raises(SplitError, match="no valid window is selected"):
        assign(named(5), config)


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ([80, 10], "needs three numbers"),
        ([80, 10, 20], "add up to 110"),
        ([1.2, -0.1, -0.1], "negative"),
    ],
)
def test_ratios_that_do_not_add_up_are_refused(ratios: list[float], message: str) -> None:
    with pytest.raises(Exception, match=message):
        assign(named(5), splits={"ratios": ratios})


def test_a_share_of_zero_is_not_inherited() -> None:
    assert inherited((0.7, 0.3, 0.0)) == (0.7, 0.15, 0.15)
    assert inherited((0.8, 0.0, 0.2)) == (0.8, 0.1, 0.1)
    assert inherited((1.0, 0.0, 0.0)) is None  # the policy's own
    assert inherited((0.7, 0.2, 0.1)) == (0.7, 0.2, 0.1)
    assert inherited(None) is None
