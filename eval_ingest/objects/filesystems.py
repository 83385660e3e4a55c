"""From a URL to a file system of fsspec: gs://, s3://, weka:// and whatever else fsspec knows."""

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_ingest.settings import Settings

WEKA_MOUNT = Path("/weka")
WEKA_ENDPOINT_VARIABLE = "WEKA_ENDPOINT_URL"


def weka_mount(url: str) -> Path | None:
    """The path of a `weka://bucket/path` where the bucket is mounted: /weka/bucket/path.

    None where it isn't mounted, for a path that leaves it, and for every other URL or path.
    """
    scheme, separator, rest = url.partition("://")
    if scheme != "weka" or not separator:
        return None
    bucket, _, inner = rest.partition("/")
    if not bucket or bucket == "." or ".." in rest.split("/"):
        return None
    if not (WEKA_MOUNT / bucket).is_dir():
        return None
    return WEKA_MOUNT / bucket / inner.strip("/")


def is_unmounted(path: str) -> bool:
    """True for a path of a Weka that isn't mounted here."""
    parts = Path(path).parts
    return parts[:2] == WEKA_MOUNT.parts and not WEKA_MOUNT.joinpath(*parts[2:3]).is_dir()


S3_SCHEMES, GOOGLE_SCHEMES = ("s3", "s3a", "weka"), ("gs", "gcs")
_EXTRAS = dict.fromkeys(S3_SCHEMES, "s3") | dict.fromkeys(GOOGLE_SCHEMES, "gs")
"""Of our package, which bring the libraries for buckets."""
_LOGINS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "log in: gcloud auth application-default login",
}
"""How credentials are given, instead of in a URL."""


def refused_login(url: str) -> str:
    """Why a bucket's URL with a password in it won't do, and what will; "" for any other URL."""
    scheme, _, rest = url.partition("://")
    if scheme not in _EXTRAS or "@" not in rest.partition("/")[0]:
        return ""
    login = _LOGINS[_EXTRAS[scheme]]
    return f"{scheme}:// takes no password from the URL; leave it out, and {login}"


def extra_for(scheme: str) -> str:
    """The extra of our package that brings a kind of bucket's library; "" for other URLs."""
    return _EXTRAS.get(scheme, "")


CONNECT_S = 10
READ_S = 30
"""So long a connection may say nothing. For whole requests see retry.py."""


@dataclass
class Contact:
    """What has come from a server so far."""

    answered: bool = False
    """Something has, whatever it was."""
    failure: BaseException | None = None
    """Why the last connection failed: gcsfs tells nobody while it tries again."""


def root_of(url: str) -> str:
    """The path of a URL's folder, as its file system names it."""
    scheme, _, rest = url.partition("://")
    if scheme in _EXTRAS:
        return rest.strip("/")
    import fsspec.core

    return str(fsspec.core.strip_protocol(url)).rstrip("/")


def server_url(url: str) -> str:
    """What all URLs of a server have in common: all buckets of a kind are on one."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://" if scheme in _EXTRAS else f"{scheme}://{rest.partition('/')[0]}"


def weka_endpoint(url: str, endpoint: str | None) -> str:
    """The address of Weka's S3: the one given, or else the environment's.

    Raises:
        ValueError: there is none.
    """
    found = endpoint or Settings.load().weka_endpoint_url
    if not found:
        bucket = url.partition("://")[2].partition("/")[0]
        raise ValueError(
            f"{WEKA_MOUNT / bucket} is not mounted here, and {WEKA_ENDPOINT_VARIABLE} is not set"
        )
    return found


def payer_of(url: str) -> str:
    """Who pays for the requests to a URL's bucket, if not its owner: a project, or `requester`."""
    scheme, _, rest = url.partition("://")
    scheme = {"gcs": "gs", "s3a": "s3"}.get(scheme, scheme)
    return dict(Settings.load().requester_pays).get(f"{scheme}://{rest.partition('/')[0]}", "")


def server_of(url: str, endpoint: str | None) -> str:
    """Where the requests of a URL go, for people."""
    scheme = url.partition("://")[0]
    if scheme in GOOGLE_SCHEMES:
        return os.environ.get("STORAGE_EMULATOR_HOST") or "Google Cloud Storage"
    if scheme not in S3_SCHEMES:
        return "the server"
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return (weka_endpoint(url, endpoint) if scheme == "weka" else named) or "Amazon S3"


