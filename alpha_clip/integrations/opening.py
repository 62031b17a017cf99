"""Open models of other libraries by name, with an alpha channel and their tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..api import as_device
from .files import alphas, from_pretrained
from .towers import add_alpha

KINDS = ("hf", "open_clip")  # the part of a name before the colon
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")  # transformers' files; version 5 writes the first
OPEN_CLIP = "open_clip"  # key in a file's metadata, of the options for `create_model` that the weights do not show


class Words:
    """A transformers tokenizer: turns texts into (N, L) ids, cut and padded to full length, as SigLIP was trained.

    `processors` are the image processor's files that lie beside it; `save_pretrained` writes them too.
    """

    def __init__(self, tokenizer: Any, length: int, processors: Sequence[Path] = ()) -> None:
        self.tokenizer, self.length = tokenizer, length
        self.processors = {path.name: path.read_bytes() for path in processors}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        found = self.tokenizer(
            list(texts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = found["input_ids"]
        return ids

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        self.tokenizer.save_pretrained(folder)
        for name, content in self.processors.items():
            (Path(folder) / name).write_bytes(content)


def open_tower(
    name: str, device: str | torch.device | None = None
) -> tuple[nn.Module, Callable[[Sequence[str]], Tensor]]:
    """Open a CLIP or SigLIP of another library, in ``eval()`` and float32, with an alpha channel, and its tokenizer.

    Alpha weights come from the files, and are zero if these hold none. `alpha_clip.embed_regions` and the trainer
    normalise pixels by the mean and standard deviation that the files name.

    Args:
        name: ``"hf:FOLDER"``, where ``save_pretrained`` wrote a CLIPModel or SiglipModel and its tokenizer, and its
            image processor if mean or deviation are not CLIP's or SigLIP's own; ``"open_clip:NAME"``; or
            ``"open_clip:NAME:PRETRAINED"`` with a tag of open_clip or a file.
        device: None means CUDA if there is one, else MPS, else the CPU.

    Raises:
        ImportError: the library is not installed.
        ValueError: the name has another form, the library knows no such model, or the weights do not fit it.
        OSError: there is no such folder, or a file cannot be read.
        RuntimeError: the library cannot load the weights, or there is no such device.
    """
    kind, _, rest = name.partition(":")
    if kind not in KINDS or not rest:
        raise ValueError(f"the model is {name!r}, expected hf:FOLDER, open_clip:NAME or open_clip:NAME:PRETRAINED")
    opened = _of_transformers if kind == "hf" else _of_open_clip
    chosen = as_device(device)
    model, words = opened(name, rest)
    return model.float().to(chosen).eval(), words


def holds_alpha(name: str) -> bool:
    """Whether the files that `open_tower` would open hold alpha weights."""
    kind, _, rest = name.partition(":")
    if kind == "hf":
        return next(alphas(Path(rest)), None) is not None
    return kind == "open_clip" and _made_with(Path(rest.partition(":")[2])) is not None


def _of_transformers(name: str, folder: str) -> tuple[nn.Module, Callable[[Sequence[str]], Tensor]]:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ImportError(f"{name!r} is a model of transformers: pip install transformers") from error
    model: Any = from_pretrained(AutoModel, folder)
    text = getattr(model.config, "text_config", None)
    if text is None:
        kind = model.config.model_type
        raise ValueError(f"{name!r} is transformers' {kind!r}, expected a model of images and texts, CLIP or SigLIP")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:  # its message has many lines, and does not name the folder
        raise ValueError(
            f"{folder} holds no tokenizer: put the model's there, tokenizer.save_pretrained(...)"
        ) from error
    files = [Path(folder) / file for file in _PROCESSORS if (Path(folder) / file).is_file()]
    model.preprocess_cfg = _pixels(files)  # as open_clip names its own
    return model, Words(tokenizer, text.max_position_embeddings, files)


def _pixels(files: Sequence[Path]) -> dict[str, tuple[float, ...]]:
    """The mean and standard deviation of pixels, from the first image processor's file that names any."""
    for file in files:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            found = found.get("image_processor", found)
            if not found.get("do_normalize", True):
                return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
            named = {key: found[f"image_{key}"] for key in ("mean", "std") if found.get(f"image_{key}") is not None}
            pixels = {key: tuple(map(float, values)) for key, values in named.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not what an image processor's save_pretrained writes: {error}") from error
        if wrong := [key for key, values in pixels.items() if len(values) != 3]:
            raise ValueError(f"image_{wrong[0]} in {file} is {list(pixels[wrong[0]])}, expected 3 numbers, of RGB")
        if pixels:
            return pixels
    return {}


def _of_open_clip(name: str, rest: str) -> tuple[nn.Module, Callable[[Sequence[str]], Tensor]]:
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(f"{name!r} is a model of open_clip: pip install open_clip_torch") from error
    architecture, _, pretrained = rest.partition(":")
    if architecture not in (known := open_clip.list_models()):
        near = get_close_matches(architecture, known)
        raise ValueError(
            f"{name!r} is no model that open_clip knows by itself, expected one of open_clip.list_models()"
            f"{', such as ' + ' or '.join(near) if near else ''}: of one on the Hub, pass the name and the file"
        )
    made = _made_with(Path(pretrained))
    try:
        if made is None:
            model = add_alpha(open_clip.create_model(architecture, pretrained or None))
        else:
            model = add_alpha(open_clip.create_model(architecture, **made))
            model.load_state_dict(load_file(pretrained))
    except (RuntimeError, AssertionError) as error:  # torch's message lists every weight
        reason = shorten(str(error), 300, placeholder=" ...")
        raise ValueError(f"{pretrained} does not fit {architecture}, expected weights of it: {reason}") from error
    return model, open_clip.get_tokenizer(architecture)


def _made_with(path: Path) -> dict[str, Any] | None:
    """Options of `create_model` for weights that were saved after `add_alpha`; None: the file holds no such weights."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    with safe_open(path, framework="pt") as weights:
        if not any(key.endswith(".alpha") for key in weights.keys()):  # noqa: SIM118
            return None
        made: dict[str, Any] = json.loads((weights.metadata() or {}).get(OPEN_CLIP, "{}"))
        return made
