"""A dataset's own configuration, resolved: what is predicted from what, and who said so.

`resolve` is the story: read config.json, olmoearth_run.yaml and model.yaml; find the task, the
label, the modalities, the crop and the splits; note where each came from. Nothing is fetched,
imported or instantiated here: texts in, a `ResolvedConfig` out.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from eval_ingest.core.resolved import Layer, ResolvedConfig, SplitSelector
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.errors import ConfigError
from eval_ingest.inference.crops import all_crops, crop_size, fitting_crop
from eval_ingest.inference.dataset_json import DatasetJson
from eval_ingest.inference.guess import guess
from eval_ingest.inference.inputs import ModalityReader, raster_bands, read_layer
from eval_ingest.inference.labels import TaskReader
from eval_ingest.inference.model_yaml import DataInput, Declaration, parse_model_yaml
from eval_ingest.inference.node import Node, Notes, with_variables
from eval_ingest.inference.run_yaml import RunYaml
from eval_ingest.inference.transforms import MissingError, Replay, replay


@dataclass(frozen=True)
class ConfigFiles:
    """The raw texts of a dataset's configuration files; None where missing."""

    config_json: str
    """config.json (or dataset.json) of the rslearn dataset."""
    model_yaml: str | None = None
    run_yaml: str | None = None
    """olmoearth_run.yaml."""
    where: str = ""
    """The folder or URL, for messages."""
    variables: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    """By file, what `${NAME}` stands for in it; nothing where others wrote the file."""
    permissions: Mapping[str, int] = field(default_factory=dict)
    """By file, the mode bits that a copy of it may have; any where it isn't named."""
    paths: Mapping[str, str] = field(default_factory=dict)
    """By file, its path or URL where it has another name or place; for messages."""

    def place(self, file: str) -> tuple[str, str]:
        """The folder or URL that holds a file, and its name there."""
        folder, _, name = self.paths.get(file, f"{self.where.rstrip('/')}/{file}").rpartition("/")
        return folder, name

    @property
    def dataset(self) -> DatasetJson:
        """config.json, parsed."""
        text = with_variables(self.config_json, self.variables.get("config.json", {}))
        return DatasetJson.parse(text, *self.place("config.json"))


def resolve(files: ConfigFiles, spec: DatasetSpec) -> ResolvedConfig:
    """What the samples of a dataset are made of; the spec overrides what the files say."""
    notes = Notes()
    dataset = files.dataset
    run = RunYaml.parse(files.run_yaml, *files.place("olmoearth_run.yaml"))
    if files.model_yaml is None:
        declared = guess(dataset, run, spec, notes)
    else:
        _check_flags(files, spec)
        text = with_variables(files.model_yaml, files.variables.get("model.yaml", {}))
        declared = parse_model_yaml(text, *files.place("model.yaml"), notes, spec.task)

    replayed, others = _replay(declared, dataset, notes)
    inputs = {data_input.key: data_input for data_input in declared.inputs}
    images = ModalityReader(replayed, others, inputs, dataset, notes)
    modalities, unsupported = images.modalities(spec.modalities)
    notes.origin("modalities", _modalities_place(declared, spec))
    reader = TaskReader(
        declared.task, declared.label, dataset, run, spec, notes, files.model_yaml is None
    )
    label = reader.label_input(replayed, others, inputs)
    task = reader.task()
    masks = [label.mask, *(modality.mask for modality in modalities)]
    parts = [part for modality in modalities for part in modality.parts]
    parts += [mask.part for mask in masks if mask is not None]
    layers = _layers([inputs[part.key] for part in parts] + [declared.label], dataset)
    _note_required(declared.inputs, {layer.name for layer in layers}, notes)
    ratios = run.ratios(notes)
    if ratios:
        notes.origin("declared_ratios", ratios[1])
    return ResolvedConfig(
        task=task,
        label=label,
        modalities=modalities,
        layers=layers,
        crop_size=fitting_crop(crop_size(declared, run, spec, notes), declared, modalities, notes),
        all_crops=all_crops(declared, spec, notes),
        selectors=_selectors(declared, run, notes),
        declared_ratios=ratios[0] if ratios else None,
        window_storage=dataset.window_storage,
        data_storage=dataset.data_storage,
        unsupported_inputs=(*unsupported, *_vector_inputs(declared)),
        dropped_transforms=tuple(replayed.dropped),
        provenance=dict(notes.provenance),
        warnings=tuple(notes.warnings),
    )


