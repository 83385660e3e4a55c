"""What an eval root shares with others, and what commands and sensors keep, says anything.

registry.json, which other tools write; rows of sweeps; what another tool has registered, and is to
be adopted; what looks at watched folders, the sensor and stopped runs have kept.
"""

import contextlib
import copy
import functools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

import eval_ingest
from eval_ingest.adopting import adopt
from eval_ingest.core.entry import is_ours
from eval_ingest.defs.known_datasets import _parse
from eval_ingest.defs.sensors import look
from eval_ingest.errors import EvalIngestError
from eval_ingest.pipeline import ingest
from eval_ingest.report.terminal import info_lines
from eval_ingest.settings import Settings
from eval_ingest.sources.looks import Memory
from eval_ingest.store.manifest import JOURNAL, journal_text, read_journal
from eval_ingest.store.registry import read_registry, rebuild_registry, require_metadata
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.seal import UNSEALED, sealed_bytes
from eval_ingest.sweep.results import board_lines, write_row
from eval_ingest.sweep.tasks import as_overrides, as_python, trainer_tasks
from eval_ingest.watching import judge_all, survey
from eval_ingest_tests.support import faults, poison, stopping
from eval_ingest_tests.support.fake_scores import score
from eval_ingest_tests.support.fuzz_forged import ODD
from eval_ingest_tests.support.fuzz_kinds import Fault, Watched, is_refused, make_job

FILES = ("registry.json", "registry.json", "rows", "looks", "judged", "cursor", "journal")


