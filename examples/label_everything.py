"""Label each thing in a picture: find masks of everything, choose a label for each, draw a figure, print a table.

python examples/label_everything.py
python examples/label_everything.py --model ViT-L/14@336px --image photo.jpg --sam facebook/sam-vit-base \\
    --labels "a dog" "a cat" "grass"

Without --image it labels a drawn scene with its exact masks. The masks of a photo come from a file beside it
(photo.masks.npz, .png or .json), else from --sam, else from a grid of boxes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import alpha_clip
from alpha_clip.mask_sources import Masks, SamMasks, grid, mask_file, masks_of
from alpha_clip.scenes import draw_scene
from alpha_clip.search.drawing import COLOURS, GREY, INK, PAPER, tag, tinted
from alpha_clip.transforms import mask_box, upright

NONE = "none of these"
LABELS = ["a rocket", "a car", "a dog", "a crown", "a tree", "a boat", "a bird", "a balloon", "a house", "a fish"]
LEAST = 0.45  # cosine for "tiny": right labels of drawn scenes are above it, others below
HEIGHT, TABLE = 460, 390  # pixels of the figure
CROWD = 12  # masks, above which those without a label are not drawn


class Found(NamedTuple):
    label: str  # or NONE
    share: float  # of the label among all labels, in [0, 1]: softmax of the model's logits
    cosine: float  # of region and label


@torch.no_grad()
def label(
    model: alpha_clip.model.CLIP, picture: Image.Image, masks: Masks, labels: list[str], least: float, method: str
) -> list[Found]:
    """Choose the nearest label for each of the (K, H, W) masks, or `NONE` where its cosine is below `least`."""
    features = alpha_clip.embed_regions(model, picture, masks, method).float()  # (K, D)
    weights = alpha_clip.zero_shot_classifier(model, labels, ("{}",)).float()  # (N, D): the labels are whole phrases
    cosines = features @ weights.T  # (K, N)
    shares = (cosines * model.logit_scale.exp().float()).softmax(dim=-1)
    best, which = cosines.max(dim=-1)
    return [
        Found(labels[n] if cosine >= least else NONE, float(row[n]), cosine)
        for row, n, cosine in zip(shares, which.tolist(), best.tolist(), strict=True)
    ]


def table(found: list[Found], masks: Masks) -> str:
    lines = [f"{'region':>6}  {'label':<16} {'share':>6} {'cosine':>7} {'area':>6}"]
    for k, ((name, share, cosine), mask) in enumerate(zip(found, masks, strict=True), 1):
        lines.append(f"{k:>6}  {name:<16} {share:>6.1%} {cosine:>7.3f} {mask.mean():>6.1%}")
    return "\n".join(lines)


def figure(picture: Image.Image, masks: Masks, found: list[Found]) -> Image.Image:
    """Draw the picture with masks and labels, and beside it a list of the labels, surest first, as far as it fits."""
    named = [k for k, one in enumerate(found) if one.label != NONE]
    drawn = named if len(found) > CROWD else range(len(found))
    shown = picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT), Image.Resampling.LANCZOS)
    for k in drawn:
        large = Image.fromarray(masks[k]).resize(shown.size, Image.Resampling.BILINEAR)
        shown = tinted(shown, np.asarray(large), _colour(k, found[k]), 0.35 if k in named else 0)
    draw = ImageDraw.Draw(shown)
    for k in drawn:
        x0, y0, x1, y1 = (HEIGHT / picture.height * corner for corner in mask_box(masks[k]))
        name = f"{k + 1} {found[k].label}" if k in named else f"{k + 1}"
        tag(draw, ((x0 + x1) / 2, (y0 + y1) / 2), name, _colour(k, found[k]))
    canvas = Image.new("RGB", (shown.width + TABLE, HEIGHT), PAPER)
    canvas.paste(shown, (0, 0))
    _list(ImageDraw.Draw(canvas), shown.width + 24, found)
    return canvas


def _list(draw: ImageDraw.ImageDraw, x: int, found: list[Found]) -> None:
    order = sorted(range(len(found)), key=lambda k: (found[k].label == NONE, -found[k].cosine))
    font, small, room = ImageFont.load_default(18), ImageFont.load_default(13), (HEIGHT - 60) // 34
    draw.text((x + 252, 20), "share", GREY, small, anchor="rm")
    draw.text((x + 338, 20), "cosine", GREY, small, anchor="rm")
    for row, k in enumerate(order[:room]):
        y, one = 49 + 34 * row, found[k]
        draw.rounded_rectangle((x, y - 11, x + 26, y + 11), 4, _colour(k, one))
        draw.text((x + 13, y), str(k + 1), PAPER, small, anchor="mm")
        draw.text((x + 38, y), one.label, GREY if one.label == NONE else INK, font, anchor="lm")
        draw.text((x + 252, y), f"{one.share:.0%}", INK, font, anchor="rm")
        draw.text((x + 338, y), f"{one.cosine:.2f}", INK, font, anchor="rm")
    if len(found) > room:
        draw.text((x, HEIGHT - 24), f"and {len(found) - room} more, in the table", GREY, small)


def _colour(k: int, one: Found) -> str:
    return GREY if one.label == NONE else COLOURS[k % len(COLOURS)]


def _label(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no label, expected some words: 'a dog'")
    return text.strip()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count, expected 1 or more")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help=f"one of {alpha_clip.available_models()}, or a file")
    parser.add_argument("--image", type=Path, help="a picture [a drawn scene]")
    parser.add_argument("--scene", type=int, default=9_900_000_058, help="the seed of the drawn scene")
    parser.add_argument("--sam", help="facebook/sam-vit-base, facebook/sam2.1-hiera-small, facebook/sam3 or a folder")
    parser.add_argument("--points", type=_count, default=32, help="SAM prompt points along each side")
    parser.add_argument("--labels", nargs="+", type=_label, default=LABELS)
    parser.add_argument("--label-file", type=Path, help="a file with a label on each line, instead of --labels")
    parser.add_argument("--least", type=float, help=f"the cosine below which it is {NONE} [{LEAST} for tiny, else 0]")
    parser.add_argument("--method", default="alpha", help="a method of embed_regions: alpha, crop, masked_crop, ...")
    parser.add_argument("--device", help="such as cpu or cuda [CUDA, else MPS, else the CPU]")
    parser.add_argument("--out", type=Path, default=Path("label_everything.png"))
    args = parser.parse_args()
    try:
        run(args)
    except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        parser.exit(1, f"label_everything: {error}\n")


def run(args: argparse.Namespace) -> None:
    labels = args.labels
    if args.label_file:
        labels = [line.strip() for line in args.label_file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not labels:
            raise ValueError(f"{args.label_file} holds no label, expected one on each line")
    segmenter = SamMasks(args.sam, args.points, args.device) if args.sam else None
    if args.image:
        path, picture = args.image, upright(args.image)
        if mask_file(path) is None and segmenter is None:
            print("no masks beside the picture and no --sam: a grid of boxes, which know no outlines")
        picture, masks = masks_of(path, picture, segmenter or grid)
    else:
        scene = draw_scene(args.scene, 400, objects=(6, 6), scale=(0.3, 0.45), overlap=0.0)
        picture, masks = masks_of(Path("scene"), Image.fromarray(scene.image), segmenter or (lambda _: scene.masks))
    if len(masks) == 0:
        raise ValueError("no mask is left: the segmenter found nothing, or nothing but specks")
    model, _ = alpha_clip.load(args.model, device=args.device)
    least = args.least if args.least is not None else LEAST if args.model == "tiny" else 0.0
    found = label(model, picture, masks, labels, least, args.method)
    print(table(found, masks))
    figure(picture, masks, found).save(args.out)
    print(f"figure: {args.out}")


if __name__ == "__main__":
    main()
