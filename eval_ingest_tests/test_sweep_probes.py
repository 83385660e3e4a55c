"""Probes: kNN against a loop, the batched trainer against torch's own, signal and chance."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval_ingest.core.task import Task, TaskKind
from eval_ingest.errors import SweepError
from eval_ingest.sweep import probes
from eval_ingest.sweep.embed import Embedded
from eval_ingest.sweep.knn import knn_votes
from eval_ingest.sweep.probes import run_knn, run_linear
from eval_ingest.sweep.rows import Rows
from eval_ingest.sweep.trainer import Head, Trainer, scheduled
from eval_ingest.sweep.upsampling import Grid

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def task_of(kind: TaskKind, classes: int = 3) -> Task:
    return Task(kind=kind, num_classes=classes if kind.has_classes else 1)


def planted(
    kind: TaskKind, n: int, seed: int, *, classes: int = 3, width: int = 12, noise: float = 0.3
) -> Embedded:
    """Windows of two rows with four labels each, or of one row with one; features tell labels."""
    rng = np.random.default_rng(seed)
    per_window, labels = (2, 4) if kind.per_pixel else (1, 1)
    mixing = np.random.default_rng(99).normal(size=(classes, labels, width))
    if kind.has_classes:
        target = rng.integers(0, classes, (n * per_window, labels))
        clean = mixing[target, np.arange(labels)].sum(1)
        target = target.astype(np.int16)
    else:
        latent = rng.normal(0, 1, (n * per_window, 1))
        clean = latent @ mixing[0, :1]
        target = latent
        if kind.per_pixel:
            grid = Grid(torch.arange(n * per_window), per_window, 1, 2)
            target = grid.upsample(torch.from_numpy(latent))[:, :, 0].numpy()
        target = (300 + 40 * target).astype(np.float32)
    features = (clean + rng.normal(0, noise, clean.shape)).astype(np.float32)
    ones = np.ones(n, np.int64)
    places = np.stack([per_window * np.arange(n), per_window * ones, per_window * ones, ones], 1)
    return Embedded(features, target, places, 0.0)


def shuffled(split: Embedded, seed: int = 5) -> Embedded:
    order = np.random.default_rng(seed).permutation(len(split.target))
    return Embedded(split.features, split.target[order], split.places, 0.0)


# --------------------------------------------------------------------------------------- kNN


def test_knn_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    train, queries = rng.normal(size=(70, 6)), rng.normal(size=(40, 6))
    labels = rng.integers(-1, 4, 70)
    expected = []
    for query in queries:
        similar = [
            (float(row @ query / np.linalg.norm(row) / np.linalg.norm(query)), int(label))
            for row, label in zip(train, labels, strict=True)
            if label != -1
        ]
        votes = np.zeros(4)
        for similarity, label in sorted(similar, reverse=True)[:20]:
            votes[label] += np.exp(similarity / 0.07)
        expected.append(votes.argmax())
    found = knn_votes(torch.tensor(train), torch.tensor(labels), torch.tensor(queries), 4, CPU)
    assert found.argmax(1).tolist() == expected


def test_knn_with_fewer_windows_than_neighbours_uses_all() -> None:
    train = torch.tensor([[1.0, 0], [0, 1]])
    found = knn_votes(train, torch.tensor([0, 1]), torch.tensor([[2.0, 1], [1, 3]]), 2, CPU)
    assert found.argmax(1).tolist() == [0, 1]


def test_knn_finds_a_planted_signal_and_none_in_shuffled_labels() -> None:
    kind = TaskKind.CLASSIFICATION
    train, test = planted(kind, 200, 0), planted(kind, 300, 1)
    found = run_knn(task_of(kind), Rows.of(train), Rows.of(test), Rows.of(test), CPU)
    assert found.test.primary > 0.95
    found = run_knn(task_of(kind), Rows.of(shuffled(train)), Rows.of(test), Rows.of(test), CPU)
    assert found.test.primary < 0.5  # chance is a third


# ------------------------------------------------------------------------------ linear probes


@pytest.mark.parametrize("kind", list(TaskKind))
def test_a_linear_probe_finds_a_planted_signal(kind: TaskKind) -> None:
    train, val, test = (Rows.of(planted(kind, n, seed)) for seed, n in enumerate((150, 40, 60)))
    found = run_linear(task_of(kind), train, val, test, CPU, seed=0)
    assert found.learning_rate in probes.LEARNING_RATES and found.epoch in (10, 20, 30, 40, 50)
    if kind.has_classes:
        assert found.test.scores()["accuracy"] > 0.9
    else:
        assert found.test.scores()["r2"] > 0.9
        assert found.test.scores()["rmse"] < 15  # in the labels' own units, of which std is 40


@pytest.mark.parametrize("kind", list(TaskKind))
def test_a_linear_probe_is_at_chance_on_shuffled_labels(kind: TaskKind) -> None:
    train, val, test = (
        Rows.of(shuffled(planted(kind, n, seed))) for seed, n in enumerate((150, 60, 150))
    )
    found = run_linear(task_of(kind), train, val, test, CPU, seed=0)
    if kind.has_classes:
        assert 0.2 < found.test.scores()["accuracy"] < 0.47
    else:
        assert found.test.scores()["r2"] < 0.1


def test_rows_without_any_label_change_nothing() -> None:
    kind = TaskKind.SEGMENTATION
    split = planted(kind, 40, 0)
    more = Embedded(
        np.concatenate([split.features, np.full((3, 12), 1e3, np.float32)]),
        np.concatenate([split.target, np.full((3, 4), -1, np.int16)]),
        np.concatenate([split.places, [[80, 3, 3, 1]]]),
        0.0,
    )
    val = Rows.of(planted(kind, 20, 1))
    one = run_linear(task_of(kind), Rows.of(split), val, val, CPU, seed=3)
    two = run_linear(task_of(kind), Rows.of(more), val, val, CPU, seed=3)
    assert np.array_equal(one.test.counts, two.test.counts)


def test_the_same_seed_gives_the_same_probe_and_another_one_another() -> None:
    kind = TaskKind.REGRESSION
    train, val = Rows.of(planted(kind, 40, 0)), Rows.of(planted(kind, 20, 1))
    found = [
        run_linear(task_of(kind), train, val, val, CPU, seed=seed).test.primary
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]


def test_a_rate_learns_the_same_alone_as_beside_others() -> None:
    kind = TaskKind.SCALAR_REGRESSION
    train = Rows.of(planted(kind, 60, 0))
    weights = []
    for rates, place in (((0.01,), 0), ((0.5, 0.01, 0.001), 1)):
        generator = torch.Generator().manual_seed(0)
        trained = Trainer(12, Head.of(task_of(kind), 1), rates, generator, CPU)
        for epoch in range(3):
            trained.train_epoch(train, epoch, 3, 32, generator)
        weights.append(trained.layer(place).weight)
    assert torch.allclose(*weights, rtol=1e-5, atol=1e-6)


class Upsampled(torch.nn.Module):
    """Bilinear upsampling by 2 and a shared 1 x 1 convolution; windows of 2 x 1 patches."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.upsample = torch.nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = torch.nn.Conv2d(width, outputs, kernel_size=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(R, C x labels of a patch), classes outermost."""
        patches = features.view(-1, 2, 1, features.shape[1]).permute(0, 3, 1, 2)
        pixels = self.conv(self.upsample(patches))
        by_patch = pixels.view(len(pixels), -1, 2, 2, 1, 2).permute(0, 2, 4, 1, 3, 5)
        return by_patch.reshape(len(features), -1)


