"""Open models and pipelines from folders that `save_pretrained` wrote, with their alpha channel."""

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

from .towers import add_alpha, alpha_of, alpha_weight, has_alpha

Made = TypeVar("Made")

_KEY = ".alpha"
# File names of transformers and diffusers, and the endings of each.
_NAMES = {
    ("model", "diffusion_pytorch_model"): ".safetensors",
    ("pytorch_model", "diffusion_pytorch_model"): ".bin",
}


def from_pretrained(cls: type[Made], folder: str | os.PathLike[str], **options: Any) -> Made:
    """Call ``cls.from_pretrained(folder)`` and restore the alpha channel, for models and for diffusers pipelines.

    Alpha weights are zero if the folder holds none. (In ``from_pretrained`` alone, a class with the parameter would
    leave it uninitialised then, and a plain class drops the weights.)

    Args:
        folder: as ``save_pretrained`` wrote it.
        options: passed to ``cls.from_pretrained``. Alpha is read from the same ``subfolder`` and ``variant``, in the
            format that ``use_safetensors`` chooses. With ``output_loading_info=True`` the result is the model and the
            loading info, in which alpha is no unexpected key. A part of a pipeline that is passed keeps its own alpha.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the folder holds alpha weights of another size; the model has no RGB patch embedding, or several;
            a part that is passed has no alpha channel, but the folder holds alpha weights for it.
    """
    root = Path(folder) / options.get("subfolder", "")
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder, expected one that save_pretrained wrote: download it first")
    made: Any = cls.from_pretrained(folder, **options)  # type: ignore[attr-defined]
    chosen = {key: options.get(key) for key in ("variant", "use_safetensors")}
    if isinstance(made, nn.Module):
        _restore(made, root, **chosen)
    elif isinstance(made, tuple):
        model, info = made
        _restore(model, root, **chosen)
        unexpected = info["unexpected_keys"]
        info["unexpected_keys"] = type(unexpected)(key for key in unexpected if not key.endswith(_last(model)))
    else:
        _restore_parts(made, root, options, **chosen)
    return made


def _restore_parts(pipeline: Any, root: Path, options: dict[str, Any], **chosen: Any) -> None:
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    passed = [name for name in parts if isinstance(options.get(name), nn.Module)]
    held = [name for name in parts if next(alphas(root / name, **chosen), None) is not None]
    for name in held or [name for name in passed if has_alpha(parts[name])] or ["image_encoder"]:
        kind = type(pipeline).__name__
        if name not in parts:
            raise ValueError(f"{kind} in {root} has no image_encoder: call add_alpha on the part that you mean")
        if name not in passed:
            _restore(parts[name], root / name, **chosen)
        elif not has_alpha(parts[name]):
            if name in held:
                raise ValueError(
                    f"the {name} that is passed has no alpha channel, and {root / name} holds alpha weights: open it "
                    "with alpha_clip.integrations.from_pretrained, or call add_alpha on it for one of zero"
                )
            add_alpha(parts[name])


def _restore(model: nn.Module, folder: Path, **chosen: Any) -> None:
    add_alpha(model)
    alpha = alpha_weight(model)
    found = [tensor for key, tensor in alphas(folder, **chosen) if key.endswith(_last(model))]
    if len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} alpha weights, expected 1: load its towers one by one")
    if found and found[0].shape != alpha.shape:
        raise ValueError(f"the alpha weights in {folder} are {tuple(found[0].shape)}, expected {tuple(alpha.shape)}")
    with torch.no_grad():
        for tensor in found:
            alpha.copy_(tensor)


def _last(model: nn.Module) -> str:
    """The end of the alpha weight's name; its beginning may differ between disk and memory."""
    return alpha_of(model)[0].rpartition(".")[2] + _KEY


def alphas(
    folder: Path, variant: str | None = None, use_safetensors: bool | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of the alpha weights in the files that a model is loaded from."""
    for file in _weight_files(folder, variant, use_safetensors):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as weights:
                yield from ((key, weights.get_tensor(key)) for key in weights.keys() if key.endswith(_KEY))  # noqa: SIM118
        else:
            mapped = zipfile.is_zipfile(file)  # the oldest format is not, and cannot be mapped
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
            yield from ((key, tensor) for key, tensor in state.items() if key.endswith(_KEY))


def _weight_files(folder: Path, variant: str | None, use_safetensors: bool | None) -> list[Path]:
    """The weight files that transformers and diffusers choose where a folder holds several.

    They prefer safetensors, and a whole file to shards. A pipeline's part that lacks the variant is loaded without it.
    """
    marks = [f".{variant}", ""] if variant else [""]
    kinds = [names for names in _NAMES.items() if use_safetensors in (None, names[1] == ".safetensors")]
    for mark, (names, ending) in product(marks, kinds):
        for name in names:
            if (whole := folder / f"{name}{mark}{ending}").is_file():
                return [whole]
            if (index := folder / f"{name}{ending}.index{mark}.json").is_file():
                return sorted({folder / file for file in json.loads(index.read_text())["weight_map"].values()})
    return []
