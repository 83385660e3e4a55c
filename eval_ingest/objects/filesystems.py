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

    None where it isn't mounted, and for every other URL or path.
    """
    scheme, separator, rest = url.partition("://")
    if scheme != "weka" or not separator:
        return None
    bucket, _, inner = rest.partition("/")
    if not bucket or bucket in (".", "..") or not (WEKA_MOUNT / bucket).is_dir():
        return None
    return WEKA_MOUNT / bucket / inner.strip("/")


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

    # gcsfs would ask the Storage Control API about each bucket, which emulators and many
    # service accounts don't have; it only matters for writing to hierarchical buckets.
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
        options["token"] = google_token()
    return fsspec.core.url_to_fs(url, **options)[0]


def google_token() -> str:
    """How gcsfs is to log in: Google's default credentials, or not at all if there are none.

    gcsfs left alone would do so too, but only after asking for a machine's account several times.
    """
    import google.auth
    from gcsfs import GCSFileSystem

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
