"""The dataset card: README.md with the header that the Hugging Face Hub reads."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from eval_ingest.core.modality import MODALITIES
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.task import TaskKind
from eval_ingest.redaction import in_markdown
from eval_ingest.report.pictures import Picture
from eval_ingest.report.tables import Rows, class_table, facts, split_note, split_table, usage
from eval_ingest.report.view import View

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


def dataset_card(
    view: View, quality: dict[str, Any], pictures: Sequence[Picture], folder: str = "report/"
) -> str:
    """README.md: what it is, how it is divided, how good it is, and how to use it.

    `folder` is where the pictures are, from the card on.
    """
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
        _markdown([["fact", "value"], *facts(view)[1:]]),
        *(f"![{_plain(p.title)}]({folder}{p.name}.png)\n" for p in shown),
        "## Quality\n",
        f"Verdict: **{quality['verdict']}**.\n",
        "\n".join(f"- {f['severity']}: {_plain(f['text'])}" for f in quality["findings"]) + "\n",
        _markdown(split_table(view, quality)),
        split_note(view) + "\n",
    ]
    if view.task.kind.has_classes:
        parts += ["## Classes\n", _markdown(class_table(view))]
    parts += [
        "## Use it\n",
        f"```python\n{usage(metadata.name)}```\n",
        "## Files\n",
        "- `metadata.json`: the whole configuration; names the files below\n"
        "- `samples/`: packed samples, `.npy` per modality and for the target, (N, H, W, T, C)\n"
        "- `train/`, `val/`, `test/`: which rows of which shard make up the split\n"
        "- `window_index.parquet`: one row a window, GeoParquet\n"
        "- `norm_stats.json`: mean, std, min and max per band of the train windows\n"
        "- `windows/`, `config.json`, `model.yaml`: the same windows in rslearn's format, "
        "where they are part of it\n"
        f"- `{folder}report.html`: this page with more pictures\n",
    ]
    return "\n".join(part for part in parts if part.strip())


def _markdown(rows: Rows) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return text if set(text) == {"-"} else _plain(text)


def _plain(text: str) -> str:
    """One line of plain words: names come from data."""
    return in_markdown(" ".join(text.split()), most=2_000)
