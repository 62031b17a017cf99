"""Turn names and files into the one state dict that `load` builds a model from.

python -m alpha_clip.weights verify FILE_OR_NAME
python -m alpha_clip.weights convert IN OUT.safetensors
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from . import catalogue, checkpoints, hashes, vocabulary
from .checkpoints import Checkpoint
from .errors import IncompatibleCheckpoint, WeightsError
from .model import CLIP, HEAD_WIDTH, empty_model, fill
from .sources import Root, locate, repository

ASSETS = Path(__file__).with_name("assets")
HUB = "hf-hub:"  # before a repository on the Hub, as in open_clip
ALPHA_KEY = "visual.conv1_alpha.weight"


_CATALOGUE = "the catalogue"  # confirms its files


@dataclass(frozen=True)
class Assembled:
    """What a model is built from."""

    tensors: dict[str, Tensor]  # in OpenAI's names, ``visual.conv1_alpha.weight`` among them, be it zeros
    confirmed: bool  # whether something says of every file that heads are 64 wide and the activation is QuickGELU
    dropped_alpha: bool  # whether the base file had alpha weights, which were left out
    mapped_from_user_file: bool  # whether some are in a mapped file, which `torch.save` would overwrite in place


def assemble(
    name: str,
    alpha: str | os.PathLike[str] | None,
    download_root: str | os.PathLike[str] | None = None,
    trust: bool = False,
) -> Assembled:
    """Read all weights of a model: a base, and the image tower that replaces its own, with alpha weights.

    Args:
        name: of `catalogue.BASES`, a path, or "hf-hub:user/repo".
        alpha: "auto", a tag of `catalogue.ALPHA`, a path, or None.
        download_root: folder to look in and to download to; None: the caches.
        trust: run the code of a TorchScript archive that is not OpenAI's.

    Raises:
        WeightsError: a file cannot be found, read or used; its subclasses tell which.

    Warns:
        UserWarning: nothing confirms what the shapes of a file leave open; or alpha weights come with another text
            tower than the base's.
    """
    root = Path(download_root).expanduser() if download_root else None
    known = name in catalogue.BASES
    if known and alpha == "auto":
        alpha = next(iter(catalogue.ALPHA[name]), None)
    # Looked for before the base, which is the larger download and nearly always available.
    tower = None if alpha in (None, "auto") else _alpha_tower(name, alpha, root, trust)
    base = _base_checkpoint(name, root, trust)
    if base.is_image_tower:
        raise IncompatibleCheckpoint(
            f"{name} holds an image tower alone: load its base by name and pass this file as alpha_vision_ckpt_pth="
        )
    tensors = dict(base.tensors)  # memory-mapped: what is replaced below is never read
    own = tensors.pop(ALPHA_KEY, None) if alpha is None else None
    if tower is not None:
        _warn_of_another_text_tower(tower, tensors)
        tensors |= _fitting(tower, tensors)
    if ALPHA_KEY not in tensors:
        tensors[ALPHA_KEY] = torch.zeros_like(tensors["visual.conv1.weight"][:, :1])
    confirmed = base.confirmed is not None and (tower is None or tower.confirmed is not None)
    dropped_alpha = own is not None and bool(own.any())
    users = [c for c in (base, tower) if c is not None and c.confirmed != _CATALOGUE]
    return Assembled(
        tensors, confirmed, dropped_alpha, mapped_from_user_file=any(c.format.startswith("torch.save") for c in users)
    )


def build(name: str, tensors: Mapping[str, Tensor]) -> CLIP:
    """Build a model in ``eval()`` that holds `tensors`, without a copy; a packed vocabulary is expanded first.

    Raises:
        IncompatibleCheckpoint: tensors are missing, unexpected or of another size, all listed; or not finite.
    """
    if vocabulary.IDS in tensors:
        tensors = vocabulary.expand(tensors)
    try:
        model = empty_model(tensors)
    except ValueError as error:
        raise IncompatibleCheckpoint(f"{name}: {error}") from error
    needed = {k: v.shape for k, v in model.state_dict().items()}
    if report := _differences(tensors, needed):
        raise IncompatibleCheckpoint(f"{name} does not hold the weights of a CLIP, no more and no less: {report}")
    # Not every weight, which would take longer than all the rest; `verify` reads them all.
    entire = ("visual.proj", "visual.conv1.weight", ALPHA_KEY, "text_projection")
    small = {k: v if v.ndim < 2 or k in entire else v[:1] for k, v in tensors.items()}
    if wrong := _not_finite(small):
        raise IncompatibleCheckpoint(f"{name} has weights that are not finite ({wrong}): train it again, or fetch it")
    return fill(model, tensors)


def _base_checkpoint(name: str, root: Root, trust: bool) -> Checkpoint:
    if name == catalogue.BUNDLED and catalogue.BASES[name].repo is None:
        return checkpoints.read(ASSETS / catalogue.BASES[name].file)
    if name in catalogue.BASES:
        path = locate(catalogue.BASES[name], root)
        return checkpoints.read(path, trusted=catalogue.openais_files(), confirmed=_CATALOGUE)
    path = repository(name.removeprefix(HUB), root) if name.startswith(HUB) else Path(name)
    return _read_users_file(path, trust)


def _alpha_tower(name: str, alpha: str | os.PathLike[str], root: Root, trust: bool) -> Checkpoint:
    tags = catalogue.ALPHA.get(name, {})
    if isinstance(alpha, str) and alpha in tags:
        entry = tags[alpha]
        path = locate(entry, root) if entry.sha256 else ASSETS / entry.file
        return checkpoints.read(path, confirmed=_CATALOGUE)
    if not os.path.exists(alpha) and not _looks_like_a_path(alpha):
        known = ", ".join(map(repr, tags)) or "none"
        raise WeightsError(f"alpha weights {str(alpha)!r} are neither a file nor a tag for {name} (tags: {known})")
    tower = _read_users_file(Path(alpha), trust)
    if ALPHA_KEY not in tower.tensors:
        raise IncompatibleCheckpoint(f"{alpha} holds no alpha weights (conv1_alpha.weight)")
    return tower


def _looks_like_a_path(name: str | os.PathLike[str]) -> bool:
    return isinstance(name, os.PathLike) or bool(os.path.dirname(name) and Path(name).suffix)


def _read_users_file(path: Path, trust: bool) -> Checkpoint:
    checkpoint = checkpoints.read(path, trust=trust, trusted=catalogue.openais_files())
    confirmed = _confirmation(checkpoint)
    if confirmed is None:
        warnings.warn(
            f"nothing confirms that {checkpoint.path} has attention heads {HEAD_WIDTH} wide and QuickGELU, as OpenAI's "
            "CLIP has: its shapes do not tell, and if it has others, its features are wrong. If you know that it has, "
            f"`python -m alpha_clip.weights convert {checkpoint.path} OUT.safetensors --confirm` writes it down.",
            stacklevel=5,  # the caller of `load`
        )
    return replace(checkpoint, confirmed=confirmed)


def _confirmation(checkpoint: Checkpoint, digest: str | None = None) -> str | None:
    """Say what confirms the heads and the activation of a user's file: itself, or its hash; None: nothing does."""
    if checkpoint.confirmed:
        return checkpoint.confirmed
    known = catalogue.known_files().get(digest or hashes.known_sha256(checkpoint.path))
    return known and f"its SHA-256, which is that of {known}"


