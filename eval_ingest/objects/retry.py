"""Trying again: how often, after what, and how long one try may take."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from eval_ingest.errors import EvalIngestError
from eval_ingest.objects.backend import Conflict
from eval_ingest.objects.faults import may_pass

Result = TypeVar("Result")

SLOWEST_BYTES = 250_000
"""A second more for a request for each of these."""


@dataclass(frozen=True)
class Limits:
    """Of one request."""

    attempts: int = 5
    """How often it is tried, beyond what the store's own library tries."""
    timeout_s: float = 60.0
    """For each try, beside a second for each SLOWEST_BYTES."""
    total_s: float = math.inf
    """No try begins after so long."""


FIRST_LOOK = Limits(attempts=4, timeout_s=20.0, total_s=10.0)
"""Of the first look at a place that may be mistyped, or out of reach from here."""


async def retrying(
    call: Callable[[], Awaitable[Result]],
    limits: Limits,
    slots: asyncio.Semaphore,
    n_bytes: int,
    explain: Callable[[Exception], EvalIngestError],
) -> Result:
    """Try again after what may pass: 429, 5xx, resets, timeouts, truncated answers.

    Raises:
        FileNotFoundError, Conflict: as the call does.
        EvalIngestError: what the last try raised, explained.
    """
    last_begin = time.monotonic() + limits.total_s
    for attempt in range(1, limits.attempts + 1):
        try:
            async with slots:
                return await asyncio.wait_for(call(), limits.timeout_s + n_bytes / SLOWEST_BYTES)
        except (FileNotFoundError, Conflict, EvalIngestError):
            raise
        except Exception as error:
            # Full jitter, so that many readers that failed together don't come back together.
            pause_s = random.uniform(0.2, 1.0) * min(0.3 * 2**attempt, 20.0)
            too_late = time.monotonic() + pause_s > last_begin
            if attempt == limits.attempts or too_late or not may_pass(error):
                raise explain(error) from error
        await asyncio.sleep(pause_s)
    raise AssertionError("unreachable")


AT_ONCE = 1000
"""Tasks of one `gather_or_cancel`: more than requests on their way, and not millions."""


async def gather_or_cancel(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results in turn; the first error ends the others before it is raised.

    However much work there is, it is asked for, and begun, in portions.
    """
    coming, results = iter(work), list[Result]()
    tasks: list[asyncio.Task[Result]] = []
    try:
        while tasks := [asyncio.ensure_future(one) for one in islice(coming, AT_ONCE)]:
            results += await asyncio.gather(*tasks)
        return results
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in coming:
            one.close()
        raise
