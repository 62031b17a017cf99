"""Mask generators find all masks of a picture: SAM's everything mode, and one that only compares colours."""

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
POINTS = 16  # on each side of a picture, at which SAM is asked, as in an issue of the paper's authors' repository


class MaskGenerator(Protocol):
    """Finds masks in a picture without being given boxes or points."""

    identity: str  # names the model and its weights; written to the manifest

    def __call__(self, image: Image.Image, /) -> Iterator[NDArray[np.bool_]]:
        """Yield masks, (H, W) of the picture, none of them empty. There may be no mask at all."""
        ...


def find(name: str, device: str | None = None, points: int = POINTS) -> MaskGenerator:
    """Load a mask generator by name.

    Args:
        name: ``"colour"``, or ``"hf:FOLDER"`` or ``"hf:USER/REPOSITORY"`` for a SAM, SAM 2 or SAM 3 of transformers.
        device: where SAM runs; by default a GPU if there is one.
        points: on each side of the picture, at which SAM is asked.

    Raises:
        ValueError: there is no such generator.
        ImportError: scipy or transformers is not installed.
        OSError: transformers does not find the model.
    """
    where = segmenters.place(name)
    return ColourMaskGenerator() if where is None else SamMaskGenerator(where, device, points)


class SamMaskGenerator(SamMasks):
    """Finds masks by SAM's everything mode, at a grid of points, the best first.

    The model computes in float32, whatever dtype its weights are stored in.

    Args:
        name, device, points, options: those of `mask_sources.SamMasks`.

    Raises:
        ImportError: transformers is not installed.
        OSError: transformers does not find the model.
        ValueError: the model is of another kind.
    """

    def __init__(self, name: str, device: str | None = None, points: int = POINTS, **options: Any) -> None:
        super().__init__(name, points, device, **options)
        said = "".join(f", {option} {value}" for option, value in sorted(options.items()))
        model = self._generate.model.float()  # in half precision, transformers 5 fails where it compares the masks
        self.identity = f"{type(model).__name__} {fingerprint(model)}, {points} points a side{said}"

    def __call__(self, picture: Image.Image) -> Iterator[NDArray[np.bool_]]:
        return _as_large(picture, super().__call__(_small(picture)))


class ColourMaskGenerator:
    """Finds connected parts of colours that are rare at the picture's border, the largest first.

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
    """Yield the masks in the picture's size, one at a time, without empty ones."""
    for mask in masks:
        whole = Image.fromarray(np.asarray(mask, bool))
        found = np.asarray(whole if whole.size == image.size else whole.resize(image.size, Image.Resampling.NEAREST))
        if found.any():
            yield found
