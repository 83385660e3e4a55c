"""Taking over datasets of another tool where they are: `eval-ingest adopt`.

Its copy of the windows is the source and stays as it is; beside it lie validity, statistics,
splits and packed samples, made by the same stages as an ingest's. Its entry in registry.json keeps
every value that it had, with ours beside them.

What belongs here: finding the copy, and telling what is otherwise than its entry says. What
doesn't: whose a folder is (store/ownership.py), and how entries are joined (store/registry.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_ingest import pipeline
from eval_ingest.core.adoption import Difference, differences
from eval_ingest.core.entry import Metadata, is_ours, registry_entry, their_values
from eval_ingest.core.spec import DatasetSpec, is_name
from eval_ingest.engine import Progress, no_progress
from eval_ingest.errors import NotOursError, UnknownDatasetError
from eval_ingest.job import open_job
from eval_ingest.pipeline import Outcome
from eval_ingest.settings import Settings
from eval_ingest.sources.base import CONFIG_FILES
from eval_ingest.store.catalog import add_spec, read_catalog
from eval_ingest.store.claims import nothing_to_adopt
from eval_ingest.store.ownership import Whose, ours_in_the_way, whose
from eval_ingest.store.registry import read_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.roots.open import open_root

_ADOPTABLE = (Whose.THEIRS, Whose.NOBODYS, Whose.ADOPTED)
"""The last of these, where it isn't published: its adoption was stopped."""


@dataclass(frozen=True)
class Adopted:
    """What became of a dataset."""

    name: str
    source: str
    """Where its windows are."""
    metadata: Metadata
    outcomes: list[Outcome]
    differences: list[Difference]
    """What its entry says otherwise than we found, whether that was corrected or not."""

    @property
    def ran(self) -> bool:
        """False: it was adopted already, and nothing was to be done."""
        return any(outcome.ran for outcome in self.outcomes)


def adoptable(root: EvalRoot) -> list[str]:
    """The datasets under a root that another tool has registered, or left there, and we haven't.

    Raises:
        StoreError: the registry can't be read.
    """
    names = [n for n, e in read_registry(root).items() if not is_ours(e) and is_name(n)]
    folders = [p.name for p in root.path.glob("*") if is_name(p.name) and p.is_dir()]
    names += [n for n in sorted(folders) if n not in names and _copy_in(root.path / n) is not None]
    published = set(root.dataset_names())
    return [n for n in names if n not in published and whose(root.dataset(n)) in _ADOPTABLE]


def adopt(
    settings: Settings,
    name: str,
    *,
    correct: bool = False,
    progress: Progress = no_progress,
    each: Callable[[Outcome], None] = lambda _: None,
) -> Adopted:
    """Take over a dataset of another tool where it is; one that is adopted is brought up to date.

    Args:
        settings: say where the eval root is.
        name: as another tool has registered it, or its folder.
        correct: write what we find into its entry, where that says something else.
        progress: is told how far it is.
        each: is called after every stage.

    Raises:
        UnknownDatasetError: there is neither an entry nor a folder of that name.
        NotOursError: it is an ingest of ours, or files of ours would be in the way of its own.
        EvalIngestError: whatever a stage raises; what is of the other tool stays as it was.
    """
    root = open_root(settings)
    spec = _spec(root, settings, name, correct)
    job = open_job(spec, settings, progress=progress)

    def and_keep(done: Outcome) -> None:
        each(done)
        if done.stage == pipeline.STAGES[-2]:  # before it is registered: then it is known for sure
            add_spec(settings, spec)

    outcomes = pipeline.ingest(job, and_keep)
    metadata: Metadata = outcomes[-1].value
    theirs = their_values(metadata.their_entry)
    ours = registry_entry(metadata, job.store.registered_path)
    return Adopted(name, spec.source, metadata, outcomes, differences(theirs, ours))


def _spec(root: EvalRoot, settings: Settings, name: str, correct: bool) -> DatasetSpec:
    kind = whose(root.dataset(name))
    if kind is Whose.ADOPTED:
        known = read_catalog(settings, {}).get(name)
        if known is not None and known.adopted:
            return known.model_copy(update={"correct": known.correct or correct})
    if kind is Whose.INGESTED:
        raise nothing_to_adopt(name)
    registered = read_registry(root)
    entry = registered.get(name, {})
    if kind is Whose.NOBODYS and name not in registered:
        raise UnknownDatasetError(
            name, adoptable(root), f"{root.url} that could be adopted", "See eval-ingest list."
        )
    if kind is Whose.THEIRS:
        _refuse_what_is_in_the_way(root, name)
    values: dict[str, Any] = {
        "name": name,
        "source": their_copy(root, name, entry),
        "copy": "adopted",
        # What that tool can't read either is told; nobody is to be stopped by it.
        "max_invalid_fraction": 1.0,
        "correct": correct,
    }
    built_in = read_catalog(settings, {}).get(name)
    for field in ("display_name", "eval", "licence", "notes"):
        value = getattr(built_in, field, None)
        if value:
            values[field] = value
    return DatasetSpec.parse(values, f"the entry of {name}")


def _refuse_what_is_in_the_way(root: EvalRoot, name: str) -> None:
    store = root.dataset(name)
    there = ours_in_the_way(store)
    if there:
        raise NotOursError(
            f"{store.url} holds {', '.join(there)} of another tool, where ours would lie; "
            f"rename them, or ingest the dataset under another name: "
            f"eval-ingest ingest {name}_2 --source {store.url}"
        )


def their_copy(root: EvalRoot, name: str, entry: dict[str, Any]) -> str:
    """Where another tool's copy of a dataset lies, as this machine sees it.

    The entry's `weka_path` may name a folder within the dataset's, and a root that is mounted
    elsewhere, or was moved: then the same folder under this root.
    """
    layout = root.dataset(name).layout
    path = str(entry.get("weka_path") or "").rstrip("/")
    _, found, inside = path.partition(f"/{name}/")
    here = layout.path / inside if found else layout.path
    lies_in = _copy_in(here)
    if lies_in is not None:
        return _address(root, lies_in)
    if path and _copy_in(Path(path)) is not None:
        return path
    if "://" in root.address:
        return f"{root.address.rstrip('/')}/{name}" + (f"/{inside}" if found else "")
    raise NotOursError(
        f"{name}: there is no copy of its windows to adopt: neither {path or 'its weka_path'} nor "
        f"{layout.path} holds config.json and windows/; to ingest it anew under another name: "
        f"eval-ingest ingest {name}_2 --source {entry.get('source_path', 'PATH_OR_URL')}"
    )


def _address(root: EvalRoot, path: Path) -> str:
    """A path under the root as it can be opened again."""
    if "://" not in root.address:
        return str(path)
    return f"{root.address.rstrip('/')}/{path.relative_to(root.path).as_posix()}"


def _copy_in(folder: Path) -> Path | None:
    """The rslearn dataset in a folder: the folder itself, or the only folder in it."""
    if _is_copy(folder):
        return folder
    try:
        inside = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    except (OSError, ValueError):  # see below
        return None
    nested = [path for path in inside if _is_copy(path)]
    return nested[0] if len(nested) == 1 else None


def _is_copy(folder: Path) -> bool:
    try:
        return (folder / "windows").is_dir() and any((folder / n).is_file() for n in CONFIG_FILES)
    except (OSError, ValueError):  # an entry may say anything: no path can be written so
        return False
