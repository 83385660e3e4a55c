"""`eval-ingest signal`: how well a dataset tells models of known order apart.

The models: two that know nothing, a constant and noise; the pixels' statistics made worse by noise
in steps, and as they are; a random layer, OlmoEarth nano if its weights are at hand, and others
that are asked for. All are probed with few rates and epochs, on at most so many windows a split.
What follows from their scores is in core/signal.py.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval_ingest.core import signal as core
from eval_ingest.core.arguments import checked
from eval_ingest.core.entry import Metadata
from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.plain_yaml import load_whole_yaml
from eval_ingest.core.signal import Level, Signal
from eval_ingest.core.suite import ALL
from eval_ingest.core.task import Task, TaskKind
from eval_ingest.engine import Progress, no_progress
from eval_ingest.errors import EvalIngestError, StaleStageError, SweepError
from eval_ingest.loading import EvalDataset
from eval_ingest.report.printing import Printed
from eval_ingest.settings import Settings
from eval_ingest.store.registry import rebuild_registry, require_metadata, write_metadata
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.roots.open import open_root
from eval_ingest.sweep.embed import Embedded, embedded_batches, joined
from eval_ingest.sweep.encoders.olmoearth import weights_at_hand
from eval_ingest.sweep.encoders.registry import check_encoder, load_encoder
from eval_ingest.sweep.metrics import LOWER_IS_BETTER, Tally, number, primary_metric
from eval_ingest.sweep.probes import Probed, run_knn, run_linear, tallied
from eval_ingest.sweep.ranking import RANKING
from eval_ingest.sweep.rows import Rows
from eval_ingest.sweep.splits import OpenSplits, Splits, require_windows
from eval_ingest.sweep.suite import PATCH_SIZE, Suite, catalog_of, settings_of

MOST_WINDOWS = 256
BUDGET_S = 60.0
NOISE = (math.inf, 4.0, 1.0)
"""Standard deviations of the noise, in those of each feature; the first is noise alone."""
FRACTIONS = (0.125, 0.25, 0.5, 1.0)
RATES, EPOCHS = (1e-3, 1e-2, 1e-1), 10
REDRAWS = 400
SEED = 42

CONSTANT, PIXELS = "constant", "pixels"
PRETRAINED = "olmoearth:nano"
NULLS = 2
"""Models that know nothing come first: the constant, and noise alone."""


class Signals(Printed, dict[str, Signal]):
    """The signals of datasets by name, shown as `eval-ingest signal` shows them."""

    def __init__(
        self, found: Mapping[str, Signal], failures: Mapping[str, str], suite: Sequence[str]
    ) -> None:
        super().__init__(found)
        self.failures = dict(failures)
        """Datasets that couldn't be measured, and why."""
        self.suite = list(suite)
        """Of several datasets, those that together rank models best per second."""

    @property
    def suite_text(self) -> str:
        """The suite in YAML, with as few train windows as rank models alike; "" if none is."""
        if not self.suite:
            return ""
        seconds = sum(self[name].seconds for name in self.suite)
        fewest = [self[name].train_windows for name in self.suite]
        lines = [
            f"# evals that together rank simple models best per second: {seconds:.1f} s with "
            "`pixels`",
            f"datasets: [{', '.join(map(_in_yaml, self.suite))}]",
            "split: val",
        ]
        if all(fewest):
            lines.append(f"max_train_samples: {max(count or 0 for count in fewest)}")
        return "\n".join(lines) + "\n"

    @property
    def facts(self) -> dict[str, Any]:
        """What the command line prints as JSON."""
        return {
            "signal": {name: signal.model_dump(mode="json") for name, signal in self.items()},
            "failures": self.failures,
            "suite": self.suite,
        }

    def lines(self) -> list[str]:
        """What the command line prints."""
        lines = []
        for name, signal in self.items():
            first, *more = signal.lines()
            lines += [f"{name}: {first}", *more]
        lines += [f"{name}: not measured: {message}" for name, message in self.failures.items()]
        if self.suite:
            lines += ["", *self.suite_text.splitlines()]
        elif len(self) + len(self.failures) > 1:
            lines.append("no dataset that tells models apart fits the budget")
        return lines


def _in_yaml(name: str) -> str:
    """A dataset's name, quoted where YAML would take it for something else, such as 2024 or no."""
    return name if load_whole_yaml(name) == name else json.dumps(name)


