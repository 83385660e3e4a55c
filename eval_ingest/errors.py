"""The error tree. Each message says what, where, the value, and what to do next.

EvalIngestError
|-- SettingsError          an environment variable is missing or unusable
|-- SpecError              a dataset spec (catalog YAML or flags) is wrong
|   `-- UnknownDatasetError
|-- SourceError            the rslearn dataset can't be read
|   |-- SourceNotFoundError
|   `-- ConfigError        config.json, model.yaml or olmoearth_run.yaml is wrong
|       |-- InferenceError     a value can't be inferred; names the field and the flag
|       `-- UnsupportedError   readable, but not a task that can become an eval
|-- InvalidWindowsError    too many windows are broken
|-- SplitError             the split policy can't be carried out
|-- StoreError             the eval root can't be written or read
|   |-- NotIngestedError   a stage's input isn't there yet
|   |   `-- StaleStageError    it is, and doesn't belong to what is there beside it
|   |-- IntegrityError     a copied or packed file isn't what it should be
|   |-- NotOursError       a folder or a name is another tool's
|   |-- LockedError        another process is ingesting the same dataset
|   |-- OutdatedError      another process has written what was to be written, or was read
|   `-- NewerVersionError  a newer eval_ingest has written it
|-- MachineError           this machine can't read on: no memory, no handles, a broken library
|-- EngineError            a worker process died, or a scheduler is lost
|-- LoadError              EvalDataset was asked for something it doesn't have
`-- SweepError             an encoder, a probe or the sweep's output is wrong
"""

import contextlib
import copyreg
import difflib
import errno
import os
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any

from eval_ingest.redaction import on_one_line, shown


class EvalIngestError(Exception):
    """The root of every error that eval_ingest raises on purpose.

    Its message holds no secrets of URLs and nothing that a terminal would obey.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(shown(message))

    def __reduce__(self) -> tuple[Any, ...]:
        # With its message as it is: those that make theirs from arguments couldn't be made again
        # in another process.
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class SettingsError(EvalIngestError):
    """An environment variable is missing or unusable."""


class SpecError(EvalIngestError):
    """A dataset spec is wrong: an unknown field, a bad value, a bad name."""


class UnknownDatasetError(SpecError):
    """No dataset of that name; the message lists the near ones. Default cure: to ingest it."""

    def __init__(self, name: str, known: Iterable[str], where: str, cure: str = "") -> None:
        names, cure = sorted(known), cure or f"To ingest it: eval-ingest ingest {name}"
        near = difflib.get_close_matches(name, names, n=3)
        if near:
            hint = f"did you mean {' or '.join(map(on_one_line, near))}?"
        elif names:
            first = map(on_one_line, names[:12])  # a registry's keys may be any text
            hint = f"known: {', '.join(first)}{', ...' if len(names) > 12 else ''}."
        else:
            hint = "there is none yet."
        if near:  # a cure that holds the wrong name is none
            cure = cure.replace(name, "NAME")
        super().__init__(f"no dataset {name!r} in {where}; {hint} {cure}")
        self.name = name
        self.near = near


class SourceError(EvalIngestError):
    """The rslearn dataset at the source can't be read."""


class SourceNotFoundError(SourceError):
    """There is nothing at the source path."""


class ConfigError(SourceError):
    """config.json, model.yaml or olmoearth_run.yaml is missing or wrong."""


class InferenceError(ConfigError):
    """A value can't be inferred; the message names the field and the flag that sets it."""


class UnsupportedError(ConfigError):
    """The configuration is readable but describes something that isn't supported."""


class InvalidWindowsError(EvalIngestError):
    """More windows are invalid than the spec allows."""


class SplitError(EvalIngestError):
    """The split policy can't be carried out on these windows."""


class StoreError(EvalIngestError):
    """The eval root can't be written or read."""


class NotIngestedError(StoreError):
    """A stage's input isn't there yet."""


class StaleStageError(NotIngestedError):
    """A stage's input doesn't belong to the others, or isn't what the spec asks for.

    Args:
        name: the dataset.
        stage: whose outcome it is.
        why: what about it is wrong.
    """

    def __init__(self, name: str, stage: str, why: str) -> None:
        super().__init__(
            f"{name}: the outcome of {stage} is out of date: {why}; run: "
            f"eval-ingest ingest {name}, or "
            f"dagster asset materialize --select {stage} --partition {name}"
        )


class IntegrityError(StoreError):
    """A file differs in size, checksum or shape from what was recorded.

    Args:
        what: which file, and how it differs.
        cure: what to do about it.
    """

    def __init__(self, what: str, cure: str = "") -> None:
        super().__init__(f"{what}; {cure}" if cure else what)
        self.what = shown(what)