class Shared(Watched):
    """A root with `other`, ours, and `crops`, another tool's; `other` stays what it was."""

    inputs_per_case = 8

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.base = folder / "base"
        root = stopping.their_root(self.base)
        root.rename(self.base / "root")
        root = self.base / "root"
        text = (root / "registry.json").read_text().replace(str(self.base / "base"), str(root))
        (root / "registry.json").write_text(text)
        rebuild_registry(EvalRoot(root))
        self.expected = faults.values(root, "other")
        shutil.copytree(self.base / "source", self.base / "second")
        for k, encoder in enumerate(("pixels", "constant")):
            row = score("other", "v", encoder, 0.5 + k / 10, f"2026-01-0{k + 1}T00:00:00")
            write_row(root / "sweep_results", row)
        self.settings = Settings(
            eval_root=str(self.work / "root"), catalog=str(self.work / "catalog"), workers=1,
            cache=str(self.work / "cache"),
            studio_roots=(str(self.base / "source"), str(self.base / "second")),
        )  # fmt: skip

    def change(self, rng: random.Random, watch: poison.Watch) -> tuple[str, Callable[[], str]]:
        shutil.copytree(self.base / "root", self.work / "root")
        odd, self.another = rng.choice([*ODD, *(value for _, value in watch.values())]), False
        file = rng.choice(FILES)
        if file == "cursor":
            cursor = self._forged(self._tick(None), rng, odd)
            return f"{odd!r:.80} in a cursor", partial(self._used, rng, lambda: self._tick(cursor))
        path = self._made(file)
        if file == "journal":
            entries = [dict(json.loads(line[9:])) for line in path.read_bytes().splitlines()]
            forged = json.loads(self._forged(json.dumps(entries), rng, odd if odd != "DEEP" else 0))
            with contextlib.suppress(UnicodeEncodeError):
                path.write_bytes(journal_text(forged))
        else:
            self._write(path, rng, odd)
        uses = {"rows": self._scores, "looks": self._look, "judged": self._look}
        use = uses.get(file, partial(self._adopted, rng))
        if file == "journal":
            use = partial(self._ingested, path)
        self.another = isinstance(odd, dict)  # it may be what another tool says
        return f"{odd!r:.80} in {path.relative_to(self.work)}", partial(self._used, rng, use)

    def _made(self, file: str) -> Path:
        """A file of this kind, as we or others write it."""
        root, cache = self.work / "root", self.work / "cache"
        if file == "registry.json":
            return root / file
        if file == "rows":
            return next((root / "sweep_results" / "rows").iterdir())
        if file == "journal":
            path = root / "other" / JOURNAL
            shutil.rmtree(root / "other" / "windows" / "default", ignore_errors=True)
            copied = {"group": "default", "name": "w0", "source_digest": "d", "split": "train",
                      "n_files": 3, "n_bytes": 9, "checksum": "a1"}  # fmt: skip
            path.write_bytes(journal_text([copied, {"group": "default", "name": "w1"}]))
            return path
        self._look()
        return next((cache / file).iterdir())

    def _write(self, path: Path, rng: random.Random, odd: Any) -> None:
        content = json.loads(path.read_text())
        sealed = isinstance(content, dict) and content.pop("checksum", None) is not None
        text = self._forged(json.dumps(content), rng, odd)
        # The registry of others has no checksum; what is ours has one, whoever has written it.
        if sealed and (path.name != "registry.json" or rng.random() < 0.5):
            text = f'{text[:-1]}, "checksum": "{UNSEALED}"}}'
            path.write_bytes(sealed_bytes(text.encode()))
        else:
            path.write_bytes(text.encode())

    @staticmethod
    def _forged(text: str, rng: random.Random, odd: Any) -> str:
        content = json.loads(text)
        place = rng.choice(list(poison.places(content)))
        if rng.random() < 0.2:
            forged = copy.deepcopy(content)
            holder = functools.reduce(lambda value, key: value[key], place[:-1], forged)
            del holder[place[-1]]
        else:
            forged = poison.poisoned(content, place, odd)
        return json.dumps(forged).replace('"DEEP"', "[" * 9_999 + "]" * 9_999)

    # --------------------------------------------------------------------------------- using

    def _used(self, rng: random.Random, use: Callable[[], str]) -> str:
        end = "used"
        for one in (use, *self._uses()):
            if is_refused(one):
                end = "refused"
        if faults.values(self.work / "root", "other") != self.expected:
            raise Fault("what is ours gives other samples")
        rebuild_registry(EvalRoot(self.work / "root"))
        entry = read_registry(EvalRoot(self.work / "root")).get("other")
        if not (is_ours(entry) or self.another):
            raise Fault("what is ours isn't registered any more")
        return end

    def _uses(self) -> Iterator[Callable[[], str]]:
        root = self.work / "root"
        yield lambda: str(eval_ingest.list_datasets(root))
        yield lambda: "\n".join(info_lines(eval_ingest.info("other", root).metadata, "here"))
        yield lambda: "\n".join([*as_overrides(trainer_tasks(EvalRoot(root))),
                                 as_python(trainer_tasks(EvalRoot(root)))])  # fmt: skip

    def _adopted(self, rng: random.Random) -> str:
        """What another tool has registered becomes loadable, and is given back."""
        root = self.work / "root"
        told = adopt(self.settings, "crops", correct=rng.random() < 0.5)
        values = faults.values(root, "crops")
        if not values or require_metadata(EvalRoot(root), "crops").source.startswith("http"):
            raise Fault("adopted, and there is no sample")
        return f"{told}{eval_ingest.remove('crops', root)}"

    def _scores(self) -> str:
        out = self.work / "root" / "sweep_results"
        boards = eval_ingest.leaderboard(out)
        text = "\n".join(line for board in boards for line in board_lines(board))
        return text + str(eval_ingest.info("other", self.work / "root", out=out))

    def _look(self) -> str:
        """`discover`, which remembers what it has seen."""
        found = survey(self.settings.studio_roots, self.settings, memory=partial(Memory))
        judged = judge_all(found.sightings, self.settings)
        if sorted(judgement.state for judgement in judged) != ["new", "registered"]:
            raise Fault(f"what is registered is taken for {judged}")
        return str(judged)

    def _tick(self, cursor: str | None) -> str:
        """What a tick of the sensor leaves for the next."""
        _parse(cursor, self.settings.eval_root)
        with (
            dg.DagsterInstance.ephemeral() as instance,
            dg.build_sensor_context(instance=instance, cursor=cursor) as context,
        ):
            left = look(context, self.settings).cursor
        assert left
        return left

    def _ingested(self, path: Path) -> str:
        """A run goes on from the journal of one that was stopped."""
        list(read_journal(path))
        told = ""
        with contextlib.suppress(EvalIngestError):
            told = repr(eval_ingest.verify("other", self.work / "root"))
        source = require_metadata(EvalRoot(self.work / "root"), "other").source
        return told + str(ingest(make_job(Path(source), self.work / "root", "other")))
