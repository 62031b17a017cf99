"""The command `alpha-clip`: name, embed and look at regions of pictures. Thin over the library.

alpha-clip classify photo.jpg --mask dog.png "a dog" "a cat"
alpha-clip classify photo.jpg --box 20,30,200,180 --box 210,30,400,180 "a dog" "a cat" --json
alpha-clip embed photo.jpg --masks-dir masks/ --out features.npy
alpha-clip attention photo.jpg --mask dog.png --out attention.png
alpha-clip models

Pictures, masks and labels may come from a pipe, as -. Photos need a model of the real size:
--model ViT-L/14@336px; the default, tiny, works offline and knows drawings alone.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .api import available_models, load
from .attention_map import attention_map, painted
from .model import CLIP
from .regions import METHODS, embed_regions
from .tokenizer import tokenize
from .transforms import Preprocess, box_mask, upright
from .weights import available_alpha_weights
from .zero_shot import zero_shot_classifier

MODEL = "tiny"
_MASKS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0: done, 1: it could not be done, 2: it was asked for wrongly."""
    args = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = args.command
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn_in_a_line
            command(args)
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ImportError, IndexError, OSError, RuntimeError, TypeError, ValueError) as error:
        if args.debug:
            raise
        print(f"alpha-clip: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


# --- commands ---


def classify(args: argparse.Namespace) -> None:
    """Name each region of a picture as one of the labels."""
    labels = _labels(args.labels)
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
        with torch.no_grad():
            features = F.normalize(model.encode_text(tokenize(args.text, model.context_length)).float(), dim=-1)
        names = args.text
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
    return embed_regions(model, picture, [region.mask(picture) for region in regions], method)


def _labels(given: Sequence[str]) -> list[str]:
    lines = (sys.stdin.read().splitlines() if label == "-" else [label] for label in given)
    return [label.strip() for some in lines for label in some if label.strip()]


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


def _warn_in_a_line(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"alpha-clip: {' '.join(str(message).split())}", file=sys.stderr)  # noqa: T201


def _write(path: str, write: Callable[[Any], object]) -> None:
    """Under a temporary name, which is renamed when all of it is there."""
    part = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# --- the command line ---


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help says more)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="alpha-clip", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for function, example in _COMMANDS:
        about = str(function.__doc__)
        chosen = commands.add_parser(function.__name__, help=about, description=f"{about}\n\n{example}")
        chosen.formatter_class = argparse.RawDescriptionHelpFormatter
        chosen.set_defaults(command=function)
        chosen.add_argument("--debug", action="store_true", help="show where an error came from")
        _ARGUMENTS[function.__name__](chosen)
    return parser


def _of_classify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", help="a picture; - reads it from the standard input")
    parser.add_argument("labels", nargs="+", metavar="LABEL", help="what it may be; - reads them, one in a line")
    parser.add_argument("--template", default="{}", help='a sentence around each label, "a photo of {}." [{}]')
    parser.add_argument("--json", action="store_true", help="print JSON")
    _of_regions(parser)
    _of_model(parser)


def _of_embed(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("image", nargs="?", help="a picture; - reads it from the standard input")
    what.add_argument("--text", nargs="+", help="texts, in place of a picture")
    parser.add_argument("--out", help="a file .npy, (regions, width) float32; default: print JSON")
    _of_regions(parser)
    _of_model(parser)


def _of_attention(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", help="a picture; - reads it from the standard input")
    parser.add_argument("--out", default="attention.png", help="the picture to write [attention.png]")
    parser.add_argument("--layer", type=int, default=-1, help="block of the image tower [-1, the last]")
    _of_regions(parser, method=False)
    _of_model(parser)


def _of_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _of_regions(parser: argparse.ArgumentParser, method: bool = True) -> None:
    parser.add_argument("--mask", action="append", default=[], metavar="FILE", help="a mask of the picture's size")
    parser.add_argument("--box", action="append", default=[], type=_box, metavar="X0,Y0,X1,Y1", help="in pixels")
    parser.add_argument("--masks-dir", metavar="DIR", help="a folder of masks; without any, the whole picture")
    if method:
        parser.add_argument("--method", default="alpha", choices=METHODS, help="how to look [alpha]")


def _of_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=MODEL, help=f"a name, a file, or hf-hub:user/repo [{MODEL}]")
    parser.add_argument("--alpha", metavar="TAG", help="tag or file of its alpha weights [the best there are]")
    parser.add_argument("--device", help="such as cpu or cuda [CUDA if there is one, else MPS, else the CPU]")


def _box(text: str) -> tuple[float, ...]:
    corners = tuple(float(x) for x in text.split(","))
    if len(corners) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} has {len(corners)} numbers, expected x0,y0,x1,y1")
    return corners


_COMMANDS: list[tuple[Callable[[argparse.Namespace], None], str]] = [
    (classify, 'alpha-clip classify photo.jpg --mask dog.png "a dog" "a cat" --model ViT-L/14@336px'),
    (embed, "alpha-clip embed photo.jpg --masks-dir masks/ --out features.npy\nalpha-clip embed --text 'a dog'"),
    (attention, "alpha-clip attention photo.jpg --mask dog.png --out attention.png"),
    (models, "alpha-clip models --json"),
]
_ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "classify": _of_classify,
    "embed": _of_embed,
    "attention": _of_attention,
    "models": _of_models,
}
