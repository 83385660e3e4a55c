"""Publishing and pulling while others publish, on branches, and after runs that were killed."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import eval_ingest
from eval_ingest import EvalDataset
from eval_ingest.errors import LockedError, OutdatedError, StoreError
from eval_ingest.integrations import huggingface
from eval_ingest.report.export import export_dataset
from eval_ingest.store.locks import folder_aside
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest_tests.support import hub as stand_in
from eval_ingest_tests.support.hub import Hub

Ingested = Callable[[str], Path]
Files = dict[str, bytes]
SOME, OTHER = "segmentation", "vector_classification"
REPO, TO = "org/evals", "hf://org/evals"
TERMS: dict[str, Any] = {"licence": "CC-BY-4.0", "citation": ""}


@pytest.fixture(scope="module")
def server(ingested: Ingested) -> Iterator[tuple[Hub, Files, dict[str, bytes]]]:
    """A hub, and what publishing SOME gave: files and blobs."""
    with stand_in.running() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_not_a_token")
        hub.is_used_by(patch)
        eval_ingest.publish(SOME, TO, root=ingested(SOME), **TERMS)
        yield hub, hub.files(REPO), dict(hub.blobs)


@pytest.fixture
def hub(
    server: tuple[Hub, Files, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Hub:
    """A hub where huggingface_hub looks for the Hub, with SOME in REPO."""
    hub, files, blobs = server
    hub.clear()
    hub.repos[REPO], hub.private[REPO] = [files], False
    hub.blobs.update(blobs)
    monkeypatch.setenv("EVAL_INGEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_token")
    hub.is_used_by(monkeypatch)
    return hub


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, which cost time."""

    def write_card(root: EvalRoot, name: str, **_: Any) -> None:
        card = "---\ntags: [a]\nlicense: other\nconfigs: []\n---\ncard\n"
        (root.path / name / "README.md").write_text(card)

    monkeypatch.setattr("eval_ingest.report.export.write_report", write_card)
    monkeypatch.setattr("eval_ingest.report.export.write_viewer", lambda *_: None)


def of(name: str, files: Files) -> Files:
    return {path: data for path, data in files.items() if path.startswith(f"{name}/")}


def registered(files: Files) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files["registry.json"])["datasets"]
    return found


# ----------------------------------------------------------------------------------- publishing


@pytest.mark.usefixtures("plain")
def test_a_branch_keeps_its_own_versions_of_other_datasets(hub: Hub, ingested: Ingested) -> None:
    main = hub.files(REPO)
    third = {path.replace(SOME, "third", 1): data for path, data in of(SOME, main).items()}
    third["third/metadata.json"] = main[f"{SOME}/metadata.json"].replace(
        b'"name": "segmentation"', b'"name": "third"'
    )
    hub.repos[REPO] = [{**main, **third}]
    dev = {**main, f"{SOME}/README.md": main[f"{SOME}/README.md"] + b"of dev\n", "note": b"dev"}
    hub.repos[f"{REPO}@dev"] = [dev]
    eval_ingest.publish(OTHER, f"{TO}@dev", root=ingested(OTHER), **TERMS)
    assert hub.repos[REPO] == [{**main, **third}]
    now = hub.files(REPO, "dev")
    assert of(SOME, now) == of(SOME, dev) and now["note"] == b"dev"
    assert now.keys() - dev.keys() == of(OTHER, now).keys()
    assert {name: entry["weka_path"] for name, entry in registered(now).items()} == {
        name: f"{TO}@dev/{name}" for name in (SOME, OTHER)
    }


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("late", [0, 1])
def test_what_others_publish_meanwhile_stays(late: int, hub: Hub, ingested: Ingested) -> None:
    """Before the first commit, with its samples, or before the last, with its registry."""
    new_card = hub.files(REPO)[f"{SOME}/README.md"] + b"a newer version\n"

    def another_commit() -> None:
        files = dict(hub.files(REPO))
        known = json.loads(files["registry.json"])
        known["datasets"]["theirs"] = {"name": "theirs", "weka_path": "/weka/theirs"}
        files["registry.json"] = json.dumps(known).encode()
        hub.repos[REPO].append({**files, f"{SOME}/README.md": new_card, "theirs.txt": b"x"})

    hub.meanwhile = [*[lambda: None] * late, another_commit]
    done = eval_ingest.publish(OTHER, TO, root=ingested(OTHER), **TERMS)
    files = hub.files(REPO)
    assert done.commit == hub.head(REPO) and not hub.meanwhile
    assert files[f"{SOME}/README.md"] == new_card and files["theirs.txt"] == b"x"
    assert registered(files).keys() == {SOME, OTHER, "theirs"}
    assert registered(files)["theirs"]["weka_path"] == "/weka/theirs"
    assert len(set(hub.uploads)) == len(hub.uploads)


@pytest.mark.usefixtures("plain")
def test_others_who_publish_all_the_time_are_told(
    hub: Hub, ingested: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "ATTEMPTS", 2)
    hub.meanwhile = [lambda: hub.repos[REPO].append({**hub.files(REPO), "x": b"y"})] * 9
    before = hub.files(REPO)
    with pytest.raises(OutdatedError, match=r"others publish in hf://org/evals at the same time"):
        eval_ingest.publish(OTHER, TO, root=ingested(OTHER), **TERMS)
    assert {**before, "x": b"y"} == hub.files(REPO) and len(hub.meanwhile) == 7


