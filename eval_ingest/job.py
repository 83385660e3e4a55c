"""One dataset on its way: where it comes from, what it is, where it goes."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from eval_ingest.config_files import read_config_files
from eval_ingest.core.entry import their_values
from eval_ingest.core.index import WindowIndex, row_key
from eval_ingest.core.resolved import ResolvedConfig, SplitSelector
from eval_ingest.core.spec import SPLIT_OPTION, SPLITS, DatasetSpec
from eval_ingest.engine import Progress, no_progress
from eval_ingest.errors import EvalIngestError, SourceNotFoundError, SpecError, StaleStageError
from eval_ingest.inference.resolve import ConfigFiles, resolve
from eval_ingest.redaction import holds_secret, redacted
from eval_ingest.settings import Settings
from eval_ingest.sources.base import Source
from eval_ingest.sources.open import address, is_archive, open_source
from eval_ingest.sources.sqlite import with_database
from eval_ingest.store.catalog import find_spec
from eval_ingest.store.claims import refuse_theirs
from eval_ingest.store.copies import copies_of
from eval_ingest.store.paths import DatasetLayout
from eval_ingest.store.registry import their_raw_entry
from eval_ingest.store.resolved import Resolved, asked_by, read_resolved, write_resolved
from eval_ingest.store.roots.base import DatasetStore, EvalRoot
from eval_ingest.store.roots.open import open_root
from eval_ingest.store.seal import unless_damaged


@dataclass(frozen=True)
class Job:
    """One dataset on its way: where it comes from, what it is, where it goes."""

    spec: DatasetSpec
    settings: Settings
    root: EvalRoot
    store: DatasetStore
    """The dataset under the eval root."""
    source: Source
    files: ConfigFiles
    config: ResolvedConfig
    progress: Progress = field(default=no_progress, compare=False)
    their_entry: str = ""
    """Of a dataset to adopt: the JSON of its entry in registry.json before we added to it."""
    overwrite: bool = False
    """A dataset that was published elsewhere, and copied here, may be replaced."""

    @property
    def layout(self) -> DatasetLayout:
        """The dataset's files under the eval root."""
        return self.store.layout

    @property
    def origin(self) -> str:
        """Where the dataset comes from, as it may be shown and kept: without secrets."""
        return redacted(self.source.origin)

    @cached_property
    def row_key(self) -> str:
        """What a window's row depends on besides its files."""
        return row_key(self.config)


def _of_the_catalog(spec: DatasetSpec, settings: Settings) -> str:
    """Where a path comes from that nobody has typed, to go on with in a message."""
    try:
        if find_spec(settings, spec.name).source != spec.source:
            return ""
    except EvalIngestError:
        return ""
    again = f"eval-ingest ingest {spec.name} --source PATH_OR_URL"
    return f"; that is what the catalog says, {redacted(spec.source)}; another: {again}"


def open_job(
    spec: DatasetSpec,
    settings: Settings,
    root: str | Path | None = None,
    progress: Progress = no_progress,
    looks: bool = False,
    indexed: bool = False,
    overwrite: bool = False,
) -> Job:
    """Find the source, read its configuration, and infer what the samples are made of.

    Args:
        spec: the dataset.
        settings: say where things are.
        root: the eval root, if not that of the settings.
        progress: is told how far the stages are.
        looks: True if nothing is to be kept of the source: it is only looked at.
        indexed: True for stages after the first one: the configuration is the one that the index
            was made by, and the source's own files are not read again.
        overwrite: True to replace a dataset that was published elsewhere, and copied here.

    Raises:
        SourceError: the source or its configuration can't be read or understood.
        StoreError: the eval root can't be reached.
        SettingsError: the source names an environment variable that isn't set.
        NotOursError: the name or the folder is another tool's.
        SpecError: the dataset was published elsewhere, and isn't to be overwritten.
    """
    eval_root = open_root(settings, root)
    store = eval_root.dataset(spec.name)
    layout = store.layout
    refuse_theirs(store, spec, overwrite)
    url = settings.expand(spec.source)
    fetched = "://" in url or is_archive(url)
    try:
        source = open_source(
            url,
            None if looks else layout.staging,
            layout.archive,
            eval_root.cache_bytes,
            progress,
            copies_of(eval_root, spec.name, redacted(address(url)))
            if fetched and not looks
            else None,
            later=not looks,
        )
    except SourceNotFoundError as error:
        raise SourceNotFoundError(f"{error}{_of_the_catalog(spec, settings)}") from None
    if spec.copy_mode == "index" and (holds_secret(source.origin) or source.url != source.origin):
        why = "is an archive; unpack it and give the folder"
        if holds_secret(source.origin):
            why = "has a password or signature, which is kept nowhere; give a URL without"
        raise SpecError(
            f"{spec.name}: with --copy index samples are read from the source, and "
            f"{source.origin} {why}, or use --copy stream"
        )
    theirs = their_raw_entry(store) if spec.adopted else ""
    resolved = read_resolved(store) if indexed else None
    if resolved is not None:
        files, config = _files_of(resolved), resolved.config
    else:
        try:
            files, config = _configuration(source, spec, settings, theirs)
        except EvalIngestError:  # what is missing may stand behind the windows
            if not source.complete():
                raise
            files, config = _configuration(source, spec, settings, theirs)
    source = with_database(source, config.window_storage)
    return Job(spec, settings, eval_root, store, source, files, config, progress, theirs, overwrite)


