"""The files of a run: its state, its best weights, its log. All are written under temporary names and renamed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import checkpoints
from ..model import CLIP
from .config import FREE, TrainConfig
from .processes import rank_and_world

LAST, BEST, METRICS, BAD_BATCH = "last.pt", "best.safetensors", "metrics.jsonl", "bad_batch.json"


def save_state(
    folder: Path, model: CLIP, optimizers: list[Optimizer], config: TrainConfig, step: int, best: float
) -> None:
    """Everything that the rest of the run depends on; a run that is killed in here keeps its last checkpoint."""
    state = {
        "model": trained(model, config),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "config": asdict(config),
        "step": step,
        "best": best,
        "random": {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
        "alpha_clip": checkpoints.METADATA if model.confirmed else None,  # so that `load` takes the file as it is
    }
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{LAST}.part"
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, folder / LAST)


def load_state(folder: Path, model: CLIP, optimizers: list[Optimizer], config: TrainConfig) -> tuple[int, float]:
    """Step and best score of the run in `folder`, its weights and optimizer states put in place; (0, -inf): none there.

    Raises:
        ValueError: it is a run with other settings.
    """
    path = folder / LAST
    if not path.exists():
        _forget_after(folder / METRICS, 0)
        return 0, -math.inf
    state = torch.load(path, map_location="cpu", weights_only=True)
    saved, wanted = state["config"], asdict(config)
    if other := [k for k in wanted if k not in FREE and saved.get(k) != wanted[k]]:
        differences = ", ".join(f"{k}: {saved.get(k)} there, {wanted[k]} here" for k in other)
        raise ValueError(f"{folder} holds a run with other settings ({differences}): name another folder")
    model.load_state_dict(model.state_dict() | state["model"])
    for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(optimizer_state)
    torch.set_rng_state(state["random"]["torch"])
    if torch.cuda.is_available() and len(state["random"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    _forget_after(folder / METRICS, int(state["step"]))
    return int(state["step"]), float(state["best"])


def save_best(folder: Path, model: CLIP, config: TrainConfig, metrics: Mapping[str, float]) -> None:
    """What was trained, for `load`, with the settings and the step's metrics in the file's metadata."""
    about = {"config": json.dumps(asdict(config)), "metrics": json.dumps(metrics)}
    checkpoints.write(trained(model, config), folder / BEST, confirmed=model.confirmed, about=about)


def trained(model: CLIP, config: TrainConfig) -> dict[str, Tensor]:
    """The image tower, and all the rest where that is trained too, in OpenAI CLIP's names."""
    return {k: v for k, v in model.state_dict().items() if config.train_text or k.startswith("visual.")}


def log(folder: Path, step: int, metrics: Mapping[str, float], tensorboard: bool = False) -> None:
    """One more line of ``metrics.jsonl``, and of TensorBoard's file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / METRICS).open("a") as file:
        file.write(json.dumps({"step": step, **metrics}) + "\n")
    if tensorboard:
        writer = _tensorboard(folder)
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()


@lru_cache(1)
def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def save_bad_batch(folder: Path, step: int, terms: Mapping[str, float], positions: list[int], texts: list[str]) -> Path:
    """Which pictures a loss that is not finite came from."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"step": step, "terms": {k: repr(v) for k, v in terms.items()}, "positions": positions, "texts": texts}
    part, path = folder / f".{BAD_BATCH}.part", folder / BAD_BATCH
    part.write_text(json.dumps(content, indent=1))
    os.replace(part, path)
    return path


def _forget_after(path: Path, step: int) -> None:
    """Drop what a run logged after the checkpoint that it goes on from."""
    if rank_and_world()[0] == 0 and path.exists():
        lines = [line for line in path.read_text().splitlines() if _step(line) <= step]
        part = path.with_name(f".{path.name}.part")
        part.write_text("".join(f"{line}\n" for line in lines))
        os.replace(part, path)


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line that was cut short when the run was killed
        return math.inf
