"""The source at a path or URL: which kind it is, and nothing else."""

import os
from pathlib import Path

from eval_ingest.engine import Progress, no_progress
from eval_ingest.errors import SourceNotFoundError
from eval_ingest.objects.filesystems import weka_mount
from eval_ingest.sources.base import ARCHIVE_ENDINGS, Copies, Source
from eval_ingest.sources.local import LocalSource
from eval_ingest.sources.sqlite import with_database


def is_archive(url: str) -> bool:
    """True for an archive's path or URL, and for the URL of a folder that is called like one."""
    return url.lower().endswith(ARCHIVE_ENDINGS) and not os.path.isdir(url)


def _is_folder(url: str) -> bool:
    """True for a URL below which there are objects."""
    if "://" not in url:
        return False
    from eval_ingest.objects.reading import Objects

    return bool(Objects(url).below(""))


def address(url: str) -> str:
    """One way of writing a source's path or URL; what is kept of a path is read elsewhere."""
    url = str(weka_mount(url) or url.removeprefix("file://").removeprefix("local://"))
    return url.rstrip("/") if "://" in url else os.path.abspath(os.path.expanduser(url))


def open_source(
    url: str,
    staging: Path | None = None,
    archives: Path | None = None,
    staging_limit: int | None = None,
    progress: Progress = no_progress,
    copies: Copies | None = None,
    later: bool = False,
    storage: str = "",
) -> Source:
    """The source at a path or URL: a folder, a bucket's folder, or an archive of one.

    Args:
        url: a path, or a URL that fsspec knows; ending in .tar, .tar.gz or .tgz for an archive.
        staging: folder in which a remote source keeps what it has listed and fetched.
        staging_limit: bytes that it may keep; what comes after that is fetched a second time.
        archives: folder in which an archive is unpacked; needed for archives only.
        progress: told how much of an archive is unpacked.
        copies: what a bucket's or an archive's windows are taken from as far as may be.
        later: True to leave an archive's windows for when they are asked for.
        storage: how its windows are stored, if that is known: see `with_database`.

    Raises:
        SourceNotFoundError: there is nothing, or no rslearn dataset.
        SourceError: it can't be reached.
    """
    url = address(url)
    if is_archive(url):
        from eval_ingest.sources.archive import open_archive

        try:
            found = open_archive(url, archives, progress=progress, copies=copies, later=later)
            return with_database(found, storage)
        except SourceNotFoundError:
            if not _is_folder(url):
                raise
    source: Source
    if "://" in url:
        # fsspec's file systems take a second to import; a folder needs none of them.
        from eval_ingest.sources.remote import RemoteSource

        source = RemoteSource(url, staging, staging_limit, copies)
        source.check()
    else:
        source = LocalSource(url)
    return with_database(source, storage)
