"""What the command `alpha-clip` does: each function takes the parsed arguments and prints its answer."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .api import available_models, load
from .attention_map import attention_map, painted
from .catalogue import available_alpha_weights
from .mask_sources import POINTS, SamMasks, grid, in_words, when_needed
from .model import CLIP
from .regions import embed_regions
from .search import RegionIndex, cache_folder, fill, nearest, sheet
from .search import load as load_for_search
from .search.indexing import UNREADABLE
from .tokenizer import tokenize
from .transforms import Preprocess, box_mask, read, upright
from .zero_shot import zero_shot_classifier

_MASKS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_PART = 64  # masks in memory at a time


def classify(args: argparse.Namespace) -> None:
    """Name each region of a picture as one of the labels."""
    labels = _lines(args.labels)
    if not labels:
        raise ValueError("no label was given, expected one or more")
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ValueError(f"the label {twice!r} was given twice, expected each once")
    picture, regions = _open(args.image), _regions(args)
    model, _ = _load(args)
    features = _features(model, picture, regions, args.method)
    weights = zero_shot_classifier(model, labels, [args.template]).float()
    shares = (model.logit_scale.exp().float() * features @ weights.T).softmax(dim=-1).tolist()
    if args.json:
        rows = [
            {"region": region.name, "labels": dict(zip(labels, row, strict=True))}
            for region, row in zip(regions, shares, strict=True)
        ]
        _say(json.dumps(rows, indent=1))
        return
    width = max(len(region.name) for region in regions)
    for region, row in zip(regions, shares, strict=True):
        best = sorted(zip(row, labels, strict=True), reverse=True)
        _say(f"{region.name:<{width}}  " + "  ".join(f"{share:6.1%} {label}" for share, label in best))


def embed(args: argparse.Namespace) -> None:
    """Write features of unit length, one row for each region of a picture, or for each text."""
    _check_place(args.out)
    if args.text:
        names = _lines(args.text)
        if not names:
            raise ValueError("no text was given, expected one or more")
        model, _ = _load(args)
        with torch.no_grad():
            features = F.normalize(model.encode_text(tokenize(names, model.context_length)).float(), dim=-1)
    else:
        picture, regions = _open(args.image), _regions(args)
        model, _ = _load(args)
        features = _features(model, picture, regions, args.method)
        names = [region.name for region in regions]
    if args.out is None:
        _say(json.dumps([{"name": n, "feature": row} for n, row in zip(names, features.tolist(), strict=True)]))
        return
    _write(args.out, lambda file: np.save(file, features.cpu().numpy()))
    if args.out != "-":
        _say(f"{args.out}: {features.shape[0]} x {features.shape[1]}")


def attention(args: argparse.Namespace) -> None:
    """Draw where the class token looks, over the picture, through a mask or without."""
    _check_place(args.out)
    stored, (region,) = _open(args.image), _regions(args)
    mask, picture = region.mask(stored), upright(stored)
    model, preprocess = _load(args)
    heat = attention_map(model, preprocess, picture, mask, args.layer)
    _write(args.out, lambda file: painted(picture, heat).save(file, "PNG"))
    if args.out != "-":
        _say(args.out)


def search(args: argparse.Namespace) -> None:
    """Find the regions in a folder's pictures that are nearest to a text."""
    text = " ".join(_lines([args.wanted]))
    if not text:
        raise ValueError("the text is empty, expected what to look for")
    _check_place(args.out)
    folder = Path(args.folder).resolve()
    if not folder.is_dir():  # said before a model is loaded and an index made
        raise ValueError(f"{args.folder} is no folder: expected one of pictures")
    points = args.points or POINTS
    source = when_needed(args.sam, lambda: SamMasks(args.sam, points, args.device)) if args.sam else grid
    model, settings = load_for_search(
        args.model, args.device, args.method or "alpha", in_words(args.sam, points), args.alpha or "auto"
    )
    index = RegionIndex.create(Path(args.index) if args.index else cache_folder(folder, settings), settings)
    new, known, broken = fill(index, folder, model, source)
    if new or broken:
        _tell(f"new pictures: {new}, known: {known}, unreadable: {broken}; the index is {index.folder}")
    if new and not args.sam:
        _tell("pictures with no file of masks beside them are searched by a grid of boxes; --sam NAME knows outlines")
    hits = nearest(index, model, text, args.k, folder, exact=args.exact)
    if not hits:
        raise ValueError(f"{args.folder} holds no picture with a region that could be found")
    if args.json:
        _say(json.dumps([{"path": hit.paths[0], "score": hit.score, "box": hit.box} for hit in hits], indent=1))
    else:
        for rank, hit in enumerate(hits, 1):
            _say(f"{rank:>3}  {hit.score:.3f}  {hit.paths[0]}  " + " ".join(f"{x:.0%}" for x in hit.box))
    if args.out:
        _write(args.out, lambda file: sheet(hits, text).save(file, "PNG"))
        _tell(f"hits drawn: {args.out}")


