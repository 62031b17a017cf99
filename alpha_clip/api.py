"""`load` and `available_models`, with the signatures of OpenAI's clip."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from . import catalogue, vocabulary, weights
from .errors import TunedTower, ZeroAlpha
from .model import CLIP, matrices
from .transforms import Preprocess

_RESNETS = {"RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"}


def available_models() -> list[str]:
    """Return the names that `load` knows, the bundled model first."""
    return list(catalogue.BASES)


def load(
    name: str | os.PathLike[str],
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | os.PathLike[str] | None = None,
    *,
    alpha_vision_ckpt_pth: str | os.PathLike[str] | None = "auto",
    dtype: torch.dtype | None = None,
    trust: bool = False,
) -> tuple[CLIP, Preprocess]:
    """Load a model and the transform that makes its inputs.

    Args:
        name: one of `available_models()`; "hf-hub:user/repo" or "hf-hub:user/repo@revision"; or a path: OpenAI's
            archives, state dicts in OpenAI's, open_clip's or transformers' names as safetensors or saved by torch,
            folders of those, and our own checkpoints.
        device: None means CUDA if there is one, else MPS, else the CPU.
        jit: not supported; there for the signature of ``clip.load``.
        download_root: folder to download to, and to look in for files already there; None: the Hub's cache, and
            those of OpenAI's clip and of this package.
        alpha_vision_ckpt_pth: where the alpha weights come from. "auto": the best released for this base, or those
            in the given file. A tag of `available_alpha_weights(name)`, or the path of an image tower as the
            Alpha-CLIP authors save it. None: alpha weights of zero, which is plain CLIP; with a file that was tuned
            with alpha weights it is not, as the rest of its image tower stays tuned.
        dtype: None means float16 on CUDA, as in CLIP, and float32 elsewhere. In half precision, layer norms and
            embeddings are in float32.
        trust: run the code in a TorchScript archive that is not one of OpenAI's. Nothing else ever runs code.

    Returns:
        The model, in ``eval()``, and its `Preprocess`: ``preprocess(image)``, or ``preprocess(image, mask)``.

    Raises:
        RuntimeError: the name is unknown.
        WeightsError, a RuntimeError: the weights cannot be found or downloaded (`AlphaWeightsNotFound`), are damaged
            (`HashMismatch`) or do not fit (`IncompatibleCheckpoint`).
        TypeError: `name` or `alpha_vision_ckpt_pth` is no string or path, `device` is a path of weights, or `dtype` is
            not floating.
        ValueError: `jit` is True, or `device` names none that torch knows.

    Warns:
        ZeroAlpha: the alpha weights are all zero, so that masks will be ignored.
        TunedTower: likewise, and the model is not plain CLIP either, as the rest of its image tower stays tuned.
        UserWarning: nothing confirms that the model in a file has the heads and the activation of OpenAI's CLIP.
    """
    name = _as_name("name", name)
    _check_arguments(name, device, jit, dtype)
    chosen = as_device(device)
    alpha = None if alpha_vision_ckpt_pth is None else _as_name("alpha_vision_ckpt_pth", alpha_vision_ckpt_pth)
    if alpha == "None":  # the authors' default
        alpha = None
    found = weights.assemble(name, alpha, download_root, trust)
    model = weights.build(name, found.tensors)
    model.confirmed = found.confirmed
    if (known := found.tensors.get(vocabulary.IDS)) is not None:
        model.known_tokens = known
        model.token_embedding.register_forward_pre_hook(vocabulary.UnknownWords(known))
    weight = model.visual.conv1_alpha.weight
    if not weight[0].any() and not weight.any():  # the first filter mostly settles it, without waking all threads
        _warn_of_zeros(name, found.dropped_alpha)

    if dtype is None:
        dtype = torch.float16 if chosen.type == "cuda" else torch.float32
    _cast(model, dtype, copy=found.mapped_from_user_file and chosen.type == "cpu")
    if chosen.type != "cpu":  # where the weights are
        model.to(chosen)
    return model, Preprocess(model.visual.input_resolution)


def _warn_of_zeros(name: str, dropped_alpha: bool) -> None:
    category = TunedTower if dropped_alpha else ZeroAlpha
    if dropped_alpha:
        text = (
            f"the alpha weights in {name} are set to zero here: it ignores every mask. But it is not plain CLIP: the "
            "rest of its image tower stays tuned with them: for plain CLIP, load the base that it was tuned from."
        )
    else:
        text = (
            f"{name} has alpha weights of zero here: it is plain CLIP, and ignores every mask. "
            "Pass alpha_vision_ckpt_pth= to load some."
        )
    warnings.warn(text, category, stacklevel=3)  # the caller of `load`


def _cast(model: CLIP, dtype: torch.dtype, copy: bool) -> None:
    """Cast the weights in place. In half precision, layer norms and embeddings go to float32, as in CLIP.

    `copy` copies even those that already have the right dtype, so that none stays memory-mapped.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    halved = {id(p) for p in matrices(model)}
    for p in model.parameters():
        wanted = torch.float32 if half and id(p) not in halved else dtype
        if copy or p.dtype != wanted:
            p.data = p.data.to(wanted, copy=True)


def _as_name(what: str, name: Any) -> str:
    """Return the name or path as a string, ``~`` replaced by the user's home."""
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"{what} is {type(name).__name__}, expected a name or a path")
    return os.path.expanduser(os.fspath(name))


def _check_arguments(name: str, device: Any, jit: bool, dtype: Any) -> None:
    if jit:
        raise ValueError("jit=True is not supported: load with jit=False, then torch.compile(model)")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype is {dtype!r}, expected a floating torch.dtype, such as torch.float16")
    path = os.fspath(device) if isinstance(device, (str, os.PathLike)) else ""
    if path.endswith((".pth", ".pt", ".safetensors")) or (os.path.dirname(path) and os.path.isfile(path)):
        raise TypeError(
            f"device is {path!r}, a file: the second argument is the device, as in clip.load. "
            f"Pass alpha weights as load({name!r}, alpha_vision_ckpt_pth={path!r})."
        )
    if name in catalogue.BASES or name.startswith(weights.HUB) or os.path.exists(name) or Path(name).suffix:
        return  # what looks like a file gets the message of whoever opens it
    if name in _RESNETS:
        raise RuntimeError(f"{name} has a ResNet image tower; alpha-clip's image towers are ViTs: {available_models()}")
    raise RuntimeError(f"Model {name} not found; available models = {available_models()}, or a path")


def as_device(device: str | torch.device | None) -> torch.device:
    """Return the device of that name; None: CUDA if there is one, else MPS, else the CPU.

    Raises:
        ValueError: there is no such device, or none in this computer.
    """
    if device is None:
        return _default_device()
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}, expected 'cpu', 'cuda', 'cuda:1', 'mps' or None, to choose") from error
    if chosen.type == "meta":
        raise ValueError(f"device is {device!r}, which holds no values, expected one that computes: pass 'cpu'")
    try:
        torch.empty(0, device=chosen)
    except (AssertionError, RuntimeError, NotImplementedError, ImportError) as error:  # as each kind has it
        reason = str(error).partition("\n")[0].partition(". ")[0]  # the rest may be a thousand letters
        raise ValueError(
            f"device is {device!r}, which cannot be used here ({reason}): "
            f"pass {str(_default_device())!r}, or leave it out"
        ) from error
    return chosen


def _default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
