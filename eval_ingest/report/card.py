"""The report of a dataset: pictures, one HTML page that holds everything, and a dataset card."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from eval_ingest.core.modality import MODALITIES
from eval_ingest.core.quality import quality_report
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.task import TaskKind
from eval_ingest.report.pictures import Picture, View, all_pictures, open_view
from eval_ingest.report.terminal import size, task_text
from eval_ingest.store.atomic import write_bytes
from eval_ingest.store.layout import EvalRoot

Rows = list[list[str]]
"""A table: the heads, then the lines."""


def write_report(root: EvalRoot, name: str) -> list[Path]:
    """Write {name}/report/*.png, {name}/report/report.html and {name}/README.md.

    Raises:
        UnknownDatasetError: there is no such dataset.
        NotIngestedError: its index is of another version.
        StoreError: the eval root can't be written.
    """
    view = open_view(root, name)
    quality = quality_report(view.index, view.assignment, view.metadata.config)
    pictures = all_pictures(view)
    folder = root.dataset(name).path
    files = {folder / "report" / f"{p.name}.png": p.png for p in pictures}
    files[folder / "report" / "report.html"] = html_page(view, quality, pictures).encode()
    files[folder / "README.md"] = dataset_card(view, quality, pictures).encode()
    for path, data in files.items():
        write_bytes(path, data)
    root.push(*files)
    return list(files)


# ---------------------------------------------------------------------------------------- tables


def _facts(view: View) -> Rows:
    metadata, config = view.metadata, view.metadata.config
    counts = ", ".join(f"{split} {metadata.splits[split].count:,}" for split in SPLITS)
    return [
        ["", ""],
        ["task", task_text(config.task)],
        ["windows", f"{sum(metadata.splits[s].count for s in SPLITS):,}: {counts}"],
        ["inputs", ", ".join(f"{m.name} ({len(m.bands)} bands)" for m in config.modalities)],
        ["window size", f"{metadata.window_size} pixels, crop {config.crop_size or 'none'}"],
        ["timesteps", f"up to {metadata.num_timesteps}"],
        ["split", str(metadata.split_report.get("strategy", ""))],
        ["size", size(metadata.n_bytes)],
        ["source", metadata.source],
        ["licence", metadata.spec.licence or "not stated"],
        ["published", f"{metadata.published_at}, version {metadata.fingerprint}"],
    ]


def _split_table(view: View, quality: dict[str, Any]) -> Rows:
    rows = [["split", "windows", "standard error", "overlap train", "near train", "same pixels"]]
    for split in SPLITS:
        error = quality["standard_error"][split]
        leaks = quality["leakage"]["splits"].get(split)
        cells = ["", "", ""]
        if leaks is not None:
            kinds = ("overlapping", "near", "duplicated")
            cells = [f"{leaks[kind]['count']:,}" for kind in kinds]
        points = "" if error is None else f"{100 * error:.1f} points"
        rows.append([split, f"{view.metadata.splits[split].count:,}", points, *cells])
    return rows


def _class_table(view: View) -> Rows:
    if not view.task.kind.has_classes:
        return []
    counts = {s: view.class_counts[view.splits == s].sum(axis=0) for s in SPLITS}
    unit = "pixels" if view.task.kind.per_pixel else "windows"
    rows = [["id", "class", *(f"{split} ({unit})" for split in SPLITS)]]
    for k, known in enumerate(view.task.classes):
        note = " (marks missing labels)" if k == view.task.ignored_id else ""
        rows.append([str(k), known.name + note, *(f"{counts[s][k]:,}" for s in SPLITS)])
    return rows


def _band_table(view: View) -> Rows:
    rows = [["modality", "band", "mean", "std", "min", "max"]]
    for modality, bands in view.metadata.norm_stats.items():
        for band, found in bands.items():
            numbers = [f"{found[key]:.5g}" for key in ("mean", "std", "min", "max")]
            rows.append([modality, band, *numbers])
    return rows


# ------------------------------------------------------------------------------------- HTML page

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2a33; --soft: #66727c; --line: #dfe4e8;
  --page: #f6f7f8; --card: #ffffff; --good: #1a7f4b; --usable: #a86400; --poor: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ed; --soft: #9aa6b0; --line: #35404a;
  --page: #14191d; --card: #1c2329; --good: #57c78b; --usable: #f0ad4e; --poor: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 18px; margin: 30px 0 10px; }
p { margin: 6px 0; } .soft { color: var(--soft); }
section, figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 18px; margin: 0 0 18px; overflow-x: auto; }
figure { background: #ffffff; padding: 8px; } figure img { display: block; width: 100%; }
.verdict { display: inline-block; border: 1.5px solid currentColor; border-radius: 999px;
  padding: 1px 12px; font-weight: 600; }
.good { color: var(--good); } .usable, .warning { color: var(--usable); }
.poor, .error { color: var(--poor); } .note { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 4px 14px 4px 0;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); font-size: 13px; }
tr:last-child td { border-bottom: 0; } td.number { text-align: right; }
ul { margin: 6px 0; padding-left: 20px; } summary { cursor: pointer; color: var(--soft); }
pre { background: var(--page); border-radius: 8px; padding: 10px 14px; overflow-x: auto; }
code { font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
"""


def html_page(view: View, quality: dict[str, Any], pictures: Sequence[Picture]) -> str:
    """One page that needs nothing beside itself: pictures are inline, no script, no font."""
    metadata = view.metadata
    title = html.escape(metadata.spec.display_name or metadata.name)
    level = quality["verdict"]
    body = [
        f"<h1>{title}</h1>",
        f'<p class="soft"><code>{html.escape(metadata.name)}</code> · '
        f"{html.escape(task_text(view.task))}</p>",
        f'<p><span class="verdict {level.split()[0]}">{level}</span></p>',
        _html_notes(metadata.spec.notes),
        "<h2>In short</h2>",
        _html_table(_facts(view)),
        "<h2>Quality</h2>",
        _html_findings(quality["findings"]),
        _html_table(_split_table(view, quality)),
        *(_html_picture(picture) for picture in pictures),
    ]
    if view.task.kind.has_classes:
        body += ["<h2>Classes</h2>", _html_table(_class_table(view))]
    body += [
        "<h2>Normalisation</h2>",
        "<section><details><summary>statistics of the train windows per band</summary>"
        f"{_bare_table(_band_table(view))}</details></section>",
        "<h2>Use it</h2>",
        f"<section><pre><code>{html.escape(_usage(metadata.name))}</code></pre></section>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _html_notes(notes: str | None) -> str:
    return f"<p>{html.escape(notes)}</p>" if notes else ""


def _html_findings(findings: Sequence[dict[str, Any]]) -> str:
    if not findings:
        return "<section><p>Nothing was found amiss.</p></section>"
    lines = ["<section><ul>"]
    for found in findings:
        lines.append(
            f'<li><span class="{found["severity"]}">{found["severity"]}</span> '
            f"{html.escape(found['text'])}"
        )
        if found["examples"]:
            shown = "<br>".join(html.escape(text) for text in found["examples"])
            lines.append(
                f'<details><summary>examples</summary><p class="soft">{shown}</p></details>'
            )
        lines.append("</li>")
    return "\n".join([*lines, "</ul></section>"])


def _html_picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    title = html.escape(picture.title)
    return (
        f'<h2>{title}</h2>\n<figure><img alt="{title}" src="data:image/png;base64,{data}"></figure>'
    )


def _html_table(rows: Rows) -> str:
    return f"<section>{_bare_table(rows)}</section>"


def _bare_table(rows: Rows) -> str:
    lines = ["<table>"]
    if any(rows[0]):
        lines.append(f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in rows[0])}</tr>")
    for row in rows[1:]:
        lines.append(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>")
    return "\n".join([*lines, "</table>"])


# ---------------------------------------------------------------------------------- dataset card

_HUB_TASKS = {
    TaskKind.SEGMENTATION: "image-segmentation",
    TaskKind.CLASSIFICATION: "image-classification",
    TaskKind.REGRESSION: "other",
    TaskKind.SCALAR_REGRESSION: "other",
}
"""The Hugging Face Hub knows no regression from images."""

_HUB_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (10**12, "10M<n<100M"),
)

_HUB_LICENCES = frozenset((
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "unlicense",
    "cc", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-permissive-1.0",
    "cdla-permissive-2.0", "cdla-sharing-1.0", "odbl", "odc-by", "pddl", "etalab-2.0",
))  # fmt: skip
"""Of the Hub's licence identifiers those that data comes under."""


def hub_header(view: View) -> dict[str, Any]:
    """The YAML header of a dataset card on the Hugging Face Hub."""
    metadata = view.metadata
    header: dict[str, Any] = {"pretty_name": metadata.spec.display_name or metadata.name}
    header |= _hub_licence(metadata.spec.licence)
    header["task_categories"] = [_HUB_TASKS[view.task.kind]]
    count = sum(metadata.splits[split].count for split in SPLITS)
    header["size_categories"] = [next(text for most, text in _HUB_SIZES if count < most)]
    header["tags"] = [
        "earth-observation",
        "remote-sensing",
        "satellite-imagery",
        "rslearn",
        "olmoearth",
        str(view.task.kind).replace("_", "-"),
        *(m.name for m in metadata.config.modalities if m.name in MODALITIES),
    ]
    # The Hub's viewer shows the split indexes; the pixels are in samples/.
    names = {"train": "train", "val": "validation", "test": "test"}
    header["configs"] = [
        {
            "config_name": "index",
            "data_files": [
                {"split": names[split], "path": metadata.splits[split].index} for split in SPLITS
            ],
        }
    ]
    return header


def _hub_licence(licence: str | None) -> dict[str, str]:
    if licence is None:
        return {"license": "unknown"}
    plain = re.sub(r"[\s_]+", "-", licence.strip().lower())
    if plain in _HUB_LICENCES:
        return {"license": plain}
    return {"license": "other", "license_name": plain[:80]}


def dataset_card(view: View, quality: dict[str, Any], pictures: Sequence[Picture]) -> str:
    """README.md: what it is, how it is divided, how good it is, and how to use it."""
    metadata = view.metadata
    header = yaml.safe_dump(hub_header(view), sort_keys=False, allow_unicode=True)
    shown = [p for p in pictures if p.name.startswith("preview_") or p.name in ("map", "labels")]
    parts = [
        f"---\n{header}---\n",
        f"# {_plain(metadata.spec.display_name or metadata.name)}\n",
    ]
    if metadata.spec.notes:
        parts.append(_plain(metadata.spec.notes) + "\n")
    parts += [
        _markdown([["fact", "value"], *_facts(view)[1:]]),
        *(f"![{_plain(p.title)}](report/{p.name}.png)\n" for p in shown),
        "## Quality\n",
        f"Verdict: **{quality['verdict']}**.\n",
        "\n".join(f"- {f['severity']}: {_plain(f['text'])}" for f in quality["findings"]) + "\n",
        _markdown(_split_table(view, quality)),
        "The standard error is that of accuracy at worst, sqrt(0.25 / windows); differences "
        "between models below it mean nothing.\n",
    ]
    if view.task.kind.has_classes:
        parts += ["## Classes\n", _markdown(_class_table(view))]
    parts += [
        "## Use it\n",
        f"```python\n{_usage(metadata.name)}```\n",
        "## Files\n",
        "- `metadata.json`: the whole configuration; names the files below\n"
        "- `samples/`: packed samples, `.npy` per modality and for the target, (N, H, W, T, C)\n"
        "- `train/`, `val/`, `test/`: which rows of which shard make up the split\n"
        "- `window_index.parquet`: one row a window, GeoParquet\n"
        "- `norm_stats.json`: mean, std, min and max per band of the train windows\n"
        "- `windows/`, `config.json`, `model.yaml`: the same windows in rslearn's format, "
        "where they are part of it\n"
        "- `report/report.html`: this page with more pictures\n",
    ]
    return "\n".join(part for part in parts if part.strip())


def _usage(name: str) -> str:
    return (
        "# OLMOEARTH_EVAL_DATASETS is the folder that holds registry.json\n"
        "from eval_ingest import EvalDataset\n\n"
        f'ds = EvalDataset("{name}", split="train")\n'
        "sample = ds[0]  # per modality float32 (H, W, T, C); timestamps; target; window\n"
    )


def _markdown(rows: Rows) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return text if set(text) == {"-"} else _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """One line without HTML: names come from data."""
    return " ".join(html.escape(text, quote=False).split())
