"""What a configuration says of modalities, bands and transforms: each variation a row."""

import pytest

from eval_ingest.core.resolved import Pad
from eval_ingest_tests.support.configurations import (
    JOIN,
    NO_S2,
    S2,
    S2_PARTS,
    band_set,
    config_json,
    data_input,
    default,
    image,
    join,
    model_yaml,
    raster,
    reads,
    resolved,
    stacked,
    transform,
)

# What is given, what is seen, what is expected.
ROWS = {
    "inputs with class_path": (
        {
            "model": model_yaml(
                {
                    "sentinel2_l2a": {
                        "class_path": "rslearn.train.dataset.DataInput",
                        "init_args": stacked(["sentinel2"]),
                    }
                }
            )
        },
        reads,
        ["sentinel2.*"],
    ),
    "modality by the layer, not the key": (
        {"model": model_yaml(NO_S2 | {"image": stacked(["sentinel2"])})},
        lambda c: [m.name for m in c.modalities],
        ["sentinel2_l2a"],
    ),
    "another product under the modality's name": (
        {"model": model_yaml({"sentinel2_l2a": stacked(["sentinel2_l1c"])})},
        lambda c: (reads(c), "sentinel2_l1c" in " ".join(c.warnings)),
        (["sentinel2_l1c.*"], True),
    ),
    "item groups one by one": (
        {
            "model": model_yaml(
                {"sentinel2_l2a": image(["sentinel2", "sentinel2.1"], load_all_layers=True)}
            )
        },
        lambda c: (reads(c), c.modality("sentinel2_l2a").parts[0].stack),
        (["sentinel2", "sentinel2.1"], True),
    ),
    "one layer picked at random": (
        {"model": model_yaml({"sentinel2_l2a": image(["pre_sentinel2", "post_sentinel2"])})},
        lambda c: (
            c.modality("sentinel2_l2a").parts[0].stack,
            "first completed" in " ".join(c.warnings),
        ),
        (False, True),
    ),
    "layers before and after in one input": (
        {"model": model_yaml({"sentinel2_l2a": stacked(["pre_sentinel2", "post_sentinel2"])})},
        reads,
        ["pre_sentinel2.*", "post_sentinel2.*"],
    ),
    "layers before and after in two inputs": (
        {
            "model": model_yaml(
                NO_S2
                | {"pre_sentinel2": stacked(["pre_sentinel2"])}
                | {"post_sentinel2": stacked(["post_sentinel2"])}
            )
        },
        lambda c: ([m.name for m in c.modalities], reads(c)),
        (["sentinel2_l2a"], ["pre_sentinel2.*", "post_sentinel2.*"]),
    ),
    "both orbits are one modality": (
        {
            "model": model_yaml(
                {
                    "sentinel1_ascending": stacked(["sentinel1_ascending"], ["vv", "vh"]),
                    "sentinel1_descending": stacked(["sentinel1_descending"], ["vh", "vv"]),
                }
            )
        },
        lambda c: (
            [m.name for m in c.modalities],
            reads(c, "sentinel1"),
            c.modality("sentinel1").bands,
            c.modality("sentinel1").decibels,
        ),
        (
            ["sentinel2_l2a", "sentinel1"],
            ["sentinel1_ascending.*", "sentinel1_descending.*"],
            ("vv", "vh"),
            True,
        ),
    ),
    "the same layer in two inputs": (
        {"model": model_yaml({"image": stacked(["sentinel2"])})},
        lambda c: (reads(c), "image, of the same modality, is not loaded" in " ".join(c.warnings)),
        (["sentinel2.*"], True),
    ),
    "an unsupported input": (
        {"model": model_yaml({"srtm": image(["srtm"], ["dem"])})},
        lambda c: (c.unsupported_inputs, [layer.name for layer in c.layers]),
        (("srtm (layer srtm)",), ["sentinel2", "label_raster"]),
    ),
    "an input that doesn't reach the model": (
        {"model": model_yaml({"landsat": data_input(["landsat"], ["B1"])})},
        lambda c: ([m.name for m in c.modalities], "landsat" in " ".join(c.warnings)),
        (["sentinel2_l2a"], True),
    ),
    "an optional modality": (
        {
            "model": model_yaml(
                {"sentinel1": stacked(["sentinel1_ascending"], ["vv"], required=False)}
            )
        },
        lambda c: (c.modality("sentinel1").required, c.modality("sentinel1").missing_bands),
        (False, ("vh",)),
    ),
    "a modality chosen by flag": (
        {
            "model": model_yaml({"sentinel1": stacked(["sentinel1_ascending"], ["vv", "vh"])}),
            "modalities": ("sentinel1",),
        },
        lambda c: ([m.name for m in c.modalities], [x.name for x in c.layers]),
        (["sentinel1"], ["sentinel1_ascending", "label_raster"]),
    ),
    # bands
    "bands come in the modality's order": (
        {"model": model_yaml({"sentinel2_l2a": stacked(["sentinel2"], ["B12", "B02", "B08"])})},
        lambda c: (
            c.modality("sentinel2_l2a").bands,
            len(c.modality("sentinel2_l2a").missing_bands),
        ),
        (("B02", "B08", "B12"), 9),
    ),
    "bands that the modality doesn't know": (
        {
            "config": config_json({"sentinel2": raster(["B02", "SCL"])}),
            "model": model_yaml({"sentinel2_l2a": stacked(["sentinel2"], ["SCL", "B02"])}),
        },
        lambda c: (c.modality("sentinel2_l2a").bands, "SCL" in " ".join(c.warnings)),
        (("B02",), True),
    ),
    "all bands of a band set": (
        {
            "model": model_yaml(
                {
                    "landsat": {
                        "data_type": "raster",
                        "layers": ["landsat"],
                        "passthrough": True,
                        "use_all_bands_in_order_of_band_set_idx": 0,
                    }
                }
            )
        },
        lambda c: c.modality("landsat").bands,
        ("B8", "B1", "B2"),
    ),
    "bands common to the parts": (
        {
            "model": model_yaml(
                NO_S2
                | {"pre_sentinel2": stacked(["pre_sentinel2"], ["B02", "B03"])}
                | {"post_sentinel2": stacked(["post_sentinel2"], ["B03", "B04"])}
            )
        },
        lambda c: (c.modality("sentinel2_l2a").bands, "B02, B04" in " ".join(c.warnings)),
        (("B03",), True),
    ),
    "numbered bands": (
        {
            "config": config_json({"label_raster": band_set(num_bands=1, dtype="UINT8")}),
            "model": model_yaml({"targets": data_input(["label_raster"], ["B0"], is_target=True)}),
        },
        lambda c: (c.label.band, c.layer("label_raster").band_sets[0].dtype, c.label.dtype),
        ("B0", "uint8", "float32"),
    ),
    # Concatenate and the other transforms
    "an input per timestep, joined": (
        {"model": model_yaml(NO_S2 | S2_PARTS, **default(JOIN))},
        lambda c: ([m.name for m in c.modalities], reads(c)),
        (["sentinel2_l2a"], ["sentinel2", "sentinel2.1", "sentinel2.2"]),
    ),
    "joined in the order of the selections": (
        {
            "model": model_yaml(
                NO_S2 | S2_PARTS,
                **default(join("image", {f"input/sentinel2_{i}": [] for i in (2, 0, 1)})),
            )
        },
        reads,
        ["sentinel2.2", "sentinel2", "sentinel2.1"],
    ),
    "joined in two steps with chosen bands": (
        {
            "model": model_yaml(
                NO_S2 | S2_PARTS,
                **default(
                    join("first", {"sentinel2_0": [1, 0], "sentinel2_1": [1, 0]}),
                    join("sentinel2_l2a", {"first": [], "sentinel2_2": [1, 0]}),
                ),
            )
        },
        lambda c: (reads(c), c.modality("sentinel2_l2a").bands),
        (["sentinel2", "sentinel2.1", "sentinel2.2"], ("B02", "B03")),
    ),
    "bands of one layer side by side in the channels": (
        {
            "model": model_yaml(
                NO_S2
                | {
                    "ten": stacked(["sentinel2"], ["B02"]),
                    "twenty": stacked(["sentinel2"], ["B05"]),
                },
                **default(
                    join("image", {"ten": [], "twenty": []}, concatenate_dim=0),
                    transform("Pad", size=32, image_selectors=["image"]),
                ),
            )
        },
        lambda c: (c.modality("sentinel2_l2a").bands, reads(c), c.modalities[0].pad),
        (("B02", "B05"), ["sentinel2.*"], Pad(size=32)),
    ),
    "select bands": (
        {
            "model": model_yaml(
                **default(
                    transform(
                        "SelectBands",
                        band_indices=[3, 0],
                        input_selector="sentinel2_l2a",
                        output_selector="sentinel2_l2a",
                    )
                )
            )
        },
        lambda c: c.modality("sentinel2_l2a").bands,
        ("B02", "B08"),
    ),
    "a fixed pad on image and label": (
        {
            "model": model_yaml(
                **default(
                    transform(
                        "Pad",
                        size=[64, 65],
                        mode="center",
                        image_selectors=["sentinel2_l2a", "target/classes", "target/valid"],
                    )
                )
            )
        },
        lambda c: (c.modalities[0].pad, c.label.pad),
        (Pad(size=64, center=True), Pad(size=64, center=True)),
    ),
    "a pad of the joined image": (
        {
            "model": model_yaml(
                NO_S2 | S2_PARTS,
                **default(transform("Pad", size=8, image_selectors=list(S2_PARTS)), JOIN),
            )
        },
        lambda c: c.modalities[0].pad,
        Pad(size=8),
    ),
    "transforms left out": (
        {
            "model": model_yaml(
                **default(
                    transform("Pad", size=[32, 64], image_selectors=["sentinel2_l2a"]),
                    transform("Sentinel1ToDecibels", selectors=["sentinel1"]),
                    transform("Resize", target_size=[8, 8]),
                ),
                train_config={
                    "transforms": [
                        transform("Crop", crop_size=16),
                        transform("Flip"),
                        transform("Normalize", mean=0, std=1),
                    ]
                },
            )
        },
        lambda c: ([text.split(" (")[0] for text in c.dropped_transforms], c.modalities[0].pad),
        (["Pad", "Sentinel1ToDecibels", "Resize", "Crop", "Flip", "Normalize"], None),
    ),
    # packed types
    "mixed whole numbers": (
        {
            "config": config_json({"pre_sentinel2": raster(S2, "int16")}),
            "model": model_yaml({"sentinel2_l2a": stacked(["sentinel2", "pre_sentinel2"])}),
        },
        lambda c: c.modality("sentinel2_l2a").dtype,
        "int32",
    ),
    "wide whole numbers": (
        {"config": config_json({"sentinel2": raster(S2, "uint32")})},
        lambda c: (c.modality("sentinel2_l2a").dtype, "uint32" in " ".join(c.warnings)),
        ("float32", True),
    ),
    "small signed numbers": (
        {"config": config_json({"sentinel2": raster(S2, "int8")})},
        lambda c: c.modality("sentinel2_l2a").dtype,
        "int16",
    ),
    "the type of the bands that are read": (
        {
            "config": config_json(
                {
                    "sentinel2": {
                        "type": "raster",
                        "band_sets": [
                            {"bands": S2, "dtype": "uint8"},
                            {"bands": ["B02", "mask"], "dtype": "float32"},
                        ],
                    }
                }
            )
        },
        lambda c: c.modality("sentinel2_l2a").dtype,
        "uint8",
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_a_variation_is_understood(row):
    given, seen, expected = row
    assert seen(resolved(**given)) == expected


def padded(size):
    return {"transforms": [transform("Pad", size=size, image_selectors=["sentinel2_l2a"])]}


@pytest.mark.parametrize(
    ("configs", "sizes"),
    [
        ({"train_config": padded(4), "val_config": {"groups": ["v"]}}, (4, None, None)),
        ({"train_config": {"groups": ["t"]}, "val_config": padded(4)}, (None, 4, 4)),
        ({"val_config": padded(4), "test_config": padded(5)}, (4, 4, 5)),
        ({"train_config": padded(6), "test_config": padded(5)}, (6, 5, 5)),
        ({"train_config": padded(6)}, (6, 6, 6)),
        ({"default_config": padded(3), "val_config": {"groups": ["v"]}}, (3, 3, 3)),
        ({"train_config": padded([4, 9]), "val_config": padded(5)}, (5, 5, 5)),
    ],
)
def test_each_split_has_its_own_pad_and_that_of_val_where_its_own_is_random(configs, sizes):
    config = resolved(model=model_yaml(**configs))
    pads = [config.modality("sentinel2_l2a").pad_of(split) for split in ("train", "val", "test")]
    assert tuple(pad and pad.size for pad in pads) == sizes
