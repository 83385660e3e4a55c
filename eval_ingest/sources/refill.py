"""An archive's windows taken from copies near by, as if it had been unpacked once more.

Belongs here: what of an unpacked archive another dataset has, and writing windows out of copies.
Does not: when that is done, and unpacking itself (archive.py).
"""

import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from eval_ingest.engine import map_ordered
from eval_ingest.sources.base import Copies, WindowFiles
from eval_ingest.waiting import remove_folder

_AT_ONCE = 8
"""Windows: from a copy in a bucket each waits."""


def take_contents(unpacked: Path, target: Path, table: str, tree: str, dataset: str) -> None:
    """Have what stays of an archive that another dataset has unpacked: all but the windows.

    Args:
        unpacked: the other's folder of it, with its table whole.
        target: ours; it is whole when the table is there.
        table: name of the table in it.
        tree: name of the folder with what was unpacked.
        dataset: the dataset's folder in the tree.

    Raises:
        OSError: it can't be read or written.
    """
    windows = os.path.normpath(unpacked / tree / dataset / "windows")

    def passed_over(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if os.path.normpath(f"{folder}/{name}") == windows]

    remove_folder(target)
    shutil.copytree(unpacked / tree, target / tree, ignore=passed_over)
    aside = target / f".{table}.tmp"
    shutil.copyfile(unpacked / table, aside)
    os.replace(aside, target / table)


def fill(folder: Path, windows: Callable[[], Iterable[WindowFiles]], copies: Copies) -> bool:
    """Write windows into a folder out of copies; False if one isn't there as it was unpacked.

    Raises:
        OSError: one can't be written.
    """
    remove_folder(folder)
    folder.mkdir(parents=True)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="eval_ingest_refill") as pool:
        # A look at all of them first: most often what is missing is a window, not a file of one.
        return all(
            all(map_ordered(pool, work, windows(), 2 * _AT_ONCE))
            for work in (partial(_is_held, copies), partial(_write, folder, copies))
        )


def _is_held(copies: Copies, files: WindowFiles) -> bool:
    first = [file for file in files.files if file.path == "metadata.json"]
    return bool(first) and len(copies(files.listed, first)) == 1


def _write(folder: Path, copies: Copies, files: WindowFiles) -> bool:
    found = copies(files.listed, files.files)
    for path, data in found.items():
        target = f"{folder}/{files.key}/{path}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb", buffering=0) as stream:
            stream.write(data)
    return len(found) == len(files.files)
