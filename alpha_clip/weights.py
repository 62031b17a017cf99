"""Names, files and the Hub, to one state dict in OpenAI CLIP's names.

Nothing here runs code from a checkpoint: safetensors, or ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

ASSETS = Path(__file__).with_name("assets")
OPENAI_CACHE = "~/.cache/clip"
OFFICIAL = "https://github.com/SunzeY/AlphaCLIP"
LICENCE = "The Alpha-CLIP authors' weights are for research use only (CC BY-NC 4.0)."


class WeightsError(RuntimeError):
    """Weights could not be found, or are not what they should be."""


class AlphaWeightsNotFound(WeightsError):
    """No source has this file of alpha weights."""


class HashMismatch(WeightsError):
    """A file's bytes are not those its name promises."""


class IncompatibleCheckpoint(WeightsError):
    """A file holds something else than the weights that are needed."""


@dataclass(frozen=True)
class Weights:
    """One file, and where it is known to lie."""

    file: str
    sha256: str | None = None  # None: not known, so not checked
    repo: str | None = None  # on the Hub; None: no copy is known there
    revision: str | None = None
    repo_type: str = "model"
    other_names: tuple[str, ...] = ()  # of the same file, met in the wild


def _base(repo: str, revision: str, sha256: str | None, file: str = "open_clip_model.safetensors") -> Weights:
    return Weights(file, sha256, repo, revision)


BUNDLED = "tiny"

# OpenAI's weights in OpenAI's names. QuickGELU and 64-wide heads, as `model` builds them.
BASES: dict[str, Weights] = {
    BUNDLED: Weights("tiny.safetensors"),
    "ViT-B/32": _base(
        "timm/vit_base_patch32_clip_224.openai",
        "a6f597a30f7b82c51704746581f9a4e41421e878",
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
    ),
    "ViT-B/16": _base(
        "timm/vit_base_patch16_clip_224.openai",
        "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
        "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
    ),
    "ViT-L/14": _base(
        "timm/vit_large_patch14_clip_224.openai",
        "18d0535469bb561bf468d76c1d73aa35156c922b",
        "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
    ),
    "ViT-L/14@336px": _base(
        "timm/vit_large_patch14_clip_336.openai",
        "81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
        None,
        "open_clip_pytorch_model.bin",
    ),
}

# The authors' image towers, each base's best first by its figure on ImageNet-S. "+mim" has seen ImageNet's labels.
ALPHA: dict[str, dict[str, Weights]] = {
    BUNDLED: {"scenes": Weights("tiny_alpha.safetensors")},
    "ViT-B/32": {},
    "ViT-B/16": {
        "grit1m+mim": Weights(
            "clip_b16_grit+mim_fultune_4xe.pth",
            "a00f7bfd80944dacbb77e238eb2c0f055ec3274201023b2e781d9f0d180d9630",
            other_names=("clip_b16_grit1m+mim_fultune_4xe.pth",),
        ),
        "grit20m": Weights(
            "clip_b16_grit20m_fultune_2xe.pth", "6ff9e3c5735aa34bcbd386ba4d1b99e5efc5deffab077d3d2f2911d1f1c43a57"
        ),
        "grit1m": Weights(
            "clip_b16_grit1m_fultune_8xe.pth", "9f6ffac9044f641b09975f9c782a34a02a2b52ffd8de4a3d3394404b38794c16"
        ),
    },
    "ViT-L/14": {
        "grit1m+mim": Weights(
            "clip_l14_grit+mim_fultune_6xe.pth",
            "a5f3f2e24459e9764d9f4b4c053fb354dc9d508bd8f647b952402d6860bc9c3d",
            "bedead/CLIPAway",
            repo_type="space",
            other_names=("clip_l14_grit1m+mim_fultune_6xe.pth",),
        ),
        "grit20m": Weights(
            "clip_l14_grit20m_fultune_2xe.pth", "42c621bb5bac89a511ab625a878f026c11de4de8cf7abf52db5dfd11862bdb8e"
        ),
        "grit1m": Weights(
            "clip_l14_grit1m_fultune_8xe.pth", "05254743d5fc12e24f947fb92ba3737e3bc86a9c190dc6608fc9926a0eb64b91"
        ),
    },
    "ViT-L/14@336px": {
        "grit20m": Weights(
            "clip_l14_336_grit_20m_4xe.pth",
            "b0e9c4d5d33bfa2724a0864f8e4b2b92f99aba3a4daf43084114c8caecfbadd9",
            "YaTharThShaRma999/PromptTest",
            "8fbe1684f2bcd0e2bf227f41a69e28f68f851fab",
            other_names=(
                "clip_l14_336_grit20m_fultune_4xe.pth",
                "clip_l14@336_grit20m_fultune_4xe.pth",
                "clip_l14@336_grit_20m_4xe.pth",
            ),
        ),
        "grit1m": Weights(
            "clip_l14_336_grit1m_fultune_8xe.pth",
            "fa701cf18a3e19a1e5e81668885b15bf75337e59b0788405999e889b7aa775d0",
            "omeregev/click2mask-alphaclip-weights",
            other_names=("clip_l14@336_grit1m_fultune_8xe.pth",),
        ),
    },
}


