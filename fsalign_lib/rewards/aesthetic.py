"""Score aesthetics by an MLP on a CLIP picture embedding; it never sees the prompt."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from fsalign_lib.models.tensor_files import fill, load_pretrained, read_tensors
from fsalign_lib.pocket.weights import require_folder
from fsalign_lib.rewards.preprocess import POCKET, Preprocess, full_precision


def published_mlp(width: int) -> nn.Sequential:
    """Build LAION's predictor, which ImageReward took over: five linear layers, and nothing between them.

    The dropouts do nothing in evaluation; they keep the published numbering, 0, 2, 4, 6, 7.
    """
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )


class AestheticReward(nn.Module):
    r"""Score $r(x) = a \cdot \mathrm{MLP}(f(x) / \lVert f(x) \rVert) + b$; a and b only make the scale familiar."""

    def __init__(
        self,
        vision: transformers.CLIPVisionModelWithProjection,
        scale: float = 1.0,
        shift: float = 0.0,
        mlp: nn.Sequential | None = None,
        preprocess: Preprocess = POCKET,
    ):
        super().__init__()
        width = vision.config.projection_dim
        self.vision, self.preprocess = vision, preprocess
        self.mlp = mlp or nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 1))
        self.scale, self.shift = scale, shift

    @classmethod
    def from_pretrained(cls, folder: Path, dtype: torch.dtype = torch.float32) -> "AestheticReward":
        """Load what `save_pretrained` wrote: the pocket world's reward."""
        vision = load_pretrained(transformers.CLIPVisionModelWithProjection, require_folder(folder) / "vision", dtype)
        reward = cls(vision, **json.loads((folder / "scale.json").read_text()))
        path = folder / "mlp.safetensors"
        fill(reward.mlp, read_tensors(path), path)
        return reward.eval()

    def save_pretrained(self, folder: Path, **_) -> None:
        """Write the networks and their scale into a folder."""
        self.vision.save_pretrained(folder / "vision", safe_serialization=True)
        save_file({k: v.float() for k, v in self.mlp.state_dict().items()}, folder / "mlp.safetensors")
        (folder / "scale.json").write_text(json.dumps({"scale": self.scale, "shift": self.shift}) + "\n")

    def image_embeddings(self, images: Tensor) -> Tensor:
        """Return unit vectors (B, D) of pictures (B, 3, H, W) in [0, 1]."""
        values = self.preprocess(images, self.vision.config.image_size).to(self.vision.dtype)
        return F.normalize(full_precision(self.vision(values).image_embeds), dim=-1)

    def forward(self, images: Tensor, prompts: list[str] | None = None) -> Tensor:
        # The MLP is small: it is kept in float32 where the tower is in bfloat16.
        embeddings = self.image_embeddings(images).to(self.mlp[0].weight.dtype)
        return self.scale * self.mlp(embeddings)[:, 0] + self.shift
