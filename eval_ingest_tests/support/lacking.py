"""A process that lacks file handles, or rights."""

import contextlib
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path


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


@contextlib.contextmanager
def no_rights() -> Iterator[None]:
    """Be nobody meanwhile, who may do what all may, if this process is root's."""
    if os.getuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())


@contextlib.contextmanager
def open_to_all() -> Iterator[Path]:
    """A folder that everybody reaches and may write."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        os.chmod(made, 0o777)
        yield Path(made)
        for path in Path(made).rglob("*"):
            path.chmod(0o755)
