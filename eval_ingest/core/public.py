"""What of a dataset's record may be shown to everybody: no path or bucket of its owner.

What belongs here: values in, values out. What doesn't: which files are published, which
report/export.py says.
"""

import re
from typing import Any

from eval_ingest.core.entry import UNTOLD, Metadata
from eval_ingest.errors import IntegrityError
from eval_ingest.redaction import redacted

_URL = re.compile(r"(?<![\w+.-])(?!https?:)[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>)\],;]+")
_PATH = re.compile(r"(?<![\w.:/~-])(?:~|/)[\w.@%+=~-]*(?:/[\w.@%+=~-]+)+/?")
_WINDOWS_PATH = re.compile(r"\b[A-Za-z]:\\[\w\\ .-]+")
_SECRET_NAME = re.compile(
    r"(?i)passw(?:or)?d|passwd|\bpwd\b|secret|credential|api_?-?key|(?:access|private)_?-?key"
    r"|(?:^|[^a-z])(?:auth_?)?token$|^authorization$"
)
_FIELD = re.compile(r"""(["']?)\b([\w-]{2,60})\1(\s*[:=]\s*)(["']?)([^\s"',;{}\[\]]+)\4""")
_ADDRESS = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]+")


def public(text: str) -> str:
    """A text without secrets, paths of machines, buckets and addresses of people.

    Secrets are known by their form, or by what they are called: `password: x`.

    Of paths and URLs the last part stays; links on the web stay whole.

    >>> public("see gs://private/jane/tolbi/config.json, /home/jane/tolbi and https://host/x")
    'see config.json, tolbi and https://host/x'
    """
    plain = _FIELD.sub(_without_secret, redacted(text))
    for pattern in (_URL, _PATH, _WINDOWS_PATH):
        plain = pattern.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\."))[-1], plain)
    return _ADDRESS.sub("(address)", plain)


def _without_secret(found: re.Match[str]) -> str:
    quote, name, between, opened, _ = found.groups()
    if not _SECRET_NAME.search(name):
        return found[0]
    return f"{quote}{name}{quote}{between}{opened}***{opened}"


def public_value(value: Any) -> Any:
    """The same for every text in lists and dicts."""
    match value:
        case str():
            return public(value)
        case dict():
            return {
                key: "***"
                if isinstance(part, str) and part and _SECRET_NAME.search(str(key))
                else public_value(part)
                for key, part in value.items()
            }
        case list() | tuple():
            return [public_value(part) for part in value]
    return value


def require_public(metadata: Metadata) -> None:
    """Check that a record from the Hub, which anybody may have written, is one that is published.

    Others say where samples lie, or whose the windows are, and what they say would be opened.

    Raises:
        IntegrityError: it isn't.
    """
    known = metadata.is_untold and not metadata.their_entry
    if not known or metadata.spec.copy_mode not in ("windows", "stream"):
        raise IntegrityError(
            f"{metadata.name} was not published by eval_ingest: its record says that samples are "
            f"read from {metadata.source[:200]!r} (copy: {metadata.spec.copy_mode})",
            "ask whoever published it to do so with eval-ingest publish",
        )


def public_metadata(metadata: Metadata, licence: str | None = None) -> Metadata:
    """metadata.json as it is published: as it is, without where it came from."""
    told = public_value(metadata.model_dump(mode="json", by_alias=True))
    told["source"] = told["spec"]["source"] = UNTOLD
    told["spec"]["config"] = None
    told["spec"]["licence"] = licence or metadata.spec.licence
    told["their_entry"] = ""
    return Metadata.model_validate(told)
