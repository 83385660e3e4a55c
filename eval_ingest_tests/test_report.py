"""Pictures, page, card and export of datasets of every task kind."""

import base64
import dataclasses
import html
import inspect
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from eval_ingest import EvalDataset, cli
from eval_ingest.copying.verify import verify
from eval_ingest.core.entry import Version
from eval_ingest.core.images import class_colors, stretched
from eval_ingest.core.quality import quality_report
from eval_ingest.core.task import LabelClass, Task, TaskKind
from eval_ingest.errors import StoreError, UnknownDatasetError
from eval_ingest.report import charts
from eval_ingest.report import map as map_module
from eval_ingest.report.charts import _nice_edges
from eval_ingest.report.drawing import DPI, WIDTH_IN, add_text, new_figure, to_png
from eval_ingest.report.export import export_dataset
from eval_ingest.report.map import window_map
from eval_ingest.report.page import dataset_card, html_page, hub_header
from eval_ingest.report.pictures import SMALL_BYTES, Picture, all_pictures, partition_pictures
from eval_ingest.report.previews import previews
from eval_ingest.report.tables import Board
from eval_ingest.report.view import View, open_view
from eval_ingest.report.writing import write_report
from eval_ingest.store import told_apart
from eval_ingest.store.registry import read_registry, require_metadata
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest_tests.support import factories

Ingested = Callable[[str], Path]

SOME = "segmentation"


def view_of(ingested: Ingested, case: str) -> View:
    return open_view(EvalRoot(ingested(case)), case)


def with_spec(view: View, **changes: Any) -> View:
    metadata = view.metadata
    spec = metadata.spec.model_copy(update=changes)
    return dataclasses.replace(view, metadata=metadata.model_copy(update={"spec": spec}))


def quality_of(view: View) -> dict[str, Any]:
    return quality_report(view.index, view.assignment, view.metadata.config)


def test_letters_that_no_font_has_are_boxes_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    figure = new_figure(1.0, "a title", "")
    add_text(figure, 1, 0.5, "\U0001f6f0 \U00020bb7", 8)
    assert to_png(figure, 50).startswith(b"\x89PNG")
    assert [str(warning.message) for warning in recwarn] == []


@pytest.fixture
def copied_root(ingested: Ingested, tmp_path: Path) -> EvalRoot:
    """An eval root of its own with the case SOME, to be written into."""
    shutil.copytree(ingested(SOME), tmp_path / "evals")
    return EvalRoot(tmp_path / "evals")


# -------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("case", factories.CASES)
def test_every_kind_of_dataset_has_its_pictures(case: str, ingested: Ingested) -> None:
    view = view_of(ingested, case)
    pictures = all_pictures(view)
    previews = [f"preview_{m.name}" for m in view.metadata.config.modalities]
    assert [p.name for p in pictures] == [
        *previews,
        *["map", "labels", "bands", "histograms", "timeline"],
    ]
    for picture in pictures:
        image = Image.open(io.BytesIO(picture.png))
        assert image.format == "PNG"
        assert image.width == WIDTH_IN * DPI
        assert 200 < image.height < 3000
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20  # not blank


def test_the_same_dataset_gives_the_same_bytes(ingested: Ingested) -> None:
    first, second = (partition_pictures(EvalRoot(ingested(SOME)), SOME) for _ in range(2))
    assert first == second


def test_the_pictures_of_an_asset_are_small(ingested: Ingested) -> None:
    pictures = partition_pictures(EvalRoot(ingested(SOME)), SOME)
    assert list(pictures) == ["samples", "map", "labels"]
    assert sum(map(len, pictures.values())) <= SMALL_BYTES
    assert all(png.startswith(b"\x89PNG") for png in pictures.values())


def test_a_class_is_drawn_in_the_datasets_own_colour(ingested: Ingested) -> None:
    view = view_of(ingested, SOME)
    classes = tuple(
        known.model_copy(update={"color": (255, 0, 254)}) for known in view.task.classes
    )
    config = view.metadata.config
    config = config.model_copy(update={"task": config.task.model_copy(update={"classes": classes})})
    changed = dataclasses.replace(
        view, metadata=view.metadata.model_copy(update={"config": config})
    )
    png = to_png(previews(changed, config.modalities[0].name))
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert (pixels == (255, 0, 254)).all(axis=-1).sum() > 100


def test_classes_without_colours_get_different_ones() -> None:
    classes = tuple(LabelClass(name=f"c{k}") for k in range(40))
    task = Task(kind=TaskKind.SEGMENTATION, num_classes=40, classes=classes)
    assert len(set(class_colors(task))) == 40


