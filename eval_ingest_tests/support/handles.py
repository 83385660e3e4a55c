"""A process that has no file handles left, or a few."""

import contextlib
import os
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def no_handles(left: int = 0) -> Iterator[None]:
    """Have so many file handles left meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(left):
            os.close(held.pop())
        yield
    finally:
        for opened in held:
            os.close(opened)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
