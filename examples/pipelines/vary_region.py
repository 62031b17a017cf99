"""Make new pictures from a region of one, with SD image variation, Stable UnCLIP or an IP-Adapter.

python examples/pipelines/vary_region.py                # small and offline: it shows the mechanism, and paints noise
python examples/pipelines/vary_region.py --kind unclip  # ... or ip-adapter

At full size, which has not been tried (5 GB to download and more, and a GPU):

python examples/pipelines/vary_region.py --model lambdalabs/sd-image-variations-diffusers --alpha grit20m --steps 50 \
    --image photo.jpg --box 40 60 200 220
python examples/pipelines/vary_region.py --kind unclip --model stabilityai/stable-diffusion-2-1-unclip-small \
    --alpha grit20m --steps 20 --image photo.jpg --box 40 60 200 220
python examples/pipelines/vary_region.py --kind ip-adapter --model my_sd/ --adapter h94/IP-Adapter --steps 50 \
    --image photo.jpg --box 40 60 200 220

The last one's image encoder is OpenCLIP's ViT-H, for which no alpha weights are released: `my_sd/` is a pipeline with
its own, saved with `save_pretrained`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import region
import small
import torch
from PIL import Image

from alpha_clip.errors import IncompatibleCheckpoint
from alpha_clip.integrations import focus, from_pretrained, load_alpha_weights, processor_with_mask

CLASSES = {
    "variation": diffusers.StableDiffusionImageVariationPipeline,
    "unclip": diffusers.StableUnCLIPImg2ImgPipeline,
    "ip-adapter": diffusers.StableDiffusionPipeline,
}
SMALL = {"variation": small.image_variation, "unclip": small.unclip, "ip-adapter": small.ip_adapter}


def load(args: argparse.Namespace) -> Any:
    """Load a pipeline from the Hub or a folder, with alpha weights."""
    cls = CLASSES[args.kind]
    if args.alpha is None:
        pipe: Any = from_pretrained(cls, args.model)
        region.check_alpha(pipe.image_encoder, args.model)
    else:
        pipe = cls.from_pretrained(args.model)
        try:
            load_alpha_weights(pipe.image_encoder, args.weights, args.alpha)
        except IncompatibleCheckpoint as error:
            raise SystemExit(f"{args.weights} {args.alpha} does not fit {args.model}: {error}") from None
    if args.kind == "ip-adapter":
        pipe.load_ip_adapter(args.adapter, subfolder="models", weight_name="ip-adapter_sd15.safetensors")
    return pipe.to(args.device)


def vary(
    pipe: Any, kind: str, image: Image.Image, mask: np.ndarray | None, *, prompt: str, steps: int, seed: int
) -> Image.Image:
    """Make a new picture from the part of `image` inside `mask`, or from all of it."""
    options: dict[str, Any] = {"ip_adapter_image" if kind == "ip-adapter" else "image": image}
    if kind != "variation":
        options["prompt"] = prompt
    with nullcontext() if mask is None else focus(pipe.image_encoder, as_seen(pipe, image, mask)):
        made = pipe(**options, num_inference_steps=steps, generator=torch.Generator().manual_seed(seed))
    picture: Image.Image = made.images[0]
    return picture


def as_seen(pipe: Any, image: Image.Image, mask: np.ndarray) -> torch.Tensor:
    """The mask as alpha that lines up with the pipeline's own pixels, (1, 1, H, W)."""
    pixels: torch.Tensor = processor_with_mask(pipe.feature_extractor)(image, mask)["pixel_values"]
    return pixels[:, 3:]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    region.add_arguments(parser)
    parser.add_argument("--kind", choices=sorted(CLASSES), default="variation")
    parser.add_argument("--model", help="a pipeline on the Hub or in a folder [a small one with random weights]")
    parser.add_argument("--alpha", help="a tag of alpha weights [those in the folder of --model]")
    parser.add_argument("--weights", default="ViT-L/14", help="the model that --alpha is a tag of")
    parser.add_argument("--adapter", default="h94/IP-Adapter", help="for --kind ip-adapter")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompt", default="a photo")
    parser.add_argument("--steps", type=region.count, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("vary_region.png"))
    args = parser.parse_args(argv)
    with region.one_line_errors(parser):
        draw(parser, args)


def draw(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    image, mask = region.read(parser, args)
    if args.model:
        pipe = load(args)
    else:
        print(region.NONSENSE)
        pipe = SMALL[args.kind]()
        load_alpha_weights(pipe.image_encoder, "tiny", "scenes")

    options = {"prompt": args.prompt, "steps": args.steps, "seed": args.seed}
    whole = vary(pipe, args.kind, image, None, **options)
    regions = {"the region": mask, "all but it": region.rest(mask)}
    if regions["all but it"] is None:
        del regions["all but it"]
        print("the region is the whole picture: there is nothing but it")
    made = [vary(pipe, args.kind, image, where, **options) for where in regions.values()]
    change = np.abs(np.asarray(made[0], float) - np.asarray(whole, float)).mean()
    print(f"pictures made from the region and from the whole picture differ by {change:.1f} of 255 a pixel")
    sheet(image, [whole, *made]).save(args.out)
    print(f"the picture, then one made from each of: all of it, {', '.join(regions)}: {args.out}")


def sheet(image: Image.Image, made: list[Image.Image], side: int = 256) -> Image.Image:
    """Put pictures side by side."""
    canvas = Image.new("RGB", (side * (1 + len(made)), side), "white")
    for i, picture in enumerate([image, *made]):
        canvas.paste(picture.resize((side, side)), (side * i, 0))
    return canvas


if __name__ == "__main__":
    main()
