"""OlmoEarth's own trainer reads registered datasets through EvalDataset: import this module.

    import eval_ingest.integrations.olmoearth_pretrain

From then on the evaluator of olmoearth-pretrain 0.1.2, unmodified, finds the names of our registry
beside its own, and opens those that are ours from their packed samples instead of through
rslearn: the same samples, masks, order, label fractions and normalisation. Dates are the rasters'
own, where its loader makes up monthly ones from September 2022; `install(dates="monthly")` gives
those. Entries that are not ours go their usual way. `uninstall()` puts back what was there.

Replaced are, and nothing else: the look-up of an entry by name, the function that opens an entry,
and the collate function, which has nothing left to do for our batches. How samples are made for
the models themselves is in loading/olmoearth.py.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset, Subset

from eval_ingest.errors import EvalIngestError, LoadError, SpecError
from eval_ingest.loading.collate import collate
from eval_ingest.loading.dataset import EvalDataset
from eval_ingest.loading.normalize import DEFAULT_METHOD
from eval_ingest.loading.olmoearth import MISSING, SEEN, BandFiller, OlmoEarthAdapter
from eval_ingest.settings import Settings
from eval_ingest.store.registry import read_metadata, read_registry
from eval_ingest.store.roots.open import open_root

Dates = Literal["real", "monthly"]

_PACKAGE = "olmoearth_pretrain"
_FIRST_MONTH, _LAST_MONTH = "2022-09-01", "2023-09-01"
"""Between these its loader makes up dates."""

MaskedSample = Any
"""olmoearth_pretrain's MaskedOlmoEarthSample."""


class TrainerSamples(Dataset[tuple[MaskedSample, torch.Tensor]]):
    """A split as the trainer's DataLoader wants it.

    Samples are (MaskedOlmoEarthSample, target): per modality float32 (H, W, T, C) with all bands of
    the modality, its mask of the same shape, timestamps long (T, 3), and the target of EvalDataset.
    """

    def __init__(self, dataset: EvalDataset, dates: Dates = "real") -> None:
        from olmoearth_pretrain.datatypes import MaskedOlmoEarthSample

        self.dataset = dataset
        self._dates = dates
        self._sample_type = MaskedOlmoEarthSample
        self._fillers = {name: BandFiller.of(dataset, name, "impute") for name in dataset.bands}
        self._adapter: OlmoEarthAdapter | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[MaskedSample, torch.Tensor]:
        sample: tuple[MaskedSample, torch.Tensor] = self.__getitems__([i])[0]
        return sample

    def __getitems__(self, indices: Sequence[int]) -> "TrainerBatch":
        batch = collate(self.dataset.__getitems__(indices))
        return TrainerBatch(self._masked(batch), batch["target"])

    def _masked(self, batch: dict[str, Any]) -> MaskedSample:
        """A batch of EvalDataset as one masked sample."""
        names = [name for name in self._fillers if name in batch]
        steps = {name: batch["timesteps"][name] for name in names}
        if any(not torch.equal(steps[names[0]], steps[name]) for name in names[1:]):
            return self._aligned(batch)
        counts = steps[names[0]]
        fields: dict[str, torch.Tensor] = {"timestamps": self._timestamps(batch, names[0], counts)}
        for name in names:
            pixels = self._fillers[name].fill(batch[name])
            fields[name] = pixels
            fields[f"{name}_mask"] = _mask(pixels.shape, counts)
        return self._sample_type(**fields)

    def _aligned(self, batch: dict[str, Any]) -> MaskedSample:
        """Modalities with different numbers of timesteps, joined by date."""
        if self._dates == "monthly":
            raise LoadError(
                f"{self.dataset.name}: made-up dates can't join modalities with different numbers "
                'of timesteps; use install(dates="real"), or one modality a task'
            )
        if self._adapter is None:
            self._adapter = OlmoEarthAdapter(self.dataset)
        return self._adapter(batch)

    def _timestamps(
        self, batch: dict[str, Any], modality: str, counts: torch.Tensor
    ) -> torch.Tensor:
        """Dates long (B, T, 3) = day, month from 0, year; zeros after a sample's last one."""
        stored: torch.Tensor = batch["timestamps"][modality].long()
        if self._dates == "real":
            return stored
        from olmoearth_pretrain.evals.datasets.rslearn_dataset import get_timestamps

        result = torch.zeros_like(stored)
        for row, count in zip(result, counts.tolist(), strict=True):
            if count:
                months = get_timestamps(_FIRST_MONTH, _LAST_MONTH, num_timesteps=count)
                row[:count] = torch.stack(months)
        return result