def models(args: argparse.Namespace) -> None:
    """List the models, and the alpha weights there are for them."""
    found = {name: list(available_alpha_weights(name)) for name in available_models()}
    if args.json:
        _say(json.dumps(found, indent=1))
        return
    for name, tags in found.items():
        _say(f"{name:<16} {', '.join(tags) or 'no alpha weights: plain CLIP'}")


# --- what they are given ---


@dataclass(frozen=True)
class _Region:
    name: str
    mask: Callable[[Image.Image], Any]  # of the picture as it is stored, which may not be upright: (H, W), upright


def _regions(args: argparse.Namespace) -> list[_Region]:
    """In the order of masks, boxes, folder; the whole picture if there are none."""
    found = [_Region(path, partial(_mask, path)) for path in args.mask]
    for box in args.box:
        found.append(_Region(",".join(f"{x:g}" for x in box), lambda p, box=box: box_mask(box, _size(p))))  # type: ignore[misc]
    if getattr(args, "masks_dir", None):
        folder = Path(args.masks_dir)
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder: expected one of masks")
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _MASKS)
        if not files:
            raise ValueError(f"{folder} holds no masks, expected files such as {', '.join(_MASKS[:3])}")
        found += [_Region(path.name, partial(_mask, path)) for path in files]
    return found or [_Region("whole picture", lambda p: np.ones(_size(p), bool))]


def _size(picture: Image.Image) -> tuple[int, int]:
    """(H, W) of the upright picture."""
    return upright(picture).size[::-1]


def _mask(path: str | Path, picture: Image.Image) -> Tensor:
    try:
        return read(picture, _open(path))[1][0]
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _features(model: CLIP, picture: Image.Image, regions: Sequence[_Region], method: str | None) -> Tensor:
    """(K, D), with progress on the standard error where it takes long and is seen."""
    found = []
    with tqdm(total=len(regions), unit="region", leave=False, disable=None if len(regions) > _PART else True) as bar:
        for start in range(0, len(regions), _PART):
            masks = [region.mask(picture) for region in regions[start : start + _PART]]
            found.append(embed_regions(model, picture, masks, method or "alpha").float())
            bar.update(len(masks))
    return torch.cat(found)


def _lines(given: Sequence[str]) -> list[str]:
    """The texts, those of the standard input in place of a "-", without empty ones."""
    lines = (_standard_input().read().splitlines() if text == "-" else [text] for text in given)
    return [text.strip() for some in lines for text in some if text.strip()]


def _open(path: str | Path) -> Image.Image:
    """The picture in a file, a pipe (as of a shell's `<(...)`), or the standard input."""
    try:
        content = _standard_input().buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}, expected a picture") from error
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            return picture
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: too large: {error}") from error
    except UNREADABLE as error:
        raise ValueError(f"{path}: {len(content)} bytes that are no picture, or a damaged one") from error


def _standard_input() -> Any:
    if sys.stdin is None:
        raise ValueError("-: the standard input is closed, expected a file or a pipe")
    return sys.stdin


def _load(args: argparse.Namespace) -> tuple[CLIP, Preprocess]:
    alpha = args.alpha if args.alpha else "auto"
    return load(args.model, args.device, alpha_vision_ckpt_pth=alpha)


# --- what they give ---


def _say(text: str) -> None:
    print(text)  # noqa: T201


def _tell(text: str) -> None:
    print(f"alpha-clip: {text}", file=sys.stderr)  # noqa: T201


def _check_place(path: str | None) -> None:
    """Before anything takes long."""
    if path is None or path == "-":
        return
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder, expected a file to write")
    if not os.access(folder := Path(path).parent, os.W_OK):
        raise ValueError(f"{path} cannot be written: expected {folder} to be a folder, and open to you")


def _write(path: str, write: Callable[[Any], object]) -> None:
    """Under a temporary name, which is renamed when all of it is there; - is the standard output."""
    if path == "-":
        write(content := io.BytesIO())  # neither NumPy nor Pillow writes into every pipe
        sys.stdout.buffer.write(content.getvalue())
        return
    part = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
