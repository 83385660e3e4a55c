"""What reaches a terminal: nothing wider than it, colours where they are wanted, completion."""

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eval_ingest import api, cli
from eval_ingest.report import printing
from eval_ingest.report.printing import fitted, table, told
from eval_ingest_tests.support.hub import running

WIDTH = 80
LONG = "a_name_that_somebody_chose_who_likes_to_say_everything_in_it"


class Terminal(io.StringIO):
    """Output that is looked at."""

    def isatty(self) -> bool:
        return True


def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """What is printed from here on, to a terminal of 80 columns."""
    stream = Terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def too_wide(text: str) -> list[str]:
    """Lines that don't fit, but for one word, such as a path, that no line would hold."""
    shown = re.sub(r"[^\n]*\r\x1b\[2K", "", text)  # progress, of which the last is left
    lines = [line.rstrip(" \\") for line in shown.splitlines()]
    return [line for line in lines if len(line) > WIDTH and " " in line.strip()]


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory, small: Path) -> Path:
    """A source at a long path; beside it a root that holds it under a long name."""
    home = tmp_path_factory.mktemp("home") / "a_folder_of_a_team" / "and_another_one_below_it"
    source = home / "datasets" / LONG
    shutil.copytree(small, source)
    api.ingest(LONG, source, root=home / "evals")
    return home


COMMANDS = """
    list
    info NAME
    info NAM
    verify NAME
    validate NAME
    validate SOURCE
    validate SOURCE/nothing
    ingest NAME
    ingest NAME --overwrite
    ingest NAME_2 --source SOURCE --max-samples 8 --no-register
    ingest NAME_2 --source SOURCE --dry-run
    ingest NAME --source SOURCE/other
    ingest NAME --split-strategy spatial --block-size 1000000
    ingest NAME --no-such-flag
    discover --root SOURCE/..
    discover --root SOURCE/windows
    discover
    report NAME
    export NAME --to HOME/exported
    publish NAME --to hf://org/NAME --licence CC0-1.0 --citation "" --dry-run
    publish NAME --to hf://org/NAME --licence CC0-1.0 --citation "" --windows
    publish NAME --to hf://org/NAME
    pull hf://org/NAME/NAME
    pull hf://org/NAME/NAME --to HOME/pulled
    sweep --encoder pixels --datasets NAME --out HOME/scores --no-plots
    leaderboard --out HOME/scores
    leaderboard --out HOME/none
    tasks --format olmoearth --datasets NAM
    adopt NAME
    adopt --all
    registry rebuild
    remove NAM --yes
    remove NAME --yes
    list
"""


def test_no_command_says_anything_wider_than_the_terminal(
    far: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    terminal = at_a_terminal(monkeypatch)
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path / far.name / "evals"))
    shutil.copytree(far / "evals", tmp_path / far.name / "evals")
    monkeypatch.setenv("EVAL_INGEST_CACHE", str(tmp_path / "cache"))
    names = {"SOURCE": str(far / "datasets" / LONG), "HOME": str(tmp_path), "NAME": LONG,
             "NAM": LONG[:-1]}  # fmt: skip
    with running() as hub:
        monkeypatch.setenv("HF_TOKEN", "hf_not_a_token")
        hub.is_used_by(monkeypatch)
        for line in COMMANDS.strip().splitlines():
            words = [
                re.sub("SOURCE|HOME|NAME|NAM", lambda found: names[found[0]], word)
                for word in shlex.split(line)
            ]
            before = len(terminal.getvalue())
            try:
                code = cli.main(words)
            except SystemExit as stopped:
                code = int(str(stopped.code))
            said = terminal.getvalue()[before:]
            assert said.strip(), line
            if "SHOW_OUTPUT_OF_TESTS" in os.environ:
                sys.__stdout__.write(f"$ eval-ingest {line}   -> {code}\n{said}\n")
            assert not too_wide(said), f"{line} ({code}):\n{said}"


