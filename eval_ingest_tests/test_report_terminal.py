"""What is printed: wrapped to a terminal, as it is into a pipe."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from eval_ingest.report.printing import fitted, screen, table
from eval_ingest.report.terminal import plural, size, split_lines


def test_prose_is_wrapped_and_further_lines_are_indented() -> None:
    line = "val has 20 windows: a score on it is off by up to 11.2 points by chance"
    assert fitted(["  " + line], width=40) == [
        "  val has 20 windows: a score on it is",
        "    off by up to 11.2 points by chance",
    ]
    assert fitted([f"window_index  {line}"], width=48) == [
        "window_index  val has 20 windows: a score on it",
        "              is off by up to 11.2 points by",
        "              chance",
    ]


def test_of_very_many_classes_some_are_listed() -> None:
    names = [f"c{k}" for k in range(1000)]
    report = {
        "strategy": "random",
        "counts": {"train": 1000, "val": 0, "test": 0},
        "class_counts": {"train": [1] * 1000, "val": [0] * 1000, "test": [0] * 1000},
        "classes_missing": {"train": [], "val": names},
    }
    lines = split_lines(report, names)
    assert len(lines) < 50 and max(map(len, lines)) < 250
    assert "  and 960 more classes" in lines
    assert lines[-1].startswith("  val has no c0, c1") and lines[-1].endswith("c39 and 960 more")


@pytest.mark.parametrize("width", [80, 40, 24, 3])
def test_paths_are_never_broken_and_no_word_is_lost(width: int) -> None:
    path = "/weka/dfive-default/olmoearth/eval_datasets/a_dataset_with_a_long-name/report.html"
    line = f"look at {path} and tell"
    found = fitted([line], width)
    assert path in " ".join(found)
    assert " ".join(found).split() == line.split()


def test_tables_and_short_lines_stay_as_they_are() -> None:
    lines = ["name    task    a description that is long", "", "short"]
    assert fitted(lines, width=30) == lines


def test_numbers_are_aligned_to_the_right_and_wide_last_columns_wrapped() -> None:
    rows = [["name", "n", "why"], ["a", "1,200", "some words that go on"], ["bcd", "7", ""]]
    assert table(rows, width=200) == [
        "  name      n  why",
        "  a     1,200  some words that go on",
        "  bcd       7",
    ]
    longer = [[*row[:2], f"{row[2]} {row[2]}"] for row in rows]
    assert table(longer, width=40)[1:3] == [
        "  a     1,200  some words that go on",
        "               some words that go on",
    ]


def test_counts_and_sizes_are_said_in_words() -> None:
    assert [plural(n, "window") for n in (0, 1, 1200)] == ["0 windows", "1 window", "1,200 windows"]
    assert [size(n) for n in (5, 2048, 3 << 30)] == ["5 B", "2.0 KiB", "3.0 GiB"]


def test_a_pipe_has_no_width() -> None:
    assert screen() is None


def test_commands_fit_the_terminal_they_are_run_in(reference: Path) -> None:
    read, write = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "eval_ingest.cli", "info", "--name", "crops"],
        stdout=write,
        env={**os.environ, "OLMOEARTH_EVAL_DATASETS": str(reference), "COLUMNS": "60"},
        check=True,
    )
    os.close(write)
    text = b""
    while chunk := _read(read):
        text += chunk
    lines = text.decode().splitlines()
    assert done.returncode == 0 and any("verdict" in line for line in lines)
    assert max(len(line) for line in lines if "/" not in line) <= 60


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b""


def test_what_is_wrong_with_a_flag_is_said_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "eval_ingest.cli", "ingest", "--name", "x", "--ratios", "a"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: argument --ratios: invalid float value: 'a'; see eval-ingest ingest --help\n"
    )