class TrainerBatch(Sequence[tuple[MaskedSample, torch.Tensor]]):
    """Samples that are views of one batch, which `CollateBatch` hands on as it is."""

    def __init__(self, sample: MaskedSample, target: torch.Tensor) -> None:
        self.sample, self.target = sample, target

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        fields = {name: value[i] for name, value in self.sample.as_dict().items()}
        return type(self.sample)(**fields), self.target[i]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def _mask(shape: torch.Size, counts: torch.Tensor) -> torch.Tensor:
    """A mask float32 (B, H, W, T, C), without memory of its own where no timestep is missing."""
    if int(counts.min()) == shape[3]:
        return torch.full((), float(SEEN)).expand(shape)
    missing = torch.arange(shape[3]) >= counts[:, None]
    mask = torch.where(missing, float(MISSING), float(SEEN))
    return mask[:, None, None, :, None].expand(shape)


# ------------------------------------------------------------------------- opening an entry


def open_entry(
    entry: Any,
    split: str = "train",
    norm_method: str = DEFAULT_METHOD,
    norm_stats_from_pretrained: bool | None = None,
    max_samples: int | None = None,
    input_modalities_override: Sequence[str] | None = None,
    label_fraction: float = 1.0,
    label_fraction_seed: int = 42,
    dates: Dates = "real",
) -> "TrainerSamples | Subset[Any] | None":
    """A split of a registered dataset, with the arguments of the trainer's from_registry_entry.

    Returns:
        None if the entry's folder holds no dataset of ours.

    Raises:
        LoadError: it can't be opened with these arguments.
        StoreError: it can't be read.
    """
    found = _place_of(entry)
    if found is None:
        return None
    root, name = found
    modalities = [m.lower() for m in input_modalities_override or entry.modalities]
    pretrained = norm_stats_from_pretrained
    if pretrained is None:
        pretrained = entry.use_pretrain_norm
    split = "val" if split == "valid" else split
    dataset = EvalDataset(
        name,
        split,
        root=root,
        modalities=modalities,
        normalize="pretrained" if pretrained else _own_statistics(entry),
        # With pretraining's statistics its loader knows one method alone.
        method=DEFAULT_METHOD if pretrained else str(getattr(norm_method, "value", norm_method)),
        label_fraction=label_fraction if split == "train" else 1.0,
        seed=label_fraction_seed,
    )
    samples = TrainerSamples(dataset, dates)
    if max_samples is not None and max_samples < len(samples):
        return Subset(samples, range(max_samples))
    return samples


def _own_statistics(entry: Any) -> dict[str, Any]:
    """The entry's own band statistics, which an adopted entry may have from elsewhere."""
    if not entry.norm_stats:
        raise LoadError(
            f"{entry.name} has use_pretrain_norm=False but no norm_stats in the registry; "
            "run: eval-ingest registry rebuild"
        )
    return {modality.lower(): stats for modality, stats in entry.norm_stats.items()}


def _place_of(entry: Any) -> tuple[str, str] | None:
    """The eval root and the name of an entry's dataset, if it is one of ours."""
    if not entry.weka_path:
        return None
    path = str(entry.weka_path).rstrip("/")
    for folder in (path, path.rpartition("/")[0]):  # weka_path may point one level deeper
        root, _, name = folder.rpartition("/")
        if root and name and _is_published(root, name):
            return root, name
    return None


def _is_published(root: str, name: str) -> bool:
    if "://" not in root and not Path(root, name, "metadata.json").is_file():
        return False
    try:
        return read_metadata(open_root(Settings.load(), root).dataset(name)) is not None
    except SpecError:
        return False  # no name that a dataset of ours could have


