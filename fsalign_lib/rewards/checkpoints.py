"""Published checkpoints, read without running what is in them, and their keys turned into transformers'."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

LAYER = (
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
)
OPEN_CLIP = (
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # transformers' own spelling
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    *LAYER,
)
IMAGE_REWARD = (
    (r"^mlp\.layers\.", "mlp."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm(\d)\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.", r"vision.encoder.layers.\1.self_attn."),
    (r"^blip\.visual_encoder\.blocks\.", "vision.encoder.layers."),
)
UNUSED = (r"^blip\.(vision|text)_proj\.", r"\.position_ids$", r"^attn_mask$")  # BLIP's contrastive heads; buffers


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file, in memory that is mapped where the format allows it.

    Raises:
        ValueError: the file holds anything but tensors and plain containers, or is damaged.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is not a checkpoint of tensors alone, and is not read: {reason}") from None


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an `open_clip.CLIP` under the names of `transformers.CLIPModel`; the shapes say the size."""
    new = {}
    for key, tensor in state.items():
        name = _renamed(key, OPEN_CLIP)
        if name is None:
            continue
        if ".in_proj_" in name:
            kind = name.rsplit("_", 1)[1]  # weight or bias
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                new[name.replace(f"in_proj_{kind}", f"{part}_proj.{kind}")] = rows.contiguous()
        else:
            transposed = name in ("visual_projection.weight", "text_projection.weight")  # x @ W there, W x here
            new[name] = tensor.T.contiguous() if transposed else tensor
    return new


def from_image_reward(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an `ImageReward.ImageReward` under the names of `fsalign_lib.rewards.ImageReward`."""
    return {name: tensor for key, tensor in state.items() if (name := _renamed(key, IMAGE_REWARD)) is not None}


def _renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    if any(re.search(pattern, key) for pattern in UNUSED):
        return None
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: Path) -> nn.Module:
    """Put every tensor of `state` into `module`, all of which must get one; frozen, in evaluation mode.

    Raises:
        ValueError: names or shapes do not match; the message has the first of them.
    """
    wanted = module.state_dict()
    _refuse(
        source,
        missing=wanted.keys() - state.keys(),
        unexpected=state.keys() - wanted.keys(),
        mismatched={k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape},
    )
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


def load_transformers(kind: type, folder: Path | None, ignore: str = "^$", **given):
    """`kind.from_pretrained`, frozen, in which a weight that is missing or left over is an error, not a warning.

    Args:
        ignore: a pattern for names that the file may have and the model does not.
        given: passed on; `config` and `state_dict` where there is no folder, then `source` names where they are from.
    """
    source = given.pop("source", folder)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its report of the keys says the same in a page
    try:
        model, info = kind.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **given
        )
    finally:
        transformers.logging.set_verbosity(verbosity)
    _refuse(
        source,
        missing=set(info["missing_keys"]),
        unexpected={k for k in info["unexpected_keys"] if not re.search(ignore, k) and _renamed(k, ()) is not None},
        mismatched={k[0] for k in info["mismatched_keys"]},
    )
    return model.eval().requires_grad_(False)


def _refuse(source: Path, **wrong: set[str]) -> None:
    found = [f"{len(keys)} {kind} ({', '.join(sorted(keys)[:3])})" for kind, keys in wrong.items() if keys]
    if found:
        raise ValueError(f"{source} holds other weights than the model has: {'; '.join(found)}")