@checked
def signal(
    names: str | Sequence[str] = ALL,
    *,
    root: str | Path | None = None,
    encoders: str | Sequence[str] | None = None,
    most_windows: int = MOST_WINDOWS,
    keep: bool = True,
    budget_s: float = BUDGET_S,
    progress: Progress = no_progress,
) -> Signals:
    """How well datasets tell models of known order apart, and which make a good suite.

    Args:
        names: a dataset, several, or "all" under the eval root.
        root: the eval root; default OLMOEARTH_EVAL_DATASETS.
        encoders: one or more models, of unknown order; default `random`, and OlmoEarth nano where
            its weights are at hand.
        most_windows: of each split that are used.
        keep: in metadata.json and registry.json, until the dataset is ingested anew.
        budget_s: seconds that the suite may take: `.suite`, in YAML `.suite_text`.
        progress: called with (what, done, total).

    Raises:
        UnknownDatasetError: a dataset isn't there; names the near ones.
        SweepError: the one that is asked for can't be measured (of several, `.failures` says why),
            nothing is ingested, or an argument is wrong.

    >>> signal("tolbi_crops")["tolbi_crops"].verdict                       # doctest: +SKIP
    'good'
    """
    if most_windows < core.FEWEST:
        raise SweepError(
            f"{most_windows} windows tell nothing; a signal needs {core.FEWEST} or more"
        )
    if isinstance(encoders, str):
        encoders = (encoders,)
    if encoders is None:
        encoders = ("random", *([PRETRAINED] if weights_at_hand(PRETRAINED) else []))
    for spec in encoders:
        check_encoder(spec)
    one = isinstance(names, str) and names != ALL
    suite = Suite().having(datasets=(names,) if isinstance(names, str) else tuple(names))
    settings = Settings.load(eval_root=root)
    eval_root, catalog = open_root(settings), catalog_of(settings)
    found: dict[str, Signal] = {}
    failures: dict[str, str] = {}
    for name in suite.checked(eval_root).datasets:
        try:
            metadata = require_metadata(eval_root, name)
            require_windows(metadata, "test")
            given = settings_of(name, metadata.spec.eval, catalog)
            measuring = _Measuring(eval_root, metadata, given, most_windows, progress)
            found[name] = measuring.signal(encoders)
            if keep:
                _keep(eval_root, metadata, found[name])
        except EvalIngestError as error:
            if one:
                raise
            failures[name] = str(error)
    return Signals(found, failures, [] if one else core.propose(found, budget_s))


def _keep(root: EvalRoot, metadata: Metadata, found: Signal) -> None:
    store = root.dataset(metadata.name)
    with store.hold(5.0, f"the signal of {metadata.name} is being written"):
        now = require_metadata(root, metadata.name)
        if now.fingerprint != metadata.fingerprint:
            why = "it was ingested anew while its signal was measured"
            raise StaleStageError(metadata.name, "registry_entry", why)
        write_metadata(store, now.model_copy(update={"signal": found.model_dump(mode="json")}))
        store.send()
    rebuild_registry(root)


