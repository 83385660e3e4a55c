"""What `eval-ingest` does, as functions: `eval_ingest.list_datasets()`, `ingest(...)`, and so on.

What belongs here: one function a task of a user, typed, that returns a value which prints itself.
What doesn't: how it is done (pipeline.py and the rooms below), and flags and exit codes (cli.py),
which calls these. Whatever is slow to import is imported when it is asked for.

    >>> import eval_ingest
    >>> eval_ingest.ingest("crops", "/data/crops", ratios=(80, 10, 10))    # doctest: +SKIP
    >>> eval_ingest.EvalDataset("crops", "val")[0]["target"].shape         # doctest: +SKIP
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_ingest.core.arguments import checked
from eval_ingest.core.entry import UNTOLD, Metadata, is_ours, listed, split_counts
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.spec import SPLITS, DatasetSpec, SplitPolicy, check_name, name_from
from eval_ingest.core.suite import DEFAULT_OUT
from eval_ingest.engine import (
    MANY_WINDOWS,
    PROGRAM,
    Progress,
    fork_ahead,
    import_ahead,
    is_worth_workers,
    no_progress,
)
from eval_ingest.errors import EvalIngestError, SpecError, UnknownDatasetError
from eval_ingest.report import terminal
from eval_ingest.report.printing import Printed, table
from eval_ingest.settings import Settings, user_path
from eval_ingest.store.catalog import (
    absolute,
    add_spec,
    drop_spec,
    find_spec,
    note_removed,
    out_of_reach,
    read_catalog,
    shown_source,
)
from eval_ingest.store.ownership import Whose, whose
from eval_ingest.store.registry import (
    finish_removals,
    read_metadata,
    read_registry,
    remove_dataset,
    require_metadata,
)
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.roots.open import open_root

if TYPE_CHECKING:
    from eval_ingest.adopting import Adopted
    from eval_ingest.copying.verify import Verified
    from eval_ingest.job import Job
    from eval_ingest.pipeline import Outcome
    from eval_ingest.sweep.results import Leaderboard


Root = str | Path | None
"""An eval root: a path or URL; None: OLMOEARTH_EVAL_DATASETS."""


def tidied(settings: Settings) -> EvalRoot:
    """The eval root, in which no removal is left half done, as far as this user may write.

    Raises:
        StoreError: it can't be reached.
    """
    root = open_root(settings)
    with contextlib.suppress(EvalIngestError):
        finish_removals(root, partial(drop_spec, settings))
    return root


def _with_dataset(root: Root, name: str) -> EvalRoot:
    """The eval root, once it is known to hold the dataset: before anything slow is imported.

    Raises:
        UnknownDatasetError: it doesn't.
        StoreError: it can't be reached.
    """
    eval_root = tidied(Settings.load(eval_root=root))
    require_metadata(eval_root, name)
    return eval_root


# ---------------------------------------------------------------------------- what is there


@dataclass(frozen=True, repr=False)
class Listed(Printed):
    """A dataset that an eval root or the catalog knows."""

    name: str
    entry: Mapping[str, Any] = field(default_factory=dict)
    """Of registry.json; empty: it isn't ingested."""
    spec: DatasetSpec | None = None
    """Of the catalog."""
    source: str = ""
    """Where it comes from, without variables and secrets; of the catalog."""
    out_of_reach: str = ""
    """Why its source can't be had from this machine; empty: it can, as far as folders tell."""

    @property
    def ingested(self) -> bool:
        """True if EvalDataset opens it: another tool's has to be adopted first."""
        return is_ours(self.entry)

    @property
    def task(self) -> str:
        """segmentation, classification, regression or scalar_regression; empty: not known yet."""
        return str(self.entry.get("task_type", ""))

    @property
    def modalities(self) -> list[str]:
        """Names of its modalities."""
        return list(dict.fromkeys(map(str, listed(self.entry.get("modalities")))))

    @property
    def splits(self) -> dict[str, int]:
        """Samples a split."""
        return split_counts(self.entry)

    @property
    def verdict(self) -> str:
        """good, usable with warnings, or poor."""
        return str(self.entry.get("verdict", ""))

    def lines(self) -> list[str]:
        """One line."""
        counts = terminal.counts_text(self.splits) if self.entry else "not ingested"
        return ["  ".join(filter(None, [self.name, self.task, counts, self.verdict]))]


