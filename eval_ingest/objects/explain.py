"""What went wrong with a bucket, as one sentence that says what to do.

What belongs here: words. What doesn't: which errors mean what (faults.py).
"""

import math

from eval_ingest.errors import EvalIngestError, SourceError, StoreError, cure_by, lacking
from eval_ingest.objects import faults
from eval_ingest.objects.filesystems import extra_for
from eval_ingest.objects.retry import Limits
from eval_ingest.redaction import without_secrets_of
from eval_ingest.settings import ANSWER_VARIABLE, REQUESTER_PAYS_VARIABLE


class SourceWords:
    """Sentences about a folder of objects that is read."""

    kind = "source"
    """What lies at the URL."""
    error: type[EvalIngestError] = SourceError
    google_role = "Storage Object Viewer"
    rights = "list and read"

    def __init__(self, url: str, resumes: bool = True) -> None:
        self.url = url
        self._resumes = resumes
        scheme, _, rest = url.partition("://")
        self._scheme, self._bucket = scheme, rest.partition("/")[0]

    def unusable(self, error: Exception) -> EvalIngestError:
        """No file system can be made for the URL."""
        said = without_secrets_of(self.url, str(error))
        return lacking(error) or self.error(
            f"{self.kind} {self.url} can't be opened: {said}; {self._cure_of_url(error)}"
        )

    def refused(self, why: str) -> EvalIngestError:
        """The URL is none that we take."""
        return self.error(f"{self.kind} {self.url} can't be opened: {why}")

    def silent(self, server: str, seconds: float, last: BaseException | None) -> EvalIngestError:
        """Nothing at all has come from the server."""
        what = f"{server} does not answer (waited {seconds:.0f} s)"
        lack = lacking(last) if last is not None else None
        if lack is not None:
            return lack
        if last is not None:
            said = without_secrets_of(self.url, faults.first_line(last))
            what = f"{server} can't be reached: {said}"
        slow = (
            ""
            if last
            else f"; if it is only slow, set {ANSWER_VARIABLE}={max(seconds, 1) * 10:.0f}"
        )
        return self.error(f"{self.kind} {self.url}: {what}; {self._cure_of_network()}{slow}")

    def failed(self, doing: str, error: Exception, limits: Limits, who: str) -> EvalIngestError:
        """A request has failed for good.

        Args:
            doing: what was being done.
            error: what the last try raised.
            limits: how often and how long it was tried.
            who: whose credentials were used.
        """
        lack = lacking(error)
        if lack is not None:
            return lack
        where = f"{self.kind} {self.url}"
        said = without_secrets_of(self.url, faults.first_line(error))
        if faults.is_requester_pays(error):
            return self.error(f"{where}: {doing} is not allowed: {self._cure_of_payment()}")
        if faults.is_forbidden(error):
            return self.error(
                f"{where}: {doing} is not allowed with {who} ({said}); {self._cure()}"
            )
        if faults.is_mistyped(error):
            return self.error(f"{where}: {doing} failed: {said}; check the URL")
        is_counted = limits.attempts > 1 and math.isinf(limits.total_s) and faults.may_pass(error)
        times = f" {limits.attempts} times" if is_counted else ""
        if isinstance(error, TimeoutError) and not str(error):
            said = f"no answer within {limits.timeout_s:.0f} s, or only that it is busy"
        again = ", and run again: it goes on where it stopped" if self._resumes else ""
        return self.error(
            f"{where}: {doing} failed{times}: {said}; {self._cure_of_network()}{again}"
        )

    def _cure_of_url(self, error: Exception) -> str:
        extra = extra_for(self._scheme)
        if isinstance(error, ImportError) and extra:
            return cure_by(extra)
        if self._scheme == "weka":
            return "set it to the address of Weka's S3, or give a path"
        return "give a path, gs://bucket/path, s3://bucket/path, or another URL that fsspec knows"

    def _cure_of_network(self) -> str:
        return "check the network"

    def _cure(self) -> str:
        if self._scheme in ("gs", "gcs"):
            return (
                f"ask for the role {self.google_role} on gs://{self._bucket}, "
                "or log in: gcloud auth application-default login"
            )
        cure = f"check that they may {self.rights} {self._scheme}://{self._bucket}"
        if self._scheme == "weka":
            return cure
        return (
            f"{cure}; if whoever asks pays for this bucket, set "
            f"{REQUESTER_PAYS_VARIABLE}=s3://{self._bucket}"
        )

    def _cure_of_payment(self) -> str:
        return (
            f"{self._bucket} is a requester-pays bucket, whose readers pay; name a Google Cloud "
            f"project that pays and that you may use (serviceusage.services.use): "
            f"{REQUESTER_PAYS_VARIABLE}=gs://{self._bucket}=PROJECT"
        )


class EvalRootWords(SourceWords):
    """Sentences about an eval root."""

    kind = "eval root"
    error = StoreError
    google_role = "Storage Object User"
    rights = "list, read, write and delete in"

    def no_bucket(self) -> EvalIngestError:
        """There is nothing that could be written to."""
        return self.error(
            f"{self.kind} {self.url}: there is no bucket {self._bucket}; check the URL"
        )

    def _cure_of_url(self, error: Exception) -> str:
        if self._scheme == "weka" and not isinstance(error, ImportError):
            return (
                "set WEKA_ENDPOINT_URL to the address of Weka's S3, or OLMOEARTH_EVAL_DATASETS "
                "to a folder or URL, such as OLMOEARTH_EVAL_DATASETS=$HOME/evals"
            )
        return super()._cure_of_url(error)

    def _cure_of_network(self) -> str:
        also = " and WEKA_ENDPOINT_URL" if self._scheme == "weka" else ""
        return f"check the network{also}, or set OLMOEARTH_EVAL_DATASETS to another place"
