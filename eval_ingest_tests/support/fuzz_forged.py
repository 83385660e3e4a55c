"""Datasets of somebody else: every file of them may say anything, with a checksum that is right."""

import ast
import contextlib
import copy
import functools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import eval_ingest
from eval_ingest import EvalDataset
from eval_ingest.core.entry import Metadata, opening
from eval_ingest.core.public import require_public
from eval_ingest.defs.checks import evaluations
from eval_ingest.defs.metadata import stage_metadata
from eval_ingest.engine import no_progress
from eval_ingest.errors import EvalIngestError
from eval_ingest.integrations import huggingface
from eval_ingest.job import open_job
from eval_ingest.pipeline import Outcome
from eval_ingest.report.export import export_dataset
from eval_ingest.report.terminal import info_lines
from eval_ingest.report.writing import write_report
from eval_ingest.settings import Settings
from eval_ingest.store.atomic import file_crc32c
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.registry import rebuild_registry, require_metadata, require_opening
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.seal import UNSEALED, sealed_bytes, write_sealed_json
from eval_ingest.store.tables import write_table
from eval_ingest.sweep.tasks import as_overrides, as_python, trainer_tasks
from eval_ingest_tests.support import factories, killing, poison
from eval_ingest_tests.support.fuzz_kinds import Fault, Watched, is_refused
from eval_ingest_tests.support.sealed import saying

_MARKUP = "<script>alert(1)</script>"
ODD: tuple[Any, ...] = (
    None, -1, 0, 65_536, 10**30, 10**400, 2**63, 1.5, True, "DEEP", "y" * 1_000_000, "",
    "x" * 3_000, _MARKUP, "\x1b[31mred\x07", "a\nb",
    "![x](http://127.0.0.1:9/x)", "../../x", "/etc/passwd", "{{7*7}}", "${HOME}", "\ud800", [], {},
    [[[]]], {"a": {"b": [1]}}, float("nan"), float("inf"), "'''\"\"\"\\", "None)",
    "__import__('os')",
)  # fmt: skip
"""What is no program, and still odd where another kind of value is expected."""


