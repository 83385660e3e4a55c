"""eval_ingest: labelled rslearn datasets become evals that training code loads in milliseconds.

    >>> import eval_ingest
    >>> eval_ingest.list_datasets()                                        # doctest: +SKIP
    >>> eval_ingest.EvalDataset("tolbi_crops", "val")[0]                   # doctest: +SKIP

Everything here is imported when it is first asked for: `import eval_ingest` takes milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval_ingest.api import (
        adopt,
        export,
        info,
        ingest,
        leaderboard,
        list_datasets,
        plan,
        remove,
        validate,
        verify,
        write_report,
    )
    from eval_ingest.integrations.huggingface import publish, pull
    from eval_ingest.loading import EvalDataset, collate
    from eval_ingest.sweep.evaluate import evaluate
    from eval_ingest.sweep.signal import signal

__version__ = "0.1.0"
__all__ = [
    "EvalDataset",
    "__version__",
    "adopt",
    "collate",
    "evaluate",
    "export",
    "info",
    "ingest",
    "leaderboard",
    "list_datasets",
    "plan",
    "publish",
    "pull",
    "remove",
    "signal",
    "validate",
    "verify",
    "write_report",
]

_ELSEWHERE = {
    "EvalDataset": "eval_ingest.loading",
    "collate": "eval_ingest.loading",
    "evaluate": "eval_ingest.sweep.evaluate",
    "publish": "eval_ingest.integrations.huggingface",
    "pull": "eval_ingest.integrations.huggingface",
    "signal": "eval_ingest.sweep.signal",
}
"""Where a name stands that isn't in api.py."""


def __getattr__(name: str) -> Any:
    # They need torch or pyarrow, which the CLI and Dagster's code location must not wait for.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "eval_ingest.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
