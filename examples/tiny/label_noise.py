"""How much label noise matters: train the alpha stage of `tiny` on shards with more or less correct masks and phrases.

    python examples/tiny/label_noise.py --out runs/label_noise

Prints what is in the shards and a table, and draws a figure. The same command does what is missing in --out.
Needs the extras `pipeline` and `eval`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from data import crop
from evaluate import FIRST_SEED, NUMBER, SIZE, Regions, features, interval, noun_features
from labels import PER_SHARD, AnnotateAndCaption, Wrong, drawn, once, quality, write_grit
from matplotlib.figure import Figure
from tqdm import tqdm

import alpha_clip
from alpha_clip import atomic
from alpha_clip.errors import MasksIgnored, WordsNeverRead, ZeroAlpha
from alpha_clip.model import CLIP
from alpha_clip.pipeline import AnnotateGrounding, inspect, run
from alpha_clip.scenes import HELD_OUT, STYLES, draw_scene
from alpha_clip.training import Picture, TrainConfig, finetune
from alpha_clip.training.check import check
from alpha_clip.training.pictures import RegionShards
from alpha_clip.training.writing import write_shards

BATCH = 20  # pictures
EXACT, COLOUR, GRIT = "exact", "masks by colour", "grit"


@dataclass(frozen=True)
class Arm:
    """Where labels come from: from the scenes, some of them made wrong, or from a pipeline."""

    masks: float = 0.0
    phrases: float = 0.0
    work: AnnotateGrounding | None = None


ARMS: dict[str, Arm] = {
    EXACT: Arm(),
    "10% wrong masks": Arm(masks=0.1),
    "30% wrong masks": Arm(masks=0.3),
    "10% wrong phrases": Arm(phrases=0.1),
    "30% wrong phrases": Arm(phrases=0.3),
    "10% wrong masks and phrases": Arm(masks=0.1, phrases=0.1),
    "30% wrong masks and phrases": Arm(masks=0.3, phrases=0.3),
    COLOUR: Arm(work=AnnotateGrounding("colour")),
    "masks by colour, words of crops": Arm(work=AnnotateAndCaption("colour", background="kept")),
    "masks by colour, words of cut-outs": Arm(work=AnnotateAndCaption("colour", background="white")),
}
View = Literal["mask", "crop", "whole"]
UNTRAINED: dict[str, View] = {"plain `tiny`, shown the crop": "crop", "plain `tiny`, shown the picture": "whole"}
LINES = ("wrong masks", "wrong phrases", "wrong masks and phrases")  # lines of the figure, at 0, 10 and 30%


@dataclass(frozen=True)
class Study:
    """The files of the study, and its size."""

    out: Path
    pictures: int  # in the shards of each arm
    steps: int  # of 20 pictures each; with enough pictures, none is seen twice
    scenes: int  # of each style, to measure on

    def shards(self, name: str) -> Path:
        return self.out / "shards" / _slug(name)

    def labels(self, name: str) -> Path:
        return self.out / f"labels-{_slug(name)}.json"

    def result(self, name: str, seed: int) -> Path:
        return self.out / f"result-{_slug(name)}-{seed}.json"

    # --- the shards ---

    def draw(self) -> None:
        """Write the shards with exact labels, and the input of the pipeline."""
        once(self.shards(EXACT), lambda part: write_shards(drawn(self.pictures), part, PER_SHARD))
        once(self.shards(GRIT), lambda part: write_grit(drawn(self.pictures), part))

    def make(self, name: str) -> None:
        arm = ARMS[name]
        if arm.work:
            run(arm.work, sorted(self.shards(GRIT).glob("*.tar")), self.shards(name))
        else:
            phrases = [[region.phrase for region in picture.regions] for picture in stored(self.shards(EXACT))]
            wrong = Wrong(phrases, arm.masks, arm.phrases)
            once(self.shards(name), lambda part: write_shards(wrong(drawn(self.pictures)), part, PER_SHARD))

    def describe(self, name: str) -> None:
        """Write what the checker says and how good the labels are, and the inspection page of a pipeline's shards."""
        folder, exact = self.shards(name), RegionShards(self.shards(EXACT))
        number = {key: k for k, key in enumerate(exact.keys)}
        # The captioner comes after every stage that may drop a region, so that regions correspond.
        named = stored(self.shards(COLOUR if ARMS[name].work else EXACT))
        measured = quality(stored(folder), named, lambda key: exact[number[key]])
        if ARMS[name].work:
            inspect(folder)
        atomic.write_text(
            self.labels(name), json.dumps({"check": str(check(RegionShards(folder))), **asdict(measured)})
        )

    # --- the runs ---

    def train(self, name: str, seed: int) -> None:
        """Train one arm with one seed from plain `tiny`, and write what it names."""
        base, _ = alpha_clip.load("tiny", "cpu", alpha_vision_ckpt_pth=None)
        model, _ = alpha_clip.load("tiny", "cpu", alpha_vision_ckpt_pth=None)
        view = UNTRAINED.get(name, "mask")
        if name in ARMS:
            config = TrainConfig(
                self.steps, batch_size=BATCH, optimizer="muon", lr=1e-3, alpha_lr=3e-3, weight_decay=0.05, distill=3.0,
                warmup=self.steps // 10, seed=seed, workers=0,
            )  # fmt: skip
            finetune(model, RegionShards(self.shards(name)), config)
        seen = {style: seen_regions(model, view, style, self.scenes) for style in STYLES}
        atomic.write_text(self.result(name, seed), json.dumps({"seen": seen, "cosine": kept(model, base, self.scenes)}))


