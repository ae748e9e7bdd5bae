"""Rename keys of published checkpoints to those of this package's classes, which are transformers'; both ways.

Each table pairs the beginning of a published key with what stands in its place here, and then what is within keys.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

Table = tuple[tuple[str, str], ...]

OPEN_CLIP: Table = (
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),  # transformers' own spelling
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.proj", "visual_projection.weight"),
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
    ("text_projection", "text_projection.weight"),
    ("transformer.resblocks.", "text_model.encoder.layers."),
)
OPEN_CLIP_LAYER: Table = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.", ".self_attn."),
)
IMAGE_REWARD: Table = (
    ("mlp.layers.", "mlp."),
    ("blip.text_encoder.", "text."),
    ("blip.visual_encoder.cls_token", "vision.embeddings.class_embedding"),
    ("blip.visual_encoder.pos_embed", "vision.embeddings.position_embedding"),
    ("blip.visual_encoder.patch_embed.proj.", "vision.embeddings.patch_embedding."),
    ("blip.visual_encoder.norm.", "vision.post_layernorm."),
    ("blip.visual_encoder.blocks.", "vision.encoder.layers."),
)
IMAGE_REWARD_LAYER: Table = (
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.proj.", ".self_attn.projection."),
    (".attn.", ".self_attn."),
)
UNUSED = r"^blip\.(vision|text)_proj\.|\.position_ids$|^attn_mask$"  # BLIP's contrastive heads; buffers
TRANSPOSED = ("visual_projection.weight", "text_projection.weight")  # x @ W there, W x here


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an `open_clip.CLIP` to those of `transformers.CLIPModel`; the shapes say the size."""
    new = {}
    for key, tensor in state.items():
        if re.search(UNUSED, key):
            continue
        name = _renamed(key, OPEN_CLIP, OPEN_CLIP_LAYER)
        if ".in_proj_" in name and tensor.ndim and len(tensor) % 3 == 0:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                new[name.replace(".in_proj_", f".{part}_proj.")] = rows.contiguous()
        else:
            new[name] = tensor.T.contiguous() if name in TRANSPOSED and tensor.ndim == 2 else tensor
    return new


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Invert `from_open_clip`."""
    new = {}
    for name, tensor in state.items():
        key = _renamed(name, _swapped(OPEN_CLIP), _swapped(OPEN_CLIP_LAYER))
        if ".q_proj." in name:
            parts = [state[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            new[key.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            new[key] = tensor.T.contiguous() if name in TRANSPOSED else tensor
    return new


def from_image_reward(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an `ImageReward.ImageReward` to those of `fsalign_lib.rewards.ImageReward`."""
    used = {key: tensor for key, tensor in state.items() if not re.search(UNUSED, key)}
    return {_renamed(key, IMAGE_REWARD, IMAGE_REWARD_LAYER): tensor for key, tensor in used.items()}


def to_image_reward(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Invert `from_image_reward`, but for what that leaves out."""
    tables = _swapped(IMAGE_REWARD), _swapped(IMAGE_REWARD_LAYER)
    return {_renamed(name, *tables): tensor for name, tensor in state.items()}


def _swapped(table: Table) -> Table:
    return tuple((there, here) for here, there in table)


def _renamed(key: str, beginnings: Table, within: Table) -> str:
    for old, new in beginnings:
        if key.startswith(old):
            key = new + key.removeprefix(old)
            break
    for old, new in within:
        key = key.replace(old, new)
    return key
