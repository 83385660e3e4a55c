"""rslearn's own index of a dataset's windows, written with the copy.

rslearn's ModelDataset keeps the list of the windows that a split selects in
`.rslearn_dataset_index/<key>.json` (index_mode USE), and makes it by reading every window's
metadata where it is missing. The key is a hash of the split's filters and of the inputs; of the
dataset, only config.json is compared. So an index that is there already is taken although windows
or their options have changed since: all indexes are replaced with every copy, whoever wrote them.

A reader with other inputs or filters has another key. It finds no index and makes its own.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from eval_ingest.core.spec import SPLIT_OPTION
from eval_ingest.errors import StoreError
from eval_ingest.store.atomic import read_json, store_error, written_aside
from eval_ingest.store.paths import RSLEARN_INDEX

RSLEARN_INDEX_VERSION = 1
"""The version that rslearn 0.1.19 writes and reads; another rslearn makes its own index."""

_KEYED = ("layers", "required", "load_all_layers", "is_target")
"""The arguments of an input that decide which windows rslearn selects."""


def index_key(tags: Mapping[str, str], inputs: Mapping[str, Mapping[str, Any]]) -> str:
    """The name of the index of a split that is selected by tags alone.

    Args:
        tags: as in rslearn's SplitConfig.
        inputs: by name, the arguments of rslearn's DataInput.
    """
    defaults = {"required": True, "load_all_layers": False, "is_target": False}
    key = {
        "groups": None,
        "names": None,
        "tags": dict(tags),
        "num_samples": None,
        "skip_targets": False,
        "inputs": {
            name: {field: given.get(field, defaults.get(field)) for field in _KEYED}
            for name, given in inputs.items()
        },
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def write_indexes(dataset: Path, windows: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[str]:
    """Write one index per key; returns their paths within the dataset.

    Args:
        dataset: the folder with config.json, which must be there as it will stay.
        windows: by key, the windows in rslearn's order, each as its Window.get_metadata gives it.
            They are written one by one, never held together.

    Raises:
        StoreError: they can't be written.
    """
    folder = dataset / RSLEARN_INDEX
    try:
        config = (dataset / "config.json").read_bytes()
    except OSError as error:
        raise store_error(dataset / "config.json", "reading", error) from error
    facts = {
        "version": RSLEARN_INDEX_VERSION,
        "config_hash": hashlib.sha256(config).hexdigest()[:16],
        "created_at": datetime.now(UTC).isoformat(),
    }
    for key, listed in windows.items():
        with written_aside(folder / f"{key}.json") as path, path.open("w") as stream:
            _write(stream, facts, listed)
    return [f"{RSLEARN_INDEX}/{key}.json" for key in windows]


def wrong_indexes(dataset: Path, splits: Mapping[tuple[str, str], str]) -> list[str]:
    """One text per index, whoever wrote it, that rslearn would take although it isn't true.

    Args:
        dataset: the folder with config.json.
        splits: the split of each window of the copy, by group and name.
    """
    problems = []
    for path in sorted((dataset / RSLEARN_INDEX).glob("[!.]*.json")):
        try:
            listed = [
                ((str(window["group"]), str(window["name"])), window["options"].get(SPLIT_OPTION))
                for window in (read_json(path) or {})["windows"]
            ]
        except (StoreError, KeyError, TypeError, AttributeError):
            problems.append(f"{RSLEARN_INDEX}/{path.name} is damaged")
            continue
        wrong = ["/".join(key) for key, split in listed if splits.get(key) != split]
        if wrong:
            problems.append(
                f"{RSLEARN_INDEX}/{path.name}: {len(wrong)} of {len(listed)} windows aren't in "
                f"that split of the copy, such as {wrong[0]}"
            )
    return problems


def _write(stream: TextIO, facts: Mapping[str, Any], windows: Iterable[Mapping[str, Any]]) -> None:
    stream.write(json.dumps(facts)[:-1] + ', "windows": [')
    count = 0
    for window in windows:
        stream.write((", " if count else "") + json.dumps(window))
        count += 1
    stream.write(f'], "num_windows": {count}}}')
