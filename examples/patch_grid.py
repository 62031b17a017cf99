"""The grid of patch tokens that Point-E is conditioned on, of a region instead of the whole picture.

python examples/patch_grid.py
python examples/patch_grid.py --model ViT-L/14 --image photo.jpg --mask mask.png --out grid.pt

Point-E (arXiv 2212.08751) makes a cloud of points from the 256 tokens of width 1024 that CLIP ViT-L/14 has for the
patches of a picture after its last block. `--out` writes such a grid, (1, width, patches) float32.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import alpha_clip
from alpha_clip.model import ALPHA_MEAN, ALPHA_STD, CLIP


def patch_grid(model: CLIP, image: Tensor, alpha: Tensor | None = None) -> Tensor:
    """Tokens of the patches, row by row, as Point-E takes them: (B, width, N) float32; 1024 x 256 for ViT-L/14.

    They are the last block's, before `ln_post`: Point-E has a layer norm of its own. `image` and `alpha` are as
    `preprocess` returns them, or batches of such; without `alpha` the grid is of the whole picture, as Point-E's own.
    Gradients go through it, to the alpha weights and to `alpha` too.
    """
    tokens = model.visual.tokens(image, alpha)[:, 1:]  # (B, N, width): all but the class token
    return tokens.transpose(1, 2).float().contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help=f"one of {alpha_clip.available_models()}, or a file")
    parser.add_argument("--image", type=Path, help="a picture; without it, the one in the package, and its objects")
    parser.add_argument("--mask", type=Path, help="a picture of the mask, white where to look")
    parser.add_argument("--out", type=Path, help="file for the grid of the first mask, for torch.load")
    args = parser.parse_args()
    if (args.image is None) != (args.mask is None):
        parser.error("--image and --mask belong together: give both or none")
    if args.image is None:
        assets = Path(str(files("alpha_clip"))) / "assets"
        image, numbered = assets / "sample.png", np.asarray(Image.open(assets / "sample_masks.png"))
        masks = [numbered == i for i in range(1, numbered.max() + 1)]
    else:
        image, masks = args.image, [args.mask]
    try:
        compare(args.model, image, masks, args.out)
    except (OSError, ValueError, RuntimeError) as error:
        parser.exit(1, f"patch_grid: {error}\n")


@torch.no_grad()
def compare(name: str, image: Path, masks: list[Any], out: Path | None) -> None:
    """Print how far each mask moves the tokens, and write the grid of the first."""
    model, preprocess = alpha_clip.load(name)
    rgb, alphas = preprocess(image, masks)
    whole, grids = patch_grid(model, rgb), patch_grid(model, rgb, alphas)
    print(f"grid of one region: {tuple(grids[:1].shape)}\n")
    print("cosine of a patch's token with the whole picture's, mean\nregion  under the mask  elsewhere")
    side = round(grids.shape[-1] ** 0.5)
    covered = F.adaptive_avg_pool2d(alphas * ALPHA_STD + ALPHA_MEAN, side).flatten(1)  # (K, N)
    for k, (grid, share) in enumerate(zip(grids, covered, strict=True), 1):
        same = F.cosine_similarity(grid, whole[0], dim=0)  # (N,)
        under = share.to(same.device) > 0.5
        print(f"{k:>6}  {same[under].mean():>14.2f}  {same[~under].mean():>9.2f}")
    if out:
        torch.save(grids[:1].cpu(), out)
        print(f"grid: {out}")


if __name__ == "__main__":
    main()
