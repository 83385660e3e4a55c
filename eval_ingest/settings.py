"""The only reader of the variables that are ours.

What libraries read by themselves to reach buckets and the Hub stands in docs/environment.md; of
those, objects/filesystems.py and integrations/huggingface.py ask where the server is.

| variable | meaning | default |
|---|---|---|
| OLMOEARTH_EVAL_DATASETS | the eval root: datasets and registry | DEFAULT_EVAL_ROOT below |
| EVAL_INGEST_CATALOG | folder of specs added to the built-in ones | {eval root}/catalog |
| EVAL_INGEST_WORKERS | threads or processes that decode and copy | one per core that it may use |
| EVAL_INGEST_WINDOW_MIB | MiB of a window's files, and its pixels unpacked; at most 4096 | 256 |
| EVAL_INGEST_ENGINE | auto (processes if many windows), threads, processes, dask's address | auto |
| EVAL_INGEST_CACHE | sweeps' embeddings, files of remote eval roots | ~/.cache/eval_ingest |
| EVAL_INGEST_CACHE_GIB | how much of remote eval roots it may hold | 100 |
| WEKA_ENDPOINT_URL | Weka's S3, where weka:// isn't mounted at /weka | none |
| EVAL_INGEST_ANSWER_SECONDS | how long a server may say nothing at first | 2 |
| EVAL_INGEST_REQUESTER_PAYS | buckets that whoever asks pays for: gs://b=PROJECT, s3://b | none |
| EVAL_INGEST_STUDIO_ROOTS | paths and URLs to find datasets under, with commas | none |
| EVAL_INGEST_DISCOVERY_SECONDS | how often the sensor looks there | 30 |
| STUDIO_ROOT | where the catalog's Studio datasets are | gs://rslearn-eai/datasets |

A file `.env` in the current folder is read too; the environment wins over it.
"""

import contextlib
import functools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Self

from eval_ingest.errors import SettingsError, brief
from eval_ingest.redaction import names_secret

DEFAULT_EVAL_ROOT = "weka://dfive-default/olmoearth/eval_datasets"
EVAL_ROOT_VARIABLE = "OLMOEARTH_EVAL_DATASETS"
ANSWER_VARIABLE = "EVAL_INGEST_ANSWER_SECONDS"
REQUESTER_PAYS_VARIABLE = "EVAL_INGEST_REQUESTER_PAYS"
DEFAULT_CACHE = "~/.cache/eval_ingest"
DEFAULT_CACHE_GIB = 100.0
MOST_WINDOW_MIB = 4096
"""Of EVAL_INGEST_WINDOW_MIB: what copying, packing and loading take of a window that is valid."""

_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


