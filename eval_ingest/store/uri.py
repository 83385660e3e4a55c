"""From the name of an eval root to a path: a folder, or `weka://bucket/path`."""

from pathlib import Path

from eval_ingest.errors import StoreError
from eval_ingest.settings import EVAL_ROOT_VARIABLE, Settings

WEKA_MOUNT = Path("/weka")


def eval_root_path(root: str) -> Path:
    """The folder of an eval root.

    `weka://bucket/path` is /weka/bucket/path where that is mounted.

    Raises:
        StoreError: it can't be reached from this machine.
    """
    scheme, separator, rest = root.partition("://")
    if not separator:
        return Path(root).expanduser().absolute()
    if scheme == "file":
        return Path("/" + rest.lstrip("/"))
    if scheme == "weka":
        bucket = rest.partition("/")[0]
        if (WEKA_MOUNT / bucket).is_dir():
            return WEKA_MOUNT / rest
        raise StoreError(
            f"the eval root {root} can't be reached: {WEKA_MOUNT / bucket} is not mounted here; "
            f"set {EVAL_ROOT_VARIABLE} to a folder, such as {EVAL_ROOT_VARIABLE}=$HOME/evals"
        )
    raise StoreError(
        f"eval roots of kind {scheme}:// are not supported ({root}); "
        f"set {EVAL_ROOT_VARIABLE} to a folder or a weka:// path"
    )


def resolve_eval_root(settings: Settings, root: str | Path | None = None) -> Path:
    """The eval root that is asked for, or else the environment's."""
    return eval_root_path(str(root) if root is not None else settings.eval_root)