def state_dict(name: str, alpha: str | os.PathLike[str] | None, download_root: str | None) -> dict[str, Tensor]:
    """All weights of a model, in OpenAI's names with ``visual.conv1_alpha.weight``; zeros there if it has none.

    Args:
        name: of `BASES`, or a path.
        alpha: "auto", a tag of `ALPHA`, a path, or None.
        download_root: folder to look in and to download to; None: the Hub's cache.

    Raises:
        WeightsError: of the kind that fits.
    """
    known = name in BASES
    if known and alpha == "auto":
        alpha = next(iter(ALPHA[name]), None)
    # Looked for before the base, which is the larger download and can nearly always be had.
    tower = None if alpha in (None, "auto") else _alpha_path(name, alpha, download_root)
    tensors = read(_locate(BASES[name], download_root) if known else Path(name))
    _check_both_towers(tensors, name)
    if alpha is None:
        tensors.pop("visual.conv1_alpha.weight", None)
    if tower is not None:
        tensors |= _image_tower(tower, tensors)
    tensors.setdefault("visual.conv1_alpha.weight", torch.zeros_like(tensors["visual.conv1.weight"][:, :1]))
    return tensors


def expand_vocabulary(tensors: dict[str, Tensor], vocab_size: int = 49408) -> dict[str, Tensor]:
    """The same weights with a token embedding for all of CLIP's ids.

    A packed file has rows for the tokens of its training alone: row 0 stands for every other token, row 1 + i for
    ``token_ids[i]``.
    """
    tensors = dict(tensors)
    packed, ids = tensors["token_embedding.weight"], tensors.pop("token_ids")
    rows = torch.zeros(vocab_size, dtype=torch.int64)
    rows[ids.long()] = torch.arange(1, len(ids) + 1)
    tensors["token_embedding.weight"] = packed[rows]
    return tensors


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, out of the wrappers that training scripts put around them.

    Raises:
        WeightsError: there is no such file.
        IncompatibleCheckpoint: it is not a file of tensors, or could only be read by running code from it.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is not a file: give the path of a checkpoint, or a name of available_models()")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise IncompatibleCheckpoint(f"{path} holds no tensors: expected a state dict")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise IncompatibleCheckpoint(f"{path} is not a whole safetensors file ({error}): fetch it again") from error


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*TorchScript archive dispatching")  # it does not: it raises
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no pickle, or is cut short, makes it raise almost any kind
        if "TorchScript" in str(error):
            raise IncompatibleCheckpoint(
                f"{path} is a TorchScript archive, which can only be read by running code from it. Convert it where "
                "you trust it: torch.save(torch.jit.load(path).state_dict(), new_path)."
            ) from error
        raise IncompatibleCheckpoint(
            f"{path} cannot be read without running code from it, or is not whole ({type(error).__name__}). Expected "
            "tensors alone, as torch.save(model.state_dict(), path) writes them: save it so, or fetch it again."
        ) from error
    if not isinstance(content, dict):
        raise IncompatibleCheckpoint(f"{path} holds a {type(content).__name__}, expected a state dict")
    return content


def _check_both_towers(tensors: dict[str, Tensor], name: str) -> None:
    if "visual.conv1.weight" in tensors and "token_embedding.weight" in tensors:
        return
    if "conv1.weight" in tensors or "visual.conv1.weight" in tensors:
        raise IncompatibleCheckpoint(
            f"{name} holds an image tower alone: load its base by name and pass this file as alpha_vision_ckpt_pth="
        )
    raise IncompatibleCheckpoint(f"{name} does not hold a CLIP with a ViT image tower in OpenAI's names")