def test_own_colours_are_kept_and_not_given_to_others() -> None:
    own = LabelClass(name="a", color=(230, 159, 0))
    task = Task(kind=TaskKind.SEGMENTATION, num_classes=2, classes=(LabelClass(name="b"), own))
    first, second = class_colors(task)
    assert second == (230 / 255, 159 / 255, 0)
    assert first != second


def test_judging_and_drawing_do_without_pandas(ingested: Ingested) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from eval_ingest.core.quality import quality_report\n"
        "from eval_ingest.report.charts import label_histogram, timeline\n"
        "from eval_ingest.report.map import window_map\n"
        "from eval_ingest.report.view import open_view\n"
        "from eval_ingest.store.roots.base import EvalRoot\n"
        "view = open_view(EvalRoot(Path(sys.argv[1])), sys.argv[2])\n"
        "quality_report(view.index, view.assignment, view.metadata.config)\n"
        "window_map(view), label_histogram(view), timeline(view)\n"
        "assert 'pandas' not in sys.modules, 'pandas takes half a second to import'\n"
    )
    subprocess.run([sys.executable, "-c", program, ingested(SOME), SOME], check=True)


def test_radar_pictures_dont_blow_up_speckle_and_optical_ones_keep_their_colours() -> None:
    rng = np.random.default_rng(0)
    flat = {0: rng.normal(-10, 0.3, (32, 32, 3)).astype(np.float32)}
    assert np.ptp(stretched(flat, decibels=True)[0]) < 0.3
    scene = rng.uniform(500, 3000, (32, 32, 3)).astype(np.float32)
    scene[..., 1] = 1200 + rng.normal(0, 20, (32, 32))  # a channel that hardly varies
    shown = stretched({0: scene}, decibels=False)[0]
    assert np.ptp(shown[..., 1]) < 0.1 < np.ptp(shown[..., 0])
    nothing = np.full((4, 4, 3), np.nan, np.float32)
    assert np.ptp(stretched({0: nothing}, decibels=False)[0]) == 0