def stored(folder: Path) -> Iterator[Picture]:
    shards = RegionShards(folder)
    return (shards[k] for k in range(len(shards)))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def seen_regions(model: CLIP, view: View, style: str, count: int) -> dict[str, list[int]]:
    """For each region of `count` unseen scenes: whether it is named right among all nouns, and its scene."""
    shown = Regions()
    for number in range(count):
        scene = draw_scene(FIRST_SEED + number, SIZE, objects=(2, 4), style=style)
        for region in scene.regions:
            picture = crop(scene.image, region.mask) if view == "crop" else scene.image
            shown.add(view, picture, region.mask if view == "mask" else None)
            shown.noun.append(NUMBER[region.noun])
            shown.scene.append(number)
    named = (features(model, shown.views[view]) @ noun_features(model).T).argmax(dim=1).tolist()
    held_out = {NUMBER[noun] for noun in HELD_OUT}
    return {
        "right": [int(a == b) for a, b in zip(named, shown.noun, strict=True)],
        "scene": shown.scene,
        "held out": [int(noun in held_out) for noun in shown.noun],
    }


def kept(model: CLIP, base: CLIP, count: int) -> float:
    """Mean cosine between the features of whole pictures (alpha = 1) before and after training."""
    shown = Regions()
    for number in range(count):
        shown.add("whole", draw_scene(FIRST_SEED + number, SIZE, objects=(2, 4)).image)
    before, after = (features(tower, shown.views["whole"]) for tower in (base, model))
    return float((before * after).sum(dim=1).mean())


# --- the report ---


class Results:
    """The results of all runs, read from disk."""

    def __init__(self, study: Study, seeds: int) -> None:
        self.seeds = seeds
        self.runs = {
            name: [json.loads(study.result(name, seed).read_text()) for seed in range(seeds if name in ARMS else 1)]
            for name in (*ARMS, *UNTRAINED)
        }

    def of(self, name: str, style: str, what: str = "right") -> np.ndarray:
        """(R,) of the regions of a style: the mean over seeds of `what`, "right", "scene" or "held out"."""
        return np.mean([run["seen"][style][what] for run in self.runs[name]], axis=0)

    def cells(self, name: str) -> list[str]:
        """The cells of a row: accuracy in each style, difference to exact labels, held-out nouns, cosine, deviation."""
        right = {style: self.of(name, style) for style in STYLES}
        scene, held_out = (self.of(name, STYLES[0], what) for what in ("scene", "held out"))
        plain, new = right[STYLES[0]], held_out > 0
        seeds = [100 * np.mean(run["seen"][STYLES[0]]["right"]) for run in self.runs[name]]
        return [
            *(interval(right[style], self.of(name, style, "scene")) for style in STYLES),
            interval(plain - self.of(EXACT, STYLES[0]), scene) if name != EXACT else "",
            interval(plain[new], scene[new]),
            f"{np.mean([run['cosine'] for run in self.runs[name]]):.3f}",
            *([f"{np.std(seeds, ddof=1):.1f}" if name in ARMS else ""] if self.seeds > 1 else []),
        ]


