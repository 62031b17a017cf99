"""Read a whole data set and report what is wrong with it: ``python -m alpha_clip.training.check DATA``."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import shorten

import numpy as np
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..tokenizer import shared_tokenizer
from .pictures import RegionFolder, RegionShards, open_data
from .records import BadSample, Picture

SHOWN = 5  # cases of each kind of problem that are printed
CONTEXT = 77  # tokens that CLIP reads, start and end included; SigLIP reads 64 of its own
BATCH = 16  # samples that a process hands over at once


@dataclass
class Report:
    """What `check` found."""

    samples: int = 0
    read: int = 0  # samples that could be read
    regions: int = 0  # in the samples read
    problems: dict[str, list[str]] = field(default_factory=dict)  # kind: list of "key: reason", in order of the data

    def __str__(self) -> str:
        lines = []
        for problem, cases in sorted(self.problems.items()):
            lines.append(f"{len(cases)} x {problem}")
            lines += [f"    {case}" for case in cases[:SHOWN]]
            if len(cases) > SHOWN:
                lines.append(f"    ... and {len(cases) - SHOWN} more")
        problems = sum(map(len, self.problems.values()))
        lines.append(f"{self.samples} samples, {self.read} read with {self.regions} regions; {problems} problems")
        return "\n".join(lines)

    def add(self, problem: str, key: str, reason: str) -> None:
        self.problems.setdefault(problem, []).append(f"{key}: {reason}")


@dataclass(frozen=True)
class _Finding:
    """What was found in one sample; digests stand for pictures and regions, which may occur twice."""

    key: str
    bad: BadSample | None = None
    picture: bytes = b""
    regions: tuple[tuple[str, bytes], ...] = ()  # phrase, digest of phrase and mask
    full: tuple[str, ...] = ()  # phrases whose mask is the whole picture
    long: tuple[tuple[str, int], ...] = ()  # texts longer than CLIP reads, with their number of tokens


def check(data: RegionFolder | RegionShards, workers: int = 0) -> Report:
    """Read every sample, in `workers` processes (0: in this one), and report in the data set's order.

    Of a sample that cannot be read, the first problem is reported. In those that can be read, these are problems too:
    masks that are the whole picture, texts longer than CLIP reads, a picture (its pixels) that is in two samples, and
    a phrase and mask that occur twice for the same picture.

    Raises:
        ValueError: `workers` is negative.
        ImportError: pycocotools is not installed, and the data holds RLE masks.
    """
    if workers < 0:
        raise ValueError(f"workers is {workers}, expected at least 0")
    findings: DataLoader[list[_Finding]] = DataLoader(
        _Findings(data),  # type: ignore[arg-type]
        batch_size=BATCH,
        num_workers=workers,
        collate_fn=list,
    )
    report = Report(samples=len(data))
    pictures: dict[bytes, str] = {}
    regions: dict[bytes, str] = {}
    with tqdm(total=len(data), desc="samples", disable=None) as bar:
        for batch in findings:
            for finding in batch:
                _report(report, finding, pictures, regions)
            bar.update(len(batch))
    return report


class _Findings:
    """The findings of a data set, one for each sample."""

    def __init__(self, data: RegionFolder | RegionShards) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> _Finding:
        try:
            return _finding(self.data[index])
        except BadSample as error:
            return _Finding(error.key, error)


def _finding(picture: Picture) -> _Finding:
    pixels = _digest(repr(picture.image.size).encode(), np.asarray(picture.image).tobytes())
    regions = tuple((r.phrase, _digest(pixels, r.phrase.encode(), r.mask.tobytes())) for r in picture.regions)
    full = tuple(r.phrase for r in picture.regions if r.mask.min() == 1)
    texts = dict.fromkeys(text for text in (picture.caption, *(r.phrase for r in picture.regions)) if text)
    tokens = ((text, len(shared_tokenizer().encode(text)) + 2) for text in texts)
    return _Finding(picture.key, None, pixels, regions, full, tuple((t, n) for t, n in tokens if n > CONTEXT))


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _report(report: Report, finding: _Finding, pictures: dict[bytes, str], regions: dict[bytes, str]) -> None:
    if finding.bad is not None:
        report.add(finding.bad.problem, finding.key, finding.bad.reason)
        return
    report.read += 1
    report.regions += len(finding.regions)
    for phrase in finding.full:
        report.add("full mask", finding.key, f"the mask of {phrase!r} is the whole picture; give it as the caption")
    for text, tokens in finding.long:
        start = shorten(text, 60, placeholder="...")
        report.add(
            "long text", finding.key, f"{start!r} has {tokens} tokens; CLIP reads {CONTEXT}, and the rest is lost"
        )
    if finding.picture in pictures:
        report.add("same picture", finding.key, f"as {pictures[finding.picture]}")
    pictures.setdefault(finding.picture, finding.key)
    for phrase, digest in finding.regions:
        if digest in regions:
            report.add("same region", finding.key, f"{phrase!r} with the same mask as in {regions[digest]}")
        regions.setdefault(digest, finding.key)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the data set that the arguments name. Returns the exit status: 1 if there are problems, else 0."""
    parser = argparse.ArgumentParser("python -m alpha_clip.training.check", description=__doc__)
    parser.add_argument("data", help="folder of regions.jsonl or *.tar, a shard, or a range such as {000..009}.tar")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; default: %(default)s")
    chosen = parser.parse_args(arguments)
    try:
        report = check(open_data(chosen.data), chosen.workers)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{report}\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
