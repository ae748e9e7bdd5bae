"""Train the multi-step teacher: a noise-predicting UNet and its text encoder, on latents with caption dropout."""

import copy
import random
from pathlib import Path

import torch
from torch import Tensor, nn

from fsalign_lib.pocket import networks
from fsalign_lib.pocket.captions import Fact, caption
from fsalign_lib.pocket.fit import fit
from fsalign_lib.schedules import NoiseSchedule

STEPS = 7_000
BATCH = 32
DROPOUT = 0.1
MIN_SNR = 5.0


def token_ids(tokenizer, texts: list[str]) -> Tensor:
    """Tokenise texts, padded to the encoder's length."""
    return torch.tensor(tokenizer(texts, padding="max_length", truncation=True).input_ids)


def captions(facts: list[Fact], seed: int) -> list[str]:
    """Write one caption a fact; half of the single animals go without their article, as in SDPO's training prompts."""
    rng = random.Random(seed)
    return [caption(f, bare=rng.random() < 0.5) for f in facts]


def train(latents: Tensor, ids: Tensor, empty: Tensor, vocabulary: int, folder: Path, seed: int) -> nn.ModuleDict:
    """Fit UNet and text encoder together on E ||eps - eps_theta(x_t, t, c)||^2 with min-SNR-5 weights.

    Args:
        latents: scaled latents (N, 4, 16, 16).
        ids: caption tokens (N, 16). empty: tokens of the empty caption (16,).
    """
    torch.manual_seed(seed)
    networks_ = nn.ModuleDict({"unet": networks.unet(), "text_encoder": networks.text_encoder(vocabulary)})
    ema = copy.deepcopy(networks_)
    schedule = NoiseSchedule.scaled_linear()
    alpha_bar = schedule.alpha_bar.float()
    snr = alpha_bar / (1 - alpha_bar)
    weight = snr.clamp(max=MIN_SNR) / snr
    weight = weight / weight.mean()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (BATCH,), generator=generator)
        x0 = latents[index]
        t = torch.randint(len(alpha_bar), (BATCH,), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        dropped = torch.rand(BATCH, 1, generator=generator) < DROPOUT
        tokens = torch.where(dropped, empty, ids[index])
        cond = networks_["text_encoder"](tokens).last_hidden_state
        error = networks_["unet"](schedule.add_noise(x0, eps, t), t, cond).sample - eps
        return (weight[t] * error.square().mean((1, 2, 3))).mean()

    fit("teacher", networks_, loss, folder, steps=STEPS, lr=5e-4, seed=seed, ema=ema, ema_decay=0.999, every=200)
    return ema.eval()