class Datasets(Printed, dict[str, Listed]):
    """Datasets by name, shown as `eval-ingest list` shows them."""

    def __init__(self, url: str, found: Mapping[str, Listed]) -> None:
        super().__init__(found)
        self.url = url
        """The eval root."""

    def lines(self) -> list[str]:
        """What the command line prints."""
        registry = {name: one.entry for name, one in self.items() if one.entry}
        sources = {name: one.source for name, one in self.items() if one.spec is not None}
        elsewhere = [name for name, one in self.items() if one.out_of_reach]
        return terminal.list_lines(self.url, registry, sources, elsewhere)


@checked
def list_datasets(root: Root = None, *, catalog: bool = False) -> Datasets:
    """The datasets under an eval root by name, sorted: a dict.

    Args:
        root: the eval root; default OLMOEARTH_EVAL_DATASETS.
        catalog: also those that the catalog knows and that aren't ingested.

    Raises:
        StoreError: the eval root or its registry can't be read.
        SpecError: a file of the catalog is wrong.

    >>> [name for name, one in list_datasets().items() if one.ingested]    # doctest: +SKIP
    ['tolbi_crops']
    """
    settings = Settings.load(eval_root=root)
    specs = read_catalog(settings) if catalog else {}
    eval_root = tidied(settings)
    registry = read_registry(eval_root)
    found = {name: Listed(name, entry) for name, entry in registry.items()}
    elsewhere = out_of_reach(settings, specs)
    for name, spec in specs.items():
        source = shown_source(settings, spec)
        found[name] = Listed(name, registry.get(name, {}), spec, source, elsewhere.get(name, ""))
    return Datasets(eval_root.url, dict(sorted(found.items())))


@dataclass(frozen=True, repr=False)
class Info(Printed):
    """Everything about an ingested dataset."""

    metadata: Metadata
    """Its metadata.json: spec, configuration, statistics, quality, splits."""
    path: str
    """Its folder or URL."""
    scores: list[list[str]] = field(default_factory=list)
    """What sweeps found, a row an encoder and version under the names of the columns; or empty."""

    @property
    def name(self) -> str:
        """The dataset."""
        return self.metadata.name

    @property
    def task(self) -> str:
        """segmentation, classification, regression or scalar_regression."""
        return str(self.metadata.config.task.kind)

    @property
    def classes(self) -> list[str]:
        """Class names by id; empty for regressions."""
        return [known.name for known in self.metadata.config.task.classes]

    @property
    def bands(self) -> dict[str, tuple[str, ...]]:
        """Bands a modality, in the order of the samples."""
        return {modality.name: modality.bands for modality in self.metadata.config.modalities}

    @property
    def splits(self) -> dict[str, int]:
        """Samples a split."""
        return {split: self.metadata.splits[split].count for split in SPLITS}

    @property
    def verdict(self) -> str:
        """good, usable with warnings, or poor; `metadata.quality` says why."""
        return str(self.metadata.quality.get("verdict", ""))

    @property
    def fingerprint(self) -> str:
        """Of this version: what `EvalDataset(version=...)` takes."""
        return self.metadata.fingerprint

    @classmethod
    def of(cls, root: EvalRoot, name: str, out: str | Path = DEFAULT_OUT) -> "Info":
        """The same of a root that is open."""
        metadata = require_metadata(root, name)
        return cls(metadata, root.dataset(name).url, _scores(name, user_path(out)))

    def lines(self) -> list[str]:
        """What the command line prints."""
        scores = ["scores of frozen encoders", *table(self.scores)] if self.scores else []
        *lines, use = terminal.info_lines(self.metadata, self.path)
        return [*lines, *scores, use]


@checked
def info(name: str, root: Root = None, *, out: str | Path = DEFAULT_OUT) -> Info:
    """Everything about an ingested dataset.

    Args:
        name: the dataset.
        root: the eval root; default OLMOEARTH_EVAL_DATASETS.
        out: what sweeps wrote, for the scores; it needn't be there.

    Raises:
        UnknownDatasetError: there is none of that name; the message lists the near ones.
        NotOursError: it is another tool's, and not adopted.
        StoreError: it can't be read.
    """
    return Info.of(tidied(Settings.load(eval_root=root)), name, out)


