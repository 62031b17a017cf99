"""Swap CLIP for Alpha-CLIP in a captioning pipeline, and measure what changes.

python examples/pipelines/swap_clip.py  # a small BLIP-2 with CLIP's tower, offline, on drawn scenes

At full size, which has not been tried (15 GB to download, and a GPU):

python examples/pipelines/swap_clip.py --model llava-hf/llava-1.5-7b-hf --alpha grit20m \
    --image photo.jpg --box 40 60 200 220
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import region
import small
import speakers
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from alpha_clip.integrations import ProcessorWithMask, processor_with_mask
from alpha_clip.scenes import draw_scene


@dataclass(frozen=True)
class Look:
    """What a model computes from a picture."""

    tokens: Tensor  # (tiles, N, width), patches only, of the last block but one
    caption: str
    logits: Tensor  # (V,), for the first word


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    region.add_arguments(parser)
    speakers.add_arguments(parser)
    parser.add_argument("--pictures", type=region.count, default=20, help="the number of drawn scenes, without --image")
    parser.add_argument("--prompt", default="what is in this picture?")
    args = parser.parse_args(argv)
    if args.model and args.alpha is None:
        parser.error("which weights go in? give --alpha")
    with region.one_line_errors(parser):
        measure(parser, args)


def measure(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    given = any((args.image, args.mask, args.box))
    pictures = [region.read(parser, args)] if given else scenes(args.pictures)
    if args.model:
        model, prepare = speakers.plain(args), speakers.processor(args)
        weights, alpha, text = args.weights, args.alpha, speakers.question(prepare, args.prompt)
    else:
        print(region.NONSENSE)
        model, plain = small.blip2_with_clip()
        prepare, weights, alpha, text = processor_with_mask(plain), "tiny", "scenes", args.prompt

    before = [look(model, prepare, image, None, text, args.tokens) for image, _ in pictures]
    modules, keys = architecture(model)
    speakers.swap(model, weights, alpha)
    whole = [look(model, prepare, image, None, text, args.tokens) for image, _ in pictures]
    masked = [look(model, prepare, image, mask, text, args.tokens) for image, mask in pictures]
    inside = [patches_inside(model, prepare, image, mask, text) for image, mask in pictures]

    print(f"\n{weights} {alpha} for the image tower of {type(model).__name__}; pictures: {len(pictures)}\n")
    print(table(before, whole, masked, inside))
    print("\nThe first picture's caption: " + "; ".join(shown(before, whole, masked)))
    print("\nWhat is new in the model:")
    print("\n".join(changes(modules, keys, model)))


def scenes(count: int) -> list[tuple[Image.Image, np.ndarray]]:
    """Drawn scenes of two or three objects, each with the mask of one."""
    drawn = [draw_scene(seed, 96, objects=(2, 3)) for seed in range(count)]
    return [(Image.fromarray(scene.image), scene.regions[0].mask) for scene in drawn]


def tower(model: Any) -> Any:
    return model.vision_model if hasattr(model, "vision_model") else model.model.vision_tower


def pixels_of(model: Any, prepare: ProcessorWithMask, image: Image.Image, mask: np.ndarray | None, text: str) -> Tensor:
    """(tiles, 3 or 4, H, W)"""
    pixels: Tensor = prepare(image, mask, text=text)["pixel_values"].to(model.device, model.dtype)
    return pixels.flatten(0, -4)


@torch.no_grad()
def look(
    model: Any, prepare: ProcessorWithMask, image: Image.Image, mask: np.ndarray | None, text: str, tokens: int
) -> Look:
    caption, logits = speakers.say(model, prepare, image, mask, text, tokens)
    pixels = pixels_of(model, prepare, image, mask, text)
    states = tower(model)(pixels, output_hidden_states=True).hidden_states
    return Look(states[-2][:, 1:], caption, logits)


def patches_inside(model: Any, prepare: ProcessorWithMask, image: Image.Image, mask: np.ndarray, text: str) -> Tensor:
    """Whether each patch is at least half inside the mask, (tiles, N)."""
    alpha = pixels_of(model, prepare, image, mask, text)[:, 3:]
    patch = tower(model).config.patch_size
    return F.avg_pool2d(alpha.float(), patch).flatten(1) >= 0


def table(before: list[Look], whole: list[Look], masked: list[Look], inside: list[Tensor]) -> str:
    """A table that compares patch tokens, captions and logits with those of the plain tower."""

    def cosines(looks: list[Look], where: list[Tensor]) -> str:
        rows = [F.cosine_similarity(a.tokens, b.tokens, dim=-1) for a, b in zip(before, looks, strict=True)]
        every = torch.cat([row[w] for row, w in zip(rows, where, strict=True)]).float()
        if not len(every):
            return "no such patch"
        return f"{every.mean():.3f} (least {every.min():.3f})"

    def captions(looks: list[Look]) -> str:
        return f"{sum(a.caption != b.caption for a, b in zip(before, looks, strict=True))} of {len(looks)}"

    def logits(looks: list[Look]) -> str:
        moved = [(a.logits - b.logits).abs().mean() for a, b in zip(before, looks, strict=True)]
        spread = torch.stack([a.logits.float().std() for a in before]).mean()
        return f"{torch.stack(moved).float().mean() / spread:.3f}"

    places = {
        "cosine of penultimate patch tokens, mean": [torch.ones_like(where) for where in inside],
        "... inside the mask": inside,
        "... outside": [~where for where in inside],
    }
    lines = [f"| {name} | {cosines(whole, where)} | {cosines(masked, where)} |" for name, where in places.items()]
    lines += [
        f"| captions that differ | {captions(whole)} | {captions(masked)} |",
        f"| change of a logit of the first word, in standard deviations | {logits(whole)} | {logits(masked)} |",
    ]
    return "\n".join(["| against the plain tower | alpha = 1 | with a mask |", "|---|---|---|", *lines])


def shown(before: list[Look], whole: list[Look], masked: list[Look]) -> list[str]:
    named = {"plain": before, "alpha = 1": whole, "with a mask": masked}
    return [f'{name} "{looks[0].caption}"' for name, looks in named.items()]


def architecture(model: nn.Module) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """The type of each module and the shape of each weight, by name."""
    modules = {name: type(module).__name__ for name, module in model.named_modules()}
    return modules, {key: tuple(value.shape) for key, value in model.state_dict().items()}


def changes(modules: dict[str, str], keys: dict[str, tuple[int, ...]], model: nn.Module) -> list[str]:
    """A line for each difference from an earlier `architecture`."""
    new_modules, new_keys = architecture(model)
    lines = [
        f"- module {name}: {modules.get(name, 'none')} -> {new_modules.get(name, 'none')}"
        for name in sorted(modules.keys() | new_modules.keys())
        if modules.get(name) != new_modules.get(name)
    ]
    lines += [
        f"- weight {key}: {keys.get(key, 'none')} -> {new_keys.get(key, 'none')}"
        for key in sorted(keys.keys() | new_keys.keys())
        if keys.get(key) != new_keys.get(key)
    ]
    more = sum(math.prod(shape) for shape in new_keys.values()) - sum(math.prod(shape) for shape in keys.values())
    return [*lines, f"- {more} parameters more"]


if __name__ == "__main__":
    main()
