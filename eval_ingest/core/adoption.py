"""An adopted dataset: what another tool's entry says, and what we find otherwise.

Values in, values out. What doesn't belong here: whose a folder is (store/ownership.py), and the
work of adopting (eval_ingest/adopting.py).
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eval_ingest.core.entry import listed, members, split_counts

STATS = ("mean", "std", "min", "max")
_APART = 0.05
"""Means that differ by more than this part of a deviation, and deviations by more, are told."""


@dataclass(frozen=True)
class Difference:
    """A field of another tool's entry that isn't what we found."""

    field: str
    theirs: Any
    ours: Any
    why: str

    def __str__(self) -> str:
        return f"{self.field}: {self.why}"


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[Difference]:
    """What an entry says otherwise than we do.

    Args:
        theirs: another tool's entry.
        ours: the dataset's entry as we would write it.
    """
    checks = (_plain, _classes, _modalities, _imputes, _counts, _statistics)
    found = [difference for check in checks for difference in check(theirs, ours)]
    return [difference for difference in found if difference.field in theirs]


def corrections(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """The values that would stand in the place of theirs."""
    return {found.field: found.ours for found in differences(theirs, ours)}


_PLAIN = {
    "task_type": "{theirs}, but model.yaml says {ours}",
    "num_classes": "{theirs}, but the labels are of {ours}: nodata is no class",
    "window_size": "{theirs}, but the samples have {ours} pixels",
    "num_timesteps": "{theirs}, but samples have up to {ours}",
    "timeseries": "{theirs}, but it is {ours}",
}
"""Fields that are right if they are equal, and what is told if they aren't."""


def _plain(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[Difference]:
    for field, why in _PLAIN.items():
        if theirs.get(field) != ours[field]:
            told = why.format(theirs=theirs.get(field), ours=ours[field])
            yield Difference(field, theirs.get(field), ours[field], told)


def _classes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[Difference]:
    names = theirs.get("classes")
    unknown = [f"class_{number}" for number in range(len(ours["classes"]))]
    if ours["classes"] not in ([], unknown, names):
        numbers = [str(number) for number in range(len(listed(names)))]
        why = "numbers, and names are known" if names == numbers else f"{names}"
        shown = ", ".join(ours["classes"][:8]) + (", ..." if len(ours["classes"]) > 8 else "")
        yield Difference("classes", names, ours["classes"], f"{why}: {shown}")


def _modalities(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[Difference]:
    named = listed(theirs.get("modalities"))
    once = list(dict.fromkeys(map(str, named)))
    lacking = [name for name in ours["modalities"] if name not in once]
    beyond = sorted(set(once) - set(ours["modalities"]))
    why = []
    if len(once) != len(named):
        why.append(f"{', '.join(map(str, named))} names a modality twice")
    if beyond:
        why.append(f"not every sample has {', '.join(beyond)}")
    if lacking:
        why.append(f"{', '.join(sorted(lacking))} is missing")
    if why:
        wanted = [name for name in once if name not in beyond] + lacking
        yield Difference("modalities", named, wanted, "; ".join(why))


def _imputes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[Difference]:
    if theirs.get("imputes") is None:
        return
    pairs = [pair for pair in map(listed, listed(theirs["imputes"])) if len(pair) == 2]
    lacks = [pair for pair in ours["imputes"] if pair[1] not in [to for _, to in pairs]]
    if lacks:
        bands = ", ".join(to for _, to in lacks)
        why = f"the dataset has no {bands}, and nothing stands for it"
        yield Difference("imputes", pairs, [*pairs, *lacks], why)


def _counts(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[Difference]:
    stats, counted = theirs.get("split_stats"), split_counts(theirs)
    there = {split: counted.get(split) for split in ours["split_stats"]}
    here = {split: found["count"] for split, found in ours["split_stats"].items()}
    if there != here:
        why = ", ".join(
            f"{split} has {here[split]} samples that can be read, "
            + ("and is not counted" if there[split] is None else f"not {there[split]}")
            for split in here
            if here[split] != there[split]
        )
        wanted = {s: {**members(members(stats).get(s)), "count": n} for s, n in here.items()}
        yield Difference("split_stats", stats, wanted, why)


def _statistics(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[Difference]:
    """Bands without statistics, those that are divided by 0, and those of other pixels."""
    known = members(theirs.get("norm_stats"))
    wanted = {modality: dict(members(bands)) for modality, bands in known.items()}
    why = []
    for modality, bands in ours["norm_stats"].items():
        if "means" in members(known.get(modality)):
            continue  # lists in the order of the bands, which that code reads too
        for band, found in bands.items():
            told = _band(members(members(known.get(modality)).get(band)), found)
            if told:
                why.append(f"{modality} {band} {told}")
                wanted.setdefault(modality, {})[band] = found
    if why:
        shown = "; ".join(why[:6]) + (f"; and {len(why) - 6} bands more" if len(why) > 6 else "")
        yield Difference("norm_stats", known, wanted, shown)


def _band(theirs: Mapping[str, Any], ours: Mapping[str, float]) -> str:
    """What is wrong with a band's statistics; "" if they agree."""
    if not all(isinstance(theirs.get(name), int | float) for name in STATS):
        return "has no statistics"
    odd = [name for name in STATS if not abs(theirs[name]) <= sys.float_info.max]
    if odd:
        return f"has a {odd[0]} that is no finite number"
    if theirs["std"] == 0:
        return "has std 0, which is divided by"
    if abs(theirs["mean"] - ours["mean"]) > _APART * ours["std"]:
        return f"has mean {theirs['mean']:.6g}, not {ours['mean']:.6g}"
    if abs(theirs["std"] - ours["std"]) > _APART * ours["std"]:
        return f"has std {theirs['std']:.6g}, not {ours['std']:.6g}"
    return ""