def weighted_dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss of the existing code beside its cross-entropy, written with autograd."""
    known = (target != -1)[:, None]
    true = F.one_hot(target.clamp(min=0), logits.shape[1]).movedim(-1, 1) * known
    shares = logits.softmax(1) * known
    there = true.sum((0, 2)).float()
    dice = (2 * (shares * true).sum((0, 2)) + 1) / (shares.sum((0, 2)) + there + 1)
    weight = torch.where(there > 0, there.sum() / (len(there) * there), 1.0)
    return 1 - (weight / (weight.sum() + 1e-8) * dice).sum()


@pytest.mark.parametrize(
    ("kind", "upsampled", "dice"),
    [
        *((kind, False, False) for kind in TaskKind),
        (TaskKind.SEGMENTATION, True, False),
        (TaskKind.SEGMENTATION, False, True),
        (TaskKind.SEGMENTATION, True, True),
    ],
)
def test_a_training_step_is_that_of_torch(kind: TaskKind, upsampled: bool, dice: bool) -> None:
    """BatchNorm1d, Linear or Conv2d, cross_entropy, dice or MSE, and AdamW of torch itself."""
    task, rates, epochs = task_of(kind), (1e-3, 1e-1), 20
    split = planted(kind, 70, 0)
    target = split.target.copy()
    target[::5] = -1 if kind.has_classes else np.nan
    if not kind.has_classes:
        target = (target - 300) / 40
    rows = Rows.of(Embedded(split.features, target, split.places, 0.0))
    labels = rows.target.shape[1]
    head = Head.of(task, labels, upsampled, dice)
    assert head.upsampled == (upsampled or kind is TaskKind.REGRESSION)
    rows = rows.labelled(whole=head.upsampled)
    for place, rate in enumerate(rates):
        generator = torch.Generator().manual_seed(0)
        ours = Trainer(12, head, rates, generator, CPU)
        outputs = head.classes * head.labels
        last = Upsampled(12, outputs) if head.upsampled else torch.nn.Linear(12, outputs)
        affine = last.conv if isinstance(last, Upsampled) else last
        start = ours._affine[place]
        affine.weight.data = start[:-1].T.clone().view(affine.weight.shape)
        affine.bias.data = start[-1].clone()
        norm = torch.nn.Identity() if kind.per_pixel else torch.nn.BatchNorm1d(12)
        theirs = torch.nn.Sequential(norm, last)
        optimiser = torch.optim.AdamW(theirs.parameters(), lr=rate)
        for epoch in range(4, 7):  # past the warm-up
            same = torch.Generator().manual_seed(epoch)
            ours.train_epoch(rows, epoch, epochs, 32, same)
            same = torch.Generator().manual_seed(epoch)
            batches = torch.randperm(len(rows), generator=same).tensor_split(-(-len(rows) // 32))
            for i, windows in enumerate(batches):
                batch = rows.select(windows)
                found = theirs(batch.features)
                if kind.has_classes:
                    logits = found.view(len(batch.features), task.num_classes, labels)
                    loss = F.cross_entropy(logits, batch.target, ignore_index=-1)
                    loss = loss + weighted_dice(logits, batch.target) if dice else loss
                else:
                    valid = torch.isfinite(batch.target)
                    loss = (found[valid] - batch.target[valid]).square().mean()
                optimiser.param_groups[0]["lr"] = scheduled(rate, epoch + i / len(batches), epochs)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        theirs.eval()
        expected = theirs(rows.features).detach().view(len(rows.features), head.classes, labels)
        for some, given in ours.layer(place).outputs(rows, CPU):
            assert torch.allclose(given, expected[some], rtol=1e-3, atol=1e-4)


def test_windows_of_several_sizes_are_upsampled_each_by_its_own_grid() -> None:
    """Values and gradients against autograd through torch's own Upsample and Conv2d."""
    generator, patch = torch.Generator().manual_seed(0), 3
    sizes = torch.tensor([[2, 3], [1, 1], [4, 2], [2, 3], [1, 5]])
    count = sizes.prod(1)
    rows = Rows(
        torch.randn(int(count.sum()), 6, generator=generator),
        torch.zeros(int(count.sum()), patch**2),
        count,
        torch.arange(len(count)),
        grid=sizes,
    )
    conv = torch.nn.Conv2d(6, 2, 1)
    weight, bias = conv.weight.detach()[:, :, 0, 0].T.clone(), conv.bias.detach().clone()
    found = torch.full((len(rows.features), patch**2, 2), torch.nan)
    gradients = torch.zeros(len(rows.features), 2)
    wanted = torch.randn(found.shape, generator=generator)
    for grid in rows.grids(2, most=1):
        found[grid.rows] = grid.upsample(rows.features[grid.rows] @ weight + bias)
        gradients[grid.rows] = grid.gradient(wanted[grid.rows])
    upsample = torch.nn.Upsample(scale_factor=patch, mode="bilinear", align_corners=True)
    for first, (h, w) in zip(rows.first.tolist(), sizes.tolist(), strict=True):
        some = slice(first, first + h * w)
        pixels = conv(upsample(rows.features[some].view(1, h, w, 6).permute(0, 3, 1, 2)))
        by_patch = pixels[0].view(2, h, patch, w, patch).permute(1, 3, 2, 4, 0)
        by_patch = by_patch.reshape(h * w, patch**2, 2)
        assert torch.allclose(by_patch, found[some], atol=1e-5)
        conv.zero_grad()
        (by_patch * wanted[some]).sum().backward()
        assert torch.allclose(
            conv.weight.grad[:, :, 0, 0].T, rows.features[some].T @ gradients[some], atol=1e-4
        )


