"""What the twins of models and of rewards have in common."""

import hashlib

import torch
from tokenizers import pre_tokenizers


def seed_by(source: str, seed: int) -> None:
    """Weights depend on what they are for, not on what was written before."""
    digest = hashlib.blake2b(f"{source}/{seed}".encode(), digest_size=6).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def clip_vocabulary() -> dict[str, int]:
    """CLIP's vocabulary before its merges: every byte, within and at the end of a word; the end has the last id."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}