# -------------------------------------------------------------------------------- ingesting


@dataclass(frozen=True, repr=False)
class Ingested(Printed):
    """What an ingest did."""

    name: str
    path: str
    """The dataset's folder or URL."""
    ran: bool
    """False: it was up to date, and nothing was to be done."""
    metadata: Metadata | None
    """What is registered; None with register=False."""
    facts: dict[str, Any]
    """What the command line prints as JSON."""

    def lines(self) -> list[str]:
        """What the command line prints at the end."""
        return terminal.summary_lines(self.facts)


@dataclass(frozen=True, repr=False)
class Planned(Printed):
    """What an ingest would do."""

    facts: dict[str, Any]
    """Counts, splits, bytes and the path: what the command line prints as JSON."""

    def lines(self) -> list[str]:
        """What the command line prints."""
        return terminal.dry_run_lines(self.facts)


@dataclass(frozen=True, repr=False)
class Validated(Printed):
    """What is inferred of a dataset, and from where."""

    job: "Job" = field(compare=False)

    @property
    def config(self) -> ResolvedConfig:
        """Task, classes, modalities, crop, selectors; `provenance` says where each is from."""
        return self.job.config

    @property
    def facts(self) -> dict[str, Any]:
        """What the command line prints as JSON."""
        return {
            "spec": self.job.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True),
            "source": self.job.origin,
            "config": self.job.config.model_dump(mode="json"),
        }

    def lines(self) -> list[str]:
        """What the command line prints."""
        return terminal.config_lines(self.job)


def spec_of(settings: Settings, name: str | None, given: Mapping[str, Any]) -> DatasetSpec:
    """The catalog's spec of a dataset, if there is one, with what is given laid over it.

    Args:
        settings: say where the catalog is.
        name: of the dataset; None: it is made from the source's.
        given: fields of DatasetSpec and of its SplitPolicy.

    Raises:
        SpecError: neither name nor source are given, or a field is wrong.
        UnknownDatasetError: no source is given, and the catalog doesn't know the name.
    """
    fields = {key: value for key, value in given.items() if value is not None}
    # Before anything goes by it: a version is to be the same from whichever folder it is ingested.
    fields |= {key: absolute(str(fields[key])) for key in ("source", "config") if key in fields}
    policy = {key: fields.pop(key) for key in SplitPolicy.model_fields if key in fields}
    if fields.get("copy") == "adopted":
        raise SpecError(
            "--copy adopted is what eval-ingest adopt does; give it the dataset's --name"
        )
    if name is None and "source" not in fields:
        raise SpecError("give a --source (a path or URL), or the name of a dataset in the catalog")
    name = check_name(name_from(_last_folder(fields["source"])) if name is None else name)
    base: dict[str, Any] = {}
    try:
        base = find_spec(settings, name).model_dump(by_alias=True, exclude_unset=True)
    except UnknownDatasetError:
        if "source" not in fields:
            raise
    splits = fields.pop("splits", {})
    if isinstance(splits, SplitPolicy):
        splits = splits.model_dump(exclude_unset=True)
    if policy or splits:
        fields["splits"] = {**base.get("splits", {}), **splits, **policy}
    return DatasetSpec.parse({"name": name, **base, **fields}, f"the spec of {name}")


def _last_folder(source: str) -> str:
    last = source.rstrip("/").rsplit("/", 1)[-1]
    return last.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")


