"""The last words of `dagster asset materialize` and `dg launch`: what to do, below Dagster's own.

What belongs here: what the person at the terminal is told when the command ends. What doesn't: the
messages of runs (failures.py).

Dagster prints a failure twice, each with a traceback, then a line for each step that could not be
run, and answers a selection that can't be with a traceback alone. What to do about it would stand
where nobody looks; so Python's own hooks for the end of a process say it below, and the console
leaves out what says it less well. The page has it all.
"""

import atexit
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from eval_ingest.report.printing import told

FAULT = "that is a fault in eval_ingest"
"""In the text of a failure that nobody has thought of: its traceback is shown."""
_WHICH = "Which datasets there are: eval-ingest list."
_HINTS = {
    "no '--partition' option was provided": (
        "A stage is run for one dataset: add --partition NAME. The whole job is "
        f"`dagster asset materialize --select NAME`. {_WHICH}"
    ),
    "Partition ranges with the CLI": (
        f"Datasets have no order that makes a range: run each with --partition NAME. {_WHICH}"
    ),
    "did you mean one of the following": (
        f"{_WHICH} To add one: eval-ingest ingest NAME --source PATH_OR_URL"
    ),
    "no AssetsDefinition objects supply": (
        f"{_WHICH} To add one: eval-ingest ingest NAME --source PATH_OR_URL"
    ),
    "must share the same PartitionsDefinition": (
        "Stages and datasets can't be selected together: "
        "`--select window_index --partition NAME`, or `--select NAME`"
    ),
}
"""By a part of what Dagster says of a selection: what helps."""


@dataclass(frozen=True)
class _LastWords:
    """What is said of a dataset at the end; one equals another of the same dataset."""

    dataset: str
    text: str = field(default="", compare=False)

    def __call__(self) -> None:
        print(told([self.text], sys.stderr), file=sys.stderr)


def say_last(dataset: str, text: str) -> None:
    """Have a text be printed when the command ends, in place of what was to be said before."""
    take_back(dataset)
    if is_command():
        atexit.register(_LastWords(dataset, text))


def take_back(dataset: str) -> None:
    """Say nothing of a dataset at the end: what failed has been tried again and went well."""
    atexit.unregister(_LastWords(dataset))


def speak_plainly() -> None:
    """Have what can't be run, or failed as our errors say, end in a sentence."""
    if is_command() and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _explain
        logging.setLoggerClass(_Console)


class _Console(logging.Logger):
    """Dagster's on the terminal; the run's own log is another."""

    def handle(self, record: logging.LogRecord) -> None:
        """Print a record, without the tracebacks of failures that end in our own words."""
        told, found, _ = str(record.msg).partition("\n\n")
        if found and FAULT not in str(record.msg):
            record.msg = told
        if not told.endswith("Not executing."):
            super().handle(record)


def _explain(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    text = str(error)
    hint = next((hint for part, hint in _HINTS.items() if part in text), "")
    if hint:
        lines = [*text.removeprefix("Failure condition: ").splitlines(), hint]
        print(told(lines, sys.stderr), file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def is_command() -> bool:
    """True in a command that a person waits for; run workers have their own log."""
    command, *arguments = sys.argv or [""]
    name = Path(command).name
    if name == "__main__.py":  # python -m dagster
        name = Path(command).parent.name
    return (name, *arguments[:1]) in (("dagster", "asset"), ("dg", "launch"))