@dataclass(frozen=True)
class Settings:
    """What the environment says, parsed once."""

    eval_root: str = DEFAULT_EVAL_ROOT
    catalog: str | None = None
    workers: int = 1
    engine: str = "auto"
    cache: str = DEFAULT_CACHE
    cache_gib: float = DEFAULT_CACHE_GIB
    """Limit of what the cache holds of remote eval roots."""
    weka_endpoint_url: str | None = None
    window_mib: int = 256
    """That a window's files, and its pixels unpacked, may have; at most MOST_WINDOW_MIB."""
    answer_seconds: int = 2
    """How long a server that nothing has come from yet may say nothing."""
    requester_pays: tuple[tuple[str, str], ...] = ()
    """`gs://bucket` and the project that pays for its requests; `s3://bucket` and "requester"."""
    studio_roots: tuple[str, ...] = ()
    """Paths and URLs under which datasets are looked for."""
    discovery_seconds: int = 30
    """How often Dagster's sensor looks."""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Every variable, for `${VAR:-default}` in catalog sources; as it is now where there is no
    `.env`: a copy of the environment takes a tenth of what a split takes to open."""

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str] | None = None,
        dotenv: Path = Path(".env"),
        eval_root: str | Path | None = None,
    ) -> Self:
        """Read the environment and `.env`; an eval root that is given goes before theirs.

        Raises:
            SettingsError: a variable holds something unusable.
        """
        from_file = _read_dotenv(dotenv)
        variables = os.environ if environ is None else environ
        if from_file:
            variables = from_file | (_environment(from_file) if environ is None else dict(environ))

        def text(name: str) -> str | None:
            return variables.get(name, "").strip() or None

        def count(name: str, most: int | None = None) -> int | None:
            value = text(name)
            if value is not None and not re.fullmatch(r"0*[1-9][0-9]{0,9}", value):
                raise SettingsError(f"{name}={brief(value, 60)} must be a number from 1 up")
            if value is not None and most is not None and int(value) > most:
                raise SettingsError(f"{name}={value} is too much: give at most {most}")
            return None if value is None else int(value)

        gib, engine = text("EVAL_INGEST_CACHE_GIB"), text("EVAL_INGEST_ENGINE") or "auto"
        if engine not in ("auto", "threads", "processes") and "://" not in engine:
            raise SettingsError(
                f"EVAL_INGEST_ENGINE={engine!r} must be auto, threads, processes, or a dask "
                "scheduler's address such as tcp://scheduler:8786"
            )
        return cls(
            eval_root=(
                (text(EVAL_ROOT_VARIABLE) or DEFAULT_EVAL_ROOT)
                if eval_root is None
                else str(eval_root)
            ),
            catalog=text("EVAL_INGEST_CATALOG"),
            workers=count("EVAL_INGEST_WORKERS") or _cores(),
            engine=engine,
            cache=text("EVAL_INGEST_CACHE") or DEFAULT_CACHE,
            cache_gib=_gib(gib) if gib else DEFAULT_CACHE_GIB,
            weka_endpoint_url=text("WEKA_ENDPOINT_URL"),
            window_mib=count("EVAL_INGEST_WINDOW_MIB", MOST_WINDOW_MIB) or cls.window_mib,
            answer_seconds=count(ANSWER_VARIABLE) or cls.answer_seconds,
            requester_pays=_payers(text(REQUESTER_PAYS_VARIABLE) or ""),
            studio_roots=tuple(
                os.path.expanduser(root.strip())
                for root in (text("EVAL_INGEST_STUDIO_ROOTS") or "").split(",")
                if root.strip()
            ),
            discovery_seconds=count("EVAL_INGEST_DISCOVERY_SECONDS") or cls.discovery_seconds,
            variables=MappingProxyType(variables),
        )

    def expand(self, text: str) -> str:
        """Replace `${VAR}` and `${VAR:-default}`; `$${` stands for `${` itself: see `literal`.

        Raises:
            SettingsError: a variable without default isn't set, or is named like a secret.
        """

        def value(match: re.Match[str]) -> str:
            name, default = match["name"], match["default"]
            if name is None:
                return "${"
            if names_secret(name):
                raise SettingsError(
                    f"{text!r} asks for the environment variable {name}, whose name says that it "
                    "holds a secret, and those go into no path or URL; use another variable"
                )
            found = self.variables.get(name) or default
            if found is None:
                raise SettingsError(f"{text!r} needs the environment variable {name}; set it")
            return found

        return _VARIABLE.sub(value, text)


def user_path(path: str | Path) -> Path:
    """A path on this machine, with its `~`; of a user who isn't known that stays as it is.

    >>> user_path("~nobody-is-called-so/evals")
    PosixPath('~nobody-is-called-so/evals')
    """
    return Path(os.path.expanduser(path))


def literal(url: str) -> str:
    """A path or URL that was found, not given, for what `Settings.expand` is to give it back.

    >>> Settings().expand(literal("/data/${DB_PASS}"))
    '/data/${DB_PASS}'
    """
    return url.replace("${", "$${")


def _payers(text: str) -> tuple[tuple[str, str], ...]:
    """Who pays, by bucket.

    >>> _payers("gs://crops=my-project, s3://trees")
    (('gs://crops', 'my-project'), ('s3://trees', 'requester'))
    """
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        bucket, _, project = part.partition("=")
        scheme, _, name = bucket.strip().rstrip("/").partition("://")
        is_right = scheme in ("gs", "s3") and name and "/" not in name
        if not is_right or (scheme == "gs") != bool(project.strip()):
            raise SettingsError(
                f"{REQUESTER_PAYS_VARIABLE} holds {part!r}; it takes gs://BUCKET=PROJECT, with the "
                "Google Cloud project that pays, and s3://BUCKET, with commas"
            )
        found.append((f"{scheme}://{name}", project.strip() or "requester"))
    return tuple(found)


def _gib(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise SettingsError(f"EVAL_INGEST_CACHE_GIB={text!r} must be a number above 0")
    return value


def is_completing() -> bool:
    """True where a shell, by argcomplete, asks what may follow on a command line."""
    return "_ARGCOMPLETE" in os.environ


def plain_terminal() -> bool:
    """True if a terminal is to show no colours: see no-color.org."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