@checked
def ingest(
    name: str | None = None,
    source: str | Path | None = None,
    *,
    root: Root = None,
    register: bool = True,
    overwrite: bool = False,
    progress: Progress = no_progress,
    tell: Callable[[str], None] = lambda line: None,
    **spec: Any,
) -> Ingested:
    """Ingest a dataset and register it; what is up to date is left as it is.

    Args:
        name: a dataset of the catalog, or a new one; default: the name of the source's folder.
        source: path or URL of an rslearn dataset; needed unless the catalog knows the name.
        root: the eval root; default OLMOEARTH_EVAL_DATASETS.
        register: publish it; False: all stages but the last.
        overwrite: ingest anew although nothing has changed, or another source under the same name,
            or in the place of what was pulled.
        progress: is called with what is done, how many are done, and how many there are (0: not
            known).
        tell: is called with a line about each stage, such as `print`.
        **spec: fields of `DatasetSpec` and `SplitPolicy`: groups, tags, ratios=(80, 10, 10),
            strategy="spatial", max_samples, crop_size, copy="stream", and so on.

    Raises:
        SpecError: a field is wrong.
        SourceError: the source can't be read or understood.
        InvalidWindowsError: more windows are broken than `max_invalid_fraction` allows.
        StoreError: the eval root can't be written, or another process is ingesting the dataset.

    >>> ingest("crops", "gs://bucket/crops", groups=["20251210"], tell=print)   # doctest: +SKIP
    """
    settings = Settings.load(eval_root=root)
    eval_root = tidied(settings)
    wanted = spec_of(settings, name, {"source": source, **spec})
    indexed = eval_root.dataset(wanted.name).layout.window_index.exists()
    if not indexed and is_worth_workers(settings, _windows_at_hand(settings, wanted)):
        _begin_workers(settings)
    from eval_ingest import pipeline
    from eval_ingest.job import open_job

    job = open_job(wanted, settings, progress=progress, overwrite=overwrite)
    if source is not None and not overwrite:
        _refuse_another_source(job)
    if overwrite:
        pipeline.forget(job)
    stages = pipeline.STAGES if register else pipeline.STAGES[:-1]

    def each(done: "Outcome") -> None:
        tell(terminal.outcome_line(done))
        if done.stage == pipeline.STAGES[-2]:  # before it is registered: then it is known for sure
            add_spec(settings, job.spec)

    outcomes = pipeline.ingest(job, each, stages)
    facts = terminal.summary(job, outcomes)
    metadata = outcomes[-1].value if register else None
    return Ingested(job.spec.name, job.store.url, facts["ran"], metadata, facts)


def _begin_workers(settings: Settings) -> None:
    """Have the workers import what they need while we do, or import it once for all of us."""
    if not PROGRAM.is_set():
        import_ahead()
        return
    import eval_ingest.copying.preloaded  # noqa: F401

    fork_ahead(settings)


def _windows_at_hand(settings: Settings, spec: DatasetSpec) -> int:
    """Windows in a source's folder, as far as it matters whether they are many; 0 elsewhere."""
    groups = Path(settings.expand(spec.source), "windows").glob("*")
    names = (name for group in groups if group.is_dir() for name in os.scandir(group))
    with contextlib.suppress(OSError):  # told when it is read
        return sum(1 for _ in islice(names, MANY_WINDOWS))
    return 0


def _refuse_another_source(job: "Job") -> None:
    """A name that is taken is not given to another dataset by mistake."""
    from eval_ingest.store.outcomes import read_outcome

    published = read_outcome(job.store, "registry_entry")
    if published is not None and published.source not in (job.origin, UNTOLD):
        raise SpecError(
            f"{job.spec.name} is ingested already, from {published.source}; "
            f"give {job.origin} another --name, or replace the old one with --overwrite"
        )


@checked
def plan(
    name: str | None = None,
    source: str | Path | None = None,
    *,
    root: Root = None,
    overwrite: bool = False,
    **spec: Any,
) -> Planned:
    """What an ingest would do, from the listing and the windows' metadata: nothing is written.

    Arguments and errors are those of `ingest`.
    """
    from eval_ingest.dry_run import dry_run
    from eval_ingest.job import open_job
    from eval_ingest.store.claims import refuse_theirs

    settings = Settings.load(eval_root=root)
    wanted = spec_of(settings, name, {"source": source, **spec})
    store = tidied(settings).dataset(wanted.name)
    refuse_theirs(store, wanted, overwrite)
    with tempfile.TemporaryDirectory() as scratch:
        facts = dry_run(open_job(wanted, settings, root=scratch, looks=True))
    return Planned({**facts, "path": str(store.url)})


