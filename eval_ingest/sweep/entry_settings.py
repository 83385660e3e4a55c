"""By which settings a dataset is scored; what they mean stands in core/eval_settings.py."""

import functools
from collections.abc import Callable, Mapping

from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import read_catalog


def catalog_of(settings: Settings) -> Callable[[], Mapping[str, DatasetSpec]]:
    """What reads the catalog when asked for, and once; broken entries are not there."""
    return functools.cache(lambda: read_catalog(settings, broken={}))


def settings_of(
    name: str, own: EvalSettings, catalog: Callable[[], Mapping[str, DatasetSpec]]
) -> EvalSettings:
    """A dataset's own settings, else those that the catalog has for its name."""
    if own.given:
        return own
    known = catalog().get(name)
    return own if known is None else known.eval
