"""Adoptions and removals that are stopped at any one of their changes, and gone on with.

    python -m eval_ingest_tests.support.stopping [N]     every change, every Nth by SIGKILL: a table

On a disk a change is what an audit hook counts (a file opened for writing, a rename, a removal, a
new folder), and the process is killed before it, or an exception is raised there; in a bucket it is
a write or a deletion, stopped before it is sent or before its answer is heard.
"""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args
from unittest.mock import patch

from eval_ingest import api
from eval_ingest.adopting import adopt, adoptable
from eval_ingest.engine import no_progress
from eval_ingest.objects.writing import WritableObjects
from eval_ingest.settings import Settings
from eval_ingest.store.registry import read_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.verifying import verify_dataset
from eval_ingest_tests.support import factories, faults
from eval_ingest_tests.support.killing import KILLED, Run, changes, start

THEIRS = '{"name": "crops",  "task_type": "segmentation", "num_classes": 4, "x": 1e-05}'
Kind = Literal["adopt", "remove", "give back"]


class Stopped(BaseException):
    """Whoever does the work is stopped, as by Ctrl-C."""


@dataclass(frozen=True)
class Work(Run):
    """An adoption, or a removal, in place of an ingest."""

    kind: Kind = "adopt"

    def do(self, progress: Callable[[str, int, int], None] = no_progress) -> None:
        if self.kind == "adopt":
            adopt(Settings(eval_root=str(self.root), workers=1), "crops", progress=progress)
        else:
            api.remove("crops", self.root)


def their_root(folder: Path, windows: int = 4) -> Path:
    """A root with `other`, ours, and `crops`, as another tool has left and registered it."""
    source = factories.segmentation(folder / "source", windows=windows, timesteps=1, size=16)
    root = folder / "base"
    Run(str(source), root, "other").do()
    Run(str(source), folder / "copied").do()
    (root / "crops").mkdir()
    shutil.copytree(folder / "copied" / "crops" / "windows", root / "crops" / "windows")
    for name in ("config.json", "model.yaml"):
        shutil.copy(folder / "copied" / "crops" / name, root / "crops" / name)
    ours = read_registry(EvalRoot(root))["other"]
    text = json.dumps({"datasets": {"other": ours}})[:-2] + f', "crops": {THEIRS}' + "}}"
    (root / "registry.json").write_text(text)
    return root


