"""The datasets we know: specs in YAML, built in and added."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from eval_ingest.background import Call
from eval_ingest.core.plain_yaml import YamlProblem, load_whole_yaml
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.errors import (
    EvalIngestError,
    SettingsError,
    SpecError,
    StoreError,
    UnknownDatasetError,
)
from eval_ingest.objects.filesystems import weka_mount
from eval_ingest.redaction import redacted
from eval_ingest.settings import Settings, user_path
from eval_ingest.store.atomic import (
    read_bytes,
    remove_path,
    store_error,
    store_errors,
    write_bytes,
)
from eval_ingest.store.roots.open import open_root

_ENDINGS = (".yaml", ".yml")


def catalog_folder(settings: Settings) -> Path | None:
    """The folder of added specs, or None where there is no such eval root on this machine.

    Raises:
        StoreError: a remote eval root can't be read.
    """
    if settings.catalog is not None:
        return user_path(settings.catalog)
    try:
        root = open_root(settings)
    except StoreError:
        return None
    root.fetch_folder(root.layout.catalog)
    return root.layout.catalog


def read_catalog(
    settings: Settings, broken: dict[str, EvalIngestError] | None = None
) -> dict[str, DatasetSpec]:
    """Every known dataset by name; an added spec replaces a built-in one of the same name.

    Args:
        settings: says where the folder of added specs is.
        broken: takes the errors by file, and the other specs are read all the same; without it
            the first error is raised.

    Raises:
        SpecError: a spec is wrong; names the file.
        StoreError: a spec or the folder of added specs can't be read.
    """

    def tell(where: str, error: EvalIngestError) -> None:
        if broken is None:
            raise error
        broken[where] = error

    specs = _read_folder(files("eval_ingest").joinpath("catalog"), tell)
    try:
        folder = catalog_folder(settings)
    except StoreError as error:
        tell(settings.eval_root, error)
        folder = None
    if folder is not None:
        specs.update(_read_folder(folder, tell))
    return dict(sorted(specs.items()))


def _read_folder(
    folder: Traversable | Path, tell: Callable[[str, EvalIngestError], None]
) -> dict[str, DatasetSpec]:
    found = {}
    try:
        paths = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except FileNotFoundError:
        return {}
    except OSError as error:
        tell(str(folder), store_error(str(folder), "listing", error))
        return {}
    for path in paths:
        if path.name.endswith(_ENDINGS) and not path.name.startswith("."):
            try:
                spec = _read_spec(path)
                found[spec.name] = spec
            except EvalIngestError as error:
                tell(str(path), error)
    return found


def _read_spec(path: Traversable | Path) -> DatasetSpec:
    try:
        with store_errors("reading", str(path)):
            text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8 text: {error}") from error
    spec = parse_spec(text, str(path))
    if spec.name != path.name.rpartition(".")[0]:
        raise SpecError(f"{path} holds the dataset {spec.name!r}; name the file {spec.name}.yaml")
    return spec


def parse_spec(text: str, where: str) -> DatasetSpec:
    """A spec from YAML.

    Raises:
        SpecError: it isn't YAML, or a field is wrong.
    """
    try:
        values: Any = load_whole_yaml(text)
    except YamlProblem as problem:
        raise SpecError(f"{where} is not valid YAML: {problem}") from None
    if not isinstance(values, dict):
        raise SpecError(f"{where} must hold fields such as name: and source:")
    return DatasetSpec.parse(values, where)


def find_spec(settings: Settings, name: str) -> DatasetSpec:
    """The spec of a known dataset; what is wrong with other datasets' specs doesn't matter.

    Raises:
        SpecError: its own spec is wrong.
        UnknownDatasetError: there is none of that name; names the near ones.
    """
    broken: dict[str, EvalIngestError] = {}
    specs = read_catalog(settings, broken)
    for path, error in broken.items():
        if Path(path).stem == name or (name not in specs and not path.endswith(_ENDINGS)):
            raise error  # of a folder that can't be read nobody knows what is in it
    if name not in specs:
        cure = f"To add it: eval-ingest ingest {name} --source PATH_OR_URL"
        raise UnknownDatasetError(name, specs, "the catalog", cure)
    return specs[name]


LOOK_S = 2.0
STALE_S = 3600.0
"""What is on its way into the catalog for so long was left by somebody who was stopped."""


def shown_source(settings: Settings, spec: DatasetSpec) -> str:
    """Where a dataset comes from, without variables, as far as those are set."""
    try:
        return redacted(settings.expand(spec.source))
    except SettingsError:
        return redacted(spec.source)


def out_of_reach(settings: Settings, specs: Mapping[str, DatasetSpec]) -> dict[str, str]:
    """Why the sources of some datasets can't be had from this machine, by name.

    Folders are looked at, as long as mounts answer; buckets are not asked.
    """

    def why(spec: DatasetSpec) -> str:
        try:
            source = settings.expand(spec.source)
        except SettingsError as error:
            return str(error)
        path = str(weka_mount(source) or source.removeprefix("file://"))
        if path.startswith("weka://") and settings.weka_endpoint_url is None:
            return f"{'/'.join(path.split('/')[:3])} is not mounted here"
        there = "://" in path or os.path.exists(os.path.expanduser(path))
        return "" if there else f"{path} is not on this machine"

    look = Call(lambda: {name: text for name, spec in specs.items() if (text := why(spec))})
    return look.result() if look.wait(LOOK_S) else {}


def absolute(source: str) -> str:
    """A path as every folder finds it; a URL, or what a variable is to give, stays as it is."""
    if "://" in source or source.startswith("$"):
        return source
    return os.path.abspath(os.path.expanduser(source))


def add_spec(settings: Settings, spec: DatasetSpec) -> Path:
    """Keep a spec in the catalog folder, so that Dagster and others know the dataset.

    Its paths are made absolute: they are read from other folders. A dataset that was ignored since
    it had been removed is wanted again.

    Raises:
        StoreError: the folder can't be reached or written.
    """
    # Where there is no folder, this raises and says why.
    folder = catalog_folder(settings) or open_root(settings).layout.catalog
    values = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    values |= {key: absolute(values[key]) for key in ("source", "config") if key in values}
    forget_removed(settings, spec.name)
    path = folder / f"{spec.name}.yaml"
    for stray in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - stray.stat().st_mtime > STALE_S:
                stray.unlink()
    _keep(settings, path, values)
    return path


# ------------------------------------------------------------------------------------- removed


class Removed(BaseModel):
    """A dataset that a person has removed: discovery leaves it alone until it is asked for."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    source: str
    """Where it was ingested from; a path or URL without secrets."""
    removed_at: str


