"""Pixels and labels as pictures, for all who look at them."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from eval_ingest.core import images
from eval_ingest.core.images import Color
from eval_ingest.core.resolved import ModalityInput
from eval_ingest.core.task import LabelClass, Task, TaskKind
from eval_ingest.loading.plot import draw_labels, legend_entries
from eval_ingest.report.drawing import SPLIT_COLORS, SPLIT_MARKERS

# Machado, Oliveira and Fernandes (2009), table 1, severity 1: what is seen without one kind of
# cones, in linear RGB.
BLINDNESS = {
    name: np.array(values).reshape(3, 3)
    for name, values in {
        "none": [1, 0, 0, 0, 1, 0, 0, 0, 1],
        "protanopia": [0.152286, 1.052583, -0.204868, 0.114503, 0.786281, 0.099216,
                       -0.003882, -0.048116, 1.051998],
        "deuteranopia": [0.367322, 0.860646, -0.227968, 0.280085, 0.672501, 0.047413,
                         -0.011820, 0.042940, 0.968881],
        "tritanopia": [1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602,
                       0.004733, 0.691367, 0.303900],
        "achromatopsia": [0.2126, 0.7152, 0.0722] * 3,
    }.items()
}  # fmt: skip
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(color: Color, blindness: str) -> np.ndarray:
    """A colour as somebody sees it, in CIE Lab."""
    rgb = np.array(color)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(BLINDNESS[blindness] @ linear, 0, 1)
    x, y, z = np.cbrt(np.maximum(TO_XYZ @ linear / [0.9505, 1, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_splits_are_told_apart_with_any_kind_of_colour_vision(blindness: str) -> None:
    for one, other in itertools.combinations(SPLIT_COLORS.values(), 2):
        assert np.linalg.norm(lab(one, blindness) - lab(other, blindness)) > 15
    assert len(set(SPLIT_MARKERS.values())) == 3


@pytest.mark.parametrize("blindness", ["none", "protanopia", "deuteranopia"])
def test_the_first_eight_colours_of_classes_are_told_apart(blindness: str) -> None:
    classes = tuple(LabelClass(name=f"c{k}") for k in range(8))
    task = Task(kind=TaskKind.SEGMENTATION, num_classes=8, classes=classes)
    for one, other in itertools.combinations(images.class_colors(task), 2):
        assert np.linalg.norm(lab(one, blindness) - lab(other, blindness)) > 8


def test_classes_of_the_datasets_own_colours_have_their_ids_in_picture_and_legend() -> None:
    alike = (
        LabelClass(name="cacao", color=(122, 62, 30)),
        LabelClass(name="_$x", color=(20, 100, 45)),
    )
    task = Task(kind=TaskKind.SEGMENTATION, num_classes=2, classes=alike)
    target = np.full((32, 32), -1)
    target[:, :10], target[:, 20:] = 0, 1
    axes = Figure().add_subplot()
    draw_labels(axes, np.full((32, 32, 3), 0.5, np.float32), target, task, (0.0, 1.0))
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert {text: int(target[y, x]) for text, (x, y) in places.items()} == {"0": 0, "1": 1}
    assert [text for _, text in legend_entries(task, [0, 1])] == ["0 cacao", "1 _$x", "no label"]


def test_the_place_of_an_id_is_within_its_class() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((rng.integers(1, 30), rng.integers(1, 30))) < 0.7
        if mask.any():
            assert mask[images.innermost(mask)]
    ring = np.ones((20, 20), bool)
    ring[3:17, 3:17] = False
    assert ring[images.innermost(ring)]


def test_pixels_without_data_and_modalities_without_timesteps_are_pictures_too() -> None:
    radar = ModalityInput.model_construct(name="sentinel1", bands=("vv", "vh"), decibels=True)
    pixels = np.ones((4, 4, 2, 2), np.float32)
    pixels[0] = 0
    image = images.composite(pixels, radar)
    assert np.isnan(image[0]).all() and np.isfinite(image[1:]).all()
    nothing = images.composite(pixels[:, :, :0], radar)
    assert (images.stretched({0: nothing}, True)[0] == np.float32(images.NO_DATA)).all()
