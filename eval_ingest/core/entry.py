"""What is kept about an ingested dataset: metadata.json, and its entry in registry.json."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    FiniteFloat,
    RootModel,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from eval_ingest.core.bounds import Count, JsonObject, JsonText, Record, RelativePath, Split
from eval_ingest.core.modality import MODALITIES
from eval_ingest.core.reports import MaybeQualityReport, MaybeSplitReport
from eval_ingest.core.resolved import PixelType, ResolvedConfig, sides_of
from eval_ingest.core.signal import Signal
from eval_ingest.core.spec import NAME_PATTERN, SPLIT_OPTION, SPLITS, DatasetSpec

METADATA_VERSION = 2
SPLIT_INDEX_VERSION = 2

MAX_HISTORY = 50
"""Versions that are remembered."""

BandStatsTable = dict[str, dict[str, dict[str, float]]]
"""{modality: {band: {mean, std, min, max}}}, in stored units; Sentinel-1 in dB."""


NodataTable = dict[str, dict[str, list[float | None]]]
"""{modality: {band: values}}: pixels without data that occur in some split, in stored units.

None stands for what is no finite number. They count in no statistic and normalise to 0.
"""


class NormStats(Record):
    """The outcome of the norm_stats stage."""

    version: int = 1
    fingerprint: str
    n_windows: Count
    """Train windows that the statistics are from."""
    stats: BandStatsTable
    nodata: NodataTable = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)


class ShardArray(Record):
    """One .npy file of a shard."""

    dtype: PixelType
    uniform: bool
    """True: (N, ...) with the samples' shape; False: flat, with offsets."""
    shape: tuple[Count, ...] = Field(min_length=1)
    """Of the array."""
    n_bytes: Count
    """Of the file, its header included."""
    crc32c: str | None = None
    """Of the file, as Google Cloud Storage writes it; under remote roots, and where exported."""


ArrayName = Annotated[str, Field(pattern=r"\A[a-z0-9_]+\z")]
"""A modality, or `target`."""


class Shard(Record):
    """A shard of packed samples under samples/."""

    name: Annotated[str, Field(pattern=r"\A[0-9a-z]+(-[0-9]+)?\z")]
    rows: Count
    arrays: dict[ArrayName, ShardArray]
    """By modality, and `target`."""


class SplitFile(Record):
    """A split and its index."""

    count: Count
    """Samples."""
    windows: Count | None = None
    """Windows that they are of; None: a sample each."""
    index: Annotated[str, Field(pattern=r"\A(train|val|test)/index\.[0-9a-f]+\.(arrow|parquet)\z")]
    """Relative to the dataset's folder."""

    @property
    def n_windows(self) -> int:
        """Windows that the samples are of."""
        return self.count if self.windows is None else self.windows


Splits = Annotated[dict[Split, SplitFile], Field(min_length=len(SPLITS))]