def _check_flags(files: ConfigFiles, spec: DatasetSpec) -> None:
    """Refuse what is only for datasets without model.yaml."""
    if spec.label_layer is not None:
        raise ConfigError(
            f"{'/'.join(files.place('model.yaml'))} says where the label is, and --label-layer is "
            "for datasets without it; leave --label-layer out"
        )


def _replay(
    declared: Declaration, dataset: DatasetJson, notes: Notes
) -> tuple[Replay, dict[str, Replay]]:
    """Replay the transforms of the evaluation splits; and of others, where only Pads differ."""
    rasters = [data_input for data_input in declared.inputs if not data_input.vector]
    bands = {i.key: raster_bands(i, dataset) for i in rasters if i.passthrough}

    def replayed_by(transforms: Iterable[Node], told: Notes) -> Replay:
        return replay(transforms, bands, declared.targets, declared.task.name, told)

    try:
        replayed = replayed_by(declared.transforms, notes)
    except MissingError as missing:
        replayed = _by_train(declared, replayed_by, missing, notes)
    hidden = [i.key for i in rasters if i.key not in bands and not i.is_target]
    if hidden:
        notes.warn(
            f"inputs {', '.join(hidden)} don't reach the model, having no passthrough; they are "
            "not loaded"
        )
    return replayed, _other_splits(declared, replayed_by, replayed, notes)


def _by_train(
    declared: Declaration,
    replayed_by: Callable[[Iterable[Node], Notes], Replay],
    missing: MissingError,
    notes: Notes,
) -> Replay:
    """Train's transforms, where rslearn would fail on val's; they say what was meant."""
    try:
        replayed = replayed_by(declared.train_transforms, notes)
    except MissingError:
        raise missing from None
    notes.warn(f"{missing}; rslearn fails on that, and train's transforms are taken for all splits")
    return replayed


def _other_splits(
    declared: Declaration,
    replayed_by: Callable[[Iterable[Node], Notes], Replay],
    replayed: Replay,
    notes: Notes,
) -> dict[str, Replay]:
    """The other splits whose samples are of the same images; the others are told."""
    splits = declared.splits
    if splits is None:
        return {}
    used, found = splits.judged_by(), {}
    for split in splits.others():
        try:
            other = replayed_by(splits.transforms(split), Notes())
        except ConfigError as error:
            notes.warn(
                f"{split}'s transforms can't be followed ({error}); {used}'s are used for all "
                "splits"
            )
            continue
        replayed.dropped += [text for text in other.dropped if text not in replayed.dropped]
        if other.images_alone() != replayed.images_alone():
            notes.warn(
                f"{split}'s transforms (Concatenate, SelectBands, Mask) differ from those of "
                f"{used}; {used}'s are used for all splits"
            )
        elif not other.chance:  # samples have one size, which a random Pad can't say
            found[split] = other
    return found


def _note_required(inputs: Iterable[DataInput], read: set[str], notes: Notes) -> None:
    """Tell of inputs that nothing here reads, but without which rslearn leaves a window out."""
    found = [i.key for i in inputs if i.required and not read.issuperset(i.layers)]
    if found:
        notes.warn(
            f"inputs {', '.join(found)} are required but not read: rslearn leaves out the windows "
            "that lack them, and these stay here"
        )


def _vector_inputs(declared: Declaration) -> tuple[str, ...]:
    return tuple(
        f"{i.key} (vector layer {', '.join(i.layers)})"
        for i in declared.inputs
        if i.vector and i.passthrough
    )


def _modalities_place(declared: Declaration, spec: DatasetSpec) -> str:
    if spec.modalities:
        return "--modalities"
    if declared.splits is None:
        return "config.json: layers"
    return declared.splits.node.get("inputs").place


def _layers(inputs: Iterable[DataInput], dataset: DatasetJson) -> tuple[Layer, ...]:
    """The layers that the inputs read, each once, in order."""
    layers: dict[str, Layer] = {}
    for data_input in inputs:
        for name in data_input.layers:
            layers.setdefault(name, read_layer(data_input, name, dataset))
    return tuple(layers.values())


# --- splits ---


def _selectors(declared: Declaration, run: RunYaml, notes: Notes) -> dict[str, SplitSelector]:
    """Which windows each split takes, by model.yaml or else by the run file's window_prep."""
    if declared.splits is not None:
        selectors = declared.splits.selectors(notes)
        if selectors:
            notes.origin("selectors", declared.splits.node.get("{split}_config").place)
            return selectors
    selectors, place = run.selectors()
    if selectors:
        notes.origin("selectors", place)
    return selectors
