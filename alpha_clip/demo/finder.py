"""Find regions in a folder of pictures by text."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from ..hashes import fingerprint
from ..mask_sources import SamMasks, grid, in_words
from ..model import CLIP
from ..search import RegionIndex, Settings, fill, nearest
from ..search.sheet import thumbnail

HITS = 8


class Finder:
    """An index of a folder, ready to be searched.

    Args:
        folder: the folder of pictures. It is indexed first; an interrupted index is continued.
        kept: the folder of the index, new or begun.
        model: the model that looks at regions and texts.
        name: what the model is called in the index.
        sam: a segmenter for `SamMasks`; None: a grid of boxes.
        device: the device of the segmenter.

    Raises:
        ValueError: `folder` is no folder, holds no picture that can be read, or the index is of another model.
        Other errors: as `SamMasks`.
    """

    def __init__(
        self, folder: Path, kept: Path, model: CLIP, name: str, sam: str | None = None, device: str | None = None
    ) -> None:
        self.folder, self._model = folder, model
        settings = Settings(name, fingerprint(model, torch.half), model.visual.output_dim, "alpha", in_words(sam))
        self._index = RegionIndex.create(kept, settings)
        fill(self._index, folder, model, SamMasks(sam, device=device) if sam else grid)
        self.pictures = len(self._index.pictures)
        if not len(self._index):
            raise ValueError(f"{folder} holds no picture that can be read, expected some to search")

    def __call__(self, text: str) -> list[tuple[Image.Image, str]]:
        """The nearest regions, best first, each outlined in its picture, with the picture's name."""
        hits = nearest(self._index, self._model, text, HITS, self.folder)  # never what lies elsewhere
        return [(thumbnail(hit), Path(hit.paths[0]).name) for hit in hits]