def test_no_help_is_wider_than_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))

    def every(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
        yield parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for one in action.choices.values():
                    yield from every(one)

    for parser in every(cli._parser()):
        assert not [line for line in parser.format_help().splitlines() if len(line) > WIDTH]


@pytest.mark.parametrize("width", [80, 50, 30])
def test_a_command_that_is_wrapped_runs_when_it_is_pasted(width: int) -> None:
    command = "eval-ingest ingest crops --source '/data/my crops' --ratios 80 10 10 --buffer 1000"
    lines = fitted([f"  train and test are neighbours; divide it anew: {command}"], width)
    start = next(k for k, line in enumerate(lines) if "eval-ingest" in line)
    pasted = "\n".join(lines[start:])
    shell = f"eval_ingest() {{ printf '%s\\n' \"$@\"; }}\n{pasted.replace('eval-', 'eval_')}"
    printed = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines() == shlex.split(command)[1:]
    assert max(map(len, lines)) <= width


def test_prose_that_goes_on_after_a_command_is_prose() -> None:
    for prose in (
        "which there are: eval-ingest list. To add one: eval-ingest ingest NAME --source X",
        "to have it again: eval-ingest discover --forget crops, or ingest it by its name as before",
    ):
        assert "\\" not in "".join(fitted([prose], 50))
        assert " ".join(line.strip() for line in fitted([prose], 50)) == prose


def test_rows_that_fit_in_no_way_are_listed() -> None:
    rows = [["name", "task", "source"], ["crops", "segmentation", f"/data/{LONG}"], ["b", "", "c"]]
    assert table(rows, width=40) == [
        "  crops",
        "    task    segmentation",
        "    source",
        f"      /data/{LONG}",
        "  b",
        "    source  c",
    ]
    assert table(rows, width=70) == [
        "  name   task          source",
        "  crops  segmentation",
        f"    /data/{LONG}",
        "  b                    c",
    ]
    assert len(table(rows, width=100)) == 3


def test_columns_of_several_words_are_wrapped_before_that() -> None:
    rows = [["name", "modalities", "train", "verdict"],
            ["a_name_of_some_length_as_they_are", "sentinel2_l2a, sentinel1, landsat", "1,200",
             "usable with warnings"], ["b", "landsat", "3", "good"]]  # fmt: skip
    assert table(rows, width=80) == [
        "  name                               modalities      train  verdict",
        "  a_name_of_some_length_as_they_are  sentinel2_l2a,  1,200  usable with warnings",
        "                                     sentinel1,",
        "                                     landsat",
        "  b                                  landsat             3  good",
    ]
    short = [["name", "train", "verdict"], ["tolbi", "63", "usable with warnings"]]
    assert table(short, width=32) == [
        "  name   train  verdict",
        "  tolbi     63  usable with",
        "                warnings",
    ]


def test_a_number_stands_beside_its_unit() -> None:
    assert fitted(["registry_entry    published (0.1 s)"], 33)[-1].strip() == "(0.1 s)"


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["error: no", "warning: b", "verdict: poor", "  crops  4  good", "a good error: is it?"]
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    red, green, yellow, end = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"
    assert told(lines, Terminal()).splitlines() == [
        f"{red}error{end}: no",
        f"{yellow}warning{end}: b",
        f"verdict: {red}poor{end}",
        f"  crops  4  {green}good{end}",
        "a good error: is it?",
    ]
    assert told(lines, io.StringIO()) == "\n".join(lines)
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert told(lines, Terminal()) == "\n".join(lines)


def test_progress_stays_on_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_a_terminal(monkeypatch)
    progress = printing.Progress()
    progress("windows of " + LONG * 3, 1, 10)
    assert len(terminal.getvalue().rpartition("\x1b[2K")[2]) < WIDTH


# ------------------------------------------------------------------------------- completion


Tab = Callable[[str], list[str]]


@pytest.fixture
def tab(tmp_path: Path, far: Path) -> Tab:
    """What a shell is answered when Tab is pressed at the end of a line."""

    def press(line: str) -> list[str]:
        answer = tmp_path / "answer"
        environment = {**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line,
                       "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n",
                       "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
                       "OLMOEARTH_EVAL_DATASETS": str(far / "evals")}  # fmt: skip
        command = [sys.executable, "-m", "eval_ingest"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return answer.read_text().split()

    return press


def test_a_shell_completes_commands_flags_and_datasets(tab: Tab) -> None:
    assert {"ingest", "info"} == set(tab("eval-ingest in"))
    assert tab("eval-ingest ingest --split-s") == ["--split-strategy"]
    assert tab("eval-ingest info ") == [LONG] or LONG in tab("eval-ingest info a")
    assert set(tab("eval-ingest ingest tolbi")) == {"tolbi_crop", "tolbi_crops"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_a_shell_has_to_run_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "eval-ingest" in out and "ARGCOMPLETE" in out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=out, text=True, check=True)
