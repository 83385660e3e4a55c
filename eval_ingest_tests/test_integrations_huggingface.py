"""Publishing on the Hub and pulling from it, against a small stand-in on 127.0.0.1."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rasterio
import torch

import eval_ingest
from eval_ingest import EvalDataset, cli
from eval_ingest.core.hub import HubAddress
from eval_ingest.core.public import public
from eval_ingest.engine import no_progress
from eval_ingest.errors import IntegrityError, LoadError, SpecError, StoreError
from eval_ingest.integrations import huggingface
from eval_ingest.report.export import export_dataset
from eval_ingest.store.atomic import file_crc32c
from eval_ingest.store.registry import require_metadata
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.seal import sealed_json, write_sealed_json
from eval_ingest_tests.support import hub as stand_in
from eval_ingest_tests.support import poison
from eval_ingest_tests.support.hub import Hub
from eval_ingest_tests.support.plain_install import only_with
from eval_ingest_tests.support.sealed import read_sealed_json

Ingested = Callable[[str], Path]
SOME = "segmentation"
TO = "hf://org/evals"
TERMS: dict[str, Any] = {"licence": "CC-BY-4.0", "citation": "@misc{x, title={Crops}}"}


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with stand_in.running() as running:
        yield running


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """An empty hub, where huggingface_hub looks for the Hub."""
    server.clear()
    monkeypatch.setenv("EVAL_INGEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_token")
    server.is_used_by(monkeypatch)
    return server


_ONCE: dict[str, tuple[list[dict[str, bytes]], dict[str, bytes]]] = {}
"""What publishing a case into an empty hub gave, commits and blobs."""


def published_once(hub: Hub, root: Path) -> dict[str, bytes]:
    """The case SOME, published by whichever test came first."""
    if SOME not in _ONCE:
        published(hub, root)
        _ONCE[SOME] = list(hub.repos["org/evals"]), dict(hub.blobs)
    commits, blobs = _ONCE[SOME]
    hub.repos["org/evals"], hub.private["org/evals"] = list(commits), False
    hub.blobs.update(blobs)
    return commits[-1]


def published(hub: Hub, root: Path, case: str = SOME, **more: Any) -> dict[str, bytes]:
    eval_ingest.publish(case, TO, root=root, **{**TERMS, **more})
    return hub.files("org/evals")


@pytest.mark.parametrize("windows", [False, True])
def test_what_is_pulled_is_what_was_published_to_the_byte(
    windows: bool, hub: Hub, ingested: Ingested, tmp_path: Path
) -> None:
    root = ingested(SOME)
    files = published(hub, root, windows=True) if windows else published_once(hub, root)
    assert any("/windows/" in name for name in files) == windows
    path = eval_ingest.pull(f"{TO}/{SOME}", root=tmp_path / "evals")
    assert path == tmp_path / "evals" / SOME
    here = {f"{SOME}/{p.relative_to(path)}": p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert here == {name: data for name, data in files.items() if name.startswith(f"{SOME}/")}
    assert not [p for p in path.parent.iterdir() if "pull" in p.name]
    assert list(eval_ingest.list_datasets(tmp_path / "evals")) == [SOME]
    assert eval_ingest.verify(SOME, tmp_path / "evals").problems == []
    version = eval_ingest.info(SOME, root).fingerprint
    for split in ("train", "val", "test"):
        original = EvalDataset(SOME, split, root=root)
        pulled = EvalDataset(SOME, split, root=tmp_path / "evals", version=version)
        assert [s["window"] for s in pulled] == [s["window"] for s in original]
        for one, other in zip(pulled, original, strict=True):
            assert torch.equal(one["sentinel2_l2a"], other["sentinel2_l2a"])
            assert torch.equal(one["target"], other["target"])


def test_the_hub_extra_is_all_that_pulling_needs(
    hub: Hub, ingested: Ingested, tmp_path: Path
) -> None:
    published_once(hub, ingested(SOME))
    code = only_with("hub") + (
        "from eval_ingest import EvalDataset\n"
        "from eval_ingest.cli import main\n"
        f"print(len(EvalDataset('{TO}/{SOME}', 'val')))\n"
        f"assert main(['pull', '{TO}/{SOME}']) == 0\n"
        "assert {'dagster', 'rslearn', 'matplotlib', 'shapely'} <= hidden\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "OLMOEARTH_EVAL_DATASETS": str(tmp_path / "evals")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert eval_ingest.verify(SOME, tmp_path / "evals").problems == []


def test_it_is_opened_where_it_is_and_only_what_is_needed_is_fetched(
    hub: Hub, ingested: Ingested
) -> None:
    root = ingested(SOME)
    published_once(hub, root)
    hub.requests.clear()
    ds = EvalDataset(f"{TO}/{SOME}", "val")
    original = EvalDataset(SOME, "val", root=root)
    assert torch.equal(ds[0]["sentinel2_l2a"], original[0]["sentinel2_l2a"])
    asked = [request for request in hub.requests if "/resolve/" in request]
    assert not any("viewer" in request or "/train/" in request for request in asked)
    hub.requests.clear()
    again = EvalDataset(f"{TO}@main/{SOME}", "val", root="elsewhere")
    assert len(again) == len(original)
    assert len(EvalDataset(SOME, "val", root=TO)) == len(original)
    with pytest.raises(LoadError, match="names no dataset"):
        EvalDataset(TO, "val")


def test_what_is_private_is_left_out(hub: Hub, ingested: Ingested) -> None:
    root = ingested(SOME)
    source = str(eval_ingest.info(SOME, root).metadata.source)
    files = published_once(hub, root)
    for name, data in files.items():
        for secret in (source, str(root), str(Path.home()) + "/", "hf_not_a_token"):
            assert secret.encode() not in data, (name, secret)
    metadata = json.loads(files[f"{SOME}/metadata.json"])
    assert metadata["source"] == metadata["spec"]["source"] == "not published"
    registry = json.loads(files["registry.json"])["datasets"][SOME]
    assert registry["weka_path"] == f"{TO}/{SOME}"
    assert not any(name.endswith("model.original.yaml") for name in files)


@pytest.mark.parametrize("where", ["options", "named", "raster"])
def test_a_window_that_tells_a_path_is_not_published(
    where: str, hub: Hub, copied: Ingested, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_card(root: EvalRoot, name: str, **_: Any) -> None:  # without pictures, which cost
        (root.path / name / "README.md").write_text("---\ntags: []\n---\n")

    monkeypatch.setattr("eval_ingest.report.export.write_report", write_card)
    monkeypatch.setattr("eval_ingest.report.export.write_viewer", lambda *_: None)
    source = copied(SOME)
    window = next(path for path in sorted(source.glob("windows/*/*")) if path.is_dir())
    option = {"options": ("scene", "/home/jane/scenes/one.tif"), "named": ("api_key", "abc123")}
    if where in option:
        metadata = json.loads((window / "metadata.json").read_text())
        metadata["options"].update([option[where]])
        (window / "metadata.json").write_text(json.dumps(metadata))
    else:
        with rasterio.open(next(window.rglob("*.tif")), "r+") as raster:
            raster.update_tags(made_from=f"{source}/scenes")
    eval_ingest.ingest("crops", source, root=tmp_path / "evals")
    with pytest.raises(StoreError, match=r"would tell everybody .*publish without --windows"):
        eval_ingest.publish("crops", TO, root=tmp_path / "evals", windows=True, **TERMS)
    assert hub.files("org/evals") == {}


def test_a_licence_and_a_citation_are_asked_for_and_told(hub: Hub, ingested: Ingested) -> None:
    root = ingested(SOME)
    with pytest.raises(SpecError, match=r"no licence.*--licence CC-BY-4\.0"):
        eval_ingest.publish(SOME, TO, root=root, citation="")
    with pytest.raises(SpecError, match="how it is to be cited"):
        eval_ingest.publish(SOME, TO, root=root, licence="CC-BY-4.0")
    assert hub.repos == {}
    files = published_once(hub, root)
    for card in (files["README.md"].decode(), files[f"{SOME}/README.md"].decode()):
        assert "license: cc-by-4.0" in card and "@misc{x, title={Crops}}" in card
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", files["README.md"].decode()):
        assert picture in files


def test_a_dry_run_lists_what_would_be_sent_and_sends_nothing(hub: Hub, ingested: Ingested) -> None:
    planned = eval_ingest.publish(SOME, TO, root=ingested(SOME), dry_run=True, **TERMS)
    assert hub.requests == []
    assert set(planned.files) == set(published_once(hub, ingested(SOME)))
    assert f"{SOME}/metadata.json" in planned.files and "nothing was sent" in str(
        planned.lines(True)
    )


def test_a_stopped_publication_goes_on_and_is_no_version_before_its_end(
    hub: Hub, ingested: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval_ingest.integrations import huggingface

    monkeypatch.setattr(huggingface, "AT_ONCE", 4)
    root = ingested(SOME)
    hub.fail_after = 5
    with pytest.raises(StoreError, match=r"can't be reached or written.*goes on where it was"):
        published(hub, root)
    there = hub.files("org/evals")
    assert there and f"{SOME}/metadata.json" not in there
    sent, hub.fail_after = list(hub.uploads), None
    published(hub, root)
    assert len(set(hub.uploads)) == len(hub.uploads) > len(sent)  # none of them twice
    commits = len(hub.repos["org/evals"])
    assert eval_ingest.publish(SOME, TO, root=root, **TERMS).commit == ""
    assert len(hub.repos["org/evals"]) == commits


def test_two_datasets_share_a_repository(hub: Hub, ingested: Ingested, tmp_path: Path) -> None:
    published_once(hub, ingested(SOME))
    other = "vector_classification"
    files = published(hub, ingested(other), other)
    registry = json.loads(files["registry.json"])["datasets"]
    assert {name: entry["weka_path"] for name, entry in registry.items()} == {
        SOME: f"{TO}/{SOME}", other: f"{TO}/{other}",
    }  # fmt: skip
    cover = files["README.md"].decode()
    assert f"config_name: {SOME}" in cover and f"config_name: {other}" in cover
    for name in (SOME, other):
        eval_ingest.pull(f"{TO}/{name}", root=tmp_path / "evals")
    assert list(eval_ingest.list_datasets(tmp_path / "evals")) == [SOME, other]
    with pytest.raises(StoreError, match=f"the repository holds {SOME}, {other}"):
        eval_ingest.pull(f"{TO}/trees", root=tmp_path / "evals")


def test_what_arrives_damaged_is_not_taken(hub: Hub, ingested: Ingested, tmp_path: Path) -> None:
    files = published_once(hub, ingested(SOME))
    [pixels] = [name for name in files if name.endswith("sentinel2_l2a.npy")]
    damaged = bytearray(files[pixels])
    damaged[-1] ^= 1
    hub.repos["org/evals"].append({**files, pixels: bytes(damaged)})
    with pytest.raises(IntegrityError, match="arrived damaged"):
        eval_ingest.pull(f"{TO}/{SOME}", root=tmp_path / "evals")
    assert not (tmp_path / "evals" / SOME).exists()
    with pytest.raises(IntegrityError):
        EvalDataset(f"{TO}/{SOME}", "val")[0]


def _told_anew(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """The files, with records that say something else."""
    found = dict(files)
    for name in (f"{SOME}/metadata.json", f"{SOME}/opening.json"):
        content = json.loads(files[name])
        del content["checksum"]
        for key, value in changes.items():
            content[key] = {**content[key], **value} if isinstance(value, dict) else value
        found[name] = sealed_json(content)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "/etc", "spec": {"copy": "index"}},
        {"source": "http://127.0.0.1:1/x", "spec": {"copy": "index"}},
        {"spec": {"copy": "index"}},
        {"source": "/etc", "spec": {"copy": "adopted"}, "their_entry": '{"weka_path": "/etc"}'},
        {"their_entry": '{"weka_path": "/etc"}, "other": {}'},
        {"source": "${HOME}"},
    ],
)
def test_what_somebody_else_has_put_there_opens_nothing_on_this_machine(
    changes: dict[str, Any], hub: Hub, ingested: Ingested, tmp_path: Path
) -> None:
    files = published_once(hub, ingested(SOME))
    repo = f"org/evil_{abs(hash(str(changes)))}"  # another one each time: clients remember listings
    hub.repos[repo], hub.private[repo] = [_told_anew(files, **changes)], False
    with poison.watched(tmp_path / "outside"):
        with pytest.raises(IntegrityError, match=r"not published by eval_ingest|at their_entry"):
            EvalDataset(f"hf://{repo}/{SOME}", "val")[0]
        with pytest.raises(IntegrityError, match=r"not published by eval_ingest|at their_entry"):
            eval_ingest.pull(f"hf://{repo}/{SOME}", root=tmp_path / "evals")
    assert not (tmp_path / "evals" / SOME).exists()
    assert "other" not in eval_ingest.list_datasets(tmp_path / "evals")


def test_an_opening_of_another_version_is_not_taken(
    hub: Hub, ingested: Ingested, tmp_path: Path
) -> None:
    files = published_once(hub, ingested(SOME))
    changed = _told_anew(files, warnings=["x"], n_windows=1)
    name = f"{SOME}/metadata.json"
    hub.repos["org/evals"].append({**changed, name: files[name]})
    with pytest.raises(IntegrityError, match="arrived damaged"):
        eval_ingest.pull(f"{TO}/{SOME}", root=tmp_path / "evals")


def test_a_pulled_copy_names_no_class_but_ours_and_no_raster_that_is_none(
    reference: Path, tmp_path: Path
) -> None:
    folder = export_dataset(EvalRoot(reference), "crops", tmp_path, windows=True)
    aside = EvalRoot(tmp_path)
    whole = (folder / "model.yaml").read_bytes()
    (folder / "model.yaml").write_text("model: {class_path: subprocess.Popen}\n")
    copy = read_sealed_json(folder / "weka_copy.json", "")
    assert copy is not None and "model.original.yaml" not in copy["files"]
    copy["files"]["model.yaml"] = file_crc32c(folder / "model.yaml")
    write_sealed_json(folder / "weka_copy.json", copy)
    huggingface._verified(aside, "crops", no_progress)
    assert (folder / "model.yaml").read_bytes() == whole
    assert eval_ingest.verify("crops", tmp_path).problems == []
    window = next((folder / "windows").glob("*/*"))
    shutil.copytree(window, window.with_name("stray"))
    next(window.with_name("stray").rglob("geotiff.tif")).write_text("<VRTDataset/>")
    with pytest.raises(IntegrityError, match="is not a GeoTIFF by its first bytes"):
        huggingface._verified(aside, "crops", no_progress)


def test_what_was_ingested_here_is_not_replaced(
    hub: Hub, ingested: Ingested, tmp_path: Path
) -> None:
    published_once(hub, ingested(SOME))
    shutil.copytree(ingested(SOME), tmp_path / "evals")
    with pytest.raises(StoreError, match="wasn't pulled"):
        eval_ingest.pull(f"{TO}/{SOME}", root=tmp_path / "evals")
    for _ in range(2):
        eval_ingest.pull(f"{TO}/{SOME}", root=tmp_path / "others")


def test_the_commands_publish_and_pull(
    hub: Hub, ingested: Ingested, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(ingested(SOME)))
    (tmp_path / "cite.bib").write_text("@misc{fromfile}\n")
    arguments = ["publish", SOME, "--to", TO, "--licence", "MIT", "--citation", "cite.bib"]
    assert cli.main(arguments) == 0
    assert f'EvalDataset("{TO}/{SOME}", split="train")' in capsys.readouterr().out
    assert "@misc{fromfile}" in hub.files("org/evals")["README.md"].decode()
    assert cli.main(["pull", f"{TO}/{SOME}", "--to", str(tmp_path / "evals")]) == 0
    assert "as it was published" in capsys.readouterr().out
    assert cli.main(["pull", "hf://org", "--to", str(tmp_path / "evals")]) == 1
    assert "is no address on the Hub" in capsys.readouterr().err
    assert cli.main(["pull", "hf://org/nothing/x", "--to", str(tmp_path / "evals")]) == 1
    assert "there is no dataset repository hf://org/nothing" in capsys.readouterr().err


def test_no_hub_is_told_with_its_cure(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # between its own tries
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"can't be reached or written.*goes on where it was"):
        eval_ingest.pull(f"{TO}/{SOME}", root=tmp_path / "evals")


@pytest.mark.parametrize("text", ["hf://", "hf://org", "hf://org/../x", "hf://o/r/a/b", "s3://a/b"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="no address on the Hub"):
        HubAddress.parse(text)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("gs://bucket/a/tolbi", "tolbi"),
        ("from /home/jane/x/model.yaml data.task", "from model.yaml data.task"),
        ("~/data/crops and ../x", "crops and ../x"),
        ("file:///srv/x s3://key:secret@b/y", "x y"),
        (r"C:\Users\jane\x", "x"),
        ("jane.doe@host.org wrote", "(address) wrote"),
        ("train/val/test 1/2 km/h <= 3 a/b.c", "train/val/test 1/2 km/h <= 3 a/b.c"),
        (
            "https://creativecommons.org/licenses/by/4.0/",
            "https://creativecommons.org/licenses/by/4.0/",
        ),
        ("https://h/x?sig=abc", "https://h/x?sig=***"),
        ("hf_" + "a1B2" * 8 + " and " + "AKIA" + "Q7" * 8, "*** and ***"),
        ("ghp_" + "a1B2" * 9 + ", sk-" + "a1B2" * 9, "***, ***"),
        ("password: hunter2, api_key=abc", "password: ***, api_key=***"),
        (
            '{"aws_secret": "abc", "token": "x", "author": "y"}',
            '{"aws_secret": "***", "token": "***", "author": "y"}',
        ),
        ("tokens: 5, monkey: a, key_layer: b", "tokens: 5, monkey: a, key_layer: b"),
    ],
)
def test_texts_are_made_public(text: str, plain: str) -> None:
    assert public(text) == plain


# --------------------------------------------------------------------- as `datasets` reads it


@pytest.mark.parametrize(
    "case", [SOME, "vector_classification", "scalar_regression", "per_pixel_regression"]
)
def test_the_datasets_library_shows_rows_with_pictures(
    case: str, ingested: Ingested, tmp_path: Path
) -> None:
    path = eval_ingest.export(case, tmp_path / "out", root=ingested(case), windows=False)
    counts = {s: len(EvalDataset(case, s, root=path.parent)) for s in ("train", "val", "test")}
    program = (
        "import json, sys, datasets\n"
        "found = datasets.load_dataset(sys.argv[1])\n"
        "row = next(iter(found.values()))[0]\n"
        "kinds = {name: type(value).__name__ for name, value in row.items()}\n"
        "sizes = {name: getattr(value, 'size', None) for name, value in row.items()}\n"
        "print(json.dumps([{s: len(d) for s, d in found.items()}, kinds, sizes]))\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program, path], env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lengths, kinds, sizes = json.loads(done.stdout.splitlines()[-1])
    names = {"train": "train", "val": "validation", "test": "test"}
    assert lengths == {names[split]: n for split, n in counts.items() if n}
    [first, *_] = EvalDataset(case, "train", root=path.parent).bands
    assert kinds[first] == "PngImageFile" and kinds["window"] == "str"
    wanted = {SOME: "PngImageFile", "per_pixel_regression": "PngImageFile",
              "vector_classification": "int", "scalar_regression": "float"}[case]  # fmt: skip
    assert kinds["label"] == wanted and isinstance(sizes[first][0], int)


def test_a_split_that_is_empty_is_left_out(written: Ingested, tmp_path: Path) -> None:
    eval_ingest.ingest("crops", written(SOME), root=tmp_path / "evals",
                       strategy="random", ratios=(80, 20, 0))  # fmt: skip
    path = eval_ingest.export("crops", tmp_path / "out", root=tmp_path / "evals")
    card = (path / "README.md").read_text()
    assert "split: validation" in card and "split: test" not in card
    assert sorted(p.name for p in (path / "viewer").iterdir()) == ["train.parquet", "val.parquet"]
    assert require_metadata(EvalRoot(path.parent), "crops").splits["test"].count == 0


@pytest.mark.parametrize(
    "card",
    [b"", b"no header", b"---\n- 1\n---\n", b"---\nconfigs: 7\n---\n", b"\xff---\n\x00\n---\n",
     b"---\nconfigs: [{data_files: [x]}]\n---\n"],
)  # fmt: skip
def test_a_card_of_another_dataset_that_is_none_is_told(
    card: bytes, hub: Hub, ingested: Ingested
) -> None:
    commit = published_once(hub, ingested(SOME))
    hub.repos["org/evals"].append({**commit, "other/README.md": card, "../x/README.md": card})
    with pytest.raises(StoreError, match=r"other/README.md .* is no card of ours"):
        published(hub, ingested("vector_classification"), "vector_classification")


def test_a_name_that_leads_elsewhere_is_not_pulled(
    hub: Hub, ingested: Ingested, tmp_path: Path
) -> None:
    commit = published_once(hub, ingested(SOME))
    hub.repos["org/evals"].append({**commit, f"{SOME}/../../../elsewhere": b"x"})
    with pytest.raises(StoreError, match="would lie elsewhere"):
        eval_ingest.pull(f"{TO}/{SOME}", root=tmp_path / "evals")
    assert not list(tmp_path.rglob("elsewhere"))


@pytest.mark.parametrize("piece", ["y", "/", "a/", "@", "a@", "a@b.", "a://", "C:\\", "?a="])
def test_what_is_private_is_found_in_a_time_that_grows_with_the_text(piece: str) -> None:
    started = time.process_time()
    public(piece * (1_000_000 // len(piece)))
    assert time.process_time() - started < 20
