"""Pictures to words: the `image-text-to-text` models of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image

from ..hashes import fingerprint

PROMPT = "Describe the object in a few words."  # for models that chat; the others continue an empty text


class Captioner(Protocol):
    """What says in words what pictures show."""

    identity: str  # what makes the words, for the manifest

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """One text for each picture; it may be empty."""
        ...


class TransformersCaptioner:
    """A model of transformers' `AutoModelForImageTextToText`: BLIP-2, or a newer one that chats.

    Args:
        model: such a model.
        processor: the model's. One with a chat template is asked `PROMPT`.
        tokens: at most so many make a text; always the likeliest next one is taken.
    """

    def __init__(self, model: Any, processor: Any, tokens: int = 30) -> None:
        self.model, self.processor, self.tokens = model.eval(), processor, tokens
        self.identity = f"{type(model).__name__} {fingerprint(model)}"

    @classmethod
    def from_pretrained(cls, where: str, device: str | None = None) -> TransformersCaptioner:
        """From a folder, or a repository on the Hub.

        Raises:
            ImportError: transformers is not installed. OSError, ValueError: transformers does not find such a model.
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
