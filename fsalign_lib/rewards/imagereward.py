"""Score as ImageReward does: a text encoder that attends to the picture (BLIP), and an MLP on its first token."""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from fsalign_lib.models.tensor_files import fill, read_tensors
from fsalign_lib.pocket.weights import require_folder
from fsalign_lib.rewards.preprocess import POCKET, Preprocess, full_precision


class ImageReward(nn.Module):
    r"""Score $r(x, c) = (\mathrm{MLP}(h_{[CLS]}(x, c)) - m) / s$; m and s give right pictures mean 0, deviation 1."""

    def __init__(
        self,
        vision_config: transformers.BlipVisionConfig,
        text_config: transformers.BlipTextConfig,
        tokenizer,
        mean: float = 0.0,
        std: float = 1.0,
        mlp: nn.Sequential | None = None,
        preprocess: Preprocess = POCKET,
    ):
        super().__init__()
        self.vision = transformers.BlipVisionModel(vision_config)
        self.text = transformers.models.blip.modeling_blip_text.BlipTextModel(text_config, add_pooling_layer=False)
        width = text_config.hidden_size
        self.mlp = mlp or nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, 1))
        self.tokenizer, self.mean, self.std = tokenizer, mean, std
        self.preprocess = preprocess

    @classmethod
    def from_pretrained(cls, folder: Path, tokenizer_folder: Path, dtype: torch.dtype = torch.float32) -> "ImageReward":
        """Load what `save_pretrained` wrote: the pocket world's reward."""
        folder = require_folder(folder)
        config = json.loads((folder / "config.json").read_text())
        reward = cls(
            transformers.BlipVisionConfig(**config["vision_config"]),
            transformers.BlipTextConfig(**config["text_config"]),
            transformers.CLIPTokenizer.from_pretrained(tokenizer_folder),
            config["mean"],
            config["std"],
        )
        path = folder / "model.safetensors"
        return fill(reward, read_tensors(path), path).towers(dtype).eval()

    def towers(self, dtype: torch.dtype) -> "ImageReward":
        """Compute the two transformers in `dtype`, and the MLP, which is small, in float32."""
        self.vision.to(dtype)
        self.text.to(dtype)
        self.mlp.float()
        return self

    def save_pretrained(self, folder: Path, **_) -> None:
        """Write the networks and their scale into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")
        config = {
            "vision_config": self.vision.config.to_diff_dict(),
            "text_config": self.text.config.to_diff_dict(),
            "mean": self.mean,
            "std": self.std,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    def match(self, images: Tensor, ids: Tensor, attended: Tensor | None = None) -> Tensor:
        """Return the MLP's output for each picture and each of its K texts, before normalisation, (B, K).

        The picture is encoded once for all its texts. `ids` (B, K, L), and which of them are `attended` to, likewise;
        None: every token but the padding after the first end-of-text.
        """
        values = self.preprocess(images, self.vision.config.image_size).to(self.vision.dtype)
        seen = self.vision(values).last_hidden_state  # (B, P, D)
        B, K, L = ids.shape
        seen = seen.repeat_interleave(K, 0)
        if attended is None:
            ends = (ids == self.text.config.eos_token_id).long()
            attended = ends.cumsum(2) - ends == 0
        hidden = self.text(
            input_ids=ids.reshape(B * K, L),
            attention_mask=attended.reshape(B * K, L).long(),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
            is_decoder=False,
        ).last_hidden_state
        return full_precision(self.mlp(hidden[:, 0].to(self.mlp[0].weight.dtype))[:, 0]).view(B, K)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").to(images.device)
        scores = self.match(images, tokens.input_ids[:, None], tokens.attention_mask[:, None])
        return (scores[:, 0] - self.mean) / self.std
