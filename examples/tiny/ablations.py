"""The paper's ablations in small: runs from the base of `tiny`, with one thing changed in each, several seeds.

    python examples/tiny/ablations.py --out runs/ablations

Prints mean and standard deviation over the seeds. Results are kept in --out; the same command does what is missing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from data import SIZE, alpha_tensor, crop, image_tensor, with_article
from evaluate import FIRST_SEED, GREY, NUMBER, Regions, features, noun_features
from PIL import Image
from questions import ask
from tqdm import tqdm

import alpha_clip
from alpha_clip import masks
from alpha_clip.errors import MasksIgnored, WordsNeverRead, ZeroAlpha
from alpha_clip.model import CLIP, FOREGROUND
from alpha_clip.scenes import HELD_OUT, draw_scene
from alpha_clip.training import Picture, Region, Sample, TrainConfig, finetune

PAIRS = 2.5  # region phrases that a scene has on average
BATCH = 20  # pictures
Use = Literal["alpha", "phrases", "crops", "whole is 0", "nothing"]


@dataclass(frozen=True)
class Row:
    """What a run changes."""

    settings: dict[str, Any] = field(default_factory=dict)
    use: Use = "alpha"
    pictures: int = 40_000  # 100,000 pairs, of which a short run sees only some; smaller sets are repeated


PLAIN: dict[str, Any] = {
    "same_image": 0.0,
    "box": 0.0,
    "ellipse": 0.0,
    "jitter": 0.0,
}  # instead of TrainConfig's defaults
ROWS: dict[str, Row] = {
    "the base, untrained": Row(use="nothing"),
    "reference": Row(),
    "whole pictures: 0": Row({"whole": 0.0}),
    "whole pictures: 0.5": Row({"whole": 0.5}),
    "whole pictures: 1": Row({"whole": 1.0}),
    "whole pictures coded as alpha = 0": Row(use="whole is 0"),
    "blocks trained: 0 of 4": Row({"unlock_blocks": 0}),
    "blocks trained: 1 of 4": Row({"unlock_blocks": 1}),
    "blocks trained: 2 of 4": Row({"unlock_blocks": 2}),
    "blocks trained: 3 of 4": Row({"unlock_blocks": 3}),
    "100 pairs": Row(pictures=round(100 / PAIRS)),
    "1,000 pairs": Row(pictures=round(1_000 / PAIRS)),
    "region phrases without alpha": Row(use="phrases"),
    "crops": Row(use="crops"),
    "+ same-image negatives": Row({"same_image": 0.5}),
    "+ distillation": Row({"distill": 3.0, "distill_tokens": 0.1}),
    "+ jittered, boxed, elliptic masks": Row({"jitter": 0.3, "box": 0.15, "ellipse": 0.15}),
    "+ unions": Row({"union": 0.15, "same_image": 0.5}),
    "+ graded masks": Row({"graded": 0.15}),
    "+ weighted masks": Row({"weighted": 0.15}),
}
OPEN = ("reference", "+ unions", "+ graded masks", "+ weighted masks")  # rows that are asked the open questions


@dataclass(frozen=True)
class Scenes:
    """Scenes whose region phrases are the training pairs; `use` chooses the controls."""

    length: int
    seed: int
    use: Use = "alpha"

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Picture | list[Sample]:
        scene = draw_scene(self.seed + index, SIZE, objects=(1, 5), scale=(0.28, 0.6), overlap=0.3, attributes=0.2)
        regions = [region for region in scene.regions if region.noun not in HELD_OUT]
        if self.use == "alpha":
            pairs = tuple(Region(with_article(r.phrase), r.mask) for r in regions)
            return Picture(str(index), Image.fromarray(scene.image), scene.caption, pairs)
        samples = []
        for region in regions:
            picture = crop(scene.image, region.mask) if self.use == "crops" else scene.image
            mask = region.mask if self.use == "whole is 0" else np.ones_like(region.mask)
            # Without masks, the regions of a picture look the same, and must not be each other's negatives.
            alpha = None if self.use == "phrases" else alpha_tensor(mask)
            samples.append(Sample(image_tensor(picture), with_article(region.phrase), alpha))
        if not samples or np.random.default_rng([self.seed, index]).random() < 0.1 * len(samples):
            # Another picture, so that its caption is no negative that is true of these regions.
            other = draw_scene(self.seed + self.length + index, SIZE, objects=(1, 5), scale=(0.28, 0.6), attributes=0.2)
            nothing = torch.full((1, SIZE, SIZE), -FOREGROUND)
            samples = samples[1:]
            samples.append(
                Sample(image_tensor(other.image), other.caption, nothing if self.use == "whole is 0" else None)
            )
        return samples


def train(row: Row, seed: int, steps: int) -> CLIP:
    model, _ = alpha_clip.load("tiny", "cpu", alpha_vision_ckpt_pth=None)
    if row.use == "nothing":
        return model
    config = TrainConfig(
        steps, batch_size=BATCH, optimizer="muon", lr=1e-3, alpha_lr=3e-3, weight_decay=0.05, warmup=steps // 10,
        seed=seed, workers=0, **(PLAIN | row.settings),
    )  # fmt: skip
    scenes = Scenes(row.pictures, 5_000_000_000 + 10**8 * seed, row.use)
    return finetune(model, scenes, config)


def measure(model: CLIP, count: int) -> dict[str, float]:
    """Figures on `count` unseen scenes: all are shares, except for the cosine."""
    base, _ = alpha_clip.load("tiny", "cpu", alpha_vision_ckpt_pth=None)
    scenes = [draw_scene(FIRST_SEED + i, SIZE, objects=(2, 4)) for i in range(count)]
    shown, wholes, noun = Regions(), Regions(), []
    for scene in scenes:
        wholes.add("alpha = 1", scene.image)
        wholes.add("alpha = 0", scene.image, np.zeros((SIZE, SIZE), np.float32))
        for region in scene.regions:
            noun.append(NUMBER[region.noun])
            shown.add("mask", scene.image, region.mask)
            shown.add("box", scene.image, masks.box(region.mask))
            shown.add("crop, no mask", crop(scene.image, region.mask))
            shown.add("no mask", scene.image)
            shown.add("mask on grey", np.full_like(scene.image, GREY), region.mask)
    texts = noun_features(base).T
    named = {view: (features(model, v) @ texts).argmax(dim=1).numpy() for view, v in shown.views.items()}
    held_out = np.isin(noun, [NUMBER[n] for n in HELD_OUT])
    figures = {view: float((nouns == noun).mean()) for view, nouns in named.items()}
    figures["held-out, mask"] = float((named["mask"] == noun)[held_out].mean())
    for view, pictures in wholes.views.items():
        best = (features(model, pictures) @ texts).argsort(dim=1, descending=True).tolist()
        there = [{NUMBER[r.noun] for r in scene.regions} for scene in scenes]
        recall = [len(t & set(order[: len(t)])) / len(t) for t, order in zip(there, best, strict=True)]
        figures[f"recall, {view}"] = float(np.mean(recall))
    whole = wholes.views["alpha = 1"]
    figures["cosine to base"] = float((features(model, whole) * features(base, whole)).sum(dim=1).mean())
    return figures


def run(name: str, seed: int, steps: int, scenes: int, out: Path) -> None:
    """Train and measure one row with one seed, and write its figures."""
    torch.set_num_threads(1)
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # only the outer progress bar is shown
        for category in (ZeroAlpha, MasksIgnored, WordsNeverRead):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", "unlock_blocks=0")  # one of the rows
        model = train(ROWS[name], seed, steps)
        figures: dict[str, Any] = {"figures": measure(model, scenes)}
        if name in OPEN:
            figures["questions"] = ask(model, scenes)
    path = _path(out, name, seed)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"steps": steps, "scenes": scenes} | figures, indent=1))
    os.replace(part, path)


def _path(out: Path, name: str, seed: int) -> Path:
    return out / f"{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}-{seed}.json"


def report(out: Path, seeds: int) -> str:
    """Two Markdown tables: the ablations, and the open questions."""
    results = {name: [json.loads(_path(out, name, s).read_text()) for s in range(seeds)] for name in ROWS}
    columns = list(results["reference"][0]["figures"])
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, runs in results.items():
        cells = [_spread([r["figures"][c] for r in runs], percent=c != "cosine to base") for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"| | {' | '.join(f'{name} | single masks' for name in OPEN)} |", "|---" * (2 * len(OPEN) + 1) + "|"]
    for question in results["reference"][0]["questions"]:
        answers = [[r["questions"][question][k] for r in results[name]] for name in OPEN for k in (0, 1)]
        cells = [_spread(values, percent="distance" not in question) for values in answers]
        lines.append(f"| {question} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], percent: bool) -> str:
    mean, deviation = np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}" if percent else f"{mean:.3f} ± {deviation:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="folder for the results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--steps",
        type=int,
        default=200,
        help="optimizer steps of each run; a step has 20 pictures with some 50 region phrases",
    )
    parser.add_argument("--scenes", type=int, default=200, help="unseen scenes that each run is measured on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, a core each")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = {"steps": args.steps, "scenes": args.scenes}
    missing = []
    for name, seed in ((name, seed) for seed in range(args.seeds) for name in ROWS):
        if not (path := _path(args.out, name, seed)).exists():
            missing.append((name, seed))
        elif (made := {k: json.loads(path.read_text())[k] for k in wanted}) != wanted:
            parser.error(f"{path} is of a run with {made}, not {wanted}: name another --out")
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(run, name, seed, args.steps, args.scenes, args.out) for name, seed in missing]
        for done in tqdm(as_completed(runs), "runs", total=len(runs)):
            done.result()
    print(report(args.out, args.seeds))


if __name__ == "__main__":
    main()
