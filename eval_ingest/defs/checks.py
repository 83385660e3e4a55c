"""Asset checks: whether a registered dataset is fit to be an eval, and whether it loads.

What belongs here: which findings a check is about, and what the page says. What doesn't: finding
them (core/quality.py), whose report stands in metadata.json. A check fails as a warning or as an
error, as its worst finding is; it never stops an ingest.

Each check is shown twice: at the partition of registry_entry, and at the dataset's own asset.
"""

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import dagster as dg
import numpy as np

from eval_ingest.core.entry import Metadata
from eval_ingest.core.signal import Signal
from eval_ingest.core.spec import SPLITS
from eval_ingest.defs.assets import registry_entry
from eval_ingest.defs.metadata import listed, table
from eval_ingest.defs.partitions import identifier, studio_datasets
from eval_ingest.defs.running import step_on
from eval_ingest.errors import EvalIngestError, IntegrityError
from eval_ingest.redaction import MAX_SHOWN, in_markdown
from eval_ingest.report.terminal import counts_text
from eval_ingest.store.registry import require_metadata
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.roots.open import open_root
from eval_ingest.watching import fault_text

WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


@dataclass(frozen=True)
class Check:
    """A check that goes by the findings of the quality report."""

    name: str
    codes: tuple[str, ...]
    """How the codes of `core.quality.Finding` begin that it is about."""
    description: str
    fine: str
    """What is said when there is no such finding."""
    of_classes: bool = False
    """True: says nothing of a regression."""


BY_FINDINGS = (
    Check(
        "no_leakage",
        ("leakage_", "one_place"),
        "No val or test window overlaps a train window, lies near one, or has its pixels. "
        "If it fails: split by place (splits.strategy: spatial, with a buffer_m) and materialise "
        "split_assignment and what follows; no pixel is read again.",
        "no val or test window overlaps a train window, lies near one, or has its pixels",
    ),
    Check(
        "every_class_in_every_split",
        ("class_missing",),
        "Train, val and test have windows of every class that the dataset has. "
        "If it fails: splits.strategy: stratified gives every split some of each class.",
        "every split has every class that the dataset has",
        of_classes=True,
    ),
    Check(
        "no_zero_variance_band",
        ("zero_variance",),
        "Every band varies over the windows. One that doesn't is 0 after normalisation. "
        "If it fails: check that the source has this band, and that it was materialised.",
        "every band varies",
    ),
    Check(
        "units_plausible",
        ("units",),
        "Band means are within two standard deviations of OlmoEarth's pretraining data. "
        "If it fails: the finding names the likely cause, such as decibels for linear power or a "
        "factor of 10,000; repair the source.",
        "band means are where pretraining's are",
    ),
)

LOADS = "dataset_loads"
VERDICT = "verdict"
SIGNAL = "tells_models_apart"
VERSION = "version of the dataset"
"""Key of the metadata that says what was checked."""
DESCRIPTIONS = {
    **{check.name: check.description for check in BY_FINDINGS},
    LOADS: (
        "EvalDataset opens train, val and test, and reads the first and the last sample of each. "
        "If it fails: eval-ingest verify names the damaged files; materialising again mends them."
    ),
    SIGNAL: (
        "Models that know something score better than those that know nothing, as far as that was "
        "measured: eval-ingest signal. If it fails: look at the labels, or leave it out of suites."
    ),
    VERDICT: (
        "The dataset is good to compare models on: neither usable with warnings nor poor. "
        "If it fails: the reasons say what to change; the other checks show more."
    ),
}


class Result(NamedTuple):
    """The outcome of a check, whichever asset it is shown at."""

    passed: bool
    text: str
    severity: dg.AssetCheckSeverity = WARN
    metadata: Mapping[str, Any] = MappingProxyType({})


def result(root: EvalRoot, entry: Metadata, name: str) -> Result:
    """The outcome of a check of a registered dataset."""
    if name == LOADS:
        return _loads(root, entry)
    if name == SIGNAL:
        return _signal(entry)
    if not entry.quality:
        text = f"{entry.name} was ingested before there was a quality report; materialise it again"
        return Result(False, text)
    if name == VERDICT:
        return _verdict(entry)
    return _by_findings(next(check for check in BY_FINDINGS if check.name == name), entry)