@dataclass(frozen=True)
class _Measuring:
    """A dataset whose signal is being measured."""

    root: EvalRoot
    metadata: Metadata
    settings: EvalSettings
    most: int
    progress: Progress

    @property
    def _task(self) -> Task:
        return self.metadata.config.task

    @property
    def _metric(self) -> str:
        return primary_metric(self._task, self.settings)

    def signal(self, encoders: Sequence[str]) -> Signal:
        """All of it."""
        started = time.monotonic()
        pixels = self._embedded(PIXELS)
        probed = {PIXELS: self._probed(pixels)}
        seconds = time.monotonic() - started
        models = {_level_name(k): _noisy(pixels, k) for k in NOISE}
        models |= {PIXELS: pixels, **{spec: self._embedded(spec) for spec in encoders}}
        by_count: dict[int, NDArray[np.float64]] = {}
        for fraction in sorted(FRACTIONS):
            train = len(_drawn(pixels, fraction))
            if fraction == 1 or train >= core.FEWEST:
                known = probed if fraction == 1 else {}
                found = {CONSTANT: self._constant(pixels, fraction)} | {
                    name: known.get(name) or self._probed(splits, fraction)
                    for name, splits in models.items()
                }
                by_count[train] = np.array([self._utility(p.test) for p in found.values()])
        return self._judged(found, by_count, seconds)  # the last are of all train windows

    def _judged(
        self,
        probed: Mapping[str, Probed],
        by_count: Mapping[int, NDArray[np.float64]],
        seconds: float,
    ) -> Signal:
        n = len(next(iter(probed.values())).test.counts)
        val, test = (
            np.array([self._utility(getattr(p, split)) for p in probed.values()])
            for split in ("val", "test")
        )

        def redraw(times: NDArray[np.int64]) -> NDArray[np.float64]:
            return np.stack([self._signed(p.test.redrawn(times)) for p in probed.values()])

        times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=REDRAWS)
        errors = core.standard_errors(redraw(times), test, n)
        # Both are chosen on val, so that chance on test favours neither.
        known_val = np.nan_to_num(val, nan=-math.inf)
        null, best = int(known_val[:NULLS].argmax()), NULLS + int(known_val[NULLS:].argmax())
        known = [null, *range(NULLS, NULLS + len(NOISE))]
        gap = float(np.nan_to_num(test[best] - test[null]))
        (in_errors,) = core.neighbours(test, errors, [null, best])
        near = [float(errors[i, i + 1]) for i in range(NULLS, len(probed) - 1)]
        smallest = core.smallest_difference(near, n, self.metadata.splits["test"].count)
        perfect = 0.0 if self._metric in LOWER_IS_BETTER else 1.0
        headroom = float(np.nan_to_num(perfect - test[best]))
        verdict = core.verdict_of(in_errors, gap, smallest, headroom)
        pairs = core.clear_pairs(test, errors) if verdict != "none" else []
        return Signal(
            verdict=verdict,
            metric=self._metric,
            levels=[
                Level(name=name, val=number(p.val.primary), test=number(p.test.primary))
                for name, p in probed.items()
            ],
            gap=gap,
            gap_in_errors=in_errors,
            smallest_difference=number(smallest),
            headroom=headroom,
            val_ranks_as_test=number(core.tau_b(val.tolist(), test.tolist())),
            steps=core.neighbours(test, errors, known),
            train_windows=core.fewest_train(pairs, by_count),
            test_windows=core.fewest_test(pairs, n, redraw),
            n_train=max(by_count),
            n_test=n,
            seconds=round(seconds, 2),
        )

    def _signed(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return -scores if self._metric in LOWER_IS_BETTER else scores

    def _utility(self, found: Tally) -> float:
        return float(self._signed(np.array(found.primary)))

    def _embedded(self, spec: str) -> Splits:
        size = self.settings.patch_size or PATCH_SIZE
        encoder = load_encoder(spec, size, torch.device("cpu"))

        def embed(dataset: EvalDataset) -> Embedded:
            started, pooling = time.monotonic(), self.settings.pooling or "mean"
            batches = embedded_batches(dataset, encoder, self.progress, pooling=pooling)
            return joined(batches, dataset, started)

        opened = OpenSplits.of(
            self.root.address, self.metadata, "test", encoder, [(1.0, SEED)], self.most, self.most
        )
        return Splits.of(opened, opened.embedded(embed))

    def _probed(self, splits: Splits, fraction: float = 1.0) -> Probed:
        """kNN where the dataset is scored so, else a layer with few rates and epochs."""
        train, val, _ = splits.train_and_val(_drawn(splits, fraction), SEED)
        given = self._task, train, val, splits.test, torch.device("cpu")
        knn = (self.settings.probe or "knn") == "knn"
        if knn and self._task.kind is TaskKind.CLASSIFICATION:
            return run_knn(*given, self._metric)
        return run_linear(*given, SEED, RATES, EPOCHS, self._metric)

    def _constant(self, splits: Splits, fraction: float) -> Probed:
        """Always train's commonest class, or its mean."""
        train, val, _ = splits.train_and_val(_drawn(splits, fraction), SEED)
        known = train.target[train.valid]
        classes = self._task.kind.has_classes
        guess: Any = known.bincount().argmax() if classes else known.double().mean()
        return Probed(self._same(val, guess), self._same(splits.test, guess))

    def _same(self, rows: Rows, guess: torch.Tensor) -> Tally:
        scores = None
        if self._metric in RANKING:
            scores = np.ones((int(rows.valid.sum()), self._task.num_classes), np.float32)
        same = np.full_like(rows.target.numpy(), guess.item())
        return tallied(self._task, same, rows, scores, self._metric)


def _drawn(splits: Splits, fraction: float) -> NDArray[np.int64]:
    """Places of a part of the train windows; smaller parts are in larger ones."""
    order = np.random.default_rng(SEED).permutation(len(splits.embedded))
    return order[: max(int(fraction * len(order)), 1)]


def _level_name(noise: float) -> str:
    return "noise" if math.isinf(noise) else f"pixels with noise {noise:g}"


def _noisy(splits: Splits, level: float) -> Splits:
    """The same with noise, of so many standard deviations of each feature in train."""
    deviations = torch.from_numpy(splits.embedded.features).std(0, correction=0)
    generator = torch.Generator().manual_seed(NOISE.index(level))

    def worse(features: torch.Tensor) -> torch.Tensor:
        noise = deviations * torch.randn(features.shape, generator=generator)
        return noise if math.isinf(level) else features + level * noise

    def worse_rows(rows: Rows) -> Rows:
        return replace(rows, features=worse(rows.features))

    train = worse(torch.from_numpy(splits.embedded.features)).numpy()
    return replace(
        splits,
        embedded=replace(splits.embedded, features=train),
        val=None if splits.val is None else worse_rows(splits.val),
        test=worse_rows(splits.test),
    )
