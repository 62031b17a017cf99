"""Which label does each marked region match? Prints a table and draws a figure.

python examples/zero_shot_region.py
python examples/zero_shot_region.py --model ViT-L/14@336px --image photo.jpg --mask mask.png --labels "a dog" "a cat"
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

import alpha_clip
from alpha_clip.transforms import Geometry, read, upright

ASSETS = Path(str(files("alpha_clip"))) / "assets"
LABELS = ["a cat", "a car", "a tree", "a balloon", "a dog", "a bus", "a mushroom", "a moon"]
PANEL, BAR, MARGIN = 288, 22, 12  # pixels of the figure
INK, PAPER, BLUE, PALE = "#1f2430", "#ffffff", "#3b6fd4", "#d9e2f3"


def sample() -> tuple[Image.Image, list[np.ndarray]]:
    """The picture in the package, and the mask of each of its objects."""
    numbered = np.asarray(Image.open(ASSETS / "sample_masks.png"))  # 0 is background
    return Image.open(ASSETS / "sample.png").convert("RGB"), [numbered == i for i in range(1, numbered.max() + 1)]


@torch.no_grad()
def probabilities(
    model: alpha_clip.model.CLIP,
    preprocess: alpha_clip.Preprocess,
    image: Image.Image,
    masks: list[np.ndarray],
    labels: list[str],
    geometry: Geometry,
) -> np.ndarray:
    """Row 0 for the whole picture, row 1 + k for mask k: (1 + K, number of labels), rows summing to 1."""
    whole = np.ones(image.size[::-1], dtype=bool)
    rgb, alphas = preprocess(image, [whole, *masks], geometry=geometry)
    text = alpha_clip.tokenize(labels)
    logits, _ = model(rgb, text.to(next(model.parameters()).device), alphas)
    return logits.float().softmax(dim=-1).cpu().numpy()


def table(rows: list[str], labels: list[str], shares: np.ndarray) -> str:
    widths = [max(len(label), 6) for label in labels]
    lines = [f"{'':<14}" + "  ".join(f"{label:>{w}}" for label, w in zip(labels, widths, strict=True))]
    for name, row in zip(rows, shares, strict=True):
        cells = [f"{share:>{w}.1%}" for share, w in zip(row, widths, strict=True)]
        lines.append(f"{name:<14}" + "  ".join(cells) + f"   -> {labels[row.argmax()]}")
    return "\n".join(lines)


def spotlight(image: Image.Image, mask: np.ndarray | None) -> Image.Image:
    """The picture at panel size, faded and greyed where the mask is 0."""
    if mask is not None:
        faded = Image.blend(ImageOps.grayscale(image).convert("RGB"), Image.new("RGB", image.size, PAPER), 0.65)
        image = Image.composite(image, faded, Image.fromarray((mask * 255).astype(np.uint8)))
    return ImageOps.pad(image, (PANEL, PANEL), color=PAPER)


def figure(
    image: Image.Image, masks: list[np.ndarray], rows: list[str], labels: list[str], shares: np.ndarray
) -> Image.Image:
    """A panel for the whole picture and one for each mask, with its best labels as bars below."""
    shown = min(4, len(labels))
    height = MARGIN + 28 + PANEL + shown * (BAR + 6) + MARGIN
    canvas = Image.new("RGB", ((PANEL + MARGIN) * len(rows) + MARGIN, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    title, small = ImageFont.load_default(18), ImageFont.load_default(14)
    for i, (name, mask, row) in enumerate(zip(rows, [None, *masks], shares, strict=True)):
        x, y = MARGIN + i * (PANEL + MARGIN), MARGIN
        draw.text((x, y), f"{name}: {labels[row.argmax()]}", INK, title)
        canvas.paste(spotlight(image, mask), (x, y + 28))
        y += 28 + PANEL + 6
        for rank, j in enumerate(row.argsort()[::-1][:shown]):
            draw.rectangle((x, y, x + PANEL, y + BAR), PALE)
            draw.rectangle((x, y, x + round(PANEL * float(row[j])), y + BAR), BLUE if rank == 0 else "#9db6e6")
            draw.text((x + 6, y + 2), f"{labels[j]}  {row[j]:.0%}", INK, small, stroke_width=2, stroke_fill=PAPER)
            y += BAR + 6
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help=f"one of {alpha_clip.available_models()}, or a file")
    parser.add_argument("--image", type=Path, help="a picture; without it, the one in the package")
    parser.add_argument("--mask", type=Path, nargs="+", default=[], help="pictures of masks, white where to look")
    parser.add_argument("--box", type=float, nargs=4, action="append", default=[], metavar=("X0", "Y0", "X1", "Y1"))
    parser.add_argument("--labels", nargs="+", default=LABELS)
    parser.add_argument("--geometry", choices=["crop", "pad", "squash"], default="pad")
    parser.add_argument("--device", help="default: CUDA, else MPS, else the CPU")
    parser.add_argument("--out", type=Path, default=Path("zero_shot_region.png"))
    args = parser.parse_args()
    if args.image is None and (args.mask or args.box):
        parser.error("--mask and --box belong to a picture: give --image too")
    if args.image is not None and not (args.mask or args.box):
        parser.error("where to look? give --mask or --box")
    try:
        run(args)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        parser.exit(1, f"zero_shot_region: {error}\n")


def run(args: argparse.Namespace) -> None:
    if args.image is None:
        image, masks = sample()
    else:
        image = upright(args.image)
        masks = list(read(image, args.mask)[1].numpy()) if args.mask else []
        masks += [alpha_clip.box_mask(box, image.size[::-1]) for box in args.box]
    model, preprocess = alpha_clip.load(args.model, device=args.device)
    shares = probabilities(model, preprocess, image, masks, args.labels, args.geometry)
    rows = ["whole picture", *(f"region {k}" for k in range(1, len(masks) + 1))]
    print(table(rows, args.labels, shares))
    figure(image, masks, rows, args.labels, shares).save(args.out)
    print(f"figure: {args.out}")


if __name__ == "__main__":
    main()
