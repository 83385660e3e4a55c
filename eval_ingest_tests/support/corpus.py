"""Configurations against rslearn: a matching dataset is written, ingested, and read by both.

    python -m eval_ingest_tests.support.corpus [FOLDER] [NAME ...]

prints a line a configuration: samples; whether the existing evals' loader reads what EvalDataset
does, if `make peers` has installed it; and whether that is what rslearn reads. FOLDER holds a
folder a configuration; by default ../shared/configs.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rslearn.config import BandSetConfig, LayerConfig

from benchmarks.peer_pipe import PYTHON, SCRIPT, Peer
from eval_ingest import EvalDataset, pipeline
from eval_ingest.core.modality import MODALITIES
from eval_ingest.core.spec import SPLITS
from eval_ingest.errors import EvalIngestError
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.sweep.tasks import trainer_tasks
from eval_ingest.testing.datasets import write_matching
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.peer import difference
from eval_ingest_tests.support.reference import Reference, ReferenceDataset

CONFIGS = Path(__file__).parents[3] / "shared" / "configs"

SPECS: dict[str, dict[str, Any]] = {"vessel_attributes": {"task": "ship_type"}}
"""Fields of the spec that a configuration can't do without."""

Bands = dict[str, list[tuple[str, str]]]
"""By image: input and band of each channel."""


@dataclass
class Comparison:
    """What came of one configuration."""

    name: str
    samples: dict[str, int] = field(default_factory=dict)
    """By split."""
    differences: list[str] = field(default_factory=list)
    """The first few; none: every sample is equal."""
    refused: str = ""
    """Why it can't be ingested."""
    unlabelled: int = 0
    """Samples of rslearn's without any valid label, which no split of ours holds."""
    notes: list[str] = field(default_factory=list)
    existing: str = "not asked"
    """Whether the existing evals' loader reads what EvalDataset does."""

    @property
    def verdict(self) -> str:
        """In words."""
        if self.refused:
            return f"refused: {self.refused}"
        if self.differences:
            return f"DIFFERENT: {self.differences[0]}"
        return "equal"


@dataclass
class Corpus:
    """Compares configurations below a folder for what is written on the way."""

    scratch: Path
    peer: Peer | None = None
    """The existing evals' loader, if it is asked too."""

    def compare(
        self, name: str, config_json: str, model_yaml: str, windows: int = 6, **spec: Any
    ) -> Comparison:
        """Write, ingest and compare; `spec` are fields of the DatasetSpec."""
        with _formats_made_once():
            return self._compare(name, config_json, model_yaml, windows, **spec)

    def _compare(
        self, name: str, config_json: str, model_yaml: str, windows: int, **spec: Any
    ) -> Comparison:
        found = Comparison(name)
        source, root = self.scratch / name / "source", self.scratch / name / "root"
        write_matching(source, config_json, model_yaml, windows=windows)
        spec = {"max_invalid_fraction": 0.5, **spec}
        try:
            pipeline.ingest(make_job(source, root, "corpus", **spec))
        except EvalIngestError as error:
            found.refused = f"{type(error).__name__}: {error}".replace(str(source), "SOURCE")
            return found
        reference = ReferenceDataset.open(source, model_yaml)
        _compare(found, root, reference, spec.get("task"))
        if self.peer is not None:
            found.existing = self._existing(self.peer, root)
        return found

    def _existing(self, peer: Peer, root: Path) -> str:
        """In words; for each set of modalities that the registry lists for it."""
        tasks = trainer_tasks(EvalRoot(root)).tasks
        wanted = [list(task.input_modalities) for task in tasks]
        found = (difference(peer, root, "corpus", names, self.scratch) for names in wanted)
        return next(filter(None, found), "equal") if wanted else "no task"


_MADE: dict[tuple[str, str], Any] = {}


@contextlib.contextmanager
def _formats_made_once() -> Iterator[None]:
    """rslearn has jsonargparse make a raster's or a vector's format whenever it meets one."""
    with contextlib.ExitStack() as stack:
        for kind, name in (
            (BandSetConfig, "instantiate_raster_format"),
            (LayerConfig, "instantiate_vector_format"),
        ):
            stack.enter_context(mock.patch.object(kind, name, _once(name, getattr(kind, name))))
        yield