@checked
def validate(
    name: str | None = None, source: str | Path | None = None, *, root: Root = None, **spec: Any
) -> Validated:
    """What is inferred of a dataset, and from where: its configuration is read, and no window.

    Arguments and errors are those of `ingest`.

    >>> validate(source="gs://bucket/crops").config.task.num_classes       # doctest: +SKIP
    7
    """
    from eval_ingest.job import open_job

    settings = Settings.load(eval_root=root)
    wanted = spec_of(settings, name, {"source": source, **spec})
    with tempfile.TemporaryDirectory() as scratch:  # for archives, which have to be unpacked
        return Validated(open_job(wanted, settings, root=scratch, looks=True))


@checked
def adopt(
    name: str,
    *,
    root: Root = None,
    correct: bool = False,
    progress: Progress = no_progress,
    each: "Callable[[Outcome], None]" = lambda _: None,
) -> "Adopted":
    """Take over a dataset of another tool where it is, and write its report.

    Args:
        name: as another tool has registered it, or its folder.
        root: the eval root; default OLMOEARTH_EVAL_DATASETS.
        correct: write what is found into its entry, where that says something else.
        progress: see `ingest`.
        each: is called after every stage.

    Raises:
        UnknownDatasetError: there is neither an entry nor a folder of that name.
        NotOursError: it is an ingest of ours.
        EvalIngestError: whatever a stage raises; what is of the other tool stays as it was.
    """
    from eval_ingest import adopting
    from eval_ingest.report import writing

    settings = Settings.load(eval_root=root)
    adopted = adopting.adopt(settings, name, correct=correct, progress=progress, each=each)
    if adopted.ran:
        writing.write_report(open_root(settings), name)
    return adopted


# ---------------------------------------------------------------------- what was ingested


@checked
def verify(name: str, root: Root = None, progress: Progress = no_progress) -> "Verified":
    """Read back everything that was ingested, and compare checksums.

    Raises:
        UnknownDatasetError: there is no such dataset.
        StoreError: it can't be read.
    """
    eval_root = _with_dataset(root, name)
    from eval_ingest.verifying import verify_dataset

    return verify_dataset(eval_root, name, progress)


@checked
def write_report(name: str, root: Root = None, *, out: str | Path = DEFAULT_OUT) -> list[Path]:
    """Write a dataset's pictures, report.html and card; the paths, or those of their mirror.

    Args:
        name: the dataset.
        root: the eval root; default OLMOEARTH_EVAL_DATASETS.
        out: what sweeps wrote, for the scores on the page; it needn't be there.

    Raises:
        UnknownDatasetError: there is no such dataset.
        NotIngestedError: its index is of another version.
        StoreError: the eval root can't be written.
    """
    eval_root = _with_dataset(root, name)
    from eval_ingest.report import writing
    from eval_ingest.report.tables import Board

    scores = _scores(name, user_path(out))
    boards = [Board("frozen encoders", scores)] if scores else []
    return writing.write_report(eval_root, name, boards)


def _scores(name: str, out: Path) -> list[list[str]]:
    """What sweeps found on a dataset, a line an encoder and version, the newest version first."""
    if not any((out / "rows").glob("[!.]*.json")):
        return []
    from eval_ingest.sweep.results import leaderboards, read_rows

    rows = [row for row in read_rows(out) if row.dataset == name]
    lines = [["encoder", "split", "train", "metric", "score", "95% interval", "version"]]
    for version in dict.fromkeys(
        row.dataset_version for row in sorted(rows, key=lambda row: row.finished_at, reverse=True)
    ):
        for board in leaderboards([row for row in rows if row.dataset_version == version]):
            for (_, encoder), cell in sorted(board.cells.items()):
                known = cell.low is not None and cell.high is not None
                interval = f"{cell.low:.3f} to {cell.high:.3f}" if known else ""
                share = f"{100 * board.label_fraction:.4g}%"
                lines.append([encoder, board.split, share, cell.metric, f"{cell.score:.3f}",
                              interval, version[:8]])  # fmt: skip
    return lines if len(lines) > 1 else []


