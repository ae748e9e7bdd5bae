"""The rewards at full size, by their own loading code on tiny weights, against the original packages' scores.

What the originals scored, and with which versions, is in fixtures/reward_originals.json; PickScore's original is
transformers itself, and runs here.
"""

import dataclasses
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from fsalign_lib.models.tensor_files import fill
from fsalign_lib.rewards import ImageReward, full, load_reward
from fsalign_lib.rewards import preprocess as pre
from fsalign_lib.rewards.aesthetic import published_mlp
from fsalign_lib.rewards.conversion import from_image_reward, from_open_clip
from tests import original_inputs as given
from tests import published
from tests.published import NAMES, RECORD

COUNT = len(given.SIZES)
EXACT = 8  # the first pictures have the towers' own size


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return published.build(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def pictures():
    return [torch.from_numpy(given.picture(i)).permute(2, 0, 1)[None] / 255 for i in range(COUNT)]


@pytest.fixture(scope="module")
def reward(request, folder):
    """For tests that leave it as it is."""
    return load_reward(request.param, scale="full", hub=folder)


@functools.cache
def originals(name, folder):
    """The original's scores, (24,)."""
    if name != "pickscore":
        return torch.tensor(RECORD["hps" if name == "hps-2.1" else name]["scores"])
    model = transformers.CLIPModel.from_pretrained(folder / full.PICKSCORE_V1).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / full.CLIP_H)
    images = transformers.models.clip.image_processing_pil_clip.CLIPImageProcessorPil()
    scores = []
    for i in range(COUNT):
        text = tokenizer(given.prompt(i), padding=True, truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            seen = model.get_image_features(**images(given.picture(i), return_tensors="pt")).pooler_output
            read = model.get_text_features(**text).pooler_output
        scores.append((F.normalize(read, dim=-1) @ F.normalize(seen, dim=-1).T).item())
    return torch.tensor(scores)


@torch.no_grad()
def scores_of(reward, pictures):
    return torch.cat([reward(picture, [given.prompt(i)]) for i, picture in enumerate(pictures)])


def worst(reward, pictures, name, folder):
    """The largest error on the tensors that no pipeline touches, and through the whole pipeline."""
    off = (scores_of(reward, pictures) - originals(name, folder)).abs()
    return off[:EXACT].max().item(), off.max().item()


@pytest.mark.parametrize("reward", NAMES, indirect=True)
def test_scores_are_the_originals(reward, pictures, folder, request):
    name = request.node.callspec.params["reward"]
    exact, whole = worst(reward, pictures, name, folder)
    print(f"{name}: {exact:.1e} on tensors, {whole:.1e} from pictures, spread {originals(name, folder).std():.3f}")
    assert exact < 1e-4 and whole < 5e-3
    assert originals(name, folder).std() > 0.05, "scores that do not vary would agree with anything"
    assert not any(p.requires_grad for p in reward.parameters()) and not reward.training


WRONG_PREPROCESSING = {
    "plain mean": dataclasses.replace(pre.OPENAI, mean=(0.5,) * 3),
    "plain deviation": dataclasses.replace(pre.OPENAI, std=(0.5,) * 3),
    "rounded down": dataclasses.replace(pre.OPENAI, crop="down"),
    "squashed": lambda x, size: pre.OPENAI(F.interpolate(x, (size, size), mode="bicubic", antialias=True), size),
    "aliased": lambda x, size: pre.OPENAI(F.interpolate(x, scale_factor=0.5, mode="nearest"), size),
}


@pytest.mark.parametrize("wrong", WRONG_PREPROCESSING)
def test_wrong_preprocessing_is_noticed(wrong, pictures, folder):
    reward = load_reward("imagereward", scale="full", hub=folder)
    reward.preprocess = WRONG_PREPROCESSING[wrong]
    assert worst(reward, pictures, "imagereward", folder)[1] > 5e-3


def swapped(state, a, b):
    other = {key: value for key, value in state.items() if a not in key and b not in key}
    return (
        other
        | {key.replace(a, b): state[key] for key in state if a in key}
        | {key.replace(b, a): state[key] for key in state if b in key}
    )


def test_wrong_weights_and_constants_are_noticed(pictures, folder):
    def off(reward, name):
        return (scores_of(reward, pictures[:EXACT]) - originals(name, folder)[:EXACT]).abs().max().item()

    reward = load_reward("clipscore", scale="full", hub=folder)
    reward.model.load_state_dict(swapped(reward.model.state_dict(), "q_proj", "k_proj"))
    assert off(reward, "clipscore") > 1e-3
    reward = load_reward("clipscore", scale="full", hub=folder)
    for layer in reward.model.vision_model.encoder.layers:
        layer.mlp.activation_fn = transformers.activations.ACT2FN["quick_gelu"]
    assert off(reward, "clipscore") > 1e-3
    reward = load_reward("imagereward", scale="full", hub=folder)
    reward.mean, reward.std = 0.0, 1.0
    assert off(reward, "imagereward") > 1e-2
    reward = load_reward("imagereward", scale="full", hub=folder)
    for module in reward.vision.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-2
    assert off(reward, "imagereward") > 1e-3
    reward = load_reward("aesthetic", scale="full", hub=folder)
    reward.mlp.insert(1, torch.nn.ReLU())
    assert off(reward, "aesthetic") > 1e-3


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_tokens_are_the_originals(kind, folder):
    if kind == "clip":
        reward, ids = load_reward("clipscore", scale="full", hub=folder), RECORD["clip_words"]["ids"]
        length, end = 77, 49407
    else:
        reward, ids = load_reward("imagereward", scale="full", hub=folder), RECORD["imagereward"]["ids"]
        length, end = 35, 102
    mine = reward.tokenizer(given.PROMPTS, truncation=True, max_length=length).input_ids
    assert mine == ids
    assert max(len(row) for row in mine) == length and all(row[-1] == end for row in mine)


def test_torch_resizes_as_pil_does():
    """In grey levels: fixed-point weights round a value near a half the other way now and then, and nothing else."""
    processor = transformers.models.clip.image_processing_pil_clip.CLIPImageProcessorPil(do_normalize=False)
    worst_share = worst_max = 0.0
    for i in range(EXACT, COUNT):
        picture = given.picture(i)
        theirs = torch.from_numpy(np.stack(processor(picture).pixel_values)) * 255
        tensor = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        mine = pre.Preprocess((0,) * 3, (1,) * 3, "down")(tensor, 224) * 255
        off = (mine - theirs).abs()
        worst_share = max(worst_share, (off > 0.01).float().mean().item())
        worst_max = max(worst_max, off.max().item())
    print(f"at most {worst_share:.2%} of a picture's values differ, by {worst_max:.2f} of 255")
    assert worst_share < 0.02 and worst_max < 2.01


def expanded(record):
    """Full-size shapes as tensors without storage, layer by layer."""
    state = {}
    for name, shape in record["shapes"].items():
        prefix, _, suffix = name.partition("N.")
        layers = record["layers"].get(prefix)
        names = [name] if layers is None else [f"{prefix}{i}.{suffix}" for i in range(layers)]
        state |= {n: torch.empty(shape, device="meta") for n in names}
    return state


def test_the_published_sizes_fit_their_models():
    """Names and shapes of the originals at full size, on the meta device."""
    tower = {"num_attention_heads": 16, "hidden_act": "gelu"}
    text = tower | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision = tower | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14}
    with torch.device("meta"):
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=1024)
        model = transformers.CLIPModel(config)
        state = from_open_clip(expanded(RECORD["full_size"]["open_clip"]))
        fill(model, state, "open_clip")
        assert sum(p.numel() for p in model.parameters()) == 986_109_441
        record = RECORD["full_size"]["imagereward"]
        state = from_image_reward(expanded(record))
        blip = ImageReward(*full.blip_configs(state, record["med_config"]), None, mlp=published_mlp(768))
        fill(blip, state, "ImageReward.pt")
        assert blip.vision.config.num_hidden_layers == 24 and blip.vision.config.num_attention_heads == 16
        assert blip.vision.config.image_size == 224 and blip.text.config.num_attention_heads == 12


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_finite_difference(name, folder):
    """In float64, through resize and crop; the straight-through rounding is left out, and then changes it little."""
    reward = load_reward(name, scale="full", hub=folder).double()
    published, smooth = reward.preprocess, dataclasses.replace(reward.preprocess, in_bytes=False)
    generator = torch.Generator().manual_seed(0)
    x = (0.3 + 0.4 * torch.rand(2, 3, 40, 56, generator=generator)).double().requires_grad_()
    d = torch.randn(x.shape, generator=generator).double()
    prompts, h = ["a cat", "a dog on the moon"], 1e-6

    def gradient(preprocess):
        reward.preprocess = preprocess
        return torch.autograd.grad(reward(x, prompts).sum(), x)[0]

    with torch.no_grad():
        reward.preprocess = smooth
        numeric = (reward(x + h * d, prompts) - reward(x - h * d, prompts)).sum() / (2 * h)
    assert (gradient(smooth) * d).sum().item() == pytest.approx(numeric.item(), rel=1e-5)
    assert gradient(published).isfinite().all()
    assert F.cosine_similarity(gradient(published).flatten(), gradient(smooth).flatten(), dim=0) > 0.99


@pytest.mark.parametrize("reward", NAMES, indirect=True)
def test_bfloat16_and_batches(reward, folder, pictures, request):
    name = request.node.callspec.params["reward"]
    batch, prompts = torch.cat(pictures[:4]), given.PROMPTS[:4]
    with torch.no_grad():
        scores = reward(batch, prompts)
    each = scores_of(reward, pictures[:4])
    assert torch.allclose(scores, each, atol=1e-5) and scores.dtype == torch.float32
    half = load_reward(name, scale="full", hub=folder, dtype=torch.bfloat16)
    coarse = half(batch.bfloat16().requires_grad_(), prompts)
    assert coarse.dtype == torch.float32 and coarse.requires_grad
    spread = originals(name, folder).std()
    assert (coarse - scores).abs().max() < 0.25 * spread


def test_jpeg_rewards_are_the_same_at_both_scales(pictures):
    for name in ("jpeg-compressibility", "jpeg-incompressibility"):
        assert torch.equal(load_reward(name, scale="full")(pictures[0]), load_reward(name)(pictures[0]))
