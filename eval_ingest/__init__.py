"""eval_ingest: labelled rslearn datasets become evals that training code loads in milliseconds."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval_ingest.loading import EvalDataset
    from eval_ingest.sweep.evaluate import evaluate

__version__ = "0.1.0"
__all__ = ["EvalDataset", "__version__", "evaluate"]


def __getattr__(name: str) -> Any:
    # They need torch, which the CLI and Dagster's code location must not wait for.
    if name == "EvalDataset":
        from eval_ingest.loading import EvalDataset

        return EvalDataset
    if name == "evaluate":
        from eval_ingest.sweep.evaluate import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
