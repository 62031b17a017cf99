"""All settings of a training run, and the sets of them that have names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

Optimizer = Literal["adamw", "muon"]
Geometry = Literal["pad", "crop", "squash"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class TrainConfig:
    """A flat record. The defaults are this package's own; the paper's (arXiv 2312.03818) are the preset "paper".

    From the paper they have the trained parts, rates and whole pictures; not from it `same_image` and changed masks.

    Raises:
        ValueError: a setting is out of its range.
    """

    steps: int  # optimizer steps in all, those before a resume included
    batch_size: int = 256  # pictures a step, over all processes; one may hold several samples
    accumulate: int = 1  # parts, of as many pictures, that a process cuts its share into, to save memory; same loss

    optimizer: Optimizer = "adamw"  # Muon: for the blocks' matrices; from scratch, it needs fewer steps
    lr: float = 2e-6  # peak learning rate of everything but the alpha convolution
    alpha_lr: float = 2e-4  # peak learning rate of the alpha convolution
    weight_decay: float = 0.02  # on matrices and convolutions; never on gains, biases, embeddings or temperature
    warmup: int | None = None  # steps of linear warm-up, then cosine down to 0; None: 200, at most a tenth
    grad_clip: float = 1.0  # largest norm of the gradient
    unlock_blocks: int | None = None  # train only the last so many blocks, what follows them, and alpha; None: all
    train_text: bool = False  # train the text tower and the temperature too

    same_image: float = 0.5  # weight of telling the regions of one picture, and sets of them, from each other
    distill: float = 0.0  # weight of the drift of whole pictures from the starting model, as 1 - cosine
    distill_tokens: float = 0.0  # weight, within that, of the relative squared drift of the penultimate patch tokens

    whole: float = 0.1  # share of the samples that are whole pictures with their caption
    box: float = 0.1  # share of the masks that become their bounding box,
    ellipse: float = 0.1  # ... an ellipse in it,
    jitter: float = 0.3  # ... or are grown, shrunk, shifted and softened; the rest stays as it is
    graded: float = 0.0  # share of the region samples whose surroundings are seen in part, as far as the caption holds,
    weighted: float = 0.0  # ... that are two regions, one of which counts less,
    union: float = 0.0  # ... that are two or three regions, "a cat and a dog"; the rest shows one
    geometry: Geometry = "pad"  # "crop" may cut a region away: a bad picture

    precision: Precision = "float32"  # of matrix products (autocast); weights stay in float32
    checkpoint_activations: bool = False  # work out the blocks' activations twice, to save their memory
    seed: int = 0  # the order of the data and all that is drawn for item i of epoch e follow from (seed, e, i)
    workers: int = 1  # processes that make the data, for each process that trains; 0: none
    save_every: int = 500  # steps between checkpoints, from which a stopped run resumes exactly
    evaluate_every: int = 500  # steps between evaluations, where there is validation data

    def __post_init__(self) -> None:
        for name, choices in (("optimizer", Optimizer), ("geometry", Geometry), ("precision", Precision)):
            if (value := getattr(self, name)) not in (allowed := get_args(choices)):
                raise ValueError(f"TrainConfig.{name} is {value!r}, expected {' or '.join(map(repr, allowed))}")
        for name in ("steps", "batch_size", "accumulate", "save_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)}, expected at least 1")
        if self.warmup is not None and not 0 <= self.warmup <= self.steps:
            raise ValueError(f"TrainConfig.warmup is {self.warmup}, expected 0 to {self.steps}, the steps in all")
        for name in ("lr", "alpha_lr", "weight_decay", "grad_clip", "workers", *_WEIGHTS, *SHARES):
            if getattr(self, name) < 0:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)}, expected at least 0")
        for names in (("whole",), ("box", "ellipse", "jitter"), ("graded", "weighted", "union")):
            if (total := sum(getattr(self, name) for name in names)) > 1:
                raise ValueError(f"TrainConfig.{' + '.join(names)} is {total:g}, expected shares of at most 1")
        if self.grad_clip == 0:
            raise ValueError("TrainConfig.grad_clip is 0, which lets no gradient through: expected more")
        if self.distill_tokens and not self.distill:
            raise ValueError("TrainConfig.distill_tokens is a weight within distill, which is 0: give both")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"TrainConfig.batch_size is {self.batch_size}, expected a multiple of accumulate, {self.accumulate}"
            )


_WEIGHTS = ("same_image", "distill", "distill_tokens")
SHARES = ("whole", "box", "ellipse", "jitter", "graded", "weighted", "union")

# Settings that do not change what is learned: a run may be resumed with others.
MAY_CHANGE_ON_RESUME = ("accumulate", "checkpoint_activations", "evaluate_every", "save_every", "workers")

# `batch_size` counts pictures, where the paper counts pairs.
PRESETS: dict[str, dict[str, Any]] = {
    # Table "training recipe" of the paper's appendix; 5000 steps of 4096 are 20 epochs of a million pictures.
    "paper": {"steps": 5000, "batch_size": 4096, "accumulate": 64, "same_image": 0.0, "box": 0.0, "ellipse": 0.0,
              "jitter": 0.0, "precision": "bfloat16"},
    # 100,000 pairs bring most of the gain (the paper's table of data sizes); two or three a picture, here eight times.
    "light": {"steps": 640, "batch_size": 512, "accumulate": 8, "distill": 1.0, "distill_tokens": 0.1,
              "precision": "bfloat16"},
    # To see that data, device and disk work.
    "smoke": {"steps": 20, "batch_size": 16, "save_every": 10, "evaluate_every": 10},
}  # fmt: skip