@checked
def export(
    name: str,
    to: str | Path,
    *,
    root: Root = None,
    windows: bool = True,
    progress: Progress = no_progress,
) -> Path:
    """Copy a dataset with its report into a folder to publish, an eval root of its own.

    Args:
        name: the dataset.
        to: the new eval root; the dataset is {to}/{name}.
        root: where it is; default OLMOEARTH_EVAL_DATASETS.
        windows: with the rslearn copy; without: the packed samples alone.
        progress: see `ingest`.

    Raises:
        UnknownDatasetError: there is no such dataset.
        StoreError: `to` can't be written, or holds that dataset already.
    """
    eval_root = _with_dataset(root, name)
    if "://" in str(to):
        raise SpecError(
            f"{to} is a URL; give --to a folder on this machine, or have it published: "
            f"eval-ingest publish {name} --to hf://ORG/REPO"
        )
    from eval_ingest.report.export import export_dataset

    return export_dataset(eval_root, name, user_path(to), windows, progress)


@dataclass(frozen=True, repr=False)
class Removed(Printed):
    """What became of a dataset that was removed."""

    name: str
    root: str
    """The eval root."""
    given_back: str = ""
    """Where an adopted one lies, as it was before."""
    ignored: str = ""
    """Its source, which discovery leaves alone from now on."""
    left: tuple[str, ...] = ()
    """What of it wasn't deleted: the folder that its own was a link to, what may not be."""

    def lines(self) -> list[str]:
        """What the command line prints."""
        lines = [f"{self.name} is removed from {self.root}"]
        if self.given_back:
            there = f"windows and entry are as they were in {self.given_back}"
            lines = [f"{self.name} is given back: {there}"]
        lines += [f"not deleted, and still taking room: {place}" for place in self.left]
        if self.ignored:
            lines.append(
                f"where {self.ignored} is found under a watched root it is ignored; to have it "
                "again, ingest it by its name, or have it be found: "
                f"eval-ingest discover --forget {self.name}"
            )
        return lines


@checked
def remove(
    name: str, root: Root = None, *, agreed: Callable[[str], bool] = lambda what: True
) -> Removed | None:
    """Delete an ingested dataset, be it published, damaged or half removed; give back an adopted.

    Args:
        name: the dataset.
        root: the eval root; default OLMOEARTH_EVAL_DATASETS.
        agreed: is told what would be deleted; where it says no nothing is, and None is returned.

    Raises:
        UnknownDatasetError: there is no such dataset.
        NotOursError: it is another tool's, and not adopted.
        StoreError: it can't be removed.
    """
    settings = Settings.load(eval_root=root)
    eval_root = open_root(settings)
    store, last = eval_root.dataset(name), partial(drop_spec, settings)
    if name in finish_removals(eval_root, last):  # of an earlier command, which was stopped
        return Removed(name, eval_root.url, left=tuple(map(str, store.left())))
    if not store.is_there():
        require_metadata(eval_root, name)
    adopted = whose(store) is Whose.ADOPTED
    what = f"what is ours in {store.url}" if adopted else f"{store.url} and everything in it"
    linked = "" if adopted else store.linked_to
    if linked:
        what = f"the link {store.url}, but not the data, which are in {linked},"
    if not agreed(what):
        return None
    source = ""
    if not adopted:
        with contextlib.suppress(EvalIngestError):
            metadata = read_metadata(store)
            if metadata is None:  # never published: where it was to come from
                source = settings.expand(find_spec(settings, name).source)
            else:
                source = metadata.source
    noted = bool(source) and note_removed(settings, name, source)
    remove_dataset(eval_root, name, last)
    left = tuple(filter(None, (linked, *map(str, store.left()))))
    return Removed(name, eval_root.url, store.url if adopted else "", source if noted else "", left)


@checked
def leaderboard(
    out: str | Path = DEFAULT_OUT, datasets: str | Sequence[str] = ()
) -> "list[Leaderboard]":
    """What sweeps found: a board for each split, label fraction and so on.

    Args:
        out: the folder that `eval-ingest sweep` wrote.
        datasets: only this one, or these; default all.

    Raises:
        SweepError: there are no results, or they can't be read.
    """
    from eval_ingest.sweep.results import leaderboards, read_rows

    rows = read_rows(user_path(out))
    wanted = {datasets} if isinstance(datasets, str) else set(datasets)
    return leaderboards([row for row in rows if not wanted or row.dataset in wanted])
