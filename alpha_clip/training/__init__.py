"""Training: contrastive, on (image, mask, text) samples. Imports the core; the core never imports this."""

from .config import TrainConfig
from .data import Sample
from .loop import fit

__all__ = ["Sample", "TrainConfig", "fit"]
