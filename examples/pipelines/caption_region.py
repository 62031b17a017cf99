"""Caption a region of a picture with BLIP-2.

python examples/pipelines/caption_region.py  # small and offline: it shows the mechanism, and talks nonsense

At full size, which has not been tried: those on the Hub have EVA's ViT-g, for which no alpha weights are released
(with --alpha grit20m this says so). Train some, save the model with `save_pretrained`, and

python examples/pipelines/caption_region.py --model my_blip2/ --image photo.jpg --box 40 60 200 220 --tokens 30

The one with CLIP's ViT-L is in LAVIS: see docs/integrations.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import region
import small
import speakers


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    region.add_arguments(parser)
    speakers.add_arguments(parser)
    parser.add_argument("--prompt", default="a picture", help="the beginning of each caption")
    args = parser.parse_args(argv)
    with region.one_line_errors(parser):
        image, mask = region.read(parser, args)
        model, prepare = speakers.load(args, small.blip2_with_clip)
        for name, caption in speakers.answers(model, prepare, image, mask, args.prompt, args.tokens):
            print(f"{name + ':':<15}{'' if caption.startswith(speakers.NOT_ASKED) else args.prompt + ' '}{caption}")


if __name__ == "__main__":
    main()
