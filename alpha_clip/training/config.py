"""All settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainConfig:
    """A flat record; the defaults fine-tune the image tower on region-text pairs as in the paper (section 3.2, 4).

    Raises:
        ValueError: a setting is out of its range.
    """

    steps: int  # optimizer steps in all, those before a resume included
    batch_size: int = 256  # dataset items a step; an item may hold several samples
    optimizer: Literal["adamw", "muon"] = "adamw"  # Muon: for the blocks' matrices; from scratch, it needs fewer steps
    lr: float = 2e-6  # peak learning rate of everything but the alpha convolution
    alpha_lr: float = 2e-4  # peak learning rate of the alpha convolution
    weight_decay: float = 0.02  # on matrices and convolutions; never on gains, biases, embeddings or temperature
    warmup: int = 200  # steps of linear warm-up, then cosine down to 0
    train_text: bool = False  # train the text tower and the temperature too
    distill: float = 0.0  # weight of (1 - cosine) between whole-image features and those of the starting model
    grad_clip: float = 1.0  # largest norm of the gradient
    seed: int = 0  # order of the data; item i of epoch e is a pure function of (seed, e, i)
    workers: int = 1  # processes that make the data; 0: this one
    checkpoint_every: int = 500  # steps between checkpoints, from which a stopped run resumes exactly

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"TrainConfig.optimizer is {self.optimizer!r}, expected 'adamw' or 'muon'")
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)}, expected at least 1")
        for name in ("lr", "alpha_lr", "weight_decay", "warmup", "distill", "grad_clip", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)}, expected at least 0")
