"""Leakage: every planted neighbour, overlap and copy is found; auto splits make none."""

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_ingest.core.leakage import Leakage, find_leakage, standard_error
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.core.splits import assign_splits
from eval_ingest.errors import SplitError
from eval_ingest_tests.support.indexes import (
    SIDE_M,
    Window,
    given_splits,
    make_config,
    make_index,
    window,
)


def leaks(windows: list[Window], **arguments: Any) -> Leakage:
    index = make_index(windows)
    return find_leakage(index, given_splits(index, windows), **arguments)


def grid(side: int, step_m: float) -> list[Window]:
    return [
        window(f"w{k:05d}", (k % side) * step_m, (k // side) * step_m) for k in range(side * side)
    ]


# --------------------------------------------------------------------------------------- leakage


def test_a_held_out_window_that_overlaps_a_train_window_is_found_by_name() -> None:
    found = leaks(
        [
            window("a", split="train"),
            window("b", 320, 0, split="test"),
            window("c", 50_000, split="test"),
        ]
    ).splits["test"]
    assert found.windows == 2
    assert found.overlapping.count == 1
    assert found.overlapping.examples == ["g/b overlaps train g/a"]
    assert found.near.count == 0


def test_windows_that_only_touch_are_near_not_overlapping() -> None:
    found = leaks([window("a", split="train"), window("b", SIDE_M, split="val")]).splits["val"]
    assert found.overlapping.count == 0
    assert found.near.examples == ["g/b is near train g/a"]


@pytest.mark.parametrize(("gap_m", "near"), [(900, 1), (1100, 0)])
def test_near_is_measured_in_metres_between_outlines(gap_m: float, near: int) -> None:
    windows = [window("a", split="train"), window("b", SIDE_M + gap_m, split="test")]
    assert leaks(windows, distance_m=1000).splits["test"].near.count == near


def test_the_same_ground_at_another_time_is_reported_apart() -> None:
    windows = [
        window("a", split="train", time=("2020-01-01", "2021-01-01")),
        window("b", split="test", time=("2021-01-01", "2022-01-01")),
        window("c", 9000, split="train", time=("2020-01-01", "2021-01-01")),
        window("d", 9000, split="test", time=("2020-12-01", "2022-01-01")),
    ]
    found = leaks(windows).splits["test"]
    assert found.overlapping.examples == ["g/d overlaps train g/c"]
    assert found.overlapping_other_time.examples == ["g/b overlaps, at another time, train g/a"]
    assert found.near.count == 0


def test_a_window_of_unknown_time_may_be_of_any_time() -> None:
    windows = [window("a", split="train"), window("b", split="test", time=(None, None))]
    assert leaks(windows).splits["test"].overlapping.count == 1


def test_equal_pixels_in_two_splits_are_found_wherever_they_lie() -> None:
    windows = [
        window("a", split="train", digest="same"),
        window("b", 80_000, split="test", digest="same"),
        window("c", 90_000, split="val", digest="other"),
    ]
    found = leaks(windows)
    assert found.splits["test"].duplicated.examples == ["g/b has the pixels of g/a (train)"]
    assert found.splits["val"].duplicated.count == 0


def test_windows_in_no_split_and_without_outline_leak_nothing() -> None:
    windows = [
        window("a", split="none", digest="same"),
        window("b", split="test", digest="same"),
        window("c", split="train", unplaced=True),
        window("d", split="test", unplaced=True, digest=None),
    ]
    found = leaks(windows).splits["test"]
    assert found.windows == 2
    assert (found.overlapping.count, found.near.count, found.duplicated.count) == (0, 0, 0)


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 199), min_size=1, max_size=40))
def test_every_planted_overlap_and_no_other_is_found(planted: set[int]) -> None:
    windows = [window(f"w{k:03d}", k * 5000.0, split="train") for k in range(200)]
    windows += [window(f"x{k:03d}", k * 5000.0 + 200, 100, split="test") for k in planted]
    windows += [window(f"y{k:03d}", k * 5000.0, 90_000, split="test") for k in range(20)]
    found = leaks(windows).splits["test"]
    assert found.overlapping.count == len(planted)
    assert found.near.count == 0


DAYS = st.one_of(st.none(), st.integers(1, 6))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["train", "test"]), st.integers(0, 5), DAYS, DAYS),
        min_size=2,
        max_size=25,
    )
)
def test_overlaps_in_space_and_time_are_those_of_a_loop(
    drawn: list[tuple[str, int, int | None, int | None]],
) -> None:
    windows = []
    for k, (split, place, one, other) in enumerate(drawn):
        ends = sorted([one, other]) if one and other else [one, other]
        times = tuple(end and f"2024-01-0{end}" for end in ends)
        windows.append(window(f"w{k:02d}", place * 500.0, split=split, time=times))
    same, apart = set(), set()
    for w in windows:
        trained = [t for t in windows if t["split"] == "train" and abs(t["x"] - w["x"]) < SIDE_M]
        if w["split"] == "test" and trained:
            together = any(share_a_time(w["time"], t["time"]) for t in trained)
            (same if together else apart).add(w["name"])
    found = leaks(windows, distance_m=0).splits["test"]
    assert (found.overlapping.count, found.overlapping_other_time.count) == (len(same), len(apart))


