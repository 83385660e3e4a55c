"""Sources that want something: programs to be run, files to be opened, numbers to be believed."""

import contextlib
import json
import random
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from benchmarks.storages import rewritten
from eval_ingest.core.copy_config import rslearn_config
from eval_ingest.decoding.judge import read_window
from eval_ingest.errors import EvalIngestError
from eval_ingest.sources.local import LocalSource
from eval_ingest.sources.sqlite import DATABASE
from eval_ingest_tests.support import factories, mutation, poison
from eval_ingest_tests.support.fuzz_kinds import Fault, Kind, Watched, check_message, make_job
from eval_ingest_tests.support.fuzz_sources import Configurations, Windows


class Poisoned(Watched):
    """Values that would run, open or fetch something, in any field of any file of a source.

    Nothing is run, opened or fetched, and none of it is in the copy's config.json.
    """

    inputs_per_case = 8
    _FILES = ("config.json", "model.yaml", "olmoearth_run.yaml", "metadata.json", "items.json",
              "data.geojson")  # fmt: skip

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sources = [
            factories.segmentation(folder / "raster", windows=4),
            factories.vector_classification(folder / "vector", windows=4),
            factories.three_modalities(folder / "many", windows=4),
        ]

    def change(self, rng: random.Random, watch: poison.Watch) -> tuple[str, Callable[[], str]]:
        shutil.copytree(rng.choice(self.sources), self.work)
        wanted = rng.choice(self._FILES)
        path = rng.choice(sorted(self.work.rglob(wanted)) or [self.work / "config.json"])
        content = yaml.safe_load(path.read_text())
        kind, value = rng.choice(list(watch.values()))
        place = rng.choice(list(poison.places(content)) or [()])
        change = poison.added if not place or rng.random() < 0.3 else poison.poisoned
        path.write_text(json.dumps(change(content, place, value)))
        return f"{kind} at {place} of {path.relative_to(self.work)}", self._read

    def _read(self) -> str:
        try:
            job = make_job(self.work, self.out, "fuzzed", max_invalid_fraction=1.0)
        except EvalIngestError as error:
            check_message(error)
            return type(error).__name__
        for holder in poison.class_paths(rslearn_config(job.config)):  # other texts are names
            written = json.dumps(holder)
            if any(w in written for w in ("subprocess", "evil_module", "http:", "vsi", "../")):
                raise Fault(f"the copy's config.json has it: {written}")
        reader = LocalSource(str(self.work))
        for group, name, _ in list(reader.names(reader.groups()))[:2]:
            read_window(reader, reader.window(group, name, job.config.layer_names), job.config)
        return "read"


class Sidecars(Windows):
    """Files beside rasters, as GDAL looks for: honoured as rslearn does, or told by name."""

    _NAMES = (
        "geotiff.tif.msk", "geotiff.tif.ovr", "geotiff.tif.aux.xml", "geotiff.aux", "geotiff.tfw",
        "geotiff.tifw", "geotiff.wld", "geotiff.prj", "geotiff.aux.xml", "geotiff.TFW",
        "GEOTIFF.TIF.MSK", "geotiff.tif.tmp", "geotiff_rpc.txt", "geotiff.RPB", "geotiff.IMD",
        "geotiff.xml", "README", "metadata.json.bak", "geotiff.vrt",
    )  # fmt: skip

    def damage(self, rng: random.Random, folder: Path) -> str:
        raster = rng.choice(sorted(folder.rglob("geotiff.tif")))
        path = raster.with_name(rng.choice(self._NAMES))
        band = '<PAMDataset><PAMRasterBand band="1">{}</PAMRasterBand></PAMDataset>'
        mean = f'<MDI key="STATISTICS_MEAN">{rng.random()}</MDI>'
        statistics = band.format(f"<Metadata>{mean}</Metadata>")
        nodata = band.format("<NoDataValue>7</NoDataValue>")
        content = rng.choice(
            (statistics.encode(), nodata.encode(), b"0\n1\n2\n3\n4\n5\n",
             raster.read_bytes(), b"", b"x", mutation.mutate_bytes(rng, statistics.encode()))
        )  # fmt: skip
        path.write_bytes(content)
        return f"{path.relative_to(folder.parents[2])} beside it: {content[:200]!r}"


class SqliteWindows(Kind):
    """A database of windows with odd values and damaged pages: read, or told what is wrong."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        whole = factories.segmentation(folder / "whole", windows=6, timesteps=1)
        self.source = rewritten(whole, folder / "sqlite", sqlite=True)
        self.database = (self.source / DATABASE).read_bytes()

    def try_one(self, rng: random.Random) -> Counter[str]:
        path = self.source / DATABASE
        path.write_bytes(self.database)
        if rng.random() < 0.5:
            path.write_bytes(mutation.mutate_bytes(rng, self.database))
        else:
            self._odd(rng, path)
        try:
            job = make_job(self.source, self.folder / "root", "fuzzed", max_invalid_fraction=1.0)
            found = list(job.source.windows(job.source.groups(), job.config.layer_names))
            for files in found:
                read_window(job.source, files, job.config)
        except EvalIngestError as error:
            check_message(error)
            return Counter({type(error).__name__: 1})
        return Counter({f"{len(found)} windows": 1})

    def _odd(self, rng: random.Random, path: Path) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            [(table,)] = database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'windows'"
            )
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            value = mutation.odd_value(rng)
            with contextlib.suppress(sqlite3.Error, OverflowError, UnicodeEncodeError):
                database.execute(
                    f"UPDATE {table} SET {rng.choice(columns)} = ?",
                    (json.dumps(value) if isinstance(value, list | dict) else value,),
                )


_NUMBER = re.compile(r"(?<![\w.\"'-])-?\d+(?:\.\d+)?(?![\w.\"'])")


class Numbers(Configurations):
    """Numbers of configurations, written as numbers may be written: huge, negative, no number.

    What is resolved is good enough to read windows with, in bounds of time and memory.
    """

    inputs_per_case = 10
    _TEXTS = (
        "1e400", "-1e400", "1e-400", "-1", "-0", "-0.0", "0", "1", "99999999999999999999", "1e9",
        "2147483648", "9223372036854775808", "1" + "0" * 5000, ".nan", "NaN", ".inf", "-Infinity",
        "0x7fffffff", "0o17", "017", "1_000", "1:30", "1.5", "5e-324", "1.7976931348623157e308",
        "true", "null", '"12"', "[1]", "{}", "0.1e", "1e", "--1", "+1", "1.", ".5",
    )  # fmt: skip

    def try_one(self, rng: random.Random) -> Counter[str]:
        outcome: Counter[str] = Counter()
        for _ in range(self.inputs_per_case):
            source, path = self.copied(rng)
            text = path.read_text()
            places = list(_NUMBER.finditer(text))
            if places:
                place = rng.choice(places)
                text = text[: place.start()] + rng.choice(self._TEXTS) + text[place.end() :]
                path.write_text(text)
            outcome[self._read(source)] += 1
        return outcome

    def _read(self, source: Path) -> str:
        try:
            job = make_job(self.work, self.folder / "root", "fuzzed")
        except EvalIngestError as error:
            check_message(error)
            return type(error).__name__
        reader: Any = LocalSource(str(source))
        for group, name, _ in list(reader.names(reader.groups()))[:1]:
            read_window(reader, reader.window(group, name, job.config.layer_names), job.config)
        return "read"