def _fitting(tower: Checkpoint, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the image tower of a checkpoint, or raise if its sizes are not those of `base`."""
    ours = {k: v for k, v in tower.tensors.items() if k.startswith("visual.")}
    needed = {k: v.shape for k, v in base.items() if k.startswith("visual.")}
    needed[ALPHA_KEY] = base["visual.conv1.weight"][:, :1].shape
    if report := _differences(ours, needed):
        raise IncompatibleCheckpoint(
            f"{tower.path} is not an image tower for this base: {report}. Load the base it was trained on."
        )
    return ours


def _warn_of_another_text_tower(tower: Checkpoint, base: Mapping[str, Tensor]) -> None:
    """Warn if a file of alpha weights has a text tower that differs from the base's: only its image tower is used."""
    text = (k for k in tower.tensors if k in base and not k.startswith("visual.") and k != vocabulary.ROWS)
    if any(not torch.equal(tower.tensors[k], base[k].to(tower.tensors[k].dtype)) for k in text):
        warnings.warn(
            f"{tower.path} holds a text tower too, other than the base's, which is used here: if the two towers were "
            f"trained together, pass the file as the name, load({os.fspath(tower.path)!r}).",
            stacklevel=4,  # the caller of `load`
        )


def _differences(tensors: Mapping[str, Tensor], needed: Mapping[str, torch.Size]) -> str:
    """Describe missing, unexpected and differently sized tensors, sorted, the first eight by name; empty: none."""
    wrong = sorted(
        f"{k}: {_size(tensors[k].shape if k in tensors else None)} there, {_size(needed.get(k))} needed"
        for k in needed.keys() | tensors.keys()
        if k not in needed or k not in tensors or needed[k] != tensors[k].shape
    )
    return "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")


def _size(shape: torch.Size | None) -> str:
    return "nothing" if shape is None else str(tuple(shape))


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    wrong = [k for k in sorted(tensors) if not _is_finite(tensors[k])]
    return ", ".join(wrong[:8]) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")


