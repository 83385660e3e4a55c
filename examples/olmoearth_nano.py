"""OlmoEarth nano of olmoearth-pretrain-minimal, as an encoder for sweeps.

    cd examples && eval-ingest sweep --encoder olmoearth_nano:make --datasets tolbi_crops

A template for OlmoEarth's own models, such as one from your checkpoint. The package's published
weights need none of this: say `--encoder olmoearth:nano`.
"""

import torch
from olmoearth_pretrain_minimal import OlmoEarthPretrain_v1

from eval_ingest.sweep.encoders.olmoearth import OlmoEarthEncoder

MODALITIES = ["sentinel2_l2a", "sentinel1", "landsat"]


def make(patch_size, device):
    """What `olmoearth_nano:make` names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OlmoEarthPretrain_v1("nano", "v1.2", supported_modality_names=MODALITIES).encoder
    # model.load_state_dict(torch.load("checkpoint.pth", weights_only=True))
    model = model.to(device).eval().requires_grad_(False)
    return OlmoEarthEncoder(
        model, "my nano", "random initialisation (seed 0)", patch_size, device,
        digest="random-0",  # changes with the weights: it is the key of the cache
    )  # fmt: skip
