"""Segmenters make a mask of each box: SAM, SAM 2 and SAM 3 of transformers, and one that only compares colours."""

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
    """Makes a mask of each box of a picture."""

    identity: str  # names the model and its weights; written to the manifest

    def __call__(self, image: Image.Image, boxes: Sequence[Box]) -> Iterator[NDArray[np.bool_]]:
        """Yield the mask of each box, (H, W) of the picture. A mask may be empty."""
        ...


def find(name: str, device: str | None = None) -> Segmenter:
    """Load a segmenter by name.

    Args:
        name: ``"colour"``, or ``"hf:FOLDER"`` or ``"hf:USER/REPOSITORY"`` for a SAM, SAM 2 or SAM 3 of transformers.
        device: where SAM runs; by default a GPU if there is one.

    Raises:
        ValueError: there is no such segmenter.
        ImportError: transformers is not installed.
        OSError: transformers does not find the model.
    """
    where = place(name)
    return ColourSegmenter() if where is None else SamSegmenter.from_pretrained(where, device)


def place(name: str) -> str | None:
    """Return the folder or repository in a segmenter's name, or None for ``"colour"``.

    Raises:
        ValueError: there is no such segmenter.
    """
    kind, _, where = name.partition(":")
    if name != "colour" and (kind != "hf" or not where):
        raise ValueError(f"the segmenter is {name!r}, expected 'colour', 'hf:FOLDER' or 'hf:USER/REPOSITORY'")
    return where or None


def weights(name: str) -> str | None:
    """Return the fingerprint of a SAM's files, or None if they are not on this disk, or the name is ``"colour"``."""
    where = place(name)
    return None if where is None else fingerprints.of_transformers(where)


class SamSegmenter:
    """Asks SAM (arXiv 2304.02643), SAM 2 (2408.00714) or SAM 3 for one mask of each box.

    The image encoder sees a picture once, whatever the number of boxes. The mask decoder takes `chunk` boxes at a time.
    Masks are enlarged to the size of the picture one by one, so that memory does not grow with the number of boxes.

    Args:
        model: a `SamModel`, `Sam2Model` or `Sam3TrackerModel` of transformers, in any floating-point dtype.
        processor: the processor of this model.
        chunk: boxes that the mask decoder takes at a time.
    """

    def __init__(self, model: Any, processor: Any, chunk: int = 16) -> None:
        self.model, self.processor, self.chunk = model.eval(), processor, chunk
        self.identity = f"{type(model).__name__} {fingerprint(model)}"

    @classmethod
    def from_pretrained(cls, where: str, device: str | None = None) -> SamSegmenter:
        """Load a model from a folder or from a repository on the Hub.

        Raises:
            ValueError: the model is of another kind.
            ImportError: transformers is not installed.
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
        pixels = prepared["pixel_values"].to(self.model.device, self.model.dtype)
        embeddings = self.model.get_image_embeddings(pixels)
        sizes = [prepared[name] for name in ("original_sizes", "reshaped_input_sizes") if name in prepared]
        for part in prepared["input_boxes"].to(self.model.device, torch.float32).split(self.chunk, dim=1):
            found = self.model(image_embeddings=embeddings, input_boxes=part, multimask_output=False)
            for logits in found.pred_masks[0].float().cpu():  # (1, h, w): in the picture's size, all would fill memory
                (mask,) = self.processor.post_process_masks(logits[None, None], *sizes)  # (1, 1, H, W) bool
                yield mask[0, 0].numpy()


class ColourSegmenter:
    """Finds what in a box has colours that are rare just outside of it. It has no weights and knows no objects.

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
        """Return the rows and columns of the box, and of the box with its frame."""
        x0, y0, x1, y1 = np.floor(box[0]), np.floor(box[1]), np.ceil(box[2]), np.ceil(box[3])
        band = max(2, round(self.border * min(x1 - x0, y1 - y0)))

        def window(by: int) -> tuple[slice, slice]:
            rows = slice(int(max(y0 - by, 0)), int(min(y1 + by, height)))
            return rows, slice(int(max(x0 - by, 0)), int(min(x1 + by, width)))

        return window(0), window(band)

    def _foreground(
        self, pixels: NDArray[np.uint8], inner: tuple[slice, slice], outer: tuple[slice, slice]
    ) -> NDArray[np.bool_]:
        """Return the mask of the box alone, (h, w)."""
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
    """Return a label (H, W) for each pixel of (H, W, 3): its cluster in a k-means of the colours.

    The first means are colours far from each other, not random ones, so that the same pixels always get the same
    labels. The means are found from some 4000 of the pixels at most.
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
    """Return the squared distances (N, K) of points (N, 3) and means (K, 3)."""
    return (points**2).sum(1)[:, None] + (means**2).sum(1) - 2 * points @ means.T
