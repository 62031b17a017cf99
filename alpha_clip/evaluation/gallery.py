"""Choose pictures for the report where one way of looking is right and another wrong.

For each kind of case, questions come from the groups of the data in turn, and within a group in the order of a
checksum of the sample's name. Nothing is picked by hand, and the same run always shows the same pictures.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from .records import Answer
from .run import Pair, Run
from .samples import Naming, Referring, Sample, UnusableSample

SIDE = 320  # pixels at the longer side of a shown picture
EACH = 8  # pictures of each kind
TOP = 3
_DIMMED = 0.4  # brightness around a region
_RIGHT, _CHOSEN = (255, 214, 10), (230, 70, 0)  # outlines: what is meant, and what was chosen instead
_HALO = (20, 20, 20)


@dataclass(frozen=True)
class Case:
    """A question, by its sample and its number there."""

    key: str
    number: int


@dataclass(frozen=True)
class Reply:
    """The answer of one way of looking."""

    way: str
    rank: int
    top: Sequence[tuple[str, bool]]  # the best names, and whether they are right
    main: bool  # whether the case compares this way

    @property
    def right(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class Card:
    """A picture with its regions drawn, and the answers."""

    key: str
    group: str
    picture: str  # data URI
    width: int
    height: int
    alt: str
    title: str  # what is named or meant
    question: str
    replies: Sequence[Reply]


@dataclass(frozen=True)
class Kind:
    """All cases of one kind, and some of them as pictures."""

    title: str
    count: int
    cards: Sequence[Card]
    unread: int  # pictures that could be read during the run, but no longer


def kinds(run: Run) -> list[Kind]:
    """Sort the questions by which of two ways is right: the first, and `crop` or else the second."""
    if not run.records:
        return []
    chosen = contrast(run.ways())
    answers = {pair: {record.key: record.answers for record in run.of(*pair)} for pair in run.ways()}
    groups = {case: answers[chosen[0]][case.key][case.number].group for case in _cases(run, chosen)}
    cases: dict[str, list[Case]] = {title: [] for title in _titles(run, chosen)}
    for case in groups:
        cases[_title(run, chosen, [answers[pair][case.key][case.number].rank == 0 for pair in chosen])].append(case)
    return [_kind(run, chosen, answers, title, by_lot(of, groups)) for title, of in cases.items()]


def contrast(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """The first way, and the one to compare it with: the same model's `crop`, or else the second way, if any."""
    first, *others = pairs
    other = (first[0], "crop") if (first[0], "crop") in others else next(iter(others), None)
    return (first,) if other is None else (first, other)


def by_lot(cases: Collection[Case], groups: dict[Case, str]) -> list[Case]:
    """Order cases for showing: the groups in turn, and each picture once before any comes twice.

    Groups are ordered by their first cases, so that the same one is not always cut off.
    """
    of: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda c: zlib.crc32(f"{c.key} {c.number}".encode())):
        of.setdefault(groups[case], []).append(case)
    in_turn = [case for row in zip_longest(*of.values()) for case in row if case is not None]
    first = {case.key: case for case in reversed(in_turn)}
    return sorted(in_turn, key=lambda case: first[case.key] is not case)


def _cases(run: Run, chosen: Sequence[Pair]) -> list[Case]:
    """All questions that all of the chosen ways answered."""
    counts = [{record.key: len(record.answers) for record in run.of(*pair)} for pair in chosen]
    return [Case(key, i) for key, n in counts[0].items() if all(key in c for c in counts) for i in range(n)]


def _titles(run: Run, chosen: Sequence[Pair]) -> list[str]:
    outcomes = [(True, False), (False, True), (False, False), (True, True)] if len(chosen) > 1 else [(False,), (True,)]
    return [_title(run, chosen, outcome) for outcome in outcomes]


def _title(run: Run, chosen: Sequence[Pair], right: Sequence[bool]) -> str:
    names = [run.label(pair) for pair in chosen]
    if len(names) > 1 and right[0] == right[1]:
        return f"Both {'right' if right[0] else 'wrong'}: {names[0]} and {names[1]}"
    parts = [f"{name} {'right' if is_right else 'wrong'}" for name, is_right in zip(names, right, strict=True)]
    return "; ".join(sorted(parts, key=lambda part: part.endswith("wrong")))


