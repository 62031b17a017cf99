"""Read a file of CLIP weights in any usual format into tensors with OpenAI CLIP's names.

The format is recognised by content, never by the file's name. Tensors are memory-mapped where the format allows, so
that those which are not used are not read. Nothing here runs code from a file, except `torch.jit.load` where the caller
trusts it.
"""

from __future__ import annotations

import json
import os
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .atomic import replacing
from .errors import IncompatibleCheckpoint, WeightsError
from .hashes import sha256
from .model import HEAD_WIDTH

# What shapes leave open, and `model` takes for granted. Every file that we write says it.
METADATA = {"format": "pt", "activation": "quick_gelu", "head_width": str(HEAD_WIDTH)}

# In a folder, or a repository on the Hub, the first of these that is there is read.
# open_clip's come first: some repositories hold them beside others that are of no use here.
WEIGHT_FILES = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin")

_WRAPPERS = ("state_dict", "model")  # under which training scripts keep the weights
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")  # of DataParallel and torch.compile
_IDLE = ("input_resolution", "context_length", "vocab_size", "attn_mask", "position_ids")  # kept beside the weights


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a file.

    ``tensors`` has OpenAI CLIP's names: both towers, or the image tower alone under ``visual.``. ``confirmed`` says
    what confirms that heads are 64 wide and the activation is QuickGELU; None: nothing here does.
    """

    path: Path
    format: str
    tensors: dict[str, Tensor]
    confirmed: str | None

    @property
    def is_image_tower(self) -> bool:
        return "token_embedding.weight" not in self.tensors


def read(path: Path, *, trust: bool = False, trusted: Collection[str] = (), confirmed: str | None = None) -> Checkpoint:
    """Read the weights in `path`.

    Args:
        path: a file, or a folder that holds one of `WEIGHT_FILES`.
        trust: run a TorchScript archive's code, whoever made it.
        trusted: SHA-256 of TorchScript archives whose code may run.
        confirmed: what confirms the file already, so that no configuration beside it is asked.

    Raises:
        WeightsError: there is no such file, or it may not be read.
        IncompatibleCheckpoint: it is no checkpoint of a CLIP with a ViT image tower, or not whole, or was trained
            with other heads or another activation than `model` has, or could only be read by running its code.
    """
    path = _weights_in(path) if os.path.isdir(path) else path
    format = _recognise(path)
    metadata: Mapping[str, Any] = {}
    content: Mapping[str, Any]
    if format == "safetensors":
        content, metadata = _read_safetensors(path)
    elif format == "TorchScript":
        content = _read_torchscript(path, trust, trusted)
    else:
        content = _read_pickle(path, mapped=format == "torch.save")
        if isinstance(content.get("alpha_clip"), dict):
            metadata = content["alpha_clip"]
    tensors = _state_dict(content, path)
    from_transformers = any(k.endswith("embeddings.patch_embedding.weight") for k in tensors)
    if from_transformers:
        format += ", in transformers' names"
    tensors = _canonical(tensors, path)
    return Checkpoint(path, format, tensors, confirmed or _confirm(path, tensors, metadata, from_transformers))


def write(
    tensors: Mapping[str, Tensor], path: Path, confirmed: bool = True, about: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file under a temporary name, and rename it.

    Args:
        tensors: in OpenAI's names.
        path: of the file.
        confirmed: whether its metadata says what shapes leave open.
        about: more metadata.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    metadata = {**(METADATA if confirmed else {"format": METADATA["format"]}), **(about or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path, sync=True) as part:
            part.touch()  # with the mode that the user's files have; the library's own are for the owner alone
            mode = part.stat().st_mode
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, metadata)
            part.chmod(mode)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error


# --- which format ---


def _weights_in(folder: Path) -> Path:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise WeightsError(f"the folder {folder} cannot be read ({error.strerror}): see its permissions") from error
    for name in WEIGHT_FILES:
        if name in names:
            return folder / name
    if any(name.endswith(".index.json") for name in names):
        raise IncompatibleCheckpoint(
            f"the weights in {folder} are split over several files: load them with the library that wrote them and "
            "save them as one (save_pretrained(folder, max_shard_size='100GB'))"
        )
    if (best := "best.safetensors") in names:
        raise WeightsError(
            f"{folder} is the folder of a training run, expected a file: pass alpha_vision_ckpt_pth={folder / best}, "
            "and its base as the name; or, if the text tower was trained too, the file as the name."
        )
    raise WeightsError(
        f"{folder} is a folder without weights: it holds {', '.join(names[:8]) or 'nothing'}, expected one of "
        f"{', '.join(WEIGHT_FILES)}. Give the path of a file."
    )


def _recognise(path: Path) -> str:
    """Return the format: one of "safetensors", "TorchScript", "torch.save" and "torch.save before 1.6"."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        if isinstance(error, PermissionError) or os.path.exists(path):
            raise WeightsError(f"{path} cannot be read ({error.strerror}): see its permissions") from error
        raise WeightsError(
            f"there is no file {path}: give the path of a checkpoint, or a name of available_models()"
        ) from error
    if not head:
        raise IncompatibleCheckpoint(f"{path} is empty: fetch it again")
    if head.startswith(b"PK"):
        try:
            names = zipfile.ZipFile(path).namelist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise IncompatibleCheckpoint(f"{path} is not whole ({error}): fetch it again") from error
        # What torch.save writes has neither.
        scripted = any(n.endswith("/constants.pkl") for n in names) and any("/code/" in n for n in names)
        return "TorchScript" if scripted else "torch.save"
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"\x80"):
        return "torch.save before 1.6"
    if head.lstrip().startswith(b"<"):
        raise IncompatibleCheckpoint(f"{path} is a web page, not a checkpoint: its download went wrong, fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise IncompatibleCheckpoint(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` there")
    raise IncompatibleCheckpoint(
        f"{path} is not a checkpoint: it begins with {head[:12]!r}, expected safetensors or what torch.save writes"
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118 not a dict
    except (SafetensorError, OSError) as error:
        raise IncompatibleCheckpoint(f"{path} is not a whole safetensors file ({error}): fetch it again") from error


def _read_pickle(path: Path, mapped: bool) -> dict[str, Any]:
    try:
        if mapped and path.suffix != ".safetensors":  # by that ending, torch.load takes any file for one
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            with path.open("rb") as file:
                content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is cut short, or no pickle at all, makes it raise almost any kind
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise IncompatibleCheckpoint(
            f"{path} cannot be read without running code from it, or is not whole "
            f"({refused[1] if refused else type(error).__name__}). Expected "
            "tensors alone, as torch.save(model.state_dict(), path) writes them: save it so, or fetch it again."
        ) from error
    if not isinstance(content, dict):
        raise IncompatibleCheckpoint(f"{path} holds a {type(content).__name__}, expected a state dict")
    return content


def _read_torchscript(path: Path, trust: bool, trusted: Collection[str]) -> dict[str, Tensor]:
    if not trust and (found := sha256(path)) not in trusted:  # read anew: a record beside it proves nothing
        raise IncompatibleCheckpoint(
            f"{path} is a TorchScript archive, which can only be read by running code from it, and its SHA-256 {found} "
            "is none of OpenAI's. If you trust who made it, convert it once: "
            f"python -m alpha_clip.weights convert {path} {path.with_suffix('.safetensors')} --trust; "
            "or pass trust=True to load."
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated")
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
    except Exception as error:  # as above
        raise IncompatibleCheckpoint(f"{path} is not a whole TorchScript archive ({error}): fetch it again") from error


# --- which names ---


def _state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors in `content`, without the wrappers that training scripts put around them."""
    while (inner := next((content[w] for w in _WRAPPERS if isinstance(content.get(w), dict)), None)) is not None:
        content = inner
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise IncompatibleCheckpoint(f"{path} holds no tensors: expected a state dict")
    return {_PREFIXES.sub("", k): v for k, v in tensors.items()}


def _canonical(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Rename `tensors` to OpenAI CLIP's names; an image tower alone goes under ``visual.``."""
    given = ", ".join(sorted(tensors)[:3])
    tensors = {k: v for k, v in tensors.items() if k.rpartition(".")[2] not in _IDLE}
    if any(k.endswith("embeddings.patch_embedding.weight") for k in tensors):
        tensors = _from_transformers(tensors)
    if "text.token_embedding.weight" in tensors:  # open_clip's CustomTextCLIP
        tensors = {k.removeprefix("text."): v for k, v in tensors.items()}
    if "conv1.weight" in tensors and "class_embedding" in tensors:
        tensors = {f"visual.{k}": v for k, v in tensors.items()}
    # The Alpha-CLIP authors wrote their attention as a module of its own.
    tensors = {k.replace("attn.in_proj.", "attn.in_proj_"): v for k, v in tensors.items()}
    other_text = any(k.startswith("text.") for k in tensors)
    if "visual.class_embedding" in tensors and "visual.conv1.weight" in tensors and not other_text:
        for name, ndim in _NDIM.items():
            if name in tensors and (tensors[name].ndim != ndim or not tensors[name].is_floating_point()):
                found = f"{tensors[name].dtype} of shape {tuple(tensors[name].shape)}"
                raise IncompatibleCheckpoint(f"{path}: {name} is {found}, expected floats of {ndim} dimensions")
        return tensors
    if any(k.startswith(("visual.layer1.", "layer1.")) for k in tensors):
        found = "a ResNet image tower, and alpha-clip's image towers are ViTs"
    elif any(k.startswith("visual.trunk.") for k in tensors):
        found = "an image tower of timm's: load it with open_clip"
    elif other_text:
        found = "a text tower of another kind: load it with open_clip"
    else:
        found = f"other names, such as {given}"
    raise IncompatibleCheckpoint(
        f"{path} does not hold a CLIP with a ViT image tower in OpenAI's names: it has {found}"
    )


_NDIM = {  # of the tensors that sizes are read from
    "visual.class_embedding": 1,
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "visual.proj": 2,
    "positional_embedding": 2,
    "text_projection": 2,
    "token_embedding.weight": 2,
}

TRANSFORMERS_NAMES = {  # transformers' name of a tower's part: ours
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "pre_layrnorm": "ln_pre",  # sic
    "post_layernorm": "ln_post",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def _from_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a CLIPModel's weights, or those of its vision model alone, with or without a projection."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "visual_projection.weight":
            renamed["visual.proj"] = tensor.T
        elif name == "text_projection.weight":
            renamed["text_projection"] = tensor.T
        else:
            is_text = name.startswith("text_model.")
            # CLIPVisionModel has no prefix since version 5.
            name = name.removeprefix("text_model.").removeprefix("vision_model.")
            for theirs, ours in TRANSFORMERS_NAMES.items():
                name = name.replace(theirs, ours)
            renamed[name if is_text or name == "logit_scale" else f"visual.{name}"] = tensor
    for name in [k for k in renamed if ".self_attn.q_proj." in k]:
        parts = [renamed.pop(name.replace(".q_proj.", f".{part}_proj."), None) for part in "qkv"]
        if (fused := [part for part in parts if part is not None]) and len(fused) == 3:
            renamed[name.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(fused)
    return renamed


# --- what shapes leave open ---


def _confirm(
    path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, Any], from_transformers: bool
) -> str | None:
    """Say what confirms 64-wide heads and QuickGELU: the file's metadata, or a configuration beside it; None: nothing.

    Raises:
        IncompatibleCheckpoint: what is said contradicts them.
    """
    widths = {"vision": tensors["visual.class_embedding"].shape[0]}
    if "text_projection" in tensors:
        widths["text"] = tensors["text_projection"].shape[0]
    for tower, width in widths.items():
        if width % HEAD_WIDTH:
            raise IncompatibleCheckpoint(
                f"{path}: its {tower} tower is {width} wide, which is no multiple of {HEAD_WIDTH}, the width of the "
                f"heads of OpenAI's CLIP. {_REMEDY}"
            )
    heads = {tower: width // HEAD_WIDTH for tower, width in widths.items()}
    if ours := [k for k in ("activation", "head_width") if k in metadata]:
        source, said = "its metadata", [(k, metadata[k], METADATA[k]) for k in ours]
    elif from_transformers and (config := _json(path.with_name("config.json"))):
        source, said = "config.json beside it", _said_by_transformers(config, heads)
    elif not from_transformers and (config := _json(path.with_name("open_clip_config.json"))):
        source, said = "open_clip_config.json beside it", _said_by_open_clip(config.get("model_cfg", config), heads)
    else:
        return None
    if wrong := [f"{what} {found}, needed {needed}" for what, found, needed in said if found != needed]:
        raise IncompatibleCheckpoint(
            f"{path} is another kind of CLIP: {source} says {'; '.join(wrong)}. Its weights would load here, and give "
            f"wrong features. {_REMEDY}"
        )
    return source if len(said) > 1 else None


def _said_by_transformers(config: dict[str, Any], heads: dict[str, int]) -> list[tuple[str, Any, Any]]:
    """List (setting, its value, the value needed); defaults are CLIPConfig's, which older versions did not write."""
    said: list[tuple[str, Any, Any]] = []
    for tower, default in (("vision", 12), ("text", 8)):
        part = config.get(f"{tower}_config", config if tower == "vision" else None)
        if tower in heads and isinstance(part, dict):
            said.append((f"{tower} hidden_act", part.get("hidden_act", "quick_gelu"), "quick_gelu"))
            said.append((f"{tower} num_attention_heads", part.get("num_attention_heads", default), heads[tower]))
            said.append((f"{tower} layer_norm_eps", part.get("layer_norm_eps", 1e-5), 1e-5))
    return said


def _said_by_open_clip(config: dict[str, Any], heads: dict[str, int]) -> list[tuple[str, Any, Any]]:
    """List (setting, its value, the value needed); defaults are those of open_clip's CLIPVisionCfg and CLIPTextCfg."""
    vision, text = config.get("vision_cfg") or {}, config.get("text_cfg") or {}
    said = [
        ("quick_gelu", config.get("quick_gelu", False), True),
        ("vision head_width", vision.get("head_width", 64), HEAD_WIDTH),
    ]
    if "text" in heads:
        said.append(("text heads", text.get("heads", 8), heads["text"]))
    return said


_REMEDY = "Use it with the library that made it (open_clip, transformers), or load one of available_models()."


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise IncompatibleCheckpoint(f"{path} cannot be read ({error}): repair it, or take it away") from error
    return content if isinstance(content, dict) else {}
