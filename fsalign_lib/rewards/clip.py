"""Score by the cosine of a picture's and a prompt's embedding in some CLIP: CLIP score, PickScore and HPS."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from fsalign_lib.models.tensor_files import load_pretrained
from fsalign_lib.pocket.weights import require_folder
from fsalign_lib.rewards.preprocess import POCKET, Preprocess, full_precision


class CLIPReward(nn.Module):
    r"""Score $r(x, c) = \cos(f_{image}(x), f_{text}(c))$, not multiplied by the logit scale.

    One class serves the CLIP score (contrastive weights), PickScore and HPS (the same network after Bradley-Terry
    fine-tuning on preferences), in the pocket world and at full size: they differ in weights and preprocessing alone.
    Text embeddings are computed once a prompt, and detached; the gradient reaches the pictures.

    Args:
        clean: what the original does to a prompt before it is split into tokens.
    """

    def __init__(
        self,
        model: transformers.CLIPModel,
        tokenizer,
        preprocess: Preprocess = POCKET,
        clean: Callable[[str], str] = str,
    ):
        super().__init__()
        self.model, self.tokenizer, self.preprocess, self.clean = model, tokenizer, preprocess, clean
        self.cache: dict[str, Tensor] = {}
        self.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, folder: Path, tokenizer_folder: Path, dtype: torch.dtype = torch.float32) -> "CLIPReward":
        """Load what a CLIPModel and a CLIPTokenizer saved: the pocket world's reward.

        Raises:
            FileNotFoundError: no such folder. ValueError: the weights are not those of the folder's configuration.
        """
        model = load_pretrained(transformers.CLIPModel, require_folder(folder), dtype)
        return cls(model, transformers.CLIPTokenizer.from_pretrained(tokenizer_folder))

    def text_embeddings(self, prompts: list[str]) -> Tensor:
        """Return unit vectors (B, D)."""
        device = self.model.device
        new = [p for p in dict.fromkeys(prompts) if p not in self.cache]
        if new:
            length = self.model.config.text_config.max_position_embeddings
            texts = [self.clean(prompt) for prompt in new]
            tokens = self.tokenizer(
                texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            )
            with torch.no_grad():
                ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
                pooled = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
                embeddings = F.normalize(full_precision(self.model.text_projection(pooled)), dim=-1)
            self.cache |= dict(zip(new, embeddings, strict=True))
        return torch.stack([self.cache[p].to(device) for p in prompts])

    def image_embeddings(self, images: Tensor) -> Tensor:
        """Return unit vectors (B, D) of pictures (B, 3, H, W) in [0, 1]."""
        values = self.preprocess(images, self.model.config.vision_config.image_size).to(self.model.dtype)
        pooled = self.model.vision_model(values).pooler_output
        return F.normalize(full_precision(self.model.visual_projection(pooled)), dim=-1)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return (self.image_embeddings(images) * self.text_embeddings(prompts)).sum(-1)