def load_library(url: str) -> None:
    """Import what a URL's file system needs, which may take a second, and asks nobody."""
    scheme = url.partition("://")[0]
    with contextlib.suppress(ImportError):  # said when it is opened
        import fsspec  # noqa: F401

        if scheme in S3_SCHEMES:
            import s3fs  # noqa: F401
        elif scheme in GOOGLE_SCHEMES:
            import gcsfs.core  # noqa: F401


def open_filesystem(
    url: str,
    endpoint: str | None = None,
    payer: str = "",
    contact: Contact | None = None,
) -> Any:
    """The file system of a URL, made anew.

    Args:
        url: gs://bucket/path, s3://bucket/path, weka://bucket/path, or another that fsspec knows.
        endpoint: of Weka's S3; default WEKA_ENDPOINT_URL.
        payer: see `payer_of`.
        contact: is told what comes from the server.

    Raises:
        ImportError: the library for this kind of URL isn't installed.
        ValueError: fsspec doesn't know this kind of URL, or Weka's endpoint isn't set.
        Exception: whatever else the file system's library raises.
    """
    import fsspec

    # gcsfs's experiments ask the Storage Control API about each bucket, which emulators and many
    # service accounts don't have; they only matter for writing to hierarchical buckets. This is
    # for rslearn, where it opens a bucket by itself; it comes too late where gcsfs is imported.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    log = logging.getLogger("gcsfs")
    if log.level == logging.NOTSET:
        log.setLevel(logging.CRITICAL)  # it logs a traceback for what our errors say
    # A listing is wanted as it is now, and kept nowhere: it may hold millions of objects.
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    protocol = url.partition("://")[0]
    if protocol in GOOGLE_SCHEMES:
        from gcsfs.core import GCSFileSystem  # without the experiments, whatever was imported

        session = _session_options(contact or Contact())
        return GCSFileSystem(
            token=google_token(), requester_pays=payer or False, session_kwargs=session, **options
        )
    if protocol not in S3_SCHEMES:
        return fsspec.core.url_to_fs(url, **options)[0]
    config: dict[str, Any] = {"connect_timeout": CONNECT_S, "read_timeout": READ_S}
    if protocol == "weka":
        options["endpoint_url"] = weka_endpoint(url, endpoint)
        config["s3"] = {"addressing_style": "path"}  # a bucket isn't a host's name there
    else:
        options["anon"] = not has_aws_credentials()
    options["max_concurrency"] = 1  # more, and it asks for every object's size first
    # retry.py tries again, and says in the end what was wrong at first.
    options["config_kwargs"] = {**config, "retries": {"total_max_attempts": 1}}
    return fsspec.filesystem("s3", requester_pays=bool(payer), **options)


def _session_options(contact: Contact) -> dict[str, Any]:
    """Limits of gcsfs's connections, and a note of what they bring."""
    import aiohttp

    async def failed(session: Any, context: Any, details: Any) -> None:
        if isinstance(details.exception, Exception):  # and not one that we gave up
            contact.failure = details.exception

    async def answered(session: Any, context: Any, details: Any) -> None:
        contact.answered = True

    trace = aiohttp.TraceConfig()
    trace.on_request_exception.append(failed)
    trace.on_request_end.append(answered)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
    return {"timeout": timeout, "trace_configs": [trace]}


def google_token() -> str:
    """How gcsfs is to log in: Google's default credentials, or not at all if there are none.

    gcsfs left alone would do so too, but only after asking for a machine's account several times.
    """
    import google.auth
    from gcsfs.core import GCSFileSystem

    if not GCSFileSystem(token="anon", skip_instance_cache=True).on_google:
        return "anon"  # STORAGE_EMULATOR_HOST
    try:
        google.auth.default()
    except google.auth.exceptions.DefaultCredentialsError:
        return "anon"
    return "google_default"


def has_aws_credentials() -> bool:
    """True if the usual AWS chain finds some; without any, a public bucket can still be read."""
    import botocore.session

    return botocore.session.get_session().get_credentials() is not None
