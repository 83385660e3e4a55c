"""Flags made from fields: of DatasetSpec for `ingest` and `validate`, of suites for `sweep`.

What belongs here: how a field is written on a command line. What doesn't: which fields there are,
what they mean and what they may hold (core/spec.py, core/suite.py). A field that is added there has
its flag, and its docstring is the help.
"""

import argparse
import ast
import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from eval_ingest.core.spec import DatasetSpec, SplitPolicy
from eval_ingest.core.suite import SuiteFields
from eval_ingest.errors import SpecError

_FLAGS = {
    "config": "olmoearth-run-config-path",
    "strategy": "split-strategy",
    "block_size_m": "block-size",
    "buffer_m": "buffer",
}
"""Flags that are not named after the field."""
_METAVARS: Mapping[str, Any] = {
    "config": "PATH",
    "source": "PATH_OR_URL",
    "tags": "KEY[=VALUE]",
    "label_fractions": "NAME=SHARE",
    "temporal_range": ("FROM", "TO"),
    "crop_size": "PIXELS",
    "block_size_m": "M",
    "buffer_m": "M",
    "all_crops": "SPLIT",
}


_NO_FLAGS = {"name", "eval", "correct"}
"""Every command has a name; scoring is said in the catalog; `adopt` has a flag of its own."""


_SUITE_FLAGS = {"encoders": "encoder", "label_fractions": "label-fraction"}
_SUITE_METAVARS = {"label_fractions": "F", "patch_size": "PIXELS"}


def add_spec_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of DatasetSpec; what isn't given stays None."""
    docs = docstrings(DatasetSpec) | docstrings(SplitPolicy)
    _add_flags(parser, _fields(), docs, _FLAGS, _METAVARS)


def add_suite_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of a suite; what isn't given stays None."""
    fields = SuiteFields.model_fields.items()
    _add_flags(parser, fields, docstrings(SuiteFields), _SUITE_FLAGS, _SUITE_METAVARS)


def _add_flags(
    parser: argparse.ArgumentParser,
    fields: Iterable[tuple[str, FieldInfo]],
    docs: Mapping[str, str],
    flags: Mapping[str, str],
    metavars: Mapping[str, Any],
) -> None:
    for name, field in fields:
        options = _options(field.annotation)
        kind = "N" if "type" in options else "NAME" if "nargs" in options else "TEXT"
        options.setdefault("metavar", metavars.get(name, kind))
        flag, text = flags.get(name, name).replace("_", "-"), docs[name].rstrip(".")
        parser.add_argument(f"--{flag}", dest=name, help=text.replace("%", "%%"), **options)


@cache
def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """What stands under each field, by the name that flags have it under, in one line.

    Not by pydantic's use_attribute_docstrings: it would parse the source in every process.
    """
    [body] = ast.parse(inspect.getsource(model)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in pairwise(body.body):
        match field, text:
            case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(doc))):
                found[model.model_fields[name].alias or name] = " ".join(doc.split())
    return found


def given_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields that flags were given for, as DatasetSpec takes them."""
    given: dict[str, Any] = {}
    for name, field in _fields():
        value = getattr(options, name)
        if value is None:
            continue
        if get_origin(field.annotation) is dict:
            pairs = [text.partition("=")[::2] for text in value]
            value = dict(pairs)
            for key in value:
                if [known for known, _ in pairs].count(key) > 1:
                    flag = _FLAGS.get(name, name).replace("_", "-")
                    raise SpecError(f"--{flag} has {key} more than once; give it one value")
        fields = given.setdefault("splits", {}) if name in SplitPolicy.model_fields else given
        fields[name] = value
    return given


def _fields() -> Iterator[tuple[str, FieldInfo]]:
    """All that flags can be given for, by the name that DatasetSpec takes."""
    for name, field in DatasetSpec.model_fields.items():
        if name == "splits":
            yield from SplitPolicy.model_fields.items()
        elif name not in _NO_FLAGS:
            yield field.alias or name, field


def _options(annotation: Any) -> dict[str, Any]:
    """How argparse reads a value of a type; whether it is allowed is for DatasetSpec to say."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (kind for kind in get_args(annotation) if kind is not NoneType)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {"metavar": f"{{{','.join(parts)}}}"}
    if origin is dict:
        return {"nargs": "+", "action": "extend"}
    if origin is tuple:
        numbers = {"type": parts[0]} if parts[0] in (int, float) else {}
        exactly = Ellipsis not in parts and not numbers  # of numbers DatasetSpec says more
        nargs = len(parts) if exactly else "+"
        several = {"action": "extend"} if Ellipsis in parts else {}  # given twice, none is lost
        return {"nargs": nargs, **several, **numbers}
    return {"type": annotation} if annotation in (int, float) else {}