def _image_tower(path: Path, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower in `path` under ``visual.``, checked against the sizes of `base`."""
    tensors = read(path)
    if "visual.conv1.weight" in tensors:
        tensors = {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")}
    # The authors wrote their attention as a module of its own.
    tower = {f"visual.{k.replace('attn.in_proj.', 'attn.in_proj_')}": v for k, v in tensors.items()}
    if "visual.conv1_alpha.weight" not in tower:
        raise IncompatibleCheckpoint(f"{path} holds no alpha weights (conv1_alpha.weight)")
    wanted = {k: v.shape for k, v in base.items() if k.startswith("visual.")}
    wanted["visual.conv1_alpha.weight"] = base["visual.conv1.weight"][:, :1].shape
    wrong = sorted(
        f"{k}: {_shape(tower.get(k))} there, {_shape(wanted.get(k))} needed"
        for k in wanted.keys() | tower.keys()
        if k not in wanted or k not in tower or wanted[k] != tower[k].shape
    )
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise IncompatibleCheckpoint(
            f"{path} is not an image tower for this base: {'; '.join(wrong[:8])}{more}. "
            "Load the base it was trained on."
        )
    return tower


def _shape(tensor: Tensor | torch.Size | None) -> str:
    if tensor is None:
        return "nothing"
    return str(tuple(tensor.shape if isinstance(tensor, Tensor) else tensor))


def _alpha_path(name: str, alpha: str | os.PathLike[str], download_root: str | None) -> Path:
    tags = ALPHA.get(name, {})
    if isinstance(alpha, str) and alpha in tags:
        return _locate(tags[alpha], download_root, alpha=True)
    if Path(alpha).is_file():
        return Path(alpha)
    known = ", ".join(map(repr, tags)) or "none"
    raise WeightsError(f"alpha weights {str(alpha)!r} are neither a file nor a tag for {name} (tags: {known})")


def _locate(weights: Weights, download_root: str | None, alpha: bool = False) -> Path:
    """The file on this disk, checked; downloaded if it must be."""
    if weights.repo is None and weights.sha256 is None:  # it came with the package
        return ASSETS / weights.file
    if (path := _find(weights, download_root)) is not None:
        return path
    if weights.repo is None:
        raise _not_found(weights, "no copy on the Hub is known")
    try:
        path = _from_hub(weights, download_root)
    except Exception as error:  # the Hub's client lets those of its HTTP library through
        if alpha:
            raise _not_found(weights, str(error)) from error
        raise WeightsError(
            f"{weights.file} could not be fetched from {weights.repo} on the Hugging Face Hub. Try again, or pass the "
            f"path of a copy instead of the name. Reason: {error}"
        ) from error
    if weights.sha256 and (found := sha256(path)) != weights.sha256:
        path.resolve().unlink()  # the Hub's cache links to it; without it the next load fetches it again
        path.unlink(missing_ok=True)
        raise HashMismatch(f"{path} had SHA-256 {found}, expected {weights.sha256}: deleted; load again to fetch it")
    return path


def _find(weights: Weights, download_root: str | None) -> Path | None:
    """A file of that name and hash in `download_root` or where OpenAI's clip keeps its own."""
    if weights.sha256 is None:
        return None
    folders = [Path(folder).expanduser() for folder in (download_root, OPENAI_CACHE) if folder]
    for folder in folders:
        for name in (weights.file, *weights.other_names):
            path = folder / name
            if not path.is_file():
                continue
            if sha256(path) == weights.sha256:
                return path
            _log.warning("%s does not have the SHA-256 %s of %s: left alone", path, weights.sha256, weights.file)
    return None


def _from_hub(weights: Weights, download_root: str | None) -> Path:
    """The file in the Hub's cache, fetched if it is not there."""
    from huggingface_hub import snapshot_download

    names = (weights.file, *weights.other_names)

    def snapshot(local: bool) -> Path | None:
        folder = snapshot_download(
            str(weights.repo),
            repo_type=weights.repo_type,
            revision=weights.revision,
            cache_dir=download_root,
            allow_patterns=[f"*{name}" for name in names],  # in any folder: where it lies is not known of all copies
            local_files_only=local,
        )
        return next((path for path in sorted(Path(folder).rglob("*")) if path.name in names and path.is_file()), None)

    with suppress(FileNotFoundError):
        if (path := snapshot(local=True)) is not None:
            return path
    if weights.file.endswith(".pth"):
        _log.warning(LICENCE)
    if (path := snapshot(local=False)) is None:
        raise FileNotFoundError(f"{weights.repo} has no file {weights.file}")
    return path


def _not_found(weights: Weights, reason: str) -> AlphaWeightsNotFound:
    return AlphaWeightsNotFound(
        f"the alpha weights {weights.file} (SHA-256 {weights.sha256}) could not be had. Get the file from {OFFICIAL} "
        "and put it into download_root, or pass its path as alpha_vision_ckpt_pth=; pass None for plain CLIP, which "
        f"ignores masks. Reason: {reason}"
    )


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
