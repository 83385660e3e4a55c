"""What assets, sensors and ops are given by name: the settings, and the stages' IO manager."""

from typing import Any

from eval_ingest.defs.io_managers import StageIOManager
from eval_ingest.settings import Settings

STAGE_IO = "stage_io"


def build_resources(settings: Settings) -> dict[str, Any]:
    """The resources of the code location.

    Settings are handed on as an object: as configuration, the web page would show them, and
    they hold the whole environment.
    """
    return {"settings": settings, STAGE_IO: StageIOManager(settings)}
