"""Several threads on one batch: converting pixels lets go of the GIL."""

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_WORTH_A_THREAD = 1 << 18
"""Values; fewer are converted sooner than a thread wakes up."""


def in_parallel(work: Callable[[range], None], count: int, values_each: int) -> None:
    """Call `work` with parts of range(count), on as many threads as torch uses for itself."""
    threads = min(torch.get_num_threads(), count, count * values_each // _WORTH_A_THREAD)
    if threads < 2:
        work(range(count))
        return
    edges = [count * k // threads for k in range(threads + 1)]
    parts = [range(first, last) for first, last in itertools.pairwise(edges)]
    pending = [_pool(os.getpid()).submit(work, part) for part in parts[1:]]
    work(parts[0])
    for future in pending:
        future.result()


@functools.cache
def _pool(pid: int) -> ThreadPoolExecutor:
    """The process's own: threads don't outlive a fork."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="eval_ingest_load")
