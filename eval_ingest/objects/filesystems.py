"""From a URL to a file system of fsspec: gs://, s3://, weka:// and whatever else fsspec knows."""

import logging
import os
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


_ACCESS_KEYS = "leave it out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_GOOGLE = "leave it out, and log in: gcloud auth application-default login"
_LOGINS = {
    **dict.fromkeys(("s3", "s3a", "weka"), _ACCESS_KEYS),
    **dict.fromkeys(("gs", "gcs"), _GOOGLE),
}


def refused_login(url: str) -> str:
    """Why a bucket's URL with a password in it won't do, and what will; "" for any other URL."""
    scheme, _, rest = url.partition("://")
    if scheme not in _LOGINS or "@" not in rest.partition("/")[0]:
        return ""
    return f"{scheme}:// takes no password from the URL; {_LOGINS[scheme]}"


def open_filesystem(url: str, endpoint: str | None = None) -> Any:
    """The file system of a URL, made anew.

    Args:
        url: gs://bucket/path, s3://bucket/path, weka://bucket/path, or another that fsspec knows.
        endpoint: of Weka's S3; default WEKA_ENDPOINT_URL.

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
    protocol, _, rest = url.partition("://")
    if protocol == "weka":
        options["endpoint_url"] = endpoint or Settings.load().weka_endpoint_url
        if not options["endpoint_url"]:
            raise ValueError(
                f"{WEKA_MOUNT / rest.partition('/')[0]} is not mounted here, "
                f"and {WEKA_ENDPOINT_VARIABLE} is not set"
            )
        # A bucket isn't a host's name there.
        options["config_kwargs"] = {"s3": {"addressing_style": "path"}}
        protocol, url = "s3", f"s3://{rest}"
    elif protocol in ("s3", "s3a"):
        options["anon"] = not has_aws_credentials()
    if protocol in ("s3", "s3a"):
        options["max_concurrency"] = 1  # more, and it asks for every object's size first
    if protocol in ("gs", "gcs"):
        from gcsfs.core import GCSFileSystem  # without the experiments, whatever was imported

        return GCSFileSystem(token=google_token(), **options)
    return fsspec.core.url_to_fs(url, **options)[0]


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
