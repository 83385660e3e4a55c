"""A dataset in words: report.html, which needs nothing beside itself, and the card for the Hub.

What is told stands here, and how it looks in templates/. Every value that goes into a template is
plain words there: names come from data, and none of them becomes markup.
"""

import base64
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eval_ingest.core.modality import MODALITIES
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.task import TaskKind
from eval_ingest.redaction import in_markdown, on_one_line
from eval_ingest.report import tables
from eval_ingest.report.pictures import Picture
from eval_ingest.report.terminal import Rows, band_table, task_text, usage
from eval_ingest.report.view import View

VIEWER = "viewer"
"""The folder of rows with pictures: viewer.py."""

_MOST = 2_000
"""Characters of a value."""


def html_page(
    view: View,
    quality: dict[str, Any],
    pictures: Sequence[Picture],
    scores: Sequence[tables.Board] = (),
) -> str:
    """One page that needs nothing beside itself: pictures are inline, no script, no font."""
    counts = Counter(found["severity"] for found in quality["findings"])
    counted = [(counts[kind], kind) for kind in ("error", "warning", "note") if counts[kind]]
    return (
        _templates("html")
        .get_template("page.html")
        .render(
            _told(view, quality),
            name=view.metadata.name,
            task=task_text(view.task),
            counted=", ".join(f"{n} {kind}{'s' if n > 1 else ''}" for n, kind in counted),
            pictures=pictures,
            scores=scores,
            bands=band_table(view.metadata.norm_stats),
            history=tables.history_table(view.metadata),
        )
    )


def dataset_card(
    view: View,
    quality: dict[str, Any],
    pictures: Sequence[Picture],
    folder: str = "report/",
    citation: str = "",
) -> str:
    """README.md: what it is, how it is divided, how good it is, and how to use it.

    `folder` is where the pictures are, from the card on.
    """
    told = _told(view, quality)
    header = yaml.safe_dump(hub_header(view), sort_keys=False, allow_unicode=True)
    shown = [p for p in pictures if p.name.startswith("preview_") or p.name in ("map", "labels")]
    return (
        _templates("markdown")
        .get_template("card.md")
        .render(
            told,
            header=Markup(header),
            # Where it came from is nobody's business but the owner's.
            facts=[["fact", "value"], *(row for row in told["facts"][1:] if row[0] != "source")],
            pictures=shown,
            folder=Markup(folder),
            citation=[Markup(line) for line in citation.replace("`", "'").splitlines()],
        )
    )


def _told(view: View, quality: dict[str, Any]) -> dict[str, Any]:
    """What both tell."""
    metadata = view.metadata
    return {
        "title": metadata.spec.display_name or metadata.name,
        "notes": metadata.spec.notes,
        "verdict": quality["verdict"],
        "findings": quality["findings"],
        "facts": tables.facts(view),
        "splits": tables.split_table(view, quality),
        "split_note": Markup(tables.split_note(view)),
        "classes": tables.class_table(view),
        "usage": Markup(usage(metadata.name)),
    }


@cache
def _templates(kind: str) -> Environment:
    """The templates, with every value made plain words of HTML or Markdown."""
    is_html = kind == "html"

    def plain(value: Any) -> Any:
        if value is None or isinstance(value, Markup):
            return value
        text = " ".join(str(value).split())
        return on_one_line(text, _MOST) if is_html else Markup(in_markdown(text, _MOST))

    made = Environment(
        loader=PackageLoader("eval_ingest.report"),
        autoescape=is_html,
        finalize=plain,
        undefined=StrictUndefined,
        trim_blocks=not is_html,
        keep_trailing_newline=True,
    )
    made.filters["data_uri"] = _data_uri
    made.filters["number"] = _number
    made.filters["markdown"] = _markdown
    return made


def _data_uri(picture: Picture) -> Markup:
    return Markup(f"data:image/png;base64,{base64.b64encode(picture.png).decode()}")


def _number(column: int, rows: Rows, facts: bool) -> Markup:
    """The class of a column of numbers."""
    cells = [row[column] for row in rows[1:]]
    numeric = bool(cells) and all(not cell or cell[0] in "-0123456789" for cell in cells)
    return Markup(" class=number" if numeric and not facts else "")


def _markdown(rows: Rows) -> Markup:
    cells = [[in_markdown(" ".join(c.split()), _MOST) for c in row] for row in rows]
    cells.insert(1, ["---"] * len(rows[0]))
    return Markup("".join(f"| {' | '.join(line)} |\n" for line in cells))


# ------------------------------------------------------------------------ the header of the card

_HUB_TASKS = {
    TaskKind.SEGMENTATION: "image-segmentation",
    TaskKind.CLASSIFICATION: "image-classification",
}
"""The Hugging Face Hub knows no regression from images."""

_HUB_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")

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
    count = sum(metadata.splits[split].count for split in SPLITS)
    # The viewer shows pictures where there are any, else the split indexes.
    drawn = (view.root.dataset(metadata.name).layout.path / VIEWER).is_dir()
    tags = ["earth-observation", "remote-sensing", "satellite-imagery", "rslearn", "olmoearth",
            str(view.task.kind).replace("_", "-")]  # fmt: skip
    names = {"train": "train", "val": "validation", "test": "test"}
    shown = [
        {"split": names[split], "path": f"{VIEWER}/{split}.parquet" if drawn else found.index}
        for split, found in metadata.splits.items()
        if found.count
    ]
    return {
        "pretty_name": metadata.spec.display_name or metadata.name,
        **_hub_licence(metadata.spec.licence),
        "task_categories": [_HUB_TASKS.get(view.task.kind, "other")],
        "size_categories": [_HUB_SIZES[max(len(str(count)) - 3, 0)]],
        "tags": tags + [m.name for m in metadata.config.modalities if m.name in MODALITIES],
        "configs": [{"config_name": metadata.name, "data_files": shown}],
    }


def _hub_licence(licence: str | None) -> dict[str, str]:
    if licence is None:
        return {"license": "unknown"}
    plain = re.sub(r"[\s_]+", "-", licence.strip().lower())
    if plain in _HUB_LICENCES:
        return {"license": plain}
    return {"license": "other", "license_name": plain[:80]}
