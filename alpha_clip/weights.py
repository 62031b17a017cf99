"""Names to weights: the catalogue, and the one state dict that `load` builds a model from.

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

from . import checkpoints, hashes, vocabulary
from .checkpoints import Checkpoint
from .errors import IncompatibleCheckpoint, WeightsError
from .model import CLIP, HEAD_WIDTH, empty_model, fill
from .sources import Root, Weights, locate, repository

ASSETS = Path(__file__).with_name("assets")
BUNDLED = "tiny"
HUB = "hf-hub:"  # before a repository on the Hub, as in open_clip
ALPHA_KEY = "visual.conv1_alpha.weight"


def _base(name: str, revision: str, sha256: str | None, original: tuple[str, str], *other_names: str) -> Weights:
    return Weights("open_clip_model.safetensors", sha256, name, revision, other_names=other_names, original=original)


# OpenAI's weights in OpenAI's names. Their own archives count too, where clip has left them on this disk; their hashes
# stand in the addresses that OpenAI's clip downloads them from.
BASES: dict[str, Weights] = {
    BUNDLED: Weights("tiny.safetensors"),
    "ViT-B/32": _base(
        "timm/vit_base_patch32_clip_224.openai",
        "a6f597a30f7b82c51704746581f9a4e41421e878",
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
        ("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    ),
    "ViT-B/16": _base(
        "timm/vit_base_patch16_clip_224.openai",
        "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
        "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
        ("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    ),
    "ViT-L/14": _base(
        "timm/vit_large_patch14_clip_224.openai",
        "18d0535469bb561bf468d76c1d73aa35156c922b",
        "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
        ("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    ),
    "ViT-L/14@336px": _base(
        "timm/vit_large_patch14_clip_336.openai",
        "81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
        None,  # not known
        ("ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
        "open_clip_pytorch_model.bin",
    ),
}

_MIM = "has seen ImageNet's labels, so it is not zero-shot there"


def _figure(imagenet_s: float, note: str = "") -> str:
    """Top-1 accuracy with ground-truth masks, of the paper's table 1 and the authors' model zoo."""
    return f"{imagenet_s:.2f}% top-1 on ImageNet-S" + (f"; {note}" if note else "")


# The authors' image towers, each base's best first by its figure on ImageNet-S.
ALPHA: dict[str, dict[str, Weights]] = {
    BUNDLED: {"scenes": Weights("tiny_alpha.safetensors", note="for drawn scenes alone; see the model card")},
    "ViT-B/32": {},
    "ViT-B/16": {
        "grit1m+mim": Weights(
            "clip_b16_grit+mim_fultune_4xe.pth",
            "a00f7bfd80944dacbb77e238eb2c0f055ec3274201023b2e781d9f0d180d9630",
            other_names=("clip_b16_grit1m+mim_fultune_4xe.pth",),
            drive="11iDlSAYI_BAi1A_Qz6LTWYHNgPe-UY7I",
            note=_figure(69.40, _MIM),
        ),
        "grit20m": Weights(
            "clip_b16_grit20m_fultune_2xe.pth",
            "6ff9e3c5735aa34bcbd386ba4d1b99e5efc5deffab077d3d2f2911d1f1c43a57",
            drive="1cj3cYwrzBivx0h0NzSjlCg9HAd5aTkDW",
            note=_figure(68.89),
        ),
        "grit1m": Weights(
            "clip_b16_grit1m_fultune_8xe.pth",
            "9f6ffac9044f641b09975f9c782a34a02a2b52ffd8de4a3d3394404b38794c16",
            drive="16fHEXZ-7bgzcSBHzEz1wXRIZTjQIXm_2",
            note=_figure(68.31),
        ),
    },
    "ViT-L/14": {
        "grit1m+mim": Weights(
            "clip_l14_grit+mim_fultune_6xe.pth",
            "a5f3f2e24459e9764d9f4b4c053fb354dc9d508bd8f647b952402d6860bc9c3d",
            repo="bedead/CLIPAway",
            repo_type="space",
            other_names=("clip_l14_grit1m+mim_fultune_6xe.pth",),
            drive="1JfzOTvjf0tqBtKWwpBJtjYxdHi-06dbk",
            note=_figure(77.80, _MIM),
        ),
        "grit20m": Weights(
            "clip_l14_grit20m_fultune_2xe.pth",
            "42c621bb5bac89a511ab625a878f026c11de4de8cf7abf52db5dfd11862bdb8e",
            drive="1WykuBYWePriCVeW5lOwBsgxgeBMzb1nd",
            note=_figure(77.41),
        ),
        "grit1m": Weights(
            "clip_l14_grit1m_fultune_8xe.pth",
            "05254743d5fc12e24f947fb92ba3737e3bc86a9c190dc6608fc9926a0eb64b91",
            drive="1PIhplBnsmSWiJN--TXCCSsiaV6bY9koq",
            note=_figure(77.22),
        ),
    },
    "ViT-L/14@336px": {
        "grit20m": Weights(
            "clip_l14_336_grit_20m_4xe.pth",
            "b0e9c4d5d33bfa2724a0864f8e4b2b92f99aba3a4daf43084114c8caecfbadd9",
            repo="YaTharThShaRma999/PromptTest",
            revision="8fbe1684f2bcd0e2bf227f41a69e28f68f851fab",
            other_names=(
                "clip_l14_336_grit20m_fultune_4xe.pth",
                "clip_l14@336_grit20m_fultune_4xe.pth",
                "clip_l14@336_grit_20m_4xe.pth",
            ),
            drive="1dUq1deeLcou26RuxZbBG57m2ALPWev6-",
            note=_figure(79.61),
        ),
        "grit1m": Weights(
            "clip_l14_336_grit1m_fultune_8xe.pth",
            "fa701cf18a3e19a1e5e81668885b15bf75337e59b0788405999e889b7aa775d0",
            repo="omeregev/click2mask-alphaclip-weights",
            other_names=("clip_l14@336_grit1m_fultune_8xe.pth",),
            drive="1DeNbUv0lraDxJZItb7shTlvGW6z_Z9Si",
            note=_figure(78.15),
        ),
    },
}


def available_alpha_weights(name: str) -> dict[str, str]:
    """Tags of the alpha weights that `load` knows for a base, best first: what is known of each.

    >>> available_alpha_weights("ViT-L/14@336px")["grit20m"]
    '79.61% top-1 on ImageNet-S'

    Raises:
        ValueError: `name` is none of `available_models()`.
    """
    if name not in ALPHA:
        raise ValueError(f"name is {name!r}, expected one of {list(ALPHA)}")
    return {tag: entry.note for tag, entry in ALPHA[name].items()}


def known_files() -> dict[str, str]:
    """SHA-256 of every file in the catalogue: its name. All of them have 64-wide heads and QuickGELU."""
    files = [*BASES.values(), *(entry for tags in ALPHA.values() for entry in tags.values())]
    hashed = {entry.sha256: entry.file for entry in files if entry.sha256}
    return hashed | _openais()


def _openais() -> dict[str, str]:
    return {entry.original[1]: entry.original[0] for entry in BASES.values() if entry.original}


@dataclass(frozen=True)
class Assembled:
    """What a model is built from.

    ``tensors`` has OpenAI's names, ``visual.conv1_alpha.weight`` among them: zeros where there is none. ``confirmed``:
    whether something says of all files that heads are 64 wide and the activation is QuickGELU. ``silenced``: whether
    there were alpha weights, which were left out.
    """

    tensors: dict[str, Tensor]
    confirmed: bool
    silenced: bool


def assemble(
    name: str,
    alpha: str | os.PathLike[str] | None,
    download_root: str | os.PathLike[str] | None = None,
    trust: bool = False,
) -> Assembled:
    """All weights of a model, of a base and an image tower with alpha weights.

    Args:
        name: of `BASES`, a path, or "hf-hub:user/repo".
        alpha: "auto", a tag of `ALPHA`, a path, or None.
        download_root: folder to look in and to download to; None: the caches.
        trust: run the code of a TorchScript archive that is not OpenAI's.

    Raises:
        WeightsError: of the kind that fits.

    Warns:
        UserWarning: nothing confirms what the shapes of a file leave open.
    """
    root = Path(download_root).expanduser() if download_root else None
    known = name in BASES
    if known and alpha == "auto":
        alpha = next(iter(ALPHA[name]), None)
    # Looked for before the base, which is the larger download and can nearly always be had.
    tower = None if alpha in (None, "auto") else _alpha_tower(name, alpha, root, trust)
    base = _base_checkpoint(name, root, trust)
    if base.is_image_tower:
        raise IncompatibleCheckpoint(
            f"{name} holds an image tower alone: load its base by name and pass this file as alpha_vision_ckpt_pth="
        )
    tensors = dict(base.tensors)  # memory-mapped: what is replaced below is never read
    own = tensors.pop(ALPHA_KEY, None) if alpha is None else None
    if tower is not None:
        tensors |= _fitting(tower, tensors)
    if ALPHA_KEY not in tensors:
        tensors[ALPHA_KEY] = torch.zeros_like(tensors["visual.conv1.weight"][:, :1])
    confirmed = base.confirmed is not None and (tower is None or tower.confirmed is not None)
    return Assembled(tensors, confirmed, silenced=own is not None and bool(own.any()))


def build(name: str, tensors: Mapping[str, Tensor]) -> CLIP:
    """A model in ``eval()`` that holds `tensors`, without a copy; a packed vocabulary is expanded first.

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
    if name == BUNDLED and BASES[name].repo is None:
        return checkpoints.read(ASSETS / BASES[name].file)
    if name in BASES:
        path = locate(BASES[name], root)
        return checkpoints.read(path, trusted=_openais(), confirmed="the catalogue")
    path = repository(name.removeprefix(HUB), root) if name.startswith(HUB) else Path(name)
    return _read_users_file(path, trust)


