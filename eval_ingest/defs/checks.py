"""Asset checks: whether a registered dataset is fit to be an eval, and whether it loads.

What belongs here: which findings a check is about, and what the page says. What doesn't: finding
them (core/quality.py), whose report stands in metadata.json. A check fails as a warning or as an
error, as its worst finding is; it never stops an ingest.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg
import numpy as np

from eval_ingest.core.entry import Metadata
from eval_ingest.core.spec import SPLITS
from eval_ingest.defs.assets import registry_entry
from eval_ingest.defs.failures import RETRIES, as_failure
from eval_ingest.defs.metadata import listed, table
from eval_ingest.defs.partitions import studio_datasets
from eval_ingest.errors import EvalIngestError
from eval_ingest.redaction import MAX_SHOWN, in_lines, in_markdown
from eval_ingest.report.terminal import counts_text
from eval_ingest.settings import Settings
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
VERSION = "version of the dataset"
"""Key of the metadata that says what was checked."""
_DESCRIPTIONS = {
    **{check.name: check.description for check in BY_FINDINGS},
    LOADS: (
        "EvalDataset opens train, val and test, and reads the first and the last sample of each. "
        "If it fails: eval-ingest verify names the damaged files; materialising again mends them."
    ),
    VERDICT: (
        "The dataset is good to compare models on: neither usable with warnings nor poor. "
        "If it fails: the reasons say what to change; the other checks show more."
    ),
}


@dataclass(frozen=True)
class Result:
    """The outcome of a check."""

    name: str
    passed: bool
    text: str
    severity: dg.AssetCheckSeverity = WARN
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """The text for Dagster's page, which takes it for Markdown."""
        return in_markdown(self.text, MAX_SHOWN)


def results(root: EvalRoot, name: str, wanted: Sequence[str]) -> Iterator[Result]:
    """The outcomes of some checks of a registered dataset.

    Raises:
        UnknownDatasetError: it isn't registered.
    """
    entry = require_metadata(root, name)
    for result in _results(root, entry, wanted):
        yield replace(result, metadata={**result.metadata, VERSION: entry.fingerprint})


def _results(root: EvalRoot, entry: Metadata, wanted: Sequence[str]) -> Iterator[Result]:
    for check in BY_FINDINGS:
        if check.name in wanted:
            yield _by_findings(check, entry)
    if LOADS in wanted:
        yield _loads(root, entry)
    if VERDICT in wanted:
        yield _verdict(entry)


def _by_findings(check: Check, entry: Metadata) -> Result:
    if not entry.quality:
        return _without_report(check.name, entry)
    found = [f for f in entry.quality["findings"] if f["code"].startswith(check.codes)]
    bad = [f for f in found if f["severity"] != "note"]
    metadata = {"findings": _findings(found)} if found else {}
    severity = ERROR if any(f["severity"] == "error" for f in bad) else WARN
    text = "; ".join(f["text"] for f in bad or found) or check.fine
    return Result(check.name, not bad, text, severity, metadata)


def _without_report(name: str, entry: Metadata) -> Result:
    text = f"{entry.name} was ingested before there was a quality report; materialise it again"
    return Result(name, False, text)


def _findings(found: Sequence[dict[str, Any]]) -> dg.MarkdownMetadataValue:
    return table(
        ("severity", "how many", "what", "for example"),
        [
            (f["severity"], f"{f['count']} of {f['of']}", f["text"], ", ".join(f["examples"]))
            for f in found
        ],
    )


def _verdict(entry: Metadata) -> Result:
    if not entry.quality:
        return _without_report(VERDICT, entry)
    level, reasons = entry.quality["verdict"], entry.quality["reasons"]
    errors = entry.quality.get("standard_error", {})
    metadata: dict[str, Any] = {"verdict": level}
    if reasons:
        metadata["why"] = listed(reasons)
    metadata |= {
        f"standard error of a score on {split}": error
        for split, error in errors.items()
        if error is not None and split != "train"
    }
    metadata["all findings"] = _findings(entry.quality["findings"])
    text = level if not reasons else f"{level}: {reasons[0]}"
    if len(reasons) > 1:
        text += f" (and {len(reasons) - 1} more)"
    return Result(VERDICT, level == "good", text, ERROR if level == "poor" else WARN, metadata)


