"""What a sweep is to do, checked before anything slow begins."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.norm import METHODS
from eval_ingest.core.spec import SPLITS
from eval_ingest.errors import SweepError, UnknownDatasetError
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.sweep.encoders.base import Encoder
from eval_ingest.sweep.encoders.registry import check_encoder

PROBES = ("auto", "knn", "linear")
NORMALISATIONS = ("dataset", "pretrained", "none")

ALL = "all"
PATCH_SIZE = 4


@dataclass(frozen=True)
class SweepPlan:
    """Every encoder on every dataset, at every label fraction, with every seed."""

    encoders: tuple[str, ...]
    """Names as in sweep.encoders."""
    out: Path
    """Folder of the results."""
    datasets: tuple[str, ...] = (ALL,)
    """Names, or `all` for every dataset under the eval root."""
    split: str = "test"
    """The split that is scored."""
    label_fractions: tuple[float | str, ...] = (1.0,)
    """Shares of the train windows, or names that datasets give to shares (`label_fractions`)."""
    seeds: tuple[int, ...] = (42,)
    """Each draws the label fraction, as EvalDataset(label_fraction=, seed=), and starts a probe.
    42 is what the existing OlmoEarth eval code draws with."""
    patch_size: int | None = None
    """Default: what a dataset's settings say, else 4."""
    probe: Literal["auto", "knn", "linear"] = "auto"
    """auto: what a dataset's settings say, else kNN for window classification and a linear probe
    for everything else."""
    normalize: Literal["dataset", "pretrained", "none"] | None = None
    """Default: what the encoder asks for."""
    method: str | None = None
    """Default: what the encoder asks for; see core.norm.METHODS."""

    def checked(self, root: EvalRoot) -> Self:
        """The same plan with `all` spelled out.

        Raises:
            SweepError: a value that can't be; the message says which would.
            UnknownDatasetError: names the near ones.
        """
        for what, values in (
            ("encoder", self.encoders),
            ("dataset", self.datasets),
            ("label fraction", self.label_fractions),
            ("seed", self.seeds),
        ):
            if not values:
                raise SweepError(f"a sweep needs at least one {what}")
        for encoder in self.encoders:
            check_encoder(encoder)
        _one_of("split", self.split, SPLITS)
        _one_of("probe", self.probe, PROBES)
        if self.normalize is not None:
            _one_of("normalize", self.normalize, NORMALISATIONS)
        if self.method is not None:
            _one_of("method", self.method, tuple(METHODS))
        if self.patch_size is not None and self.patch_size < 1:
            raise SweepError(f"patch size is {self.patch_size}; it must be at least 1")
        wrong = [f for f in self.label_fractions if not isinstance(f, str) and not 0 < f <= 1]
        if wrong:
            raise SweepError(f"label fraction is {wrong[0]:g}; it must be above 0 and at most 1")
        return replace(
            self,
            encoders=_once(self.encoders),
            datasets=self._names(root),
            label_fractions=tuple(dict.fromkeys(self.label_fractions)),
            seeds=tuple(dict.fromkeys(self.seeds)),
        )

    def patch_size_for(self, settings: EvalSettings) -> int:
        """Pixels per side of a patch, on a dataset with these settings."""
        return self.patch_size or settings.patch_size or PATCH_SIZE

    def normalised(self, encoder: Encoder) -> Encoder:
        """The encoder, with the normalisation that the plan says, if it says one."""
        if self.normalize is not None:
            encoder.normalize = None if self.normalize == "none" else self.normalize
        if self.method is not None:
            encoder.method = self.method
        return encoder

    def _names(self, root: EvalRoot) -> tuple[str, ...]:
        known = root.dataset_names()
        if not known:
            raise SweepError(
                f"no dataset is ingested under {root.url}; "
                "run eval-ingest ingest, or set OLMOEARTH_EVAL_DATASETS"
            )
        if ALL in self.datasets:
            return tuple(known)
        for name in self.datasets:
            if name not in known:
                raise UnknownDatasetError(
                    name,
                    known,
                    f"the eval root {root.url}",
                    f"To ingest it: eval-ingest ingest --name {name}",
                )
        return _once(self.datasets)


def _once(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _one_of(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise SweepError(f"no {what} {value!r}; there are {', '.join(known)}")
