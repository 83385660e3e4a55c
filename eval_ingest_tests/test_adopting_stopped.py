"""Adoptions and removals that are stopped at any of their changes are completed, or undone.

Every change is tried by `python -m eval_ingest_tests.support.stopping`; here, some of them.
"""

import contextlib
import random
from pathlib import Path
from typing import get_args

import pytest

from eval_ingest import api
from eval_ingest.adopting import adopt
from eval_ingest.core.entry import is_ours
from eval_ingest.settings import Settings
from eval_ingest.store.ownership import Whose, whose
from eval_ingest.store.registry import read_registry
from eval_ingest_tests.support import places, stopping
from eval_ingest_tests.support.places import Place
from eval_ingest_tests.support.stopping import Case, Stopped, requests

place = places.place


@pytest.mark.parametrize("kind", get_args(stopping.Kind))
def test_what_is_stopped_at_a_change_comes_to_the_same_in_the_end(
    kind: stopping.Kind, tmp_path: Path
) -> None:
    case, rng = Case(kind, tmp_path), random.Random(kind)
    for change in rng.sample(range(1, case.changes + 1), 3):
        case.interrupt(change)
    if kind == "adopt":
        case.kill(rng.randint(1, case.changes))


@pytest.fixture(scope="module")
def their_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stopping.their_root(tmp_path_factory.mktemp("theirs"))


@pytest.mark.parametrize("late", [False, True])
def test_in_a_bucket_too(place: Place, their_root: Path, late: bool) -> None:
    if (place.kind, late) not in (("s3", False), ("gs", True)):
        pytest.skip("each of the two kinds of servers in one way")
    for path in (their_root / "crops").rglob("*"):
        if path.is_file():
            place.write(str(path.relative_to(their_root)), path.read_bytes())
    registry = ('{"datasets": {"crops": ' + stopping.THEIRS + "}}").encode()
    place.write("registry.json", registry)
    before = {name: place.read(name) for name in place.names()}
    with requests() as done:
        adopt(Settings.load(), "crops")
    adopted = place.names()
    with requests() as undone:
        api.remove("crops")
    assert {name: place.read(name) for name in before} == {
        **before, "registry.json": place.read("registry.json")
    }  # fmt: skip
    rng = random.Random(late)
    for stop_at in rng.sample(range(1, len(done)), 2):
        with contextlib.suppress(Stopped), requests(stop_at, late):
            adopt(Settings.load(), "crops")
        adopt(Settings.load(), "crops")
        assert place.names() == adopted
        assert is_ours(read_registry(place.root)["crops"])
        stop_at = rng.randint(1, len(undone) - 1)
        with contextlib.suppress(Stopped), requests(stop_at, late):
            api.remove("crops")
        if is_ours(api.list_datasets()["crops"].entry):  # nothing was done yet
            api.remove("crops")
        assert whose(place.root.dataset("crops")) is Whose.THEIRS
        assert stopping.THEIRS in place.read("registry.json").decode()
        left = place.names() - before.keys()
        assert all(name.startswith("registry.2") for name in left)  # the dated copy