def _loads(root: EvalRoot, entry: Metadata) -> Result:
    """Open each split as training code does, and read its ends."""
    # torch takes seconds to import: not for the code location.
    from eval_ingest.loading import EvalDataset

    rows = []
    for split in SPLITS:
        count = entry.splits[split].count
        if not count:
            rows.append((split, 0, "", "", "empty"))
            continue
        began = time.perf_counter()
        try:
            data = EvalDataset(entry.name, split, root=root.address)
            opened_ms = 1000 * (time.perf_counter() - began)
            samples = [data[i] for i in sorted({0, len(data) - 1})]
        except EvalIngestError as error:
            return Result(LOADS, False, f"{split} does not load: {error}", ERROR)
        except Exception as error:
            return Result(LOADS, False, f"{split} does not load: {fault_text(error)}", ERROR)
        problem = _problem(samples, [m.name for m in entry.config.modalities])
        if problem or len(data) != count:
            text = problem or f"{len(data)} samples, metadata.json says {count}"
            return Result(LOADS, False, f"{split} does not load: {text}", ERROR)
        shapes = ", ".join(
            f"{m.name} {tuple(samples[0][m.name].shape)}"
            for m in entry.config.modalities
            if m.name in samples[0]
        )
        rows.append((split, count, shapes, f"{opened_ms:.1f} ms", "loads"))
    empty = [row[0] for row in rows if row[-1] == "empty"]
    metadata = {
        "splits": table(("split", "samples", "a sample (H, W, T, C)", "opened in", ""), rows)
    }
    if empty:
        return Result(
            LOADS, False, f"{', '.join(empty)} is empty; check splits.ratios", WARN, metadata
        )
    counts = counts_text({split: found.count for split, found in entry.splits.items()})
    return Result(LOADS, True, counts, metadata=metadata)


def _problem(samples: Sequence[dict[str, Any]], modalities: Sequence[str]) -> str:
    """What is wrong with samples; "" if nothing."""
    for sample in samples:
        for modality in modalities:
            pixels = sample.get(modality)
            if pixels is not None and not np.isfinite(np.asarray(pixels)).any():
                return f"{sample['window']}: no pixel of {modality} is a number"
    return ""


# ------------------------------------------------------------------------------- as Dagster has it


def evaluations(root: EvalRoot, name: str) -> Iterator[dg.AssetCheckEvaluation]:
    """All checks of a dataset's registry_entry, for what logs them beside its asset.

    Raises:
        UnknownDatasetError: the dataset isn't registered.
    """
    for result in results(root, name, tuple(_DESCRIPTIONS)):
        yield dg.AssetCheckEvaluation(
            asset_key=registry_entry.key,
            check_name=result.name,
            passed=result.passed,
            metadata=result.metadata,
            severity=result.severity,
            description=result.description,
            partition=name,
        )


def _specs() -> list[dg.AssetCheckSpec]:
    with warnings.catch_warnings():
        # Checks of a partition are "in preview"; unpartitioned ones would be of all datasets.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(
                check,
                asset=registry_entry,
                description=description,
                partitions_def=studio_datasets,
            )
            for check, description in _DESCRIPTIONS.items()
        ]


@dg.multi_asset_check(
    name="registry_entry_checks",
    description="Is the dataset fit to be an eval, and does it load?",
    specs=_specs(),
    can_subset=True,
    retry_policy=RETRIES,
)
def registry_entry_checks(
    context: dg.AssetCheckExecutionContext, settings: dg.ResourceParam[Settings]
) -> Iterator[dg.AssetCheckResult]:
    """Run the checks that are asked for on the dataset that is the partition."""
    name = context.partition_key
    wanted = [key.name for key in context.selected_asset_check_keys]
    with as_failure(name):
        found = list(results(open_root(settings), name, wanted))
    for result in found:
        level = "passed" if result.passed else result.severity.value.lower()
        context.log.info(in_lines(f"{result.name}: {level}: {result.text}"))
        yield dg.AssetCheckResult(
            asset_key=registry_entry.key,
            check_name=result.name,
            passed=result.passed,
            metadata=result.metadata,
            severity=result.severity,
            description=result.description,
        )
