"""Measure what the bundled model can and cannot do, on drawn scenes it has never seen.

    python examples/tiny/evaluate.py                          # the model in the package
    python examples/tiny/evaluate.py --controls runs/tiny     # and the controls that train.py made there

Every region is named as one of all 58 nouns. Intervals are 95%, by bootstrap over scenes.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import SIZE, alpha_tensor, crop, image_tensor, with_article
from torch import Tensor
from tqdm import tqdm

import alpha_clip
from alpha_clip import masks
from alpha_clip.errors import MasksIgnored, ZeroAlpha
from alpha_clip.model import CLIP, FOREGROUND
from alpha_clip.scenes import HELD_OUT, NOUNS, STYLES, Scene, draw_scene

FIRST_SEED = 9_000_000_000  # training draws below 4e9
GREY = 128
NUMBER = {noun: i for i, noun in enumerate(NOUNS)}


@dataclass
class Regions:
    """R regions of scenes, each in several views. A view is a picture and mask as a model is shown them."""

    noun: list[int] = field(default_factory=list)
    others: list[set[int]] = field(default_factory=list)  # nouns of the scene's other objects
    silhouette: list[int] = field(default_factory=list)  # the noun whose outline the view "swap" has
    scene: list[int] = field(default_factory=list)
    on_background: list[bool] = field(default_factory=list)  # whether the view "on background" covers only background
    views: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def add(self, view: str, image: np.ndarray, mask: np.ndarray | None = None) -> None:
        whole = torch.full((1, SIZE, SIZE), FOREGROUND)
        self.views.setdefault(view, []).append((image_tensor(image), whole if mask is None else alpha_tensor(mask)))


def scene_regions(scenes: Sequence[Scene]) -> Regions:
    """All views of all objects of the scenes."""
    regions = Regions()
    for number, scene in enumerate(scenes):
        rng = np.random.default_rng(number)
        grey = np.full_like(scene.image, GREY)
        for r in scene.regions:
            noun = NUMBER[r.noun]
            other = NOUNS[int(rng.integers(1, len(NOUNS)) + noun) % len(NOUNS)]
            shape = draw_scene(int(rng.integers(2**40)), SIZE, objects=(1, 1), nouns=[other], scale=(0.8, 0.9))
            regions.noun.append(noun)
            regions.others.append({NUMBER[o.noun] for o in scene.regions} - {noun})
            regions.silhouette.append(NUMBER[other])
            regions.scene.append(number)
            regions.add("whole", scene.image)
            regions.add("mask", scene.image, r.mask)
            regions.add("box", scene.image, masks.box(r.mask))
            regions.add("ellipse", scene.image, masks.ellipse(r.mask))
            regions.add("crop", crop(scene.image, r.mask))
            regions.add("cut-out", crop(scene.image, r.mask, fill=GREY))
            regions.add("swap", scene.image, masks.lay_over(shape.regions[0].mask, r.mask))
            regions.add("mask only", grey, r.mask)
            moved, touching = masks.aside(r.mask, scene.masks.sum(axis=0))
            regions.add("on background", scene.image, moved)
            regions.on_background.append(touching < 0.02)
    return regions


@torch.no_grad()
def features(model: CLIP, views: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Features (R, D), of unit length."""
    chunks = []
    for i in range(0, len(views), 256):
        images, alphas = zip(*views[i : i + 256], strict=True)
        chunks.append(F.normalize(model.encode_image(torch.stack(images), torch.stack(alphas)), dim=-1))
    return torch.cat(chunks)


@torch.no_grad()
def noun_features(model: CLIP) -> Tensor:
    return F.normalize(model.encode_text(alpha_clip.tokenize([with_article(n) for n in NOUNS])), dim=-1)


def interval(hits: np.ndarray, scene: np.ndarray | Sequence[int]) -> str:
    """Mean in percent and its 95% bootstrap interval over scenes, since regions of one scene are not independent."""
    number = np.unique(scene, return_inverse=True)[1]
    sums = np.bincount(number, weights=hits)
    counts = np.bincount(number)
    draw = np.random.default_rng(0).integers(len(sums), size=(1000, len(sums)))
    means = sums[draw].sum(axis=1) / counts[draw].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{hits.mean():.1%} [{low:.1%}, {high:.1%}]"


