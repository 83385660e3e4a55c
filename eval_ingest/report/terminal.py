"""What the command line prints: plain lines, made from values.

What doesn't belong here: how lines reach a terminal (printing.py).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval_ingest.core.entry import (
    BandStatsTable,
    Metadata,
    is_ours,
    listed,
    members,
    split_counts,
    utc,
)
from eval_ingest.core.resolved import size_text
from eval_ingest.core.signal import Signal
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.task import Task
from eval_ingest.redaction import redacted, spelled
from eval_ingest.report.printing import screen, table

if TYPE_CHECKING:
    from eval_ingest.adopting import Adopted
    from eval_ingest.job import Job
    from eval_ingest.pipeline import Outcome
    from eval_ingest.watching import Judgement, Sighting


Rows = list[list[str]]
"""A table: the heads, then the lines."""


def size(n_bytes: float) -> str:
    """Bytes in the largest fitting unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


_MAX_CLASSES = 40
"""Classes that are listed; reports have all of them."""


def plural(count: int, what: str) -> str:
    """`1 window`, `1,200 windows`."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def counted(reasons: Mapping[str, int]) -> str:
    """`3 label_missing, 1,200 raster_grid`."""
    return ", ".join(f"{count:,} {code}" for code, count in reasons.items())


def outcome_line(outcome: "Outcome") -> str:
    """One line about a stage."""
    return f"{outcome.stage:<17} {describe(outcome)}"


def describe(outcome: "Outcome") -> str:
    """What a stage gave, in words."""
    if not outcome.ran:
        return "up to date, nothing to do"
    value = outcome.value
    match outcome.stage:
        case "window_index":
            summary = value.summary
            text = f"{summary.n_windows} windows, {summary.n_invalid} invalid"
            if summary.reasons:
                text += f" ({counted(summary.reasons)})"
        case "split_assignment":
            text = f"{counts_text(value.counts())}; {value.report['strategy']}"
        case "norm_stats":
            bands = sum(len(stats) for stats in value.stats.values())
            text = f"{bands} bands from {value.n_windows} train windows"
            text += "".join(f"; {warning}" for warning in value.warnings)
        case "weka_copy":
            text = f"{size(value.packed_bytes)} packed"
            if value.mode == "index":
                text = "nothing copied: samples are read from the source (copy: index)"
            elif value.mode == "windows":
                text = f"{value.n_copied} windows ({size(value.n_bytes)}) copied, {text}"
            else:
                text += f", windows not copied (copy: {value.mode})"
        case _:
            text = "published"
    return f"{text} ({outcome.seconds:.1f} s)"


def counts_text(counts: Mapping[str, int]) -> str:
    """`train 84, val 18, test 18`."""
    return ", ".join(f"{split} {counts.get(split, 0)}" for split in SPLITS)


def summary(job: "Job", outcomes: "Sequence[Outcome]") -> dict[str, Any]:
    """What an ingest did, for people and programs."""
    values = {outcome.stage: outcome.value for outcome in outcomes}
    ran = any(outcome.ran for outcome in outcomes)
    return {
        "name": job.spec.name,
        "path": job.store.url,
        "ran": ran,
        "registered": "registry_entry" in values,
        "stages": {
            outcome.stage: {
                "ran": outcome.ran,
                "seconds": round(outcome.seconds, 3),
                "fingerprint": outcome.fingerprint,
            }
            for outcome in outcomes
        },
        "counts": values["split_assignment"].counts(),
        "report": values["split_assignment"].report if ran else None,
        "classes": [known.name for known in job.config.task.classes],
        "quality": values["registry_entry"].quality if "registry_entry" in values else {},
        "warnings": [*job.config.warnings, *values["norm_stats"].warnings] if ran else [],
    }


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The end of an ingest."""
    lines = []
    if summary["report"]:
        lines += ["", *split_lines(summary["report"], summary["classes"])]
    if summary["ran"]:
        lines += quality_lines(summary["quality"])
    lines += [f"warning: {text}" for text in summary["warnings"]]
    name = summary["name"]
    if not summary["ran"]:
        lines.append(f"{name} is up to date: nothing was to be done")
    elif summary["registered"]:
        lines += ["", f"{name} is registered: {summary['path']}"]
        lines.append(f'use it: EvalDataset("{name}", split="train")')
    else:
        lines += ["", f"{name} is in {summary['path']}, not registered (--no-register)"]
    return lines


