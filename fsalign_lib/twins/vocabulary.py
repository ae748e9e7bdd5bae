"""Seed weights and spell words for the twins of models and of rewards."""

import hashlib

import torch
from tokenizers import pre_tokenizers


def seed_by(source: str, seed: int) -> None:
    """Seed torch by what the weights are for, so that they do not depend on what was written before."""
    digest = hashlib.blake2b(f"{source}/{seed}".encode(), digest_size=6).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def clip_vocabulary() -> dict[str, int]:
    """Return CLIP's vocabulary before its merges: every byte, within and at the end of a word; the end comes last."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}
