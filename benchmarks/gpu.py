"""Image and text features on a GPU, beside open_clip and transformers (SDPA). Prints Markdown tables.

python -m benchmarks.gpu
python -m benchmarks.gpu --models ViT-B/16 --dtypes bfloat16 --batches 512 --rounds 30

ViT-B/16 and ViT-L/14@336px with the same random weights in each library, without gradients, eager and compiled
(``fullgraph=True``); 64 masks of one image; prompts. Ways take turns, and times are medians of CUDA events. The last
column is the rate as a share of the chip's, that of the fastest of several large square matrix products in the same
dtype; the FLOPs are those of the plain computation. **This has not run yet: no GPU was at hand where it was written.**
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from alpha_clip import tokenize
from alpha_clip.model import CLIP

from .load import in_transformers_names, transformers_clip
from .peers import assert_equal
from .roof import tower_flops

SIZES = {  # in the order of CLIP's arguments
    "ViT-B/16": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
    "ViT-L/14@336px": (768, 336, 24, 1024, 14, 77, 49408, 768, 12, 12),
}
OPEN_CLIP = {"ViT-B/16": "ViT-B-16-quickgelu", "ViT-L/14@336px": "ViT-L-14-336-quickgelu"}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
Encode = Callable[[Tensor], Tensor]


def models(name: str, dtype: torch.dtype) -> dict[str, tuple[Encode, Encode]]:
    """`encode_image` and `encode_text` of each library on the GPU, with the same weights."""
    torch.manual_seed(0)
    ours = CLIP(*SIZES[name]).eval()
    weights = {key: value for key, value in ours.state_dict().items() if "conv1_alpha" not in key}
    theirs, hugging = open_clip_model(name, weights), transformers_model(name, weights)
    for model in (ours, theirs, hugging):
        model.to("cuda", dtype)
    return {
        "alpha_clip": (ours.encode_image, ours.encode_text),
        "open_clip": (theirs.encode_image, theirs.encode_text),
        "transformers": (
            lambda image: hugging.get_image_features(image).pooler_output,
            lambda tokens: hugging.get_text_features(tokens).pooler_output,
        ),
    }


def open_clip_model(name: str, weights: dict[str, Tensor]) -> Any:
    import open_clip

    model = open_clip.create_model(OPEN_CLIP[name], pretrained=None).eval()
    model.load_state_dict(weights)
    return model


def transformers_model(name: str, weights: dict[str, Tensor]) -> Any:
    model = transformers_clip(SIZES[name])
    model.load_state_dict(in_transformers_names(weights))
    return model


def in_turn(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each way, measured in turn; the first calls, which compile, are not counted."""
    for _ in range(3):
        for call in ways.values():
            call()
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            events[name].append((start, end))
    return {name: median(start.elapsed_time(end) for start, end in pairs) for name, pairs in events.items()}


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several large square matrix products."""
    best = 0.0
    for n in (4096, 8192, 16384):
        a, b = torch.randn(2, n, n, device="cuda", dtype=dtype)
        milliseconds = in_turn({"product": partial(torch.matmul, a, b)}, rounds=10)["product"]
        best = max(best, 2 * n**3 / (milliseconds / 1000))
    return best


def ways(verbs: dict[str, Encode], given: Tensor, tolerance: float) -> dict[str, Callable[[], Any]]:
    """The eager and compiled calls of each library, after checking that they agree."""
    calls: dict[str, Callable[[], Any]] = {}
    for name, verb in verbs.items():
        compiled = torch.compile(verb, fullgraph=name == "alpha_clip")
        calls |= {name: partial(verb, given), f"{name}, compiled": partial(compiled, given)}
    assert_equal([call() for call in calls.values()], list(calls), tolerance)
    return calls


def measure(name: str, dtype: torch.dtype, batches: list[int], rounds: int) -> Iterator[str]:
    _, resolution, layers, width, patch, *_ = SIZES[name]
    text_width = SIZES[name][7]
    tokens_of_image = 1 + (resolution // patch) ** 2
    verbs, rate = models(name, dtype), matrix_rate(dtype)
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01

    def rows(title: str, times: dict[str, float], count: int, flops: float) -> Iterator[str]:
        for way, ms in times.items():
            yield f"| {title} | {way} | {ms:.2f} | {1000 * count / ms:.0f} | {flops / (ms / 1000) / rate:.0%} |"

    for batch in batches:
        image = torch.randn(batch, 3, resolution, resolution, device="cuda", dtype=dtype)
        calls = ways({way: verb for way, (verb, _) in verbs.items()}, image, tolerance)
        flops = batch * tower_flops(tokens_of_image, width, layers)
        yield from rows(f"{batch} images", in_turn(calls, rounds), batch, flops)

    one, masks = image[:1], torch.rand(64, resolution, resolution, device="cuda") > 0.5
    encode: Any = verbs["alpha_clip"][0]
    together = {"alpha_clip": lambda: encode(one, masks)}
    yield from rows("64 masks", in_turn(together, rounds), 64, 64 * tower_flops(tokens_of_image, width, layers))

    prompts = tokenize([f"a photo of the number {i}" for i in range(512)]).long().cuda()
    calls = ways({way: verb for way, (_, verb) in verbs.items()}, prompts, tolerance)
    yield from rows("512 prompts", in_turn(calls, rounds), 512, 512 * tower_flops(77, text_width, 12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64, 512])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device: this measures GPUs; `python -m benchmarks` measures processors")
    with torch.inference_mode():
        for name in args.models:
            for dtype in args.dtypes:
                print(f"### {name}, {dtype}\n")
                print("| what | way | ms | a second | of the matrix rate |\n|---|---|---|---|---|")
                for row in measure(name, DTYPES[dtype], args.batches, args.rounds):
                    print(row, flush=True)
                print()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.rounds} rounds")


if __name__ == "__main__":
    main()