def test_a_site_that_was_taken_a_hundred_times_is_drawn_once_a_split(
    ingested: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = view_of(ingested, "scalar_regression")
    again = np.tile(np.arange(len(view.index)), 100)
    often = dataclasses.replace(
        view,
        index=dataclasses.replace(view.index, table=view.index.table.take(pa.array(again))),
        assignment=dataclasses.replace(
            view.assignment, table=view.assignment.table.take(pa.array(again))
        ),
    )
    drawn: list[tuple[int, str]] = []
    monkeypatch.setattr(
        map_module, "_draw", lambda _, centres, *more: drawn.append((len(centres), more[-1]))
    )
    window_map(often)
    counts = view.assignment.counts()
    assert drawn == [(n, f"{split} ({100 * n:,})") for split, n in counts.items()]


def test_a_timeline_without_any_time_has_no_scale(
    ingested: Ingested,
) -> None:
    view = view_of(ingested, SOME)
    [name] = [c for c in view.index.table.column_names if c.endswith(".timestamps")]
    column = view.index.table.schema.get_field_index(name)
    table = view.index.table.set_column(
        column, name, pa.nulls(len(view.index), view.index.table.schema.field(column).type)
    )
    index = dataclasses.replace(view.index, table=table)
    [axes] = charts.timeline(dataclasses.replace(view, index=index)).axes
    assert axes.get_title(loc="left").endswith("the rasters tell no times")
    assert list(axes.get_yticks()) == []


def test_a_map_without_any_place_says_so(ingested: Ingested) -> None:
    view = view_of(ingested, SOME)
    column = view.index.table.schema.get_field_index("geometry")
    table = view.index.table.set_column(
        column, "geometry", pa.nulls(len(view.index), view.index.table.schema.field(column).type)
    )
    unplaced = dataclasses.replace(view, index=dataclasses.replace(view.index, table=table))
    assert to_png(window_map(unplaced)).startswith(b"\x89PNG")


def test_bars_of_targets_lie_between_round_numbers() -> None:
    edges = _nice_edges(np.array([31.1, 229.0]), 16)
    assert edges[0] <= 31.1 and edges[-1] >= 229 and 12 <= len(edges) <= 24
    assert set(np.diff(edges)) == {10.0}
    assert len(_nice_edges(np.array([7.0]), 16)) == 2


# ------------------------------------------------------------------------------------------ page


@pytest.mark.parametrize("case", factories.CASES)
def test_the_page_needs_nothing_from_elsewhere(case: str, ingested: Ingested) -> None:
    view = view_of(ingested, case)
    page = html_page(view, quality_of(view), [Picture("map", "A map", b"png")])
    assert "<script" not in page
    assert "<link" not in page
    assert "http" not in re.sub(r"<td>[^<]*</td>", "", page)
    assert re.findall(r'src="([^"]*)"', page) == ["data:image/png;base64,cG5n"]
    assert "prefers-color-scheme: dark" in page


def test_a_picture_of_any_size_is_whole(ingested: Ingested) -> None:
    view = view_of(ingested, SOME)
    picture = Picture("map", "A map", bytes(range(256)) * 400)
    page = html_page(view, quality_of(view), [picture])
    [found] = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    assert base64.b64decode(found) == picture.png


def test_the_page_tells_scores_and_versions(ingested: Ingested) -> None:
    view = view_of(ingested, SOME)
    boards = [Board("test, 100% of train", [["encoder", "mIoU"], ["pixels <b>", "0.512"]])]
    page = html_page(view, quality_of(view), [], boards)
    assert "Scores: test, 100% of train" in page and "0.512" in page
    assert "pixels &lt;b&gt;" in page and "<h2>Versions</h2>" not in page
    before = Version.of(view.metadata).model_copy(update={"fingerprint": "0123456789abcdef"})
    metadata = view.metadata.model_copy(update={"history": [before]})
    page = html_page(dataclasses.replace(view, metadata=metadata), quality_of(view), [])
    assert "<h2>Versions</h2>" in page and "01234567" in page
    assert page.index(view.metadata.fingerprint[:8]) < page.index("01234567")


def test_the_card_tells_no_source(ingested: Ingested) -> None:
    view = view_of(ingested, SOME)
    quality = quality_of(view)
    assert view.metadata.source in html_page(view, quality, [])
    assert view.metadata.source not in dataset_card(view, quality, [])


def test_names_from_data_are_no_markup(ingested: Ingested) -> None:
    view = with_spec(
        view_of(ingested, SOME), display_name="<script>x</script>", notes="a <b>bold</b> | note"
    )
    quality = quality_of(view)
    assert "<script" not in html_page(view, quality, [])
    card = dataset_card(view, quality, [])
    assert "<script" not in card.partition("\n---\n")[2]
    assert "&lt;b&gt;bold" in card


def test_the_page_tells_the_verdict_and_its_reasons(ingested: Ingested) -> None:
    view = view_of(ingested, SOME)
    quality = quality_of(view)
    page = html_page(view, quality, [])
    assert f">{quality['verdict']}</span>" in page
    assert quality["reasons"]
    for reason in quality["reasons"]:
        assert html.escape(reason) in page


# ------------------------------------------------------------------------------------------ card


def header_of(card: str) -> dict[str, Any]:
    _, header, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(header)
    return found


@pytest.mark.parametrize("case", factories.CASES)
def test_the_card_has_a_header_that_the_hub_reads(case: str, ingested: Ingested) -> None:
    view = view_of(ingested, case)
    header = header_of(dataset_card(view, quality_of(view), []))
    assert header["size_categories"] == ["n<1K"]
    assert header["task_categories"][0] in ("image-segmentation", "image-classification", "other")
    for split in header["configs"][0]["data_files"]:
        assert (ingested(case) / case / split["path"]).is_file()


@pytest.mark.parametrize("case", factories.CASES)
def test_the_hubs_own_library_reads_the_card(case: str, ingested: Ingested) -> None:
    view = with_spec(view_of(ingested, case), display_name='Crops: "maize" & more', licence="ODbL")
    card = hub.DatasetCard(dataset_card(view, quality_of(view), []))  # raises on a wrong header
    known = set(inspect.signature(hub.DatasetCardData).parameters) | {"tags", "configs"}
    assert set(card.data.to_dict()) <= known
    assert card.data.pretty_name == 'Crops: "maize" & more' and card.data.license == "odbl"
    assert card.data.task_categories and "earth-observation" in card.data.tags
    (config,) = card.data.configs
    assert [found["split"] for found in config["data_files"]] == ["train", "validation", "test"]
    assert hub.DatasetCard(str(card)).data.to_dict() == card.data.to_dict()
    assert card.text.startswith("\n# Crops: ") or card.text.startswith("# Crops: ")


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        (None, {"license": "unknown"}),
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("CC BY 4.0", {"license": "cc-by-4.0"}),
        ("Ask first", {"license": "other", "license_name": "ask-first"}),
    ],
)
def test_the_licence_is_given_by_the_hubs_name(
    licence: str | None, expected: dict[str, str], ingested: Ingested
) -> None:
    header = hub_header(with_spec(view_of(ingested, SOME), licence=licence))
    assert {key: header[key] for key in header if key.startswith("license")} == expected


