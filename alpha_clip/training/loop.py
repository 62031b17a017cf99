"""The training loop, top to bottom."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from ..checkpoints import METADATA
from ..model import CLIP, VisionTransformer
from ..tokenizer import tokenize
from .config import TrainConfig
from .data import Batch, Dataset, batches
from .loss import contrastive_loss, distillation_loss
from .optim import learning_rate_factor, make_optimizers

MAX_SCALE = 100.0  # CLIP clips the inverse temperature there (arXiv 2103.00020, section 2.5)


def fit(
    model: CLIP,
    dataset: Dataset,
    config: TrainConfig,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    tokenize: Callable[[Sequence[str]], Tensor] = tokenize,
    description: str = "training",
) -> CLIP:
    """Train `model` in place, with a progress bar, and return it in ``eval()``.

    Args:
        model: float32, on the device to train on.
        dataset: map-style; an item is a `Sample`, or the samples of one picture.
        config: all settings.
        checkpoint: file that holds the state of the run. If it exists the run goes on from there, and ends bit for
            bit where an uninterrupted one would (same machine, same versions).
        tokenize: texts to token ids (U, L).
        description: words before the progress bar.

    Raises:
        ValueError: the data set is empty, or `checkpoint` belongs to a run with other settings.
        FloatingPointError: the loss is not finite; the last checkpoint stays as it is.
    """
    start_visual = _frozen_copy(model.visual) if config.distill else None
    optimizers = make_optimizers(model, config)
    peak = [group["lr"] for group in _groups(optimizers)]
    path = None if checkpoint is None else Path(checkpoint)
    step = _resume(path, model, optimizers, config) if path and path.exists() else 0

    model.train()
    progress = tqdm(batches(dataset, config, step), description, initial=step, total=config.steps, unit="step")
    for batch in progress:
        for group, lr in zip(_groups(optimizers), peak, strict=True):
            group["lr"] = lr * learning_rate_factor(step, config)
        loss = batch_loss(model, batch, config, tokenize, start_visual)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        value = loss.item()  # waits for the device
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {step}: lower the learning rate, or check the data")
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(MAX_SCALE))
        step += 1
        progress.set_postfix(loss=f"{value:.3f}", samples=len(batch.image), refresh=False)
        if path and (step % config.checkpoint_every == 0 or step == config.steps):
            _save(path, model, optimizers, config, step)
    return model.eval()


def batch_loss(
    model: CLIP,
    batch: Batch,
    config: TrainConfig,
    tokenize: Callable[[Sequence[str]], Tensor] = tokenize,
    start_visual: VisionTransformer | None = None,
) -> Tensor:
    """() contrastive loss of one batch, plus `config.distill` times the drift of its whole images."""
    device = model.logit_scale.device
    tokens = tokenize(batch.texts).to(device)
    tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]  # the tower is causal: padding after the end is idle
    image, text_of, whole = batch.image.to(device), batch.text_of.to(device), batch.whole.to(device)
    with torch.set_grad_enabled(config.train_text):
        text = F.normalize(model.encode_text(tokens), dim=-1)
    features = F.normalize(model.encode_image(image, batch.alpha.to(device)), dim=-1)
    loss = contrastive_loss(features, text, text_of, model.logit_scale.exp())
    if start_visual is not None and whole.any():
        with torch.no_grad():
            target = F.normalize(start_visual(image[whole]), dim=-1)
        loss = loss + config.distill * distillation_loss(features[whole], target)
    return loss


def _frozen_copy(visual: VisionTransformer) -> VisionTransformer:
    return copy.deepcopy(visual).eval().requires_grad_(False)


def _groups(optimizers: list[Optimizer]) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def _save(path: Path, model: CLIP, optimizers: list[Optimizer], config: TrainConfig, step: int) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "config": asdict(config),
        "step": step,
        "alpha_clip": METADATA,  # so that `load` takes the file as it is
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    torch.save(state, part)
    os.replace(part, path)  # a run that is killed while it writes keeps its last checkpoint


def _resume(path: Path, model: CLIP, optimizers: list[Optimizer], config: TrainConfig) -> int:
    state = torch.load(path, map_location="cpu", weights_only=True)
    # How often to save and who makes the data do not change what is learned.
    free = {"checkpoint_every", "workers"}
    saved, wanted = state["config"], asdict(config)
    if other := [k for k in wanted if k not in free and saved.get(k) != wanted[k]]:
        differences = ", ".join(f"{k}: {saved.get(k)} there, {wanted[k]} here" for k in other)
        raise ValueError(f"{path} belongs to a run with other settings ({differences}): name another checkpoint")
    model.load_state_dict(state["model"])
    for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(optimizer_state)
    return int(state["step"])
