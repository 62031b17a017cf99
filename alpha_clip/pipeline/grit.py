"""Read GRIT-style shards: pictures with a caption, parts of which name boxes in the picture.

img2dataset writes such shards from the table that the Kosmos-2 authors publish (zzliang/GRIT on the Hub). Each sample
is `KEY.jpg` and `KEY.json` with::

    {"caption": "a cat on a red sofa", "url": "https://...", "ref_exps": [[0, 5, 0.1, 0.2, 0.6, 0.9, 0.81], ...]}

An expression is the start and end of its words in the caption, x0, y0, x1, y1 as shares of width and height, and a
score. A table as such holds URLs and no pictures: img2dataset fetches them.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from ..training.records import BadSample, parsed
from ..training.shards import Entry, scanned
from ..transforms import upright
from .ledger import Ledger
from .samples import Box, Sample, Target

SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # of Pillow's formats that the trainer reads
MORE = {"MPO": "jpg"}  # what Pillow calls a JPEG with others behind it, as phones write them: the first one counts
FIELDS = ("url", "license", "licence", "license_url", "author", "attribution", "id")  # kept, where a record has them
TOLERANCE = 0.01  # of width or height that a box may reach outside; then it is cut
THIN = 1000  # longer sides in shorter ones; of thinner pictures, models see less than a pixel (SAM v1: 1 of 1024)

_EXPECTED = "expected [start, end, x0, y0, x1, y1, score]"
_HUGE = 1e9  # no number in an expression comes near it


def read(shard: Path, ledger: Ledger, fields: Sequence[str] = ()) -> Iterator[Sample]:
    """Yield the samples of a shard one by one. Bad ones go into the ledger.

    The fields of a record named in `FIELDS` and in ``fields`` are kept. Memory holds one sample, and where in the shard
    the others lie.
    """
    with shard.open("rb") as file:
        for entry in scanned(shard):
            ledger.pictures["read"] += 1
            try:
                yield _sample(file, entry, ledger, fields)
            except BadSample as error:
                ledger.reject(error)


def _sample(file: BinaryIO, entry: Entry, ledger: Ledger, fields: Sequence[str]) -> Sample:
    if (shown := escaped(entry.key)) != entry.key:
        raise BadSample(shown, "its name is not in UTF-8: rename its files", "malformed name")
    if entry.wrong:
        raise BadSample(entry.key, entry.wrong, "malformed shard")
    file.seek(entry.image_at)
    data = file.read(entry.image_size)
    file.seek(entry.json_at)
    return make_sample(entry.key, data, file.read(entry.json_size), ledger, fields)


def escaped(name: str) -> str:
    """Return a file's name with the bytes that are not UTF-8 written as \\x..; other names stay as they are."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def make_sample(key: str, data: bytes, text: bytes, ledger: Ledger, fields: Sequence[str] = ()) -> Sample:
    """Make a sample of a picture's file and its JSON. Bad expressions go into the ledger.

    Raises:
        BadSample: the picture or the record as a whole is bad.
    """
    try:
        record = parsed(text)
    except ValueError as error:
        raise BadSample(key, f"its json: {error}", "malformed record") from error
    caption, expressions = record.get("caption"), record.get("ref_exps")
    if not isinstance(caption, str) or not caption.strip():
        raise BadSample(key, f"its caption is {caption!r:.60}, expected words", "empty text")
    if not caption.isprintable() and any("\ud800" <= character <= "\udfff" for character in caption):
        raise BadSample(key, f"its caption, {caption!r:.60}, has half a character in it", "malformed record")
    if not isinstance(expressions, list):
        raise BadSample(key, f'"ref_exps" is {expressions!r:.60}, expected a list', "malformed record")
    if not expressions:
        raise BadSample(key, f'"ref_exps" is empty, {_EXPECTED} for each box', "no expressions")
    image, suffix = decoded(key, data)
    _check_shape(key, image.size, record.get("original_width"), record.get("original_height"))
    targets = []
    for number, expression in enumerate(expressions):
        ledger.regions["read"] += 1
        try:
            targets.append(_target(key, number, expression, caption, image.size))
        except BadSample as error:
            ledger.reject(error, number)
    kept = {name: record[name] for name in (*FIELDS, *fields) if _is_stated(name, record.get(name))}
    return Sample(key, data, suffix, image, caption, tuple(targets), kept)