def style_report(model: CLIP, base: CLIP, style: str, count: int) -> dict[str, str]:
    scenes = [draw_scene(FIRST_SEED + i, SIZE, objects=(2, 4), style=style) for i in tqdm(range(count), style)]
    regions = scene_regions(scenes)
    texts = noun_features(base).T
    noun, shape = np.array(regions.noun), np.array(regions.silhouette)
    held_out = np.isin(noun, [NUMBER[n] for n in HELD_OUT])
    named = {
        view: (features(base if view in ("crop", "cut-out") else model, shown) @ texts).argmax(dim=1).numpy()
        for view, shown in regions.views.items()
    }
    named["base, whole"] = (features(base, regions.views["whole"]) @ texts).argmax(dim=1).numpy()
    scene = np.array(regions.scene)

    rows = {"regions": f"{len(noun)} in {count} scenes"}
    for view in ("base, whole", "whole", "mask", "box", "ellipse", "crop", "cut-out"):
        rows[view] = interval(named[view] == noun, scene)
    rows["swap: content named"] = interval(named["swap"] == noun, scene)
    rows["swap: silhouette named"] = interval(named["swap"] == shape, scene)
    rows["mask only (picture grey)"] = interval(named["mask only"] == noun, scene)
    clear = np.array(regions.on_background)
    rows["mask on background: silhouette named"] = interval((named["on background"] == noun)[clear], scene[clear])
    wrong = named["mask"] != noun
    other = np.array([n in o for n, o in zip(named["mask"], regions.others, strict=True)])
    rows["errors of mask that name another object of the scene"] = (
        interval(other[wrong], scene[wrong]) if wrong.any() else "no errors"
    )
    for view in ("mask", "cut-out"):
        rows[f"held-out nouns, {view}"] = interval((named[view] == noun)[held_out], scene[held_out])
    rows |= single_objects(model, base, texts, style, count)
    rows |= whole_pictures(model, base, texts, scenes)
    return rows


def single_objects(model: CLIP, base: CLIP, texts: Tensor, style: str, count: int) -> dict[str, str]:
    scenes = [draw_scene(FIRST_SEED + 10**8 + i, SIZE, objects=(1, 1), style=style) for i in range(count)]
    noun = np.array([NUMBER[s.regions[0].noun] for s in scenes])
    shown = Regions()
    for s in scenes:
        shown.add("whole", s.image)
        shown.add("mask", s.image, s.regions[0].mask)
    rows = {}
    for name, tower, view in [
        ("base, whole", base, "whole"),
        ("whole", model, "whole"),
        ("mask", model, "mask"),
    ]:
        hits = (features(tower, shown.views[view]) @ texts).argmax(dim=1).numpy() == noun
        rows[f"scenes of one object, {name}"] = interval(hits, range(count))
    return rows


def whole_pictures(model: CLIP, base: CLIP, texts: Tensor, scenes: Sequence[Scene]) -> dict[str, str]:
    """Drift from the base at alpha = 1, and the share of a picture's k objects among its k best nouns."""
    shown = Regions()
    for s in scenes:
        shown.add("whole", s.image)
    before, after = features(base, shown.views["whole"]), features(model, shown.views["whole"])
    rows = {"cosine of alpha = 1 to the base": f"{(before * after).sum(dim=1).mean():.3f}"}
    apart = before @ before.T
    off_diagonal = ~torch.eye(len(apart), dtype=torch.bool)
    rows["cosine of different pictures, base"] = f"{apart[off_diagonal].mean():.3f}"
    for name, pictures in (("before", before), ("after", after)):
        best = (pictures @ texts).argsort(dim=1, descending=True).tolist()
        recall = []
        for s, order in zip(scenes, best, strict=True):
            there = {NUMBER[r.noun] for r in s.regions}
            recall.append(len(there & set(order[: len(there)])) / len(there))
        rows[f"recall of a picture's objects, {name}"] = interval(np.array(recall), range(len(scenes)))
    return rows


def control_report(folder: Path, base_file: Path, count: int) -> dict[str, str]:
    """Accuracy, on the first style, of the controls: trained as long from the same base, without masks or on crops."""
    regions = scene_regions([draw_scene(FIRST_SEED + i, SIZE, objects=(2, 4)) for i in range(count)])
    rows = {}
    for control, view in (("phrases", "whole"), ("crops", "crop")):
        model, _ = load(base_file, folder / f"{control}.safetensors")
        named = (features(model, regions.views[view]) @ noun_features(model).T).argmax(dim=1).numpy()
        rows[f"control: trained on {control}, shown the {view}"] = interval(named == regions.noun, regions.scene)
    return rows


def load(base: Path | str, alpha: Path | str | None) -> tuple[CLIP, object]:
    return alpha_clip.load(str(base), "cpu", alpha_vision_ckpt_pth=alpha)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny", help="name or file of the base model")
    parser.add_argument("--alpha", default="auto", help="tag or file of the alpha weights")
    parser.add_argument("--scenes", type=int, default=1000, help="scenes of each style")
    parser.add_argument("--controls", type=Path, help="folder with the controls that train.py made")
    args = parser.parse_args()
    for category in (ZeroAlpha, MasksIgnored):  # the base and the controls are plain CLIP
        warnings.simplefilter("ignore", category)

    model, _ = load(args.base, args.alpha)
    base, _ = load(args.base, None)
    columns = {style: style_report(model, base, style, args.scenes) for style in STYLES}
    print(f"\n| | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for row in columns[STYLES[0]]:
        print(f"| {row} | " + " | ".join(c[row] for c in columns.values()) + " |")
    if args.controls:
        for row, value in control_report(args.controls, args.controls / "base.safetensors", args.scenes).items():
            print(f"| {row} | {value} |" + " |" * (len(columns) - 1))


if __name__ == "__main__":
    main()
