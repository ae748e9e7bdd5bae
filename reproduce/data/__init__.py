"""Prompt sets, readers, pictures, pairs, latents and targets."""
