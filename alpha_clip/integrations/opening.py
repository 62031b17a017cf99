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

KINDS = ("hf", "open_clip")  # what stands before the colon
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")  # transformers' of how pixels are made: 5's first
OPEN_CLIP = "open_clip"  # in the metadata of a file: options of its `create_model`, which the weights do not tell


class Words:
    """A tokenizer of transformers, which cuts and pads texts to (N, L) ids of full length, as SigLIP was trained.

    `processors` are the image processor's files beside it, which are saved with it.
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

    Alpha weights come from the files if they hold any, and are zero otherwise. `alpha_clip.embed_regions` and the
    trainer normalise pixels by the mean and deviation that the files name.

    Args:
        name: ``"hf:FOLDER"``, a CLIPModel or SiglipModel with its tokenizer, and its image processor where that has
            another mean or deviation than CLIP's or SigLIP's own, as ``save_pretrained`` wrote them;
            ``"open_clip:NAME"``, or ``"open_clip:NAME:PRETRAINED"`` with a tag of open_clip or a file.
        device: None means CUDA if there is one, else MPS, else the CPU.

    Raises:
        ImportError: the library is not installed.
        ValueError, RuntimeError, OSError: there is no such model, as its library says; the weights are not of it; or
            the name is of another form.
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
    except (OSError, ValueError, TypeError) as error:  # of many lines, and not of the folder
        raise ValueError(
            f"{folder} holds no tokenizer: put the model's there, tokenizer.save_pretrained(...)"
        ) from error
    files = [Path(folder) / file for file in _PROCESSORS if (Path(folder) / file).is_file()]
    model.preprocess_cfg = _pixels(files)  # where open_clip keeps its own
    return model, Words(tokenizer, text.max_position_embeddings, files)


def _pixels(files: Sequence[Path]) -> dict[str, tuple[float, ...]]:
    """Read mean and deviation (std) from the first of an image processor's files that names them."""
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
    except (RuntimeError, AssertionError) as error:  # torch's lists every weight
        reason = shorten(str(error), 300, placeholder=" ...")
        raise ValueError(f"{pretrained} does not fit {architecture}, expected weights of it: {reason}") from error
    return model, open_clip.get_tokenizer(architecture)


def _made_with(path: Path) -> dict[str, Any] | None:
    """Read `create_model`'s options from a file saved after `add_alpha`; None: it is no such file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    with safe_open(path, framework="pt") as weights:
        if not any(key.endswith(".alpha") for key in weights.keys()):  # noqa: SIM118
            return None
        made: dict[str, Any] = json.loads((weights.metadata() or {}).get(OPEN_CLIP, "{}"))
        return made
