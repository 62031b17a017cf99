"""Compare labels with a part of a picture: seen in the whole, through the mask, and in a crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..attention_map import attention_map, painted
from ..model import CLIP
from ..regions import embed_regions
from ..tokenizer import tokenize
from ..transforms import Preprocess
from ..vocabulary import UnknownWords
from ..zero_shot import zero_shot_classifier
from .marks import Mask

LABELS, LETTERS = 20, 100  # labels at a time, and letters of each

WAYS = ("whole", "alpha", "crop")  # methods of `embed_regions`


@dataclass(frozen=True)
class Photo:
    """A session's picture, with the feature that no mark changes."""

    image: Image.Image  # upright, RGB
    whole: Tensor  # (1, D), the feature of the whole picture

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.image.size


class Viewer:
    """The model, which all sessions share and none changes.

    Args:
        model: a model in evaluation mode.
        preprocess: the preprocessing of the model.
    """

    def __init__(self, model: CLIP, preprocess: Preprocess) -> None:
        self.model, self.preprocess = model, preprocess
        self._words = None if model.known_tokens is None else UnknownWords(model.known_tokens)
        self._weights = lru_cache(maxsize=64)(self._weigh)  # shared by all sessions

    @torch.no_grad()
    def photo(self, image: Image.Image) -> Photo:
        """Embed a whole picture (RGB, upright)."""
        everything = np.ones(image.size[::-1], bool)
        return Photo(image, embed_regions(self.model, image, everything, "whole").float())

    @torch.no_grad()
    def shares(self, photo: Photo, mask: Mask | None, labels: Sequence[str]) -> dict[str, list[float]]:
        """Compute for each of `WAYS` the shares of the labels, which sum to 1; without a mask, only of the whole.

        Raises:
            ValueError: a label is too long for the model.
        """
        features = {"whole": photo.whole}
        if mask is not None:
            features |= {way: embed_regions(self.model, photo.image, mask, way).float() for way in WAYS[1:]}
        scale, weights = self.model.logit_scale.exp().float(), self._weights(tuple(labels))
        return {way: (scale * feature @ weights.T).softmax(dim=-1)[0].tolist() for way, feature in features.items()}

    def attention(self, photo: Photo, mask: Mask | None) -> Image.Image:
        """The picture with the model's attention laid over it."""
        seen = np.ones(photo.image.size[::-1], bool) if mask is None else mask
        return painted(photo.image, attention_map(self.model, self.preprocess, photo.image, seen))

    def unread(self, labels: Sequence[str]) -> list[str]:
        """Words in the labels that the model has never read; none for a model with CLIP's own vocabulary."""
        return [] if self._words is None else sorted(self._words.unread(self._tokens(labels)))

    def _weigh(self, labels: tuple[str, ...]) -> Tensor:
        self._tokens(labels)
        return zero_shot_classifier(self.model, labels, ["{}"]).float()

    def _tokens(self, labels: Sequence[str]) -> Tensor:
        try:
            return tokenize(list(labels), self.model.context_length)
        except RuntimeError as error:
            raise ValueError("One of the names is too long for this model: make it shorter.") from error


def read_labels(text: str) -> list[str]:
    """Split typed text into labels, at commas and line ends; each label once.

    Raises:
        ValueError: there are too many labels, or one is too long.

    >>> read_labels("a cat, a dog\\n\\na cat")
    ['a cat', 'a dog']
    """
    labels = list(dict.fromkeys(filter(None, map(str.strip, text.replace("\n", ",").split(",")))))
    if len(labels) > LABELS:
        raise ValueError(f"These are {len(labels)} names; up to {LABELS} can be compared.")
    if long := next((label for label in labels if len(label) > LETTERS), None):
        raise ValueError(f"The name “{long[:20]}...” has {len(long)} letters; up to {LETTERS} are read.")
    return labels
