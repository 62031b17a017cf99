"""Models and pipelines with an alpha channel, from folders that their own `save_pretrained` wrote."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .towers import add_alpha, alpha_of, alpha_weight

Made = TypeVar("Made")

_KEY = ".alpha"
# What transformers and diffusers call their files.
_NAMES = {
    ("model", "diffusion_pytorch_model"): ".safetensors",
    ("pytorch_model", "diffusion_pytorch_model"): ".bin",
}


def from_pretrained(cls: type[Made], folder: str | os.PathLike[str], **options: Any) -> Made:
    """What ``cls.from_pretrained(folder)`` gives, with its alpha channel, for models and for pipelines of diffusers.

    Without alpha weights in the folder, they are zero. (``from_pretrained`` of a class that has the parameter would
    leave it uninitialised there, and that of a plain class drops it.)

    Args:
        folder: as ``save_pretrained`` wrote it.
        options: for ``cls.from_pretrained``; alpha comes from the same ``subfolder`` and ``variant``.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds alpha weights of another size; the model has no patch embedding of RGB, or several.
    """
    root, variant = Path(folder) / options.get("subfolder", ""), options.get("variant")
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder, expected one that save_pretrained wrote: download it first")
    made: Any = cls.from_pretrained(folder, **options)  # type: ignore[attr-defined]
    if isinstance(made, nn.Module):
        _restore(made, root, variant)
        return made  # type: ignore[return-value]
    parts: dict[str, Any] = made.components
    there = {name: part for name, part in parts.items() if isinstance(part, nn.Module) and (root / name).is_dir()}
    with_alpha = [name for name in there if next(alphas(root / name, variant), None) is not None]
    for name in with_alpha or ["image_encoder"]:
        if name not in there:
            raise ValueError(f"{cls.__name__} in {root} has no image_encoder: call add_alpha on the part that you mean")
        _restore(there[name], root / name, variant)
    return made


def _restore(model: nn.Module, folder: Path, variant: str | None) -> None:
    add_alpha(model)
    name, alpha = alpha_of(model)[0], alpha_weight(model)
    last = name.rpartition(".")[2] + _KEY  # names on disk and in memory differ further up
    found = [tensor for key, tensor in alphas(folder, variant) if key.endswith(last)]
    if len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} alpha weights, expected 1: load its towers one by one")
    if found and found[0].shape != alpha.shape:
        raise ValueError(f"the alpha weights in {folder} are {tuple(found[0].shape)}, expected {tuple(alpha.shape)}")
    with torch.no_grad():
        for tensor in found:
            alpha.copy_(tensor)


def alphas(folder: Path, variant: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """Keys and values of the alpha weights in the files that a model is loaded from."""
    for file in _weight_files(folder, variant):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as weights:
                yield from ((key, weights.get_tensor(key)) for key in weights.keys() if key.endswith(_KEY))  # noqa: SIM118
        else:
            mapped = zipfile.is_zipfile(file)  # not so the oldest
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
            yield from ((key, tensor) for key, tensor in state.items() if key.endswith(_KEY))


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    """Those that transformers and diffusers take, where there are several.

    safetensors come first, and a whole file before shards. A part of a pipeline without the variant is loaded plain.
    """
    marks = [f".{variant}", ""] if variant else [""]
    for mark, (names, ending) in product(marks, _NAMES.items()):
        for name in names:
            if (whole := folder / f"{name}{mark}{ending}").is_file():
                return [whole]
            if (index := folder / f"{name}{ending}.index{mark}.json").is_file():
                return sorted({folder / file for file in json.loads(index.read_text())["weight_map"].values()})
    return []
