"""The existing OlmoEarth eval code, timed. Run by .venv-peers' Python: see bench_peers.py."""

import os
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the pipe's other end

from benchmarks.peer_process import _Absent, serve

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


def fed(root, name, batches, through):
    """Samples a second that the evaluator's own loader gives of a train split, one process.

    Args:
        root: our eval root.
        name: the dataset.
        batches: how many of 128 samples at most.
        through: with our module; else its copies are read through rslearn.
    """
    from types import SimpleNamespace

    import torch
    from olmoearth_pretrain.evals.studio_ingest import registry
    from olmoearth_pretrain.train.callbacks.evaluator_callback import DownstreamEvaluator

    import eval_ingest.integrations.olmoearth_pretrain as ours

    before = registry.REGISTRY_PATH
    ours.install(root) if through else ours.uninstall()
    registry.REGISTRY_PATH = Path(root) / "registry.json"
    try:
        evaluator = SimpleNamespace(
            dataset=name,
            norm_method="norm_no_clip_2_std",
            norm_stats_from_pretrained=True,
            label_fraction=1.0,
            input_modalities=["sentinel2_l2a"],
            num_workers=0,
            h5py_dir=None,
        )
        loader = DownstreamEvaluator._get_data_loader(evaluator, "train", 128)
        torch.manual_seed(0)
        started, count = time.perf_counter(), 0
        for k, (_, target) in enumerate(loader):
            count += len(target)
            if k + 1 == batches:
                break
        return count / (time.perf_counter() - started)
    finally:
        registry.REGISTRY_PATH = before
        ours.uninstall()


def probed(arrays, num_classes, learning_rates, epochs):
    """Seconds, of wall time and of this process, of its linear probe at each rate in turn."""
    import numpy as np
    import torch
    from olmoearth_pretrain.evals.datasets.configs import EvalDatasetConfig, TaskType
    from olmoearth_pretrain.evals.linear_probe import train_and_eval_probe

    torch.set_num_threads(1)
    with np.load(arrays) as stored:
        given = {name: torch.from_numpy(stored[name]) for name in stored.files}
    side = given["train_labels"].shape[1]
    config = EvalDatasetConfig(TaskType.SEGMENTATION, [], num_classes, False, [], side)
    wall, own = time.perf_counter(), time.process_time()
    for rate in learning_rates:
        train_and_eval_probe(
            config, rate, **given, device=torch.device("cpu"), batch_size=32, epochs=epochs,
            eval_interval=10, n_bootstrap=1000, select_best_by_primary_metric=True,
        )  # fmt: skip
    return time.perf_counter() - wall, time.process_time() - own


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
    sys.meta_path.append(_Absent())  # of the callback's imports
    if sys.argv[1:2] == ["ingest"]:
        print(ingest(*sys.argv[2:]))
    elif sys.argv[1:2] == ["first"]:
        opened(*sys.argv[2:])
    else:
        serve(globals())