class CopyResult(Record):
    """The outcome of the weka_copy stage."""

    version: int = 1
    fingerprint: str
    mode: Literal["windows", "stream", "index", "adopted"]
    """See `DatasetSpec.copy_mode`."""
    files: dict[RelativePath, str] = Field(default_factory=dict)
    """What rslearn reads beside the windows: path in the dataset's folder, and its CRC32C."""
    shards: list[Shard]
    splits: Splits
    n_copied: Count
    """Windows in the rslearn copy."""
    n_bytes: Count
    """Bytes of the rslearn copy."""
    packed_bytes: Count
    manifest: str | None = None
    """CRC32C of copy_manifest.parquet: one of an earlier copy would vouch for other windows. None:
    there is none, or an earlier version of eval_ingest has recorded the copy."""

    @model_serializer(mode="wrap")
    def _as_kept(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what an earlier eval_ingest doesn't know, where that says nothing."""
        found: dict[str, Any] = dump(self)
        if self.manifest is None:
            del found["manifest"]
        return found


class SourceState(Record):
    """source_state.json: what the source looked like when it was indexed last."""

    fingerprint: str
    """See `sources.discovery.source_fingerprint`."""
    window_index: str
    """The fingerprint of the index."""


class Retired(RootModel[dict[str, FiniteFloat]]):
    """retired.json: since when files, by their path, are no longer named; seconds since 1970."""


class Version(Record):
    """What is remembered of a version that was published."""

    fingerprint: str
    published_at: str
    counts: dict[Split, Count]
    """Samples a split."""
    invalid: Count
    """Windows."""
    verdict: str

    @classmethod
    def of(cls, metadata: "Metadata") -> Self:
        """The version that this metadata is of."""
        return cls(
            fingerprint=metadata.fingerprint,
            published_at=metadata.published_at,
            counts={split: found.count for split, found in metadata.splits.items()},
            invalid=sum(metadata.invalid.values()),
            verdict=str(metadata.quality.get("verdict", "")),
        )


def _as_kept(value: Any) -> DatasetSpec:
    """A spec that says what is kept: what people write is read with more patience."""
    spec = DatasetSpec.model_validate(value)
    if isinstance(value, dict) and value != spec.model_dump(
        mode="json", by_alias=True, exclude_unset=True
    ):
        raise ValueError("nobody has kept it so")
    return spec


_STATISTICS = {"mean", "std", "min", "max"}
_STAGES = {"window_index", "split_assignment", "norm_stats", "weka_copy"}


UNTOLD = "not published"
"""In the place of where a dataset came from, of one that was published."""


class Metadata(Record):
    """metadata.json: everything about an ingested dataset."""

    version: int = METADATA_VERSION
    name: Annotated[str, Field(pattern=rf"\A{NAME_PATTERN.pattern}\z")]
    fingerprint: str
    published_at: str
    spec: Annotated[DatasetSpec, BeforeValidator(_as_kept)]
    config: ResolvedConfig
    source: str
    splits: Splits
    shards: list[Shard]
    norm_stats: BandStatsTable
    nodata: NodataTable = Field(default_factory=dict)
    n_windows: Count
    invalid: dict[str, Count]
    """Invalid windows by reason."""
    split_report: MaybeSplitReport
    quality: MaybeQualityReport = Field(default_factory=dict)
    """The verdict and what it rests on: see `core.quality.quality_report`."""
    signal: JsonObject = Field(default_factory=dict)
    """How well it tells models apart, once that was measured: see `core.signal.Signal`."""
    warnings: list[str]
    fingerprints: dict[str, str]
    """By stage."""
    window_size: Count
    """Side of the smallest sample in pixels."""
    optional_modalities: list[str] = Field(default_factory=list)
    """Modalities that some samples lack."""
    timesteps: dict[str, tuple[Count, Count]] = Field(default_factory=dict)
    """The fewest and the most timesteps of a sample, by modality."""
    same_timesteps: bool = True
    """Each sample has equally many timesteps of every modality that isn't optional."""
    num_timesteps: Count
    """The most timesteps of any sample and modality."""
    n_bytes: Count = 0
    their_entry: JsonText = ""
    """Of an adopted dataset: the JSON of its entry in registry.json before we added to it."""
    history: list[Version] = Field(default_factory=list)
    """The versions before this one, the oldest first."""

    @property
    def is_untold(self) -> bool:
        """True of what was published: where it came from isn't told, and can't be looked up."""
        return self.source == UNTOLD

    @property
    def wrong_field(self) -> str:
        counts = self.split_report.get("class_counts", {}).values()
        right = {
            "timesteps": {known.name for known in self.config.modalities} >= self.timesteps.keys(),
            "fingerprints": self.fingerprints.keys() >= _STAGES,
            "split_report": bool(self.split_report),
            "split_report.class_counts": all(
                len(found) == self.config.task.num_classes for found in counts
            ),
        }
        return self._wrong_opening or _first_wrong(right)

    @property
    def _wrong_opening(self) -> str:
        """The same of what stands in opening.json too."""
        config, stats = self.config, self.norm_stats
        bands = {modality.name: set(modality.bands) for modality in config.modalities}
        right = {
            "norm_stats": stats.keys() == bands.keys()
            and all(bands[name] <= known.keys() for name, known in stats.items())
            and all(
                band.keys() >= _STATISTICS for all_ in stats.values() for band in all_.values()
            ),
            "nodata": all(v.keys() <= bands.get(name, set()) for name, v in self.nodata.items()),
            "optional_modalities": bands.keys() >= set(self.optional_modalities),
            "splits": all(f.index.startswith(f"{split}/") for split, f in self.splits.items()),
            "shards": all(_fits(shard, config) for shard in self.shards),
        }
        return config.wrong_field or _first_wrong(right)


def _first_wrong(right: Mapping[str, bool]) -> str:
    return next((name for name, holds in right.items() if not holds), "")


_Empty = Annotated[dict[str, Any], Field(max_length=0)]
_EmptyList = Annotated[list[Any], Field(max_length=0)]


class Opening(Metadata):
    """opening.json: see `opening`."""

    # What never stands there; and the forms of reports take long to be made ready.
    invalid: _Empty
    split_report: _Empty = Field(default_factory=dict)
    quality: _Empty = Field(default_factory=dict)
    signal: _Empty = Field(default_factory=dict)
    warnings: _EmptyList
    fingerprints: _Empty
    timesteps: _Empty = Field(default_factory=dict)
    their_entry: Literal[""] = ""
    history: _EmptyList = Field(default_factory=list)

    @property
    def wrong_field(self) -> str:
        return self._wrong_opening


def utc(stamp: str) -> str:
    """A time as it is recorded, for people.

    >>> utc("2026-11-28T13:24:05+00:00")
    '2026-11-28 13:24:05 UTC'
    """
    return stamp.replace("T", " ").replace("+00:00", " UTC")


def _fits(shard: Shard, config: ResolvedConfig) -> bool:
    """True if a shard has the arrays of a dataset, each with its axes."""
    axes = {modality.name: 5 for modality in config.modalities}
    axes["target"] = 3 if config.task.kind.per_pixel else 1
    return shard.arrays.keys() == axes.keys() and all(
        len(array.shape) == (axes[name] if array.uniform else 1)
        for name, array in shard.arrays.items()
    )


def opening(metadata: Metadata) -> Opening:
    """What EvalDataset has to know of a dataset to give its samples, and nothing else.

    Kept in opening.json, so that no report of a hundred classes is read for the first sample.
    """
    asked = metadata.spec
    spec = DatasetSpec(name=asked.name, source=asked.source, copy=asked.copy_mode)
    spec = spec.model_copy(update={"label_fractions": asked.label_fractions})
    config = metadata.config.model_copy(
        update={"selectors": {}, "dropped_transforms": (), "provenance": {}, "warnings": ()}
        | ({"layers": ()} if asked.copy_mode != "index" else {})
    )
    nothing: dict[str, Any] = {"invalid": {}, "split_report": {}, "quality": {}, "warnings": []}
    nothing |= {"fingerprints": {}, "timesteps": {}, "history": [], "signal": {}, "their_entry": ""}
    return Opening.model_construct(**vars(metadata) | nothing | {"spec": spec, "config": config})


OURS_ALONE = ("copy", "eval", "verdict", "signal", "fingerprint", "ingested_at")
"""Keys of an entry that no other tool writes."""


THEIRS_NEVER = (*OURS_ALONE, "optional_modalities", "timesteps", "same_timesteps")
"""The same, and keys that this tool would not mind in another's entry."""


def their_values(raw: str) -> dict[str, Any]:
    """What another tool's entry says, from its JSON; nothing if that is no object."""
    value = json.loads(raw or "{}")
    return value if isinstance(value, dict) else {}


def members(value: Any) -> Mapping[str, Any]:
    """An object of an entry; empty if something else stands in its place."""
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> list[Any]:
    """A list of an entry; empty if something else stands in its place, a text as its only item."""
    if isinstance(value, str):
        return [value]
    return list(value) if isinstance(value, Sequence | Mapping) else []


def split_counts(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Samples of each split as an entry has counted them; without those that it doesn't count."""
    stats = members(entry.get("split_stats"))
    counts = {split: members(stats.get(split)).get("count") for split in SPLITS}
    return {split: count for split, count in counts.items() if isinstance(count, int | float)}


def is_ours(entry: Any) -> bool:
    """True if an entry of registry.json says that we wrote it, or added to it."""
    return isinstance(entry, dict) and "fingerprint" in entry and "ingested_at" in entry


def registry_entry(metadata: Metadata, path: str) -> dict[str, Any]:
    """The dataset as the existing OlmoEarth eval code reads it, and some fields more.

    Args:
        metadata: the dataset.
        path: its folder, for `weka_path`.
    """
    config, task = metadata.config, metadata.config.task
    names = [modality.name for modality in config.modalities]
    signal = Signal.of(metadata.signal)
    return {
        "name": metadata.name,
        "display_name": metadata.spec.display_name or metadata.name,
        "source_path": metadata.source,
        "weka_path": path,
        "task_type": str(task.kind),
        "num_classes": task.num_classes if task.kind.has_classes else 1,
        "is_multilabel": False,
        "classes": [known.name for known in task.classes],
        "copy": metadata.spec.copy_mode,
        "split_tag_key": SPLIT_OPTION,
        "split_stats": {split: {"count": found.count} for split, found in metadata.splits.items()},
        # Its code fails on a sample without one of these.
        "modalities": [name for name in names if name not in metadata.optional_modalities],
        "optional_modalities": metadata.optional_modalities,
        "imputes": imputes(config),
        "window_size": min(
            *sides_of(config.crop_size or metadata.window_size), metadata.window_size
        ),
        "timeseries": metadata.num_timesteps > 1,
        "norm_stats": _whole(metadata.norm_stats, imputes(config)),
        "use_pretrain_norm": True,
        "num_timesteps": metadata.num_timesteps,
        "timesteps": {name: list(found) for name, found in metadata.timesteps.items()},
        "same_timesteps": metadata.same_timesteps,
        "eval": metadata.spec.eval.given,
        "verdict": metadata.quality.get("verdict", ""),
        **({"signal": signal.entry} if signal is not None else {}),
        "fingerprint": metadata.fingerprint,
        "ingested_at": metadata.published_at,
    }


def _whole(stats: BandStatsTable, pairs: list[list[str]]) -> BandStatsTable:
    """The statistics as the existing code can use them: of all bands in the modality's order.

    A missing band has those of its stand-in. A band that doesn't vary has a deviation and a range
    of 1, because that code divides by them.
    """
    sources = {missing: present for present, missing in pairs}
    return {
        modality: {
            band: _divisible(known[band if band in known else sources[band]])
            for band in MODALITIES[modality].bands
        }
        for modality, known in stats.items()
    }


def _divisible(stats: dict[str, float]) -> dict[str, float]:
    return stats if stats["std"] != 0 else {**stats, "std": 1.0, "max": stats["min"] + 1}


def imputes(config: ResolvedConfig) -> list[list[str]]:
    """[present band, missing band] pairs: which band stands in for one the dataset lacks.

    The stand-in is the present band nearest in wavelength; for radar the first that is present.
    """
    pairs: list[list[str]] = []
    for modality in config.modalities:
        wavelengths = MODALITIES[modality.name].wavelengths_nm
        for missing in modality.missing_bands:
            stand_in = min(
                modality.bands,
                key=lambda band: abs(wavelengths.get(band, 0) - wavelengths.get(missing, 0)),
            )
            pairs.append([stand_in, missing])
    return pairs
