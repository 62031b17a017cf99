"""Shape a small volume until its views match a text, with and without telling the model which pixels are the thing.

python examples/render3d.py            # about a minute on 2 cores
python examples/render3d.py --quick    # seconds, and nothing to see

A cube of density and colour is rendered from random sides onto random backgrounds, and moved along the gradient of
CLIP's cosine with the text (as in Dream Fields, arXiv 2112.01455, and PureCLIPNeRF, arXiv 2209.15172, with a volume in
place of a neural field). With the mask, the rendered opacity is the model's fourth channel; without, the model sees the
whole picture. The model that guides is the model that judges: see docs/examples.md for what the figures do not say.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import normalize, to_pil_image, to_tensor

import alpha_clip
from alpha_clip.model import ALPHA_MEAN, ALPHA_STD, CLIP
from alpha_clip.scenes import NOUNS, draw_scene
from alpha_clip.search.drawing import INK, PAPER
from alpha_clip.transforms import IMAGE_MEAN, IMAGE_STD

GRID, DEPTH = 20, 16  # voxels on a side; samples along a ray
FAR = 1.75  # half of a ray's length: just more than to the cube's corners
TEXTS = ("a red apple", "a blue balloon")
SIDES = 12  # views that judge, all around
FIRST_SEED = 9_900_000_000  # of drawn scenes: training draws below 4e9


class Volume(torch.nn.Module):
    """Density and colour in the cube [-1, 1]^3, trilinear between voxels: at first a grey, thin, noisy ball."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        axis = torch.linspace(-1, 1, GRID)
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        ball = 1 - 2 * (x**2 + y**2 + z**2).sqrt()[None]  # (1, G, G, G): 0 half way out
        noise = 0.3 * torch.randn(4, GRID, GRID, GRID, generator=generator)
        self.voxels = torch.nn.Parameter(torch.cat([3 * ball, torch.zeros(3, GRID, GRID, GRID)]) + noise)

    def render(self, azimuth: Tensor, elevation: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Views along parallel rays from angles (B,) in radians.

        Returns colour times opacity, (B, 3, n, n), and opacity, (B, 1, n, n), in [0, 1]. A sample counts by its own
        opacity, 1 - exp(-density * distance), times what the samples before it let through.
        """
        points = _rays(n) @ _rotation(azimuth, elevation)[:, None]  # (B, D, n * n, 3)
        voxels = self.voxels.expand(len(azimuth), -1, -1, -1, -1)
        found = F.grid_sample(voxels, points[..., None, :], align_corners=True)[..., 0]  # (B, 4, D, n * n), 0 outside
        inside = (points.abs() <= 1).all(dim=-1)  # (B, D, n * n)
        density = 4 * F.softplus(found[:, 0]) * inside
        passed = torch.exp(-density * 2 * FAR / (DEPTH - 1)).cumprod(dim=1)  # (B, D, n * n) what gets past each sample
        before = torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1]], dim=1)
        colour = ((before - passed)[:, None] * found[:, 1:].sigmoid()).sum(dim=2)  # (B, 3, n * n)
        return colour.unflatten(-1, (n, n)), (1 - passed[:, -1:]).unflatten(-1, (n, n))


def _rays(n: int) -> Tensor:
    """Points (D, n * n, 3) in the order x, y, z, nearest first; a little more than the cube is seen."""
    across, along = torch.linspace(-1.25, 1.25, n), torch.linspace(-FAR, FAR, DEPTH)
    z, y, x = torch.meshgrid(along, across, across, indexing="ij")
    return torch.stack([x, y, z], dim=-1).flatten(1, 2)


def _rotation(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """(B, 3, 3) that takes row vectors of the camera to the volume."""
    (sa, ca), (se, ce) = (azimuth.sin(), azimuth.cos()), (elevation.sin(), elevation.cos())
    zero, one = torch.zeros_like(sa), torch.ones_like(sa)
    tilt = torch.stack([one, zero, zero, zero, ce, se, zero, -se, ce], dim=-1).unflatten(-1, (3, 3))
    turn = torch.stack([ca, zero, -sa, zero, one, zero, sa, zero, ca], dim=-1).unflatten(-1, (3, 3))
    return tilt @ turn


@dataclass(frozen=True)
class Run:
    """A text, and how the volume was shaped after it."""

    text: str
    masked: bool
    seed: int


def shape(model: CLIP, run: Run, steps: int, views: int = 4) -> Volume:
    """A volume, moved for so many steps towards the text."""
    generator = torch.Generator().manual_seed(run.seed)
    volume = Volume(generator)
    optimizer = torch.optim.Adam(volume.parameters(), lr=0.1)
    target = _text_features(model, [run.text])
    for _ in range(steps):
        azimuth = 2 * math.pi * torch.rand(views, generator=generator)
        elevation = 0.3 * torch.randn(views, generator=generator)
        colour, opacity = volume.render(azimuth, elevation, model.visual.input_resolution)
        image = colour + (1 - opacity) * backgrounds(views, colour.shape[-1], generator)
        cosines = encode(model, image, opacity if run.masked else None) @ target.T
        # Left alone, the opacity fills the picture, or goes: a fifth of it is what a thing of this size covers.
        loss = (1 - cosines).mean() + 4 * (opacity.mean() - 0.2) ** 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return volume


def encode(model: CLIP, image: Tensor, opacity: Tensor | None) -> Tensor:
    """Features (B, D) of unit length of images (B, 3, n, n) and opacities (B, 1, n, n) in [0, 1]."""
    alpha = None if opacity is None else (opacity - ALPHA_MEAN) / ALPHA_STD
    features: Tensor = model.encode_image(normalize(image, IMAGE_MEAN, IMAGE_STD), alpha)
    return F.normalize(features.float(), dim=-1)


def backgrounds(count: int, n: int, generator: torch.Generator) -> Tensor:
    """(B, 3, n, n) in [0, 1]: plain, or of large or small smooth patches, so that only the volume is always there."""
    made = []
    for patches in torch.randint(1, 7, (count,), generator=generator).tolist():
        coarse = torch.rand(1, 3, patches, patches, generator=generator)
        made.append(F.interpolate(coarse, (n, n), mode="bicubic", align_corners=False))
    return torch.cat(made).clamp(0, 1)


def clutter(count: int, n: int, noun: str) -> Tensor:
    """(B, 3, n, n) in [0, 1]: drawn scenes of two or three things that are not the noun."""
    others = [other for other in NOUNS if other != noun]
    scenes = [draw_scene(FIRST_SEED + i, n, objects=(2, 3), nouns=others) for i in range(count)]
    return torch.stack([to_tensor(scene.image) for scene in scenes])


@torch.no_grad()
def judge(model: CLIP, volume: Volume, text: str) -> list[float]:
    """The share of views all around the volume that are nearest to the text's noun, of all nouns that `tiny` knows.

    On backgrounds as in the optimisation, but others, with the mask and without; then on drawn scenes with other
    things in them, with and without. Last, the mean opacity.
    """
    nouns, noun = _text_features(model, [f"a {name}" for name in NOUNS]), text.split()[-1]
    colour, opacity = look_around(volume, model.visual.input_resolution, SIDES)
    plain = backgrounds(SIDES, colour.shape[-1], torch.Generator().manual_seed(FIRST_SEED))
    shares = []
    for background in (plain, clutter(SIDES, colour.shape[-1], noun)):
        for mask in (opacity, None):
            nearest = (encode(model, colour + (1 - opacity) * background, mask) @ nouns.T).argmax(dim=1)
            shares.append(float((nearest == NOUNS.index(noun)).float().mean()))
    return [*shares, float(opacity.mean())]


def look_around(volume: Volume, n: int, count: int) -> tuple[Tensor, Tensor]:
    """`count` views at equal angles, a little from above."""
    azimuth = 2 * math.pi * torch.arange(count) / count
    return volume.render(azimuth, torch.full((count,), 0.2), n)


@torch.no_grad()
def _text_features(model: CLIP, texts: Sequence[str]) -> Tensor:
    return F.normalize(model.encode_text(alpha_clip.tokenize(list(texts))).float(), dim=-1)


# --- what is written ---


@torch.no_grad()
def frames(volume: Volume, count: int, side: int = 112) -> list[Image.Image]:
    """Views on white, one after the other around the volume."""
    colour, opacity = look_around(volume, side, count)
    return [to_pil_image(view.clamp(0, 1)) for view in colour + 1 - opacity]


def arrange(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """Rows of views, each under its name."""
    side, font = next(iter(rows.values()))[0].width, ImageFont.load_default(14)
    width = max(len(views) for views in rows.values()) * (side + 4) + 4
    canvas = Image.new("RGB", (width, len(rows) * (side + 26)), PAPER)
    for i, (name, views) in enumerate(rows.items()):
        ImageDraw.Draw(canvas).text((6, i * (side + 26) + 4), name, INK, font)
        for j, view in enumerate(views):
            canvas.paste(view, (4 + j * (side + 4), i * (side + 26) + 24))
    return canvas


def compare(
    model: CLIP, texts: Sequence[str], seeds: int, steps: int
) -> tuple[list[str], dict[str, list[Image.Image]]]:
    """Lines of a table, and the views of the first seed's volumes, for each text with and without mask."""
    lines = [
        "| text | mask while shaping | named right: with mask | without | among things: with mask | without | opaque |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    shown = {}
    for text in texts:
        for masked in (True, False):
            volumes = [shape(model, Run(text, masked, seed), steps) for seed in range(seeds)]
            scores = torch.tensor([judge(model, volume, text) for volume in volumes])  # (seeds, 5)
            spread = zip(scores.mean(0).tolist(), scores.amin(0).tolist(), scores.amax(0).tolist(), strict=True)
            cells = " | ".join(f"{mean:.0%} ({least:.0%}-{most:.0%})" for mean, least, most in spread)
            lines.append(f"| {text} | {'opacity' if masked else 'none'} | {cells} |")
            shown[f"{text}, {'mask' if masked else 'no mask'}"] = frames(volumes[0], SIDES)
    return lines, shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", default=TEXTS, help='the last word is the noun, one of "tiny"')
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="one text, one seed, three steps")
    parser.add_argument("--out", type=Path, default=Path("render3d"), help="folder for the frames")
    args = parser.parse_args()
    if args.quick:
        args.texts, args.seeds, args.steps = args.texts[:1], 1, 3
    for name in ("seeds", "steps"):
        if (count := getattr(args, name)) < 1:
            parser.error(f"--{name} is {count}, expected 1 or more")
    for text in args.texts:
        if (text.split() or [""])[-1] not in NOUNS:
            parser.error(f"{text!r} ends in no noun that tiny knows: choose from {', '.join(NOUNS)}")

    model, _ = alpha_clip.load("tiny", "cpu")
    model.requires_grad_(False)
    start = time.perf_counter()
    lines, shown = compare(model, args.texts, args.seeds, args.steps)
    print("\n".join(lines))
    print(f"mean (least-most) over {args.seeds} seeds, {args.steps} steps, {SIDES} views each; ", end="")
    print(f"{time.perf_counter() - start:.0f} seconds")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, views in shown.items():
        stem = name.replace(", ", "-").replace(" ", "_")
        views[0].save(args.out / f"{stem}.gif", save_all=True, append_images=views[1:], duration=120, loop=0)
    arrange({name: views[::2] for name, views in shown.items()}).save(args.out / "views.png")
    print(f"frames: {args.out}/views.png and a GIF for each row")


if __name__ == "__main__":
    main()
