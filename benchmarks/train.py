"""A training step of the ViT-B/16 image tower, beside open_clip's: time and memory. Prints a table. Linux only.

python benchmarks/train.py
python benchmarks/train.py --device cuda --model ViT-L/14@336px --dtype bfloat16 --batch 64

Both have the same weights. A step is forward, a loss on the features, backward and AdamW. Each measurement is a process
of its own, and the two libraries take turns. Memory is the peak of the steps above weights, gradients and optimizer
states: on the CPU of the resident size (VmHWM), on CUDA of the allocated memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from alpha_clip.model import VisionTransformer

SIZES = {  # resolution, patch, width, layers, features
    "ViT-B/16": (224, 16, 768, 12, 512),
    "ViT-L/14": (224, 14, 1024, 24, 768),
    "ViT-L/14@336px": (336, 14, 1024, 24, 768),
}
WAYS = ("alpha_clip", "open_clip")


def tower(way: str, name: str) -> nn.Module:
    resolution, patch, width, layers, features = SIZES[name]
    torch.manual_seed(0)
    ours = VisionTransformer(resolution, patch, width, layers, width // 64, features)
    nn.init.normal_(ours.conv1_alpha.weight, std=0.02)
    if way == "alpha_clip":
        return ours
    from open_clip.transformer import QuickGELU
    from open_clip.transformer import VisionTransformer as Theirs

    theirs = Theirs(resolution, patch, width, layers, width // 64, 4.0, output_dim=features, act_layer=QuickGELU)
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if k != "conv1_alpha.weight"})
    return theirs


def measure(way: str, args: argparse.Namespace) -> dict[str, float]:
    device = torch.device(args.device)
    model = tower(way, args.model).to(device).train()
    resolution = SIZES[args.model][0]
    image = torch.randn(args.batch, 3, resolution, resolution, device=device)
    target = torch.randn(args.batch, SIZES[args.model][4], device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    alpha = (torch.rand(args.batch, 1, resolution, resolution, device=device) > 0.5,) if way == "alpha_clip" else ()

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            features = model(image, *alpha)
        loss = (features.float() - target).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()  # allocates its states
    held = memory(device, start=True)
    step()
    seconds = []
    for _ in range(args.steps):
        seconds.append(timed(step, device))
    return {"seconds": median(seconds), "memory": memory(device) - held}


def timed(step: Callable[[], Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    step().item()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memory(device: torch.device, start: bool = False) -> int:
    """With `start`, reset the peak and return the bytes in use now; without, the peak since then."""
    if device.type == "cuda":
        if start:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() if start else torch.cuda.max_memory_allocated()
    if start:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    field = "VmRSS:" if start else "VmHWM:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="ViT-B/16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16: by autocast")
    parser.add_argument("--steps", type=int, default=5, help="a run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # one run
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args)))
        return
    results: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(args.runs):
        for way in WAYS:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[way].append(json.loads(done.stdout.splitlines()[-1]))
    print("| image tower | seconds a step (median, min-max) | images/s | peak memory, MiB |\n|---|---|---|---|")
    for way, runs in results.items():
        t = sorted(run["seconds"] for run in runs)
        peak = median(run["memory"] for run in runs) / 2**20
        print(f"| {way} | {median(t):.3f}, {t[0]:.3f}-{t[-1]:.3f} | {args.batch / median(t):.1f} | {peak:.0f} |")
    pairs = list(zip(*results.values(), strict=True))
    for what in ("seconds", "memory"):
        ratios = sorted(ours[what] / theirs[what] for ours, theirs in pairs)
        print(f"{what}: {median(ratios):.2f}x open_clip's ({ratios[0]:.2f}-{ratios[-1]:.2f})")
    print(f"{args.model}, batch {args.batch}, {args.dtype}, {args.device}, {torch.get_num_threads()} threads, torch "
          f"{torch.__version__}, open_clip {version('open_clip_torch')}")  # fmt: skip


if __name__ == "__main__":
    main()