def share_a_time(a: tuple[str | None, ...], b: tuple[str | None, ...]) -> bool:
    """Ranges that share only an end don't, but a moment does with what it is at the end of."""
    start = max((t[0] for t in (a, b) if t[0]), default=None)
    end = min((t[1] for t in (a, b) if t[1]), default=None)
    if start is None or end is None:
        return True
    moment = any(t[0] is not None and t[0] == t[1] for t in (a, b))
    return start <= end if moment else start < end


def planted() -> list[Window]:
    """A grid of windows 3 km apart, to which neighbours, overlapping ones and copies are added."""
    windows = grid(30, 3000.0)
    for k in range(0, 900, 30):
        w = windows[k]
        windows.append(window(f"near{k}", w["x"] + SIDE_M + 300, w["y"]))
        windows.append(window(f"over{k}", w["x"] + 200, w["y"] + 100))
        windows.append(window(f"copy{k}", w["x"], w["y"] + 200_000, digest=w["name"]))
    return windows


def test_every_planted_neighbour_overlap_and_copy_is_found() -> None:
    windows = [{**w, "split": "test" if w["name"][0] in "noc" else "train"} for w in planted()]
    found = leaks(windows).splits["test"]
    assert (found.near.count, found.overlapping.count, found.duplicated.count) == (30, 30, 30)


@pytest.mark.parametrize("buffer_m", [0, 1000])
def test_a_spatial_split_has_none_of_them(buffer_m: float) -> None:
    windows = planted()
    index = make_index(windows)
    # Blocks so small that most of what is planted lies in another one.
    policy = {"strategy": "spatial", "buffer_m": buffer_m, "block_size_m": 500}
    spec = DatasetSpec.parse({"name": "d", "source": "x", "splits": policy}, "test")
    assignment = assign_splits(index, make_config(), spec, "fp")
    assert min(assignment.counts().values()) > 50
    close = "within 1000 m of" if buffer_m else "overlaps"
    left_out = assignment.report["left_out"]
    assert left_out[f"{close} a val or test window"] > 0
    assert left_out["has the pixels of a val or test window"] > 0
    for found in find_leakage(index, assignment, distance_m=1000).splits.values():
        assert found.overlapping.count == 0
        assert found.duplicated.count == 0
        assert found.near.count == 0 or not buffer_m


def test_a_spatial_split_of_windows_side_by_side_leaves_none_out_without_a_buffer() -> None:
    policy = {"strategy": "spatial", "block_size_m": 3200}
    assert "none" not in assigned(grid(30, SIDE_M), **policy).values()


def test_a_spatial_split_leaves_out_windows_of_unknown_place() -> None:
    windows = [{**w, "unplaced": k == 7} for k, w in enumerate(grid(20, 5000.0))]
    assert assigned(windows, strategy="spatial")["w00007"] == "none"


def test_blocks_that_hold_everything_are_told_from_ratios_that_are_wrong() -> None:
    for seed in range(20):
        try:
            assigned(grid(3, 700.0), strategy="spatial", block_size_m=1e6, seed=seed)
        except SplitError as error:
            assert "block_size_m" in str(error)
            return
    raise AssertionError("no seed puts the one block into val or test")