def table(study: Study, results: Results) -> str:
    """A Markdown table of how correct the labels are, and how well the models trained on them."""
    columns = ["labels", "regions", "IoU of masks", "IoU < 0.5", "wrong phrases", *STYLES]
    columns += [f"{STYLES[0]}, minus exact", "held-out nouns", "cosine to base"]
    if results.seeds > 1:
        columns.append("deviation of seeds")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name in results.runs:
        said = [""] * 4
        if name in ARMS:
            labels = json.loads(study.labels(name).read_text())
            said = [f"{labels['regions']:,}", f"{labels['overlap']:.2f}"]
            said += [f"{labels['misplaced']:.1%}", f"{labels['misnamed']:.1%}"]
        lines.append(f"| {' | '.join([name, *said, *results.cells(name)])} |")
    return "\n".join(lines)


def draw(study: Study, results: Results, path: Path) -> None:
    """Draw accuracy against the share of wrong labels, in a panel for each style.

    The share of a pipeline's arm is that of its wrong masks (IoU below 0.5) or wrong phrases, whichever is larger.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, len(STYLES), sharey=True)
    for panel, style in zip(panels, STYLES, strict=True):
        for marker, name in zip("osD", LINES, strict=True):
            right = [results.of(arm, style).mean() for arm in (EXACT, f"10% {name}", f"30% {name}")]
            panel.plot([0, 10, 30], 100 * np.array(right), marker + "-", label=name)
        for marker, name in zip("*Pv", [name for name, arm in ARMS.items() if arm.work], strict=True):
            labels = json.loads(study.labels(name).read_text())
            wrong = max(labels["misplaced"], labels["misnamed"])
            panel.plot(100 * wrong, 100 * results.of(name, style).mean(), f"k{marker}", label=name, markersize=8)
        for line, name in zip(("--", ":"), UNTRAINED, strict=True):
            level = 100 * results.of(name, style).mean()
            panel.axhline(level, color="grey", linestyle=line, label=name.replace("`", ""))
        panel.set(title=style + (" (as in training)" if style == STYLES[0] else " (unseen)"), ylim=(0, 100))
        panel.set_xlabel("wrong labels, % of the regions")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("regions named right, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png", dpi=110)
    os.replace(part, path)


# --- all of it ---


def _quietly(function: Callable[..., None], *arguments: Any) -> None:
    """Run in a worker process: with one thread, and without progress bars."""
    torch.set_num_threads(1)
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        for category in (ZeroAlpha, MasksIgnored, WordsNeverRead):
            warnings.simplefilter("ignore", category)
        function(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/label_noise"), help="folder for shards and results")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each arm; %(default)s")
    parser.add_argument("--pictures", type=int, default=12_000, help="pictures in the shards of each arm; %(default)s")
    parser.add_argument(
        "--steps", type=int, default=400, help=f"steps of each run, of {BATCH} pictures each; %(default)s"
    )
    parser.add_argument(
        "--scenes", type=int, default=1000, help="unseen scenes of each style to measure on; %(default)s"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; %(default)s")
    parser.add_argument("--quick", action="store_true", help="one seed and a few pictures, to see that it works")
    args = parser.parse_args()
    wanted = {"pictures": args.pictures, "steps": args.steps, "scenes": args.scenes}
    if args.quick:
        wanted, args.seeds = {"pictures": 60, "steps": 3, "scenes": 6}, 1
    study = Study(args.out, **wanted)
    args.out.mkdir(parents=True, exist_ok=True)
    if (claim := args.out / "settings.json").exists() and (made := json.loads(claim.read_text())) != wanted:
        parser.error(f"{args.out} is of a study with {made}, not {wanted}: name another --out")
    atomic.write_text(claim, json.dumps(wanted))

    runs = [(name, seed) for seed in range(args.seeds) for name in (*ARMS, *UNTRAINED) if seed == 0 or name in ARMS]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:

        def each(function: Callable[..., None], arguments: list[tuple[Any, ...]], what: str) -> None:
            jobs = [pool.submit(_quietly, function, *some) for some in arguments]
            for job in tqdm(as_completed(jobs), what, total=len(jobs)):
                job.result()

        undescribed = [(name,) for name in ARMS if not study.labels(name).exists()]
        each(study.draw, [()], "scenes")
        each(study.make, undescribed, "shards")
        each(study.describe, undescribed, "checks")
        each(study.train, [some for some in runs if not study.result(*some).exists()], "runs")

    for name in ARMS:
        print(f"{name}: {json.loads(study.labels(name).read_text())['check']}")
    print(*(f"\nto look at: {study.shards(name) / 'inspect.html'}" for name, arm in ARMS.items() if arm.work), sep="")
    results = Results(study, args.seeds)
    draw(study, results, args.out / "label_noise.png")
    print(f"\n{table(study, results)}\n\n{args.out / 'label_noise.png'}")


if __name__ == "__main__":
    main()