class NotOursError(StoreError):
    """A folder under the eval root, or a name in its registry, is another tool's."""


class LockedError(StoreError):
    """Another process holds the dataset's lock."""


class OutdatedError(StoreError):
    """Another process has written what was looked at, since it was looked at."""


class NewerVersionError(StoreError):
    """A newer eval_ingest has written a file, and this one doesn't know what it means.

    Args:
        where: the file.
        found: its version.
        known: the newest one that this eval_ingest reads.
    """

    def __init__(self, where: object, found: object, known: int) -> None:
        super().__init__(
            f"{where} is of version {found}, written by a newer eval_ingest; this one reads "
            f"{known}: upgrade it (git pull in its checkout, then pip install .)"
        )


class MachineError(EvalIngestError):
    """The machine can't read on, whatever the data: no memory, no handles, a broken library.

    Never a verdict on data. The message says what to see to.
    """


class EngineError(EvalIngestError):
    """The workers that decode and copy were lost, or can't be had."""


class LoadError(EvalIngestError):
    """EvalDataset was asked for a split, modality or method that isn't there."""


class SweepError(EvalIngestError):
    """An encoder can't be loaded or used, or a sweep can't be carried out as asked."""


_CURES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n), or have fewer workers "
    "(EVAL_INGEST_WORKERS; in training num_workers)",
    errno.ENFILE: "the whole machine has too many open files: close some",
    errno.ENOMEM: "free memory, or set fewer EVAL_INGEST_WORKERS",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or set fewer EVAL_INGEST_WORKERS",
    errno.ENOSPC: "free space on the disk that it names",
    errno.EDQUOT: "free space: the quota is full",
    errno.EACCES: "let this user read it",
    errno.EPERM: "let this user read it",
    errno.EIO: "have the disk or the network file system looked at",
    errno.ESTALE: "mount the network file system anew",
}


def machine_error(error: BaseException, number: int) -> MachineError:
    """What to say about an error of the system's, with its cure."""
    cure = _CURES.get(number, "see to that")
    return MachineError(
        f"this machine couldn't go on: {words_of(error)}; {cure}, and run again: it goes on where "
        "it stopped"
    )


def lacking(error: BaseException, memory_is_limited: bool = False) -> MachineError | None:
    """What to say of an error if file handles, memory or threads are lacking here; else None.

    Whoever raised it: a disk, a server's client, a decoder. So it comes before all other words.

    Args:
        error: what was raised, with what it was raised from.
        memory_is_limited: this process may take less memory than there is, so that too little of
            it tells about data.
    """
    for one in chain(error):
        if isinstance(one, MachineError):
            return one
        number = _lack(one)
        if number and not (number == errno.ENOMEM and memory_is_limited):
            return machine_error(one, number)
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))  # some say only that a name isn't known
    except OSError as lack:
        return machine_error(lack, lack.errno or 0)
    return None


def _lack(error: BaseException) -> int:
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and number in _LACKING:
        return int(number)
    text = str(error).lower()[:2_000]
    return next((number for words, number in _LACKS.items() if words in text), 0)


_LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
_LACKS = {
    "too many open files": errno.EMFILE,
    "cannot allocate memory": errno.ENOMEM,
    "can't start new thread": errno.EAGAIN,
    "resource temporarily unavailable": errno.EAGAIN,
}
"""Libraries pass the system's words on, without the number."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, or during."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def brief(value: object, most: int) -> str:
    """A value for a message: two levels of it, and so many characters of each text.

    What is nested without end, as YAML's aliases can be, takes no longer than anything else.
    """
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, most, most
    return short.repr(value)


def cure_by(extra: str) -> str:
    """How to install an extra of this package: from its checkout.

    No package index has it, and whatever one may have by its name is a stranger's.
    """
    return f"run, in a checkout of eval_ingest: pip install '.[{extra}]'"


def lacks(what: str, module: object, extra: str) -> str:
    """What to say of something that needs a module which isn't installed."""
    return f"{what} needs {module}; {cure_by(extra)}"


@contextlib.contextmanager
def optional_part(
    extra: str, what: str, raises: type[EvalIngestError] = LoadError
) -> Iterator[None]:
    """Imports for something that not every installation can do.

    Raises:
        LoadError: they aren't there; says how to install them. Or whatever `raises` says.
    """
    try:
        yield
    except ImportError as error:
        raise raises(lacks(what, error.name or words_of(error), extra)) from error


def words_of(error: BaseException) -> str:
    """An exception in a line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:297]}..."
