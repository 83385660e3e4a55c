"""Buckets listed through dagster-gcp's client."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from eval_ingest.errors import SourceError
from eval_ingest.objects.reading import Entry
from eval_ingest.sources.discovery import Found, find_datasets

REQUEST_S = 20.0
"""A page of a listing takes longer than this only if the bucket is out of reach."""


def find(root: str, max_depth: int) -> Iterable[Found]:
    """Datasets under a root: gs:// through dagster-gcp, where there are credentials for it."""
    lister = gcs_lister(root) if root.startswith("gs://") else None
    return find_datasets(root, max_depth, lister)


def gcs_lister(root: str) -> "GcsLister | None":
    """Lists a bucket with dagster-gcp's resource; None where it needs credentials we lack."""
    # Four seconds to import: the code location has to load without it.
    from dagster_gcp.gcs import GCSResource
    from google.auth.exceptions import GoogleAuthError

    try:
        client = GCSResource().get_client()
    except (GoogleAuthError, OSError):
        return None  # a public bucket, perhaps: gcsfs asks without credentials
    bucket, _, folder = root.removeprefix("gs://").strip("/").partition("/")
    return GcsLister(client, bucket, folder)


@dataclass(frozen=True)
class GcsLister:
    """Lists folders of a bucket level by level, several at a time."""

    client: Any
    """A google.cloud.storage.Client."""
    bucket: str
    folder: str

    def __call__(self, folders: Sequence[str]) -> list[list[Entry]]:
        with ThreadPoolExecutor(16, thread_name_prefix="discovery") as pool:
            return list(pool.map(lambda folder: list(self._list(folder)), folders))

    def _list(self, folder: str) -> Iterator[Entry]:
        prefix = "".join(f"{part}/" for part in (self.folder, folder) if part)
        try:
            from google.cloud.storage.retry import DEFAULT_RETRY

            listed: Any = self.client.list_blobs(
                self.bucket,
                prefix=prefix,
                delimiter="/",
                timeout=REQUEST_S,
                # Two minutes of trying again would outlast the tick; there will be another one.
                retry=DEFAULT_RETRY.with_timeout(REQUEST_S),
            )
            for blob in listed:
                if blob.name != prefix:
                    yield Entry(self._relative(blob.name), blob.size or 0, f"crc32c:{blob.crc32c}")
            for found in sorted(listed.prefixes):
                yield Entry(self._relative(found), 0, "", folder=True)
        except Exception as error:  # google-cloud's and requests' errors have no common root
            raise SourceError(
                f"source gs://{self.bucket}/{self.folder}: listing {folder or 'it'} failed: "
                f"{type(error).__name__}: {str(error).splitlines()[0][:200]}; "
                "check the URL, the network and your credentials "
                "(gcloud auth application-default login)"
            ) from error

    def _relative(self, name: str) -> str:
        return name.removeprefix(f"{self.folder}/" if self.folder else "").rstrip("/")