# ------------------------------------------------------------------------- what is replaced

_replaced: list[tuple[Any, str, Any]] = []
"""(module, name, what stood there) of all that `install` put something else in place of."""


def install(root: str | Path | None = None, *, dates: Dates = "real") -> None:
    """Let olmoearth_pretrain's evaluator read registered datasets through EvalDataset.

    Importing this module does it with the default arguments; calling it again replaces them.

    Args:
        root: the eval root whose registry is read; default OLMOEARTH_EVAL_DATASETS.
        dates: "real": the rasters' own. "monthly": as its loader makes them up.

    Raises:
        LoadError: olmoearth_pretrain isn't installed, or there are no such dates.
    """
    if dates not in ("real", "monthly"):
        raise LoadError(f"no dates={dates!r}; there are 'real' and 'monthly'")
    try:
        from olmoearth_pretrain.evals import datasets, studio_ingest
        from olmoearth_pretrain.evals.datasets import configs, utils
        from olmoearth_pretrain.evals.studio_ingest import registry
    except ImportError as error:
        raise LoadError(
            f"this module is for OlmoEarth's trainer, and {error.name or _PACKAGE} isn't "
            "installed: pip install olmoearth-pretrain==0.1.2"
        ) from error
    uninstall()
    theirs_open, theirs_find = datasets.from_registry_entry, registry.get_dataset_entry
    theirs_collate = utils.eval_collate_fn_variable_time

    def from_registry_entry(*args: Any, **kwargs: Any) -> Any:
        """Of ours, through EvalDataset; of others, and for windows chosen otherwise, as before."""
        arguments = dict(inspect.signature(theirs_open).bind(*args, **kwargs).arguments)
        chosen = [arguments.pop(name, None) for name in ("groups_override", "tags_override")]
        if chosen == [None, None]:
            found = open_entry(**arguments, dates=dates)
            if found is not None:
                return found
        return theirs_open(*args, **kwargs)

    def get_dataset_entry(name: str, registry_path: str | None = None) -> Any:
        """The entry of our registry, else of the package's own."""
        if registry_path is None:
            ours = _registered(root, name)
            if ours is not None:
                return registry.EvalDatasetEntry.model_validate(ours)
        return theirs_find(name, registry_path)

    _replace([datasets], "from_registry_entry", from_registry_entry)
    _replace([registry, studio_ingest, configs, datasets], "get_dataset_entry", get_dataset_entry)
    # The callback has imported the function by name if it was imported before.
    callback = sys.modules.get(f"{_PACKAGE}.train.callbacks.evaluator_callback")
    modules = [module for module in (utils, callback) if module is not None]
    _replace(modules, "eval_collate_fn_variable_time", CollateBatch(theirs_collate))


def uninstall() -> None:
    """Put back what stood in olmoearth_pretrain before."""
    while _replaced:
        module, name, before = _replaced.pop()
        setattr(module, name, before)
    callback = sys.modules.get(f"{_PACKAGE}.train.callbacks.evaluator_callback")
    used = getattr(callback, "eval_collate_fn_variable_time", None)
    if isinstance(used, CollateBatch):  # imported after us: it took ours by name
        callback.eval_collate_fn_variable_time = used.otherwise  # type: ignore[union-attr]


class CollateBatch:
    """The trainer's collate function, for which a batch of ours is collated already."""

    def __init__(self, otherwise: Callable[[Any], Any]) -> None:
        self.otherwise = otherwise

    def __call__(self, samples: Any) -> Any:
        if isinstance(samples, TrainerBatch):
            return samples.sample, samples.target
        return self.otherwise(samples)


def _replace(modules: Sequence[Any], name: str, by: Any) -> None:
    for module in modules:
        if hasattr(module, name):
            _replaced.append((module, name, getattr(module, name)))
            setattr(module, name, by)


def _registered(root: str | Path | None, name: str) -> dict[str, Any] | None:
    try:
        return read_registry(open_root(Settings.load(), root)).get(name)
    except EvalIngestError:
        return None  # no root here: the package's own registry is all there is


install()
