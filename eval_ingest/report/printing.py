"""How lines reach a terminal: wrapped to its width, in colour, with a line that tells progress.

What doesn't belong here: what the lines say (terminal.py).
"""

import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Self, TextIO

from eval_ingest.errors import StoreError
from eval_ingest.redaction import on_one_line, shown
from eval_ingest.settings import plain_terminal


class Progress:
    """A line that tells rate and remaining time, on a terminal; nothing where output is kept."""

    def __init__(self, quiet: bool = False, check: Callable[[], None] = lambda: None) -> None:
        self._quiet, self._check = quiet, check
        self._shown = sys.stderr.isatty() and not quiet
        self._what, self._started, self._last = "", 0.0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._clear()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Tell that `done` of `total` (0: unknown) are done."""
        self._check()
        now = time.monotonic()
        if what != self._what:
            self._what, self._started, self._last = what, now, 0.0
        if not self._shown or (now - self._last < 0.2 and done != total):
            return
        self._last = now
        line = how_far(what, done, total, now - self._started)
        sys.stderr.write(f"\r\x1b[2K{line[: shutil.get_terminal_size().columns - 1]}")
        sys.stderr.flush()

    def line(self, text: str) -> None:
        """Print a line for good, unless the output is for programs."""
        self._check()
        self._clear()
        if not self._quiet:
            say(told([text]), "nobody reads this any more; it goes on to its end")

    def _clear(self) -> None:
        if self._shown and self._what:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


def say(text: str, unread: str = "") -> None:
    """Print for good; neither a pipe that is closed nor a full disk stops work that goes on.

    Args:
        text: what is printed.
        unread: what is told instead, once, where nobody reads it.

    Raises:
        StoreError: it can't be written, and nothing goes on after it.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        hush()
        is_closed = isinstance(error, BrokenPipeError)
        fault = "" if is_closed else f"what is printed can't be written: {error.strerror}; "
        if unread:
            print(fault + unread, file=sys.stderr)
        elif fault:
            raise StoreError(f"{fault}free some space, or print elsewhere") from None


def hush() -> None:
    """Print into nothing from here on: what is left in Python's buffer would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def how_far(what: str, done: int, total: int, seconds: float) -> str:
    """`windows read: 180 of 500, 20 a second, 16 s to go`; total 0: not known."""
    rate = done / max(seconds, 1e-3)
    text = f"{what}: {done:,}" + (f" of {total:,}" if total else "")
    if rate > 0:
        text += f", {rate:,.0f} a second"
    if rate > 0 and total > done:
        left = (total - done) / rate
        unit, per = next((u for u in (("s", 1), ("min", 60)) if left < 90 * u[1]), ("h", 3600))
        text += f", {left / per:.0f} {unit} to go"
    return text


def screen(stream: TextIO | None = None) -> int | None:
    """Columns of the terminal; None where output goes into a file or a pipe: then as it is."""
    stream = sys.stdout if stream is None else stream
    return shutil.get_terminal_size().columns if stream.isatty() else None


def told(lines: Sequence[str], stream: TextIO | None = None) -> str:
    """Lines as a stream is to show them: a terminal wrapped and in colour, others as they are."""
    stream = sys.stdout if stream is None else stream
    text = "\n".join(fitted(lines, screen(stream)))
    if stream.isatty() and not plain_terminal():
        for pattern, color in _COLORS.items():
            text = re.sub(pattern, f"\x1b[{color}m\\g<0>\x1b[0m", text, flags=re.MULTILINE)
    return text


_RED, _GREEN, _YELLOW = 31, 32, 33
_VERDICT = r"(?:(?<=^verdict: )|(?<=\S  ))"
_COLORS = {
    r"^(error|  damaged)(?=:)": _RED,
    r"^warning(?=:)": _YELLOW,
    rf"{_VERDICT}good$": _GREEN,
    rf"{_VERDICT}usable with warnings$": _YELLOW,
    rf"{_VERDICT}poor$": _RED,
}
"""Colours of ANSI's, by what is shown in them."""

_LABELLED = re.compile(r"(\s*)(\S.*?\s{2,})?(?=\S)")
_WORD = r"""(?:'[^']*'|"[^"]*"|[^\s;,'"])+(?<![.:])"""
_COMMAND = re.compile(rf"(?<=: )(?:eval-ingest|dagster|dg|pip|hf|gcloud|export)(?: {_WORD})+$")
"""A command at the end of a line, which is to run when it is pasted."""

_NARROWEST = 24
"""Texts are not wrapped into less than so many columns."""


