"""A timm ViT on all bands, as an encoder for sweeps.

    pip install timm; cd examples && eval-ingest sweep --encoder vit:make --datasets tolbi_crops

A template for models with patches of their own. timm spreads pretrained weights of three channels
over as many as `in_chans` says: `pretrained=True` fetches them from the Hugging Face Hub.
"""

import timm
import torch

from eval_ingest.sweep.encoders import Embeddings


class ViT:
    """The tokens of the mean over time; the bands of all modalities are the channels."""

    name = "timm vit_tiny"
    fingerprint = "vit_tiny-random-0"  # hash your weights here: it is the key of the cache
    weights = "random initialisation (seed 0)"
    normalize, method = "pretrained", "norm_no_clip_2_std"

    def __init__(self, patch_size, device):
        self.patch_size, self.device = patch_size, device
        self.models = {}

    def model(self, channels):
        """The same weights for every number of channels, but for the first layer's."""
        if channels not in self.models:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                found = timm.create_model(
                    "vit_tiny_patch16_224", pretrained=False, in_chans=channels, num_classes=0,
                    patch_size=self.patch_size, dynamic_img_size=True,
                )  # fmt: skip
            self.models[channels] = found.to(self.device).eval()
        return self.models[channels]

    def embed(self, batch, dataset):
        """Embed one batch: patches (B, h, w, 192), and the mean of the tokens."""
        images = []
        for name in dataset.bands:
            count = batch["timesteps"][name].clamp(min=1)[:, None, None, None]
            images.append(batch[name].sum(3) / count)
        image = torch.cat(images, dim=-1).permute(0, 3, 1, 2)
        model = self.model(image.shape[1])
        tokens = model.forward_features(image)[:, model.num_prefix_tokens :]
        height, width = (side // self.patch_size for side in image.shape[2:])
        return Embeddings(tokens.unflatten(1, (height, width)), tokens.mean(1))


def make(patch_size, device):
    """What `vit:make` names."""
    return ViT(patch_size, device)
