"""Find the mask of the thing at a point with SAM."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..pipeline.segmenters import SamSegmenter


class Clicks:
    """SAM, SAM 2 or SAM 3 of transformers, which gives the mask at a point of a picture.

    Args:
        name: a folder, or a repository on the Hub.
        device: the device of the model; None: CUDA if there is one, else the CPU.

    Raises:
        ImportError, OSError, ValueError: as `SamSegmenter.from_pretrained`.
    """

    def __init__(self, name: str, device: str | None = None) -> None:
        sam = SamSegmenter.from_pretrained(name, device)
        self._model, self._processor = sam.model, sam.processor

    @torch.no_grad()
    def embed(self, picture: Image.Image) -> Any:
        """Encode a picture once for all points, which is most of the work."""
        pixels = self._processor(images=picture, return_tensors="pt")["pixel_values"]
        return self._model.get_image_embeddings(pixels.to(self._model.device, self._model.dtype))

    @torch.no_grad()
    def mask(self, picture: Image.Image, embedding: Any, point: tuple[float, float]) -> NDArray[np.bool_]:
        """The mask (H, W) at a pixel (x, y): the surest of the three that SAM proposes, from part to whole."""
        prepared = self._processor(
            images=picture, input_points=[[[list(point)]]], input_labels=[[[1]]], return_tensors="pt"
        )
        points = prepared["input_points"].to(self._model.device, torch.float32)
        found = self._model(
            image_embeddings=embedding,
            input_points=points,
            input_labels=prepared["input_labels"].to(self._model.device),
            multimask_output=True,
        )
        sizes = [prepared[name] for name in ("original_sizes", "reshaped_input_sizes") if name in prepared]
        (masks,) = self._processor.post_process_masks(found.pred_masks.float().cpu(), *sizes)  # (1, 3, H, W)
        return np.asarray(masks[0, int(found.iou_scores.flatten().argmax())], dtype=bool)
