"""A writer that stands still, and doesn't know that time goes by."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from eval_ingest import pipeline
from eval_ingest.job import Job


class Stalled(threading.Thread):
    """An ingest into a bucket that stands still before the first write that `stops` is true for."""

    def __init__(self, job: Job, stops: Callable[[str], bool]) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.stopped, self.goes_on = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        store: Any = job.store
        self.objects = store.mirror.objects
        real = self.objects._put

        async def put(name: str, data: bytes, seen: Any) -> Any:
            if not self.stopped.is_set() and stops(name):
                self.stopped.set()
                while not self.goes_on.is_set():
                    await asyncio.sleep(0.01)
            return await real(name, data, seen)

        self.objects._put = put

    def run(self) -> None:
        try:
            pipeline.ingest(self.job)
        except BaseException as error:
            self.error = error