def _is_stated(name: str, value: Any) -> bool:
    """Whether a field says something. Tables write what is missing as NaN, "nan", "null" or "None"."""
    if isinstance(value, str):
        return value.strip().casefold() not in ("", "nan", "null", "none")
    if name in FIELDS and not (name == "id" and type(value) in (int, float)):
        return False
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return value not in (None, [], {})


def decoded(key: str, data: bytes) -> tuple[Image.Image, str]:
    """Return the picture in RGB, turned upright as its EXIF orientation says, and the suffix of files of its format.

    Raises:
        BadSample: it cannot be read, has more pixels than Pillow thinks safe (`PIL.Image.MAX_IMAGE_PIXELS`), or one
            side is more than `THIN` times as long as the other.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=list(SUFFIXES)) as stored:
                suffix = (SUFFIXES | MORE)[str(stored.format)]
                _check_not_thin(key, stored.size)
                stored.load()
                return upright(stored), suffix
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample(key, f"the picture is too large: {error}", "picture too large") from error
    except UnidentifiedImageError as error:  # which says no more than where in memory the file was
        reason = f"the picture cannot be read: its file begins as none of {', '.join(SUFFIXES)}"
        raise BadSample(key, reason, "unreadable picture") from error
    except BadSample:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything when a file is broken
        raise BadSample(key, f"the picture cannot be read: {error}", "unreadable picture") from error


def _check_not_thin(key: str, size: tuple[int, int]) -> None:
    if max(size) > THIN * min(size):
        reason = f"the picture is {size[0]} x {size[1]}, too long and thin: expected sides of {THIN} to 1 at most"
        raise BadSample(key, reason, "picture too long and thin")


def _check_shape(key: str, size: tuple[int, int], width: Any, height: Any) -> None:
    """Refuse a picture whose shape is not the one that it had on the web.

    Boxes are shares of the picture on the web. img2dataset pads or crops pictures unless told otherwise.
    """
    if not (_is_number(width) and _is_number(height) and width > 0 and height > 0):
        return
    slack = max(0.02, 1 / min(size))  # sides are whole pixels
    ratio = size[0] / size[1]
    if min(abs(ratio / (width / height) - 1), abs(ratio / (height / width) - 1)) > slack:  # or turned by its EXIF
        reason = f"the picture is {size[0]} x {size[1]} and was {width} x {height}, so that its boxes are elsewhere"
        raise BadSample(key, f"{reason}: fetch it with --resize_mode keep_ratio or no", "picture of another shape")


def _target(key: str, number: int, expression: Any, caption: str, size: tuple[int, int]) -> Target:
    if not isinstance(expression, list) or len(expression) != 7 or not all(map(_is_number, expression)):
        raise BadSample(key, f"the expression is {expression!r:.120}, {_EXPECTED}", "malformed expression")
    start, end, *corners, score = expression
    if start != int(start) or end != int(end) or not 0 <= start <= end <= len(caption):
        reason = f"the span is {start} to {end}, expected a part of the caption's {len(caption)} characters"
        raise BadSample(key, reason, "span out of range")
    phrase = caption[int(start) : int(end)].strip()
    if not phrase:
        raise BadSample(key, f"the span {start} to {end} holds no words", "empty text")
    return Target(phrase, _box(key, corners, size), float(score), number=number)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _HUGE  # NaN is not


def _box(key: str, corners: Sequence[float], size: tuple[int, int]) -> Box:
    if not all(-TOLERANCE <= corner <= 1 + TOLERANCE for corner in corners):
        raise BadSample(key, f"the box is {corners!r:.120}, expected shares of width and height", "absurd box")
    x0, y0, x1, y1 = (min(max(float(corner), 0.0), 1.0) for corner in corners)
    width, height = size
    box = (x0 * width, y0 * height, x1 * width, y1 * height)
    if not (box[2] - box[0] >= 1 and box[3] - box[1] >= 1):
        reason = f"the box is {corners!r:.120}, expected x0 < x1 and y0 < y1, a pixel of {width} x {height} or more"
        raise BadSample(key, reason, "absurd box")
    return box
