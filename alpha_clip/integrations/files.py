"""Models and pipelines with an alpha channel, from folders that their own `save_pretrained` wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .towers import add_alpha, alpha_of, alpha_weight

Made = TypeVar("Made")

_KEY = ".alpha"


def from_pretrained(cls: type[Made], folder: str | os.PathLike[str], **options: Any) -> Made:
    """What ``cls.from_pretrained(folder)`` gives, with its alpha channel, for models and for pipelines of diffusers.

    Without alpha weights in the folder, they are zero. (``from_pretrained`` of a class that has the parameter would
    leave it uninitialised there, and that of a plain class drops it.)

    Args:
        folder: as ``save_pretrained`` wrote it, safetensors.
        options: for ``cls.from_pretrained``.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds alpha weights of another size; the model has no patch embedding of RGB, or several.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder, expected one that save_pretrained wrote: download it first")
    made: Any = cls.from_pretrained(folder, **options)  # type: ignore[attr-defined]
    if isinstance(made, nn.Module):
        _restore(made, root)
        return made  # type: ignore[return-value]
    parts: dict[str, Any] = made.components
    there = {name: part for name, part in parts.items() if isinstance(part, nn.Module) and (root / name).is_dir()}
    with_alpha = [name for name in there if next(alphas(root / name), None) is not None]
    for name in with_alpha or ["image_encoder"]:
        if name not in there:
            raise ValueError(f"{cls.__name__} in {root} has no image_encoder: call add_alpha on the part that you mean")
        _restore(there[name], root / name)
    return made


def _restore(model: nn.Module, folder: Path) -> None:
    add_alpha(model)
    name, alpha = alpha_of(model)[0], alpha_weight(model)
    last = name.rpartition(".")[2] + _KEY  # names on disk and in memory differ further up
    found = [tensor for key, tensor in alphas(folder) if key.endswith(last)]
    if len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} alpha weights, expected 1: load its towers one by one")
    if found and found[0].shape != alpha.shape:
        raise ValueError(f"the alpha weights in {folder} are {tuple(found[0].shape)}, expected {tuple(alpha.shape)}")
    with torch.no_grad():
        for tensor in found:
            alpha.copy_(tensor)


def alphas(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Keys and values of the alpha weights in a folder's safetensors."""
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    names = set(json.loads(index.read_text())["weight_map"].values()) if index else None
    for file in sorted(folder.glob("*.safetensors")):
        if names is None or file.name in names:
            with safe_open(file, framework="pt") as weights:
                yield from ((key, weights.get_tensor(key)) for key in weights.keys() if key.endswith(_KEY))  # noqa: SIM118
