"""What a shell is told when Tab is pressed, by argcomplete.

What belongs here: which words may follow. What doesn't: the commands and flags (cli.py).
"""

import argparse
from collections.abc import Iterable

from eval_ingest.settings import Settings, is_completing

SHELLS = ("bash", "zsh", "fish")


def complete(parser: argparse.ArgumentParser) -> None:
    """Where a shell asks, answer and end the process; else do nothing."""
    if is_completing():
        import argcomplete

        argcomplete.autocomplete(parser)


def shell_code(shell: str) -> str:
    """What a shell has to run to ask us."""
    from argcomplete.shell_integration import shellcode

    return str(shellcode(["eval-ingest"], shell=shell))


def dataset_names(dataset: str) -> Iterable[str]:
    """Names that a command takes: `or source` has the catalog's, others what is ingested."""
    from eval_ingest.store.catalog import read_catalog
    from eval_ingest.store.registry import read_registry
    from eval_ingest.store.roots.open import open_root

    settings = Settings.load()
    if dataset == "or source":
        return read_catalog(settings, broken={})
    root = open_root(settings)
    return read_registry(root) if root.cache_bytes is None else ()  # no bucket is waited for
