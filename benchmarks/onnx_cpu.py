"""CLIP on a CPU: torch in float32 and bfloat16, ONNX Runtime in float32 and int8, and the peers. Prints tables.

    python -m benchmarks.onnx_cpu

All have the same random ViT-B/16, and must give the same features before anything is timed. They take turns, and times
are medians over the rounds. "ONNX Runtime, plain CLIP" is open_clip's model through `torch.onnx.export`. The last table
is what 8-bit weights cost in accuracy, on drawn scenes that `tiny` has never seen.

Needs pip install -e ".[bench]".
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import alpha_clip
from alpha_clip.errors import MasksIgnored
from alpha_clip.model import CLIP, convert_weights
from alpha_clip.scenes import NOUNS, draw_scene

from . import peers, tables
from .peers import VIT_B_16, Peer, assert_equal, float32_only

FIRST_SEED = 9_000_000_000  # as in examples/tiny/evaluate.py: training draws below 4e9
PAUSE = 0.02  # seconds between calls, in which the threads of the previous one stop spinning
ON_TORCH = ("open_clip", "transformers", "openai")
TOLERANCE = 1e-4  # of features, relative to their norm,
ROUNDED = {"bfloat16": 0.05, "int8": 0.2}  # ... and of those with rounded weights


# --- the ways ---


def ways(folder: Path, threads: int) -> dict[str, Peer]:
    ours = peers.ours()  # its alpha weights are zero, as the peers have none; they cost the same
    half = CLIP(*VIT_B_16).eval()
    half.load_state_dict(ours.state_dict())
    convert_weights(half, torch.bfloat16)
    made = {
        "open_clip": peers.with_open_clip(),
        "transformers": peers.with_transformers("sdpa"),
        "openai": peers.with_openai_clip(),
        "plain": peers.with_plain_onnx(folder / "plain", threads),
        "torch": masked("alpha_clip, torch, float32", ours),
        "bfloat16": masked("alpha_clip, torch, bfloat16", half),
    }
    for weights in ("float32", "int8"):
        alpha_clip.onnx.export(ours, folder / weights, int8=weights == "int8")
        served = alpha_clip.onnx.load(folder / weights, threads)
        made[weights] = masked(f"alpha_clip, ONNX, {weights}", served)
    return made


def masked(name: str, model: CLIP | alpha_clip.onnx.OnnxCLIP) -> Peer:
    """One of ours, given a mask with each image."""
    mask = torch.zeros(224, 224, dtype=torch.bool)
    mask[50:150, 60:120] = True
    return Peer(
        name, lambda image: model.encode_image(image, mask), model.encode_text, alpha_clip.tokenize, float32_only
    )


# --- the measurement ---


def tokens(count: int) -> Tensor:
    return alpha_clip.tokenize([f"a photo of {noun}" for noun in (NOUNS * 2)[:count]]).long()


def measure(made: dict[str, Peer], rounds: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Median milliseconds of wall and CPU time, by task and way."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 224, 224, generator=generator)
    tasks = {"1 image": images[:1], "8 images": images, "1 prompt": tokens(1), "80 prompts": tokens(80)}
    results = {}
    for task, x in tasks.items():
        calls = {name: way.image if "image" in task else way.text for name, way in made.items()}
        check_equal(made, {name: call(x) for name, call in calls.items()}, task)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for _ in tqdm(range(rounds), task):
            for name, call in calls.items():
                time.sleep(PAUSE)
                wall, cpu = time.perf_counter(), time.process_time()
                call(x)
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        results[task] = {n: (1e3 * median(w for w, _ in t), 1e3 * median(c for _, c in t)) for n, t in taken.items()}
    return results


def check_equal(made: dict[str, Peer], features: dict[str, Tensor], task: str) -> None:
    for name, way in made.items():
        names = ("open_clip", f"{way.name}, {task},")
        assert_equal((features["open_clip"], features[name]), names, ROUNDED.get(name, TOLERANCE))


def table(made: dict[str, Peer], results: dict[str, dict[str, tuple[float, float]]]) -> str:
    lines = ["| ms, wall / CPU | " + " | ".join(results) + " |", "|---" * (1 + len(results)) + "|"]
    for name, way in made.items():
        cells = [f"{wall:.1f} / {cpu:.1f}" for wall, cpu in (times[name] for times in results.values())]
        lines.append(f"| {way.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(made: dict[str, Peer], results: dict[str, dict[str, tuple[float, float]]]) -> str:
    lines = ["| how many times as fast, by wall / CPU time | " + " | ".join(results) + " |"]
    lines.append("|---" * (1 + len(results)) + "|")
    for name in ("float32", "int8"):
        for against, others in (("the fastest peer on torch", ON_TORCH), (made["plain"].name, ["plain"])):
            cells = []
            for times in results.values():
                wall, cpu = (min(times[other][i] for other in others) / times[name][i] for i in (0, 1))
                cells.append(f"{wall:.2f} / {cpu:.2f}")
            lines.append(f"| {made[name].name}, against {against} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# --- the accuracy ---


def accuracy(folder: Path, count: int) -> str:
    """How often the masked object is named right, among 58 nouns, as in examples/tiny/evaluate.py."""
    tiny, preprocess = alpha_clip.load("tiny", "cpu")
    models = {"torch, float32": tiny}
    for weights in ("float32", "int8"):
        alpha_clip.onnx.export(tiny, folder / f"tiny-{weights}", name="tiny", int8=weights == "int8")
        models[f"ONNX, {weights}"] = alpha_clip.onnx.load(folder / f"tiny-{weights}")
    scenes = [draw_scene(FIRST_SEED + i, preprocess.n, objects=(2, 4)) for i in range(count)]
    nouns = alpha_clip.tokenize([f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in NOUNS])
    expected = np.array([NOUNS.index(r.noun) for scene in scenes for r in scene.regions])
    shown = [preprocess(scene.image, [r.mask for r in scene.regions]) for scene in scenes]
    lines = [
        f"| `tiny`: {len(expected)} objects in {count} scenes | named right | as in torch |",
        "|---|---|---|",
    ]
    reference = None
    for label, model in models.items():
        texts = F.normalize(model.encode_text(nouns), dim=-1).T
        named = torch.cat([(model.encode_image(rgb, alpha) @ texts).argmax(dim=1) for rgb, alpha in shown]).numpy()
        reference = named if reference is None else reference
        lines.append(f"| {label} | {np.mean(named == expected):.1%} | {np.mean(named == reference):.1%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--scenes", type=int, default=1000, help="scenes to measure the accuracy on")
    args = parser.parse_args()
    peers.require()
    warnings.simplefilter("ignore", MasksIgnored)  # as the peers ignore them
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        made = ways(Path(temporary), args.threads)
        results = measure(made, args.rounds)
        print(table(made, results), ratios(made, results), accuracy(Path(temporary), args.scenes), sep="\n\n")
    print(f"\n{tables.machine(args.threads, args.rounds)}")


if __name__ == "__main__":
    main()
