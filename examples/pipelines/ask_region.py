"""Ask LLaVA about a region of a picture.

python examples/pipelines/ask_region.py         # small and offline: it shows the mechanism, and talks nonsense
python examples/pipelines/ask_region.py --next  # LLaVA-Next, whose tiles have tiles of the mask

At full size, which has not been tried (15 GB to download, and a GPU):

python examples/pipelines/ask_region.py --model llava-hf/llava-1.5-7b-hf --alpha grit20m --tokens 100 \
    --image photo.jpg --box 40 60 200 220 --question "What is this?"
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
    parser.add_argument("--next", action="store_true", help="use LLaVA-Next for the small model")
    parser.add_argument("--question", default="what is in this picture?")
    args = parser.parse_args(argv)
    with region.one_line_errors(parser):
        image, mask = region.read(parser, args)
        model, prepare = speakers.load(args, small.llava_next if args.next else small.llava)
        text = speakers.question(prepare, args.question)
        for name, answer in speakers.answers(model, prepare, image, mask, text, args.tokens):
            print(f"{name + ':':<15}{answer}")


if __name__ == "__main__":
    main()
