"""The subcommands of `alpha-clip`: each function takes the parsed arguments and prints its answer."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .api import as_device, available_models, load
from .atomic import replacing
from .attention_map import attention_map, painted
from .catalogue import available_alpha_weights
from .command_inputs import PART, Region, lines_of, picture_and_regions
from .errors import MasksIgnored, ZeroAlpha
from .mask_sources import POINTS, SamMasks, grid, in_words, when_needed
from .model import CLIP
from .regions import embed_regions
from .search import RegionIndex, cache_folder, fill, nearest, sheet
from .search import load as load_for_search
from .tokenizer import shared_tokenizer, tokenize
from .transforms import NoForeground, Preprocess, upright
from .zero_shot import zero_shot_classifier

_Input = TypeVar("_Input")


def classify(args: argparse.Namespace) -> None:
    """Name each region of a picture as one of the labels."""
    labels = lines_of(args.labels)
    if not labels:
        raise ValueError("no label was given, expected one or more")
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ValueError(f"the label {twice!r} was given twice, expected each once")
    picture, regions = picture_and_regions(args, _tell)
    model, _ = _load(args)
    _check_lengths(model, [args.template.replace("{}", label) for label in labels])
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
    names = [_in_a_line(region.name) for region in regions]
    for name, row in zip(names, shares, strict=True):
        best = sorted(zip(row, map(_in_a_line, labels), strict=True), reverse=True)
        _say(f"{name:<{max(map(len, names))}}  " + "  ".join(f"{share:6.1%} {label}" for share, label in best))


def embed(args: argparse.Namespace) -> None:
    """Write features of unit length, one row for each region of a picture, or for each text."""
    _check_place(args.out)
    if args.text:
        names = lines_of(args.text)
        if not names:
            raise ValueError("no text was given, expected one or more")
        model, _ = _load(args)
        _check_lengths(model, names)
        features = _in_parts(names, "text", lambda some: _embed_texts(model, some))
    else:
        picture, regions = picture_and_regions(args, _tell)
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
    stored, (region,) = picture_and_regions(args, _tell)
    mask, picture = region.mask(stored), upright(stored)
    model, preprocess = _load(args)
    heat = attention_map(model, preprocess, picture, mask, args.layer)
    _write(args.out, lambda file: painted(picture, heat).save(file, "PNG"))
    if args.out != "-":
        _say(args.out)


def search(args: argparse.Namespace) -> None:
    """Find the regions in a folder's pictures that are nearest to a text."""
    text = " ".join(lines_of([args.wanted]))
    if not text:
        raise ValueError("the text is empty, expected what to look for")
    _check_place(args.out)
    folder = Path(args.folder).resolve()
    if not folder.is_dir():  # checked before a model is loaded and an index created
        raise ValueError(f"{args.folder} is no folder: expected one of pictures")
    points = args.points or POINTS
    source = when_needed(args.sam, lambda: SamMasks(args.sam, points, args.device)) if args.sam else grid
    _check_device(args)
    _expect_zeros(args)
    model, settings = load_for_search(
        args.model, args.device, args.method or "alpha", in_words(args.sam, points), _alpha(args)
    )
    _check_lengths(model, [text])
    index = RegionIndex.create(Path(args.index) if args.index else cache_folder(folder, settings), settings)
    new, known, broken = fill(index, folder, model, source, _tell)
    if new or broken:
        _tell(f"new pictures: {new}, known: {known}, unreadable: {broken}; the index is {index.folder}")
    if new and not args.sam:
        _tell("pictures with no file of masks beside them are searched by a grid of boxes; --sam NAME knows outlines")
    hits = nearest(index, model, text, args.k, folder, exact=args.exact)
    if not hits:
        raise ValueError(
            f"{args.folder} holds no picture with a region that could be found: "
            "add pictures, give --sam, or put masks beside the pictures"
        )
    if args.json:
        _say(json.dumps([{"path": hit.paths[0], "score": hit.score, "box": hit.box} for hit in hits], indent=1))
    else:
        for rank, hit in enumerate(hits, 1):
            box = " ".join(f"{x:.0%}" for x in hit.box)
            _say(f"{rank:>3}  {hit.score:.3f}  {_in_a_line(hit.paths[0])}  {box}")
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


# --- load a model, and check what it will get ---


def _load(args: argparse.Namespace) -> tuple[CLIP, Preprocess]:
    _check_device(args)
    _expect_zeros(args)
    return load(args.model, args.device, alpha_vision_ckpt_pth=_alpha(args))


