"""Align few-step diffusion models with preferences: losses, kernels, rewards, metrics, a toy and a pocket world."""

__version__ = "0.1.0"
