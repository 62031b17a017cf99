"""Boxes of a picture to masks: SAM, SAM 2 and SAM 3 of transformers, and one without weights that compares colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..hashes import fingerprint
from . import fingerprints
from .samples import Box


class Segmenter(Protocol):
    """What gives each box of a picture its mask."""

    identity: str  # what makes the masks, for the manifest

    def __call__(self, image: Image.Image, boxes: Sequence[Box]) -> Iterator[NDArray[np.bool_]]:
        """The mask of each box, (H, W); nothing may be in it."""
        ...


def find(name: str, device: str | None = None) -> Segmenter:
    """``"colour"``, or ``"hf:FOLDER"`` or ``"hf:USER/REPOSITORY"``: a SAM, SAM 2 or SAM 3 of transformers.

    Raises:
        ValueError: there is no such segmenter. ImportError: transformers is not installed.
        OSError: transformers does not find the model.
    """
    where = place(name)
    return ColourSegmenter() if where is None else SamSegmenter.from_pretrained(where, device)


def place(name: str) -> str | None:
    """Where a SAM lies, or None for ``"colour"``.

    Raises:
        ValueError: there is no such segmenter.
    """
    kind, _, where = name.partition(":")
    if name != "colour" and (kind != "hf" or not where):
        raise ValueError(f"the segmenter is {name!r}, expected 'colour', 'hf:FOLDER' or 'hf:USER/REPOSITORY'")
    return where or None


def weights(name: str) -> str | None:
    """The fingerprint of a SAM's files; None: of ``"colour"``, which has none, or they are not on this disk."""
    where = place(name)
    return None if where is None else fingerprints.of_transformers(where)


class SamSegmenter:
    """SAM (arXiv 2304.02643), SAM 2 (2408.00714) or SAM 3, asked for one mask for each box.

    A picture goes through the image encoder once, whatever the number of boxes; the mask decoder takes `chunk` boxes at
    a time.

    Args:
        model: transformers' `SamModel`, `Sam2Model` or `Sam3TrackerModel`.
        processor: the model's.
    """

    def __init__(self, model: Any, processor: Any, chunk: int = 16) -> None:
        self.model, self.processor, self.chunk = model.eval(), processor, chunk
        self.identity = f"{type(model).__name__} {fingerprint(model)}"

    @classmethod
    def from_pretrained(cls, where: str, device: str | None = None) -> SamSegmenter:
        """From a folder, or a repository on the Hub.

        Raises:
            ValueError: the model is of another kind. ImportError: transformers is not installed.
            OSError: transformers does not find the model.
        """
        try:
            import transformers
        except ImportError as error:
            raise ImportError('SAM needs transformers: pip install "alpha-clip[pipeline]"') from error
        model = transformers.AutoModelForMaskGeneration.from_pretrained(where)
        kind = type(model).__name__
        # Not AutoProcessor: a repository of SAM 3 names the processor for texts.
        processors = {"SamModel": "SamProcessor", "Sam2Model": "Sam2Processor"}
        processors["Sam3TrackerModel"] = "Sam3TrackerProcessor"
        if kind not in processors:
            raise ValueError(f"{where} holds a {kind}, expected one of {', '.join(processors)}")
        processor = getattr(transformers, processors[kind]).from_pretrained(where)
        return cls(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), processor)

    @torch.no_grad()
    def __call__(self, image: Image.Image, boxes: Sequence[Box]) -> Iterator[NDArray[np.bool_]]:
        prepared = self.processor(images=image, input_boxes=[[list(box) for box in boxes]], return_tensors="pt")
        embeddings = self.model.get_image_embeddings(prepared["pixel_values"].to(self.model.device))
        sizes = [prepared[name] for name in ("original_sizes", "reshaped_input_sizes") if name in prepared]
        for part in prepared["input_boxes"].to(self.model.device, torch.float32).split(self.chunk, dim=1):
            found = self.model(image_embeddings=embeddings, input_boxes=part, multimask_output=False)
            (masks,) = self.processor.post_process_masks(found.pred_masks.float().cpu(), *sizes)
            yield from masks[:, 0].numpy()  # (K, H, W) bool


class ColourSegmenter:
    """What in a box is of colours that are rare just outside of it. It has no weights and knows no objects.

    The pixels in and around the box are put into `colours` clusters (k-means in RGB). A cluster is foreground if its
    share of the box is more than `factor` times its share of the frame, a band around the box as wide as `border` times
    the box's shorter side. Where the box fills the picture, its own outermost pixels are the frame.

    For drawings and for trying the pipeline without weights; on photos it is no match for SAM.
    """

    def __init__(self, colours: int = 8, factor: float = 2.0, border: float = 0.1) -> None:
        self.colours, self.factor, self.border = colours, factor, border
        self.identity = f"colour, {colours} clusters, factor {factor:g}, border {border:g}"

    def __call__(self, image: Image.Image, boxes: Sequence[Box]) -> Iterator[NDArray[np.bool_]]:
        pixels = np.asarray(image.convert("RGB"))
        for box in boxes:
            mask = np.zeros(pixels.shape[:2], bool)
            inner, outer = self._windows(box, pixels.shape[1], pixels.shape[0])
            mask[inner] = self._foreground(pixels, inner, outer)
            yield mask

    def _windows(self, box: Box, width: int, height: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns of the box, and of the box with its frame."""
        x0, y0, x1, y1 = np.floor(box[0]), np.floor(box[1]), np.ceil(box[2]), np.ceil(box[3])
        band = max(2, round(self.border * min(x1 - x0, y1 - y0)))

        def window(by: int) -> tuple[slice, slice]:
            rows = slice(int(max(y0 - by, 0)), int(min(y1 + by, height)))
            return rows, slice(int(max(x0 - by, 0)), int(min(x1 + by, width)))

        return window(0), window(band)

    def _foreground(
        self, pixels: NDArray[np.uint8], inner: tuple[slice, slice], outer: tuple[slice, slice]
    ) -> NDArray[np.bool_]:
        """(h, w) of the box."""
        labels = clusters(pixels[outer], self.colours)  # (H, W) of the box with its frame
        inside = np.zeros(labels.shape, bool)
        rows, columns = (slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
        inside[rows, columns] = True
        frame = ~inside
        if not frame.any():
            frame[[0, -1]] = frame[:, [0, -1]] = True
        in_box = np.bincount(labels[inside], minlength=self.colours) / inside.sum()
        in_frame = np.bincount(labels[frame], minlength=self.colours) / frame.sum()
        foreground: NDArray[np.bool_] = in_box > self.factor * in_frame
        return foreground[labels][rows, columns]


def clusters(pixels: NDArray[np.uint8], count: int, rounds: int = 6) -> NDArray[np.intp]:
    """k-means of the colours of (H, W, 3), begun with those farthest from each other: the same pixels, the same labels.

    At most some 4000 of the pixels are looked at to find the means.
    """
    flat = pixels.reshape(-1, 3).astype(np.float32)
    some = flat[:: max(1, len(flat) // 4096)]
    means = some[:1]
    for _ in range(count - 1):
        means = np.concatenate([means, some[_distances(some, means).min(1).argmax()][None]])
    for _ in range(rounds):
        nearest = _distances(some, means).argmin(1)
        means = np.stack([some[nearest == k].mean(0) if (nearest == k).any() else means[k] for k in range(count)])
    return _distances(flat, means).argmin(1).reshape(pixels.shape[:2])


def _distances(points: NDArray[np.float32], means: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, K), squared, of (N, 3) and (K, 3)."""
    return (points**2).sum(1)[:, None] + (means**2).sum(1) - 2 * points @ means.T