@pytest.mark.usefixtures("plain")
def test_an_entry_that_the_registry_has_lost_comes_back(hub: Hub, ingested: Ingested) -> None:
    eval_ingest.publish(OTHER, TO, root=ingested(OTHER), **TERMS)
    whole, n = hub.files(REPO), len(hub.repos[REPO])
    eval_ingest.publish(OTHER, TO, root=ingested(OTHER), **TERMS)
    assert len(hub.repos[REPO]) == n  # nothing is new, not even the time in registry.json
    lost = json.loads(whole["registry.json"])
    lost["datasets"]["gone"] = lost["datasets"].pop(OTHER)  # whose folder isn't there
    hub.repos[REPO].append({**whole, "registry.json": json.dumps(lost).encode()})
    assert eval_ingest.publish(OTHER, TO, root=ingested(OTHER), **TERMS).sent == ["registry.json"]
    assert registered(hub.files(REPO)) == registered(whole)


# -------------------------------------------------------------------------------------- pulling


def test_a_pull_of_one_version_takes_nothing_from_a_stopped_pull_of_another(
    hub: Hub, tmp_path: Path
) -> None:
    for stale in (f"{SOME}/samples/old/index.parquet", f"{SOME}/source_state.json", "other/x"):
        path = tmp_path / f".{SOME}.pull" / stale
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"stale")
    folder = eval_ingest.pull(f"{TO}/{SOME}", root=tmp_path)
    here = {f"{SOME}/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()}
    assert here == of(SOME, hub.files(REPO)).keys()
    assert not list(tmp_path.glob("*.pull*"))


def test_what_a_killed_pull_has_left_is_completed_by_the_next(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{TO}/{SOME}"
    folder = eval_ingest.pull(url, root=tmp_path)
    (folder / "metadata.json").unlink()  # as one that removed the version before it left it
    assert eval_ingest.pull(url, root=tmp_path) == folder

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    renamed = os.rename

    def killed_before_the_last(source: Path, target: Path) -> None:
        if target == folder:
            killed()
        renamed(source, target)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(huggingface.registry, "rebuild_registry", killed)
        eval_ingest.pull(url, root=tmp_path)
    assert len(EvalDataset(SOME, "val", root=tmp_path))  # never absent while files are removed
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "rename", killed_before_the_last)
        eval_ingest.pull(url, root=tmp_path)
    assert not folder.exists()
    eval_ingest.pull(url, root=tmp_path)
    assert eval_ingest.verify(SOME, tmp_path).problems == []
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [SOME]


def test_two_pulls_of_a_dataset_do_not_share_a_folder(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "WAIT_S", 0.05)
    told = f"{SOME} is being pulled: another process"
    with EvalRoot(tmp_path).dataset(SOME).hold(0.0, ""), pytest.raises(LockedError, match=told):
        eval_ingest.pull(f"{TO}/{SOME}", root=tmp_path)
    assert not list(tmp_path.glob(".*.pull"))


@pytest.mark.parametrize("name", [".copied_ahead/journal.jsonl", "source_state.json",
                                  ".ingested_by_eval_ingest", "LICENSE"])  # fmt: skip
def test_what_lies_beside_what_was_published_is_not_pulled(
    name: str, hub: Hub, tmp_path: Path
) -> None:
    hub.repos[REPO].append({**hub.files(REPO), f"{SOME}/{name}": b"x"})
    eval_ingest.pull(f"{TO}/{SOME}", root=tmp_path)
    assert (tmp_path / SOME / "metadata.json").exists()
    assert not (tmp_path / SOME / name).exists()


def test_a_folder_that_is_a_link_is_not_pulled_over(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root = tmp_path / "root"
    root.mkdir()
    (root / SOME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"is a link to .*elsewhere; remove"):
        eval_ingest.pull(f"{TO}/{SOME}", root=root)


# -------------------------------------------------------------------------------- folders aside


@pytest.mark.usefixtures("plain")
def test_exports_at_once_share_no_folder_and_what_killed_ones_left_goes(
    ingested: Ingested, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with folder_aside(tmp_path, ".*.export", "another export") as other:
        for left in (f".{SOME}.{os.getpid()}.export", ".0123.export"):
            (tmp_path / left / SOME).mkdir(parents=True)
        (other / "file").touch()
        export_dataset(EvalRoot(ingested(SOME)), SOME, tmp_path, windows=False)
        assert [path.name for path in other.iterdir()] == ["file"]
        assert [path.name for path in tmp_path.glob(".*.export")] == [other.name]
    assert not list(tmp_path.glob(".*.export*"))
    shutil.rmtree(tmp_path / SOME)
    monkeypatch.setattr("eval_ingest.report.export.write_report", _no_room)
    with pytest.raises(StoreError, match=r"exporting to .* failed"):
        export_dataset(EvalRoot(ingested(SOME)), SOME, tmp_path, windows=False)
    assert not list(tmp_path.glob(".*.export*"))


def _no_room(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")