def _once(name: str, make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def made(config: Any) -> Any:
        key = name, config.model_dump_json()
        if key not in _MADE:
            _MADE[key] = make(config)
        return _MADE[key]

    return made


def _compare(found: Comparison, root: Path, reference: ReferenceDataset, task: str | None) -> None:
    """Hold each split against rslearn's: number, order, pixels, dates and targets."""
    ours = {split: _open(root, split) for split in SPLITS}
    found.samples = {split: len(dataset) for split, dataset in ours.items()}
    for split, parts in _counterparts(reference).items():
        expected = _expected(found, reference, split)
        bands = reference.bands(split)
        places = [(part, i) for part in parts for i in range(len(ours[part]))]
        by_window: dict[str, list[tuple[str, int]]] = {}
        for part, i in places:
            by_window.setdefault(ours[part].window(i), []).append((part, i))
        seen: dict[str, list[int]] = {part: [] for part in parts}
        for sample in expected:
            here = by_window.get(sample.window)
            if not here:
                if _labelled(sample, task):
                    found.differences.append(f"{split}: {sample.window} is in no split of ours")
                found.unlabelled += 1
                continue
            part, i = here.pop(0)
            seen[part].append(i)
            problem = compare_sample(ours[part], i, sample, bands, task, reference.decibels(split))
            if problem:
                found.differences.append(f"{split} {sample.window} {sample.crop}: {problem}")
        left = [window for window, here in by_window.items() if here]
        if left:
            found.differences.append(f"{split}: rslearn doesn't have {', '.join(left[:3])}")
        for part, order in seen.items():
            if order != sorted(order):
                found.differences.append(f"{part}: another order than rslearn's")


def _expected(found: Comparison, reference: ReferenceDataset, split: str) -> list[Reference]:
    """rslearn's samples; with train's transforms where it fails on the split's own."""
    try:
        return list(reference.samples(split))
    except KeyError as missing:
        found.notes.append(f"{split}: rslearn doesn't find {missing}")
        reference.take_transforms_of_train(split)
        return list(reference.samples(split))


def _open(root: Path, split: str) -> EvalDataset:
    return EvalDataset("corpus", split, root=root, normalize=None, crop=None)


def _counterparts(reference: ReferenceDataset) -> dict[str, tuple[str, ...]]:
    """rslearn's splits, and the ones of ours that together hold the same.

    Where test takes the windows of val, or is never mentioned, val is divided in two.
    """

    def selection(split: str) -> Any:
        config = reference.module.split_configs[split]
        return config.groups, config.names, config.tags

    if selection("val") == selection("test") or not reference.mentions_test:
        return {"train": ("train",), "val": ("val", "test")}
    return {split: (split,) for split in SPLITS}


def compare_sample(
    dataset: EvalDataset,
    i: int,
    expected: Reference,
    bands: Bands,
    task: str | None,
    decibels: Collection[str] = (),
) -> str:
    """What differs between sample i and rslearn's, some of it in decibels; "" if nothing does."""
    sample = dataset[i]
    for modality in dataset.metadata.config.modalities:
        image, names, stamps = _image(modality.name, dataset, expected, bands)
        found = sample[modality.name].numpy()
        known = [names.index(band) for band in modality.bands if band in names]
        if len(known) != len(modality.bands):
            return f"{modality.name}: rslearn has bands {' '.join(names)}"
        more = [
            b for b in names if b in MODALITIES[modality.name].bands and b not in modality.bands
        ]
        if more:
            return f"{modality.name} is without {' '.join(more)}, which rslearn has"
        wanted = image.transpose(2, 3, 1, 0)[..., known]
        if found.shape != wanted.shape:
            return f"{modality.name} is {found.shape}, rslearn's {wanted.shape}"
        if modality.name in decibels:
            converted = 10 * np.log10(np.maximum(found, 1e-6))
            found = np.where(np.isclose(converted, wanted, 1e-6, 1e-5), wanted, np.inf)
        if not np.array_equal(found, wanted, equal_nan=True):
            return f"{modality.name}: {np.mean(found != wanted):.1%} of values differ"
        dates = sample["timestamps"][modality.name].tolist()
        if stamps is not None and dates != stamps:
            return f"{modality.name}: dates {dates[:2]}, rslearn's {stamps[:2]}"
    return _target_difference(sample["target"].numpy(), expected.targets, task)


def _image(
    modality: str,
    dataset: EvalDataset,
    expected: Reference,
    bands: Bands,
) -> tuple[np.ndarray, list[str], list[list[int]] | None]:
    """rslearn's image of a modality (C, T, H, W), its bands, and its dates.

    The one of that name; else the largest that a transform made of it; else its inputs in turn.
    """
    inputs = {part.key: part for part in dataset.metadata.config.modality(modality).parts}
    if modality in expected.images:
        keys = [modality]
    else:
        meant = {key: image for key, image in expected.images.items()
                 if _meant(key, bands, dataset) == {modality}}  # fmt: skip
        made = {key: image for key, image in meant.items() if _joined(key, bands, expected)}
        read = [key for key in inputs if key in expected.images]
        keys = [max(made, key=lambda key: made[key].shape[:2])] if made else read
    images = [expected.images[key] for key in keys if key in expected.images]
    stamps: list[list[int]] | None = []
    for key in keys:
        times = expected.timestamps.get(key)
        stamps = None if stamps is None or times is None else stamps + [_middle(*t) for t in times]
    return np.concatenate(images, axis=1), [band for _, band in bands[keys[0]]], stamps


def _meant(key: str, bands: Bands, dataset: EvalDataset) -> set[str]:
    """The modalities that the channels of an image are of."""
    by_key = {
        part.key: modality.name
        for modality in dataset.metadata.config.modalities
        for part in modality.parts
    }
    others = {band: m.name for m in dataset.metadata.config.modalities for band in m.bands}
    return {by_key.get(source) or others.get(band, "") for source, band in bands[key]}


def _joined(key: str, bands: Bands, expected: Reference) -> bool:
    """True for an image that no input is named after, and that is no copy of some bands of one.

    Of an image stacked along time the channels tell the first input alone: it has more timesteps.
    """
    sources = {source for source, _ in bands[key]}
    if key in {source for channels in bands.values() for source, _ in channels}:
        return False
    (first, *others) = sources
    if others or first not in expected.images:
        return True
    image, source = expected.images[key], expected.images[first]
    return image.shape[1] > source.shape[1] or image.shape[0] >= source.shape[0]


def _middle(start: Any, end: Any) -> list[int]:
    middle = start + (end - start) / 2
    return [middle.day, middle.month - 1, middle.year]


def _labelled(sample: Reference, task: str | None) -> bool:
    return bool((_target(sample.targets, task)["valid"] > 0).any())


def _target(targets: dict[str, dict[str, np.ndarray]], task: str | None) -> dict[str, np.ndarray]:
    return targets[task] if task else next(iter(targets.values()))


def _target_difference(
    found: np.ndarray, targets: dict[str, dict[str, np.ndarray]], task: str | None
) -> str:
    target = _target(targets, task)
    valid = np.squeeze(target["valid"]) > 0
    name = next(key for key in ("classes", "class", "values", "value") if key in target)
    value = np.squeeze(target[name])
    wanted = np.where(valid, value, -1 if name.startswith("class") else np.nan)
    found = np.squeeze(found)
    if found.shape != wanted.shape:
        return f"target is {found.shape}, rslearn's {wanted.shape}"
    if not np.array_equal(found, wanted, equal_nan=name.startswith("value")):
        return f"target: {np.mean(found != wanted):.1%} of values differ"
    return ""


@contextlib.contextmanager
def _peer(scratch: Path) -> Iterator[Peer | None]:
    """The existing evals' loader, where `make peers` has installed it."""
    if not PYTHON.exists():
        yield None
        return
    peer = Peer(SCRIPT, scratch / "log")
    try:
        yield peer
    finally:
        peer.close()


def configurations(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Name and texts of the configurations in a folder."""
    for path in sorted(folder.iterdir()):
        if (path / "config.json").is_file() and (path / "model.yaml").is_file():
            texts = ((path / name).read_text() for name in ("config.json", "model.yaml"))
            yield path.name, *texts  # type: ignore[misc]


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=CONFIGS)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args(arguments)
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch, _peer(Path(scratch)) as peer:
        for name, config_json, model_yaml in configurations(options.folder):
            if options.names and name not in options.names:
                continue
            found = Corpus(Path(scratch), peer).compare(
                name, config_json, model_yaml, windows=12, **SPECS.get(name, {})
            )
            wrong += bool(found.differences)
            samples = "/".join(map(str, found.samples.values()))
            print(f"{name:24} {samples:>10}  {found.existing:>10}  {found.verdict[:600]}")
            sys.stdout.flush()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
