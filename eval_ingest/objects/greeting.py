"""Whether a server is there at all: asked for something small, so that silence is told soon.

What doesn't belong here: requests that somebody needs the answer of (retry.py).
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from eval_ingest.background import Call
from eval_ingest.objects.connection import Connection
from eval_ingest.objects.explain import SourceWords
from eval_ingest.objects.faults import is_answer
from eval_ingest.objects.filesystems import Contact, load_library, server_of
from eval_ingest.objects.retry import Result
from eval_ingest.redaction import redacted
from eval_ingest.settings import Settings

PATIENCE = 10
"""So many times EVAL_INGEST_ANSWER_SECONDS a run that nobody watches waits for the first answer."""
LOGIN_PATIENCE = 5
"""As often for credentials, which every machine asks its own cloud for, be it in one or not."""
_SILENT_S = 0.4
"""After so long it is noted what is waited for: the command line tells it."""
_AGAIN_S = 0.5
UNREACHABLE_S = 1
"""So long a person's command tries again where there is no way to the server at all."""

LOG = logging.getLogger("eval_ingest")


def greet(
    url: str,
    endpoint: str | None,
    connect: Callable[[], Connection],
    words: SourceWords,
    patient: bool,
) -> None:
    """Have a server say anything at all; the first time only.

    A login that hangs counts as well: credentials may come from a server too.

    Args:
        url: a folder on it.
        endpoint: of Weka's S3, if not that of the environment.
        connect: gives the connection, imports and the login included.
        words: for what goes wrong.
        patient: EVAL_INGEST_ANSWER_SECONDS are waited PATIENCE times, and it is told meanwhile.

    Raises:
        EvalIngestError: nothing comes, or it can't be connected to at all.
    """
    began = time.monotonic()
    with _noted(url, endpoint):
        _greet(url, endpoint, connect, words, patient, began)


@contextlib.contextmanager
def _noted(url: str, endpoint: str | None) -> Iterator[None]:
    """Note what is waited for where that takes longer, be it for imports alone."""

    def note() -> None:
        with contextlib.suppress(ValueError):  # told by who connects: there is no such server
            LOG.info("waiting for %s: %s", server_of(url, endpoint), redacted(url))

    timer = threading.Timer(_SILENT_S, note)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _greet(
    url: str,
    endpoint: str | None,
    connect: Callable[[], Connection],
    words: SourceWords,
    patient: bool,
    began: float,
) -> None:
    load_library(url)
    seconds = Settings.load().answer_seconds
    longest = seconds * (PATIENCE if patient else 1)
    who = "the server that gives credentials"
    login = max(longest, LOGIN_PATIENCE * seconds)
    here = _wait(Call(connect), who, seconds, login, Contact(), words)
    if here is None or here.server.contact.answered:
        return
    server, loop = server_of(url, endpoint), here.server.loop
    contact = here.server.contact
    again = seconds if patient else min(seconds, UNREACHABLE_S)
    hears = asyncio.run_coroutine_threadsafe(_hear(here, words, server, again), loop)
    # A person has waited for imports and the login already.
    spent = 0.0 if patient else min(time.monotonic() - began, seconds / 2)
    try:
        _wait(Call(hears.result), server, again, longest, contact, words, spent)
    finally:
        hears.cancel()


def _wait(
    call: Call[Result],
    server: str,
    seconds: float,
    longest: float,
    contact: Contact,
    words: SourceWords,
    spent: float = 0.0,
) -> Result | None:
    """What a call gives that may never end; None as soon as something has come from the server.

    After `seconds` a failure to connect is final, and that it waits on is told; `spent` seconds
    were waited before this.

    Raises:
        EvalIngestError: it takes longer than that, or can't be connected to.
    """
    told = longest <= seconds
    while not call.wait(0.05):
        if contact.answered:
            return None
        if call.waited + spent > longest or (contact.failure and call.waited > seconds):
            raise words.silent(server, longest, contact.failure)
        if call.waited > seconds and not told:
            told = True
            text = f"{words.url}: {server} has not answered for {seconds:.0f} s"
            LOG.warning("%s; it is waited for up to %d s", redacted(text), longest)
    return call.result()


async def _hear(here: Connection, words: SourceWords, server: str, seconds: float) -> None:
    """Ask for something small; any answer will do, and without a way there it is tried again.

    Raises:
        EvalIngestError: there has been no way to the server for so long.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            await here.backend.head("config.json")
        except Exception as error:
            if not is_answer(error):
                if time.monotonic() + _AGAIN_S < until:
                    await asyncio.sleep(_AGAIN_S)
                    continue
                raise words.silent(server, seconds, error) from error
        here.server.contact.answered = True
        return
