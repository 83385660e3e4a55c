"""Result rows on disk, and the tables made from them.

{out}/rows/{key}.json      one row each, written when it is done: what resuming goes by
{out}/results.parquet      all rows as columns
{out}/results.json         all rows, confusion matrices included
{out}/plots/*.png
"""

import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_core import to_json

from eval_ingest.core.bounds import MOST_NUMBER, Count, Record, Whole
from eval_ingest.errors import IntegrityError, NewerVersionError, SweepError
from eval_ingest.report.printing import table
from eval_ingest.store.atomic import write_bytes, written_aside
from eval_ingest.store.records import record_of
from eval_ingest.store.seal import read_sealed, unless_damaged, unsealed, write_sealed_json
from eval_ingest.sweep.metrics import METRICS

ROW_VERSION = 2
_CURE = "remove it, and run the sweep again"


class ClassScore(Record):
    """One class of a row; None where the class is neither labelled nor predicted."""

    name: str
    iou: float | None
    accuracy: float | None
    """Recall: the part of its labels that is predicted as it."""
    f1: float | None
    support: Count
    """Labelled pixels or windows."""


class Row(Record):
    """One score: an encoder on a dataset, at a label fraction, with a seed."""

    version: int = ROW_VERSION
    key: str
    """Fingerprint of everything that decides over the score."""
    setup: str = ""
    """The same without label fraction and seed: only rows of one setup are seeds of one score, or
    points of one line. Rows of version 1 don't say it."""
    dataset: str
    dataset_version: str
    """The fingerprint in its metadata.json."""
    task: str
    encoder: str
    encoder_fingerprint: str
    weights: str
    """Where the encoder's weights are from; random initialisation is said here."""
    probe: str
    split: str
    label_fraction: float
    seed: Whole
    n_train: Count
    n_val: Count
    n_test: Count
    normalize: str
    method: str
    patch_size: Count
    bands: dict[str, list[str]]
    """By modality."""
    learning_rate: float | None
    """Chosen on val; None for kNN."""
    epoch: Annotated[int | None, Field(ge=0, le=MOST_NUMBER)]
    metric: str
    lower_is_better: bool
    val_score: float | None
    test_score: float | None
    """On `split`."""
    ci_low: float | None
    ci_high: float | None
    """95% bootstrap interval over windows."""
    metrics: dict[str, float | None]
    per_class: list[ClassScore]
    confusion: list[list[Count]] | None
    """Rows are the truth, columns what was predicted; None for regressions and many classes."""
    notes: list[str]
    device: str
    seconds: float
    """Of training and scoring the probe."""
    embed_seconds: float
    """Of embedding all splits, when that was done."""
    finished_at: str
    """Or, of rows that were there, when a sweep asked for them again, after others."""


@dataclass(frozen=True)
class Failure:
    """An encoder that couldn't be scored on a dataset."""

    encoder: str
    dataset: str
    message: str


@dataclass(frozen=True)
class ResultTable:
    """The outcome of a sweep."""

    rows: list[Row]
    """Every row of the plan that there is now, in the plan's order."""
    computed: int
    """How many of them were missing and are new."""
    failures: list[Failure] = field(default_factory=list)

    def __add__(self, other: "ResultTable") -> "ResultTable":
        return ResultTable(
            self.rows + other.rows,
            self.computed + other.computed,
            self.failures + other.failures,
        )

    def facts(self, out: Path, plots: Sequence[Path]) -> dict[str, Any]:
        """What the command line prints as JSON."""
        return {
            "rows": [row.model_dump(mode="json") for row in self.rows],
            "computed": self.computed,
            "failures": [vars(failure) for failure in self.failures],
            "out": str(out),
            "plots": [str(path) for path in plots],
        }

    def lines(self, out: Path, plots: Sequence[Path]) -> list[str]:
        """What the command line prints at the end."""
        lines = []
        if self.rows:
            new = f"{self.computed} new score{'s' * (self.computed != 1)}"
            lines += ["", f"{new}, {len(self.rows) - self.computed} there already, in {out}"]
            lines.append(f"see them: eval-ingest leaderboard --out {out}")
        if plots:
            lines.append(f"pictures: {plots[0].parent} ({len(plots)})")
        if self.failures:
            names = ", ".join(f"{failed.encoder} on {failed.dataset}" for failed in self.failures)
            lines += ["", f"{len(self.failures)} failed, see above: {names}"]
        return lines


def row_path(out: Path, key: str) -> Path:
    """Where a row is kept."""
    return out / "rows" / f"{key}.json"


def write_row(out: Path, row: Row) -> None:
    """Keep a row."""
    write_sealed_json(row_path(out, row.key), row.model_dump(mode="json"))


def read_row(out: Path, key: str) -> Row | None:
    """A kept row, or None if it isn't there, is damaged, or is of an older version."""
    return unless_damaged(lambda: _row(row_path(out, key)))


def _row(path: Path) -> Row | None:
    content = read_sealed(path, _CURE)
    if content is None:
        return None
    text = unsealed(content, path, _CURE)
    versions = range(ROW_VERSION, 0, -1)
    found = (record_of(Row, text, path, _CURE, {"version": known}) for known in versions)
    return next((row for row in found if row is not None), None)


