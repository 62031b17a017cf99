"""Contrastive training on (image, mask, text) samples. It imports the core; the core never imports it.

python -m alpha_clip.training --model ViT-B/16 --data my_regions/ --out runs/first
"""

from .config import PRESETS, TrainConfig
from .loop import finetune
from .pictures import open_data
from .records import Picture, Region
from .views import Sample, SecondText

__all__ = ["PRESETS", "Picture", "Region", "Sample", "SecondText", "TrainConfig", "finetune", "open_data"]