def test_an_area_under_a_curve_chooses_the_probe_where_it_is_the_metric() -> None:
    kind = TaskKind.SEGMENTATION
    train, val, test = (Rows.of(planted(kind, n, seed)) for seed, n in enumerate((50, 20, 30)))
    found = run_linear(task_of(kind), train, val, test, CPU, seed=0, epochs=10, metric="auroc")
    low, high = found.test.interval()
    assert found.test.primary == found.test.scores()["auroc"]
    assert 0.9 < low <= found.test.primary <= high


def test_the_schedule_warms_up_and_ends_at_its_minimum() -> None:
    assert scheduled(0.1, 0, 50) == 0
    assert scheduled(0.1, 2.5, 50) == pytest.approx(0.05)
    assert scheduled(0.1, 5, 50) == pytest.approx(0.1)
    assert scheduled(0.1, 27.5, 50) == pytest.approx((0.1 + 1e-5) / 2)
    assert scheduled(0.1, 50, 50) == pytest.approx(1e-5)


def test_selected_windows_keep_their_rows() -> None:
    features = np.arange(12, dtype=np.float32)[:, None]
    places = np.array([[7, 2], [0, 3], [9, 3], [3, 4]])  # in the order that batches were made in
    split = Embedded(features, features.astype(np.int16), places, 0.0)
    rows = Rows.of(split)
    assert rows.features[:, 0].tolist() == [7, 8, 0, 1, 2, 9, 10, 11, 3, 4, 5, 6]
    assert rows.windows.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    some = Rows.of(split, np.array([3, 0]))
    assert some.features[:, 0].tolist() == [3, 4, 5, 6, 7, 8]
    assert some.select(torch.tensor([1])).target[:, 0].tolist() == [7, 8]


def test_one_train_window_is_enough() -> None:
    kind = TaskKind.SCALAR_REGRESSION
    train, test = Rows.of(planted(kind, 1, 0)), Rows.of(planted(kind, 9, 1))
    assert np.isfinite(run_linear(task_of(kind), train, test, test, CPU, seed=0).test.primary)


def test_a_train_split_without_labels_is_refused() -> None:
    for kind, run in (
        (TaskKind.CLASSIFICATION, lambda *a: run_knn(*a, CPU)),
        (TaskKind.SEGMENTATION, lambda *a: run_linear(*a, CPU, seed=0)),
    ):
        split = planted(kind, 5, 0)
        empty = Embedded(split.features, np.full_like(split.target, -1), split.places, 0.0)
        rows = Rows.of(split)
        with pytest.raises(SweepError, match="no train window has a label"):
            run(task_of(kind), Rows.of(empty), rows, rows)
