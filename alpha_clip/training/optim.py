"""Which weights are trained, with which optimizer, and the learning rate over time."""

from __future__ import annotations

import math
import re
import warnings
from itertools import chain

import torch
from torch import nn

from .config import TrainConfig
from .foreign import trainable
from .trainable import Trainable

# Names of positions and queries that are parameters themselves, not the "weight" of an embedding module.
_EMBEDDINGS = {"positional_embedding", "pos_embed", "cls_token", "reg_token", "probe", "latent"}
_IN_A_BLOCK = re.compile(r"\.(resblocks|layers|blocks)\.\d")  # in the names of any library


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Freeze what `config` does not train, and make the optimizers of the rest.

    The alpha convolution starts from zero and has a learning rate of its own (paper, appendix: 2e-4 beside 2e-6).

    Raises:
        ValueError: ``config.unlock_blocks`` exceeds the blocks of the image tower, or its blocks are not known.

    Warns:
        UserWarning: only the alpha convolution is trained.
    """
    adapter = trainable(model)
    _unlock(adapter, config)
    alpha = adapter.alpha
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    hidden: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter is alpha or not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or parameter in embeddings or name.rpartition(".")[2] in _EMBEDDINGS:
            plain.append(parameter)
        elif config.optimizer == "muon" and parameter.ndim == 2 and _IN_A_BLOCK.search(name):
            hidden.append(parameter)
        else:
            decayed.append(parameter)
    groups = [  # some may be empty
        {"params": [alpha], "lr": config.alpha_lr, "weight_decay": config.weight_decay},
        {"params": decayed, "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": plain, "lr": config.lr, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)  # CLIP's, arXiv 2103.00020 table 19
    ]
    if hidden:
        # Its updates are scaled to AdamW's, so that both use the same learning rate (arXiv 2502.16982, section 2.2).
        optimizers.append(
            torch.optim.Muon(hidden, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


def _unlock(adapter: Trainable, config: TrainConfig) -> None:
    """Freeze all that `config` does not train."""
    unlocked = config.unlock_blocks
    adapter.model.requires_grad_(config.train_text)
    adapter.visual.requires_grad_(unlocked is None)
    adapter.alpha.requires_grad_(True)
    if unlocked is None:
        return
    blocks = adapter.blocks(adapter.visual, "unlock_blocks")
    if not 0 <= unlocked <= len(blocks):
        raise ValueError(f"TrainConfig.unlock_blocks is {unlocked}, expected 0 to {len(blocks)}, the blocks there are")
    if unlocked == 0:
        warnings.warn(
            "unlock_blocks=0 trains the alpha convolution alone. In the paper that was worse than no training: 63.61% "
            "top-1 on ImageNet-S, plain CLIP 66.48%, all blocks 68.27% (ViT-B/16).",
            stacklevel=2,
        )
        return
    for parameter in (*chain(*(block.parameters() for block in blocks[-unlocked:])), *adapter.tail()):
        parameter.requires_grad_(True)


def lr_at(step: int, config: TrainConfig) -> float:
    """Factor on the peak learning rates at `step`: linear warm-up, then a cosine down to 0 at the last step."""
    warmup = min(200, config.steps // 10) if config.warmup is None else config.warmup
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    return (1 + math.cos(math.pi * done)) / 2