def _alpha_tower(name: str, alpha: str | os.PathLike[str], root: Root, trust: bool) -> Checkpoint:
    tags = ALPHA.get(name, {})
    if isinstance(alpha, str) and alpha in tags:
        entry = tags[alpha]
        path = locate(entry, root) if entry.sha256 else ASSETS / entry.file
        return checkpoints.read(path, confirmed="the catalogue")
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
    checkpoint = checkpoints.read(path, trust=trust, trusted=_openais())
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
    """What confirms the heads and the activation of a user's file, its hash included."""
    if checkpoint.confirmed:
        return checkpoint.confirmed
    known = known_files().get(digest or hashes.known_sha256(checkpoint.path))
    return known and f"its SHA-256, which is that of {known}"


def _fitting(tower: Checkpoint, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower of a checkpoint, checked against the sizes of `base`."""
    ours = {k: v for k, v in tower.tensors.items() if k.startswith("visual.")}
    needed = {k: v.shape for k, v in base.items() if k.startswith("visual.")}
    needed[ALPHA_KEY] = base["visual.conv1.weight"][:, :1].shape
    if report := _differences(ours, needed):
        raise IncompatibleCheckpoint(
            f"{tower.path} is not an image tower for this base: {report}. Load the base it was trained on."
        )
    return ours


def _differences(tensors: Mapping[str, Tensor], needed: Mapping[str, torch.Size]) -> str:
    """Missing, unexpected and differently sized tensors, sorted, the first of them by name; empty: none."""
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
    """What a file is, a line for each fact, every weight read and its hash worked out anew.

    Raises:
        WeightsError: it cannot be used; why.
    """
    checkpoint = checkpoints.read(path, trusted=_openais())
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
        "sha256": f"{digest} ({known_files().get(digest, 'not in the catalogue')})",
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
        force: write over a `target` that is there.

    Raises:
        ValueError: `target` has another ending. WeightsError: `source` cannot be read. OSError: `target` is there,
            without `force`, or not written.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"target is {target}, expected a name that ends in .safetensors")
    if target.exists() and not force:
        raise FileExistsError(f"{target} is there: choose another name, or write over it with --force")
    checkpoint = checkpoints.read(source, trust=trust, trusted=_openais())
    _check_finite(checkpoint)
    sure = confirm or _confirmation(checkpoint) is not None
    checkpoints.write(checkpoint.tensors, target, confirmed=sure)


def _files(name: str) -> list[Path]:
    """Of a name in the catalogue its base and its best alpha weights, had as `load` has them; or else the path."""
    if name not in BASES:
        return [Path(name)]
    entries = [BASES[name], *list(ALPHA[name].values())[:1]]
    return [locate(entry, None) if entry.repo or entry.sha256 else ASSETS / entry.file for entry in entries]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m alpha_clip.weights", description="Look into files of weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("verify", help="say what a file is; fail if it cannot be used")
    command.add_argument("file", help=f"or a name, whose base is fetched if need be: {', '.join(BASES)}")
    command = commands.add_parser("convert", help="write a checkpoint of any kind as safetensors, in OpenAI's names")
    command.add_argument("source", type=Path, metavar="IN")
    command.add_argument("target", type=Path, metavar="OUT.safetensors")
    command.add_argument("--trust", action="store_true", help="run the code in a TorchScript archive")
    command.add_argument(
        "--confirm", action="store_true", help="write down that heads are 64 wide and the activation is QuickGELU"
    )
    command.add_argument("--force", action="store_true", help="write over a file that is there")
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
