"""What comes from a bucket or a catalog is data: it runs no code and leaves no folder."""

import ast
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import yaml

import eval_ingest
from eval_ingest import EvalDataset, cli, pipeline
from eval_ingest.errors import EvalIngestError, IntegrityError
from eval_ingest.objects import filesystems
from eval_ingest.settings import Settings
from eval_ingest.sources.open import open_source
from eval_ingest.store.atomic import umask
from eval_ingest.store.catalog import read_catalog
from eval_ingest.store.npy import npy_header
from eval_ingest.store.seal import sealed_json
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.poison import class_paths
from eval_ingest_tests.support.sealed import read_sealed_json

# ------------------------------------------------------------------------ what the code never does

_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve",
            "subprocess", "pty"}  # fmt: skip
_FUNCTIONS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pd.read_pickle",
              "yaml.unsafe_load", "yaml.full_load", "archive.extractall"}  # fmt: skip
_ONCE = {
    "importlib.import_module": "sweep/encoders/registry.py",  # module:factory, which a person typed
    "yaml.load": "core/plain_yaml.py",  # with a loader that is derived from SafeLoader
}
_OPTIONS = {"np.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}


def _dangers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            yield from (name for name in names if name.partition(".")[0] in _MODULES)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {k.arg: ast.literal_eval(k.value) for k in node.keywords
                     if isinstance(k.value, ast.Constant)}  # fmt: skip
            option, wanted = _OPTIONS.get(called, ("shell", given.get("shell") and not None))
            unsafe = given.get(option) is not wanted if called in _OPTIONS else given.get("shell")
            if unsafe or called in _FUNCTIONS or called in _ONCE:
                yield called


def test_nothing_unpickles_or_evaluates_or_runs_a_shell() -> None:
    package = Path(eval_ingest.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        name = str(path.relative_to(package))
        found += [(d, name) for d in _dangers(ast.parse(path.read_text()))]
    assert sorted(found) == sorted(_ONCE.items())


# --------------------------------------------------------------------------------- code in files


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """A module that a class_path may name; tells whether it was imported."""
    marker = tmp_path / "imported"
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "evil_module.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nclass Evil:\n    def __init__(self, **_): pass\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield marker.exists
    sys.modules.pop("evil_module", None)


@pytest.mark.parametrize("name", ["evil_module.Evil", "rslearn_evil.Evil", "os.system"])
def test_a_class_of_another_package_is_never_imported(
    name: str, copied: Callable[[str], Path], evil: Callable[[], bool], tmp_path: Path
) -> None:
    source = copied("segmentation")
    whole = (source / "model.yaml").read_text()
    count = len(list(class_paths(yaml.safe_load(whole))))
    assert count > 3
    for k in range(count):
        content = yaml.safe_load(whole)
        list(class_paths(content))[k]["class_path"] = name
        (source / "model.yaml").write_text(yaml.safe_dump(content))
        try:
            pipeline.ingest(make_job(source, tmp_path / "root"))
        except EvalIngestError as error:
            assert "model.yaml" in str(error)
        assert not evil()


def test_nor_one_that_config_json_names(
    copied: Callable[[str], Path], evil: Callable[[], bool], tmp_path: Path
) -> None:
    source = copied("segmentation")
    whole = json.loads((source / "config.json").read_text())
    format_ = {"class_path": "evil_module.Evil"}
    for change in (
        {"data_source": {"class_path": "evil_module.Evil"}},
        {"data_source": {"name": "evil_module.Evil"}},
        {"band_sets": [{**whole["layers"]["sentinel2"]["band_sets"][0], "format": format_}]},
    ):
        content = json.loads(json.dumps(whole))
        content["layers"]["sentinel2"] |= change
        (source / "config.json").write_text(json.dumps(content))
        try:
            pipeline.ingest(make_job(source, tmp_path / "root"))
        except EvalIngestError as error:
            assert "config.json" in str(error)
        assert not evil()


class _Touch:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def test_pickled_arrays_are_refused(reference: Path, tmp_path: Path) -> None:
    shutil.copytree(reference, tmp_path / "root")
    path = next((tmp_path / "root" / "crops" / "samples").glob("*/target.npy"))
    np.save(path, np.array([_Touch(tmp_path / "touched")], dtype=object), allow_pickle=True)
    pickle.loads(pickle.dumps(_Touch(tmp_path / "works")))
    assert (tmp_path / "works").exists()
    with pytest.raises(IntegrityError):
        EvalDataset("crops", "train", root=tmp_path / "root")
    metadata = tmp_path / "root" / "crops" / "metadata.json"
    content = read_sealed_json(metadata, "")
    assert content is not None
    content["shards"][0]["arrays"]["target"] |= {
        "dtype": "object", "shape": [1], "n_bytes": path.stat().st_size,
    }  # fmt: skip
    metadata.write_bytes(sealed_json(content))
    with pytest.raises(IntegrityError):
        EvalDataset("crops", "train", root=tmp_path / "root")[0]
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("dtype", ["object", "O", "|V8", "[('a', 'O')]", "uint8\n", "float16"])
def test_bytes_of_a_file_are_no_addresses_of_objects(
    dtype: str, reference: Path, tmp_path: Path
) -> None:
    shutil.copytree(reference, tmp_path / "root")
    folder = tmp_path / "root" / "crops"
    for path in (folder / "opening.json", folder / "metadata.json"):
        content = read_sealed_json(path, "")
        assert content is not None
        for shard in content["shards"]:
            found = shard["arrays"]["target"]
            if dtype in ("object", "O"):
                header = npy_header(tuple(found["shape"]), np.dtype(object))
                n_bytes = len(header) + 8 * int(np.prod(found["shape"]))
                target = folder / "samples" / shard["name"] / "target.npy"
                target.write_bytes(header + b"\1" * (n_bytes - len(header)))
                found["n_bytes"] = n_bytes
            found["dtype"] = dtype
        path.write_bytes(sealed_json(content))
    with pytest.raises(IntegrityError, match="dtype"):
        EvalDataset("crops", "train", root=tmp_path / "root")[0]


# --------------------------------------------------------------------------------- names and paths

NAMES = ("..", ".", "../other", "/etc", "a/b", "a\\b", "A", "", " ", "-x", "_x", "a b", "a\n",
         "a\0", "ü", "crops/", "gs://b/x", "%2e%2e", "~")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_datasets_name_is_never_a_path(
    name: str,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "inside" / "root"
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    (tmp_path / "inside" / "other").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    for command in (
        ["ingest", f"--name={name}", "--source", str(small)],
        ["info", f"--name={name}"],
        ["verify", f"--name={name}"],
        ["report", f"--name={name}"],
        ["remove", f"--name={name}", "--yes"],
        ["export", f"--name={name}", "--to", str(root / "out")],
    ):
        assert cli.main(command) == 1
    assert capsys.readouterr().err.count("error: ") == 6
    with pytest.raises(EvalIngestError):
        EvalDataset(name, "train", root=root)
    with pytest.raises(EvalIngestError):
        EvalDataset("crops", name, root=root)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_catalog_entry_is_named_like_its_file(tmp_path: Path) -> None:
    for file in ("evil.yaml", "..yaml", "Evil.yaml"):
        (tmp_path / file).write_text("name: ../evil\nsource: /nowhere\n")
        broken: dict[str, EvalIngestError] = {}
        found = read_catalog(Settings(eval_root=str(tmp_path), catalog=str(tmp_path)), broken)
        assert not [name for name in found if "evil" in name] and len(broken) <= 1
        (tmp_path / file).unlink()


@pytest.mark.parametrize(
    "key",
    ["windows/g/../../../escaped/metadata.json", "windows/../escaped/metadata.json",
     "windows/g//escaped/metadata.json", "windows/g/w/layers/../../../../escaped/geotiff.tif",
     "windows/g/w/layers/sentinel2/a\\..\\escaped/geotiff.tif",
     "windows/g/./escaped/metadata.json"],
)  # fmt: skip
def test_objects_with_odd_names_stay_in_the_copy(key: str, small: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    bucket = f"/{tmp_path.name}"
    for path in small.rglob("*"):
        if path.is_file():
            memory.store[f"{bucket}/crops/{path.relative_to(small)}"] = memory_file(
                memory, f"{bucket}/crops/{path.relative_to(small)}", path.read_bytes()
            )
    memory.store[f"{bucket}/crops/{key}"] = memory_file(memory, f"{bucket}/crops/{key}", b"{}")
    root = tmp_path / "inside" / "deep" / "root"
    try:
        pipeline.ingest(make_job(f"memory:/{bucket}/crops", root))  # type: ignore[arg-type]
    except EvalIngestError as error:
        assert "escaped" in str(error)
    finally:
        memory.store.clear()
    outside = [p for p in tmp_path.rglob("*") if root not in (p, *p.parents) and p.is_file()]
    assert outside == []
    assert [p for p in root.rglob("*escaped*") if "windows" not in p.parts] == []


def memory_file(memory: Any, path: str, data: bytes) -> Any:
    """An object under exactly that name: fsspec itself would tidy it up."""
    from fsspec.implementations.memory import MemoryFile

    return MemoryFile(memory, path, data)


@pytest.mark.parametrize("url", ["weka://bucket/../../secret", "weka://../secret",
                                 "weka://./secret"])  # fmt: skip
def test_a_weka_url_stays_below_the_mount(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "WEKA_MOUNT", tmp_path / "weka")
    (tmp_path / "weka" / "bucket").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    assert filesystems.weka_mount(url) is None
    with pytest.raises(EvalIngestError):
        open_source(url)


@pytest.mark.parametrize(
    "url", ["zip://x::file:///etc", "filecache::s3://b/x",
            "reference://x", "github://a:b@c/", "ssh://host/x", "python://os", "data:text,x"]
)  # fmt: skip
def test_urls_that_mean_another_place_are_told(url: str, tmp_path: Path) -> None:
    with pytest.raises(EvalIngestError):
        open_source(url, tmp_path / "staging", tmp_path / "archives")
    assert not list(tmp_path.rglob("*"))


# ------------------------------------------------------------------------------------------ secrets


def test_secrets_of_the_environment_are_not_filled_in(
    copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copied("segmentation")
    for name in ("AWS_SECRET_ACCESS_KEY", "MY_API_TOKEN", "DB_PASSWORD"):
        monkeypatch.setenv(name, "s3cr3tvalue")
    text = (source / "model.yaml").read_text()
    text += "\nextra: ['${AWS_SECRET_ACCESS_KEY}', '${MY_API_TOKEN}', '$DB_PASSWORD']\n"
    (source / "model.yaml").write_text(text)
    pipeline.ingest(make_job(source, tmp_path / "root"))
    with pytest.raises(EvalIngestError) as told:
        make_job("${AWS_SECRET_ACCESS_KEY}/x", tmp_path / "root")  # type: ignore[arg-type]
    assert "s3cr3tvalue" not in str(told.value)
    kept = [p for p in (tmp_path / "root").rglob("*") if p.is_file()]
    assert kept and not [p for p in kept if b"s3cr3tvalue" in p.read_bytes()]


def test_what_is_written_is_for_its_owner_as_the_mask_says(small: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        umask.cache_clear()
        pipeline.ingest(make_job(small, tmp_path / "root"))
    finally:
        os.umask(before)
        umask.cache_clear()
    assert [p for p in (tmp_path / "root").rglob("*") if p.stat().st_mode & 0o077] == []
