"""What the site's pages hold that is made from the code: a hook of mkdocs, named in mkdocs.yml.

A page says `{{ commands }}`, `{{ environment }}`, `{{ problems }}`, `{{ errors }}` or
`{{ methods }}`; `{{ file NAME }}` stands for a file of the checkout, whose links are put right.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from eval_ingest import cli, errors, settings
from eval_ingest.core.norm import METHODS
from eval_ingest.core.validate import PROBLEMS

REPOSITORY = Path(__file__).parents[1]
_PLACE = re.compile(r"^\{\{ (\w+)(?: ([\w./]+))? \}\}$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in a page; mkdocs calls this.

    Raises:
        KeyError: a page asks for what isn't known here.
    """
    return _PLACE.sub(lambda place: FILLED[place[1]](*filter(None, [place[2]])), markdown)


def commands() -> str:
    """Every command with its help."""
    parser = cli._parser()
    return "\n\n".join(
        f"## {name}\n\n```text\n{_help(command)}\n```" for name, command in _subparsers(parser)
    )


def _subparsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _help(parser: argparse.ArgumentParser) -> str:
    parts = [parser.format_help(), *(_help(inner) for _, inner in _subparsers(parser))]
    return "\n\n".join(part.strip() for part in parts)


def environment() -> str:
    """The table of settings.py."""
    rows = [line for line in (settings.__doc__ or "").splitlines() if line.startswith("|")]
    return "\n".join(re.sub(r"^\| ([A-Z][A-Z_]+) \|", r"| `\1` |", row) for row in rows)


def problems() -> str:
    """Why a window is invalid."""
    return _table(("code", "what is wrong"), PROBLEMS)


def methods() -> str:
    """Methods of normalisation, by their names."""
    return ", ".join(f"`{name}`" for name in METHODS)


def error_table() -> str:
    """The errors that are raised on purpose, by name."""
    known = {
        name: (inspect.getdoc(kind) or "").partition("\n")[0]
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.EvalIngestError)
    }
    return _table(("error", "what it means"), known)


def file(name: str) -> str:
    """A file of the checkout without its heading; its links lead to the site's pages."""
    text = (REPOSITORY / name).read_text().partition("\n")[2]
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#|[\w/]+\.md)[^)]+\)", r"`\1`", text)


def _table(head: tuple[str, str], rows: dict[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{key}` | {value} |" for key, value in rows.items())])


FILLED: dict[str, Callable[..., str]] = {
    "commands": commands,
    "environment": environment,
    "problems": problems,
    "methods": methods,
    "errors": error_table,
    "file": file,
}
