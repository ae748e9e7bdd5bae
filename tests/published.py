"""The published files of the full-size rewards, in the published formats, at the fixture's tiny size."""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

import original_inputs as given
from fsalign_lib.rewards import full
from fsalign_lib.rewards.checkpoints import from_open_clip

RECORD = json.loads((Path(__file__).parent / "fixtures" / "reward_originals.json").read_text())
NAMES = ("pickscore", "clipscore", "hps", "hps-2.1", "imagereward", "aesthetic")


def weights(shapes):
    return {name: torch.from_numpy(given.weight(name, tuple(shape))) for name, shape in shapes.items()}


def clip_config(act):
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": act, "projection_dim": 24}
    text = tower | {"hidden_size": 32, "intermediate_size": 128, "vocab_size": 49408, "max_position_embeddings": 77}
    text |= {"bos_token_id": 49406, "eos_token_id": 49407}
    vision = tower | {"hidden_size": 64, "intermediate_size": 256, "image_size": 224, "patch_size": given.VIT_PATCH}
    return transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)


def place(root, source):
    path = root / source.repo.replace("/", "--")
    path.mkdir(parents=True, exist_ok=True)
    return path


def build(root: Path) -> Path:
    """Write the files of every full-size reward and return the folder."""
    words = RECORD["clip_words"]
    (place(root, full.WORDS_H) / "vocab.json").write_text(json.dumps(words["vocab"]))
    (place(root, full.WORDS_H) / "merges.txt").write_text("\n".join(["#version: 0.2", *words["merges"]]) + "\n")
    clip_config("gelu").save_pretrained(place(root, full.CONFIG_H))
    state = weights(RECORD["clipscore"]["shapes"])
    save_file(state, place(root, full.CLIP_H) / full.CLIP_H.files[0])
    published = {"epoch": 3, "name": "x", "state_dict": weights(RECORD["hps"]["shapes"])}
    for source in (full.HPS_V2_0, full.HPS_V2_1):
        torch.save(published, place(root, source) / source.files[0])
    for source, act in ((full.PICKSCORE_V1, "gelu"), (full.CLIP_L, "quick_gelu")):
        model = transformers.CLIPModel(clip_config(act))
        model.load_state_dict(from_open_clip(state))
        model.save_pretrained(place(root, source))
    blip = RECORD["imagereward"]
    torch.save(weights(blip["shapes"]), place(root, full.IMAGE_REWARD_V1) / "ImageReward.pt")
    (place(root, full.IMAGE_REWARD_V1) / "med_config.json").write_text(json.dumps(blip["med_config"]))
    (place(root, full.WORDS_BERT) / "vocab.txt").write_text("\n".join(blip["pieces"]))
    torch.save(weights(RECORD["aesthetic"]["mlp"]), root / full.AESTHETIC_V2.name)
    return root


@contextlib.contextmanager
def known(path: Path):
    """The aesthetic MLP is known by its bytes: within this, by those of `path`."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full, "AESTHETIC_V2", dataclasses.replace(full.AESTHETIC_V2, sha256=digest))
        yield
