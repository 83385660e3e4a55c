"""Valid files made invalid: by values that nobody expects, and by damaged bytes.

Everything is drawn from a random.Random, so that a case can be had again from its seed.
"""

import copy
import io
import json
import random
import tarfile
from collections.abc import Callable
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 256, 65536, 2**31, 2**53, 2**63, 2**64, -(2**63),
    10**400, 0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
    "", " ", "0", "-1", "1e9", "nan", "null", "None", "true", "..", "../..", "../../etc/passwd",
    "/etc/passwd", "/", ".", "~", "a/b", "a\\b", "C:\\x", "a\nb", "a\0b", "\ufeff", "\u202e",
    "\ud800", "ü", "漢字", "🛰", "'; DROP TABLE windows; --", "<script>alert(1)</script>",
    "${HOME}", "${}", "${X:-${Y}}", "{{ x }}", "%s%n", "gs://bucket/x", "file:///etc/passwd",
    "x" * 300, "x" * 70_000, [], {}, [[]], [None], [0, 0, 0, 0], [1, 2], {"": ""}, {"a": {"a": 1}},
    "EPSG:4326", "EPSG:0", "EPSG:999999999", "EPSG:32630", "2024-13-45", "0001-01-01",
    "9999-12-31T23:59:59.999999+00:00", "2024-01-01T00:00:00Z", "os.system", "builtins.eval",
    "rslearn.train.tasks.segmentation.SegmentationTask", "torch.hub.load", "-", "*", "&a",
)  # fmt: skip
"""What a field may hold that was meant to hold something else."""


def odd_value(rng: random.Random) -> Any:
    """A value from ODD_VALUES, or one that is nested deeply."""
    if rng.random() < 0.03:
        depth = rng.choice((50, 150))
        value: Any = rng.choice(ODD_VALUES)
        for _ in range(depth):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return copy.deepcopy(rng.choice(ODD_VALUES))