def _features(model: CLIP, picture: Image.Image, regions: Sequence[Region], method: str | None) -> Tensor:
    """Features (K, D) of K regions."""

    def embed(some: Sequence[Region]) -> Tensor:
        return embed_regions(model, picture, [region.mask(picture) for region in some], method or "alpha").float()

    return _in_parts(regions, "region", embed)


@torch.no_grad()
def _embed_texts(model: CLIP, texts: Sequence[str]) -> Tensor:
    return F.normalize(model.encode_text(tokenize(texts, model.context_length)).float(), dim=-1)


def _in_parts(inputs: Sequence[_Input], unit: str, embed: Callable[[Sequence[_Input]], Tensor]) -> Tensor:
    """Features (K, D) of K inputs, a few at a time, with a progress bar on the standard error for many."""
    found = []
    with tqdm(total=len(inputs), unit=unit, leave=False, disable=None if len(inputs) > PART else True) as bar:
        for start in range(0, len(inputs), PART):
            some = inputs[start : start + PART]
            found.append(embed(some))
            bar.update(len(some))
    return torch.cat(found)


def _check_device(args: argparse.Namespace) -> None:
    try:
        as_device(args.device)
    except ValueError as error:
        reason = str(error.__cause__).partition("\n")[0]
        raise ValueError(f"--device {args.device} cannot be used here ({reason}): leave it out") from error


def _alpha(args: argparse.Namespace) -> str | None:
    alpha: str = args.alpha or "auto"
    return None if alpha.lower() == "none" else alpha


def _expect_zeros(args: argparse.Namespace) -> None:
    """For plain CLIP on request, warn only once that it ignores masks, and only if masks matter here."""
    if _alpha(args) is None:
        warnings.simplefilter("ignore", MasksIgnored)
        is_given_masks = args.command == "search" or args.regions
        if not is_given_masks or getattr(args, "method", None) not in (None, "alpha", "ensemble"):
            warnings.simplefilter("ignore", ZeroAlpha)


def _check_lengths(model: CLIP, texts: Sequence[str]) -> None:
    for text in texts:
        if (count := len(shared_tokenizer().encode(text)) + 2) > model.context_length:
            raise ValueError(
                f"{shorten(text, 80, placeholder='...')!r} has {count} tokens with start and end, and the model "
                f"reads {model.context_length}: shorten it"
            )


# --- write the answers ---

_OUR_WORDS = (  # options of the command for arguments of `load`
    (r"alpha_vision_ckpt_pth=(?=[\w./~])", "--alpha "),
    (r"alpha_vision_ckpt_pth=", "--alpha"),
    (r"\bpass None for", "pass --alpha none for"),
    (r"\bpass a download_root=", "set an HF_HOME"),
    (r"\bdownload_root\b", "~/.cache/alpha_clip"),
    (r"; or pass trust=True to load", ""),
    (r"\bload\(['\"](.*?)['\"]\)", r"--model \1"),
)


def in_our_words(said: object) -> str:
    """The text of an error or a warning, with the command's options for the arguments that the library names."""
    text = str(said)
    if isinstance(said, NoForeground):
        lost = text.partition(": ")[0]
        return f"{lost}: look closer, as --method crop does, or with a --model of a larger input size"
    if isinstance(said, (RuntimeError, Warning)):  # those of `load`
        for theirs, ours in _OUR_WORDS:
            text = re.sub(theirs, ours, text)
    return text


def _say(text: str) -> None:
    print(text)  # noqa: T201


def _in_a_line(text: str) -> str:
    """Escape line breaks and other control characters."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text
    )


def _tell(text: str) -> None:
    tqdm.write(f"alpha-clip: {text}", file=sys.stderr)  # above a progress bar


def _check_place(path: str | None) -> None:
    """Raise ValueError if `path` cannot be written, before anything takes long."""
    if path is None or path == "-":
        return
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder, expected a file to write")
    if not os.access(folder := Path(path).parent, os.W_OK):
        raise ValueError(f"{path} cannot be written: expected {folder} to be a folder, and open to you")


def _write(path: str, write: Callable[[Any], object]) -> None:
    """Write a file whole or not at all; - is the standard output."""
    if path == "-":
        write(content := io.BytesIO())  # NumPy and Pillow cannot write into every pipe
        sys.stdout.buffer.write(content.getvalue())
        return
    with replacing(Path(path)) as part, part.open("wb") as file:
        write(file)
