"""Run a plan: embed what isn't in the cache, probe what isn't in the results."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from eval_ingest.core.entry import Metadata
from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.engine import Progress, no_progress
from eval_ingest.errors import EvalIngestError, SweepError
from eval_ingest.loading import EvalDataset
from eval_ingest.report.terminal import plural
from eval_ingest.settings import Settings
from eval_ingest.store.registry import require_metadata
from eval_ingest.store.roots.open import open_root
from eval_ingest.sweep import embed, probes
from eval_ingest.sweep.embed import Embedded, embed_split, writable
from eval_ingest.sweep.encoders.base import Encoder
from eval_ingest.sweep.encoders.registry import load_encoder
from eval_ingest.sweep.plan import SweepPlan
from eval_ingest.sweep.results import (
    Failure,
    ResultTable,
    Row,
    read_row,
    read_rows,
    write_row,
    write_tables,
)
from eval_ingest.sweep.scoring import Case, Scoring, Splits, label_fractions, require_windows

Tell = Callable[[str], None]


def run_sweep(
    plan: SweepPlan,
    settings: Settings | None = None,
    *,
    root: str | Path | None = None,
    device: str | None = None,
    progress: Progress = no_progress,
    tell: Tell | None = None,
) -> ResultTable:
    """Score every encoder of the plan on every dataset.

    Rows that are in the results already are not made again, and each new one is kept as soon as
    it is done: so a sweep that was killed goes on where it stopped. An encoder that fails on one
    dataset, or one of several that can't be loaded, is a `Failure` of the table; the sweep goes on
    with the others.

    Args:
        plan: what to score.
        settings: default: the environment's.
        root: the eval root; default OLMOEARTH_EVAL_DATASETS.
        device: `cuda`, `cpu`, ...; default a GPU if there is one.
        progress: called with (what, done, total).
        tell: called with a line about each score, and about what a reader must know.

    Raises:
        SweepError: the plan can't be carried out, or its only encoder can't be loaded.
        UnknownDatasetError: no such dataset.
        StoreError: the results can't be written.
    """
    settings = settings or Settings.load()
    eval_root = open_root(settings, root)
    plan = plan.checked(eval_root)
    writable(plan.out, "say --out FOLDER of yours")
    cache = Path(settings.cache).expanduser()

    def embedded(dataset: EvalDataset, encoder: Encoder) -> Embedded:
        return embed_split(dataset, encoder, cache, progress)

    there = choose_device(device)
    scoring = Scoring(eval_root, plan.split, plan.probe, embedded, there, progress)
    run = _Run(plan, scoring, tell or (lambda text: None))
    table = run.everything()
    if table.rows:
        write_tables(plan.out, read_rows(plan.out))
    return table


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name; by default a GPU if there is one.

    Raises:
        SweepError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        there = "cpu and cuda" if torch.cuda.is_available() else "cpu alone"
        raise SweepError(f"no device {name!r} here: there is {there}") from error
    return device


@dataclass(frozen=True)
class _Run:
    """A sweep that is going on."""

    plan: SweepPlan
    scoring: Scoring
    tell: Tell

    def everything(self) -> ResultTable:
        rows: list[Row] = []
        failures: list[Failure] = []
        computed = 0
        for spec in self.plan.encoders:
            loaded: dict[int, Encoder] = {}
            try:
                encoder = self._encoder(spec, loaded, EvalSettings())
            except SweepError as error:
                if len(self.plan.encoders) == 1:
                    raise
                failures += [Failure(spec, name, str(error)) for name in self.plan.datasets]
                self.tell(f"failed: {error}")
                continue
            if "random" in encoder.weights:
                self.tell(
                    f"{encoder.name}: {encoder.weights}; its scores are no pretrained model's"
                )
            for name in self.plan.datasets:
                try:
                    found, new = self._dataset(spec, loaded, name)
                except EvalIngestError as error:
                    failures.append(Failure(encoder.name, name, str(error)))
                    reason = str(error).removeprefix(f"{name}: ")
                    self.tell(f"{name}, {encoder.name}: failed: {reason}")
                    continue
                rows += found
                computed += new
        return ResultTable(rows, computed, failures)

    def _encoder(self, spec: str, loaded: dict[int, Encoder], settings: EvalSettings) -> Encoder:
        """The encoder with the patch size that settings say; `loaded` has those of other sizes."""
        size = self.plan.patch_size_for(settings)
        if size not in loaded:
            encoder = load_encoder(spec, size, self.scoring.device)
            loaded[size] = self.plan.normalised(encoder)
        return loaded[size]

    def _dataset(self, spec: str, loaded: dict[int, Encoder], name: str) -> tuple[list[Row], int]:
        """Rows of an encoder on a dataset, and how many of them are new."""
        metadata = require_metadata(self.scoring.root, name)
        encoder = self._encoder(spec, loaded, metadata.spec.eval)
        probe = self.scoring.probe_of(metadata)
        require_windows(metadata, self.plan.split)
        cases = [
            Case(fraction, seed, self._key(encoder, metadata, probe, fraction, seed))
            for fraction in label_fractions(metadata, self.plan.label_fractions)
            for seed in self.plan.seeds
        ]
        kept = {case.key: read_row(self.plan.out, case.key) for case in cases}
        missing = [case for case in cases if kept[case.key] is None]
        if missing:
            splits = Splits.of(self.scoring, encoder, metadata, {})
            for case in missing:
                row = self.scoring.row(encoder, metadata, probe, splits, case)
                write_row(self.plan.out, row)
                kept[case.key] = row
                self.tell(_line(row))
        else:
            self.tell(f"{name}, {encoder.name}: up to date, nothing to do")
        return [row for row in kept.values() if row is not None], len(missing)

    def _key(
        self, encoder: Encoder, metadata: Metadata, probe: str, fraction: float, seed: int
    ) -> str:
        return fingerprint(
            "sweep_row", probes.VERSION, embed.VERSION, encoder.name, encoder.fingerprint,
            encoder.patch_size, encoder.normalize, encoder.method, metadata.name,
            metadata.fingerprint, self.plan.split, probe, fraction, seed,
            metadata.spec.eval.given,
        )  # fmt: skip


def _line(row: Row) -> str:
    score = "no score" if row.test_score is None else f"{row.metric} {row.test_score:.4g}"
    if row.ci_low is not None and row.ci_high is not None:
        score += f" [{row.ci_low:.4g}, {row.ci_high:.4g}]"
    chosen = row.probe if row.learning_rate is None else f"{row.probe}, lr {row.learning_rate:g}"
    text = (
        f"{row.dataset}, {row.encoder}: {score} on {row.split}; "
        f"{plural(row.n_train, 'train window')} ({100 * row.label_fraction:.4g}%), "
        f"seed {row.seed}, {chosen}, {row.seconds:.1f} s"
    )
    return "; ".join([text, *row.notes])
