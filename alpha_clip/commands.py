"""What the command `alpha-clip` does: each function takes the parsed arguments and prints its answer."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from .mask_sources import SamMasks, grid, in_words
from .model import CLIP
from .regions import embed_regions
from .search import RegionIndex, cache_folder, fill, nearest, sheet
from .search import load as load_for_search
from .tokenizer import tokenize
from .transforms import Preprocess, box_mask, upright
from .zero_shot import zero_shot_classifier

_MASKS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_PART = 64  # masks in memory at a time


def classify(args: argparse.Namespace) -> None:
    """Name each region of a picture as one of the labels."""
    labels = _lines(args.labels)
    model, _ = _load(args)
    picture, regions = _picture(args.image), _regions(args)
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
    model, _ = _load(args)
    if args.text:
        names = _lines(args.text)
        if not names:
            raise ValueError("no text was given, expected one or more")
        with torch.no_grad():
            features = F.normalize(model.encode_text(tokenize(names, model.context_length)).float(), dim=-1)
    else:
        regions = _regions(args)
        features = _features(model, _picture(args.image), regions, args.method)
        names = [region.name for region in regions]
    if args.out is None:
        _say(json.dumps([{"name": n, "feature": row} for n, row in zip(names, features.tolist(), strict=True)]))
        return
    _write(args.out, lambda file: np.save(file, features.cpu().numpy()))
    _say(f"{args.out}: {features.shape[0]} x {features.shape[1]}")


def attention(args: argparse.Namespace) -> None:
    """Draw where the class token looks, over the picture, through a mask or without."""
    model, preprocess = _load(args)
    picture = _picture(args.image)
    (region,) = _regions(args, at_most=1)
    heat = attention_map(model, preprocess, picture, region.mask(picture), args.layer)
    _write(args.out, lambda file: painted(picture, heat).save(file, "PNG"))
    _say(f"{args.out}")


def search(args: argparse.Namespace) -> None:
    """Find the regions in a folder's pictures that are nearest to a text."""
    text = " ".join(_lines([args.text]))
    if not text:
        raise ValueError("the text is empty, expected what to look for")
    folder = Path(args.folder).resolve()
    if not folder.is_dir():  # said before a model is loaded and an index made
        raise ValueError(f"{args.folder} is no folder: expected one of pictures")
    masks = in_words(args.sam, args.points)
    model, settings = load_for_search(args.model, args.device, args.method, masks, args.alpha or "auto")
    index = RegionIndex.create(Path(args.index) if args.index else cache_folder(folder, settings), settings)
    new, known, broken = fill(index, folder, model, SamMasks(args.sam, args.points, args.device) if args.sam else grid)
    if new or broken:
        _tell(f"{new} pictures were new, {known} known, {broken} could not be read; the index is {index.folder}")
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
    mask: Callable[[Image.Image], Any]  # of the picture: as `Preprocess` takes it


def _regions(args: argparse.Namespace, at_most: int | None = None) -> list[_Region]:
    """In the order of masks, boxes, folder; the whole picture if there are none."""
    found = [_Region(path, lambda _, path=path: _open(path)) for path in args.mask]  # type: ignore[misc]
    for box in args.box:
        found.append(_Region(",".join(f"{x:g}" for x in box), lambda p, box=box: box_mask(box, p.size[::-1])))  # type: ignore[misc]
    if args.masks_dir:
        folder = Path(args.masks_dir)
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _MASKS)
        if not files:
            raise ValueError(f"{folder} holds no masks, expected files such as {', '.join(_MASKS[:3])}")
        found += [_Region(path.name, lambda _, path=path: _open(path)) for path in files]  # type: ignore[misc]
    if at_most is not None and len(found) > at_most:
        raise ValueError(f"{len(found)} regions were given, expected at most {at_most}")
    return found or [_Region("whole picture", lambda p: np.ones(p.size[::-1], bool))]


def _features(model: CLIP, picture: Image.Image, regions: Sequence[_Region], method: str) -> Tensor:
    """(K, D), with progress on the standard error where it takes long and is seen."""
    found = []
    with tqdm(total=len(regions), unit="region", leave=False, disable=None if len(regions) > _PART else True) as bar:
        for start in range(0, len(regions), _PART):
            masks = [region.mask(picture) for region in regions[start : start + _PART]]
            found.append(embed_regions(model, picture, masks, method))
            bar.update(len(masks))
    return torch.cat(found)


def _lines(given: Sequence[str]) -> list[str]:
    """The texts, those of the standard input in place of a "-", without empty ones."""
    lines = (sys.stdin.read().splitlines() if text == "-" else [text] for text in given)
    return [text.strip() for some in lines for text in some if text.strip()]


def _picture(path: str) -> Image.Image:
    return upright(_open(path))


def _open(path: str | Path) -> Image.Image:
    source: Any = io.BytesIO(sys.stdin.buffer.read()) if str(path) == "-" else path
    try:
        with Image.open(source) as picture:
            picture.load()
            return picture
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large: {error}") from error
    except OSError as error:
        what = "is no picture that can be read" if Path(path).is_file() or str(path) == "-" else "is not there"
        raise ValueError(f"{path} {what}") from error


def _load(args: argparse.Namespace) -> tuple[CLIP, Preprocess]:
    alpha = args.alpha if args.alpha else "auto"
    return load(args.model, args.device, alpha_vision_ckpt_pth=alpha)


# --- what they give ---


def _say(text: str) -> None:
    print(text)  # noqa: T201


def _tell(text: str) -> None:
    print(f"alpha-clip: {text}", file=sys.stderr)  # noqa: T201


def _write(path: str, write: Callable[[Any], object]) -> None:
    """Under a temporary name, which is renamed when all of it is there."""
    part = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
