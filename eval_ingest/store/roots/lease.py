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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from eval_ingest.errors import EvalIngestError, LockedError, StoreError
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
    until: float
    """Seconds since 1970; 0: it was given back."""

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, data: bytes) -> "_Holder | None":
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None


class Lease:
    """A lease that is held."""

    def __init__(self, objects: WritableObjects, entry: Entry, holder: _Holder) -> None:
        self._objects = objects
        self._entry = entry
        self._holder = holder
        self._ended = threading.Event()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._renew, name="eval_ingest_lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            holder = _Holder(
                self._holder.who, self._holder.place, uuid.uuid4().hex, time.time() + LEASE_S
            )
            try:
                self._entry = self._objects.run(self._objects.replace(self._entry, holder.dump()))
                self._holder = holder
            except Conflict:
                self._lost = "another process took it"
                return
            except EvalIngestError as error:
                if time.time() > self._holder.until:
                    self._lost = str(error)
                    return

    def check(self) -> None:
        """Raise StoreError if it is no longer held."""
        if self._lost is None and time.time() > self._holder.until:
            self._lost = f"it could not be renewed for {LEASE_S:.0f} s"
        if self._lost is not None:
            raise _lost(self._objects, self._entry.name, self._lost)

    def watch(self) -> "LeaseWatch":
        """A look at it for other processes of this run."""
        return LeaseWatch(self._entry.name, self._holder)

    def release(self) -> None:
        """Give it back."""
        self._ended.set()
        self._thread.join(timeout=5.0)  # longer only where the network stands still
        holder = _Holder(self._holder.who, self._holder.place, uuid.uuid4().hex, 0.0)
        # Refused: it is another's by now. Failed: it will end by itself.
        with suppress(Conflict, EvalIngestError):
            self._objects.run(self._objects.replace(self._entry, holder.dump()))


class LeaseWatch:
    """Is a lease that another thread or process renews still held? Asked once in its lifetime."""

    def __init__(self, name: str, holder: _Holder) -> None:
        self._name = name
        self._holder = holder

    async def check(self, objects: WritableObjects) -> None:
        """Raise StoreError if it isn't.

        Args:
            objects: the eval root.
        """
        if time.time() < self._holder.until:
            return
        try:
            _, data = await objects.read_current(self._name)
        except FileNotFoundError:
            data = b""
        now, known = _Holder.parse(data), self._holder
        if now is None or (now.who, now.place) != (known.who, known.place):
            raise _lost(objects, self._name, "another process took it")
        if time.time() > now.until:
            raise _lost(objects, self._name, f"it could not be renewed for {LEASE_S:.0f} s")
        self._holder = now


def _lost(objects: WritableObjects, name: str, why: str) -> StoreError:
    return StoreError(
        f"the lease {objects.url}/{name} is lost ({why}); run again: it goes on where it stopped"
    )


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
    lease = objects.run(_take(objects, name, _place(folder), timeout_s, waiting_for))
    held = Lease(objects, *lease)
    try:
        yield held
    finally:
        held.release()


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
                return await objects.create(name, mine.dump()), mine
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
