"""What do processes and Ray add to the plain loop, what memory does it all need, and what would a GPU cluster cost?

OMP_NUM_THREADS=1 python -m benchmarks.pipeline
OMP_NUM_THREADS=1 python -m benchmarks.pipeline --segmenter hf:facebook/sam-vit-base --model ViT-B/16 --gpu-rate 6.7
python -m benchmarks.pipeline --quick    # one small round: that all leave the same bytes, not how fast they are

Drawn scenes, 128 pixels wide, go through annotate-grounding with the segmenter `colour`: in one process, in two, and on
a local Ray with two workers. All must leave the same bytes. Each run is a new process, and each way does few and many
samples, in turn. The line through the medians of both gives the start-up and the time of a sample. Processor time and
peak memory (PSS) are of the run's process and all that it starts, sampled every quarter of a second.

The rates of the stages are measured on scenes 512 pixels wide. From them the plan estimates the time and cost of a
million pairs of region and phrase on GPUs. The rate of a GPU and its price are assumptions, not measured here.
Linux only.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from webdataset import TarWriter

from alpha_clip.hashes import sha256
from alpha_clip.pipeline import (
    AnnotateGrounding,
    Cluster,
    Embed,
    Fitting,
    Ledger,
    Named,
    Segment,
    Stage,
    grit,
    packing,
    run,
    segmenters,
)
from alpha_clip.scenes import draw_scene

from . import tables
from .timing import in_turn

PACKAGES = ("torch", "ray", "pillow", "numpy")
BOXES = 137 / 91  # a picture of GRIT (arXiv 2306.14824, table 1: 137 million in 91 million pictures)
WORK = AnnotateGrounding("colour", duplicates="keep")

Way = Callable[[Sequence[Path], Path], Any]
WAYS: dict[str, Way] = {
    "plain loop": partial(run, WORK),
    "2 processes": partial(run, WORK, workers=2),
    "local Ray, 2 workers": partial(run, WORK, workers=2, cluster=Cluster()),
}


@dataclass(frozen=True)
class Scope:
    """How much is measured."""

    rounds: int = 3
    samples: int = 40  # in a shard
    shards: tuple[int, int] = (4, 16)  # few and many; no fewer than workers
    pictures: int = 24  # for the stages' rates


# --- shards, as img2dataset writes GRIT's ---


def of_scene(seed: int, side: int) -> tuple[str, bytes, dict[str, Any]]:
    """Key, picture and record of a drawn scene."""
    scene = draw_scene(seed, side)
    caption, expressions = ", ".join(region.phrase for region in scene.regions), []
    at = 0
    for region in scene.regions:
        corners = (np.array(region.box) / side).tolist()
        expressions.append([at, at + len(region.phrase), *corners, 0.9])
        at += len(region.phrase) + 2
    file = io.BytesIO()
    Image.fromarray(scene.image).save(file, "JPEG", quality=95)
    record = {"caption": caption, "ref_exps": expressions, "url": f"https://example.org/{seed}.jpg", "width": side}
    return f"{seed:09d}", file.getvalue(), record


def write(path: Path, samples: Iterable[tuple[str, bytes, dict[str, Any]]]) -> Path:
    with TarWriter(str(path), encoder=False) as writer:
        for key, picture, record in samples:
            writer.write({"__key__": key, "jpg": picture, "json": json.dumps(record).encode()})
    return path


def shards(folder: Path, count: int, samples: int) -> list[Path]:
    """Write shards of the same scenes under different keys."""
    scenes = [of_scene(seed, 128) for seed in range(samples)]
    return [
        write(folder / f"{k:05d}.tar", ((f"{k}-{key}", *rest) for key, *rest in scenes))  # type: ignore[misc]
        for k in range(count)
    ]


# --- what processes and Ray add ---


def contents(folder: Path) -> dict[str, str]:
    """The hashes of a run's files."""
    return {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()}


def do(way: Way, of: Sequence[Path], folder: Path) -> None:
    """Run one way in a new folder, and assert that it leaves the files of the first way that did these shards."""
    expected = folder / f"{len(of)}.json"
    with tempfile.TemporaryDirectory(dir=folder) as out:
        way(of, Path(out))
        files = contents(Path(out))
    if not expected.exists():
        expected.write_text(json.dumps(files))
    assert files == json.loads(expected.read_text()), "the bytes differ from those of the plain loop"


def line_through(few: tuple[float, float], many: tuple[float, float]) -> tuple[float, float]:
    """Start and slope of the line through two (size, seconds)."""
    slope = (many[1] - few[1]) / (many[0] - few[0])
    return few[1] - slope * few[0], slope