def fitted(lines: Sequence[str], width: int | None) -> list[str]:
    """Lines of prose wrapped to a width, if there is one; tables stay as they are.

    No word is broken, be it a path: what doesn't fit stands on a line of its own.
    """
    lines = [shown(line) for line in lines]
    if width is None:
        return lines
    return [part for line in lines for part in _fitted(line, width)]


def _fitted(line: str, width: int) -> list[str]:
    match = _LABELLED.match(line)
    if len(line) <= width or match is None or "  " in line[match.end() :]:
        return [line]
    lead, start = len(match[1]), match.end()
    text = line[start:]
    if match[2] and max(map(len, text.split(" "))) > width - start:
        return [line[:start].rstrip(), *_fitted(" " * (lead + 2) + text, width)]
    indent = start if match[2] and width - start >= _NARROWEST else lead + 2
    command = _COMMAND.search(line)
    if command is None:
        return _wrapped(line, width, indent)
    *before, last = _wrapped(line[: command.start()].rstrip(), width, indent)
    if len(last) + 1 + len(command[0]) <= width:
        return [*before, f"{last} {command[0]}"]
    return [*before, last, *_continued(command[0], width, indent)]


def _continued(command: str, width: int, indent: int) -> list[str]:
    r"""A command, at the ends of whose lines stands a \, so that it can be pasted."""
    lines = [""]
    for word in re.findall(_WORD, command):
        if lines[-1] and indent + len(lines[-1]) + len(word) + 3 > width:
            lines.append("  ")
        lines[-1] += word + " "
    return [" " * indent + line + "\\" for line in lines[:-1]] + [" " * indent + lines[-1].rstrip()]


def _wrapped(text: str, width: int, indent: int) -> list[str]:
    lead = " " * (len(text) - len(text.lstrip()))
    together = re.sub(r"(?<=\d) (?=(?:s|min|h|m|B|[KMGT]iB)\b)", "\0", text.strip())
    lines = textwrap.wrap(
        together, max(width, 1), initial_indent=lead, subsequent_indent=" " * indent,
        replace_whitespace=False, break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace("\0", " ") for line in lines]


class Printed:
    """What shows itself as the lines that the command line prints."""

    def lines(self) -> list[str]:
        """What the command line prints."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n".join(fitted(self.lines(), screen())).strip("\n")

    __repr__ = __str__


def table(rows: Sequence[Sequence[str]], indent: str = "  ", width: int | None = None) -> list[str]:
    """Rows of texts in aligned columns; columns of numbers are aligned to the right.

    Where that is wider than the terminal (or `width`), columns of several words are wrapped, the
    last one first; where that doesn't help, each row is a list of its own.
    """
    width = screen() if width is None else width
    rows = [[on_one_line(cell, most=1_000) for cell in row] for row in rows]
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    start, between = len(indent) + 2, len(indent) + 2 * (len(widths) - 1)
    if width is not None:
        over = between + sum(widths) - width
        last, prose = len(widths) - 1, widths[-1] > _NARROWEST
        for c in sorted(range(len(widths)), key=lambda c: (c < last or not prose, -widths[c])):
            words = max(len(word) for row in rows for word in row[c].split(" "))
            least = _NARROWEST if prose and c == last else words
            cut = max(min(over, widths[c] - least), 0)
            widths[c], over = widths[c] - cut, over - cut
        if over > 0:
            return _listed(rows, indent, width)
    numeric = [
        all(row[c].replace(",", "").replace(".", "").rstrip("%").isdigit() for row in rows[1:])
        for c in range(len(rows[0]))
    ]
    lines = []
    for row in rows:
        cells = [_wrapped(cell, wide, 0) for cell, wide in zip(row, widths, strict=True)]
        below: list[str] = []
        if max(map(len, cells[-1]), default=0) > widths[-1]:  # a word that fits nowhere
            below = _wrapped(row[-1], sum(widths) + between - start, 0)
            cells[-1] = []
        for k in range(max(1, *map(len, cells))):
            parts = [cell[k] if k < len(cell) else "" for cell in cells]
            columns = zip(parts, widths, numeric, strict=True)
            shown = [one.rjust(wide) if right else one.ljust(wide) for one, wide, right in columns]
            lines.append((indent + "  ".join(shown)).rstrip())
        lines += [" " * start + part for part in below]
    return lines


def _listed(rows: Sequence[Sequence[str]], indent: str, width: int) -> list[str]:
    """A table as lists: the first cell of a row, and below it what the others are."""
    (_, *names), *body = rows
    wide = max(map(len, names))
    lines = []
    for first, *others in body:
        cells = zip(names, others, strict=True)
        lines += [indent + first, *(f"{indent}  {n:<{wide}}  {c}" for n, c in cells if c)]
    return fitted(lines, width)