def _by_findings(check: Check, entry: Metadata) -> Result:
    found = [f for f in entry.quality["findings"] if f["code"].startswith(check.codes)]
    bad = [f for f in found if f["severity"] != "note"]
    severity = ERROR if any(f["severity"] == "error" for f in bad) else WARN
    fine = check.fine
    if check.of_classes and not entry.config.task.kind.has_classes:
        fine = f"does not apply: a {entry.config.task.kind} has no classes"
    text = "; ".join(f["text"] for f in bad or found) or fine
    return Result(not bad, text, severity, {"findings": _findings(found)} if found else {})


def _findings(found: Sequence[dict[str, Any]]) -> dg.MarkdownMetadataValue:
    return table(
        ("severity", "how many", "what", "for example"),
        [
            (f["severity"], f"{f['count']} of {f['of']}", f["text"], ", ".join(f["examples"]))
            for f in found
        ],
    )


def _verdict(entry: Metadata) -> Result:
    level, reasons = entry.quality["verdict"], entry.quality["reasons"]
    metadata: dict[str, Any] = {"verdict": level}
    if reasons:
        metadata["why"] = listed(reasons)
    metadata |= {
        f"standard error of a score on {split}": error
        for split, error in entry.quality.get("standard_error", {}).items()
        if error is not None and split != "train"
    }
    metadata["all findings"] = _findings(entry.quality["findings"])
    text = ": ".join([level, *reasons[:1]])
    if len(reasons) > 1:
        text += f" (and {len(reasons) - 1} more)"
    return Result(level == "good", text, ERROR if level == "poor" else WARN, metadata)


def _signal(entry: Metadata) -> Result:
    found = Signal.of(entry.signal)
    if found is None:
        return Result(True, f"not measured yet: eval-ingest signal {entry.name}")
    levels = [
        (level.name, *("-" if s is None else f"{s:.4g}" for s in (level.val, level.test)))
        for level in found.levels
    ]
    metadata = {**found.entry, "models": table(("model", "val", f"test {found.metric}"), levels)}
    return Result(found.verdict != "none", "; ".join(found.lines()), WARN, metadata)


def _loads(root: EvalRoot, entry: Metadata) -> Result:
    """Open each split as training code does, and read its ends."""
    rows = []
    for split in SPLITS:
        try:
            rows.append((split, *_opened(root, entry, split)))
        except EvalIngestError as error:
            return Result(False, f"{split} does not load: {error}", ERROR)
        except Exception as error:
            return Result(False, f"{split} does not load: {fault_text(error)}", ERROR)
    shown = table(("split", "samples", "a sample (H, W, T, C)", "opened in"), rows)
    counts = {split: count for split, count, *_ in rows}
    empty = ", ".join(split for split, count in counts.items() if not count)
    text = f"{empty} is empty; check splits.ratios" if empty else counts_text(counts)
    return Result(not empty, text, WARN, {"splits": shown})


def _opened(root: EvalRoot, entry: Metadata, split: str) -> tuple[int, str, str]:
    """Samples of a split, the shapes of its first one, and how long it took to open.

    Raises:
        IntegrityError: what was read isn't what metadata.json says.
    """
    # torch takes seconds to import: not for the code location.
    from eval_ingest.loading import EvalDataset

    count = entry.splits[split].count
    if not count:
        return 0, "", "empty"
    began = time.perf_counter()
    data = EvalDataset(entry.name, split, root=root.address)
    opened_ms = 1000 * (time.perf_counter() - began)
    if len(data) != count:
        raise IntegrityError(f"{len(data)} samples, metadata.json says {count}")
    shapes = []
    for sample in (data[i] for i in sorted({0, len(data) - 1})):
        here = {
            m.name: np.asarray(sample[m.name]) for m in entry.config.modalities if m.name in sample
        }
        for name, pixels in here.items():
            if pixels.size and not np.isfinite(pixels).any():
                raise IntegrityError(f"{sample['window']}: no pixel of {name} is a number")
        shapes.append(", ".join(f"{name} {pixels.shape}" for name, pixels in here.items()))
    return count, shapes[0], f"{opened_ms:.1f} ms"


