"""Retrieval over a whole split: find a region's phrases among all phrases, and a phrase's regions among all regions."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..training import pictures as region_data
from ..training.records import BadSample
from ..training.shards import is_url
from . import refer
from .annotations import BadAnnotation, left_out, open_picture, segmentation
from .files import digests
from .records import Answer, Record, unpacked
from .refer import Refer
from .run import members, ranking, sum_name
from .samples import Column, Matching, Sample, Task, UnusableSample, unique_keys
from .subjects import Subject
from .tune import add_hold_back, is_held_back
from .ways import Way

METHODS = ("alpha", "alpha_crop", "alpha_box", "whole", "crop", "masked_crop", "cut_out", "alpha + crop")
TO_PHRASE, TO_REGION = "region to phrase", "phrase to region"
COLUMNS = [Column(f"{group} R@{k}", (group,), k) for group in (TO_PHRASE, TO_REGION) for k in (1, 5, 10)]
_AT_A_TIME = 512  # questions whose scores are in memory at once
_BEST = 5  # phrases that a record keeps


def of_refer(found: Refer, prompt: str = "{}") -> Task:
    """Ask about the objects of a split of REFER's data and all the phrases for them.

    Raises:
        ValueError: there is no object to ask about.
    """
    problems: Counter[str] = Counter()
    asked = []
    for picture, references in found.by_picture().items():
        size = found.instances.pictures[picture].size
        annotations = {annotation.get("id"): annotation for annotation in found.instances.of(picture)}
        masks, questions = [], []
        for reference in references:
            try:
                masks.append(segmentation(annotations.get(reference.annotation, {}), size))
            except BadAnnotation as error:
                problems[error.problem] += 1
                continue
            phrases = dict.fromkeys(reference.phrases)
            questions += [Matching(len(masks) - 1, prompt.replace("{}", phrase)) for phrase in phrases]
        if questions:
            asked.append((picture, masks, tuple(questions)))
    if not asked:
        raise ValueError(f"no object of {found.identity} can be asked about; {' '.join(left_out(problems))}")
    keys = unique_keys([found.instances.pictures[picture].file for picture, _, _ in asked])

    def read(number: int) -> Sample:
        picture, masks, questions = asked[number]
        shown = open_picture(found.path(picture), keys[number], masks)
        return Sample(keys[number], shown.image, np.stack([region.mask for region in shown.regions]), questions)

    identity = {**found.identity, "prompt": prompt}
    paths = [str(found.path(picture).resolve()) for picture, _, _ in asked]
    return Task("retrieval", keys, read, COLUMNS, ("{}",), identity, paths, left_out(problems), finish)


def of_regions(path: str | Path, prompt: str = "{}", hold_back: float = 0.0, validation: bool = False) -> Task:
    """Ask about the regions of a folder or of shards in the format for training.

    Keys that several shards share are numbered. For `hold_back` and `validation` see `coco.task`.

    Raises:
        FileNotFoundError: see `alpha_clip.training.open_data`.
        ValueError: see `alpha_clip.training.open_data`.
    """
    data = region_data.open_data(path)
    numbers = [i for i, key in enumerate(data.keys) if not hold_back or is_held_back(key, hold_back) == validation]
    names = unique_keys(data.keys)
    keys = [names[i] for i in numbers]

    def read(number: int) -> Sample:
        try:
            picture = data[numbers[number]]
        except BadSample as error:
            raise UnusableSample(str(error)) from error
        if not picture.regions:
            raise UnusableSample(f"{keys[number]}: it has no region")
        questions = tuple(Matching(k, prompt.replace("{}", region.phrase)) for k, region in enumerate(picture.regions))
        return Sample(keys[number], picture.image, np.stack([region.mask for region in picture.regions]), questions)

    if isinstance(data, region_data.RegionFolder):
        files: dict[str, Any] = {**digests(data.folder / region_data.LIST)}
        paths = [str((data.folder / key).resolve()) for key in keys]
    else:
        files = {shard.name: f"{shard.stat().st_size} bytes" for shard in data.shards}  # too many to hash first
        paths = [f"{path if is_url(str(path)) else Path(path).resolve()}: {key}" for key in keys]
    identity = {**files, "prompt": prompt, "held back": hold_back, "validation": validation}
    return Task("retrieval", keys, read, COLUMNS, ("{}",), identity, paths, finish=finish)


def finish(records: Sequence[Record], subjects: Sequence[Subject], ways: Sequence[Way]) -> list[Record]:
    """Fill in the answers of all records, now that every sample is there, and drop the features.

    Each region is asked for its phrase once, and each phrase for its region. Ranks are among the *distinct* phrases,
    or the regions, of all records; the best of several right answers counts.
    """
    known = {way.name: way for way in ways}
    models = {subject.name: subject for subject in subjects}
    summed = members(subjects)
    found: list[Record] = []
    for name in dict.fromkeys(record.way for record in records):
        of_way = [record for record in records if record.way == name]
        for model in dict.fromkeys(record.model for record in of_way):
            asked = sorted((r for r in of_way if r.model == model), key=lambda r: r.key)
            seen_by = [s.name for s in summed] if model == sum_name(summed) else [model]
            parts = [(models[m], sorted((r for r in of_way if r.model == m), key=lambda r: r.key)) for m in seen_by]
            found += _answered(asked, parts, known[name])
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,  # not a Path, which would take a slash from a URL
        metavar="DIR",
        help="folder, shards or URL in the format for training; with --dataset, the folder of REFER's files",
    )
    refer.add_arguments(parser, dataset=None)
    add_hold_back(parser)
    parser.add_argument("--prompt", default="{}", help="text around each phrase; default: nothing")


def from_arguments(args: argparse.Namespace, validation: bool = False) -> Task:
    if not args.dataset:
        return of_regions(args.data, args.prompt, args.hold_back, validation)
    if args.hold_back:
        raise ValueError("--hold-back is for data without splits: with --dataset, choose them by --validation")
    return of_refer(refer.from_arguments(args, validation), args.prompt)


def _answered(asked: Sequence[Record], seen_by: Sequence[tuple[Subject, Sequence[Record]]], way: Way) -> list[Record]:
    """Answer the records `asked` from the features that one model, or several together, left in theirs."""
    first = dict(zip((r.key for r in asked), np.cumsum([0, *(r.regions for r in asked)]).tolist(), strict=False))
    phrases = list(dict.fromkeys(answer.right for record in asked for answer in record.answers))
    number = {phrase: i for i, phrase in enumerate(phrases)}
    of_region: dict[int, set[int]] = {}
    of_phrase: dict[int, set[int]] = {}
    for record in asked:
        for answer in record.answers:
            region, phrase = first[record.key] + answer.region, number[answer.right]
            of_region.setdefault(region, set()).add(phrase)
            of_phrase.setdefault(phrase, set()).add(region)
    views = [
        (part.weight * torch.cat([unpacked(r.features[i], r.regions) for r in records]), subject.texts(phrases).cpu())
        for subject, records in seen_by
        for i, part in enumerate(way.parts)
    ]
    to_phrase = _ranked(views, of_region)
    to_region = _ranked([(texts, features) for features, texts in views], of_phrase)
    found = []
    for record in asked:
        answers = [Answer(a.right, to_region[number[a.right]][0], a.region, TO_REGION) for a in record.answers]
        for region, said in {answer.region: answer.right for answer in record.answers}.items():
            rank, best = to_phrase[first[record.key] + region]
            answers.append(Answer(said, rank, region, TO_PHRASE, tuple(phrases[i] for i in best)))
        found.append(replace(record, answers=tuple(answers), features=()))
    return found


def _ranked(views: Sequence[tuple[Tensor, Tensor]], right: dict[int, set[int]]) -> dict[int, tuple[int, list[int]]]:
    """For each question, the rank of its best right answer, and the `_BEST` best answers.

    Args:
        views: features of the questions (Q, D) and of the options (T, D); the score is the sum of their products.
        right: numbers of the right options for each question.
    """
    found = {}
    questions = sorted(right)
    for i in range(0, len(questions), _AT_A_TIME):
        part = questions[i : i + _AT_A_TIME]
        scores = torch.stack([asking[part] @ offered.T for asking, offered in views]).sum(dim=0)
        for question, row in zip(part, scores, strict=True):
            order = ranking(row, seed=str(question))
            found[question] = int(np.flatnonzero(np.isin(order, list(right[question])))[0]), order[:_BEST]
    return found
