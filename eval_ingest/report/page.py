"""The report of a dataset as one HTML page that needs nothing beside itself."""

import base64
import html
from collections import Counter
from collections.abc import Sequence
from typing import Any

from eval_ingest.redaction import in_html, shown
from eval_ingest.report.pictures import Picture
from eval_ingest.report.tables import (
    Rows,
    band_table,
    class_table,
    facts,
    split_note,
    split_table,
    usage,
)
from eval_ingest.report.terminal import task_text
from eval_ingest.report.view import View

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
figure { background: #ffffff; padding: 8px; }
figure img { display: block; width: 100%; min-width: 720px; }
.verdict { display: inline-block; border: 1.5px solid currentColor; border-radius: 999px;
  padding: 1px 12px; font-weight: 600; }
.good { color: var(--good); } .usable, .warning { color: var(--usable); }
.poor, .error { color: var(--poor); } .note { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 4px 14px 4px 0;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); font-size: 13px; }
tr:last-child td { border-bottom: 0; } .number { text-align: right; white-space: nowrap; }
table.facts td:first-child { width: 11em; color: var(--soft); overflow-wrap: anywhere; }
table.facts td { overflow-wrap: anywhere; }
ul { margin: 0; padding: 0; list-style: none; } li { padding: 3px 0; }
li > div, li summary { display: grid; grid-template-columns: 5em 1fr 1.2em; cursor: default; }
li summary { cursor: pointer; list-style: none; }
li summary::-webkit-details-marker { display: none; }
li summary::after { content: "▸"; color: var(--soft); text-align: right; }
li details[open] summary::after { content: "▾"; }
li p { margin: 2px 1.2em 6px 5em; overflow-wrap: anywhere; }
b { font-weight: 600; } p.legend { font-size: 13px; }
section > details > summary { cursor: pointer; color: var(--soft); }
@media (max-width: 600px) { main { padding: 16px 10px 40px; }
  section { padding: 10px 12px; } table.facts td:first-child { width: 8.5em; } }
@media print { section, figure { break-inside: avoid; } }
pre { background: var(--page); border-radius: 8px; padding: 10px 14px; overflow-x: auto; }
code { font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
"""


def html_page(view: View, quality: dict[str, Any], pictures: Sequence[Picture]) -> str:
    """One page that needs nothing beside itself: pictures are inline, no script, no font."""
    metadata = view.metadata
    title = in_html(metadata.spec.display_name or metadata.name)
    level = quality["verdict"]
    body = [
        f"<h1>{title}</h1>",
        f'<p class="soft"><code>{in_html(metadata.name)}</code> · '
        f"{in_html(task_text(view.task))}</p>",
        f'<p><span class="verdict {level.split()[0]}">{level}</span> '
        f'<span class="soft">{_counted(quality["findings"])}</span></p>',
        _html_notes(metadata.spec.notes),
        "<h2>In short</h2>",
        f"<section>{_bare_table(facts(view), 'facts')}</section>",
        "<h2>Quality</h2>",
        _html_findings(quality["findings"]),
        f"<section>{_bare_table(split_table(view, quality))}"
        f'<p class="soft legend">{split_note(view)}</p></section>',
        *(_html_picture(picture) for picture in pictures),
    ]
    if view.task.kind.has_classes:
        body += ["<h2>Classes</h2>", f"<section>{_bare_table(class_table(view))}</section>"]
    body += [
        "<h2>Normalisation</h2>",
        "<section><details><summary>statistics of the train windows per band</summary>"
        f"{_bare_table(band_table(view))}</details></section>",
        "<h2>Use it</h2>",
        f"<section><pre><code>{html.escape(usage(metadata.name))}</code></pre></section>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _html_notes(notes: str | None) -> str:
    return f"<p>{html.escape(shown(notes))}</p>" if notes else ""


def _counted(findings: Sequence[dict[str, Any]]) -> str:
    """`2 errors, 1 warning`."""
    counts = Counter(found["severity"] for found in findings)
    kinds = [(counts[kind], kind) for kind in ("error", "warning", "note") if counts[kind]]
    return ", ".join(f"{n} {kind}{'s' if n > 1 else ''}" for n, kind in kinds)


def _html_findings(findings: Sequence[dict[str, Any]]) -> str:
    if not findings:
        return "<section><p>Nothing was found amiss.</p></section>"
    lines = ["<section><ul>"]
    for found in findings:
        severity = found["severity"]
        line = f'<b class="{severity}">{severity}</b><span>{in_html(found["text"])}</span>'
        if found["examples"]:
            shown = "<br>".join(in_html(text) for text in found["examples"])
            lines.append(
                f"<li><details><summary>{line}</summary>"
                f'<p class="soft">for example<br>{shown}</p></details></li>'
            )
        else:
            lines.append(f"<li><div>{line}</div></li>")
    return "\n".join([*lines, "</ul></section>"])


def _html_picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    title = in_html(picture.title)
    return (
        f'<h2>{title}</h2>\n<figure><img alt="{title}" src="data:image/png;base64,{data}"></figure>'
    )


def _bare_table(rows: Rows, kind: str = "") -> str:
    numeric = [
        bool(rows[1:]) and all(not row[c] or row[c][0] in "-0123456789" for row in rows[1:])
        for c in range(len(rows[0]))
    ]
    if kind:
        numeric = [False] * len(numeric)
    lines = [f'<table class="{kind}">' if kind else "<table>"]
    if any(rows[0]):
        lines.append(_line(rows[0], "th", numeric))
    lines += [_line(row, "td", numeric) for row in rows[1:]]
    return "\n".join([*lines, "</table>"])


def _line(cells: Sequence[str], tag: str, numeric: Sequence[bool]) -> str:
    written = (
        f"<{tag}{' class=number' if right else ''}>{in_html(cell)}</{tag}>"
        for cell, right in zip(cells, numeric, strict=True)
    )
    return f"<tr>{''.join(written)}</tr>"
