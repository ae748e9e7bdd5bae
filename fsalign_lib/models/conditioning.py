r"""Encode prompts into what a latent diffusion network is conditioned on.

| class | encoders | a batch `cond` | no prompt |
| --- | --- | --- | --- |
| `ClipText` (SD, SD-Turbo, LCM-Dreamshaper) | one CLIP, last hidden state | a tensor (B, L, D) | "" encoded |
| `TwoClipText` (SDXL) | two CLIPs, the hidden states before the last, side by side | `Conditioning` | zeros |
| `T5Text` (PixArt) | T5, last hidden state and the mask of its padding | `Conditioning` | "" encoded |

A batch of either kind is indexed by rows, repeated by `repeat_interleave(n, 0)`, moved by `to`, and has a length. These
are the operations that the loops use, so that they need not know which kind it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 32  # prompts encoded at a time: 4,000 of SD-Turbo at once would take 5 GB for one activation


@dataclass(frozen=True)
class Conditioning:
    """Hold text embeddings and what else a network wants, batch first; index and repeat it as one tensor."""

    text: Tensor  # (B, L, D)
    extra: dict[str, Tensor]  # each (B, ...)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        return Conditioning(change(self.text), {name: change(value) for name, value in self.extra.items()})

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, rows) -> "Conditioning":
        return self._map(lambda x: x[rows])

    def repeat_interleave(self, repeats: int, dim: int = 0) -> "Conditioning":
        """Repeat each row `repeats` times, one after the other.

        Raises:
            ValueError: dim is not 0, the batch.
        """
        if dim != 0:
            raise ValueError(f"dim = {dim}: only the batch, dim = 0, can be repeated")
        return self._map(lambda x: x.repeat_interleave(repeats, 0))

    def to(self, *args, **kwargs) -> "Conditioning":
        """Move to a device or dtype, as a tensor would."""
        return self._map(lambda x: x.to(*args, **kwargs))


Cond = Tensor | Conditioning


def stack(rows: Sequence[Cond]) -> Cond:
    """Stack rows without a batch dimension, such as `cond[i]`, into a batch."""
    return _join(torch.stack, rows)


def cat(batches: Sequence[Cond]) -> Cond:
    """Concatenate batches of conditions of one kind."""
    return _join(torch.cat, batches)


def _join(function: Callable, parts: Sequence[Cond]) -> Cond:
    if isinstance(parts[0], Tensor):
        return function(list(parts))
    extra = {name: function([p.extra[name] for p in parts]) for name in parts[0].extra}
    return Conditioning(function([p.text for p in parts]), extra)


def _tokens(tokenizer, prompts: Sequence[str], device: torch.device) -> Tensor:
    tokens = tokenizer(
        list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return tokens.input_ids.to(device)


def too_long(text: "ClipText | TwoClipText | T5Text", prompts: Sequence[str]) -> tuple[list[str], int]:
    """Return the prompts that a text encoder cuts off, and how many tokens it takes."""
    tokenizer = text.components()["tokenizer"]
    limit = getattr(text, "length", tokenizer.model_max_length)
    tokens = tokenizer(list(prompts), verbose=False).input_ids
    return [prompt for prompt, ids in zip(prompts, tokens, strict=True) if len(ids) > limit], limit


class ClipText:
    """Encode prompts with one CLIP text encoder, as Stable Diffusion does."""

    # By name: importing a pipeline takes seconds, and warns where torchvision is missing.
    pipeline, network = "StableDiffusionPipeline", "unet"

    def __init__(self, encoder, tokenizer):
        self.encoder, self.tokenizer = encoder, tokenizer
        self.modules = (encoder,)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the last hidden state, after the final layer norm.  # (B, L, D)"""
        tokens = _tokens(self.tokenizer, prompts, self.encoder.device)
        return torch.cat([self.encoder(some)[0] for some in tokens.split(CHUNK)])

    def null(self) -> Tensor:
        """Encode the empty prompt that classifier-free guidance compares with.  # (1, L, D)"""
        return self.encode([""])

    def inputs(self, cond: Tensor) -> dict:
        """Return the keyword arguments with which the network takes a batch of conditions."""
        return {"encoder_hidden_states": cond}

    def components(self) -> dict:
        """Return its parts of a diffusers pipeline by name, and the settings of those that it lacks."""
        absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return {"text_encoder": self.encoder, "tokenizer": self.tokenizer} | absent