def mutate_value(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value in which one thing is replaced, removed, renamed or doubled."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return odd_value(rng)
    holder, key = rng.choice(places)
    action = rng.randrange(7)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[str(odd_value(rng))[:300]] = holder.pop(key)
    elif action == 1:
        holder.insert(key, copy.deepcopy(holder[key]))
    elif action == 2:
        holder[key] = [holder[key]]
    elif action == 3 and isinstance(holder[key], bool | int | float):
        holder[key] = _near(rng, holder[key])
    elif action == 3 and isinstance(holder[key], str):
        holder[key] = _text_near(rng, holder[key])
    elif action == 4 and len(places) > 1:
        other, other_key = rng.choice(places)
        holder[key] = copy.deepcopy(other[other_key])
    else:
        holder[key] = odd_value(rng)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a nested value."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = holder if isinstance(holder, dict) else range(len(holder))
        if not isinstance(holder, dict | list):
            continue
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


def _near(rng: random.Random, number: float) -> Any:
    change = rng.randrange(6)
    if change == 0:
        return -number
    if change == 1:
        return number + rng.choice((-1, 1))
    if change == 2:
        return number * rng.choice((10, 1000, 65536))
    if change == 3:
        return float(number) + 0.5
    if change == 4:
        return str(number)
    return 0


def _text_near(rng: random.Random, text: str) -> str:
    place = rng.randrange(len(text) + 1)
    change = rng.randrange(5)
    if change == 0:
        return text[:place]
    if change == 1:
        return text[:place] + rng.choice("\0\n/\\.:%'\"<>&| ü") + text[place:]
    if change == 2:
        return text.upper() if text != text.upper() else text.lower()
    if change == 3:
        return text[place:] + text[:place]
    return text * 2


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """A JSON file with something odd in it, or with damaged bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, data)
    if rng.random() < 0.02:
        return rng.choice(list(json_bombs().values())).encode()
    value = mutate_value(rng, json.loads(data))
    if rng.random() < 0.2:
        value = mutate_value(rng, value)
    return json.dumps(value).encode()


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some changed, lost, doubled, swapped or cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        size = len(changed)
        place = rng.randrange(size) if size else 0
        # Half of the time near the beginning, where headers are.
        if size > 600 and rng.random() < 0.5:
            place = rng.randrange(600)
        length = rng.choice((1, 1, 2, 4, 8, 64, 512))
        action = rng.randrange(7)
        if action == 0:
            del changed[place:]
        elif action == 1:
            del changed[place : place + length]
        elif action == 2:
            changed[place:place] = bytes(rng.getrandbits(8) for _ in range(length))
        elif action == 3:
            changed[place : place + length] = bytes(min(length, size - place))
        elif action == 4:
            changed[place:place] = changed[place : place + length]
        elif size:
            value = rng.choice((0, 1, 127, 128, 255, rng.getrandbits(8)))
            changed[place] = value if rng.random() < 0.7 else changed[place] ^ 1 << rng.randrange(8)
    return bytes(changed)


# ------------------------------------------------------------------------------------------ bombs


def yaml_bombs() -> dict[str, str]:
    """YAML that is small to write and large, endless or dangerous to read, by name."""
    laughs = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    laughs += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 20)]
    merges = ["m0: &m0 {x0: 1, y0: 1}"]
    merges += [
        f"m{k}: &m{k} {{<<: [{', '.join([f'*m{k - 1}'] * 9)}], x{k}: 1}}" for k in range(1, 20)
    ]
    return {
        "billion laughs": "\n".join([*laughs, "data: *a19"]),
        "billion merges": "\n".join([*merges, "data: *m19"]),
        "itself": "data: &d {init_args: *d}",
        "deep lists": "data: " + "[" * 50_000,
        "deep maps": "data: " + "{a: " * 20_000,
        "deep blocks": "".join(" " * k + "a:\n" for k in range(3_000)),
        "object": "data: !!python/object/apply:os.system ['touch /tmp/eval_ingest_owned']",
        "name": "data: !!python/name:os.system",
        "new": "data: !!python/object/new:type {args: [x, !!python/tuple [], {}]}",
        "huge integer": "data: {init_args: {inputs: " + "9" * 100_000 + "}}",
        "sexagesimal": "data: " + ":".join(["59"] * 20_000),
        "long key": "? " + "x" * 100_000 + "\n: 1",
        "many documents": "--- {data: 1}\n" * 10_000,
        "null bytes": "data: \0",
        "tabs": "data:\n\t- x",
        "anchors": "".join(f"- &a{k} x\n" for k in range(50_000)),
        "not text": "data: \x80\x81",
    }


def json_bombs() -> dict[str, str]:
    """The same in JSON."""
    return {
        "deep lists": "[" * 100_000,
        "deep maps": '{"a":' * 100_000,
        "deep and closed": "[" * 50_000 + "]" * 50_000,
        "huge integer": '{"layers": ' + "9" * 1_000_000 + "}",
        "huge exponent": '{"layers": 1e999999999}',
        "many keys": "{" + ",".join(f'"k{k}": {k}' for k in range(200_000)) + "}",
        "same key": "{" + ",".join('"layers": {}' for _ in range(100_000)) + "}",
        "not finite": '{"layers": NaN}',
        "surrogate": '{"layers": "\\ud800"}',
        "BOM": "\ufeff{}",
        "nothing": "",
        "not an object": '"layers"',
    }


def mutate_archive(rng: random.Random, members: dict[str, bytes]) -> bytes:
    """A tar archive of some files, with a member more that nobody wants."""
    stream = io.BytesIO()
    mode = rng.choice(("w", "w:gz"))
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        names = list(members)
        bad = rng.randrange(len(names) + 1)
        for k, name in enumerate(names):
            if k == bad:
                _add_bad_member(rng, archive, name)
            member = tarfile.TarInfo(name)
            member.size = len(members[name])
            archive.addfile(member, io.BytesIO(members[name]))
    data = stream.getvalue()
    return mutate_bytes(rng, data) if rng.random() < 0.5 else data


def _add_bad_member(rng: random.Random, archive: tarfile.TarFile, near: str) -> None:
    name = rng.choice(
        ("../escaped", "/tmp/eval_ingest_escaped", "a/../../escaped", "..", ".", "", "x" * 2000,
         "windows/../../escaped", "a\\..\\escaped", "a\nb", near, f"{near}/below", "\udcff")
    )  # fmt: skip
    member = tarfile.TarInfo(name)
    member.type = rng.choice(
        (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE,
         tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE)
    )  # fmt: skip
    member.linkname = rng.choice(("", "/etc/passwd", "../../escaped", near))
    member.mode = rng.choice((0o644, 0, 0o7777))
    if member.isreg():
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    else:
        archive.addfile(member)


Mutate = Callable[[random.Random, bytes], bytes]
