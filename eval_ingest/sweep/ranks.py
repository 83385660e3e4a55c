"""Work shared out over the ranks of torch.distributed, and its results brought together.

Each rank embeds every n-th batch, so batches hold the same windows whatever the number of ranks,
and so do the scores.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from eval_ingest.errors import EvalIngestError, SweepError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """The processes that evaluate together; one alone if torch.distributed isn't in use."""

    rank: int = 0
    count: int = 1
    group: Any = None
    """A process group that carries Python objects."""

    @property
    def shard(self) -> tuple[int, int]:
        """Its number, and how many there are."""
        return self.rank, self.count

    def agreed(self, work: Callable[[], Value]) -> Value:
        """What each rank makes for itself, if none of them fails: so none goes on alone.

        Raises:
            EvalIngestError: what failed on any rank, on all of them.
        """
        found = self._tried(work)
        if self.count > 1:
            failures: list[Any] = [None] * self.count
            dist.all_gather_object(failures, _failure([found]), group=self.group)
            _checked(failures)
        value: Value = _checked([found])[0]
        return value

    def interleaved(self, work: Callable[[], list[Value]]) -> list[Value]:
        """Every rank's results on rank 0, in turn: that of batch 0, 1, 2, ...; [] elsewhere.

        Raises:
            EvalIngestError: what failed on any rank, on all of them.
        """
        mine = self.agreed(work)
        if self.count == 1:
            return mine
        gathered: list[Any] | None = [None] * self.count if self.rank == 0 else None
        dist.gather_object(mine, gathered, dst=0, group=self.group)
        shares = gathered or []
        longest = max(map(len, shares), default=0)
        return [share[k] for k in range(longest) for share in shares if k < len(share)]

    def from_first(self, work: Callable[[], Value]) -> Value:
        """What rank 0 makes, on every rank.

        Raises:
            EvalIngestError: what failed on rank 0, on all of them.
        """
        found = self._tried(work) if self.rank == 0 else None
        if self.count > 1:
            shared = [found]
            dist.broadcast_object_list(shared, src=0, group=self.group)
            found = shared[0]
        value: Value = _checked([found])[0]
        return value

    def _tried(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except EvalIngestError as error:
            return error
        except Exception as error:
            if self.count == 1:
                raise
            return SweepError(f"rank {self.rank} failed with {type(error).__name__}: {error}")


def _failure(found: list[Any]) -> EvalIngestError | None:
    return next((value for value in found if isinstance(value, EvalIngestError)), None)


def _checked(found: list[Any]) -> list[Any]:
    error = _failure(found)
    if error is not None:
        raise error
    return found


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """The ranks of the default process group; all of them must come here together."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        yield Ranks()
        return
    # NCCL carries tensors on GPUs alone; embeddings are gathered in main memory.
    group = dist.new_group(backend="gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), group)
    finally:
        dist.destroy_process_group(group)
