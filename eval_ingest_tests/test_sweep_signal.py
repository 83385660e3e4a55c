"""Signal: planted strengths come out in their order, shuffled labels as none, formulas as known."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import eval_ingest
from eval_ingest import cli
from eval_ingest.core import signal as core
from eval_ingest.core.signal import Signal
from eval_ingest.defs import checks
from eval_ingest.errors import SweepError, UnknownDatasetError
from eval_ingest.report.tables import facts
from eval_ingest.report.view import open_view
from eval_ingest.store.registry import read_registry, require_metadata
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.sweep.encoders.olmoearth import weights_at_hand
from eval_ingest.sweep.signal import Signals
from eval_ingest.sweep.suite import Suite
from eval_ingest_tests.support import factories
from eval_ingest_tests.support.fake_evals import write_fake

KINDS = ("classification", "segmentation", "regression", "scalar_regression")
SHUFFLED = (0.0, 0.5, 1.0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # others' threads are waited for by spinning
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planted")
    for kind in KINDS:
        for part in SHUFFLED:
            name = f"{kind}_{100 * part:.0f}"
            write_fake(root, name, kind, counts=(48, 24, 48), shuffled=part)
    return root


def measured(name: str, root: Path, **arguments: Any) -> Signal:
    """The signal of one dataset, which is not kept."""
    return eval_ingest.signal(name, root=root, keep=False, **arguments)[name]


@pytest.mark.parametrize("kind", KINDS)
def test_planted_strengths_come_out_in_their_order_and_shuffled_labels_as_none(
    kind: str, root: Path
) -> None:
    found = [measured(f"{kind}_{100 * part:.0f}", root) for part in SHUFFLED]
    strong, half, none = found
    assert strong.gap_in_errors > half.gap_in_errors > none.gap_in_errors
    assert strong.gap > half.gap > none.gap
    assert strong.verdict in ("good", "saturated") and strong.gap_in_errors > 10
    assert none.verdict == "none" and none.train_windows is None
    # What a split can't show is less where there is more to be seen.
    assert strong.smallest_difference < strong.gap
    assert [level.name for level in strong.levels] == [
        "constant", "noise", "pixels with noise 4", "pixels with noise 1", "pixels", "random",
    ]  # fmt: skip
    assert all(step > 0 for step in strong.steps) and strong.val_ranks_as_test > 0.5
    assert strong.train_windows in (8, 12, 24, 48) and strong.test_windows in (8, 12, 24, 48)


def test_a_signal_is_the_same_every_time(root: Path) -> None:
    one, two = (measured("classification_50", root) for _ in range(2))
    assert one.model_copy(update={"seconds": two.seconds}) == two


def test_a_signal_is_kept_and_told_wherever_the_dataset_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, root = (
        factories.vector_classification(tmp_path / "source"),
        EvalRoot(tmp_path / "root"),
    )
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root.address))
    monkeypatch.setenv("EVAL_INGEST_CATALOG", str(tmp_path / "catalog"))
    ingest = ["ingest", "--name", "crops", "--source", str(source)]
    assert cli.main(ingest) == 0
    told = checks.result(root, require_metadata(root, "crops"), checks.SIGNAL)
    assert told.passed and "not measured yet" in told.text
    assert cli.main(["signal", "--name", "crops"]) == 0
    assert "standard errors above those that know" in capsys.readouterr().out
    for again in (False, True):
        assert not again or cli.main(ingest) == 0  # nothing to do: it stays
        metadata = require_metadata(root, "crops")
        signal = Signal.of(metadata.signal)
        assert signal is not None and signal.n_test == metadata.splits["test"].count
        entry = read_registry(root)["crops"]["signal"]
        assert entry["gap_in_errors"] == signal.gap_in_errors
    capsys.readouterr()
    assert cli.main(["info", "--name", "crops"]) == 0
    assert signal.lines()[1].split(";")[0].strip() in " ".join(capsys.readouterr().out.split())
    assert signal.verdict in dict(facts(open_view(root, "crops")))["signal"]
    for verdict, passes in (("none", False), ("good", True)):
        kept = {**metadata.signal, "verdict": verdict}
        judged = metadata.model_copy(update={"signal": kept})
        assert checks.result(root, judged, checks.SIGNAL).passed == passes


def test_all_proposes_a_suite_within_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    write_fake(root, "strong", "classification", counts=(48, 24, 48))
    write_fake(root, "nothing", "classification", counts=(48, 24, 48), shuffled=1)
    write_fake(root, "untested", "classification", counts=(48, 24, 0))
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    path = tmp_path / "suites" / "proposed.yaml"
    assert cli.main(["signal", "--all", "--budget", "100", "--suite", str(path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["suite"] == ["strong"] and told["signal"]["nothing"]["verdict"] == "none"
    assert "the test split has no windows" in told["failures"]["untested"]
    suite = Suite.load(path)
    assert (suite.datasets, suite.split) == (("strong",), "val")
    assert suite.max_train_samples == told["signal"]["strong"]["train_windows"]


def test_it_is_called_from_python_as_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, part in (("strong", 0.0), ("nothing", 1.0)):
        write_fake(tmp_path, name, "classification", counts=(24, 16, 24), shuffled=part)
    alone = eval_ingest.signal("strong", root=tmp_path, encoders=[], keep=False)
    assert list(alone) == ["strong"] and alone.suite == [] and "datasets:" not in repr(alone)
    found = eval_ingest.signal(root=tmp_path, encoders=[], keep=False)
    assert sorted(found) == ["nothing", "strong"] and found.suite == ["strong"]
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path))
    assert cli.main(["signal", "--all", "--encoder", "random"]) == 0
    printed = capsys.readouterr().out
    assert "strong: signal: " in printed and "datasets: [strong]" in printed
    with pytest.raises(UnknownDatasetError, match="strong"):
        eval_ingest.signal(["strong", "stron"], root=tmp_path)
    with pytest.raises(SweepError, match="no dataset is ingested under"):
        eval_ingest.signal(root=tmp_path / "nowhere")


def test_a_suite_of_names_that_yaml_takes_for_other_things_can_be_read(tmp_path: Path) -> None:
    names = ["2024", "007", "1e3", "no", "null", "tolbi-crops", "2024-01-01", "0x1f"]
    known = Signal.model_construct(seconds=1.0, train_windows=None)
    path = tmp_path / "suite.yaml"
    path.write_text(Signals(dict.fromkeys(names, known), {}, names).suite_text)
    assert Suite.load(path).datasets == tuple(names)
    assert "tolbi-crops, " in path.read_text()


def test_a_dataset_without_test_windows_says_so(tmp_path: Path) -> None:
    write_fake(tmp_path, "one", "classification", counts=(9, 9, 0))
    with pytest.raises(SweepError, match="the test split has no windows"):
        measured("one", tmp_path)


def test_of_large_splits_some_windows_are_used_and_fewer_than_these_tried(tmp_path: Path) -> None:
    write_fake(tmp_path, "one", "classification", counts=(200, 80, 160))
    few = measured("one", tmp_path, most_windows=32)
    more = measured("one", tmp_path, most_windows=160)
    assert (few.n_train, few.n_test, more.n_train, more.n_test) == (32, 32, 160, 160)
    assert few.train_windows in (8, 16) and more.train_windows in (20, 40)
    # The smallest difference is that of all windows, however few are used.
    assert few.smallest_difference == pytest.approx(more.smallest_difference, rel=0.6)


def test_what_can_not_be_measured_says_so_at_once(tmp_path: Path) -> None:
    write_fake(tmp_path, "one", "classification", counts=(9, 9, 9))
    with pytest.raises(SweepError, match="3 windows tell nothing; a signal needs 8 or more"):
        measured("one", tmp_path, most_windows=3)
    with pytest.raises(SweepError, match="no encoder 'pixls'"):
        measured("one", tmp_path, encoders=["pixls"])


def test_pretrained_weights_are_used_where_they_lie_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import olmoearth_pretrain_minimal as package
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert not weights_at_hand("olmoearth:nano")
    repository = package.ModelID.OLMOEARTH_V1_2_NANO.repo_id()
    folder = tmp_path / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "weights.pth").write_bytes(b"")
    assert weights_at_hand("olmoearth:nano") and not weights_at_hand("olmoearth:base")


# ---------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_scipy_s(seed: int) -> None:
    one, other = np.random.default_rng(seed).integers(0, 5, (2, 9)).tolist()
    assert core.tau_b(one, other) == pytest.approx(stats.kendalltau(one, other).statistic)
    assert np.isnan(core.tau_b([1, 1], [1, 2]))


def test_standard_errors_are_those_of_paired_differences() -> None:
    """Of means of N numbers: the root of var(a - b) / N, not of var(a) / N + var(b) / N."""
    rng = np.random.default_rng(0)
    common, n = rng.normal(size=200), 200
    values = np.stack([common + rng.normal(0, 0.1, n), common + rng.normal(0, 0.1, n)])
    times = rng.multinomial(n, np.full(n, 1 / n), size=4000)
    errors = core.standard_errors(values @ times.T / n, values.mean(1), n)
    expected = np.std(values[0] - values[1]) / np.sqrt(n)
    assert errors[0, 1] == pytest.approx(expected, rel=0.05) and errors[0, 0] == 0


def test_few_windows_that_all_say_the_same_are_no_proof() -> None:
    same = np.array([[0.0] * 50, [1.0] * 50])  # whatever is redrawn
    errors = [core.standard_errors(same, same[:, 0], n)[0, 1] for n in (2, 3, 40)]
    assert 1 / errors[1] < core.NO_SIGNAL < 1 / errors[2] and errors[0] == 1
    assert np.isnan(core.smallest_difference([0, 0], 3, 3))


def test_a_difference_as_large_as_the_smallest_is_shown_four_times_in_five() -> None:
    rng, n = np.random.default_rng(1), 100
    smallest = core.smallest_difference([1 / np.sqrt(n)], n, n)
    found = rng.normal(smallest, 1 / np.sqrt(n), 20_000)
    assert (found > core.TOLD_APART / np.sqrt(n)).mean() == pytest.approx(0.8, abs=0.01)
    assert core.smallest_difference([0.1], n, 4 * n) == pytest.approx(smallest / 2)


def test_fewest_windows_are_those_that_still_rank_alike() -> None:
    values = np.stack([np.zeros(256), np.ones(256) + np.tile([8.0, -8], 128)])
    clear, noisy = values.copy(), values
    clear[1] = 1

    def of(values: np.ndarray) -> int | None:
        return core.fewest_test([(1, 0)], 256, lambda times: values @ times.T / times.sum(1))

    assert of(clear) == 8 and of(noisy) in (128, 256)
    assert core.fewest_test([], 256, lambda times: values) is None
    ranks = {8: np.array([2.0, 1]), 16: np.array([1.0, 2]), 32: np.array([1.0, 2])}
    assert core.fewest_train([(1, 0)], ranks) == 16


def test_a_suite_is_chosen_for_what_each_dataset_adds_and_costs() -> None:
    base = Signal(
        verdict="good", metric="miou", levels=[], gap=1, gap_in_errors=9, smallest_difference=0.1,
        headroom=1, val_ranks_as_test=1, steps=[0, 0], train_windows=8, test_windows=8, n_train=8,
        n_test=8, seconds=10,
    )  # fmt: skip
    found = {
        "first_pair": base.model_copy(update={"steps": [2.0, 0]}),
        "first_again": base.model_copy(update={"steps": [2.1, 0]}),
        "second_pair": base.model_copy(update={"steps": [0, 1.5]}),
        "dear": base.model_copy(update={"steps": [3.0, 3.0], "seconds": 500}),
        "none": base.model_copy(update={"steps": [9.0, 9.0], "verdict": "none"}),
    }
    assert core.propose(found, 25) == ["first_again", "second_pair"]
    assert core.propose(found, 10) == ["first_again"] and core.propose(found, 1) == []
    assert "dear" in core.propose(found, 1000) and "none" not in core.propose(found, 1000)
    assert core.propose({}, 10) == []


def test_verdicts() -> None:
    assert core.verdict_of(2.9, 1, 0.1, 1) == "none" == core.verdict_of(float("nan"), 1, 0.1, 1)
    assert core.verdict_of(9, 1, 0.1, 0.05) == "saturated"
    assert core.verdict_of(9, 1, 0.6, 1) == "weak"
    assert core.verdict_of(9, 1, 0.1, 1) == "good"
