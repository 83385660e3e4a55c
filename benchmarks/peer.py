"""The existing OlmoEarth eval code, timed. Run by .venv-peers' Python: see bench_peers.py."""

import os
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the pipe's other end

from eval_ingest_tests.support.peer_process import serve

WORKERS = int(os.environ.get("OLMOEARTH_INGEST_WORKERS", "1"))


def warm():
    """Import what is timed later."""
    _use_these_workers()


def ingest(source, root, name):
    """Ingest and register a dataset as its command line does; seconds."""
    from olmoearth_pretrain.evals.studio_ingest import ingest as studio
    from olmoearth_pretrain.evals.studio_ingest.registry import Registry

    _use_these_workers()
    studio.EVAL_DATASETS_BASE_PATH = root
    config = studio.IngestConfig(
        name=name, source_path=source, olmoearth_run_config_path=source, num_samples=None
    )
    started = time.perf_counter()
    entry = studio.ingest_dataset(config)
    registry = Registry.load(f"{root}/registry.json")
    registry.add(entry, overwrite=True)
    registry.save(f"{root}/registry.json")
    return time.perf_counter() - started


def opened(registry, name, split, fresh=False):
    """Seconds until the first sample of a split; with `fresh`, without the index it left."""
    if fresh:
        from olmoearth_pretrain.evals.studio_ingest.registry import Registry

        folder = Path(Registry.load(registry).get(name).weka_path) / ".rslearn_dataset_index"
        for path in folder.glob("*.json"):
            path.unlink()
    started = time.perf_counter()
    _dataset(registry, name, split)[0]
    return time.perf_counter() - started


def sampled(registry, name, split, count, seed):
    """Seconds for so many random samples, and how many there are to choose from."""
    import random

    dataset = _dataset(registry, name, split)
    order = random.Random(seed).choices(range(len(dataset)), k=count)
    dataset[order[0]]
    started = time.perf_counter()
    for i in order:
        dataset[i]
    return time.perf_counter() - started


def _dataset(registry, name, split):
    from olmoearth_pretrain.evals.datasets.rslearn_dataset import from_registry_entry
    from olmoearth_pretrain.evals.studio_ingest.registry import Registry

    return from_registry_entry(Registry.load(registry).get(name), split)


def _use_these_workers():
    """It scans windows with 32 processes, which a small machine would only suffer from."""
    from olmoearth_pretrain.evals.datasets import rslearn_builder, rslearn_dataset
    from olmoearth_pretrain.evals.studio_ingest import band_stats

    build = partial(rslearn_builder.build_model_dataset, init_workers=WORKERS)
    rslearn_dataset.build_model_dataset = band_stats.build_model_dataset = build


if __name__ == "__main__":
    if sys.argv[1:2] == ["ingest"]:
        print(ingest(*sys.argv[2:]))
    elif sys.argv[1:2] == ["first"]:
        opened(*sys.argv[2:])
    else:
        serve(globals())
