"""fsalign: preference alignment of few-step diffusion models, derived, verified and reproduced."""

__version__ = "0.1.0"
