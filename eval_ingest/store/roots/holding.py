"""A remote dataset that is held: what lies there, and writes that only its holder can make.

Whoever takes the lease lists the dataset. From then on each object is written, or deleted, on the
condition that it is as it was listed, or as it was written since: so who has lost the lease without
knowing it, a process that stood still, a clock that did, overwrites and deletes nothing that
another one has written. Before each write the lease is looked at too; then a write that is still
on its way when the lease ends meets the condition, and what is written first is seen by who takes
the lease next.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from eval_ingest.errors import OutdatedError
from eval_ingest.objects.backend import Conflict, Entry
from eval_ingest.objects.retry import gather_or_cancel
from eval_ingest.objects.writing import WritableObjects
from eval_ingest.store.roots.lease import Lease, leased


class Holding:
    """A dataset whose lease is held.

    Args:
        objects: the eval root.
        lease: of the dataset.
        listed: its objects by name, but for its windows'.
    """

    def __init__(self, objects: WritableObjects, lease: Lease, listed: dict[str, Entry]) -> None:
        self._objects = objects
        self.lease = lease
        self.listed = listed

    def check(self) -> None:
        """Raise StoreError if the lease is lost."""
        self._objects.run(self.lease.check(self._objects))

    async def put(self, name: str, data: bytes | Path, crc32c: str = "") -> Entry:
        """Write an object.

        Args:
            name: the object.
            data: its bytes; or a file, for an object that isn't there, in parts where it is large.
            crc32c: of the file.

        Raises:
            OutdatedError: somebody else has written it meanwhile.
            StoreError: the lease is lost, or it can't be written.
        """
        await self.lease.check(self._objects)
        seen = self.listed.get(name)
        try:
            if isinstance(data, Path):
                entry = await self._objects.upload(name, data, crc32c)
            elif seen is not None and not seen.token:  # the server doesn't say what it has
                entry = await self._objects.put(name, data)
            else:
                entry = await self._objects.replace(seen or Entry(name, 0, ""), data)
        except Conflict as error:
            raise written_meanwhile(self._objects, name) from error
        self.listed[name] = entry
        return entry

    async def delete(self, names: Sequence[str]) -> None:
        """Delete objects; those that aren't there are as good as deleted.

        Raises:
            OutdatedError: somebody else has written one meanwhile.
            StoreError: the lease is lost, or one can't be deleted.
        """
        await self.lease.check(self._objects)
        found = [self.listed[name] for name in names if name in self.listed]
        try:
            await self._objects.delete(found)
        except Conflict as error:
            raise written_meanwhile(self._objects, str(error) or found[0].name) from error
        for entry in found:
            self.listed.pop(entry.name, None)


def written_meanwhile(objects: WritableObjects, name: str) -> OutdatedError:
    """An object isn't as it was seen."""
    return OutdatedError(
        f"{objects.url}/{name} was written by another process meanwhile; "
        "run again: it goes on from what is there"
    )


@contextmanager
def holding(
    objects: WritableObjects, dataset: str, folder: Path, timeout_s: float, waiting_for: str
) -> Iterator[Holding]:
    """Hold a dataset's lease: see `lease.leased`."""
    with leased(objects, f".{dataset}.lease", folder, timeout_s, waiting_for) as lease:
        yield Holding(objects, lease, _list(objects, dataset))


def _list(objects: WritableObjects, dataset: str) -> dict[str, Entry]:
    """Every object of a dataset that isn't a window's."""
    top = objects.run(objects.list_folder(dataset))
    folders = [e.name for e in top if e.folder and e.name.rpartition("/")[2] != "windows"]
    below = objects.run(gather_or_cancel([objects.find(folder) for folder in folders]))
    found = [e for e in top if not e.folder] + [e for entries in below for e in entries]
    return {entry.name: entry for entry in found}