@dataclass
class Case:
    """A kind of work on a root, what it is like before and after, and how many changes it makes."""

    kind: Kind
    folder: Path
    root: Path = field(init=False)
    contents: dict[str, bytes | None] = field(init=False)
    """Every file of the root, and None for every folder, as they are before."""
    before: dict[str, str] = field(init=False)
    after: dict[str, str] = field(init=False)
    theirs: dict[str, str] = field(init=False)
    changes: int = 0

    def __post_init__(self) -> None:
        self.root = their_root(self.folder)
        self.theirs = _files(self.root / "crops")
        if self.kind == "remove":
            source = _registered(self.root)["other"]["source_path"]
            shutil.rmtree(self.root / "crops")
            (self.root / "registry.json").unlink()
            Run(source, self.root).do()
        elif self.kind == "give back":
            Work("", self.root, kind="adopt").do()
        self.contents = {
            str(path.relative_to(self.root)): path.read_bytes() if path.is_file() else None
            for path in self.root.rglob("*")
        }
        self.before = self._state()
        with self._restored(), changes(self.root) as counted:
            self._run.do()
            self.changes, self.after = counted.number, self._state()

    @property
    def _run(self) -> Work:
        return Work("", self.root, kind=self.kind)

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        """The root is afterwards what it was: their windows stay, an inode is part of a version."""
        try:
            yield
        finally:
            for path in sorted(self.root.rglob("*"), reverse=True):
                if str(path.relative_to(self.root)) not in self.contents:
                    path.rmdir() if path.is_dir() else path.unlink()
            for name, data in sorted(self.contents.items()):
                path = self.root / name
                if data is None:
                    path.mkdir(exist_ok=True)
                elif not path.exists() or path.read_bytes() != data:
                    path.write_bytes(data)

    def _state(self) -> dict[str, str]:
        """Everything that the root holds, but for times and locks."""
        root = self.root
        found = faults.snapshot(root) if (root / "crops").exists() else {}
        found |= {f"registered {n}": json.dumps(sorted(e)) for n, e in _registered(root).items()}
        found |= {f"catalog {p.name}": p.read_text() for p in root.glob("catalog/[!.]*.yaml")}
        return found | dict.fromkeys(faults.strays(root), "stray")

    def interrupt(self, change: int) -> None:
        """One case: an exception in the place of a change."""
        with self._restored():
            with contextlib.suppress(Stopped), changes(self.root, change, Stopped):
                self._run.do()
            self._check(self.root)

    def kill(self, change: int) -> None:
        """One case: SIGKILL before a change."""
        with self._restored():
            process = start(self._run, self.folder / "log", kill_at=change)
            assert process.wait() in (KILLED, 0), process.text
            self._check(self.root)

    def _check(self, root: Path) -> None:
        if self.kind != "remove":
            files = _files(root / "crops")
            faults.expect("their files", {p: files.get(p) for p in self.theirs}, self.theirs)
        assert faults.values(root, "other")
        if self.kind == "adopt":
            there = "crops" in _registered(root) and (root / "crops/metadata.json").exists()
            assert adoptable(EvalRoot(root)) == ([] if there else ["crops"])
            self._run.do()
            assert verify_dataset(EvalRoot(root), "crops", no_progress).problems == []
        else:
            api.list_datasets(root)  # any command at all
            if "fingerprint" in _registered(root).get("crops", {}):  # nothing was done yet
                faults.expect("undone", self._state(), self.before)
                assert faults.values(root)
                self._run.do()
        faults.expect("what it comes to", self._state(), self.after)


def _registered(root: Path) -> dict[str, Any]:
    return read_registry(EvalRoot(root))


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@contextlib.contextmanager
def requests(stop_at: int = 0, late: bool = False) -> Iterator[list[str]]:
    """The writes and deletions in buckets; one of them, and all after it, are stopped.

    Args:
        stop_at: its number, from 1 on; 0: none.
        late: the first is done, and its answer is never heard.
    """
    done: list[str] = []

    def stopping(method: Callable[..., Any]) -> Callable[..., Any]:
        async def request(self: WritableObjects, *arguments: Any) -> Any:
            done.append(str(arguments[0]))
            if 0 < stop_at < len(done) + (not late):
                raise Stopped
            result = await method(self, *arguments)
            if stop_at == len(done):
                raise Stopped
            return result

        return request

    names = ("_put", "upload", "_delete")
    new = {name: stopping(getattr(WritableObjects, name)) for name in names}
    with patch.multiple(WritableObjects, **new):
        yield done


def main(every: int = 1) -> None:
    """Stop each kind of work before each of its changes, in both ways."""
    print("| | changes | by an exception | by SIGKILL | lost |\n|---|---|---|---|---|", flush=True)
    for kind in get_args(Kind):
        with tempfile.TemporaryDirectory() as folder:
            case = Case(kind, Path(folder))
            ways = ((case.interrupt, 1), (case.kill, every))
            tried, lost = [], []
            for stop, step in ways:
                numbers = range(1, case.changes + 1, step)
                tried.append(len(numbers))
                for change in numbers:
                    try:
                        stop(change)
                    except AssertionError as error:
                        lost.append(f"{kind}, {stop.__name__} at {change}: {error}")
            counts = " | ".join(map(str, [case.changes, *tried, len(lost)]))
            print(f"| {kind} | {counts} |", *lost, sep="\n", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
