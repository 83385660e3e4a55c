"""One dataset on its way: where it comes from, what it is, where it goes."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from eval_ingest.config_files import read_config_files
from eval_ingest.core.index import row_key
from eval_ingest.core.resolved import ResolvedConfig, SplitSelector
from eval_ingest.core.spec import SPLIT_OPTION, SPLITS, DatasetSpec
from eval_ingest.engine import Progress, no_progress
from eval_ingest.errors import SpecError
from eval_ingest.inference.resolve import ConfigFiles, resolve
from eval_ingest.redaction import holds_secret, redacted
from eval_ingest.settings import Settings
from eval_ingest.sources.base import Source
from eval_ingest.sources.open import open_source
from eval_ingest.store.claims import refuse_theirs
from eval_ingest.store.paths import DatasetLayout
from eval_ingest.store.registry import their_raw_entry
from eval_ingest.store.roots.base import DatasetStore, EvalRoot
from eval_ingest.store.roots.open import open_root


@dataclass(frozen=True)
class Job:
    """One dataset on its way: where it comes from, what it is, where it goes."""

    spec: DatasetSpec
    settings: Settings
    root: EvalRoot
    source: Source
    files: ConfigFiles
    config: ResolvedConfig
    progress: Progress = field(default=no_progress, compare=False)
    their_entry: str = ""
    """Of a dataset to adopt: the JSON of its entry in registry.json before we added to it."""

    @property
    def layout(self) -> DatasetLayout:
        """The dataset's files under the eval root."""
        return self.store.layout

    @cached_property
    def store(self) -> DatasetStore:
        """The dataset under the eval root."""
        return self.root.dataset(self.spec.name)

    @property
    def origin(self) -> str:
        """Where the dataset comes from, as it may be shown and kept: without secrets."""
        return redacted(self.source.origin)

    @cached_property
    def row_key(self) -> str:
        """What a window's row depends on besides its files."""
        return row_key(self.config)


def open_job(
    spec: DatasetSpec,
    settings: Settings,
    root: str | Path | None = None,
    progress: Progress = no_progress,
    looks: bool = False,
) -> Job:
    """Find the source, read its configuration, and infer what the samples are made of.

    Args:
        spec: the dataset.
        settings: say where things are.
        root: the eval root, if not that of the settings.
        progress: is told how far the stages are.
        looks: True if nothing is to be kept of the source: it is only looked at.

    Raises:
        SourceError: the source or its configuration can't be read or understood.
        StoreError: the eval root can't be reached.
        SettingsError: the source names an environment variable that isn't set.
        NotOursError: the name or the folder is another tool's.
    """
    eval_root = open_root(settings, root)
    store = eval_root.dataset(spec.name)
    layout = store.layout
    refuse_theirs(store, spec)
    source = open_source(
        settings.expand(spec.source),
        None if looks else layout.staging,
        layout.archive,
        eval_root.cache_bytes,
        progress,
    )
    if spec.copy_mode == "index" and holds_secret(source.origin):
        raise SpecError(
            f"{spec.name}: with --copy index samples are read from the source, and the password "
            f"or signature of {source.origin} is kept nowhere; use --copy stream"
        )
    if spec.copy_mode == "index" and source.url != source.origin:
        raise SpecError(
            f"{spec.name}: with --copy index samples are read from the source, and "
            f"{source.origin} is an archive; unpack it and give the folder, or use --copy stream"
        )
    files = read_config_files(source, spec, settings)
    config = resolve(files, spec)
    if source.notes:
        config = config.model_copy(update={"warnings": [*config.warnings, *source.notes]})
    theirs = their_raw_entry(store) if spec.adopted else ""
    if spec.adopted:
        config = _by_their_splits(config, theirs)
    return Job(spec, settings, eval_root, source, files, config, progress, theirs)


def _by_their_splits(config: ResolvedConfig, their_entry: str) -> ResolvedConfig:
    """The configuration of an adopted dataset: each window is in the split that its option says."""
    key = json.loads(their_entry or "{}").get("split_tag_key") or SPLIT_OPTION
    selectors = {split: SplitSelector(tags={key: split}) for split in SPLITS}
    provenance = {**config.provenance, "selectors": f"window option {key}"}
    return config.model_copy(update={"selectors": selectors, "provenance": provenance})
