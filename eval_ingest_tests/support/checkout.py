"""The checkout, and programs that are started in it."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """This process's environment with our package on the path, and nothing of Dagster's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DAGSTER_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # it makes every import three times slower
    return kept | {"PYTHONPATH": str(REPOSITORY), **more}
