"""Addresses on the Hugging Face Hub: hf://[datasets/]ORG/REPO[@REVISION][/DATASET]."""

import re
from typing import NamedTuple, Self

from eval_ingest.errors import SpecError

SCHEME = "hf://"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ADDRESS = re.compile(
    rf"hf://(?:datasets/)?(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[^/@\s]+))?(?:/(?P<name>[^/]+))?/?"
)


class HubAddress(NamedTuple):
    """A dataset repository on the Hub, which is an eval root, and perhaps a dataset in it."""

    repo: str
    """ORG/REPO."""
    revision: str | None = None
    """A branch, a tag or a commit."""
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address.

        Raises:
            SpecError: it is none.

        >>> HubAddress.parse("hf://datasets/allenai/evals@v1/tolbi_crops")
        HubAddress(repo='allenai/evals', revision='v1', name='tolbi_crops')
        """
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise SpecError(
                f"{text!r} is no address on the Hub; it reads hf://ORG/REPO or "
                "hf://ORG/REPO/DATASET, with @REVISION after REPO for a branch, a tag or a commit"
            )
        return cls(found["repo"], found["revision"], found["name"])

    @property
    def root(self) -> str:
        """The eval root, as fsspec opens it."""
        at = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}datasets/{self.repo}{at}"

    @property
    def url(self) -> str:
        """As people write it."""
        at = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repo}{at}" + (f"/{self.name}" if self.name else "")
