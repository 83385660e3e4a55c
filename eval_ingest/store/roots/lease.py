"""A lock in an object store: an object that its holder renews, and that ends by itself.

    .{dataset}.lease    who holds it, and until when

It is taken and renewed by conditional writes, so of two that want it one gets it. What a holder
writes that has lost it unknowingly, because its clock or its network stood still, is refused too:
see holding.py.
"""

import asyncio
import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import FiniteFloat

from eval_ingest.core.bounds import read_kept
from eval_ingest.errors import EvalIngestError, LockedError, OutdatedError, StoreError
from eval_ingest.objects.backend import Conflict, Entry
from eval_ingest.objects.writing import WritableObjects
from eval_ingest.store.atomic import read_json, write_json

LEASE_S = 180.0
"""A lease that isn't renewed for this long has ended. Clocks may differ by less than this."""
RENEW_S = 30.0
_ASK_S = 0.5


@dataclass(frozen=True)
class _Holder:
    """What a lease says."""

    who: str
    """For people: host and process."""
    place: str
    """The host and its folder for this root, in which a local lock is held as well."""
    nonce: str
    """So that no two leases are equal."""
    until: FiniteFloat
    """Seconds since 1970; 0: it was given back."""

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, data: bytes) -> "_Holder | None":
        return read_kept(cls, data)


class Lease:
    """A lease that this run holds, or, pickled, that another process of this run holds."""

    def __init__(self, entry: Entry, holder: _Holder) -> None:
        self.entry = entry
        self.holder = holder

    async def check(self, objects: WritableObjects) -> None:
        """Raise StoreError if it is no longer held; it costs a request where that isn't sure.

        Args:
            objects: the eval root.
        """
        if time.time() < self.holder.until:
            return
        try:
            _, data = await objects.read_current(self.entry.name)
        except FileNotFoundError:
            data = b""
        now = _Holder.parse(data)
        why = f"it could not be renewed for {LEASE_S:.0f} s"
        if now is None or (now.who, now.place) != (self.holder.who, self.holder.place):
            why = "another process took it"
        elif time.time() < now.until:
            self.holder = now
            return
        raise StoreError(
            f"the lease {objects.url}/{self.entry.name} is lost ({why}); "
            "run again: it goes on where it stopped"
        )

    @asynccontextmanager
    async def writing(self, objects: WritableObjects, name: str = "") -> AsyncIterator[None]:
        """A conditional write, or a deletion, that only the holder can make.

        Args:
            objects: the eval root.
            name: the object, for the message; of several, the error names the one.

        Raises:
            OutdatedError: somebody else has written the object meanwhile.
            StoreError: the lease is lost.
        """
        await self.check(objects)
        try:
            yield
        except Conflict as error:
            raise OutdatedError(
                f"{objects.url}/{name or error} was written by another process meanwhile; "
                "run again: it goes on from what is there"
            ) from error

    def renew(self, objects: WritableObjects, until: float) -> None:
        """Write it anew: held until then, or given back.

        Raises:
            Conflict: another process took it.
            StoreError: it can't be written.
        """
        holder = replace(self.holder, nonce=uuid.uuid4().hex, until=until)
        self.entry = objects.run(objects.replace(self.entry, holder.dump()))
        self.holder = holder

    def keep(self, objects: WritableObjects, ended: threading.Event) -> None:
        """Renew it again and again."""
        while not ended.wait(RENEW_S):
            try:
                self.renew(objects, time.time() + LEASE_S)
            except Conflict:
                self.holder = replace(self.holder, until=0.0)  # so that `check` looks who has it
                return
            except EvalIngestError:
                if time.time() > self.holder.until:
                    return


@contextmanager
def leased(
    objects: WritableObjects, name: str, folder: Path, timeout_s: float, waiting_for: str
) -> Iterator[Lease]:
    """Hold a lease.

    Args:
        objects: the eval root.
        name: the lease's object.
        folder: of this root on this machine. Whoever asks holds a local lock in it, so another
            holder from the same folder is dead.
        timeout_s: how long to wait for another holder.
        waiting_for: what is being done, for the message.

    Raises:
        LockedError: another process holds it for longer than the timeout.
        StoreError: it can't be read or written.
    """
    taken = objects.run(_take(objects, name, _place(folder), timeout_s, waiting_for))
    lease, ended = Lease(*taken), threading.Event()
    keeper = threading.Thread(
        target=lease.keep, args=(objects, ended), name="eval_ingest_lease", daemon=True
    )
    keeper.start()
    try:
        yield lease
    finally:
        ended.set()
        keeper.join(timeout=5.0)  # longer only where the network stands still
        # Refused: it is another's by now. Failed: it will end by itself.
        with suppress(Conflict, EvalIngestError):
            lease.renew(objects, 0.0)


async def _take(
    objects: WritableObjects, name: str, place: str, timeout_s: float, waiting_for: str
) -> tuple[Entry, _Holder]:
    deadline = time.monotonic() + timeout_s
    while True:
        mine = _Holder(
            f"{socket.gethostname()}, process {os.getpid()}",
            place,
            uuid.uuid4().hex,
            time.time() + LEASE_S,
        )
        try:
            try:
                entry, data = await objects.read_current(name)
            except FileNotFoundError:
                return await objects.replace(Entry(name, 0, ""), mine.dump()), mine
            other = _Holder.parse(data)
            if other is None or other.place == place or other.until < time.time():
                return await objects.replace(entry, mine.dump()), mine
        except Conflict:
            continue  # somebody was a little faster: see who
        if time.monotonic() >= deadline:
            until = datetime.fromtimestamp(other.until, UTC).strftime("%H:%M:%S UTC")
            raise LockedError(
                f"{waiting_for}: {other.who} holds {objects.url}/{name}; wait for it to finish "
                f"and run again (if it was killed, the lease ends by itself at {until})"
            )
        await asyncio.sleep(random.uniform(0.5, 1.0) * _ASK_S)


def _place(folder: Path) -> str:
    """Names the host and the folder, by an identifier that is kept in the folder."""
    path = folder / ".place.json"
    known = None
    with suppress(StoreError):  # damaged: then we are somebody else
        known = read_json(path)
    if not isinstance(known, str):
        known = uuid.uuid4().hex
        write_json(path, known)
    return f"{socket.gethostname()}:{known}"
