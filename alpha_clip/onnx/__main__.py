"""Export a model to ONNX, to be served on CPUs by ONNX Runtime.

    python -m alpha_clip.onnx ViT-B/16 --out served
    python -m alpha_clip.onnx tiny --out served --int8

Then, in Python: alpha_clip.onnx.load("served")
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from ..api import load
from .export import export
from .folder import files


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m alpha_clip.onnx", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="what alpha_clip.load takes: a name or a path")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new or an empty folder")
    parser.add_argument(
        "--alpha", default="auto", help='alpha weights, a tag or a file; "None": plain CLIP; default: the best released'
    )
    parser.add_argument("--int8", action="store_true", help="8-bit weights: smaller, faster, less exact")
    args = parser.parse_args(arguments)
    try:
        model, _ = load(args.model, "cpu", alpha_vision_ckpt_pth=args.alpha, dtype=torch.float32)
        similarities = export(model, args.out, name=args.model, int8=args.int8)
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        parser.error(str(error))
    size = sum(file.stat().st_size for file in files(args.out)) / 1e6
    weights = "int8" if args.int8 else "float32"
    print(f"{args.model} in {weights}: {size:.0f} MB in {args.out}")  # noqa: T201 a command's output
    for tower, similarity in similarities.items():
        print(f"cosine to the model's {tower} features, on noise: at least {similarity:.6f}")  # noqa: T201


if __name__ == "__main__":
    main()
