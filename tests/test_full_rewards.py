"""The rewards at full size, by their own loading code on tiny weights, against the original packages' scores.

What the originals scored, and with which versions, is in fixtures/reward_originals.json; PickScore's original is
transformers itself, and runs here.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from pathlib import Path
from urllib.error import URLError

import httpx
import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from huggingface_hub import errors
from safetensors.torch import save_file

import original_inputs as given
from fsalign_lib.rewards import ImageReward, full, load_reward
from fsalign_lib.rewards import preprocess as pre
from fsalign_lib.rewards.aesthetic import published_mlp
from fsalign_lib.rewards.checkpoints import from_image_reward, from_open_clip, load_weights, read_checkpoint

RECORD = json.loads((Path(__file__).parent / "fixtures" / "reward_originals.json").read_text())
NAMES = ("pickscore", "clipscore", "hps", "hps-2.1", "imagereward", "aesthetic")
COUNT = len(given.SIZES)
EXACT = 8  # the first pictures have the towers' own size


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The published files in the published formats, at a tiny size."""
    root = tmp_path_factory.mktemp("weights")
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


@pytest.fixture(scope="module", autouse=True)
def tiny_mlp(folder):
    """The aesthetic MLP is known by its bytes: here by those of the tiny one."""
    digest = hashlib.sha256((folder / full.AESTHETIC_V2.name).read_bytes()).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full, "AESTHETIC_V2", dataclasses.replace(full.AESTHETIC_V2, sha256=digest))
        yield


@pytest.fixture(scope="module")
def pictures():
    return [torch.from_numpy(given.picture(i)).permute(2, 0, 1)[None] / 255 for i in range(COUNT)]


@pytest.fixture(scope="module")
def reward(request, folder):
    """For tests that leave it as it is."""
    return load_reward(request.param, folder, scale="full")


@functools.cache
def originals(name, folder):
    """The original's scores, (24,)."""
    if name != "pickscore":
        return torch.tensor(RECORD["hps" if name == "hps-2.1" else name]["scores"])
    model = transformers.CLIPModel.from_pretrained(place(folder, full.PICKSCORE_V1)).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(place(folder, full.WORDS_H))
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
    reward = load_reward("imagereward", folder, scale="full")
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

    reward = load_reward("clipscore", folder, scale="full")
    reward.model.load_state_dict(swapped(reward.model.state_dict(), "q_proj", "k_proj"))
    assert off(reward, "clipscore") > 1e-3
    reward = load_reward("clipscore", folder, scale="full")
    for layer in reward.model.vision_model.encoder.layers:
        layer.mlp.activation_fn = transformers.activations.ACT2FN["quick_gelu"]
    assert off(reward, "clipscore") > 1e-3
    reward = load_reward("imagereward", folder, scale="full")
    reward.mean, reward.std = 0.0, 1.0
    assert off(reward, "imagereward") > 1e-2
    reward = load_reward("imagereward", folder, scale="full")
    for module in reward.vision.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-2
    assert off(reward, "imagereward") > 1e-3
    reward = load_reward("aesthetic", folder, scale="full")
    reward.mlp.insert(1, torch.nn.ReLU())
    assert off(reward, "aesthetic") > 1e-3


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_tokens_are_the_originals(kind, folder):
    if kind == "clip":
        reward, ids = load_reward("clipscore", folder, scale="full"), RECORD["clip_words"]["ids"]
        length, end = 77, 49407
    else:
        reward, ids = load_reward("imagereward", folder, scale="full"), RECORD["imagereward"]["ids"]
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
        load_weights(model, state, "open_clip")
        assert sum(p.numel() for p in model.parameters()) == 986_109_441
        record = RECORD["full_size"]["imagereward"]
        state = from_image_reward(expanded(record))
        blip = ImageReward(*full.blip_configs(state, record["med_config"]), None, mlp=published_mlp(768))
        load_weights(blip, state, "ImageReward.pt")
        assert blip.vision.config.num_hidden_layers == 24 and blip.vision.config.num_attention_heads == 16
        assert blip.vision.config.image_size == 224 and blip.text.config.num_attention_heads == 12


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_finite_difference(name, folder):
    """In float64, through resize and crop; the straight-through rounding is left out, and then changes it little."""
    reward = load_reward(name, folder, scale="full").double()
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
    half = load_reward(name, folder, scale="full", dtype=torch.bfloat16)
    coarse = half(batch.bfloat16().requires_grad_(), prompts)
    assert coarse.dtype == torch.float32 and coarse.requires_grad
    spread = originals(name, folder).std()
    assert (coarse - scores).abs().max() < 0.25 * spread


# what is missing or wrong


@pytest.mark.parametrize("name", NAMES)
def test_no_network_names_what_to_download(name, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    told = r"is not in the cache and the hub cannot be reached.*`hf download \S+ .* --revision [0-9a-f]{40} --local-dir"
    with pytest.raises(FileNotFoundError, match=told):
        load_reward(name, scale="full")
    with pytest.raises(FileNotFoundError, match="has no .*where there is a network run `hf download"):
        load_reward(name, tmp_path, scale="full")


def test_the_hubs_cache_is_read(monkeypatch, tmp_path, folder, pictures):
    for source in (full.PICKSCORE_V1, full.WORDS_H):
        snapshot = tmp_path / f"models--{source.repo.replace('/', '--')}" / "snapshots" / source.revision
        shutil.copytree(place(folder, source), snapshot, dirs_exist_ok=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    given_folder = load_reward("pickscore", folder, scale="full")
    assert load_reward("pickscore", scale="full")(pictures[0], ["a cat"]) == given_folder(pictures[0], ["a cat"])


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (errors.RevisionNotFoundError, ValueError, "yuvalkirstain/PickScore_v1 has no revision a4e4367c"),
        (errors.GatedRepoError, FileNotFoundError, "is gone, private or gated"),
        (errors.RepositoryNotFoundError, FileNotFoundError, "is gone, private or gated"),
        (errors.RemoteEntryNotFoundError, FileNotFoundError, "lacks one of"),
    ],
)
def test_what_the_hub_refuses(error, kind, told, monkeypatch):
    def refuse(*_, **__):
        raise error("no", response=httpx.Response(404, request=httpx.Request("GET", "https://example.org")))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(kind, match=told):
        load_reward("pickscore", scale="full")


