"""The files of a run: its state, best weights and log. State and weights are renamed into place when whole."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Subset

from .. import atomic
from .config import MAY_CHANGE_ON_RESUME, TrainConfig
from .data import Dataset
from .foreign import trainable
from .processes import gather_objects
from .trainable import Tokenize

LAST, BEST, METRICS, BAD_BATCH = "last.pt", "best.safetensors", "metrics.jsonl", "bad_batch.json"


@dataclass
class Progress:
    """How far a run is, and what it has counted."""

    step: int = 0  # optimizer steps taken
    best: float = -math.inf  # score of the best weights
    unreadable: int = 0  # pictures that could not be read, over all processes
    too_small: int = 0  # regions left out because they are too small, over all processes
    origin: str = ""  # what the run began with: a digest of the weights, and the size of the data set


def save_state(
    folder: Path, model: nn.Module, optimizers: list[Optimizer], config: TrainConfig, progress: Progress
) -> None:
    """Save everything that the rest of the run depends on. If this is killed, the last checkpoint stays."""
    adapter = trainable(model)
    state = {
        "model": adapter.trained(config.train_text),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "config": asdict(config),
        **asdict(progress),
        "random": {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
        "alpha_clip": adapter.metadata,  # so that `load` takes the file as it is
    }
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{LAST}.part"
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, folder / LAST)


def load_state(
    folder: Path, model: nn.Module, optimizers: list[Optimizer], config: TrainConfig, dataset: Dataset
) -> Progress:
    """Restore weights and optimizer states of the run in `folder`, if there is one. Returns how far it is.

    Raises:
        ValueError: the run has other settings, other data or began with other weights; its file is damaged; or only
            some of the processes see it.
    """
    path = folder / LAST
    origin = (
        f"weights {_digest(trainable(model).trained(config.train_text))}, {len(dataset)} pictures {_names(dataset)}"
    )
    if len({*gather_objects([path.exists()])}) > 1:
        raise ValueError(f"{path} is there for some processes only: name a folder that all of them share")
    if not path.exists():
        return Progress(origin=origin)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to begin anew, or name another folder") from error
    saved, wanted = state["config"], asdict(config)
    if other := [k for k in wanted if k not in MAY_CHANGE_ON_RESUME and saved.get(k) != wanted[k]]:
        differences = ", ".join(f"{k}: {saved.get(k)} there, {wanted[k]} here" for k in other)
        remedy = "name another folder"
        if "steps" in other:
            remedy += (
                f". The learning rate was to end at step {saved['steps']}, so that this run has no other length; a new "
                f"one may begin with the best weights in {folder}"
            )
        raise ValueError(f"{folder} holds a run with other settings ({differences}): {remedy}")
    if state["origin"] != origin:
        raise ValueError(
            f"{folder} holds a run that began with other weights or data ({state['origin']} there, {origin} here): "
            "give it those, or name another folder"
        )
    model.load_state_dict(model.state_dict() | state["model"])
    for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(optimizer_state)
    torch.set_rng_state(state["random"]["torch"])
    if torch.cuda.is_available() and len(state["random"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    return Progress(state["step"], state["best"], state["unreadable"], state.get("too_small", 0), origin)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:12]


def _names(dataset: Any) -> str:
    """A digest of the keys of the pictures, if the data set has `keys`."""
    if isinstance(dataset, Subset):
        return hashlib.sha256(f"{_names(dataset.dataset)} {list(dataset.indices)}".encode()).hexdigest()[:12]
    return hashlib.sha256(repr(list(getattr(dataset, "keys", []))).encode()).hexdigest()[:12]


def save_best(
    folder: Path, model: nn.Module, config: TrainConfig, metrics: Mapping[str, float], tokenize: Tokenize
) -> None:
    """Save what was trained, for `load` or `open_tower`, with settings and metrics in the metadata of the file."""
    about = {"config": json.dumps(asdict(config)), "metrics": json.dumps(metrics)}
    trainable(model).save(folder / BEST, config.train_text, about, tokenize)


class Log:
    """Writes ``metrics.jsonl``, and with `tensorboard` an event file. Lines of steps after `step` are dropped."""

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if _step(line) <= step]
            atomic.write_text(self.path, "".join(f"{line}\n" for line in lines))
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError("metrics for TensorBoard need tensorboard: pip install tensorboard") from error
            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()


def save_bad_batch(folder: Path, step: int, terms: Mapping[str, float], keys: list[str], texts: list[str]) -> None:
    """Save the keys and texts of the pictures of a loss or gradient that is not finite."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"step": step, "terms": {k: repr(v) for k, v in terms.items()}, "pictures": keys, "texts": texts}
    atomic.write_text(folder / BAD_BATCH, json.dumps(content, indent=1))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the run was killed while it wrote the line
        return math.inf
