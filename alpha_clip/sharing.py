"""Save models to folders and to the Hub, from where `load` takes them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from . import atomic, checkpoints, vocabulary
from .model import CLIP, empty_model

_FILES = {".pt", ".pth", ".bin", ".safetensors"}  # what others save weights as

CARD = """\
---
library_name: alpha-clip
pipeline_tag: zero-shot-image-classification
tags:
- clip
- alpha-clip
---

# {title}

A CLIP whose image tower takes a mask beside the picture ([Alpha-CLIP](https://arxiv.org/abs/2312.03818)), for the
Python package `alpha-clip`:

```python
import alpha_clip

model, preprocess = alpha_clip.load("{name}")
rgb, alpha = preprocess(image, mask)
features = model.encode_image(rgb, alpha)
```

| | |
|---|---|
| image tower | {resolution} x {resolution} pixels, patches of {patch}, width {width}, {layers} blocks |
| text tower | width {text_width}, {text_layers} blocks, context {context} |
| features | {features} |
| alpha weights | {alpha} |

<!-- Say here what it was trained on, how well it does, and under which licence it is. Models fine-tuned from the
Alpha-CLIP authors' weights are for research use only (CC BY-NC 4.0), as those are. -->
"""


def save(model: CLIP, folder: str | os.PathLike[str]) -> Path:
    """Write ``model.safetensors`` and a model card, ``README.md``, into `folder`; `load` takes the folder's path.

    Weights keep their precision, a small vocabulary stays small, and what nothing confirmed when the model was loaded
    stays unconfirmed. Files are written under temporary names and renamed; an existing README.md stays as it is.

    Returns:
        The folder.

    Raises:
        TypeError: `model` is not one of ours.
        ValueError: `model` has other weights than `load` takes, such as an adapter's; or `folder` is the name of a file
            of weights, such as "model.pt".
        OSError: the folder cannot be written to, or holds weights that `load` would read in place of these.
    """
    path = Path(folder).expanduser()
    if path.suffix in _FILES and not path.is_dir():
        raise ValueError(
            f"folder is {str(folder)!r}, a file's name, expected a folder's: save writes model.safetensors into it. "
            f"Give {str(path.with_suffix(''))!r}, or torch.save(model.state_dict(), file) for a file"
        )
    return _save(model, path, path.resolve().name, str(path))


def push_to_hub(model: CLIP, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload what `save` writes to the model repository `repo` ("user/name"), which is created if need be.

    An existing card stays as it is. Others load it with ``load("hf-hub:user/name")``.

    Args:
        model: one of ours.
        repo: "user/name".
        private: whether a new repository is private.
        token: of an account that may write there; None: the one of `hf auth login`.

    Returns:
        The address of the commit.

    Raises:
        TypeError: `model` is not one of ours.
        ValueError: `model` has other weights than `load` takes.
        FileExistsError: the repository holds weights that `load` would read in place of these.
        Exception: what `huggingface_hub` raises.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        _save(model, Path(folder), repo.rpartition("/")[2], f"hf-hub:{repo}")
        api.create_repo(repo, private=private, exist_ok=True)
        if api.file_exists(repo, checkpoints.WEIGHT_FILES[0]):
            raise FileExistsError(f"{repo} holds {checkpoints.WEIGHT_FILES[0]}, which load would read: choose another")
        ignored = ["README.md"] if api.file_exists(repo, "README.md") else None
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Upload an alpha-clip model", ignore_patterns=ignored
        )
        return str(commit.commit_url)


def _save(model: CLIP, folder: Path, title: str, name: str) -> Path:
    if not isinstance(model, CLIP):
        raise TypeError(f"model is {type(model).__name__}, expected what alpha_clip.load returns (a CLIP)")
    if (other := folder / checkpoints.WEIGHT_FILES[0]).exists():
        raise FileExistsError(
            f"{other} already exists, which load would read in place of what is saved: choose another folder"
        )
    tensors = model.state_dict()
    _check_names(tensors)
    if model.known_tokens is not None:
        tensors = vocabulary.pack(tensors, model.known_tokens)
    checkpoints.write(tensors, folder / "model.safetensors", confirmed=model.confirmed)
    card = folder / "README.md"
    if not card.exists():
        atomic.write_text(card, _card(model, title, name))
    return folder


def _check_names(tensors: Mapping[str, Tensor]) -> None:
    try:
        needed = empty_model(tensors).state_dict().keys()
    except ValueError as error:
        raise ValueError(f"model cannot be saved, as load would not take it: {error}") from error
    if wrong := sorted(needed ^ tensors.keys()):
        raise ValueError(
            f"model has not the weights that load expects ({', '.join(wrong[:4])}{', ...' if wrong[4:] else ''}): "
            "merge or remove parametrisations and adapters first"
        )


def _card(model: CLIP, title: str, name: str) -> str:
    visual = model.visual
    with torch.no_grad():
        blind = not visual.conv1_alpha.weight.any()
    return CARD.format(
        title=title,
        name=name,
        resolution=visual.input_resolution,
        patch=visual.conv1.kernel_size[0],
        width=visual.conv1.out_channels,
        layers=visual.transformer.layers,
        text_width=model.transformer.width,
        text_layers=model.transformer.layers,
        context=model.context_length,
        features=visual.output_dim,
        alpha="all zero: this is plain CLIP, which ignores masks" if blind else "yes",
    )
