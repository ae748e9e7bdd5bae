"""The published files of the full-size rewards, in the published formats, with the fixture's tiny weights."""

import json
from pathlib import Path

import torch
import transformers

from fsalign_lib.rewards import full
from fsalign_lib.rewards.conversion import from_open_clip
from fsalign_lib.twins.rewards import clip_words, hps_checkpoint, write
from tests import original_inputs as given

RECORD = json.loads((Path(__file__).parent / "fixtures" / "reward_originals.json").read_text())
NAMES = ("pickscore", "clipscore", "hps", "hps-2.1", "imagereward", "aesthetic")
# A file of weights of each reward, under <hub>.
WEIGHTS = {
    "pickscore": f"{full.PICKSCORE_V1}/model.safetensors",
    "clipscore": f"{full.CLIP_H}/open_clip_model.safetensors",
    "hps": f"{full.HPS_V2}/HPS_v2_compressed.pt",
    "hps-2.1": f"{full.HPS_V2}/HPS_v2.1_compressed.pt",
    "imagereward": f"{full.IMAGE_REWARD_V1}/ImageReward.pt",
    "aesthetic": full.AESTHETIC_V2.name,
}


def weights(shapes):
    return {name: weight(name, shape) for name, shape in shapes.items()}


def weight(name, shape):
    if name.endswith("position_ids"):
        return torch.arange(shape[-1]).expand(shape).clone()
    return torch.from_numpy(given.weight(name, tuple(shape)))


def clip_config(act):
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": act, "projection_dim": 24}
    text = tower | {"hidden_size": 32, "intermediate_size": 128, "vocab_size": 49408, "max_position_embeddings": 77}
    text |= {"bos_token_id": 49406, "eos_token_id": 49407}
    vision = tower | {"hidden_size": 64, "intermediate_size": 256, "image_size": 224, "patch_size": given.VIT_PATCH}
    return transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)


def clip_model(act, state):
    model = transformers.CLIPModel(clip_config(act))
    model.load_state_dict(from_open_clip(state))
    return model


def build(hub: Path) -> Path:
    """Write the files of every full-size reward and return the folder."""
    clip, blip = weights(RECORD["clipscore"]["shapes"]), RECORD["imagereward"]
    hps = hps_checkpoint(weights(RECORD["hps"]["shapes"]))
    files = clip_words(RECORD["clip_words"]["vocab"], RECORD["clip_words"]["merges"]) | {
        f"{full.CLIP_H}/config.json": clip_config("gelu").to_dict(),
        full.PICKSCORE_V1: clip_model("gelu", clip),
        full.CLIP_L: clip_model("quick_gelu", clip),
        WEIGHTS["clipscore"]: clip,
        WEIGHTS["hps"]: hps,
        WEIGHTS["hps-2.1"]: hps,
        WEIGHTS["imagereward"]: weights(blip["shapes"]),
        f"{full.IMAGE_REWARD_V1}/med_config.json": blip["med_config"],
        f"{full.BERT}/vocab.txt": blip["pieces"],
        WEIGHTS["aesthetic"]: weights(RECORD["aesthetic"]["mlp"]),
    }
    for path, content in files.items():
        write(hub / path, content)
    return hub
