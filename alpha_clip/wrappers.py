"""What is inside of models that others have wrapped, and which of their weights says what pixels must be."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def unwrapped(model: Any) -> Any:
    """The model in a wrapper that adds nothing to what the model's own methods compute.

    Such are ``torch.compile``'s, ``DataParallel``, ``DistributedDataParallel``, ``AveragedModel`` and peft's, whose
    adapters are in the modules of the model inside.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # compiled
            model = inner
        elif callable(base := getattr(model, "get_base_model", None)):  # of peft
            model = base()
        else:
            return model


def patch_weight(model: nn.Module) -> Tensor:
    """The patch embedding's, whose dtype and device pixels must have, and whose dtype the features then have."""
    tower = getattr(model, "visual", getattr(model, "vision_model", model))
    found = next((m.weight for m in tower.modules() if isinstance(m, nn.Conv2d)), None)
    return next(model.parameters()) if found is None else found
