"""Train and use the autoencoder: 64x64 pictures to 16x16x4 latents of unit variance, and back."""

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsalign_lib.pocket import networks
from fsalign_lib.pocket.fit import fit

STEPS = 2600
BATCH = 16
AT_ONCE = 250  # pictures in a call that trains nothing


def differences(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def train(pictures: Tensor, folder: Path, seed: int):
    """Fit AutoencoderKL on uint8 pictures (N, 3, 64, 64): L1, L1 of the picture's differences, and a small KL."""
    torch.manual_seed(seed)
    vae = networks.autoencoder().to(memory_format=torch.channels_last)
    ema = copy.deepcopy(vae)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pictures), (BATCH,), generator=generator)
        x = pictures[index].float() / 127.5 - 1
        posterior = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
        y = vae.decode(posterior.sample(generator)).sample
        edges = sum(F.l1_loss(a, b) for a, b in zip(differences(y), differences(x), strict=True))
        return F.l1_loss(y, x) + 0.5 * edges + 3e-5 * posterior.kl().mean() / 10

    fit("autoencoder", vae, loss, folder, steps=STEPS, lr=1.5e-3, seed=seed, ema=ema, weight_decay=0.0)
    ema.eval()
    ema.register_to_config(scaling_factor=1 / encode(ema, pictures[:2000]).std().item())
    return ema


@torch.no_grad()
def encode(vae, pictures: Tensor) -> Tensor:
    """Encode to posterior means (N, 4, 16, 16), not scaled, of uint8 pictures (N, 3, 64, 64)."""
    rows = [vae.encode(p.float() / 127.5 - 1).latent_dist.mean for p in pictures.split(AT_ONCE)]
    return torch.cat(rows)


def cached_latents(vae, pictures: Tensor, folder: Path) -> Tensor:
    """Return scaled latents of the training pictures, encoded once."""
    path = folder / "latents.safetensors"
    if path.exists():
        return load_file(path)["latents"]
    latents = encode(vae, pictures) * vae.config.scaling_factor
    save_file({"latents": latents}, path)
    return latents


@torch.no_grad()
def decode(vae, latents: Tensor) -> Tensor:
    """Decode scaled latents to pictures in [0, 1], (N, 3, 64, 64)."""
    rows = [vae.decode(z / vae.config.scaling_factor).sample for z in latents.split(AT_ONCE)]
    return (torch.cat(rows) / 2 + 0.5).clamp(0, 1)