def _configuration(
    source: Source, spec: DatasetSpec, settings: Settings, theirs: str
) -> tuple[ConfigFiles, ResolvedConfig]:
    """A source's configuration files, and what they mean."""
    files = read_config_files(source, spec, settings)
    config = resolve(files, spec)
    if source.notes:
        config = config.model_copy(update={"warnings": (*config.warnings, *source.notes)})
    return files, _by_their_splits(config, theirs) if spec.adopted else config


def read_again(job: Job) -> Job:
    """The job with its source's configuration as it is now that all of the source is there.

    Raises:
        SourceError: the configuration can't be read or understood.
    """
    files, config = _configuration(job.source, job.spec, job.settings, job.their_entry)
    source = with_database(job.source, config.window_storage)
    return replace(job, source=source, files=files, config=config)


def _by_their_splits(config: ResolvedConfig, their_entry: str) -> ResolvedConfig:
    """The configuration of an adopted dataset: each window is in the split that its option says."""
    key = their_values(their_entry).get("split_tag_key") or SPLIT_OPTION
    selectors = {split: SplitSelector(tags={key: split}) for split in SPLITS}
    provenance = {**config.provenance, "selectors": f"window option {key}"}
    return config.model_copy(update={"selectors": selectors, "provenance": provenance})


def write_config(job: Job, index_fingerprint: str) -> None:
    """Keep the configuration that an index was made by, for the stages after it.

    Raises:
        StoreError: it can't be written.
    """
    resolved = Resolved(
        window_index=index_fingerprint,
        asked=asked_by(job.spec),
        config=job.config,
        config_json=job.files.config_json,
        model_yaml=job.files.model_yaml,
        run_yaml=job.files.run_yaml,
        where=job.files.where,
        permissions=dict(job.files.permissions),
    )
    write_resolved(job.store, resolved)


def with_config_of(job: Job, index: WindowIndex) -> Job:
    """The job with the configuration that its index was made by.

    Raises:
        StaleStageError: it isn't known, or the spec asks for other windows by now.
    """
    resolved = unless_damaged(lambda: read_resolved(job.store))
    if resolved is None or resolved.window_index != index.fingerprint:
        raise StaleStageError(
            job.spec.name, "window_index", "the configuration that it was made by isn't known"
        )
    asked = asked_by(job.spec)
    changed = [name for name, value in asked.items() if resolved.asked.get(name) != value]
    if changed:
        what = f"the spec's {', '.join(changed)} changed since it was made"
        raise StaleStageError(job.spec.name, "window_index", what)
    found = replace(job, files=_files_of(resolved), config=resolved.config)
    if found.row_key != index.row_key:
        what = "another version of eval_ingest made it"
        raise StaleStageError(job.spec.name, "window_index", what)
    return found


def _files_of(known: Resolved) -> ConfigFiles:
    return ConfigFiles(
        known.config_json,
        known.model_yaml,
        known.run_yaml,
        known.where,
        permissions=known.permissions,
    )