# ------------------------------------------------------------------------------- as Dagster has it


def evaluations(
    root: EvalRoot, name: str, assets: Sequence[dg.AssetKey], wanted: Iterable[str] = DESCRIPTIONS
) -> Iterator[dg.AssetCheckEvaluation]:
    """Checks of a registered dataset, as those of registry_entry or of its own asset, or of both.

    Raises:
        UnknownDatasetError: the dataset isn't registered.
    """
    entry = require_metadata(root, name)
    for check in wanted:
        found = result(root, entry, check)
        for asset in assets:
            yield dg.AssetCheckEvaluation(
                asset_key=asset,
                check_name=check,
                passed=found.passed,
                metadata={**found.metadata, VERSION: entry.fingerprint},
                severity=found.severity,
                # for Dagster's page, which takes it for Markdown
                description=in_markdown(found.text, MAX_SHOWN),
                partition=name if asset == registry_entry.key else None,
            )


def step_of(asset: str) -> str:
    """The step that runs an asset's checks."""
    return f"{identifier(asset)}_checks"


@cache  # `dagster asset materialize` loads the definitions six times
def asset_checks(
    asset: dg.AssetKey, partitions: dg.PartitionsDefinition[str] | None = None
) -> dg.AssetChecksDefinition:
    """All checks of an asset, of which some can be run alone.

    Args:
        asset: registry_entry or a dataset's own, whose results are shown at registry_entry, too.
        partitions: of the asset.
    """
    # By hand: the decorator takes the same function apart anew for each of a thousand datasets.
    op = dg.OpDefinition(
        compute_fn=_run,
        name=step_of(asset.path[-1]),
        description="Is the dataset fit to be an eval, and does it load?",
        ins={"asset": dg.In(dg.Nothing)},
        outs=_OUTS,
        required_resource_keys={"settings"},
    )
    with warnings.catch_warnings():
        # Checks of a partition are "in preview"; unpartitioned ones would be of all datasets.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        made: dg.AssetChecksDefinition = dg.AssetChecksDefinition.create(
            keys_by_input_name={"asset": asset},
            node_def=op,
            check_specs_by_output_name={
                check: dg.AssetCheckSpec(
                    check, asset=asset, description=text, partitions_def=partitions
                )
                for check, text in DESCRIPTIONS.items()
            },
            can_subset=True,
        )
    return made


_RESULT_FIELDS = ("asset_key", "check_name", "passed", "metadata", "severity", "description")
_OUTS = {check: dg.Out(dg.Nothing, is_required=False) for check in DESCRIPTIONS}


def _run(context: dg.OpExecutionContext, _: Mapping[str, Any]) -> Iterator[dg.AssetCheckResult]:
    """The checks that are selected, of the one asset that they are about."""
    (asset,) = {key.asset_key for key in context.selected_asset_check_keys}
    name = context.partition_key if asset == registry_entry.key else asset.path[-1]
    assets = dict.fromkeys((registry_entry.key, asset))
    wanted = [key.name for key in context.selected_asset_check_keys]
    with step_on(name):
        found = evaluations(open_root(context.resources.settings), name, list(assets), wanted)
        for evaluation in list(found):
            if evaluation.asset_key != asset:
                context.log_event(evaluation)  # type: ignore[arg-type]
                continue
            if not evaluation.passed:
                level = evaluation.severity.value.lower()
                context.log.info(f"{evaluation.check_name}: {level}: {evaluation.description}")
            yield dg.AssetCheckResult(**{f: getattr(evaluation, f) for f in _RESULT_FIELDS})


registry_entry_checks = asset_checks(registry_entry.key, partitions=studio_datasets)
