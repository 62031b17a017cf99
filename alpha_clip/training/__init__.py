"""Training: contrastive, on (image, mask, text) samples. Imports the core; the core never imports this.

python -m alpha_clip.training --model ViT-B/16 --data my_regions/ --out runs/first
"""

from .config import PRESETS, TrainConfig
from .data import Sample
from .loop import finetune
from .pictures import Picture, Region, open_data

__all__ = ["PRESETS", "Picture", "Region", "Sample", "TrainConfig", "finetune", "open_data"]
