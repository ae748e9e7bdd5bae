"""Aesthetic score: an MLP on a CLIP picture embedding; it never sees the prompt."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fsalign_lib.rewards.preprocess import pixel_values


class AestheticReward(nn.Module):
    r"""$r(x) = a \cdot \mathrm{MLP}(f(x) / \lVert f(x) \rVert) + b$; a and b only make the scale familiar."""

    def __init__(self, vision: transformers.CLIPVisionModelWithProjection, scale: float = 1.0, shift: float = 0.0):
        super().__init__()
        width = vision.config.projection_dim
        self.vision = vision
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 1))
        self.scale, self.shift = scale, shift

    @classmethod
    def from_pretrained(cls, folder: Path) -> "AestheticReward":
        from fsalign_lib.rewards import require_folder

        vision = transformers.CLIPVisionModelWithProjection.from_pretrained(
            require_folder(folder) / "vision", dtype=torch.float32, use_safetensors=True
        )
        reward = cls(vision, **json.loads((folder / "scale.json").read_text()))
        reward.mlp.load_state_dict(load_file(folder / "mlp.safetensors"))
        return reward.eval().requires_grad_(False)

    def save_pretrained(self, folder: Path, **_) -> None:
        self.vision.save_pretrained(folder / "vision", safe_serialization=True)
        save_file({k: v.float() for k, v in self.mlp.state_dict().items()}, folder / "mlp.safetensors")
        (folder / "scale.json").write_text(json.dumps({"scale": self.scale, "shift": self.shift}) + "\n")

    def forward(self, images: Tensor, prompts: list[str] | None = None) -> Tensor:
        values = pixel_values(images, self.vision.config.image_size, (0.5,) * 3, (0.5,) * 3)
        embeddings = F.normalize(self.vision(values).image_embeds.float(), dim=-1)
        return self.scale * self.mlp(embeddings)[:, 0] + self.shift
