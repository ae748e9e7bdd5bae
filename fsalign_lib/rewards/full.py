"""Load the rewards at full size: which files, and how each becomes one of this package's classes.

`hub` says at which commit a repository is read, and from where. No weight may be missing or left over.
"""

import html
import json

import ftfy
import torch
import transformers

from fsalign_lib.models.hub import Download, Hub
from fsalign_lib.models.tensor_files import check_keys, fill, load_converted, load_pretrained, read_tensors
from fsalign_lib.rewards.aesthetic import AestheticReward, published_mlp
from fsalign_lib.rewards.clip import CLIPReward
from fsalign_lib.rewards.conversion import from_image_reward, from_open_clip
from fsalign_lib.rewards.imagereward import ImageReward
from fsalign_lib.rewards.preprocess import OPENAI, PICKSCORE, Preprocess

CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # also PickScore's and HPS's vocabulary
WORDS = ("vocab.json", "merges.txt")
SAVED = ("config.json", "model.safetensors")
PICKSCORE_V1 = "yuvalkirstain/PickScore_v1"
HPS_V2 = "xswu/HPSv2"
IMAGE_REWARD_V1 = "zai-org/ImageReward"
BERT = "google-bert/bert-base-uncased"
CLIP_L = "openai/clip-vit-large-patch14"
AESTHETIC_V2 = Download(
    "https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/"
    "6934dd81792f086e613a121dbce43082cb8be85e/sac%2Blogos%2Bava1-l14-linearMSE.pth",
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    "sac+logos+ava1-l14-linearMSE.pth",
)
PATCHES, POSITIONS = "vision.embeddings.patch_embedding.weight", "vision.embeddings.position_embedding"
IMAGE_REWARD_TOKENS = 35
IMAGE_REWARD_MEAN, IMAGE_REWARD_STD = 0.16717362830052426, 1.0333394966054072


def _clip_words(hub: Hub) -> transformers.CLIPTokenizer:
    return transformers.CLIPTokenizer.from_pretrained(hub.fetch(CLIP_H, WORDS))


def pickscore(hub: Hub, dtype: torch.dtype) -> CLIPReward:
    """Load PickScore v1 [arXiv 2305.01569]: the cosine alone, where its authors multiply by the logit scale, 100."""
    model = load_pretrained(transformers.CLIPModel, hub.fetch(PICKSCORE_V1, SAVED), dtype)
    return CLIPReward(model, _clip_words(hub), PICKSCORE)


def open_clip_text(prompt: str) -> str:
    """Clean a prompt as open_clip and hpsv2 do: mend encodings, straighten quotes, undo HTML entities.

    The other originals do not: PickScore's transformers tokenizer reads quotes as they are, ImageReward's is BERT's.
    """
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def open_clip_h(repository: str, file: str, preprocess: Preprocess):
    """Load CLIP score or HPS: a ViT-H-14 checkpoint in open_clip's layout."""

    def load(hub: Hub, dtype: torch.dtype) -> CLIPReward:
        config = transformers.CLIPConfig.from_pretrained(hub.fetch(CLIP_H, ["config.json"]))
        path = hub.fetch(repository, [file]) / file
        model = load_converted(transformers.CLIPModel, config, from_open_clip(read_tensors(path)), path, dtype)
        return CLIPReward(model, _clip_words(hub), preprocess, open_clip_text)

    return load


def imagereward(hub: Hub, dtype: torch.dtype) -> ImageReward:
    """Load ImageReward v1.0 [arXiv 2304.05977], with its own normalisation."""
    folder = hub.fetch(IMAGE_REWARD_V1, ["ImageReward.pt", "med_config.json"])
    path = folder / "ImageReward.pt"
    state = from_image_reward(read_tensors(path))
    tokenizer = transformers.BertTokenizer.from_pretrained(
        hub.fetch(BERT, ["vocab.txt"]), model_max_length=IMAGE_REWARD_TOKENS
    )
    med = json.loads((folder / "med_config.json").read_text())
    check_keys(path, missing={PATCHES, POSITIONS} - state.keys())
    mlp = published_mlp(med["hidden_size"])
    reward = ImageReward(*blip_configs(state, med), tokenizer, IMAGE_REWARD_MEAN, IMAGE_REWARD_STD, mlp, OPENAI)
    return fill(reward, state, path).towers(dtype)


def blip_configs(state: dict, med: dict) -> tuple[transformers.BlipVisionConfig, transformers.BlipTextConfig]:
    """Derive configurations of converted weights: the text encoder's from med_config.json, the ViT's from shapes.

    BLIP's ViTs have 64 channels a head and timm's LayerNorm epsilon. The text encoder is wide as med_config.json says,
    but for `encoder_width`, which BLIP replaces by the ViT's.
    """
    patches = state[PATCHES]  # (D, 3, patch, patch)
    width, patch = patches.shape[0], patches.shape[-1]
    side = round((state[POSITIONS].shape[1] - 1) ** 0.5)
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


def aesthetic(hub: Hub, dtype: torch.dtype) -> AestheticReward:
    """Load LAION's improved aesthetic predictor, linear MSE head, on OpenAI's CLIP ViT-L/14."""
    vision = load_pretrained(
        transformers.CLIPVisionModelWithProjection,
        hub.fetch(CLIP_L, SAVED),
        dtype,
        unused=r"^(text_model\.|text_projection\.|logit_scale$)",
    )
    path = hub.download(AESTHETIC_V2)
    state = {key.removeprefix("layers."): tensor for key, tensor in read_tensors(path).items()}
    mlp = fill(published_mlp(vision.config.projection_dim), state, path)
    return AestheticReward(vision, mlp=mlp, preprocess=OPENAI)
