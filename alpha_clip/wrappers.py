"""Unwrap models that other libraries have wrapped, and find the weight that fixes the dtype and device of pixels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def unwrapped(model: Any) -> Any:
    """Return the model inside wrappers that change nothing in what its own methods compute.

    These are the wrappers of ``torch.compile``, ``DataParallel``, ``DistributedDataParallel``, ``AveragedModel`` and
    peft, whose adapters are in the modules of the model inside.
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
    """Return the patch embedding's weight: pixels must have its dtype and device, and features will have its dtype."""
    tower = getattr(model, "visual", getattr(model, "vision_model", model))
    found = next((m.weight for m in tower.modules() if isinstance(m, nn.Conv2d)), None)
    return next(model.parameters()) if found is None else found
