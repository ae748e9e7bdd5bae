"""Score pictures by the rewards' own code, from the files that fsalign's rewards read.

Each is called as its README says, a picture and a prompt at a time; a score is in its own unit.
"""

import contextlib
import functools
import io
import types
import warnings
from collections.abc import Callable
from unittest import mock

import transformers
from PIL import Image

from fsalign_lib.models.hub import Hub
from fsalign_lib.rewards import full
from reproduce.evaluation.original_packages import load

Score = Callable[[Image.Image, str], float]


def image_reward(hub: Hub, device: str) -> Score:
    """Load ImageReward by the package image-reward."""
    package, blip = load("ImageReward"), load("ImageReward.models.BLIP.blip")
    folder = hub.fetch(full.IMAGE_REWARD_V1, ["ImageReward.pt", "med_config.json"])
    words = hub.fetch(full.BERT, ["vocab.txt"])  # else it fetches whatever stands under the name today
    read = blip.BertTokenizer.from_pretrained
    tokenizer = types.SimpleNamespace(from_pretrained=lambda _: read(words))
    with mock.patch.object(blip, "BertTokenizer", tokenizer), silently():
        model = package.load(str(folder / "ImageReward.pt"), device, med_config=str(folder / "med_config.json"))
    return lambda picture, prompt: model.score(prompt, picture)


def open_clip(hub: Hub, device: str) -> Score:
    """Load CLIP ViT-H-14 by the package open_clip: the cosine."""
    package, file = load("open_clip"), "open_clip_model.safetensors"
    weights = str(hub.fetch(full.CLIP_H, [file]) / file)
    model, _, transform = package.create_model_and_transforms("ViT-H-14", pretrained=weights, device=device)
    tokenizer = package.get_tokenizer("ViT-H-14")
    model.eval()

    def score(picture: Image.Image, prompt: str) -> float:
        seen = model.encode_image(transform(picture)[None].to(device), normalize=True)
        read = model.encode_text(tokenizer([prompt]).to(device), normalize=True)
        return (seen @ read.T).item()

    return score


def hpsv2(file: str, hub: Hub, device: str) -> Score:
    """Load HPS by the package hpsv2: the cosine, on a GPU under its autocast to float16.

    It reads its weights again for each score, which is as slow as it sounds.
    """
    package = load("hpsv2.img_score")
    weights = str(hub.fetch(full.HPS_V2, [file]) / file)
    package.model_dict.clear()
    package.device = device
    create = package.create_model_and_transforms
    # It would fetch CLIP's weights first, to put its own in their place.
    without = mock.patch.object(
        package, "create_model_and_transforms", lambda name, _, **settings: create(name, None, **settings)
    )
    with without:
        package.initialize_model()

    def score(picture: Image.Image, prompt: str) -> float:
        with warnings.catch_warnings(action="ignore"):  # of an autocast for CUDA, on a CPU
            return float(package.score(picture, prompt, cp=weights)[0])

    return score


def pickscore(hub: Hub, device: str) -> Score:
    """Load PickScore by transformers, as its model card does: the cosine times exp(logit_scale), which is 100.

    The pictures are prepared by the processor that works with PIL, as at the time of the paper; where torchvision is
    installed, transformers 5 would take another.
    """
    folder = hub.fetch(full.PICKSCORE_V1, full.SAVED)
    words = transformers.CLIPTokenizer.from_pretrained(hub.fetch(full.CLIP_H, full.WORDS))
    images = transformers.models.clip.image_processing_pil_clip.CLIPImageProcessorPil()
    processor = transformers.CLIPProcessor(images, words)
    model = transformers.AutoModel.from_pretrained(folder).eval().to(device)

    def score(picture: Image.Image, prompt: str) -> float:
        settings = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
        seen = model.get_image_features(**processor(images=picture, return_tensors="pt").to(device)).pooler_output
        read = model.get_text_features(**processor(text=prompt, **settings).to(device)).pooler_output
        seen, read = (x / x.norm(dim=-1, keepdim=True) for x in (seen, read))
        return (model.logit_scale.exp() * (read @ seen.T)).item()

    return score


@contextlib.contextmanager
def silently():
    """Keep what a package prints to itself."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


ORIGINALS: dict[str, Callable[[Hub, str], Score]] = {
    "imagereward": image_reward,
    "clipscore": open_clip,
    "hps": functools.partial(hpsv2, "HPS_v2_compressed.pt"),
    "hps-2.1": functools.partial(hpsv2, "HPS_v2.1_compressed.pt"),
    "pickscore": pickscore,
}