@pytest.fixture
def copy(folder, tmp_path):
    """Files to be replaced: hard links, so that they are deleted before they are written."""
    return shutil.copytree(folder, tmp_path / "copy", copy_function=os.link)


def test_wrong_revision(copy):
    note = place(copy, full.PICKSCORE_V1) / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{full.PICKSCORE_V1.revision}\netag\n0\n")
    load_reward("pickscore", copy, scale="full")
    note.write_text(f"{'0' * 40}\netag\n0\n")
    with pytest.raises(ValueError, match=f"is of revision 0{{40}}, expected {full.PICKSCORE_V1.revision}"):
        load_reward("pickscore", copy, scale="full")


@pytest.mark.parametrize(
    ("name", "source", "key", "told"),
    [
        ("pickscore", full.PICKSCORE_V1, "text_model.final_layer_norm.bias", "text_model.final_layer_norm.bias"),
        ("clipscore", full.CLIP_H, "visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"),
        ("hps", full.HPS_V2_0, "transformer.resblocks.1.ln_1.bias", "text_model.encoder.layers.1.layer_norm1.bias"),
        ("imagereward", full.IMAGE_REWARD_V1, "mlp.layers.7.weight", "mlp.7.weight"),
        ("aesthetic", full.CLIP_L, "vision_model.pre_layrnorm.bias", "vision_model.pre_layrnorm.bias"),
        ("aesthetic", None, "layers.6.weight", "6.weight"),
    ],
)
def test_keys_that_do_not_match_are_named(name, source, key, told, copy, monkeypatch):
    if source is None:
        path = copy / full.AESTHETIC_V2.name
    else:
        path = place(copy, source) / next(f for f in source.files if not f.endswith("json"))
    state = read_checkpoint(path)
    tensors = state.get("state_dict", state)

    def save():
        path.unlink()
        save_file(state, path, metadata={"format": "pt"}) if path.suffix == ".safetensors" else torch.save(state, path)
        if source is None:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            monkeypatch.setattr(full, "AESTHETIC_V2", dataclasses.replace(full.AESTHETIC_V2, sha256=digest))

    taken = tensors.pop(key)
    save()
    with pytest.raises(ValueError, match=rf"holds other weights than the model has: 1 missing \({told}\)"):
        load_reward(name, copy, scale="full")
    tensors[key], tensors["vision_model.surplus"] = taken, torch.zeros(1)
    save()
    with pytest.raises(ValueError, match=r"1 unexpected \(vision_model\.surplus\)"):
        load_reward(name, copy, scale="full")
    del tensors["vision_model.surplus"]
    tensors[key] = torch.zeros(3, 5)
    save()
    with pytest.raises(ValueError, match=rf"1 mismatched \({told}\)"):
        load_reward(name, copy, scale="full")


class Surprise:
    def __reduce__(self):
        return print, ("code in a checkpoint has run",)


def test_checkpoints_do_not_run_code(copy, capsys):
    path = place(copy, full.HPS_V2_0) / full.HPS_V2_0.files[0]
    path.unlink()
    torch.save({"state_dict": {}, "surprise": Surprise()}, path)
    with pytest.raises(ValueError, match="is not a checkpoint of tensors alone"):
        load_reward("hps", copy, scale="full")
    assert "has run" not in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a checkpoint of tensors alone"):
        load_reward("hps", copy, scale="full")


def test_the_aesthetic_mlp_is_known_by_its_bytes(copy, monkeypatch, tmp_path):
    path = copy / full.AESTHETIC_V2.name
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content + b"x")
    with pytest.raises(ValueError, match="is not the file that is meant"):
        load_reward("aesthetic", copy, scale="full")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="where there is a network run `curl -L -o .*6934dd81792f086e"):
        load_reward("aesthetic", copy, scale="full")

    def unreachable(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError, match="cannot be fetched .*no route"):
        full.AESTHETIC_V2.fetch(None)


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown scale 'fulll': choose from pocket, full"):
        load_reward("pickscore", scale="fulll")
    with pytest.raises(ValueError, match="unknown reward 'hps-3'; choose one of pickscore, clipscore, hps, hps-2.1"):
        load_reward("hps-3", scale="full")


def test_every_source_is_pinned():
    sources = [value for value in vars(full).values() if isinstance(value, full.Source)]
    assert len(sources) == 9
    for source in sources:
        assert len(source.revision) == 40 and set(source.revision) <= set("0123456789abcdef")


def test_jpeg_rewards_are_the_same_at_both_scales(pictures):
    for name in ("jpeg-compressibility", "jpeg-incompressibility"):
        assert torch.equal(load_reward(name, scale="full")(pictures[0]), load_reward(name)(pictures[0]))
