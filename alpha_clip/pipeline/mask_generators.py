"""Pictures to masks of all that is in them: SAM's everything mode, and one without weights that compares colours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..hashes import fingerprint
from ..mask_sources import SamMasks
from . import segmenters

SIDE = 1024  # pixels: longer pictures are made smaller first; SAM sees no more, and its masks are as large as these


class MaskGenerator(Protocol):
    """What finds masks in a picture without being asked for anything."""

    identity: str  # what makes the masks, for the manifest

    def __call__(self, image: Image.Image, /) -> Iterator[NDArray[np.bool_]]:
        """Masks, (H, W) of the picture, each with something in it; there may be none."""
        ...


def find(name: str, device: str | None = None, points: int = 16) -> MaskGenerator:
    """``"colour"``, or ``"hf:FOLDER"`` or ``"hf:USER/REPOSITORY"``: a SAM, SAM 2 or SAM 3, asked at `points` a side.

    Raises:
        ValueError: there is no such generator. ImportError: scipy or transformers is not installed.
        OSError: transformers does not find the model.
    """
    where = segmenters.place(name)
    return ColourMaskGenerator() if where is None else SamMaskGenerator(where, device, points)


class SamMaskGenerator(SamMasks):
    """`mask_sources.SamMasks` as a generator: all that a segmenter finds at a grid of points, best first.

    Args:
        name, points, options: those of `SamMasks`.

    Raises:
        ImportError: transformers is not installed.
        OSError, ValueError: transformers cannot load `name`, or it is no such model.
    """

    def __init__(self, name: str, device: str | None = None, points: int = 16, **options: Any) -> None:
        super().__init__(name, points, device, **options)
        said = "".join(f", {option} {value}" for option, value in sorted(options.items()))
        model = self._generate.model
        self.identity = f"{type(model).__name__} {fingerprint(model)}, {points} points a side{said}"

    def __call__(self, picture: Image.Image) -> Iterator[NDArray[np.bool_]]:
        return _as_large(picture, super().__call__(_small(picture)))


class ColourMaskGenerator:
    """What is of colours that are rare at the picture's border, each connected part by itself, the largest first.

    The pixels are put into `colours` clusters (k-means in RGB). A cluster is foreground if its share of the picture is
    more than `factor` times its share of the border, which is `border` times the shorter side wide. Parts below
    `smallest` of the picture are left out.

    For drawings and for trying the pipeline without weights; on photos it is no match for SAM.

    Raises:
        ImportError: scipy is not installed.
    """

    def __init__(self, colours: int = 8, factor: float = 2.0, border: float = 0.03, smallest: float = 0.001) -> None:
        self._label = _scipy_label()
        self.colours, self.factor, self.border, self.smallest = colours, factor, border, smallest
        self.identity = f"colour, {colours} clusters, factor {factor:g}, border {border:g}, parts from {smallest:g} on"

    def __call__(self, image: Image.Image) -> Iterator[NDArray[np.bool_]]:
        return _as_large(image, self._parts(np.asarray(_small(image).convert("RGB"))))

    def _parts(self, pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.bool_]]:
        numbers, _ = self._label(self._foreground(pixels), np.ones((3, 3)))  # (H, W); 0 is background
        areas = np.bincount(numbers.ravel())
        largest = np.argsort(-areas[1:], kind="stable") + 1
        yield from (numbers == number for number in largest if areas[number] >= self.smallest * numbers.size)

    def _foreground(self, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        labels = segmenters.clusters(pixels, self.colours)
        width = max(1, round(self.border * min(labels.shape)))
        border = np.ones(labels.shape, bool)
        border[width:-width, width:-width] = False
        everywhere = np.bincount(labels.ravel(), minlength=self.colours) / labels.size
        outside = np.bincount(labels[border], minlength=self.colours) / border.sum()
        rare: NDArray[np.bool_] = everywhere > self.factor * outside
        return rare[labels]


def _scipy_label() -> Any:
    try:
        from scipy.ndimage import label
    except ImportError as error:
        raise ImportError('connected parts need scipy: pip install "alpha-clip[pipeline]"') from error
    return label


def _small(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return small


def _as_large(image: Image.Image, masks: Iterator[NDArray[Any]]) -> Iterator[NDArray[np.bool_]]:
    """The masks in the picture's size, one at a time; those with nothing in them are left out."""
    for mask in masks:
        whole = Image.fromarray(np.asarray(mask, bool))
        found = np.asarray(whole if whole.size == image.size else whole.resize(image.size, Image.Resampling.NEAREST))
        if found.any():
            yield found