def test_one_place_taken_thousands_of_times_costs_no_pairs() -> None:
    windows = [window(f"w{k:05d}", split="test" if k % 4 == 0 else "train") for k in range(4000)]
    index = make_index(windows)
    assignment = given_splits(index, windows)
    tracemalloc.start()
    found = find_leakage(index, assignment).splits["test"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.overlapping.count == 1000
    assert peak < 20e6  # three million pairs would be 24 MB for one of their columns


def test_a_larger_split_has_a_smaller_standard_error() -> None:
    assert standard_error(100) == 0.05
    assert standard_error(400) == 0.025


# --------------------------------------------------------------------- auto splits and overlap


def assigned(windows: list[Window], **splits: Any) -> dict[str, str]:
    index = make_index(windows)
    spec = DatasetSpec.parse({"name": "d", "source": "x", "splits": splits}, "test")
    found = assign_splits(index, make_config(), spec, "fp")
    return dict(zip(index.names, found.splits.tolist(), strict=True))


def pairs_of_overlapping(count: int) -> list[Window]:
    return [window(f"w{k:04d}", (k // 2) * 5000.0 + (k % 2) * 300) for k in range(count)]


@pytest.mark.parametrize("strategy", ["auto", "random", "stratified"])
def test_overlapping_windows_get_into_the_same_split(strategy: str) -> None:
    splits = assigned(pairs_of_overlapping(400), strategy=strategy)
    assert set(splits.values()) == {"train", "val", "test"}
    assert all(splits[f"w{k:04d}"] == splits[f"w{k + 1:04d}"] for k in range(0, 400, 2))


def test_windows_joined_through_others_get_into_the_same_split() -> None:
    far = [window(f"w{k:04d}", k * 5000.0, 50_000) for k in range(300)]
    for seed in range(5):
        chain = [window(f"c{k}", k * 400.0) for k in range(6)]
        splits = assigned(far + chain, seed=seed)
        assert len({splits[f"c{k}"] for k in range(6)}) == 1


def test_the_same_site_at_other_times_stays_in_one_split() -> None:
    windows = [
        window(f"w{k:04d}", (k // 4) * 5000.0, time=(f"202{k % 4}-01-01", f"202{k % 4}-12-31"))
        for k in range(400)
    ]
    splits = assigned(windows)
    assert all(len({splits[f"w{k + j:04d}"] for j in range(4)}) == 1 for k in range(0, 400, 4))


def test_windows_that_only_touch_are_split_one_by_one() -> None:
    alone = [window(f"w{k:05d}", k * 5000.0) for k in range(400)]
    assert assigned(grid(20, SIDE_M)) == assigned(alone)


def test_a_new_window_moves_only_those_that_it_overlaps() -> None:
    windows = pairs_of_overlapping(400)
    before = assigned(windows)
    # Named before all others, it becomes the one by which its neighbours are hashed.
    bridge = window("a", 100.0)
    after = assigned([*windows, bridge])
    assert after["w0000"] == after["w0001"] == after["a"]
    moved = {name for name, split in before.items() if after[name] != split}
    assert moved <= {"w0000", "w0001"}


def overlap_share(windows: list[Window], splits: dict[str, str]) -> float:
    found = leaks([{**w, "split": splits[w["name"]]} for w in windows]).splits["test"]
    return found.overlapping.count / found.windows


def test_where_everything_hangs_together_blocks_are_split() -> None:
    windows = grid(40, 500.0)
    splits = assigned(windows, block_size_m=4000)
    assert set(splits.values()) == {"train", "val", "test"}
    one_by_one = assigned([{**w, "unplaced": True} for w in windows])
    assert overlap_share(windows, splits) < 0.6
    assert overlap_share(windows, one_by_one) > 0.95


@pytest.mark.parametrize("strategy", ["auto", "stratified"])
def test_windows_of_equal_pixels_get_into_the_same_split(strategy: str) -> None:
    windows = [window(f"w{k:04d}", k * 5000.0, digest=f"{k // 2}") for k in range(400)]
    splits = assigned(windows, strategy=strategy)
    assert set(splits.values()) == {"train", "val", "test"}
    assert all(splits[f"w{k:04d}"] == splits[f"w{k + 1:04d}"] for k in range(0, 400, 2))


def test_copies_stay_together_where_blocks_are_split() -> None:
    windows = grid(40, 500.0)
    for k in range(100):
        windows[k]["digest"] = windows[-1 - k]["digest"] = f"copy {k}"
    splits = assigned(windows, block_size_m=4000)
    assert set(splits.values()) == {"train", "val", "test"}
    pairs = [(windows[k]["name"], windows[-1 - k]["name"]) for k in range(100)]
    assert all(splits[one] == splits[other] for one, other in pairs)


def test_a_rare_class_of_overlapping_windows_moves_as_a_whole() -> None:
    windows = [{**w, "class": int(k < 6)} for k, w in enumerate(pairs_of_overlapping(400))]
    for seed in range(10):
        splits = assigned(windows, strategy="stratified", seed=seed)
        assert {splits[f"w{k:04d}"] for k in range(6)} == {"train", "val", "test"}
        assert all(splits[f"w{k:04d}"] == splits[f"w{k + 1:04d}"] for k in range(0, 400, 2))


@pytest.mark.parametrize("step_m", [0.0, 1.0])
def test_windows_all_at_one_place_are_still_divided(step_m: float) -> None:
    splits = list(assigned(grid(20, step_m)).values())
    assert splits.count("train") > 250
    assert min(splits.count("val"), splits.count("test")) > 10


def test_windows_without_outline_are_split_by_their_names() -> None:
    alone = [window(f"w{k:05d}", k * 5000.0) for k in range(100)]
    unplaced = [{**w, "unplaced": k % 3 == 0} for k, w in enumerate(alone)]
    assert assigned(unplaced) == assigned(alone)
