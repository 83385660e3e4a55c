"""Datasets of somebody else: every file of them may say anything, with a checksum that is right."""

import ast
import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import eval_ingest
from eval_ingest import EvalDataset
from eval_ingest.core.entry import Metadata, opening
from eval_ingest.core.public import require_public
from eval_ingest.engine import no_progress
from eval_ingest.errors import EvalIngestError
from eval_ingest.integrations import huggingface
from eval_ingest.report.export import export_dataset
from eval_ingest.report.writing import write_report
from eval_ingest.store.registry import rebuild_registry, require_opening
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.seal import UNSEALED, sealed_bytes, write_sealed_json
from eval_ingest.store.tables import write_table
from eval_ingest.sweep.tasks import as_overrides, as_python, trainer_tasks
from eval_ingest_tests.support import factories, killing, poison
from eval_ingest_tests.support.fuzz_kinds import Fault, Watched, check_message

_MARKUP = "<script>alert(1)</script>"
_ODD: tuple[Any, ...] = (
    None, -1, 0, 10**30, 2**63, 1.5, True, "", "x" * 3_000, _MARKUP, "\x1b[31mred\x07", "a\nb",
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
        self.roots = []
        for number, make in enumerate(makers):
            root = folder / f"root_{number}"
            killing.Run(str(make(folder / f"source_{number}", windows=9)), root).do()
            export_dataset(EvalRoot(root), "crops", folder / f"hub_{number}", windows=number == 0)
            self.roots.append(folder / f"hub_{number}")

    def change(self, rng: random.Random, watch: poison.Watch) -> tuple[str, Callable[[], str]]:
        shutil.copytree(rng.choice(self.roots), self.work)
        return self._forge(rng, watch), partial(self._pull, rng)

    # ------------------------------------------------------------------------------- forging

    def _forge(self, rng: random.Random, watch: poison.Watch) -> str:
        """Have a file say something else; returns what."""
        odd = rng.choice([*_ODD, *(value for _, value in watch.values())])
        files = sorted(self.work.glob("crops/*.json"))
        files += [self.work / "crops" / "metadata.json"] * len(files)
        files += sorted(self.work.glob("crops/**/*.parquet")) + sorted(
            self.work.glob("crops/*/*.arrow")
        )
        path = rng.choice([path for path in files if "windows" not in path.parts])
        where = (
            self._table(path, rng, odd) if path.suffix != ".json" else self._json(path, rng, odd)
        )
        return f"{odd!r:.80} at {where} of {path.relative_to(self.work)}"

    def _json(self, path: Path, rng: random.Random, odd: Any) -> str:
        content = json.loads(path.read_text())
        place = rng.choice(
            [p for p in poison.places(content) if p[0] not in ("checksum", "version")]
        )
        change = poison.added if rng.random() < 0.2 else poison.poisoned
        forged = change(content, place, odd)
        if rng.random() < 0.1 and isinstance(content[place[0]], dict) and content[place[0]]:
            forged = poison.poisoned(
                content, place[:1], {str(odd): next(iter(content[place[0]].values()))}
            )
        forged.pop("checksum", None)
        content = json.dumps(
            {**forged, "checksum": UNSEALED}
        )  # infinities and halves of characters
        path.write_bytes(sealed_bytes(content.encode()))
        if path.name == "metadata.json":
            with contextlib.suppress(Exception):  # as whoever published it would have had it
                few = opening(Metadata.model_validate(forged))
                dumped = few.model_dump(mode="json", by_alias=True, exclude_defaults=True)
                write_sealed_json(
                    path.with_name("opening.json"), {"version": few.version, **dumped}
                )
        return ".".join(map(str, place))

    def _table(self, path: Path, rng: random.Random, odd: Any) -> str:
        """Another value in a cell of a column that can hold it, or a fact."""
        table = (
            pa.ipc.open_file(path).read_all() if path.suffix == ".arrow" else pq.read_table(path)
        )
        facts = json.loads((table.schema.metadata or {}).get(b"eval_ingest", b'{"": 0}'))
        if rng.random() < 0.1:
            place = rng.choice(list(poison.places(facts)))
            facts = poison.poisoned(facts, place, odd)
            where = ".".join(map(str, place))
        else:
            where = rng.choice(table.column_names)
            values = table[where].to_pylist()
            for value in (odd, str(odd)[:500], rng.choice((-1, 2**31 - 1, 2**40)), None):
                with contextlib.suppress(Exception):
                    values[rng.randrange(len(values))] = value
                    changed = pa.array(values, table.schema.field(where).type)
                    table = table.set_column(table.column_names.index(where), where, changed)
                    break
        with contextlib.suppress(UnicodeEncodeError):
            write_table(path, table, facts)
        return where

    # --------------------------------------------------------------------------------- using

    def _pull(self, rng: random.Random) -> str:
        """Pull it, and all that a user does with what was pulled."""
        root, pulled = EvalRoot(self.work), False
        with contextlib.suppress(EvalIngestError):
            huggingface._verified(root, "crops", no_progress)
            rebuild_registry(root)
            pulled = True
        for use in self._uses(rng) if pulled else self._opened():
            said = io.StringIO()
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    text = use()
            except EvalIngestError as error:
                check_message(error)
                text = str(error)
            if "\x1b[31m" in text + said.getvalue() or "\x07" in text:
                raise Fault(f"a terminal would obey what is said: {text[:300]!r}")
        return "pulled" if pulled else "refused"

    def _opened(self) -> Iterator[Callable[[], str]]:
        """What is opened on the Hub isn't pulled, and less of it is looked at."""
        opened = False
        with contextlib.suppress(EvalIngestError):
            require_public(require_opening(EvalRoot(self.work), "crops"))
            opened = True
        if opened:
            yield lambda: self._load("train")

    def _uses(self, rng: random.Random) -> Iterator[Callable[[], str]]:
        root = self.work
        yield lambda: repr(eval_ingest.list_datasets(root))
        yield lambda: repr(eval_ingest.info("crops", root))
        yield lambda: repr(eval_ingest.verify("crops", root))
        for split in ("train", "val", "test"):
            yield lambda split=split: self._load(split)  # type: ignore[misc]
        yield self._tasks
        if rng.random() < 0.1:
            yield self._report
        if rng.random() < 0.1:
            yield lambda: str(eval_ingest.export("crops", self.out / "export", root=root))
        if rng.random() < 0.1:
            yield lambda: repr(
                eval_ingest.publish(
                    "crops", "hf://org/x", root=root, licence="MIT", citation="", dry_run=True
                )
            )

    def _load(self, split: str) -> str:
        found = EvalDataset("crops", split, root=self.work)
        if _MARKUP in found._repr_html_():
            raise Fault("markup is shown as such in a notebook")
        if len(found):
            assert found[0] and found[len(found) - 1]
        return repr(found)

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