def split_lines(report: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """The split report as a table; nothing without one."""
    if not report:
        return []
    counts, beyond = report["counts"], 0
    lines = [f"splits: {report['strategy']}"]
    rows = [["", *SPLITS], ["windows", *(str(counts[split]) for split in SPLITS)]]
    if "class_counts" in report:
        totals = {split: max(sum(found), 1) for split, found in report["class_counts"].items()}
        shares = [
            (name, [report["class_counts"][split][k] / totals[split] for split in SPLITS])
            for k, name in enumerate(classes)
        ]
        there = [(name, found) for name, found in shares if any(found)]
        beyond = len(there) - _MAX_CLASSES
        for name, found in there[:_MAX_CLASSES]:
            rows.append([name, *(f"{share:.1%}" for share in found)])
    for split, found in report.get("target", {}).items():
        lines.append(f"  {split}: mean {found['mean']:.4g}, std {found['std']:.4g}")
    lines += table(rows)
    if beyond > 0:
        lines.append(f"  and {beyond:,} more classes")
    for split, names in report.get("classes_missing", {}).items():
        if names:
            more = len(names) - _MAX_CLASSES
            listed = ", ".join(names[:_MAX_CLASSES]) + (f" and {more:,} more" if more > 0 else "")
            lines.append(f"  {split} has no {listed}")
    for split, distance in report.get("distance_from_train", {}).items():
        lines.append(f"  class shares of {split} and train overlap by {1 - distance:.0%}")
    for reason, count in report.get("left_out", {}).items():
        lines.append(f"  {plural(count, 'window')} in no split: {reason}")
    return lines


def quality_lines(quality: Mapping[str, Any]) -> list[str]:
    """The verdict on a dataset, and why it isn't better."""
    if not quality:
        return []
    return [f"verdict: {quality['verdict']}", *(f"  {reason}" for reason in quality["reasons"])]


def task_text(task: Task) -> str:
    """`segmentation, 6 classes; id 0 is no data`."""
    if not task.kind.has_classes:
        return str(task.kind)
    if task.ignored_id is None:
        return f"{task.kind}, {task.num_classes} classes"
    return f"{task.kind}, {task.num_classes - 1} classes; id {task.ignored_id} is no data"


def config_lines(job: "Job") -> list[str]:
    """What was inferred, and from where."""
    config, origin = job.config, job.config.provenance
    crop = "none" if config.crop_size is None else f"{size_text(config.crop_size)} pixels"
    rows = [["", "value", "from"]]
    rows.append(["task", task_text(config.task), origin.get("task", "")])
    if config.task.classes:
        named = enumerate(config.task.classes)
        names = ", ".join(known.name for k, known in named if k != config.task.ignored_id)
        rows.append(["classes", _short(names), origin.get("classes", "")])
    if config.task.nodata_value is not None:
        rows.append(["nodata", f"{config.task.nodata_value:g}", origin.get("nodata_value", "")])
    if config.task.property_name:
        rows.append(["property", config.task.property_name, origin.get("property_name", "")])
    reads = ", ".join(read.specifier for read in config.label.part.reads)
    rows.append(["label", reads, origin.get("label", "")])
    for modality in config.modalities:
        layers = ", ".join(dict.fromkeys(r.specifier for p in modality.parts for r in p.reads))
        text = f"{len(modality.bands)} bands {modality.dtype} from {_short(layers)}"
        if modality.missing_bands:
            text += f"; lacks {', '.join(modality.missing_bands)}"
        rows.append([modality.name, text, origin.get("modalities", "")])
    rows.append(["crop size", crop, origin.get("crop_size", "")])
    other = {"val": "test", "test": "val", "train": "train"}
    for split, selector in config.selectors.items():
        parts = [*(selector.groups and [f"groups {', '.join(selector.groups)}"]),
                 *(f"{k}={v}" if v else k for k, v in selector.tags.items())]  # fmt: skip
        text = _short("; ".join(parts) or "all windows")
        if split != "train" and selector == config.selectors.get(other[split]):
            text += f" (divided: a part of these windows, {other[split]} has the others)"
        rows.append([split, text, origin.get("selectors", "")])
    lines = [f"{job.spec.name}  {redacted(job.source.url)}", *_with_origins(rows)]
    if config.unsupported_inputs:
        lines.append(f"not loaded: {', '.join(config.unsupported_inputs)}")
    if config.dropped_transforms:
        lines.append(f"transforms left out: {', '.join(config.dropped_transforms)}")
    lines += [f"warning: {text}" for text in config.warnings]
    return lines


def _with_origins(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of names, values and origins; too wide for the terminal, origins below the values."""
    width = screen()
    wide = table(rows, width=width)
    if width is None or max(map(len, wide)) <= width:
        return wide
    below = [["", "value"]]
    for name, value, origin in rows[1:]:
        below.append([name, value])
        below += [["", f"from {origin.replace('.init_args', '')}"]] if origin else []
    return table(below, width=width)


def _short(text: str, limit: int = 72) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def dry_run_lines(plan: Mapping[str, Any]) -> list[str]:
    """What an ingest would do."""
    windows = f"{plan['n_windows']:,} windows in {', '.join(plan['groups'])}"
    if plan["n_filtered_out"]:
        windows += f" ({plan['n_filtered_out']:,} others don't match tags or time)"
    return [
        f"{plan['name']}: {windows}, {plan['n_files']:,} files, {size(plan['n_bytes'])} to read",
        f"splits: {counts_text(plan['counts'])}; {plan['strategy']}",
        *(f"  {plural(n, 'window')} in no split: {why}" for why, n in plan["left_out"].items()),
        "  (labels and rasters are not read in a dry run: invalid windows will leave their splits)",
        f"would write to {plan['path']}",
        "nothing was written (--dry-run)",
    ]


def list_lines(
    root: str,
    registry: Mapping[str, Any],
    sources: Mapping[str, str],
    out_of_reach: Collection[str] = (),
) -> list[str]:
    """Registered datasets, then those of the catalog that are not ingested.

    Args:
        root: the eval root.
        registry: its entries.
        sources: where the datasets of the catalog come from.
        out_of_reach: those whose source isn't on this machine.
    """
    lines = [f"eval root {root}"]
    rows = [["name", "task", "modalities", *SPLITS, "verdict"]]
    rows += [_registered_row(name, entry) for name, entry in sorted(registry.items())]
    lines += table(rows) if len(rows) > 1 else ["  no dataset is registered yet"]
    theirs = [name for name, entry in registry.items() if not is_ours(entry)]
    if theirs:
        lines.append(
            f"  {THEIRS}: {plural(len(theirs), 'dataset')} that another tool has registered; to "
            "load them here, where they are: eval-ingest adopt NAME, or --all"
        )
    waiting = [name for name in sources if name not in registry]
    here = [[name, sources[name]] for name in waiting if name not in out_of_reach]
    if here:
        lines += ["", "in the catalog, not ingested (eval-ingest ingest NAME)"]
        lines += table([["name", "source"], *here])
    elsewhere = [name for name in waiting if name in out_of_reach]
    if elsewhere:
        lines += ["", f"in the catalog, with sources that are not here: {', '.join(elsewhere)}"]
    return lines


THEIRS = "not ours"
"""In the place of a verdict."""


def _registered_row(name: str, entry: Mapping[str, Any]) -> list[str]:
    """A line of `list`; of an entry of others, whatever it says."""
    known = split_counts(entry)
    counts = [str(known.get(split, "?")) for split in SPLITS]
    modalities = ", ".join(dict.fromkeys(map(str, listed(entry.get("modalities")))))
    verdict = str(entry.get("verdict", "")) if is_ours(entry) else THEIRS
    return [name, str(entry.get("task_type", "")), modalities, *counts, verdict]


def entry_lines(name: str, entry: Mapping[str, Any]) -> list[str]:
    """What another tool's entry in registry.json says."""
    facts = {**entry, "norm_stats": ", ".join(members(entry.get("norm_stats"))) or "none"}
    facts["classes"] = _short(", ".join(map(str, listed(entry.get("classes")))))
    counted = split_counts(entry)
    facts["split_stats"] = ", ".join(f"{s} {n}" for s, n in counted.items()) or "not counted"
    facts["modalities"] = ", ".join(map(str, listed(entry.get("modalities"))))
    wide = max(map(len, facts))
    return [
        f"{name}  registered by another tool",
        *(f"  {key:<{wide}}  {value}" for key, value in facts.items() if key != "name"),
        f"to load it here, where it is: eval-ingest adopt {name}",
    ]


def adopted_facts(adopted: "Adopted") -> dict[str, Any]:
    """What became of a dataset of another tool, for programs."""
    metadata = adopted.metadata
    return {
        "ran": adopted.ran,
        "source": redacted(adopted.source),
        "splits": {split: found.count for split, found in metadata.splits.items()},
        "verdict": metadata.quality.get("verdict", ""),
        "corrected": metadata.spec.correct,
        "differences": {
            found.field: {"theirs": found.theirs, "ours": found.ours, "why": found.why}
            for found in adopted.differences
        },
    }


def adopted_lines(adopted: "Adopted") -> list[str]:
    """What became of a dataset of another tool, and what its entry says otherwise."""
    metadata, name = adopted.metadata, adopted.name
    if not adopted.ran:
        return [f"{name} is adopted already: nothing was to be done"]
    counts = counts_text({split: found.count for split, found in metadata.splits.items()})
    lines = [f"{name} is adopted: {counts}; windows stay in {redacted(adopted.source)}"]
    lines += quality_lines(metadata.quality)
    if metadata.invalid:
        lines.append(f"  windows that can't be read: {counted(metadata.invalid)}")
    if adopted.differences:
        done = "put right in its entry" if metadata.spec.correct else "its entry is left as it is"
        lines.append(f"  found otherwise ({done}):")
        lines += [f"    {difference}" for difference in adopted.differences]
        if not metadata.spec.correct:
            lines.append(f"  to put it right: eval-ingest adopt {name} --correct")
    return [*lines, f'use it: EvalDataset("{name}", split="train")']


def discover_lines(
    roots: Sequence[str],
    judged: Sequence["tuple[Sighting, Judgement]"],
    down: Mapping[str, str],
) -> list[str]:
    """Datasets under the roots, and what is to be done about each."""
    rows = [["name", "source", "task", "windows", "state", "reason"]]
    for sighting, judgement in judged:
        task = task_text(judgement.task) if judgement.task else ""
        windows, state = f"{sighting.found.windows:,}", str(judgement.state)
        source = sighting.found.url
        reason = judgement.reason.removeprefix(f"{source}/")
        rows.append([sighting.name, source, task, windows, state, reason])
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    if len(rows) > 1:
        lines = table(rows, indent="")
    else:
        under = [at for at in map(spelled, map(redacted, roots)) if at not in down]
        what = "no dataset (config.json beside windows/)"
        lines = [f"{what} under {', '.join(under)}"] if under else []
    return lines + [
        f"could not look everywhere: {reason}"
        if root in reason
        else f"could not look into {root}: {reason}"
        for root, reason in down.items()
    ]


def info_lines(metadata: Metadata, path: str) -> list[str]:
    """Everything about a dataset that a person asks for."""
    config = metadata.config
    published = utc(metadata.published_at)
    windows = f"{metadata.n_windows:,}"
    if metadata.invalid:
        n_invalid = sum(metadata.invalid.values())
        windows += f", of them {n_invalid:,} invalid: {counted(metadata.invalid)}"
    source = metadata.source
    if metadata.spec.copy_mode == "index":
        source += ": samples are read from there"
    facts = [
        ("path", f"{path} ({size(metadata.n_bytes)})"),
        ("source", source),
        ("published", f"{published}, version {metadata.fingerprint}"),
        ("windows", windows),
        *((m.name, f"{len(m.bands)} bands, {m.dtype}") for m in config.modalities),
        ("timesteps", f"up to {metadata.num_timesteps}"),
        ("size", f"{metadata.window_size} pixels, crop {size_text(config.crop_size)}"),
    ]
    wide = max(len(name) for name, _ in facts)
    lines = [f"{metadata.name}  {task_text(config.task)}"]
    lines += [f"  {name:<{wide}}  {text}" for name, text in facts]
    lines += split_lines(metadata.split_report, [known.name for known in config.task.classes])
    lines += quality_lines(metadata.quality)
    signal = Signal.of(metadata.signal)
    lines += [] if signal is None else signal.lines()
    lines += [f"warning: {text}" for text in metadata.warnings]
    lines.append(f'use it: EvalDataset("{metadata.name}", split="train")')
    return lines


def band_table(norm_stats: BandStatsTable) -> Rows:
    """Statistics of the train windows per band."""
    rows = [["modality", "band", "mean", "std", "min", "max"]]
    for modality, bands in norm_stats.items():
        for band, found in bands.items():
            numbers = [f"{found[key]:.5g}" for key in ("mean", "std", "min", "max")]
            rows.append([modality, band, *numbers])
    return rows


def usage(name: str) -> str:
    """The Python that loads a dataset."""
    return (
        "# OLMOEARTH_EVAL_DATASETS is the folder that holds registry.json\n"
        "from eval_ingest import EvalDataset\n\n"
        f'ds = EvalDataset("{name}", split="train")\n'
        "sample = ds[0]  # per modality float32 (H, W, T, C); timestamps; target; window\n"
    )