class Forged(Watched):
    """Files of a dataset that was pulled, with other values and right checksums.

    Nothing is run, opened or fetched, nothing is written elsewhere, and nobody who uses the dataset
    gets a traceback.
    """

    inputs_per_case = 6

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        makers = (
            factories.segmentation,
            factories.vector_classification,
            factories.scalar_regression,
        )
        self.roots: list[tuple[Path, Path | None]] = []
        """Eval roots, and what was ingested there; of what is pulled, that isn't known."""
        for number, make in enumerate(makers):
            root, hub = folder / f"root_{number}", folder / f"hub_{number}"
            source = make(folder / f"source_{number}", windows=9)
            killing.Run(str(source), root).do()
            export_dataset(EvalRoot(root), "crops", hub, windows=number == 0)
            self.roots += [(hub, None), (root, source)]

    def change(self, rng: random.Random, watch: poison.Watch) -> tuple[str, Callable[[], str]]:
        root, source = rng.choice(self.roots)
        shutil.copytree(root, self.work)
        return self._forge(rng, watch), partial(self._used, rng, source)

    # ------------------------------------------------------------------------------- forging

    def _forge(self, rng: random.Random, watch: poison.Watch) -> str:
        """Have a file say something else; returns what."""
        odd = rng.choice([*ODD, *(value for _, value in watch.values())])
        dataset = self.work / "crops"
        files = sorted([*dataset.glob("*.json"), *dataset.glob(".rslearn*/*.json")])
        files += [dataset / "metadata.json", dataset / "opening.json"] * (len(files) // 2)
        files += [*dataset.glob("*.parquet"), *dataset.glob("*/*.arrow")] * 2
        files += sorted(dataset.glob("samples/*/*"))
        path = rng.choice([path for path in files if path.exists()])
        kinds = {".json": self._json, ".npy": self._array}
        where = kinds.get(path.suffix, self._table)(path, rng, odd)
        return f"{odd!r:.80} at {where} of {path.relative_to(self.work)}"

    def _json(self, path: Path, rng: random.Random, odd: Any) -> str:
        content = json.loads(path.read_text())
        content.pop("checksum", None)
        place = rng.choice([p for p in poison.places(content) if p != ("version",)])
        kind = rng.choice(
            (*["another value"] * 6, "more", "less", "twice", "under another key", "absent")
        )
        absent = sorted(Metadata.model_fields.keys() - content.keys())
        forged = copy.deepcopy(content)
        holder = functools.reduce(lambda value, key: value[key], place[:-1], forged)
        here = holder[place[-1]]
        if kind == "less":
            del holder[place[-1]]
        elif kind == "absent" and absent:
            place = (rng.choice(absent),)
            counts = {"class_counts": rng.choice((odd, {"train": odd}))}
            forged[place[0]] = rng.choice((odd, counts))
            if rng.random() < 0.5:
                forged |= {"norm_stats": {}}
        elif kind == "twice" and isinstance(holder, list):
            holder.append(here)
        elif kind == "more" and isinstance(here, dict):
            here["added"] = odd
        elif kind == "under another key" and isinstance(holder, dict):
            holder[str(odd)] = holder.pop(place[-1])
        else:
            holder[place[-1]] = odd
        # infinities and halves of characters, as well
        text = json.dumps({**forged, "checksum": UNSEALED})
        path.write_bytes(sealed_bytes(text.replace('"DEEP"', "[" * 9_999 + "]" * 9_999).encode()))
        if path.name == "metadata.json":
            with contextlib.suppress(Exception):  # as whoever published it would have had it
                few = opening(Metadata.model_validate(forged))
                dumped = few.model_dump(mode="json", by_alias=True, exclude_defaults=True)
                write_sealed_json(
                    path.with_name("opening.json"), {"version": few.version, **dumped}
                )
        return f"{kind}: {'.'.join(map(str, place))}"

    def _table(self, path: Path, rng: random.Random, odd: Any) -> str:
        """Other values, columns, rows or facts."""
        table = (
            pa.ipc.open_file(path).read_all() if path.suffix == ".arrow" else pq.read_table(path)
        )
        facts = json.loads((table.schema.metadata or {}).get(b"eval_ingest", b'{"": 0}'))
        where = rng.choice(table.column_names)
        at = table.column_names.index(where)
        kind = rng.choice((*["values"] * 5, "facts", "column", "type", "twice", "rows", "texts"))
        if kind == "facts":
            place = rng.choice(list(poison.places(facts)))
            facts = poison.poisoned(facts, place, odd)
            where = ".".join(map(str, place))
        elif kind == "column":
            table = table.drop_columns(where)
        elif kind == "twice":
            table = table.append_column(where, table[where])
        elif kind == "type":
            other = rng.choice((pa.string(), pa.int64(), pa.float64(), pa.list_(pa.int32())))
            with contextlib.suppress(pa.ArrowException, NotImplementedError):
                table = table.set_column(at, where, table[where].cast(other))
            if rng.random() < 0.5:
                table = table.set_column(at, where, pa.nulls(len(table), table[where].type))
        elif kind == "rows":
            rows = rng.choice(([], [0] * 3, range(len(table) - 1), reversed(range(len(table)))))
            table = table.take(pa.array([row for row in rows if row < len(table)], pa.int64()))
        elif kind == "texts" and pa.types.is_string(table[where].type) and len(table):
            data = rng.choice((b"\xff\xfe", b"\0", b"x" * 1_000_000, b"..", b"\x1b[31m\x07"))
            binary = pa.array([data] * len(table), pa.binary())
            table = table.set_column(at, where, binary.view(pa.string()))
        else:
            table = self._other_values(table, at, rng, odd)
        with contextlib.suppress(UnicodeEncodeError, ValueError):
            write_table(path, table, saying(facts))
        return f"{kind}: {where}"

    @staticmethod
    def _other_values(table: pa.Table, at: int, rng: random.Random, odd: Any) -> pa.Table:
        field, values = table.schema.field(at), table[at].to_pylist()
        numbers = (-1, 0, 7, 2**31 - 1, 2**40, 2**62, 1e300, float("nan"))
        lists = ([], [-1], [2**40] * 4, [0.5] * 3, [None], [[1]])
        wkb = b"\1\6\0\0\0\1\0\0\0" * 20_000 + b"\1\6\0\0\0\0\0\0\0"
        for value in (odd, str(odd)[:500], wkb, rng.choice(numbers), rng.choice(lists), None):
            for place in rng.choice(([0], range(len(values)))) if values else ():
                values[place] = value
            with contextlib.suppress(Exception):
                return table.set_column(at, field, pa.array(values, field.type))
        return table

    def _array(self, path: Path, rng: random.Random, odd: Any) -> str:
        """Other numbers in an array, or an array of another kind: with the records that it had."""
        found = np.load(path)
        kind = rng.choice(("numbers", "objects", "endian", "order", "shorter", "longer", "empty"))
        if kind == "numbers":
            number = rng.choice((-1, 7, 127, 30_000, float("nan"), float("inf"), 1e30))
            with contextlib.suppress(OverflowError, ValueError):
                found[rng.randrange(len(found))] = number
        elif kind == "endian":
            found = found.astype(found.dtype.newbyteorder(">"))
        elif kind == "order":
            found = np.asfortranarray(found)
        elif kind in ("shorter", "longer"):
            found = found[:-1] if kind == "shorter" else np.concatenate([found, found])
        if kind == "objects":
            np.save(path, np.array([_Touch(self.folder / "outside" / "secret_folder")]))
        elif kind == "empty":
            path.write_bytes(b"")
        else:
            np.save(path, found)
        for name in ("metadata.json", "opening.json"):
            self._recorded_anew(path, self.work / "crops" / name)
        return kind

    @staticmethod
    def _recorded_anew(path: Path, record: Path) -> None:
        """As whoever publishes other arrays would record them."""
        content = json.loads(record.read_text())
        content.pop("checksum", None)
        for shard in content["shards"]:
            if shard["name"] == path.parent.name:
                shard["arrays"][path.stem] |= {
                    "n_bytes": path.stat().st_size,
                    "crc32c": file_crc32c(path),
                }
        write_sealed_json(record, content)

    # --------------------------------------------------------------------------------- using

    def _used(self, rng: random.Random, source: Path | None) -> str:
        """Pull it, and all that a user does with what was pulled, or with what lies in a root."""
        root, pulled = EvalRoot(self.work), source is not None
        with contextlib.suppress(EvalIngestError):
            if source is None:
                huggingface._verified(root, "crops", no_progress)
            rebuild_registry(root)
            pulled = True
        for use in self._uses(rng, source) if pulled else self._opened():
            is_refused(use)
        return "pulled" if pulled else "refused"

    def _opened(self) -> Iterator[Callable[[], str]]:
        """What is opened on the Hub isn't pulled, and less of it is looked at."""
        opened = False
        with contextlib.suppress(EvalIngestError):
            require_public(require_opening(EvalRoot(self.work), "crops"))
            opened = True
        if opened:
            yield lambda: self._load("train", random.Random(0))

    def _uses(self, rng: random.Random, source: Path | None) -> Iterator[Callable[[], str]]:
        root, metadata = self.work, self.work / "crops" / "metadata.json"
        yield lambda: repr(eval_ingest.list_datasets(root))
        yield lambda: "\n".join(info_lines(eval_ingest.info("crops", root).metadata, "here"))
        yield lambda: repr(eval_ingest.verify("crops", root))
        for split in ("train", "val", "test"):
            yield partial(self._load, split, rng)
        yield self._tasks
        yield self._in_dagster
        seldom = (
            self._report,
            lambda: str(eval_ingest.export("crops", self.out / "export", root=root)),
            lambda: repr(
                eval_ingest.publish(
                    "crops", "hf://org/x", root=root, licence="MIT", citation="", dry_run=True
                )
            ),
            lambda: repr(eval_ingest.ingest("crops", source, root=root)),
        )
        yield from (use for use in seldom if rng.random() < 0.06)
        if metadata.exists():
            yield lambda: repr(eval_ingest.remove("crops", root))

    def _load(self, split: str, rng: random.Random) -> str:
        found = EvalDataset("crops", split, root=self.work, crop=rng.choice(("center", None)))
        if _MARKUP in found._repr_html_():
            raise Fault("markup is shown as such in a notebook")
        if len(found):
            assert found[0] and found[len(found) - 1]
            for batch in found.batches(2):
                assert batch
            if rng.random() < 0.3:
                assert found.windows.to_geopandas() is not None
                assert found.plot(0)._repr_png_()
        return repr(found)

    def _in_dagster(self) -> str:
        """What Dagster's pages show of it."""
        root = EvalRoot(self.work)
        spec = require_metadata(root, "crops").spec.model_copy(update={"source": "/nowhere"})
        job = open_job(spec, Settings(eval_root=str(self.work), workers=1))
        for stage in ("window_index", "split_assignment", "norm_stats", "weka_copy"):
            value = read_outcome(job.store, stage)
            stage_metadata(job, Outcome(stage, value, False, 0.0))
        keys = [dg.AssetKey("crops")]
        return repr([found.description for found in evaluations(root, "crops", keys)])

    def _tasks(self) -> str:
        tasks = trainer_tasks(EvalRoot(self.work))
        module = as_python(tasks)
        for node in ast.walk(ast.parse(module)):
            if isinstance(node, ast.Call) and "__import__" in ast.unparse(node.func):
                raise Fault(f"the module runs it: {module}")
        return "\n".join(as_overrides(tasks))

    def _report(self) -> str:
        for path in write_report(EvalRoot(self.work), "crops"):
            if path.suffix == ".html" and _MARKUP in path.read_text():
                raise Fault("markup is shown as such in the report")
        return ""


class _Touch:
    """Unpickled, it leaves a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.folder}/ran",)
