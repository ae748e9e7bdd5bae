"""The rewards at full size: which files, at which revision, and how each becomes one of this package's classes.

Nothing here is unpickled but tensors, and no weight may be missing or left over. `folder` is None for the hub's cache,
else a folder of downloads (see `hub.Source`), for machines without a network.
"""

import json
from pathlib import Path

import torch
import transformers

from fsalign_lib.rewards.aesthetic import AestheticReward, published_mlp
from fsalign_lib.rewards.checkpoints import (
    from_image_reward,
    from_open_clip,
    load_transformers,
    load_weights,
    read_checkpoint,
)
from fsalign_lib.rewards.clip import CLIPReward
from fsalign_lib.rewards.hub import Download, Source
from fsalign_lib.rewards.imagereward import ImageReward
from fsalign_lib.rewards.preprocess import OPENAI, PICKSCORE, Preprocess

LAION_H = ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")
WORDS_H = Source(*LAION_H, ("vocab.json", "merges.txt"))
CONFIG_H = Source(*LAION_H, ("config.json",))
CLIP_H = Source(*LAION_H, ("open_clip_model.safetensors",))
PICKSCORE_V1 = Source(
    "yuvalkirstain/PickScore_v1",
    "a4e4367c6dfa7288a00c550414478f865b875800",
    ("config.json", "model.safetensors"),
)
HPS_V2 = ("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a")
HPS_V2_0 = Source(*HPS_V2, ("HPS_v2_compressed.pt",))
HPS_V2_1 = Source(*HPS_V2, ("HPS_v2.1_compressed.pt",))
IMAGE_REWARD_V1 = Source(
    "zai-org/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72", ("ImageReward.pt", "med_config.json")
)
WORDS_BERT = Source("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594", ("vocab.txt",))
CLIP_L = Source(
    "openai/clip-vit-large-patch14",
    "32bd64288804d66eefd0ccbe215aa642df71cc41",
    ("config.json", "model.safetensors"),
)
AESTHETIC_V2 = Download(
    "https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/"
    "6934dd81792f086e613a121dbce43082cb8be85e/sac%2Blogos%2Bava1-l14-linearMSE.pth",
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    "sac+logos+ava1-l14-linearMSE.pth",
)
IMAGE_REWARD_TOKENS = 35
IMAGE_REWARD_MEAN, IMAGE_REWARD_STD = 0.16717362830052426, 1.0333394966054072


def pickscore(folder: Path | None, dtype: torch.dtype) -> CLIPReward:
    """PickScore v1 [arXiv 2305.01569]: the cosine alone, where its authors multiply by the logit scale, 100."""
    return CLIPReward.from_pretrained(PICKSCORE_V1.fetch(folder), WORDS_H.fetch(folder), PICKSCORE, dtype)


def open_clip_h(weights: Source, preprocess: Preprocess):
    """CLIP score or HPS: a ViT-H-14 checkpoint in open_clip's layout.

    Both originals pass prompts through ftfy, which straightens typographic quotes and mends broken encodings, and undo
    HTML entities; transformers' tokenizer does neither. On other prompts the tokens are the same.
    """

    def load(folder: Path | None, dtype: torch.dtype) -> CLIPReward:
        config = transformers.CLIPConfig.from_pretrained(CONFIG_H.fetch(folder))
        path = weights.fetch(folder) / weights.files[0]
        state = read_checkpoint(path)
        state = from_open_clip(state.get("state_dict", state))
        model = load_transformers(
            transformers.CLIPModel, None, source=path, config=config, state_dict=state, dtype=dtype
        )
        return CLIPReward(model, transformers.CLIPTokenizer.from_pretrained(WORDS_H.fetch(folder)), preprocess)

    return load


def imagereward(folder: Path | None, dtype: torch.dtype) -> ImageReward:
    """ImageReward v1.0 [arXiv 2304.05977], with its own normalisation."""
    place = IMAGE_REWARD_V1.fetch(folder)
    state = from_image_reward(read_checkpoint(place / "ImageReward.pt"))
    tokenizer = transformers.BertTokenizer.from_pretrained(
        WORDS_BERT.fetch(folder), model_max_length=IMAGE_REWARD_TOKENS
    )
    med = json.loads((place / "med_config.json").read_text())
    reward = ImageReward(
        *blip_configs(state, med),
        tokenizer,
        IMAGE_REWARD_MEAN,
        IMAGE_REWARD_STD,
        published_mlp(med["hidden_size"]),
        OPENAI,
    )
    return load_weights(reward, state, place / "ImageReward.pt").towers(dtype)


def blip_configs(state: dict, med: dict) -> tuple[transformers.BlipVisionConfig, transformers.BlipTextConfig]:
    """Configurations for converted weights: the text encoder's from med_config.json, the ViT's from their shapes.

    BLIP's ViTs have 64 channels a head and timm's LayerNorm epsilon. The text encoder is wide as med_config.json says,
    but for `encoder_width`, which BLIP replaces by the ViT's.
    """
    patches = state["vision.embeddings.patch_embedding.weight"]  # (D, 3, patch, patch)
    width, patch = patches.shape[0], patches.shape[-1]
    side = round((state["vision.embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    vision = transformers.BlipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=len([k for k in state if k.startswith("vision.") and k.endswith(".qkv.weight")]),
        num_attention_heads=width // 64,
        image_size=side * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    text = transformers.BlipTextConfig(
        **{key: med[key] for key in (*same, "max_position_embeddings", "layer_norm_eps", "pad_token_id")},
        encoder_hidden_size=width,
        bos_token_id=med["vocab_size"] - 2,  # [DEC] and [ENC] come after BERT's own
        eos_token_id=102,  # [SEP]
        is_decoder=True,  # else transformers builds no cross-attention; the model runs with is_decoder=False
    )
    return vision, text


def aesthetic(folder: Path | None, dtype: torch.dtype) -> AestheticReward:
    """LAION's improved aesthetic predictor, linear MSE head, on OpenAI's CLIP ViT-L/14."""
    vision = load_transformers(
        transformers.CLIPVisionModelWithProjection,
        CLIP_L.fetch(folder),
        ignore=r"^(text_model\.|text_projection\.|logit_scale$)",
        dtype=dtype,
    )
    path = AESTHETIC_V2.fetch(folder)
    mlp = published_mlp(vision.config.projection_dim)
    state = {key.removeprefix("layers."): tensor for key, tensor in read_checkpoint(path).items()}
    return AestheticReward(vision, mlp=load_weights(mlp, state, path), preprocess=OPENAI).eval()