def read_rows(out: Path) -> list[Row]:
    """Every kept row, sorted by dataset, encoder, label fraction and seed.

    Raises:
        SweepError: there is none.
        IntegrityError: one is damaged.
    """
    rows = _rows(out, _row)
    if not rows:
        raise SweepError(
            f"there are no results in {out}; run: eval-ingest sweep --encoder pixels --out {out}"
        )
    return rows


def readable_rows(out: Path) -> list[Row]:
    """Those that can be read; what is wrong with others is told, and ends nobody's training."""

    def row(path: Path) -> Row | None:
        try:
            return _row(path)
        except (IntegrityError, NewerVersionError) as error:
            logging.getLogger("eval_ingest").warning("%s; it is in no table", error)
            return None

    return _rows(out, row)


def _rows(out: Path, read: Callable[[Path], Row | None]) -> list[Row]:
    rows = [row for path in (out / "rows").glob("[!.]*.json") if (row := read(path)) is not None]
    rows.sort(key=lambda r: (r.dataset, r.encoder, r.label_fraction, r.seed, r.finished_at))
    return rows


_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _schema() -> pa.Schema:
    """A column for each field of a row, and one for each metric."""
    nested = {
        "bands": pa.list_(pa.struct([("modality", pa.string()), ("bands", pa.list_(pa.string()))])),
        "per_class": pa.list_(
            pa.struct([(name, _arrow(field)) for name, field in ClassScore.model_fields.items()])
        ),
        "confusion": pa.list_(pa.list_(pa.int64())),
        "notes": pa.list_(pa.string()),
    }
    columns = {
        name: nested.get(name) or _arrow(field)
        for name, field in Row.model_fields.items()
        if name not in ("version", "metrics")
    }
    metrics = dict.fromkeys(chain(*METRICS.values()), pa.float64())
    return pa.schema(list((columns | metrics).items()))


def _arrow(field: FieldInfo) -> pa.DataType:
    """Of a plain field, which may be None."""
    kinds = get_args(field.annotation) or (field.annotation,)
    return _ARROW[kinds[0]]