class TwoClipText:
    """Encode prompts with SDXL's two CLIP text encoders, and add its micro-conditioning.

    Args:
        encoders: a CLIPTextModel, and a CLIPTextModelWithProjection, which also gives the pooled embedding.
        image_size: of the square pictures asked for: original size = target size, and nothing cropped.
        zero_null: no prompt is all zeros (the published setting) and not the encoded empty prompt.
    """

    pipeline, network = "StableDiffusionXLPipeline", "unet"

    def __init__(self, encoders: tuple, tokenizers: tuple, image_size: int, zero_null: bool = True):
        self.modules = encoders
        self.tokenizers, self.zero_null = tokenizers, zero_null
        self.time_ids = torch.tensor([[image_size, image_size, 0, 0, image_size, image_size]], dtype=torch.float32)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return text (B, L, D1 + D2), text_embeds (B, P) and time_ids (B, 6).

        The time_ids are original height and width, the crop's top and left, and target height and width."""
        return cat([self._encode(prompts[i : i + CHUNK]) for i in range(0, len(prompts), CHUNK)])

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        texts = []
        for encoder, tokenizer in zip(self.modules, self.tokenizers, strict=True):
            out = encoder(_tokens(tokenizer, prompts, encoder.device), output_hidden_states=True)
            texts.append(out.hidden_states[-2])
        time_ids = self.time_ids.to(texts[0].device).expand(len(prompts), -1)
        return Conditioning(torch.cat(texts, -1), {"text_embeds": out.text_embeds, "time_ids": time_ids})

    def null(self) -> Conditioning:
        """Encode the empty prompt that classifier-free guidance compares with; its sizes are those asked for."""
        null = self.encode([""])
        if not self.zero_null:
            return null
        zeros = {"text_embeds": torch.zeros_like(null.extra["text_embeds"])}
        return Conditioning(torch.zeros_like(null.text), null.extra | zeros)

    def inputs(self, cond: Conditioning) -> dict:
        """Return the keyword arguments with which the network takes a batch of conditions."""
        return {"encoder_hidden_states": cond.text, "added_cond_kwargs": cond.extra}

    def components(self) -> dict:
        """Return its parts of a diffusers pipeline by name."""
        return {
            "text_encoder": self.modules[0],
            "text_encoder_2": self.modules[1],
            "tokenizer": self.tokenizers[0],
            "tokenizer_2": self.tokenizers[1],
            "force_zeros_for_empty_prompt": self.zero_null,
        }


class T5Text:
    """Encode prompts with PixArt-alpha's T5: 120 tokens, whose padding the network does not see.

    Prompts are lower-cased, as in diffusers' pipeline with clean_caption=False.
    """

    pipeline, network, length = "PixArtAlphaPipeline", "transformer", 120

    def __init__(self, encoder, tokenizer):
        self.encoder, self.tokenizer = encoder, tokenizer
        self.modules = (encoder,)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return text (B, 120, D), and mask (B, 120): 1 for a token, 0 for padding."""
        return cat([self._encode(prompts[i : i + CHUNK]) for i in range(0, len(prompts), CHUNK)])

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        tokens = self.tokenizer(
            [prompt.lower().strip() for prompt in prompts],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        ).to(self.encoder.device)
        text = self.encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        return Conditioning(text, {"mask": tokens.attention_mask})

    def null(self) -> Conditioning:
        """Encode the empty prompt that classifier-free guidance compares with."""
        return self.encode([""])

    def inputs(self, cond: Conditioning) -> dict:
        """Return the keyword arguments with which the network takes a batch of conditions."""
        sizes = {"resolution": None, "aspect_ratio": None}  # inputs of the 1024 px models alone
        return {
            "encoder_hidden_states": cond.text,
            "encoder_attention_mask": cond.extra["mask"],
            "added_cond_kwargs": sizes,
        }

    def components(self) -> dict:
        """Return its parts of a diffusers pipeline by name."""
        return {"text_encoder": self.encoder, "tokenizer": self.tokenizer}
