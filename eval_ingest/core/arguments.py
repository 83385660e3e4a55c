"""Arguments of what users call from Python: looked at before anything goes by them.

What belongs here: of which kind each is, by its name, which means the same everywhere. What
doesn't: values that only a dataset can judge (loading/), and fields of a spec (spec.py).
"""

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType
from typing import Any, ParamSpec, TypeVar

import numpy as np
from pydantic import BaseModel

from eval_ingest.errors import EvalIngestError, SpecError, brief
from eval_ingest.redaction import spelled

Given = ParamSpec("Given")
Returned = TypeVar("Returned")

_PLACE = (str, os.PathLike)
_TEXT = (str, NoneType)
_FUNCTION = ((Callable,), "a function")
_SWITCH = ((bool, np.bool_), "True or False")

KINDS: dict[str, tuple[tuple[Any, ...], str]] = {
    "root": ((*_PLACE, NoneType), "a path or URL, or None for OLMOEARTH_EVAL_DATASETS"),
    "source": ((*_PLACE, NoneType), "a path or URL"),
    "config": ((*_PLACE, NoneType), "a path or URL"),
    "splits": ((Mapping, BaseModel, NoneType), "a mapping or a SplitPolicy"),
    "to": (_PLACE, "a folder, or hf://ORG/REPO"),
    "out": (_PLACE, "a folder on this machine"),
    "url": ((str,), "hf://ORG/REPO/NAME"),
    "licence": (_TEXT, "a text such as CC-BY-4.0"),
    "citation": (_TEXT, "a text or BibTeX"),
    "progress": _FUNCTION,
    "tell": _FUNCTION,
    "each": _FUNCTION,
    "agreed": _FUNCTION,
    **dict.fromkeys(
        ("catalog", "register", "overwrite", "windows", "private", "dry_run", "correct",
         "stratified", "channels_first", "bucket", "keep"),
        _SWITCH,
    ),
    "version": (_TEXT, "a fingerprint"),
    "modalities": ((str, Sequence, NoneType), "a name or several"),
    "names": ((str, list, tuple), "names of datasets, or 'all'"),
    "encoders": ((str, list, tuple, NoneType), "names of encoders"),
    "most_windows": ((Integral,), "a whole number"),
    "budget_s": ((Real,), "seconds"),
    "seed": ((Integral,), "a whole number"),
    "max_samples": ((Integral, NoneType), "a whole number"),
    "num_workers": ((Integral, NoneType), "a whole number"),
    "nodata": ((Real,), "a number"),
    "method": ((str,), "a method's name"),
    "transforms": ((Callable, NoneType), "a function of a sample"),
}  # fmt: skip
"""What an argument has to be, and the words for it: other mistakes would show late, in the words
of something else, or not at all."""

_LONGEST_PART, _LONGEST_PATH = 255, 4_000
"""Bytes that file systems take as a name, and as a path."""


def check_arguments(
    arguments: Mapping[str, Any], refuse: type[EvalIngestError] = SpecError
) -> None:
    """Raise `refuse` if an argument is none of its kind, or a place that can't be."""
    for name, (kinds, what) in KINDS.items():
        if name not in arguments:
            continue
        value = arguments[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise refuse(f"{name}={brief(value, 60)} can't be; give {what}")
        if os.PathLike not in kinds or value is None:
            continue
        fault = (folder_fault if name == "out" else place_fault)(os.fspath(value))
        if fault:
            raise refuse(f"{name}={brief(os.fspath(value), 60)} {fault}; give {what}")


def place_fault(text: str) -> str:
    """Why no path or URL can be called so; empty: it can.

    >>> place_fault("a" * 300)
    'has a part of 300 bytes, and 255 are the most'
    """
    if not text.strip():
        return "is empty"
    if "\0" in text:
        return "holds a character NUL"
    if spelled(text) != text:
        return "is not UTF-8 text: rename it"
    longest = max(len(os.fsencode(part)) for part in text.split("/"))
    if longest > _LONGEST_PART:
        return f"has a part of {longest:,} bytes, and {_LONGEST_PART} are the most"
    if len(os.fsencode(text)) > _LONGEST_PATH:
        return f"is longer than the {_LONGEST_PATH:,} bytes of a path"
    return ""


def folder_fault(text: str) -> str:
    """Why no folder on this machine can be called so; empty: one can."""
    return "is a URL" if "://" in text else place_fault(text)


def checked(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """The function, whose arguments are looked at before it runs: see KINDS."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        bound = signature.bind(*args, **kwargs).arguments
        spec = bound.get("spec", {})
        check_arguments(bound | {key: spec[key] for key in ("config", "splits") if key in spec})
        return function(*args, **kwargs)

    return run