@dataclass(frozen=True)
class Spent:
    """What a run takes."""

    wall: float  # seconds
    cpu: float  # seconds of all its processes
    memory: float  # bytes at its peak


def processes(root: int) -> Iterator[tuple[int, float]]:
    """A process and all its descendants, with the processor seconds of each so far."""
    children: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended
            fields = stat.read_text().rpartition(")")[2].split()
            number = int(stat.parent.name)
            children.setdefault(int(fields[1]), []).append(number)
            seconds[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    left = [root]
    while left:
        number = left.pop()
        left += children.get(number, [])
        if number in seconds:
            yield number, seconds[number]


def held(root: int) -> int:
    """Bytes held by a process and all its descendants, each page counted once (PSS)."""
    size = 0
    for number, _ in processes(root):
        with suppress(OSError):
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
            size += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return size


def watched(way: str, of: Sequence[Path], folder: Path) -> Spent:
    """Run one way in a new process, and measure it."""
    process = multiprocessing.get_context("spawn").Process(target=do_as, args=(way, of, folder))
    start = time.perf_counter()
    process.start()
    most, seconds = 0, dict[int, float]()
    while process.is_alive():
        most = max(most, held(process.pid or 0))
        seconds.update(processes(process.pid or 0))
        process.join(0.25)
    assert process.exitcode == 0
    return Spent(time.perf_counter() - start, sum(seconds.values()), most)


def do_as(way: str, of: Sequence[Path], folder: Path) -> None:
    do(WAYS[way], of, folder)


def overhead(of: Sequence[Path], folder: Path, scope: Scope, ways: Sequence[str]) -> str:
    spent: dict[tuple[str, int], list[Spent]] = {(way, count): [] for way in ways for count in scope.shards}
    for _ in range(scope.rounds):
        for (way, count), runs in spent.items():
            runs.append(watched(way, of[:count], folder))
    few, many = (count * scope.samples for count in scope.shards)
    rows = ["| way | start-up, s | samples/s | processor ms a sample | of that, above the plain loop "]
    rows[0] += f"| MiB, {few} samples | MiB, {many} samples |"
    rows.append("|---|---|---|---|---|---|---|")
    plain = 0.0
    for way in ways:

        def typical(of: str, way: str = way) -> tuple[float, float]:
            first, last = (median(getattr(run, of) for run in spent[way, count]) for count in scope.shards)
            return first, last

        walls, cpus, memories = (typical(of) for of in ("wall", "cpu", "memory"))
        start, slope = line_through((few, walls[0]), (many, walls[1]))
        ms = 1000 * line_through((few, cpus[0]), (many, cpus[1]))[1]
        plain = plain or ms
        added = "" if way == ways[0] else f"{ms - plain:+.2f} ms, {ms / plain - 1:+.0%}"
        sizes = " | ".join(f"{size / 2**20:.0f}" for size in memories)
        rows.append(f"| {way} | {start:.1f} | {1 / slope:.0f} | {ms:.2f} | {added} | {sizes} |")
    return "\n".join([*rows, "", f"{scope.samples} samples in a shard. All ways left the same bytes."])


# --- stages ---


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """Median processor seconds of a call."""
    return median(in_turn({"": call}, rounds)[""].cpu)


def rates(folder: Path, scope: Scope, names: Sequence[str], model: str) -> dict[str, float]:
    """Processor seconds a picture of each stage."""
    shard = write(folder / "large.tar", (of_scene(seed, 512) for seed in range(scope.pictures)))
    samples = list(grit.read(shard, Ledger()))
    taken = {"reading": seconds(lambda: list(grit.read(shard, Ledger())), scope.rounds)}
    masked = samples
    for name in names:
        segment = Segment(segmenters.find(name, "cpu"))
        taken[f"segmenting, {name}"] = seconds(partial(segment, samples, Ledger()), 1)
        masked = segment(samples, Ledger()) if name == "colour" else masked
    filters: list[Stage] = [Named(WORK.score, WORK.words), Fitting(WORK.area, WORK.iou)]
    taken["filters"] = seconds(lambda: [stage(masked, Ledger()) for stage in filters], scope.rounds)

    def writing() -> None:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            packing.write(masked, file, Ledger())
            sha256(Path(file.name))

    taken["writing"] = seconds(writing, scope.rounds)
    run(WORK, [shard], folder / "large")
    embed = Embed(model, device="cpu").prepare()
    annotated = folder / "large" / shard.name
    taken[f"embedding, {model}, with reading and writing"] = seconds(
        lambda: embed(annotated, io.BytesIO(), Ledger()), scope.rounds
    )
    return {name: each / len(samples) for name, each in taken.items()}


def stages(taken: Mapping[str, float]) -> str:
    rows = ["| stage | processor ms a picture | pictures/s of a core |", "|---|---|---|"]
    rows += [f"| {name} | {1000 * each:.2f} | {1 / each:.0f} |" for name, each in taken.items()]
    return "\n".join(rows)


# --- the plan ---


@dataclass(frozen=True)
class Plan:
    """Workers with a share of a GPU each, which process whole shards one after the other.

    In a worker, processor and GPU work in turn; the workers of one GPU take turns at it.
    """

    cpu: float  # seconds of a worker for each picture, without the model
    gpu_rate: float  # pictures a second that the model does on one GPU
    price: float  # of a GPU for an hour
    workers: int = 1  # for each GPU
    pairs: float = BOXES  # of a picture
    shard: int = 10_000  # pictures in a shard, as img2dataset makes them
    start: float = 60  # seconds until a worker has its model

    def rate(self) -> float:
        """Pictures a second of one worker."""
        return min(1 / (self.cpu + 1 / self.gpu_rate), self.gpu_rate / self.workers)

    def hours(self, pairs: float, gpus: int) -> float:
        """Hours until the last shard is done; if shards do not divide evenly, some workers wait for others."""
        count = math.ceil(pairs / self.pairs / self.shard)
        in_turn = math.ceil(count / (gpus * self.workers))
        return (self.start + in_turn * self.shard / self.rate()) / 3600

    def cost(self, pairs: float, gpus: int) -> float:
        """Price of all GPUs until the last shard is done."""
        return self.hours(pairs, gpus) * gpus * self.price


def planned(plans: Sequence[Plan]) -> str:
    rows = ["| GPUs | pictures in a shard | hours, estimated | cost, estimated |", "|---|---|---|---|"]
    for gpus in (1, 8, 64):
        for plan in plans:
            hours, cost = plan.hours(1e6, gpus), plan.cost(1e6, gpus)
            rows.append(f"| {gpus} | {plan.shard} | {hours:.2f} | {cost:.0f} |")
    plan = plans[0]
    notes = [
        f"Estimates, for a million pairs of a region and its phrase, {plan.pairs:.2f} of a picture.",
        f"Measured: {1000 * plan.cpu:.1f} ms of a core a picture for reading, filters and writing.",
        f"Assumed: {plan.gpu_rate:g} pictures/s of a GPU in the model, {plan.price:g} for its hour,",
        f"{plan.start:g} s until a worker has its model, storage that keeps up. Workers on a GPU: {plan.workers}.",
    ]
    return "\n".join([*rows, "", *notes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small round")
    parser.add_argument("--rounds", type=int, default=Scope.rounds, help="rounds of each way; %(default)s")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=WAYS,
        default=list(WAYS),
        help="ways to run; the first is what the others are compared with",
    )
    parser.add_argument("--segmenter", default="colour", help="segmenter to time besides `colour`, such as hf:FOLDER")
    parser.add_argument("--model", default="tiny", help="model to time in `embed`; %(default)s")
    parser.add_argument("--gpu-rate", type=float, default=6.7, help="pictures/s of SAM ViT-H on a GPU, an assumption: "
                        "its authors report 0.15 s on an A100; %(default)s")  # fmt: skip
    parser.add_argument(
        "--price", type=float, default=2.5, help="price of a GPU for an hour, an assumption; %(default)s"
    )
    parser.add_argument("--per-gpu", type=int, default=1, help="workers on each GPU, two for --gpus 0.5; %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    scope = Scope(1, 4, (2, 6), 4) if args.quick else Scope(args.rounds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        of = shards(folder, scope.shards[1], scope.samples)
        print(f"{overhead(of, folder, scope, args.ways)}\n", flush=True)
        taken = rates(folder, scope, list(dict.fromkeys(["colour", args.segmenter])), args.model)
    print(f"{stages(taken)}\n")
    cpu = sum(taken[name] for name in ("reading", "filters", "writing"))
    plans = [Plan(cpu, args.gpu_rate, args.price, args.per_gpu, shard=size) for size in (10_000, 1_000)]
    print(f"{planned(plans)}\n\n{tables.machine(1, scope.rounds, PACKAGES)}")


if __name__ == "__main__":
    main()
