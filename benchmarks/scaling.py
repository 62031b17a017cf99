"""How do time and memory grow with batch, masks, resolution and text length? Tables, exponents fitted. Linux only.

python -m benchmarks.scaling
python -m benchmarks.scaling --axes text resolution --rounds 3

The model is a ViT-B/16 with random weights, in float32, without gradients. Memory is the highest resident size (VmHWM)
above that before the call. An exponent e means that the figure grows as size^e. It is fitted by least squares on the
logarithms of the upper half of the sizes, where the constant cost of a call matters less. Nothing should grow faster
than the FLOPs of the plain computation, whose exponent is printed too.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from alpha_clip.model import CLIP

from .load import memory
from .peers import ours
from .roof import text_flops, tower_flops
from .train import memory as resident

END = 49407


@dataclass(frozen=True)
class Axis:
    title: str
    sizes: Sequence[int]
    call: Callable[[CLIP, int], Callable[[], Any]]  # makes the call to measure for a size
    flops: Callable[[int], float]


def batch(model: CLIP, size: int) -> Callable[[], Any]:
    image = torch.randn(size, 3, 224, 224)
    return lambda: model.encode_image(image)


def masks(at_once: int | None) -> Callable[[CLIP, int], Callable[[], Any]]:
    def call(model: CLIP, size: int) -> Callable[[], Any]:
        image, alpha = torch.randn(1, 3, 224, 224), torch.rand(size, 224, 224) > 0.5
        return lambda: model.encode_image(image, alpha, batch=at_once)

    return call


def resolution(model: CLIP, size: int) -> Callable[[], Any]:
    image = torch.randn(1, 3, size, size)
    return lambda: model.encode_image(image)


def text(model: CLIP, size: int) -> Callable[[], Any]:
    tokens = torch.full((32, size), 320)
    tokens[:, -1] = END
    return lambda: model.encode_text(tokens)


def image_flops(size: int) -> float:
    return tower_flops(1 + (size // 16) ** 2, 768, 12)


AXES = {
    "batch": Axis("images in a batch", (1, 2, 4, 8, 16, 32, 64), batch, float),
    "masks": Axis("masks of one image, all at once", (1, 4, 16, 64), masks(None), float),
    "chunks": Axis("masks of one image, batch=16", (1, 4, 16, 64, 256), masks(16), float),
    "resolution": Axis("pixels a side", (224, 336, 448, 560, 672), resolution, image_flops),
    "text": Axis("tokens of each of 32 texts", (4, 8, 16, 32, 48, 64, 77), text, lambda size: text_flops(32, size)),
}


def measure(call: Callable[[], Any], rounds: int) -> tuple[float, int]:
    """Median seconds and peak bytes of a call."""
    call()
    seconds, peaks = [], []
    for _ in range(rounds):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else freed memory that was not returned would hide what the call needs
        held = resident(torch.device("cpu"), start=True)
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
        peaks.append(memory("VmHWM") - held)
    return median(seconds), max(peaks)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent e of values ~ sizes^e, fitted over the upper half of the sizes."""
    half = len(sizes) // 2
    slope, _ = np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)
    return float(slope)


def table(axis: Axis, results: Sequence[tuple[float, int]]) -> str:
    seconds, peaks = zip(*results, strict=True)
    flops = [axis.flops(size) for size in axis.sizes]
    rows = [f"| {axis.title} | seconds | MiB |", "|---|---|---|"]
    for size, (taken, peak) in zip(axis.sizes, results, strict=True):
        rows.append(f"| {size} | {taken:.3f} | {peak / 2**20:.0f} |")
    fitted = [f"{exponent(axis.sizes, values):.2f}" for values in (seconds, [max(1, peak) for peak in peaks], flops)]
    return "\n".join([*rows, "", f"exponents: time {fitted[0]}, memory {fitted[1]}, FLOPs {fitted[2]}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=1 << 30, help="leave out larger sizes")
    args = parser.parse_args()
    with torch.inference_mode():
        for name in args.axes:
            axis = AXES[name]
            sizes = [size for size in axis.sizes if size <= args.most]
            axis = Axis(axis.title, sizes, axis.call, axis.flops)
            print(table(axis, [measure(axis.call(ours(), size), args.rounds) for size in sizes]), flush=True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.rounds} rounds")


if __name__ == "__main__":
    main()
