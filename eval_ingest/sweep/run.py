"""Run a suite over encoders: embed what isn't in the cache, probe what isn't in the results."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.engine import Progress, no_progress
from eval_ingest.errors import SweepError
from eval_ingest.loading import EvalDataset
from eval_ingest.settings import Settings, user_path
from eval_ingest.store.roots.open import open_root
from eval_ingest.sweep.embed import Embedded, embed_split, writable
from eval_ingest.sweep.encoders.base import Encoder
from eval_ingest.sweep.results import (
    Failure,
    ResultTable,
    Row,
    latest,
    readable_rows,
    write_row,
    write_tables,
)
from eval_ingest.sweep.scoring import Encoders, Scorer, Tell, choose_device
from eval_ingest.sweep.suite import Suite, catalog_of


def run_sweep(
    suite: Suite,
    out: Path,
    settings: Settings | None = None,
    *,
    root: str | Path | None = None,
    device: str | None = None,
    progress: Progress = no_progress,
    tell: Tell | None = None,
) -> ResultTable:
    """Score every encoder of the suite on every dataset.

    Rows that are in the results already are not made again, and each new one is kept as soon as
    it is done: so a sweep that was killed goes on where it stopped. An encoder that fails on one
    dataset, or one of several that can't be loaded, is a `Failure` of the table; the sweep goes on
    with the others.

    Args:
        suite: what to score.
        out: folder of the results.
        settings: default: the environment's.
        root: the eval root; default OLMOEARTH_EVAL_DATASETS.
        device: `cuda`, `cpu`, ...; default a GPU if there is one.
        progress: called with (what, done, total).
        tell: called with a line about each score, and about what a reader must know.

    Raises:
        SweepError: the suite can't be carried out, or its only encoder can't be loaded.
        UnknownDatasetError: no such dataset.
        StoreError: the results can't be written.
    """
    settings = settings or Settings.load()
    eval_root = open_root(settings, root)
    if not suite.encoders:
        raise SweepError(
            "a sweep needs at least one encoder; say --encoder pixels, or list encoders in the "
            "suite"
        )
    suite = suite.checked(eval_root)
    writable(out, "say --out FOLDER of yours")
    cache = user_path(settings.cache)

    def embedded(dataset: EvalDataset, encoder: Encoder, pooling: str) -> Embedded:
        return embed_split(dataset, encoder, cache, progress, pooling)

    there = choose_device(device)
    table, catalog = ResultTable([], 0), catalog_of(settings)
    unnamed = [row for row in readable_rows(out) if not row.setup]
    for spec in suite.encoders:
        scorer = Scorer(
            suite, eval_root, Encoders(spec, suite, there), embedded, catalog, out, resume=True,
            unnamed=unnamed, progress=progress, tell=tell or (lambda text: None),
        )  # fmt: skip
        table += _scored(scorer, spec, alone=len(suite.encoders) == 1)
    if table.rows:
        write_tables(out, _showing(out, table.rows))
    return table


def _showing(out: Path, asked: Sequence[Row]) -> list[Row]:
    """All rows; those asked for are what leaderboards show, also where others came since then."""
    rows, now = readable_rows(out), datetime.now(UTC).isoformat()
    last = {row.key for row in asked} - {row.key for row in latest(rows)}
    for k, row in enumerate(rows):
        if row.key in last:
            rows[k] = row.model_copy(update={"finished_at": now})
            write_row(out, rows[k])
    return rows


def _scored(scorer: Scorer, spec: str, alone: bool) -> ResultTable:
    """One encoder on every dataset."""
    try:
        encoder = scorer.encoders.of(EvalSettings())
    except SweepError as error:
        if alone:
            raise
        scorer.tell(f"failed: {error}")
        failures = [Failure(spec, name, str(error)) for name in scorer.suite.datasets]
        return ResultTable([], 0, failures)
    if "random" in encoder.weights:
        scorer.tell(f"{encoder.name}: {encoder.weights}; its scores are no pretrained model's")
    return scorer.datasets()
