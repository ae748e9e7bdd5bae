"""Encode pictures by a self-supervised network: DINO at full scale, a small one in its place in the pocket world.

Pictures of one subject lie near each other in it, also where a caption would say the same of two of them.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from fsalign_lib.models.hub import Hub
from fsalign_lib.models.tensor_files import load_converted, read_tensors
from fsalign_lib.pocket import networks
from fsalign_lib.pocket.weights import WEIGHTS, require_folder
from fsalign_lib.rewards.preprocess import POCKET, Preprocess

DINO = "facebook/dino-vits16"  # ViT-S/16, the one of DreamBooth's evaluation
IMAGENET = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageEncoder(nn.Module):
    """Encode pictures to unit features.

    Args:
        network: a ResNetModel, whose pooled output is taken, or a ViTModel, whose class token is.
    """

    def __init__(self, network: nn.Module, preprocess: Preprocess, size: int):
        super().__init__()
        self.network, self.preprocess, self.size = network, preprocess, size
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Encode pictures (B, 3, H, W) in [0, 1] to unit vectors (B, D) in float32."""
        out = self.network(self.preprocess(images, self.size))
        if isinstance(self.network, transformers.ViTModel):
            return F.normalize(out.last_hidden_state[:, 0], dim=1)
        return F.normalize(out.pooler_output.flatten(1), dim=1)


def load_image_encoder(scale: str = "pocket", hub: Path | str | None = None) -> ImageEncoder:
    """Load the pocket world's encoder, or DINO with `scale="full"`, frozen, in float32.

    Raises:
        ValueError: an unknown scale; weights that do not match. FileNotFoundError: weights that are not there.
    """
    if scale == "pocket":
        require_folder(WEIGHTS / "selfsup")
        return ImageEncoder(networks.load_encoder(WEIGHTS), POCKET, 64)
    if scale != "full":
        raise ValueError(f"unknown scale {scale!r}: choose from pocket, full")
    folder = Hub.of("metric 'dino'", hub).fetch(DINO, ["config.json", "pytorch_model.bin"])
    config = transformers.ViTConfig.from_pretrained(folder)
    path = folder / "pytorch_model.bin"
    state = {key: value for key, value in read_tensors(path).items() if not key.startswith("pooler.")}
    network = load_converted(_Vit, config, state, path, torch.float32)
    return ImageEncoder(network, IMAGENET, config.image_size)


class _Vit(transformers.ViTModel):
    """Build a ViT without the pooler, which DINO was not trained with."""

    def __init__(self, config):
        super().__init__(config, add_pooling_layer=False)