_REMOVED = ".removed"


def removed_datasets(settings: Settings) -> dict[str, Removed]:
    """What people have removed and not asked for since, by name.

    Raises:
        StoreError: the catalog folder can't be read.
    """
    folder = catalog_folder(settings)
    found = {}
    for path in sorted(folder.glob(f"*{_REMOVED}")) if folder is not None else ():
        try:
            known = Removed.model_validate(load_whole_yaml(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise store_error(path, "reading", error) from error
        except (ValueError, YamlProblem, ValidationError):
            continue  # damaged: as if it had been removed by hand
        found[known.name] = known
    return found


def note_removed(settings: Settings, name: str, source: str) -> bool:
    """Remember that a dataset is removed, from before it is: a removal may be stopped.

    Returns False where there is no catalog folder to remember it in.

    Raises:
        StoreError: the folder can't be written.
    """
    folder = catalog_folder(settings)
    if folder is None:
        return False
    now = datetime.now(UTC).isoformat(timespec="seconds")
    facts = Removed(name=name, source=source, removed_at=now).model_dump()
    _keep(settings, folder / f"{name}{_REMOVED}", facts)
    return True


def drop_spec(settings: Settings, name: str) -> None:
    """Remove the spec of a dataset that was added; what is built in stays.

    Raises:
        StoreError: the folder can't be written.
    """
    _drop(settings, f"{name}.yaml", f"{name}.yml")


def forget_removed(settings: Settings, name: str) -> bool:
    """Forget that a dataset was removed, so that discovery ingests it again; False if it wasn't.

    Raises:
        StoreError: the folder can't be written.
    """
    return _drop(settings, f"{name}{_REMOVED}")


def _keep(settings: Settings, path: Path, values: dict[str, Any]) -> None:
    """Write a file of the catalog, if it isn't there just so."""
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()
    if read_bytes(path) != text:
        write_bytes(path, text)
    _send(settings, path)


def _drop(settings: Settings, *names: str) -> bool:
    """Remove files of the catalog; False if there were none."""
    folder = catalog_folder(settings)
    there = [folder / name for name in names if (folder / name).is_file()] if folder else []
    for path in there:
        remove_path(path)
    _send(settings, *there)
    return bool(there)


def _send(settings: Settings, *paths: Path) -> None:
    if settings.catalog is None and paths:
        open_root(settings).send(*paths)
