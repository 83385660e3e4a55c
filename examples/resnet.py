"""A torchvision ResNet on three bands, as an encoder for sweeps.

    cd examples && eval-ingest sweep --encoder resnet:make --datasets tolbi_crops

A template for models of photographs: three bands, one image. Weights are random here, for they need
no network; put your own in with `load_state_dict`, and change `weights` and `fingerprint`.
"""

import torch
from torchvision.models import resnet18

from eval_ingest.sweep.encoders import Embeddings

RED_GREEN_BLUE = {
    "sentinel2_l2a": ("B04", "B03", "B02"),
    "landsat": ("B4", "B3", "B2"),
    "sentinel1": ("vv", "vh", "vh"),
}


class ResNet:
    """Features of the second stage, 8 pixels each, averaged or repeated to patches."""

    name = "resnet18"
    fingerprint = "resnet18-random-0"  # hash your weights here: it is the key of the cache
    weights = "random initialisation (seed 0)"
    normalize, method = "dataset", "standardize"

    def __init__(self, patch_size, device):
        self.patch_size, self.device = patch_size, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = resnet18(weights=None)
        stages = (model.conv1, model.bn1, model.relu, model.maxpool, model.layer1, model.layer2)
        self.model = torch.nn.Sequential(*stages).to(device).eval()

    def embed(self, batch, dataset):
        """Embed one batch: patches (B, h, w, 128)."""
        modality = next(name for name in RED_GREEN_BLUE if name in dataset.bands)
        places = [dataset.bands[modality].index(band) for band in RED_GREEN_BLUE[modality]]
        pixels = batch[modality][..., places]  # (B, H, W, T, 3)
        count = batch["timesteps"][modality].clamp(min=1)[:, None, None, None]
        image = (pixels.sum(3) / count).permute(0, 3, 1, 2)  # the mean over time
        grid = [side // self.patch_size for side in image.shape[2:]]
        found = torch.nn.functional.adaptive_avg_pool2d(self.model(image), grid)
        return Embeddings(found.permute(0, 2, 3, 1))


def make(patch_size, device):
    """What `resnet:make` names."""
    return ResNet(patch_size, device)
