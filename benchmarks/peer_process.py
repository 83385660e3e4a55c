"""The existing OlmoEarth eval code, asked over a pipe. Run by .venv-peers' Python, not by ours.

One JSON request a line on stdin, one JSON reply a line on stdout. The package is used as it is
published; what stands beside it here is only what its own imports lack on PyPI.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import traceback
import types
from dataclasses import asdict, dataclass


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Other people's encoders that its callback imports, and that can't be installed with it."""

    NAMES = ("claymodel", "terratorch")

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.NAMES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = _any_class
        return module

    def exec_module(self, module):
        pass


def _any_class(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


class ScannedError(Exception):
    """rslearn read the windows' metadata one by one."""


def forbid_scans():
    """A scan of windows is an error from now on."""
    from rslearn.dataset.storage.file import FileWindowStorage

    def scan(*args, **kwargs):
        raise ScannedError("rslearn scans the windows")

    FileWindowStorage.get_windows = scan


def configs(registry):
    """Every entry of a registry as its EvalDatasetConfig."""
    from olmoearth_pretrain.evals.studio_ingest.registry import Registry

    return {entry.name: asdict(entry.to_eval_config()) for entry in Registry.load(registry)}


def read(registry, name, split, out, arguments=None):
    """Write a split's samples to a .npz; returns the windows in order."""
    import numpy as np
    from olmoearth_pretrain.evals.datasets.rslearn_dataset import from_registry_entry
    from olmoearth_pretrain.evals.studio_ingest.registry import Registry

    dataset = from_registry_entry(Registry.load(registry).get(name), split, **(arguments or {}))
    arrays = {}
    for i in range(len(dataset)):
        sample, target = dataset[i]
        for key, value in sample.as_dict().items():
            if value is not None:
                arrays[f"{i}.{key}"] = value.numpy()
        arrays[f"{i}.target"] = target.numpy()
    np.savez(out, **arrays)
    inner, order = dataset.dataset, range(len(dataset))
    if hasattr(inner, "indices"):  # a label fraction
        inner, order = inner.dataset, inner.indices
    windows = inner.get_dataset_examples()
    if hasattr(inner, "crops"):  # each sample is a crop of a window
        order = [inner.crops[k][0] for k in order]
    return [f"{windows[k].group}/{windows[k].name}" for k in order]


def read_through(root, name, split, out, dates="real", arguments=None, registry=None):
    """As `read`, with eval_ingest's module imported, in batches of the trainer's loader."""
    import numpy as np
    from olmoearth_pretrain.evals import datasets
    from olmoearth_pretrain.evals.datasets import utils
    from torch.utils.data import DataLoader

    import eval_ingest.integrations.olmoearth_pretrain as ours

    ours.install(root, dates=dates)
    try:
        entry = datasets.get_dataset_entry(name, registry)
        dataset = datasets.from_registry_entry(entry, split, **(arguments or {}))
        collate = utils.eval_collate_fn_variable_time
        arrays, first = {}, 0
        for sample, target in DataLoader(dataset, batch_size=4, collate_fn=collate):
            for k in range(len(target)):
                for key, value in sample.as_dict().items():
                    if value is not None:
                        arrays[f"{first + k}.{key}"] = value[k].numpy()
                arrays[f"{first + k}.target"] = target[k].numpy()
            first += len(target)
        single, target = dataset[len(dataset) - 1]
        for key, value in single.as_dict().items():
            if value is not None:
                arrays[f"{first}.{key}"] = value.numpy()
        arrays[f"{first}.target"] = target.numpy()
        np.savez(out, **arrays)
        inner = dataset.dataset
        return [type(dataset).__name__, *(inner.window(i) for i in range(len(inner)))]
    finally:
        ours.uninstall()


def opened_by(root, names, split):
    """What opens each dataset, all in one run; our module is installed twice, and undone twice."""
    from olmoearth_pretrain.evals import datasets

    import eval_ingest.integrations.olmoearth_pretrain as ours

    ours.install(root)
    ours.install(root)
    try:
        entries = {name: datasets.get_dataset_entry(name) for name in names}
        opened = {name: datasets.from_registry_entry(e, split) for name, e in entries.items()}
        return {name: [type(found).__name__, len(found)] for name, found in opened.items()}
    finally:
        ours.uninstall()
        ours.uninstall()


def replaced(root):
    """What stands in the trainer's modules before, with, and after ours: as it was?"""
    from olmoearth_pretrain.evals import datasets, studio_ingest
    from olmoearth_pretrain.evals.datasets import configs, utils
    from olmoearth_pretrain.evals.studio_ingest import registry

    def everything():
        modules = (datasets, studio_ingest, configs, utils, registry)
        return {f"{m.__name__}.{k}": v for m in modules for k, v in vars(m).items()}

    import eval_ingest.integrations.olmoearth_pretrain as ours

    ours.uninstall()
    before = everything()
    ours.install(root)
    import olmoearth_pretrain.train.callbacks.evaluator_callback as callback

    with_ours = everything()
    ours.install(root)
    ours.uninstall()
    ours.uninstall()
    after = everything()
    return {
        "changed": sorted(k for k in before if before[k] is not with_ours[k]),
        "left": sorted(k for k in before if before[k] is not after[k]),
        "callback": callback.eval_collate_fn_variable_time
        is before["olmoearth_pretrain.evals.datasets.utils.eval_collate_fn_variable_time"],
    }


def collate(registry, name, split, out):
    """Write a split as one batch to a .npz."""
    import numpy as np
    from olmoearth_pretrain.evals.datasets.rslearn_dataset import from_registry_entry
    from olmoearth_pretrain.evals.datasets.utils import eval_collate_fn_variable_time
    from olmoearth_pretrain.evals.studio_ingest.registry import Registry

    dataset = from_registry_entry(Registry.load(registry).get(name), split)
    sample, target = eval_collate_fn_variable_time([dataset[i] for i in range(len(dataset))])
    arrays = {k: v.numpy() for k, v in sample.as_dict().items() if v is not None}
    np.savez(out, target=target.numpy(), **arrays)


def python_tasks(code):
    """Run a module that defines EVAL_TASKS; returns them."""
    return {name: asdict(task) for name, task in _run(code).items()}


def lookups(code, names):
    """Where the datasets of these names lie, after a module that defines EVAL_TASKS has run."""
    _run(code)
    from olmoearth_pretrain.evals.datasets import get_dataset_entry

    return {name: get_dataset_entry(name).weka_path for name in names}


def own_tasks():
    """The tasks that its own list has, without the launcher that it stands in."""
    import ast
    from pathlib import Path

    import olmoearth_pretrain

    path = Path(olmoearth_pretrain.__file__).parent / "internal" / "all_evals.py"
    wanted = [
        node
        for node in ast.parse(path.read_text()).body
        if (isinstance(node, ast.ImportFrom) and node.module in _NAMES_OF_TASKS)
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EVAL_TASKS")
    ]
    namespace = {}
    exec(compile(ast.Module(wanted, []), str(path), "exec"), namespace)
    return {name: asdict(task) for name, task in namespace["EVAL_TASKS"].items()}


_NAMES_OF_TASKS = (
    "olmo_core.train.common",
    "olmoearth_pretrain.data.constants",
    "olmoearth_pretrain.evals.datasets.normalize",
    "olmoearth_pretrain.evals.metrics",
    "olmoearth_pretrain.nn.pooling",
    "olmoearth_pretrain.train.callbacks.evaluator_callback",
)


def overridden_tasks(arguments):
    """The tasks of a trainer's configuration after these command line arguments."""
    from olmo_core.config import Config
    from olmo_core.train.config import TrainerConfig
    from olmoearth_pretrain.train.callbacks.evaluator_callback import (
        DownstreamEvaluatorCallbackConfig,
        DownstreamTaskConfig,
    )

    @dataclass
    class Experiment(Config):
        trainer: TrainerConfig

    # from_dict finds the class by its name
    Experiment.__module__, Experiment.__qualname__ = __name__, "Experiment"
    globals()["Experiment"] = Experiment
    callback = DownstreamEvaluatorCallbackConfig(tasks={"own": DownstreamTaskConfig("own")})
    trainer = TrainerConfig(save_folder="unused").with_callback("downstream_evaluator", callback)
    tasks = Experiment(trainer).merge(arguments).trainer.callbacks["downstream_evaluator"].tasks
    assert all(isinstance(task, DownstreamTaskConfig) for task in tasks.values())
    return {name: asdict(task) for name, task in tasks.items()}


def evaluate_through(root, code, only=None, epochs=2):
    """As `evaluate`, with eval_ingest's module imported and the dates of its own loader."""
    import eval_ingest.integrations.olmoearth_pretrain as ours

    ours.install(root, dates="monthly")
    try:
        return evaluate(code, only, epochs)
    finally:
        ours.uninstall()


def evaluate(code, only=None, epochs=2):
    """Run its own evaluators of EVAL_TASKS on an encoder with random weights; scores by task."""
    import torch
    from olmoearth_pretrain.nn.flexi_vit import EncoderConfig
    from olmoearth_pretrain.train.callbacks.evaluator_callback import (
        DownstreamEvaluatorCallbackConfig,
    )

    tasks = _run(code)
    for task in tasks.values():
        task.num_workers, task.epochs, task.linear_probe_eval_interval = 0, epochs, 1
    torch.manual_seed(0)
    modalities = ["sentinel2_l2a", "sentinel1", "landsat"]
    encoder = EncoderConfig(supported_modality_names=modalities).build()
    module = types.SimpleNamespace(model=types.SimpleNamespace(encoder=encoder))
    trainer = types.SimpleNamespace(device=torch.device("cpu"), train_module=module)
    callback = DownstreamEvaluatorCallbackConfig(tasks=tasks, tasks_to_run=only).build(trainer)
    scores = {}
    for evaluator in callback.evaluators:
        # The order of batches and the probe's first weights don't depend on what opening drew.
        evaluator._get_embeddings = _seeded(evaluator._get_embeddings)
        evaluator.eval_function = _seeded(evaluator.eval_function)
        result = evaluator.val().val_result
        scores[evaluator.evaluation_name] = {k: float(v) for k, v in result.metrics.items()}
    return scores


def probe_scores(
    arrays, task_type, num_classes, seeds=(0,), learning_rate=0.01, epochs=10, dice=False
):
    """Its probes' metrics on given embeddings, once for each seed: kNN without a learning rate.

    `arrays` is a .npz of embeddings and labels of train, val and test.
    """
    import numpy as np
    import torch
    from olmoearth_pretrain.evals.datasets.configs import EvalDatasetConfig, TaskType
    from olmoearth_pretrain.evals.knn import run_knn
    from olmoearth_pretrain.evals.linear_probe import train_and_eval_probe

    with np.load(arrays) as stored:
        given = {name: torch.from_numpy(stored[name]) for name in stored.files}
    side = given["train_labels"].shape[1] if given["train_labels"].ndim == 3 else None
    config = EvalDatasetConfig(TaskType(task_type), [], num_classes, False, [], side)
    given["device"] = torch.device("cpu")
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        if learning_rate is None:
            result = run_knn(config, **given)
        else:
            result = train_and_eval_probe(
                config, learning_rate, **given, batch_size=32, epochs=epochs, eval_interval=epochs,
                use_dice_loss=dice,
            )  # fmt: skip
        found.append({k: float(v) for k, v in result.test_result.metrics.items()})
    return found


def pooled(root, name, split, windows=4):
    """How far our embeddings of some windows are from its own wrapper's, by pooling.

    One small encoder with random weights, given the same samples window by window.
    """
    import numpy as np
    import torch
    from olmoearth_pretrain.evals.datasets.configs import TaskType
    from olmoearth_pretrain.evals.eval_wrapper import OlmoEarthEvalWrapper
    from olmoearth_pretrain.nn.flexi_vit import EncoderConfig

    from eval_ingest import EvalDataset
    from eval_ingest.integrations.olmoearth_pretrain import TrainerSamples, uninstall
    from eval_ingest.sweep.embed import embedded_batches
    from eval_ingest.sweep.encoders.olmoearth import OlmoEarthEncoder

    uninstall()
    dataset = EvalDataset(name, split, root=root, normalize="pretrained", max_samples=windows)
    torch.manual_seed(0)
    encoder = EncoderConfig(supported_modality_names=list(dataset.bands)).build().eval()
    samples, found = TrainerSamples(dataset), {}
    ours = OlmoEarthEncoder(encoder, "random", "random", 4, torch.device("cpu"))
    per_pixel = dataset.task.kind.per_pixel
    for pooling in ("mean", "max") if per_pixel else ("mean", "max", "center"):
        theirs = OlmoEarthEvalWrapper(
            encoder, TaskType(str(dataset.task.kind)), 4,
            "mean" if pooling == "center" else pooling, use_center_token=pooling == "center",
        )  # fmt: skip
        apart, size = [], 0.0
        for batch in embedded_batches(dataset, ours, batch_size=1, pooling=pooling):
            (index,) = batch.indices
            given = samples.__getitems__([int(index)])
            with torch.no_grad():
                expected = theirs(given.sample, given.target)[0].flatten(0, -2).numpy()
            apart.append(float(np.abs(expected - batch.features).max()))
            size = max(size, float(np.abs(expected).max()))
        found[pooling] = [max(apart), size, len(apart)]
    return found


def metrics(arrays, task_type, num_classes):
    """Its metrics of given predictions, labels and, of classes, scores."""
    import numpy as np
    import torch
    from olmoearth_pretrain.evals.datasets.configs import TaskType
    from olmoearth_pretrain.evals.linear_probe import compute_metric

    with np.load(arrays) as stored:
        given = {name: torch.from_numpy(stored[name]) for name in stored.files}
    result = compute_metric(**given, num_classes=num_classes, task_type=TaskType(task_type))
    return {k: float(v) for k, v in result.metrics.items()}


def _seeded(function):
    def call(*args, **kwargs):
        import torch

        torch.manual_seed(0)
        return function(*args, **kwargs)

    return call


def _run(code):
    namespace = {}
    exec(compile(code, "tasks.py", "exec"), namespace)
    return namespace["EVAL_TASKS"]


def serve(functions):
    """Answer requests until there are no more."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the packages print is not a reply
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"value": functions[request["do"]](**request["with"])}
        except Exception:
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply, default=str), file=replies, flush=True)


if __name__ == "__main__":
    sys.meta_path.append(_Absent())
    forbid_scans()
    serve(globals())