def _is_finite(tensor: Tensor) -> bool:
    # In parts so small that torch gives them to one thread: on a busy machine, to wake the others and wait for them
    # took several times as long as all else that `load` does.
    parts = (part for part in tensor.flatten().split(1 << 15) if part.numel())
    return all(math.isfinite(extreme) for part in parts for extreme in torch.aminmax(part))  # NaN is both extremes


# --- python -m alpha_clip.weights ---


def verify(path: Path) -> str:
    """Describe a file, one fact a line, after reading every weight and computing its hash anew.

    Raises:
        WeightsError: it cannot be used; why.
    """
    checkpoint = checkpoints.read(path, trusted=catalogue.openais_files())
    digest = hashes.sha256(checkpoint.path)
    tensors = checkpoint.tensors
    _check_finite(checkpoint)
    if not checkpoint.is_image_tower:
        build(str(path), {ALPHA_KEY: torch.zeros_like(tensors["visual.conv1.weight"][:, :1])} | tensors)
    width, _, patch, _ = tensors["visual.conv1.weight"].shape
    grid = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
    alpha = tensors.get(ALPHA_KEY)
    facts = {
        "format": checkpoint.format,
        "sha256": f"{digest} ({catalogue.known_files().get(digest, 'not in the catalogue')})",
        "holds": "an image tower alone" if checkpoint.is_image_tower else "both towers",
        "image tower": f"width {width}, {patch}-pixel patches, {grid * patch} x {grid * patch} pixels",
        "alpha weights": "none" if alpha is None else "all zero: masks are ignored" if not alpha.any() else "yes",
        "precision": ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()})),
        "weights": f"{sum(t.numel() for t in tensors.values()):,}, all finite",
        "heads and QuickGELU": f"confirmed by {found}"
        if (found := _confirmation(checkpoint, digest))
        else "not confirmed",
    }
    return "\n".join(f"{key:20} {value}" for key, value in facts.items())


def _check_finite(checkpoint: Checkpoint) -> None:
    if wrong := _not_finite(checkpoint.tensors):
        raise IncompatibleCheckpoint(f"{checkpoint.path} has weights that are not finite: {wrong}")


def convert(source: Path, target: Path, *, trust: bool = False, confirm: bool = False, force: bool = False) -> None:
    """Write the weights in `source` to `target`, in OpenAI's names, as safetensors.

    Args:
        source: a checkpoint of any kind that `load` reads.
        target: ends in ".safetensors".
        trust: run the code of a TorchScript archive that is not OpenAI's.
        confirm: write down, on the caller's word, that heads are 64 wide and the activation is QuickGELU.
        force: write over a `target` that already exists.

    Raises:
        ValueError: `target` has another ending.
        WeightsError: `source` cannot be read.
        OSError: `target` already exists, without `force`, or cannot be written.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"target is {target}, expected a name that ends in .safetensors")
    if target.exists() and not force:
        raise FileExistsError(f"{target} already exists: choose another name, or write over it with --force")
    checkpoint = checkpoints.read(source, trust=trust, trusted=catalogue.openais_files())
    _check_finite(checkpoint)
    sure = confirm or _confirmation(checkpoint) is not None
    checkpoints.write(checkpoint.tensors, target, confirmed=sure)


def _files(name: str) -> list[Path]:
    """The base and best alpha file of a catalogue name, located as `load` does; otherwise the path itself."""
    if name not in catalogue.BASES:
        return [Path(name)]
    entries = [catalogue.BASES[name], *list(catalogue.ALPHA[name].values())[:1]]
    return [locate(entry, None) if entry.repo or entry.sha256 else ASSETS / entry.file for entry in entries]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m alpha_clip.weights", description="Look into files of weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("verify", help="say what a file is; fail if it cannot be used")
    command.add_argument("file", help=f"or a name, whose base is fetched if need be: {', '.join(catalogue.BASES)}")
    command = commands.add_parser("convert", help="write a checkpoint of any kind as safetensors, in OpenAI's names")
    command.add_argument("source", type=Path, metavar="IN")
    command.add_argument("target", type=Path, metavar="OUT.safetensors")
    command.add_argument("--trust", action="store_true", help="run the code in a TorchScript archive")
    command.add_argument(
        "--confirm", action="store_true", help="write down that heads are 64 wide and the activation is QuickGELU"
    )
    command.add_argument("--force", action="store_true", help="write over a file that already exists")
    args = parser.parse_args(arguments)
    try:
        if args.command == "convert":
            convert(args.source, args.target, trust=args.trust, confirm=args.confirm, force=args.force)
            found = [args.target]
        else:
            found = _files(args.file)
        print("\n\n".join(verify(path) for path in found))  # noqa: T201 a command's output
    except (WeightsError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