def write_tables(out: Path, rows: Sequence[Row]) -> None:
    """results.parquet and results.json."""
    schema, columns = _schema(), []
    for row in rows:
        flat: dict[str, Any] = {**row.model_dump(), **row.metrics}
        flat["bands"] = [{"modality": m, "bands": bands} for m, bands in row.bands.items()]
        columns.append({name: flat.get(name) for name in schema.names})
    with written_aside(out / "results.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(columns, schema), temporary, compression="zstd")
    write_bytes(out / "results.json", to_json(rows, indent=2) + b"\n")


# ------------------------------------------------------------------------------- leaderboard


@dataclass(frozen=True)
class Cell:
    """The score of an encoder on a dataset at a label fraction: the mean over seeds."""

    score: float
    low: float | None
    high: float | None
    """One seed: its bootstrap interval. Several: the lowest and highest end of theirs."""
    seeds: int
    metric: str
    lower_is_better: bool
    n_train: int
    n_test: int
    """Windows that the score is of."""
    dataset_version: str

    @property
    def facts(self) -> tuple[str, int, int, str]:
        """Scores can be compared where these are equal."""
        return self.metric, self.n_train, self.n_test, self.dataset_version


@dataclass(frozen=True)
class Leaderboard:
    """Datasets by encoders, at one label fraction, on one split."""

    label_fraction: float
    split: str
    datasets: list[str]
    encoders: list[str]
    cells: dict[tuple[str, str], Cell]
    """By (dataset, encoder)."""

    def comparable(self, dataset: str) -> list[dict[str, Cell]]:
        """Its scores by encoder, those apart that are of another metric or windows; most first."""
        groups: dict[tuple[Any, ...], dict[str, Cell]] = defaultdict(dict)
        for encoder in self.encoders:
            cell = self.cells.get((dataset, encoder))
            if cell is not None:
                groups[cell.facts][encoder] = cell
        return sorted(groups.values(), key=len, reverse=True)

    def best(self, dataset: str) -> list[str]:
        """The encoders with the best score of those that can be compared; none where one can't."""
        found = []
        for cells in self.comparable(dataset):
            scores = {e: -c.score if c.lower_is_better else c.score for e, c in cells.items()}
            best = max(scores.values())
            found += [e for e, value in scores.items() if value == best and len(cells) > 1]
        return found


def leaderboards(rows: Iterable[Row]) -> list[Leaderboard]:
    """One per split and label fraction, the largest fraction first.

    Of a dataset that was ingested anew, or is scored in another way, only the rows that an encoder
    got last count.
    """
    current = latest(rows)
    names = encoder_labels(current)
    by_board: dict[tuple[str, float], _Groups] = defaultdict(lambda: defaultdict(list))
    for row in current:
        by_board[row.split, -row.label_fraction][row.dataset, names[row.key]].append(row)
    boards = []
    for (split, fraction), groups in sorted(by_board.items()):
        cells = {at: cell for at, group in groups.items() if (cell := _cell(group)) is not None}
        datasets, encoders = (sorted(set(names)) for names in zip(*groups, strict=True))
        boards.append(Leaderboard(-fraction, split, datasets, encoders, cells))
    return boards


_Groups = dict[tuple[str, str], list[Row]]
"""Rows by dataset and encoder."""


def latest(rows: Iterable[Row]) -> list[Row]:
    """Of each encoder on a dataset only the rows of the setup that was scored last, each once.

    Another dataset version, other weights, settings or train windows make another setup, and so
    does each call of `evaluate`.
    """
    rows = list(rows)

    def scored(row: Row) -> tuple[Any, ...]:
        return (row.dataset, row.split, *_variant(row))

    def setup(row: Row) -> tuple[str, ...]:
        return row.dataset_version, row.encoder_fingerprint, row.metric, row.setup

    def case(row: Row) -> tuple[Any, ...]:
        return (*scored(row), row.label_fraction, row.seed)

    by_time = sorted(rows, key=lambda row: row.finished_at)
    newest = {scored(row): setup(row) for row in by_time}
    last = {case(row): row.key for row in by_time if setup(row) == newest[scored(row)]}
    return [row for row in rows if last.get(case(row)) == row.key]


def _variant(row: Row) -> tuple[str, ...]:
    """What tells encoders apart that have the same name."""
    patch = f"p{row.patch_size}"
    return row.encoder, row.normalize, row.method, patch, row.probe, row.weights


def encoder_labels(rows: Iterable[Row]) -> dict[str, str]:
    """Per row key a name for its encoder, with only what is needed to tell it from others.

    Tasks differ in their probe by default, so the probe is only named where one dataset has two.
    """
    rows = list(rows)
    labels = {}
    for row in rows:
        others = [r for r in rows if r.encoder == row.encoder and r.dataset == row.dataset]
        apart = [
            part
            for i, part in enumerate(_variant(row)[1:], 1)
            if any(_variant(other)[i] != part for other in others)
        ]
        labels[row.key] = " ".join([row.encoder, *apart])
    return labels


def _cell(rows: Sequence[Row]) -> Cell | None:
    scores = [row.test_score for row in rows if row.test_score is not None]
    if not scores:
        return None
    lows = [row.ci_low for row in rows if row.ci_low is not None]
    highs = [row.ci_high for row in rows if row.ci_high is not None]
    return Cell(
        sum(scores) / len(scores),
        min(lows, default=None),
        max(highs, default=None),
        len(scores),
        rows[0].metric,
        rows[0].lower_is_better,
        max(row.n_train for row in rows),
        max(row.n_test for row in rows),
        rows[0].dataset_version,
    )


def leaderboard_json(boards: Sequence[Leaderboard]) -> list[dict[str, Any]]:
    """Leaderboards for programs."""
    return [
        {
            "split": board.split,
            "label_fraction": board.label_fraction,
            "scores": [
                {"dataset": dataset, "encoder": encoder, **cell.__dict__}
                for (dataset, encoder), cell in sorted(board.cells.items())
            ],
        }
        for board in boards
    ]


def board_lines(board: Leaderboard, width: int = 120) -> list[str]:
    """A leaderboard as a table; the best of each dataset is starred.

    Datasets by encoders where that fits into so many columns, else a line per dataset and encoder.
    What can't be compared stands in lines of its own.
    """
    seeds = max((cell.seeds for cell in board.cells.values()), default=1)
    title = (
        f"{board.split} scores, probes trained on {100 * board.label_fraction:.4g}% of train"
        + (
            f"; means of up to {seeds} seeds; [lowest and highest end of their 95% intervals]"
            if seeds > 1
            else "; [95% interval]"
        )
        + ("; * best" if len(board.encoders) > 1 else "")
    )
    wide = [["dataset", "metric", "train", board.split, *board.encoders]]
    tall = [["dataset", "metric", "train", board.split, "encoder", "score"]]
    for dataset in board.datasets:
        best, groups = board.best(dataset), board.comparable(dataset)
        versions = {cell.dataset_version for cells in groups for cell in cells.values()}
        for cells in groups:
            one = next(iter(cells.values()))
            name = dataset if len(versions) == 1 else f"{dataset} {one.dataset_version[:8]}"
            metric = one.metric + (" (low)" if one.lower_is_better else "")
            facts = [name, metric, f"{one.n_train:,}", f"{one.n_test:,}"]
            texts = {e: _cell_text(cell, e in best) for e, cell in cells.items()}
            wide.append([*facts, *(texts.get(e, "-") for e in board.encoders)])
            for encoder, text in texts.items():
                tall.append([*facts, encoder, text])
                facts = [""] * len(facts)
    lines = table(wide, width=sys.maxsize)
    if max(map(len, lines)) > width:
        lines = table(tall)
    return [title, *lines, ""]


def _cell_text(cell: Cell, best: bool) -> str:
    score = _number(cell.score) + ("*" if best else " ")
    if cell.low is None or cell.high is None:
        return score
    return f"{score} [{_number(cell.low)}, {_number(cell.high)}]"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
