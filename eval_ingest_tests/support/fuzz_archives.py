"""Damaged archives, with GNU tar and gzip as the oracles."""

import gzip
import io
import random
import shutil
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

from eval_ingest.errors import EvalIngestError
from eval_ingest.sources.archive import _TREE, open_archive
from eval_ingest_tests.support import factories, mutation
from eval_ingest_tests.support.fuzz_kinds import Fault, Kind, check_message


class Archives(Kind):
    """Tar archives: unpacked below their folder, or refused; what GNU tar refuses is refused."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        source = factories.segmentation(folder / "whole", windows=2, timesteps=1)
        self.members = {
            f"crops/{path.relative_to(source)}": path.read_bytes()
            for path in sorted(source.rglob("*"))
            if path.is_file()
        }
        self.inside = folder / "inside"

    def try_one(self, rng: random.Random) -> Counter[str]:
        shutil.rmtree(self.inside, ignore_errors=True)
        self.inside.mkdir()
        path = self.inside / "crops.tar"
        path.write_bytes(mutation.mutate_archive(rng, self.members))
        outcome = "unpacked"
        try:
            open_archive(str(path), self.inside / "a" / "archives")
        except EvalIngestError as error:
            check_message(error)
            outcome = type(error).__name__
        if (
            outcome == "unpacked"
            and subprocess.run(["tar", "-tf", path], capture_output=True).returncode
        ):
            raise Fault(f"GNU tar refuses what was unpacked: {path.read_bytes()[:600]!r}")
        outside = [p for p in self.inside.rglob("*escaped*") if "archives" not in p.parts]
        links = [p for p in self.inside.rglob("*") if p.is_symlink()]
        if outside or links or Path("/tmp/eval_ingest_escaped").exists():
            raise Fault(f"an archive left its folder: {outside or links}")
        left = [p.name for p in self.inside.glob("a/archives/.*") if p.suffix != ".lock"]
        if left:
            raise Fault(f"left behind: {left}")
        return Counter({outcome: 1})


_STRICTER = (
    "zeros", "archive behind", "link", "sparse", "device", "absolute", "leads", "twice", "name",
    "pax", "checksum", "members", "reaches", "bytes", "tar", "no rslearn dataset", "config.json",
)  # fmt: skip
"""Words of refusals of what tar reads: it passes over what would lose or misplace members."""


class Flipped(Kind):
    """Archives of which one byte after the other is flipped, each once.

    What tar or gzip refuse is refused, and what is unpacked is what tar unpacks, to the byte.
    """

    inputs_per_case = 32
    """Neighbouring bytes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.inside = folder / "inside"
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, data in {
                "crops/config.json": b'{"layers": {}}',
                f"crops/windows/{'g' * 90}/w/{'n' * 30}.json": b"{}" * 300,
                "crops/windows/g/v/metadata.json": b"",
            }.items():
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(data), 1_700_000_000
                archive.addfile(member, io.BytesIO(data))
        whole = stream.getvalue()
        self.archives = {".tar": whole, ".tar.gz": gzip.compress(whole, mtime=0)}

    def try_one(self, rng: random.Random) -> Counter[str]:
        suffix = rng.choice(list(self.archives))
        data = self.archives[suffix]
        first = rng.randrange(0, len(data), self.inputs_per_case)
        outcome: Counter[str] = Counter()
        for place in range(first, min(first + self.inputs_per_case, len(data))):
            flipped = bytearray(data)
            flipped[place] ^= 1 << rng.randrange(8)
            outcome[self._unpack(suffix, bytes(flipped), f"{suffix} byte {place}")] += 1
        return outcome

    def _unpack(self, suffix: str, data: bytes, what: str) -> str:
        shutil.rmtree(self.inside, ignore_errors=True)
        theirs = self.inside / "theirs"
        theirs.mkdir(parents=True)
        path = self.inside / f"crops{suffix}"
        path.write_bytes(data)
        refused = subprocess.run(
            ["tar", "-xf", path, "-C", theirs], capture_output=True, check=False
        ).returncode
        if suffix == ".tar.gz":
            refused |= subprocess.run(["gzip", "-t", path], capture_output=True).returncode
        try:
            ours = open_archive(str(path), self.inside / "ours").unpacked / _TREE
        except EvalIngestError as error:
            check_message(error)
            if not refused and not any(word in str(error) for word in _STRICTER):
                raise Fault(f"{what}: tar reads it, and we say: {error}") from error
            return "refused by both" if refused else "refused by us alone"
        if refused:
            raise Fault(f"{what}: GNU tar or gzip refuse what was unpacked")
        if _files(ours) != _files(theirs):
            raise Fault(f"{what}: {_files(ours).keys()} are not what tar unpacks")
        return "unpacked"


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
