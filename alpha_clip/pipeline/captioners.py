"""Captioners describe pictures: `image-text-to-text` models of transformers, and a CLIP that chooses among texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from ..catalogue import BUNDLED
from ..evaluation import subjects
from ..hashes import fingerprint, sha256
from ..towers import tower_of
from . import fingerprints
from .scoring import features

PROMPT = "Describe the object in a few words."  # for models that chat; the others continue an empty text


class Captioner(Protocol):
    """Says in words what pictures show."""

    identity: str  # names the model and its weights; written to the manifest

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """Return a text for each picture. A text may be empty."""
        ...


def find(name: str, device: str | None = None) -> Captioner:
    """Load a captioner by name.

    Args:
        name: ``"hf:FOLDER"`` or ``"hf:USER/REPOSITORY"`` for an `image-text-to-text` model of transformers;
            ``"words:FILE@MODEL"`` for a CLIP that chooses among the lines of a text file, named as for
            `evaluation.subjects.find`; or ``"words:FILE"`` for the bundled `tiny` in its place.
        device: where the model runs; by default a GPU if there is one.

    Raises:
        ValueError: there is no such captioner, or FILE holds no text.
        ImportError: transformers is not installed.
        OSError: there is no such file, or transformers does not find the model.
    """
    kind, _, where = name.partition(":")
    if kind == "hf" and where:
        return TransformersCaptioner.from_pretrained(where, device)
    file, at, model = where.partition("@")  # the first, for ViT-L/14@336px has one too
    if kind != "words" or not file or (at and not model):
        expected = "expected 'hf:FOLDER', 'hf:USER/REPOSITORY', 'words:FILE' or 'words:FILE@MODEL'"
        raise ValueError(f"the captioner is {name!r}, {expected}")
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    texts = [text for line in lines if (text := line.strip())]
    if not texts:
        raise ValueError(f"{file} holds no text, expected one on each line")
    return ClipCaptioner(subjects.find(model or BUNDLED, device, alone=True), texts)


def settings(name: str) -> str:
    """Return what stands for a captioner in the settings: its name, with the hash of its file of words if it has one.

    Raises:
        OSError: there is no such file.
    """
    kind, _, where = name.partition(":")
    if kind != "words":
        return name
    return f"{name} {sha256(Path(where.partition('@')[0]))}"


def weights(name: str) -> str | None:
    """Return the fingerprint of a captioner's files, or None if they are not on this disk."""
    kind, _, where = name.partition(":")
    if kind == "words":
        return fingerprints.of_clip(where.partition("@")[2] or BUNDLED)
    return fingerprints.of_transformers(where) if where else None


class TransformersCaptioner:
    """Describes pictures with a model of transformers' `AutoModelForImageTextToText`: BLIP-2, or one that chats.

    Args:
        model: such a model.
        processor: the processor of this model. If it has a chat template, the model is asked `PROMPT`.
        tokens: the most tokens of a text. The likeliest next token is always taken.
    """

    def __init__(self, model: Any, processor: Any, tokens: int = 30) -> None:
        self.model, self.processor, self.tokens = model.eval(), processor, tokens
        self.identity = f"{type(model).__name__} {fingerprint(model)}"

    @classmethod
    def from_pretrained(cls, where: str, device: str | None = None) -> TransformersCaptioner:
        """Load a model from a folder or from a repository on the Hub.

        Raises:
            ImportError: transformers is not installed.
            OSError: transformers does not find the model.
            ValueError: the model is of another kind.
        """
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise ImportError('captions need transformers: pip install "alpha-clip[pipeline]"') from error
        model: Any = AutoModelForImageTextToText.from_pretrained(where)
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(place), AutoProcessor.from_pretrained(where))

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        prepared = self._asked(list(images)).to(self.model.device)
        found = self.model.generate(**prepared, max_new_tokens=self.tokens, do_sample=False)
        if not self.model.config.get_text_config().is_encoder_decoder:  # else the question is not repeated
            found = found[:, prepared["input_ids"].shape[1] :]
        texts: list[str] = self.processor.batch_decode(found, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _asked(self, images: list[Image.Image]) -> Any:
        if getattr(self.processor, "chat_template", None) is None:
            return self.processor(images=images, text=[""] * len(images), padding=True, return_tensors="pt")
        question = {"type": "text", "text": PROMPT}
        talks = [[{"role": "user", "content": [{"type": "image", "image": image}, question]}] for image in images]
        settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        return self.processor.apply_chat_template(talks, padding=True, **settings)


class ClipCaptioner:
    """Describes a picture by the one of some texts whose feature is nearest to its own.

    For names from a list, and for trying the pipeline with the bundled model.

    Args:
        subject: the CLIP, from `evaluation.subjects.find`. It gets no masks, even if it takes some.
        texts: the texts to choose from.
        chunk: pictures that the CLIP sees at a time.

    Raises:
        ValueError: there are no texts.
    """

    def __init__(self, subject: subjects.Subject, texts: Sequence[str], chunk: int = 32) -> None:
        if not texts:
            raise ValueError("texts is empty, expected what can be said")
        self.texts, self.chunk = list(texts), chunk
        self._tower, self._weights = tower_of(subject.model), subject.texts(self.texts)  # (N, D)
        digest = hashlib.sha256("\n".join(self.texts).encode()).hexdigest()[:16]
        self.identity = f"{subject.name} {fingerprint(subject.model)}, {len(self.texts)} texts {digest}"

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        if not images:
            return []
        nearest = (features(self._tower, images, self.chunk) @ self._weights.T).argmax(1)  # (N,)
        return [self.texts[number] for number in nearest.tolist()]
