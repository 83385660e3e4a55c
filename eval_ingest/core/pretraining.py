"""What OlmoEarth's pretraining saw: mean and standard deviation per band.

The numbers are facts from `data/norm_configs/computed.json` of olmoearth-pretrain-minimal 0.1.5
(Apache 2.0), rounded to five significant digits, for judging whether a dataset's units are
plausible. Pretrained normalisation takes the package's own file: see loading.normalize.
"""

PRETRAINING: dict[str, dict[str, tuple[float, float]]] = {
    "sentinel2_l2a": {
        "B02": (1188.9, 1859.2),
        "B03": (1407.8, 1727.7),
        "B04": (1513.1, 1740.8),
        "B08": (2755.5, 1612.3),
        "B05": (1891.0, 1754.7),
        "B06": (2483.8, 1622.1),
        "B07": (2722.7, 1621.8),
        "B8A": (2885.6, 1611.4),
        "B11": (2562.9, 1441.5),
        "B12": (1914.1, 1328.9),
        "B01": (1115.8, 1955.7),
        "B09": (3269.8, 2651.1),
    },
    "sentinel1": {
        "vv": (-11.649, 10.84),
        "vh": (-17.745, 10.216),
    },
    "landsat": {
        "B8": (10132.0, 7788.7),
        "B1": (11001.0, 7857.9),
        "B2": (10493.0, 7872.4),
        "B3": (10146.0, 7676.3),
        "B4": (10236.0, 8038.2),
        "B5": (14427.0, 9302.4),
        "B6": (12164.0, 7442.4),
        "B7": (9712.0, 6037.7),
        "B9": (4585.5, 2549.7),
        "B10": (21348.0, 10957.0),
        "B11": (19686.0, 9911.4),
    },
}
"""{modality: {band: (mean, std)}} in stored units: reflectance times 10,000 for Sentinel-2,
decibels for Sentinel-1, digital numbers for Landsat."""
