"""The asset eval_sweep: frozen encoders scored on a registered dataset, one partition each.

It wires sweep/run.py, as `eval-ingest sweep` does, and gives the same rows.
"""
# No `from __future__ import annotations` here: Dagster reads the annotations.

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args, get_origin

import dagster as dg
from pydantic import Field, create_model

from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.suite import DEFAULT_OUT, SuiteFields
from eval_ingest.defs.metadata import listed, png_metadata, table
from eval_ingest.defs.partitions import studio_datasets
from eval_ingest.defs.running import SWEEP_POOL, LogProgress, step_on
from eval_ingest.errors import SweepError
from eval_ingest.flags import docstrings
from eval_ingest.settings import Settings, user_path

if TYPE_CHECKING:
    from eval_ingest.sweep.results import ResultTable, Row

MAX_PICTURE_BYTES = 1 << 20
"""Pictures are kept in Dagster's event log; the most telling ones come first."""


def _in_dagster(kind: Any) -> Any:
    """A type as Dagster's forms know it: lists, and anything where a value may be of several."""
    if get_origin(kind) is not tuple:
        return kind
    each = get_args(kind)[0]
    return list[each if isinstance(each, type) else Any]  # type: ignore[misc]


def _of_suite() -> Iterator[tuple[str, Any]]:
    """A suite's fields but the datasets, of which a partition is one."""
    for name, field in SuiteFields.model_fields.items():
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        text = docstrings(SuiteFields)[name]
        if name != "datasets":
            yield name, (_in_dagster(field.annotation), Field(default, description=text))


_SuiteConfig: Any = create_model("_SuiteConfig", __base__=dg.Config, **dict(_of_suite()))


class SweepConfig(_SuiteConfig):  # type: ignore[misc]
    """What `eval-ingest sweep` takes as flags."""

    encoders: list[str] = Field(default=["pixels"], description=docstrings(SuiteFields)["encoders"])
    device: str | None = Field(
        default=None, description="cpu or cuda; default: a GPU if there is one"
    )
    out: str = Field(
        default=DEFAULT_OUT,
        description="folder of the results, seen from where Dagster runs; scores that are there "
        "aren't made again",
    )


@dg.asset(
    group_name="eval_scores",
    partitions_def=studio_datasets,
    deps=["registry_entry"],
    pool=SWEEP_POOL,
    kinds={"pytorch"},
)
def eval_sweep(
    context: dg.AssetExecutionContext, config: SweepConfig, settings: dg.ResourceParam[Settings]
) -> dg.MaterializeResult[Any]:
    """Scores of frozen encoders on the dataset: embedded once, then kNN or a linear probe.

    What is to be scored is said in the Launchpad; the default is the baseline of pixel statistics.
    Results are kept in the folder `out`, where `eval-ingest leaderboard` finds them.
    """
    name = context.partition_key
    with step_on(name):
        scored = _run(context, config, settings, name)
        version = dg.DataVersion(fingerprint(sorted(row.key for row in scored.rows)))
        context.set_data_version(context.asset_key, version)
        result = dg.MaterializeResult[Any](
            metadata=_metadata(scored.rows, scored.computed, Path(config.out)),
        )
        if scored.failures:
            if scored.rows:  # what did work is shown, though the run fails
                context.log_event(
                    dg.AssetMaterialization(
                        "eval_sweep", partition=name, metadata=dict(result.metadata or {})
                    )
                )
            lines = [f"{failure.encoder}: {failure.message}" for failure in scored.failures]
            raise SweepError(f"{name}: {'; '.join(lines)}")
    return result


def _run(
    context: dg.AssetExecutionContext, config: SweepConfig, settings: Settings, name: str
) -> "ResultTable":
    # torch and the encoders take seconds to import: not for the code location.
    from eval_ingest.sweep.run import run_sweep
    from eval_ingest.sweep.suite import Suite

    said = config.model_dump(exclude={"device", "out"})
    suite = Suite().having(datasets=name, **said)
    return run_sweep(
        suite,
        user_path(config.out),
        settings,
        device=config.device,
        progress=LogProgress(context.log, "eval_sweep"),
        tell=context.log.info,
    )


def _metadata(rows: "Sequence[Row]", computed: int, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "scores": table(
            ("encoder", "weights", "train windows", "seed", "probe", "metric", "score", "95 %"),
            [_score(row) for row in rows],
        )
    }
    found |= {
        f"{row.encoder} {row.metric}": row.test_score
        for row in rows
        if row.test_score is not None and row.label_fraction == 1 and row.seed == rows[0].seed
    }
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    if notes:
        found["notes"] = listed(notes)
    pictures = _pictures(rows)
    if pictures:
        found["pictures"] = png_metadata(pictures)
    return found | {
        "new scores": computed,
        "dataset version": rows[0].dataset_version if rows else "",
        "path": dg.MetadataValue.path(str(out.absolute())),
        "see all": f"eval-ingest leaderboard --out {out}",
    }


def _score(row: "Row") -> tuple[Any, ...]:
    known = row.ci_low is not None and row.ci_high is not None
    return (
        row.encoder,
        row.weights,
        f"{row.n_train} ({100 * row.label_fraction:.4g} %)",
        row.seed,
        row.probe if row.learning_rate is None else f"{row.probe}, lr {row.learning_rate:g}",
        row.metric + (" (low is good)" if row.lower_is_better else ""),
        "" if row.test_score is None else f"{row.test_score:.4f}",
        f"{row.ci_low:.4f} to {row.ci_high:.4f}" if known else "",
    )


def _pictures(rows: "Sequence[Row]") -> dict[str, bytes]:
    """Scores, label fractions and confusion matrices of these rows, as far as they fit."""
    if not rows:
        return {}
    from eval_ingest.sweep.plots import draw

    pictures: dict[str, bytes] = {}
    with TemporaryDirectory() as folder:
        for path in draw(rows, Path(folder)):
            png = path.read_bytes()
            if sum(map(len, pictures.values())) + len(png) <= MAX_PICTURE_BYTES:
                pictures[path.stem.replace("_", " ")] = png
    return pictures
