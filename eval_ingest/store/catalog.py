"""The datasets we know: specs in YAML, built in and added."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from eval_ingest.core.plain_yaml import YamlProblem, load_yaml
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.errors import EvalIngestError, SpecError, StoreError, UnknownDatasetError
from eval_ingest.settings import Settings
from eval_ingest.store.atomic import store_error, write_bytes
from eval_ingest.store.roots.open import open_root

BUILT_IN = "built in"


def catalog_folder(settings: Settings) -> Path | None:
    """The folder of added specs, or None where there is no such eval root on this machine.

    Raises:
        StoreError: a remote eval root can't be read.
    """
    if settings.catalog is not None:
        return Path(settings.catalog).expanduser()
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
    specs = _read_folder(files("eval_ingest").joinpath("catalog"), broken)
    try:
        folder = catalog_folder(settings)
    except StoreError as error:
        if broken is None:
            raise
        broken[settings.eval_root] = error
        folder = None
    if folder is not None:
        specs.update(_read_folder(folder, broken))
    return dict(sorted(specs.items()))


def _read_folder(
    folder: Traversable | Path, broken: dict[str, EvalIngestError] | None
) -> dict[str, DatasetSpec]:
    found = {}
    try:
        paths = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        if broken is None:
            raise store_error(str(folder), "listing", error) from error
        broken[str(folder)] = store_error(str(folder), "listing", error)
        return {}
    for path in paths:
        if path.name.endswith((".yaml", ".yml")) and not path.name.startswith("."):
            try:
                spec = _read_spec(path)
            except EvalIngestError as error:
                if broken is None:
                    raise
                broken[str(path)] = error
            else:
                found[spec.name] = spec
    return found


def _read_spec(path: Traversable | Path) -> DatasetSpec:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise store_error(str(path), "reading", error) from error
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
        values: Any = load_yaml(text)
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
        if Path(path).stem == name:
            raise error
    if name not in specs:
        raise UnknownDatasetError(
            name,
            specs,
            "the catalog",
            f"To add it: eval-ingest ingest --name {name} --source PATH_OR_URL",
        )
    return specs[name]


def add_spec(settings: Settings, spec: DatasetSpec) -> Path:
    """Keep a spec in the catalog folder, so that Dagster and others know the dataset.

    Raises:
        StoreError: the folder can't be reached or written.
    """
    folder, root = catalog_folder(settings), None
    if settings.catalog is None:
        root = open_root(settings)  # raises, saying why, where there is no folder
        folder = root.layout.catalog
    assert folder is not None
    values = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    path = folder / f"{spec.name}.yaml"
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_bytes(path, text.encode())
    if root is not None:
        root.send(path)
    return path
