"""By which settings a dataset is scored; what they mean stands in core/eval_settings.py."""

from collections.abc import Callable, Mapping

from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.spec import DatasetSpec


def settings_of(
    name: str, own: EvalSettings, catalog: Callable[[], Mapping[str, DatasetSpec]]
) -> EvalSettings:
    """A dataset's own settings, else those that the catalog has for its name."""
    if own.given:
        return own
    known = catalog().get(name)
    return own if known is None else known.eval
