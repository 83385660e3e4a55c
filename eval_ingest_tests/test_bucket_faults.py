"""A write or a deletion in a bucket that goes wrong loses nothing, and the next run is whole.

Every change is tried by `python -m eval_ingest_tests.support.bucket_faults`; here, some of them.
"""

import random
from pathlib import Path
from typing import get_args

from eval_ingest_tests.support.bucket_faults import world
from eval_ingest_tests.support.memory_bucket import Fault


def test_whatever_change_goes_wrong_the_next_run_is_whole(tmp_path: Path) -> None:
    rng = random.Random(1)
    with world(tmp_path) as found:
        for name in ("another split", "remove", "adopt", "registry rebuild"):
            work = found.work(name)
            numbers = range(1, len(work.changes) + 1)
            # The last ones are where what is new takes the place of what was.
            for number in (rng.choice(numbers), numbers[-2:][0]):
                found.fail(work, number, rng.choice(get_args(Fault)), elsewhere=number % 2 == 0)
