"""A remote dataset that is held: what lies there, and writes that only its holder can make.

Whoever takes the lease lists the dataset. From then on each object is written, or deleted, on the
condition that it is as it was listed, or as it was written since: so who has lost the lease without
knowing it, a process that stood still, a clock that did, overwrites and deletes nothing that
another one has written. Before each write the lease is looked at too; then a write that is still
on its way when the lease ends meets the condition, and what is written first is seen by who takes
the lease next.
"""

from collections.abc import Sequence
from pathlib import Path

from eval_ingest.objects.backend import Entry
from eval_ingest.objects.writing import WritableObjects
from eval_ingest.store.roots.lease import Lease


class Holding:
    """A dataset whose lease is held.

    Args:
        objects: the eval root.
        lease: of the dataset.
        dataset: its name.
    """

    def __init__(self, objects: WritableObjects, lease: Lease, dataset: str) -> None:
        self._objects = objects
        self.lease = lease
        top = objects.below(dataset)
        folders = (entry for entry in top if entry.folder and entry.last != "windows")
        below = objects.run_all([objects.find(folder.name) for folder in folders])
        found = [entry for entries in (top, *below) for entry in entries if not entry.folder]
        self.listed = {entry.name: entry for entry in found}
        """Its objects by name, but for its windows'."""

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
        seen = self.listed.get(name)
        async with self.lease.writing(self._objects, name):
            if isinstance(data, Path):
                entry = await self._objects.upload(name, data, crc32c)
            elif seen is not None and not seen.token:  # the server doesn't say what it has
                entry = await self._objects.put(name, data)
            else:
                entry = await self._objects.replace(seen or Entry(name, 0, ""), data)
        self.listed[name] = entry
        return entry

    async def delete(self, names: Sequence[str]) -> None:
        """Delete objects; those that aren't there are as good as deleted.

        Raises:
            OutdatedError: somebody else has written one meanwhile.
            StoreError: the lease is lost, or one can't be deleted.
        """
        found = [self.listed[name] for name in names if name in self.listed]
        async with self.lease.writing(self._objects):
            await self._objects.delete(found)
        for entry in found:
            self.listed.pop(entry.name, None)
