"""Write the twins of the published rewards."""

import json
import string
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from fsalign_lib.rewards import REWARDS, ImageReward, full
from fsalign_lib.rewards.aesthetic import published_mlp
from fsalign_lib.rewards.conversion import to_image_reward, to_open_clip
from fsalign_lib.rewards.dino import DINO
from fsalign_lib.twins.vocabulary import clip_vocabulary, seed_by

SIZE, PATCH = 32, 16  # of the pictures that the vision towers read
WIDTH = 64
MED = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "encoder_width": WIDTH,
}


def save_reward_twin(name: str, folder: Path, seed: int = 0) -> Path:
    """Write what one full-size reward reads; files that several rewards share come out the same for each.

    Returns:
        the folder, to be given to `load_reward` as `hub`.

    Raises:
        ValueError: an unknown reward.
    """
    if name not in REWARDS["full"]:
        raise ValueError(f"no twin of reward {name!r}: choose from {', '.join(REWARDS['full'])}")
    folder = Path(folder)
    with torch.random.fork_rng():
        for path, content in FILES.get(name, lambda seed: {})(seed).items():
            write(folder / path, content)
    return folder


def write(path: Path, content) -> None:
    """Write a file of the hub in the format that its name says, or a network into its repository."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, nn.Module):
        content.save_pretrained(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(content) + "\n")
    elif path.suffix == ".txt":
        path.write_text("\n".join(content) + "\n")
    elif path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)


def clip_words(vocabulary: Mapping[str, int], merges: list[str]) -> dict:
    """Return the files of CLIP's tokenizer."""
    return {f"{full.CLIP_H}/vocab.json": vocabulary, f"{full.CLIP_H}/merges.txt": ["#version: 0.2", *merges]}


def hps_checkpoint(state: Mapping[str, Tensor]) -> dict:
    """Build the training checkpoint in which HPS's weights lie."""
    return {"epoch": 1, "name": "hps", "state_dict": state}


def _filled(module: nn.Module, source: str, seed: int) -> nn.Module:
    """Fill a network with weights that keep activations at a size of about 1, so that scores vary."""
    seed_by(source, seed)
    for name, p in module.named_parameters():
        if p.ndim < 2:
            ones = "norm" in name.lower() and name.endswith("weight")
            nn.init.normal_(p, mean=float(ones), std=0.1)
        elif "embedding" in name and "patch" not in name:
            nn.init.normal_(p, std=0.5)
        else:
            nn.init.normal_(p, std=1.2 / p[0].numel() ** 0.5)
    return module


def _clip_config(act: str) -> transformers.CLIPConfig:
    tower = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"hidden_act": act, "projection_dim": WIDTH}
    words = len(clip_vocabulary())
    text = tower | {"vocab_size": words, "bos_token_id": words - 2, "eos_token_id": words - 1}
    vision = tower | {"image_size": SIZE, "patch_size": PATCH}
    return transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)


def _pickscore(seed: int) -> dict:
    model = _filled(transformers.CLIPModel(_clip_config("gelu")), full.PICKSCORE_V1, seed)
    return {full.PICKSCORE_V1: model} | clip_words(clip_vocabulary(), [])


def _open_clip(path: str, seed: int) -> dict:
    config = _clip_config("gelu")
    state = to_open_clip(_filled(transformers.CLIPModel(config), path, seed).state_dict())
    content = state if path.endswith(".safetensors") else hps_checkpoint(state)
    return {path: content, f"{full.CLIP_H}/config.json": config.to_dict()} | clip_words(clip_vocabulary(), [])


def bert_words() -> list[str]:
    """Build a vocabulary of characters, with BERT's special tokens where they are in the published one."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    special = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [*special, *letters, *(f"##{letter}" for letter in string.ascii_lowercase + string.digits)]


def _imagereward(seed: int) -> dict:
    words = bert_words()
    med = MED | {"vocab_size": len(words) + 2}  # [DEC] and [ENC]
    sized = {full.PATCHES: torch.empty(WIDTH, 3, PATCH, PATCH)}
    sized |= {full.POSITIONS: torch.empty(1, (SIZE // PATCH) ** 2 + 1, WIDTH)}
    sized |= {f"vision.encoder.layers.{i}.self_attn.qkv.weight": torch.empty(0) for i in range(2)}
    model = ImageReward(*full.blip_configs(sized, med), None, mlp=published_mlp(med["hidden_size"]))
    state = to_image_reward(_filled(model, full.IMAGE_REWARD_V1, seed).state_dict())
    for part, width in (("vision", WIDTH), ("text", med["hidden_size"])):  # BLIP's contrastive heads, which are unused
        state |= {f"blip.{part}_proj.weight": torch.randn(256, width), f"blip.{part}_proj.bias": torch.randn(256)}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(med["max_position_embeddings"])[None]
    return {
        f"{full.IMAGE_REWARD_V1}/ImageReward.pt": state,
        f"{full.IMAGE_REWARD_V1}/med_config.json": med,
        f"{full.BERT}/vocab.txt": words,
    }


def _aesthetic(seed: int) -> dict:
    model = _filled(transformers.CLIPModel(_clip_config("quick_gelu")), full.CLIP_L, seed)
    mlp = _filled(published_mlp(WIDTH), full.AESTHETIC_V2.name, seed)
    state = {f"layers.{key}": tensor for key, tensor in mlp.state_dict().items()}
    return {full.CLIP_L: model, full.AESTHETIC_V2.name: state}


FILES = {  # the JPEG rewards read none
    "pickscore": _pickscore,
    "clipscore": lambda seed: _open_clip(f"{full.CLIP_H}/open_clip_model.safetensors", seed),
    "hps": lambda seed: _open_clip(f"{full.HPS_V2}/HPS_v2_compressed.pt", seed),
    "hps-2.1": lambda seed: _open_clip(f"{full.HPS_V2}/HPS_v2.1_compressed.pt", seed),
    "imagereward": _imagereward,
    "aesthetic": _aesthetic,
}


def save_dino_twin(folder: Path, seed: int = 0) -> Path:
    """Write what `rewards.dino.load_image_encoder("full")` reads, and return the folder."""
    tower = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(**tower, image_size=SIZE, patch_size=PATCH)
    with torch.random.fork_rng():
        model = _filled(transformers.ViTModel(config, add_pooling_layer=False), DINO, seed)
    write(Path(folder) / DINO / "config.json", config.to_dict())
    write(Path(folder) / DINO / "pytorch_model.bin", model.state_dict())
    return Path(folder)
