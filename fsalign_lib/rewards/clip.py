"""CLIP score, PickScore and HPS: the cosine of a picture's and a prompt's embedding in some CLIP."""

from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from fsalign_lib.rewards.preprocess import pixel_values


class CLIPReward(nn.Module):
    r"""$r(x, c) = \cos(f_{image}(x), f_{text}(c))$, not multiplied by the logit scale.

    One class serves the CLIP score (contrastive weights), PickScore and HPS (the same network after Bradley-Terry
    fine-tuning on preferences): they differ in their weights alone. Text embeddings are computed once a prompt.
    """

    def __init__(self, model: transformers.CLIPModel, tokenizer, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)):
        super().__init__()
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.mean, self.std = mean, std
        self.cache: dict[str, Tensor] = {}

    @classmethod
    def from_pretrained(cls, folder: Path, tokenizer_folder: Path) -> "CLIPReward":
        from fsalign_lib.rewards import require_folder

        model = transformers.CLIPModel.from_pretrained(
            require_folder(folder), dtype=torch.float32, use_safetensors=True
        )
        return cls(model, transformers.CLIPTokenizer.from_pretrained(tokenizer_folder))

    def text_embeddings(self, prompts: list[str]) -> Tensor:
        """Unit vectors (B, D)."""
        new = [p for p in dict.fromkeys(prompts) if p not in self.cache]
        if new:
            tokens = self.tokenizer(new, padding="max_length", truncation=True, return_tensors="pt")
            with torch.no_grad():
                ids, mask = tokens.input_ids.to(self.model.device), tokens.attention_mask.to(self.model.device)
                pooled = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
                embeddings = F.normalize(self.model.text_projection(pooled).float(), dim=-1)
            self.cache |= dict(zip(new, embeddings, strict=True))
        return torch.stack([self.cache[p] for p in prompts])

    def image_embeddings(self, images: Tensor) -> Tensor:
        """Unit vectors (B, D) of pictures (B, 3, H, W) in [0, 1]."""
        size = self.model.config.vision_config.image_size
        pooled = self.model.vision_model(pixel_values(images, size, self.mean, self.std)).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=-1)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return (self.image_embeddings(images) * self.text_embeddings(prompts)).sum(-1)
