"""Configure the pocket world's networks, each in diffusers' or transformers' own class."""

import copy
import json

import diffusers
import torch
import transformers
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from fsalign_lib.pocket.captions import all_facts, caption

TEXT_LENGTH = 16
TEXT_WIDTH = 64
# A distillation's LoRA is on every layer but the first and the last, as LCM-LoRA. Its rank is 64 for layers of 320 to
# 1280 channels; here they have 32 to 128.
LORA_RANK = 16
LORA_LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)


def tokenizer() -> transformers.CLIPTokenizer:
    """Build CLIP's byte-pair tokenizer over the grammar's own words: each word of a caption is one token."""
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        show_progress=False,
        end_of_word_suffix="</w>",
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz"),
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
    )
    bpe.train_from_iterator([caption(f) for f in all_facts()], trainer)

    model = json.loads(bpe.to_str())["model"]
    # The trainer numbers the last letters of words in the order of a hash table: put them in order. And every letter
    # must also exist as the end of a word, so that an unknown word is spelled and not lost.
    ends = sorted(token for token in model["vocab"] if len(token) == len("a</w>") and token.endswith("</w>"))
    numbers = sorted(model["vocab"][token] for token in ends)
    vocabulary = model["vocab"] | dict(zip(ends, numbers, strict=True))
    for letter in "abcdefghijklmnopqrstuvwxyz":
        vocabulary.setdefault(letter + "</w>", len(vocabulary))
    return transformers.CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(m) for m in model["merges"]], model_max_length=TEXT_LENGTH
    )


def text_config(vocabulary: int, layers: int = 2) -> transformers.CLIPTextConfig:
    """Configure a CLIP text encoder for a vocabulary of that size."""
    return transformers.CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def text_encoder(vocabulary: int) -> transformers.CLIPTextModel:
    """Build the text encoder of the generators."""
    return transformers.CLIPTextModel(text_config(vocabulary))


def autoencoder() -> diffusers.AutoencoderKL:
    """Build the autoencoder, 64x64x3 -> 16x16x4, factor 4."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def unet() -> diffusers.UNet2DConditionModel:
    """Build the noise predictor on 16x16x4 latents, about 257 MFLOP a forward pass of one sample."""
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=8,
    )


def with_lora(network: diffusers.UNet2DConditionModel) -> diffusers.UNet2DConditionModel:
    """Copy a frozen network with a LoRA to train, which changes nothing yet."""
    adapted = copy.deepcopy(network).requires_grad_(False)
    adapted.add_adapter(
        LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, init_lora_weights="gaussian", target_modules=list(LORA_LAYERS))
    )
    return adapted


def clip(vocabulary: int) -> transformers.CLIPModel:
    """Build an image tower of four layers on 8x8 patches and a text tower of two, meeting in 64 dimensions."""
    vision = vision_config()
    text = text_config(vocabulary)
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    )


def vision_config() -> transformers.CLIPVisionConfig:
    """Configure a CLIP image tower."""
    return transformers.CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
    )


def blip(vocabulary: int) -> tuple[transformers.BlipVisionConfig, transformers.BlipTextConfig]:
    """Build the two halves of the ImageReward ranker: a ViT, and a text encoder that attends to it."""
    vision = transformers.BlipVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
    )
    text = transformers.BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        encoder_hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        sep_token_id=1,
        pad_token_id=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,  # else transformers builds no cross-attention; the model runs with is_decoder=False
    )
    return vision, text


def classifier(labels: int) -> transformers.ResNetForImageClassification:
    """Build a ResNet with that many classes."""
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=32,
            hidden_sizes=[32, 64, 128, 192],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            downsample_in_first_stage=False,
            num_labels=labels,
        )
    )


def encoder() -> transformers.ResNetModel:
    """Build the self-supervised image encoder: a classifier's trunk, half as wide."""
    return transformers.ResNetModel(
        transformers.ResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 32, 64, 128],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            downsample_in_first_stage=False,
        )
    )


def load_encoder(folder) -> transformers.ResNetModel:
    """Load the self-supervised image encoder, in evaluation mode."""
    return transformers.ResNetModel.from_pretrained(folder / "selfsup", dtype=torch.float32).eval()


def load_vae(folder) -> diffusers.AutoencoderKL:
    """Load the autoencoder, in evaluation mode."""
    return diffusers.AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()


def load_teacher(folder) -> tuple[diffusers.UNet2DConditionModel, transformers.CLIPTextModel]:
    """Load the teacher and its text encoder, in evaluation mode."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "teacher" / "unet", torch_dtype=torch.float32)
    text = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    return unet.eval(), text.eval()


def load_classifier(folder, name: str) -> transformers.ResNetForImageClassification:
    """Load the "classifier" or the "eye", in float32 and evaluation mode."""
    return transformers.ResNetForImageClassification.from_pretrained(folder / name, dtype=torch.float32).eval()


def load_clip(folder, name: str) -> transformers.CLIPModel:
    """Load the pocket CLIP, in evaluation mode."""
    return transformers.CLIPModel.from_pretrained(folder / name, dtype=torch.float32).eval()


def vision_with_projection(model: transformers.CLIPModel) -> transformers.CLIPVisionModelWithProjection:
    """Take a CLIP's image half as a model of its own with the same weights."""
    half = transformers.CLIPVisionModelWithProjection(model.config.vision_config)
    half.vision_model.load_state_dict(model.vision_model.state_dict())
    half.visual_projection.load_state_dict(model.visual_projection.state_dict())
    return half
