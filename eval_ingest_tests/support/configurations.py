"""Small configurations of datasets, as texts, and changes to them: what `resolve` is tried on."""

import copy
import json

import yaml

from eval_ingest.core.modality import MODALITIES
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.inference.resolve import ConfigFiles, resolve

S2 = list(MODALITIES["sentinel2_l2a"].bands)
DROP = object()


def raster(bands, dtype="uint16", **more):
    return {"type": "raster", "band_sets": [{"bands": list(bands), "dtype": dtype}], **more}


def data_input(layers, bands=None, **more):
    values = {"data_type": "raster" if bands else "vector", "layers": layers, **more}
    return values | ({"bands": list(bands)} if bands else {})


def image(layers, bands=S2, **more):
    return data_input(layers, bands, passthrough=True, **more)


def stacked(layers, bands=S2, **more):
    return image(layers, bands, load_all_layers=True, load_all_item_groups=True, **more)


def task(name, **init_args):
    module = {"PerPixelRegressionTask": "per_pixel_regression"}.get(name, name[:-4].lower())
    return {"class_path": f"rslearn.train.tasks.{module}.{name}", "init_args": init_args}


def multi_task(mapping, **tasks):
    return task("MultiTask", tasks=tasks, input_mapping=mapping)


def transform(name, **init_args):
    return {"class_path": f"rslearn.train.transforms.{name.lower()}.{name}", "init_args": init_args}


def join(output, selections, **more):
    return transform("Concatenate", selections=selections, output_selector=output, **more)


def default(*transforms):
    return {"default_config": {"transforms": list(transforms)}}


def band_set(**values):
    return {"type": "raster", "band_sets": [values]}


LAYERS = {
    "sentinel2": raster(sorted(S2), data_source={"name": "rslp.Old"}),
    "pre_sentinel2": raster(S2),
    "post_sentinel2": raster(S2),
    "sentinel2_l1c": raster(S2),
    "sentinel1_ascending": raster(["vv", "vh"], "float32"),
    "sentinel1_descending": raster(["vv", "vh"], "float32"),
    "landsat": raster(["B1", "B2", "B8"], "uint16"),
    "srtm": raster(["dem"], "int16"),
    "label_raster": raster(["label"], "int32"),
    "label": {"type": "vector"},
    "output": {"type": "vector", "format": {"name": "geojson"}},
}
INPUTS = {
    "sentinel2_l2a": stacked(["sentinel2"]),
    "targets": data_input(["label_raster"], ["label"], is_target=True, dtype="INT32"),
}
LABEL_VECTOR = {"targets": data_input(["label"], is_target=True)}


def config_json(layers=None, **top):
    merged = copy.deepcopy(LAYERS) | (layers or {})
    return {"layers": {k: v for k, v in merged.items() if v is not DROP}, **top}


def model_yaml(inputs=None, task_=None, **data):
    merged = INPUTS | (inputs or {})
    init_args = {
        "path": "${DATASET_PATH}",
        "num_workers": "${NUM_WORKERS}",
        "inputs": {key: value for key, value in merged.items() if value is not DROP},
        "task": task_ or task("SegmentationTask", num_classes=3),
        **data,
    }
    return {
        "data": {"class_path": "rslearn.train.data_module.RslearnDataModule"}
        | {"init_args": init_args}
    }


def resolved(config=None, model=None, run=None, **spec):
    return resolve(
        ConfigFiles(
            config_json=json.dumps(config or config_json()),
            model_yaml=None
            if model is DROP
            else yaml.safe_dump(model or model_yaml(), sort_keys=False),
            run_yaml=None if run is None else yaml.safe_dump(run),
            where="gs://bucket/fields",
        ),
        DatasetSpec(name="fields", source="gs://bucket/fields", **spec),
    )


def names(config):
    return [c.name for c in config.task.classes]


def reads(config, modality="sentinel2_l2a"):
    return [read.specifier for part in config.modality(modality).parts for read in part.reads]


S2_PARTS = {f"sentinel2_{i}": image([f"sentinel2.{i}" if i else "sentinel2"]) for i in (0, 1, 2)}
JOIN = join("sentinel2_l2a", {key: [] for key in S2_PARTS})
NO_S2 = {"sentinel2_l2a": DROP}
GEN1 = {
    "window_prep": {
        "labeled_window_preparer": {"class_path": "olmoearth_run.X", "init_args": {}},
        "data_splitter": {
            "class_path": "olmoearth_run.Y",
            "init_args": {"train_prop": 75, "val_prop": 25, "test_prop": 0},
        },
        "label_layer": "label_raster",
        "group_name": "spatial_split",
        "split_property": "fold",
    },
    "inference_results_config": {
        "classification_fields": [
            {
                "property_name": "category",
                "allowed_values": [
                    {"value": 0, "label": "water", "color": [0, 0, 255]},
                    {"value": 1, "label": "land", "color": "#00ff00"},
                    {"value": 2, "label": "ice", "color": {"r": 250, "g": 251, "b": 252}},
                ],
            }
        ]
    },
}


def gen2(values, nodata=None):
    field = {"allowed_values": [{"value": v, "label": name} for v, name in values]}
    field |= {} if nodata is None else {"nodata_value": nodata}
    return {"config_version": "0.7.1", "data": {"output": {"fields": {"segment": field}}}}


def with_task(name, inputs=None, **init_args):
    return {"model": model_yaml(inputs, task(name, **init_args))}
