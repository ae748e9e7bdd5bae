"""Import image-reward, open_clip and hpsv2 beside this project's transformers, their files as they are.

They ask for more than is installed with them (CONTRIBUTING.md, "image-reward"). What their scores need of it is
supplied here while they are imported: torchvision's transforms of a picture, timm's patch embedding, and what
transformers 5 no longer has. All else (training, downloads) is a placeholder that refuses to be called. What is
supplied cannot be imported afterwards, so no other package takes it for the real one; where the real torchvision or
timm is installed and works, it is used.
"""

import contextlib
import enum
import gzip
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import modeling_utils, pytorch_utils

PACKAGES = {"ImageReward": "image-reward", "open_clip": "open_clip_torch", "hpsv2": "hpsv2"}  # as pip calls them
ASKED = ("torchvision", "timm", "fairscale", "clip", "clint", "turtle")  # turtle: Python's own, where Tk is
TRAINER = "ImageReward.ReFL"  # asks for `datasets` and half of diffusers; no score needs it
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"  # of CLIP: open_clip has it, hpsv2's wheel lacks it

Transform = Callable[[Image.Image | Tensor], Image.Image | Tensor]


def load(name: str) -> types.ModuleType:
    """Import one of the packages, or a module of it.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to get it.
    """
    package = name.split(".")[0]
    for needed in (package, "open_clip") if package == "hpsv2" else (package,):
        if importlib.util.find_spec(needed) is None:
            raise ModuleNotFoundError(f"{PACKAGES[needed]} is not installed: get it by `make image-reward`")
    with supplied(), warnings.catch_warnings():  # the packages switch warnings off for everybody
        if package == "ImageReward":
            # By name: transformers puts another module in its own place while it is first imported.
            older = mock.patch.multiple("transformers.modeling_utils", create=True, **OLDER)
            with older, mock.patch("transformers.BertTokenizer", BertTokenizer):
                return importlib.import_module(name)
        with mock.patch.object(gzip, "open", _open_vocabulary):
            return importlib.import_module(name)


@contextlib.contextmanager
def supplied() -> Iterator[None]:
    """Answer imports of what is lacking by placeholders and by SUPPLIED, until the end of the block."""
    finder = Finder({name for name in ASKED if not _works(name)} | {TRAINER})
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, Lacking)]:
            del sys.modules[name]


def _works(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # a torchvision for another torch raises whatever its library does
        for part in [part for part in sys.modules if part.split(".")[0] == name]:
            del sys.modules[part]
        return False
    return True


class Lacking(types.ModuleType):
    """Stand in for a module: what is taken from it can be named and inherited from, not called."""

    __path__ = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_, **__):
            raise ModuleNotFoundError(f"{self.__name__}.{name} is not installed, and scores do not need it")

        return type(name, (), {"__init__": refuse})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Find modules that are lacking, and those below them."""

    def __init__(self, lacking: set[str]):
        self.lacking = lacking

    def find_spec(self, name, path=None, target=None):
        if name in self.lacking or name.split(".")[0] in self.lacking:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Lacking(spec.name)

    def exec_module(self, module):
        vars(module).update(SUPPLIED.get(module.__name__, {}))


# --- torchvision.transforms of PIL's pictures and, as hpsv2 needs, of tensors (C, H, W)


class InterpolationMode(enum.Enum):
    BICUBIC = "bicubic"


def compose(transforms: Sequence[Transform]) -> Transform:
    return lambda picture: reduce(lambda done, transform: transform(done), transforms, picture)


def scale(picture: Tensor | Image.Image, size: Sequence[int], interpolation: InterpolationMode):
    """Scale to (height, width), bicubic and antialiased: whole bytes of PIL's pictures, floats of tensors."""
    if isinstance(picture, Tensor):
        return F.interpolate(picture[None], size, mode="bicubic", antialias=True)[0]
    return picture.resize(size[::-1], Image.Resampling.BICUBIC)


def resize(size: int, interpolation: InterpolationMode) -> Transform:
    """Scale the shorter side."""

    def apply(picture):
        sides = _sides(picture)
        if min(sides) == size:
            return picture
        return scale(picture, [int(size * side / min(sides)) for side in reversed(sides)], interpolation)

    return apply


def center_crop(size: int | tuple[int, int]) -> Transform:
    size = size if isinstance(size, int) else size[0]  # a square's

    def apply(picture):
        left, top = (round((side - size) / 2) for side in _sides(picture))
        if isinstance(picture, Tensor):
            return picture[:, top : top + size, left : left + size]
        return picture.crop((left, top, left + size, top + size))

    return apply


def _sides(picture: Tensor | Image.Image) -> tuple[int, int]:
    return (picture.shape[2], picture.shape[1]) if isinstance(picture, Tensor) else picture.size


def to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous() / 255


class ToTensor:  # open_clip inherits from it
    def __call__(self, picture: Image.Image) -> Tensor:
        return to_tensor(picture)


def normalize(mean: Sequence[float], std: Sequence[float]) -> Transform:
    mean, std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    return lambda picture: (picture - mean) / std


# --- timm's, for image-reward's ViT


class PatchEmbed(nn.Module):
    """Map pictures (B, 3, size, size) to vectors of their patches (B, patches, width)."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.proj(pictures).flatten(2).transpose(1, 2)


SUPPLIED = {
    "torchvision.transforms": {
        "InterpolationMode": InterpolationMode,
        "Compose": compose,
        "Resize": resize,
        "CenterCrop": center_crop,
        "ToTensor": ToTensor,
        "Normalize": normalize,
        "RandomResizedCrop": lambda *_, **__: None,  # of pictures to train on, for which a transform is made as well
    },
    "torchvision.transforms.functional": {
        "resize": scale,
        "pad": lambda picture, padding, fill: F.pad(picture, [padding[i] for i in (0, 2, 1, 3)], value=fill),
        "to_tensor": to_tensor,
    },
    "timm.models.vision_transformer": {"PatchEmbed": PatchEmbed},
    "timm.models.layers": {"trunc_normal_": nn.init.trunc_normal_, "DropPath": nn.Identity},  # drops in training alone
}

# --- transformers', before its fifth version


class PreTrainedModel(modeling_utils.PreTrainedModel):
    """Have the methods that BLIP's text encoder calls."""

    all_tied_weights_keys = {}  # its weights are its own, and it never calls post_init, which would say so

    def invert_attention_mask(self, attended: Tensor) -> Tensor:
        return (1 - attended[:, None, None].to(self.dtype)) * torch.finfo(self.dtype).min

    def get_head_mask(self, mask: None, layers: int) -> list[None]:
        return [None] * layers


class BertTokenizer(transformers.BertTokenizer):
    @property
    def additional_special_tokens_ids(self) -> list[int]:
        return self.convert_tokens_to_ids(self.extra_special_tokens)


OLDER = {
    "PreTrainedModel": PreTrainedModel,
    "apply_chunking_to_forward": pytorch_utils.apply_chunking_to_forward,
    "prune_linear_layer": pytorch_utils.prune_linear_layer,
    "find_pruneable_heads_and_indices": None,  # heads are not pruned here
}

# --- hpsv2's vocabulary

_open = gzip.open


def _open_vocabulary(path, *args, **kwargs):
    if Path(path).name == VOCABULARY and not Path(path).exists():
        path = Path(importlib.util.find_spec("open_clip").origin).parent / VOCABULARY
    return _open(path, *args, **kwargs)