_STORAGE_PREFIXES = ("AWS_", "WEKA_", "STORAGE_", "GOOGLE_", "GCSFS_", "CLOUDSDK_")


def storage_environment() -> tuple[tuple[str, str], ...]:
    """The variables that decide how object stores are reached and with whose credentials."""
    return tuple(sorted(v for v in os.environ.items() if v[0].startswith(_STORAGE_PREFIXES)))


def _cores(root: Path = Path("/")) -> int:
    """The processors that this process may use: those of its affinity, and no more than a quota."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(own, _quota(root)))


@functools.lru_cache(maxsize=1)
def _quota(root: Path) -> float:
    """Processors' time in a second that control groups, of version 2 or 1, leave a container."""
    found, told = [math.inf], ""
    with contextlib.suppress(OSError):
        told = (root / "proc/self/cgroup").read_text()
    for line in told.splitlines():
        _, controllers, path = line.split(":", 2)
        mounts = ("",) if not controllers else (controllers, "cpu")
        if "cpu" in controllers.split(",") or not controllers:
            for base in (root / "sys/fs/cgroup" / mount for mount in mounts):
                inner = base / path.lstrip("/")
                found += [_quota_of(inner), *(_quota_of(folder) for folder in inner.parents)]
    return min(found)


def _quota_of(group: Path) -> float:
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            texts = " ".join((group / name).read_text() for name in names)
            quota, period = map(int, texts.split())  # "max" and -1: none
            if quota > 0:
                return quota / period
    return math.inf


def _environment(from_file: Mapping[str, str]) -> dict[str, str]:
    """The environment, without what Dagster's commands lay over it from `.env`.

    What was exported before such a command shows in /proc, on Linux.
    """
    found = dict(os.environ)
    laid_over = [key for key, value in from_file.items() if found.get(key) == value]
    if laid_over:
        exported = _exported()
        found |= {key: exported[key] for key in laid_over if key in exported}
    return found


def _exported() -> dict[str, str]:
    """What was exported before this process, or the Dagster command that is at its root, began.

    `dagster dev` starts the code server, and that the runs, each with what `.env` says.
    """
    pid, found = str(os.getpid()), dict[str, str]()
    with contextlib.suppress(OSError, StopIteration):
        while True:
            folder = Path("/proc", pid)
            pairs = (folder / "environ").read_bytes().decode(errors="surrogateescape")
            found = dict(pair.partition("=")[::2] for pair in pairs.split("\0"))
            status = (folder / "status").read_text().splitlines()
            pid = next(line.split()[1] for line in status if line.startswith("PPid:"))
            command = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")[:3]
            if not any(re.match(rb"(.*/)?(dg|dagster)([._]|$)", word) for word in command):
                break
    return found


def _read_dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    try:
        found = dotenv_values(path)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path.absolute()} can't be read as UTF-8 text ({error}); correct it or remove it"
        ) from error
    return {key: value for key, value in found.items() if value is not None}