def _kind(
    run: Run,
    chosen: Sequence[Pair],
    answers: dict[Pair, dict[str, tuple[Answer, ...]]],
    title: str,
    cases: Sequence[Case],
) -> Kind:
    numbers = {key: i for i, key in enumerate(run.task.keys)}
    cards: list[Card] = []
    unread = 0
    for case in cases:
        if len(cards) + unread == EACH:
            break
        try:
            sample = run.task.read(numbers[case.key])
        except (UnusableSample, OSError):  # the answers are in the tables anyway
            unread += 1
            continue
        given = {pair: of[case.key][case.number] for pair, of in answers.items() if case.key in of}
        cards.append(_card(run, chosen, sample, case, given))
    return Kind(title, len(cases), cards, unread)


def _card(run: Run, chosen: Sequence[Pair], sample: Sample, case: Case, given: dict[Pair, Answer]) -> Card:
    answer = given[chosen[0]]
    # If the answers waited for all samples, there are more of them than questions.
    question = sample.questions[case.number] if case.number < len(sample.questions) else None
    refers = isinstance(question, Referring)
    right = sorted(question.answers) if isinstance(question, Referring) else [answer.region]
    wrong = sorted({given[pair].region for pair in chosen} - {*right}) if refers else []
    picture, shown = drawn(sample.image, sample.masks, right, wrong, numbered=refers)
    replies = [_reply(run.label(pair), a, right, refers, pair in chosen) for pair, a in given.items()]
    alt = f"{sample.key}: {'what is meant' if refers else answer.right} outlined, the surroundings dimmed"
    title = f"“{answer.right}”" if refers else answer.right
    return Card(sample.key, answer.group, picture, *shown, alt, title, _asked(question, sample, right, answer), replies)


def _asked(question: object, sample: Sample, right: Sequence[int], answer: Answer) -> str:
    if isinstance(question, Naming):
        return f"Which of {len(set(question.names))} names is the region's?"
    if isinstance(question, Referring):
        number = len(question.regions if question.regions is not None else sample.masks)
        return f"Which of {number} regions is meant? {' or '.join(map(str, right)) or 'None of them.'}"
    return "Which of all phrases is the region's?" if answer.top else "Which of all regions is the phrase's?"


def _reply(way: str, answer: Answer, right: Sequence[int], refers: bool, main: bool) -> Reply:
    top = [(name, i == answer.rank) for i, name in enumerate(answer.top[:TOP])]
    if refers:
        top = [(f"region {answer.region}", answer.region in right)]
    return Reply(way, answer.rank, top, main)


def drawn(
    picture: Image.Image,
    masks: NDArray[np.float32],
    right: Sequence[int],
    wrong: Sequence[int] = (),
    numbered: bool = False,
) -> tuple[str, tuple[int, int]]:
    """Draw a picture, `SIDE` pixels at its longer side; return its data URI and its size.

    Args:
        masks: (K, H, W) in [0, 1].
        right: numbers of the masks to outline in yellow, with their surroundings dimmed.
        wrong: numbers of the masks to outline in red.
        numbered: write their numbers on them.
    """
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    shown = picture.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
    regions = {i: _resized(masks[i], size) for i in (*wrong, *right)}
    if right:
        inside = np.maximum.reduce([np.asarray(regions[i]) for i in right])
        dark = shown.point(lambda value: round(_DIMMED * value))
        shown = Image.composite(shown, dark, Image.fromarray(inside))
    for i, region in regions.items():
        for width, paint in ((9, _HALO), (5, _RIGHT if i in right else _CHOSEN)):  # a halo, to be seen on any picture
            line = ImageChops.subtract(region.filter(ImageFilter.MaxFilter(width)), region)
            shown.paste(paint, mask=line)
        if numbered and (box := region.getbbox()):
            _write(shown, str(i), box)
    file = io.BytesIO()
    shown.save(file, "WebP", quality=82)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}", size


def _write(shown: Image.Image, text: str, box: tuple[int, int, int, int]) -> None:
    """Write above a box, or below it if there is no room above."""
    x = min(max((box[0] + box[2]) / 2, 12), shown.width - 12)
    above = box[1] > 30
    at, anchor = (x, box[1] - 8) if above else (x, min(box[3] + 8, shown.height - 24)), "mb" if above else "mt"
    font = ImageFont.load_default(18)
    ImageDraw.Draw(shown).text(at, text, "white", font, anchor, stroke_width=3, stroke_fill=_HALO)


def _resized(mask: NDArray[np.float32], size: tuple[int, int]) -> Image.Image:
    """Resize a mask to black and white: 255 where it is above one half."""
    resized = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return Image.fromarray(np.where(np.asarray(resized) > 0.5, 255, 0).astype(np.uint8))
