"""Score JPEG (in)compressibility, the rewards of DDPO that need no weights. Not differentiable."""

import io

import torch
from PIL import Image
from torch import Tensor, nn


class JPEGReward(nn.Module):
    """Score plus or minus the size in kB of the picture as a JPEG of quality 95 [DDPO, arXiv 2305.13301]."""

    def __init__(self, sign: float, quality: int = 95):
        super().__init__()
        self.sign, self.quality = sign, quality

    def forward(self, images: Tensor, prompts: list[str] | None = None) -> Tensor:
        sizes = []
        for picture in (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, format="JPEG", quality=self.quality)
            sizes.append(buffer.tell() / 1000)
        return self.sign * torch.tensor(sizes, device=images.device)
