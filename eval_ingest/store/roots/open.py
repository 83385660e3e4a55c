"""From the name of an eval root to the root: a folder, weka://bucket/path, or another URL."""

from pathlib import Path

from eval_ingest.core.arguments import place_fault
from eval_ingest.core.hub import SCHEME, HubAddress
from eval_ingest.errors import StoreError, brief
from eval_ingest.objects.filesystems import (
    WEKA_ENDPOINT_VARIABLE,
    WEKA_MOUNT,
    refused_login,
    weka_mount,
)
from eval_ingest.redaction import holds_secret
from eval_ingest.settings import EVAL_ROOT_VARIABLE, Settings, user_path
from eval_ingest.store.roots.base import EvalRoot


def open_root(settings: Settings, root: str | Path | None = None) -> EvalRoot:
    """The eval root that is asked for, or else the environment's; nothing is looked at yet.

    `weka://bucket/path` is /weka/bucket/path where that is mounted, else the bucket of the S3
    endpoint WEKA_ENDPOINT_URL.

    Raises:
        StoreError: it can't be reached from this machine.
    """
    text = str(root) if root is not None else settings.eval_root
    if not text.strip():
        raise StoreError(
            "the eval root is empty; give a path or URL, or None for what "
            f"{EVAL_ROOT_VARIABLE} says"
        )
    if fault := place_fault(text):
        raise StoreError(
            f"the eval root {brief(text, 60)} {fault}; set {EVAL_ROOT_VARIABLE} to a folder or URL"
        )
    if text.startswith(SCHEME):
        text = HubAddress.parse(text).root
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "file":
        path = user_path("/" + rest.lstrip("/") if separator else text).absolute()
        if path.is_file():
            raise StoreError(
                f"the eval root {path} is a file; set {EVAL_ROOT_VARIABLE} to a folder"
            )
        return EvalRoot(path)
    mounted = weka_mount(text)
    if mounted is not None:
        return EvalRoot(mounted)
    bucket, _, folder = rest.partition("/")
    if ".." in folder.split("/") or not bucket:
        raise StoreError(
            f"the eval root {text} names no folder; "
            f"set {EVAL_ROOT_VARIABLE} to a path, or a URL such as s3://bucket/evals"
        )
    refused = refused_login(text)
    if not refused and "?" in text and holds_secret(text):
        refused = "a signature is for one object; give a folder, s3://bucket/path or another URL"
    if refused:
        raise StoreError(f"the eval root {text} can't be used: {refused}")
    # fsspec's file systems are slow to import, and a local root needs none of this.
    from eval_ingest.store.roots.remote import open_remote_root

    endpoint = None
    if scheme == "weka":
        endpoint = settings.weka_endpoint_url
        if endpoint is None:
            raise StoreError(
                f"the eval root {text} can't be reached: {WEKA_MOUNT / bucket} is not mounted "
                f"here; set {EVAL_ROOT_VARIABLE} to a folder or URL, such as "
                f"{EVAL_ROOT_VARIABLE}=$HOME/evals, or {WEKA_ENDPOINT_VARIABLE} to the address of "
                "Weka's S3"
            )
    cache = user_path(settings.cache).absolute()
    server = endpoint or next(
        (settings.variables[name] for name in _SERVERS if settings.variables.get(name)), ""
    )
    limit = int(settings.cache_gib * 2**30)
    return open_remote_root(text.rstrip("/"), cache, limit, server, endpoint)


_SERVERS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST")
"""Variables by which buckets of the same name may be on another server."""
