"""Our end of the pipe to the existing OlmoEarth eval code in .venv-peers, and its samples."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from eval_ingest import EvalDataset
from eval_ingest.core.spec import SPLITS
from eval_ingest.loading.olmoearth import OlmoEarthAdapter

PYTHON = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"

PYTHON_COMMAND = [PYTHON, "-P"]
"""Without the script's folder on the path: a module beside it could hide one of Python's own."""


SCRIPT = Path(__file__).parent / "peer_process.py"


class PeerError(Exception):
    """What the other process raised."""


class Peer:
    """A process of .venv-peers that answers requests one by one; see peer_process.py."""

    def __init__(self, script: Path, log: Path, **environment: str) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [*PYTHON_COMMAND, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            cwd=log.parent,
            env={**os.environ, **environment},
        )

    def __call__(self, do: str, **arguments: Any) -> Any:
        """Call a function there; arguments and result are JSON, paths become texts."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"do": do, "with": {k: _plain(v) for k, v in arguments.items()}}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the other process ended:\n{self._log.read_text()[-3000:]}"
        reply = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply["value"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def read(
    peer: Peer, root: Path, name: str, split: str, out: Path, **arguments: Any
) -> tuple[list[str], list[dict[str, np.ndarray]]]:
    """The windows of a split and its samples, as the existing code reads them."""
    path = out / "samples.npz"
    registry = root / "registry.json"
    windows = peer("read", registry=registry, name=name, split=split, out=path, arguments=arguments)
    samples: list[dict[str, np.ndarray]] = [{} for _ in windows]
    with np.load(path) as stored:
        for key in stored.files:
            number, _, field = key.partition(".")
            samples[int(number)][field] = stored[key]
    return windows, samples


def difference(peer: Peer, root: Path, name: str, modalities: list[str], out: Path) -> str:
    """Where the existing code's samples of some modalities aren't ours; "" if all are.

    It has all bands of a modality, and of windows of many sizes the middle that all of them have.
    """
    try:
        for split in SPLITS:
            ours = EvalDataset(
                name, split, root=root, normalize="pretrained", modalities=modalities
            )
            windows, samples = read(
                peer, root, name, split, out, input_modalities_override=modalities
            )
            if windows != [ours.window(i) for i in range(len(ours))]:
                return f"{split}: other windows"
            adapter = OlmoEarthAdapter(ours)
            for i, theirs in enumerate(samples):
                sample, target = adapter.collate([ours[i]])
                for key in ours.bands:
                    dates = ours[i]["timestamps"][key].flip(1).tolist()
                    order = sorted(range(len(dates)), key=dates.__getitem__)
                    found = getattr(sample, key)[0].numpy()
                    if not _alike(found, theirs[key][:, :, order]):
                        return f"{split} {i}: {key} {found.shape}, there {theirs[key].shape}"
                if not _alike(target[0].numpy(), theirs["target"]):
                    return f"{split} {i}: target"
    except PeerError as error:
        return f"can't read it: {error}"
    return ""


def _alike(found: np.ndarray, expected: np.ndarray) -> bool:
    for axis in range(min(found.ndim, 2)):
        first = (found.shape[axis] - expected.shape[axis] + 1) // 2
        found = found.take(range(first, first + expected.shape[axis]), axis)
    return found.shape == expected.shape and np.allclose(found, expected, 1e-5, 1e-5, True)
