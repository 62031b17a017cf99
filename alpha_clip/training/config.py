"""The settings of a training run, and the named presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints


def _setting(default: Any, text: str) -> Any:
    """A field with a default and with what `python -m alpha_clip.training --help` says of it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run.

    The defaults are this package's own; the preset "paper" has those of the paper (arXiv 2312.03818). Which parts are
    trained, their learning rates and the share of whole pictures are the paper's; `same_image` and the changed masks
    are not.

    Raises:
        ValueError: a setting is out of its range.
    """

    steps: int = field(metadata={"help": "optimizer steps in all, those before a resume included"})
    batch_size: int = _setting(256, "pictures a step, over all processes; a picture may give several samples")
    accumulate: int = _setting(
        1, "parts that each process cuts its share of a batch into, to save memory; the loss is the same"
    )

    optimizer: Literal["adamw", "muon"] = _setting(
        "adamw", "muon is for the matrices of the blocks; it needs fewer steps from scratch"
    )
    lr: float = _setting(2e-6, "peak learning rate of everything but the alpha convolution")
    alpha_lr: float = _setting(2e-4, "peak learning rate of the alpha convolution")
    weight_decay: float = _setting(
        0.02, "weight decay of matrices and convolutions; never of gains, biases, embeddings or the temperature"
    )
    warmup: int | None = _setting(
        None, "steps of linear warm-up, before a cosine down to 0; None: a tenth of all, at most 200"
    )
    grad_clip: float = _setting(1.0, "largest norm of the gradient")
    unlock_blocks: int | None = _setting(
        None, "train only this many last blocks, what follows them, and alpha; None: all"
    )
    train_text: bool = _setting(False, "train the text tower and the temperature too")

    same_image: float = _setting(0.5, "weight of telling apart the regions of one picture, and sets of them")
    distill: float = _setting(0.0, "weight of the drift of whole pictures from the starting model, as 1 - cosine")
    distill_tokens: float = _setting(
        0.0, "weight, within distill, of the relative squared drift of the penultimate patch tokens"
    )

    whole: float = _setting(0.1, "share of the samples that are whole pictures with their caption")
    box: float = _setting(0.1, "share of the masks that are replaced by their bounding box")
    ellipse: float = _setting(0.1, "share of the masks that are replaced by an ellipse in their bounding box")
    jitter: float = _setting(0.3, "share of the masks that are grown, shrunk, shifted and softened")
    graded: float = _setting(
        0.0, "share of the region samples whose surroundings show in part; the caption is their second text"
    )
    weighted: float = _setting(0.0, "share of the region samples with two regions, one of which counts less")
    union: float = _setting(
        0.0, "share of the region samples with two or three regions under one mask, 'a cat and a dog'"
    )
    geometry: Literal["pad", "crop", "squash"] = _setting(
        "pad", "how pictures become square; crop may cut a region away, which makes the picture unusable"
    )

    precision: Literal["float32", "bfloat16"] = _setting(
        "float32", "precision of matrix products (autocast); weights stay in float32"
    )
    checkpoint_activations: bool = _setting(False, "work out the blocks' activations twice, to save memory")
    seed: int = _setting(
        0, "the order of the data, and all that is drawn for item i of epoch e, follow from (seed, e, i)"
    )
    workers: int = _setting(1, "processes that load the data, for each process that trains; 0: none")
    save_every: int = _setting(500, "steps between checkpoints, from which a stopped run resumes exactly")
    evaluate_every: int = _setting(500, "steps between evaluations, if there is validation data")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(TrainConfig).items():
            if get_origin(kind) is Literal and (value := getattr(self, name)) not in get_args(kind):
                raise ValueError(f"TrainConfig.{name} is {value!r}, expected {' or '.join(map(repr, get_args(kind)))}")
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

# They do not change what is learned.
MAY_CHANGE_ON_RESUME = ("accumulate", "checkpoint_activations", "evaluate_every", "save_every", "workers")

# `batch_size` counts pictures, where the paper counts pairs.
PRESETS: dict[str, dict[str, Any]] = {
    # Table "training recipe" of the paper's appendix; 5000 steps of 4096 are 20 epochs of a million pictures.
    "paper": {"steps": 5000, "batch_size": 4096, "accumulate": 64, "same_image": 0.0, "box": 0.0, "ellipse": 0.0,
              "jitter": 0.0, "precision": "bfloat16"},
    # 100,000 pairs bring most of the gain (the paper's table of data sizes); two or three a picture, here eight times.
    "light": {"steps": 640, "batch_size": 512, "accumulate": 8, "distill": 1.0, "distill_tokens": 0.1,
              "precision": "bfloat16"},
    # A trial of data, device and disk.
    "smoke": {"steps": 20, "batch_size": 16, "save_every": 10, "evaluate_every": 10},
}  # fmt: skip