def test_a_report_is_written_beside_the_dataset(copied_root: EvalRoot) -> None:
    paths = write_report(copied_root, SOME)
    folder = copied_root.dataset(SOME).layout.path
    assert folder / "README.md" in paths
    assert all(path.stat().st_size for path in paths)
    card = (folder / "README.md").read_text()
    for picture in re.findall(r"\]\((.*?\.png)\)", card):
        assert (folder / picture).is_file()


def test_a_dataset_that_is_not_there_is_named(ingested: Ingested) -> None:
    with pytest.raises(UnknownDatasetError, match="did you mean segmentation"):
        write_report(EvalRoot(ingested(SOME)), "segmentatoin")


# ---------------------------------------------------------------------------------------- export


@pytest.mark.parametrize(
    ("case", "windows"),
    [(SOME, True), (SOME, False), ("vector_classification", False), ("ragged_segmentation", True)],
)
def test_an_export_is_an_eval_root_that_loads(
    case: str, windows: bool, ingested: Ingested, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = EvalRoot(ingested(case))
    path = export_dataset(source, case, tmp_path / "out", windows)
    assert path == tmp_path / "out" / case
    assert list(read_registry(EvalRoot(tmp_path / "out"))) == [case]
    assert (path / "windows").is_dir() == windows
    beside = {"config.json", "model.yaml", ".rslearn_dataset_index"}
    assert not (path / "model.original.yaml").exists()  # it tells where its owner's files are
    assert beside & {p.name for p in path.iterdir()} == (beside if windows else set())
    assert (path / "report" / "report.html").is_file()
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"registry.json", case}
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path / "out"))
    for split in ("train", "val", "test"):
        exported = EvalDataset(case, split, normalize=None)
        original = EvalDataset(case, split, root=source.path, normalize=None)
        assert len(exported) == len(original) > 0
        for modality in exported.bands:
            assert (exported[0][modality] == original[0][modality]).all()
    assert verified(path) == verified(source.dataset(case).layout.path)


def test_what_the_disk_takes_for_one_is_not_exported_to_it(
    ingested: Ingested, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = EvalRoot(shutil.copytree(ingested(SOME), tmp_path / "source"))
    window = next(path.parent for path in source.path.glob("*/windows/*/*/metadata.json"))
    shutil.copytree(window, window.with_name(window.name.upper()))
    monkeypatch.setattr(told_apart, "_are_one", lambda *_: True)
    with pytest.raises(StoreError, match="are one name to the disk of"):
        export_dataset(source, SOME, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def verified(path: Path) -> list[str]:
    metadata = require_metadata(EvalRoot(path.parent), path.name)
    return list(
        verify(
            EvalRoot(path.parent).dataset(path.name), metadata, lambda what, done, total: None
        ).problems
    )


def test_an_export_replaces_nothing(ingested: Ingested, tmp_path: Path) -> None:
    source = EvalRoot(ingested(SOME))
    (tmp_path / "out" / SOME).mkdir(parents=True)
    with pytest.raises(StoreError, match="is there already"):
        export_dataset(source, SOME, tmp_path / "out")
    with pytest.raises(StoreError, match="is there already"):
        export_dataset(source, SOME, source.path)
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / SOME]


def test_an_export_that_fails_leaves_nothing(copied_root: EvalRoot, tmp_path: Path) -> None:
    next(copied_root.dataset(SOME).layout.samples.glob("*/target.npy")).unlink()
    with pytest.raises(StoreError, match=r"target\.npy is missing"):
        export_dataset(copied_root, SOME, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_commands_say_where_everything_is(
    copied_root: EvalRoot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(copied_root.path))
    assert cli.main(["report", "--name", SOME]) == 0
    assert "report.html" in capsys.readouterr().out
    out = tmp_path / "out"
    arguments = ["export", "--name", SOME, "--to", str(out), "--no-windows", "--json"]
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {
        "name": SOME, "path": str(out / SOME), "windows": False,
    }  # fmt: skip
    assert cli.main(arguments) == 1
    assert "is there already" in capsys.readouterr().err
