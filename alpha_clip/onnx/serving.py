"""Run an exported model by ONNX Runtime, with the calls of OpenAI's clip."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import IncompatibleCheckpoint, MasksIgnored
from ..inputs import FOREGROUND, as_alpha, as_image_batch, as_tokens, normalised_alpha, warn_if_not_normalised
from ..model import BLIND
from ..transforms import Preprocess
from ..vocabulary import UnknownWords
from . import folder as folders
from .extra import optional

Array = TypeVar("Array", Tensor, NDArray[Any])


def load(folder: str | os.PathLike[str], threads: int | None = None) -> OnnxCLIP:
    """Load an exported model, on the CPU.

    Args:
        folder: what `export` or ``python -m alpha_clip.onnx`` wrote.
        threads: for each tower; None: as many as there are cores.

    Raises:
        ImportError: the extra ``onnx`` is not installed.
        ValueError: `threads` is less than 1.
        WeightsError: there is no exported model.
        IncompatibleCheckpoint: it is not whole.

    Warns:
        MasksIgnored: its alpha weights are all zero, so that masks will be ignored.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}, expected 1 or more, or None for all cores")
    runtime = optional("onnxruntime")
    path = Path(folder)
    description = folders.read(path)
    if not description.sees_masks:
        warnings.warn(f"{path}: {BLIND}", MasksIgnored, stacklevel=2)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    sessions = []
    for tower in folders.TOWERS:
        file = path / f"{tower}.onnx"
        try:
            sessions.append(runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"]))
        except Exception as error:  # the runtime's own, which have no base class that it names
            raise IncompatibleCheckpoint(
                f"ONNX Runtime cannot read {file} ({error}): copy the folder again, or export it anew"
            ) from error
    return OnnxCLIP(description, *sessions)


class OnnxCLIP:
    """Both towers of an exported model, with the calls of `CLIP`.

    Each takes torch tensors or numpy arrays, and returns what it was given, in float32 and on the CPU. Images are of
    the native size. ``preprocess`` makes images and masks; ``logit_scale`` is the logarithm, as CLIP's.
    """

    def __init__(self, description: folders.Description, image: Any, text: Any) -> None:
        self.description = description
        self.input_resolution = description.input_resolution
        self.context_length = description.context_length
        self.vocab_size = description.vocab_size
        self.logit_scale = torch.tensor(description.logit_scale)
        self.preprocess = Preprocess(description.input_resolution)
        self._image, self._text = image, text
        n = description.input_resolution
        self._whole = torch.full((1, 1, n, n), FOREGROUND)  # the alpha of no mask
        known = description.known_tokens
        self._unknown_words = None if known is None else UnknownWords(torch.tensor(known))
        self._unseen = {"floating alpha"}  # as the model's: what has not been looked at yet

    def encode_image(self, image: Array, alpha: Tensor | NDArray[Any] | None = None) -> Array:
        """Return image features (B, embed_dim), not normalised.

        Args:
            image: (B, 3, n, n) or (3, n, n), floating, normalised as ``preprocess`` does.
            alpha: (B, 1, n, n), (B, n, n) or (n, n). Floating: already normalised. Bool: a mask, True where to look.
                None: the whole image. A batch of 1 on either side is broadcast against K on the other.

        Raises:
            TypeError: `image` is not floating, or `alpha` is neither floating nor bool.
            ValueError: the shapes do not fit.
        """
        return _like(image, self._encode_image(_tensor(image), _tensor(alpha)))

    def encode_text(self, text: Array) -> Array:
        """Return text features (N, embed_dim), not normalised.

        Args:
            text: (N, L) integer token ids as `tokenize` returns them, L at most ``context_length``.

        Raises:
            TypeError: `text` is not of integers.
            ValueError: `text` is not (N, L), or too long.
            IndexError: an id is not in the vocabulary.
        """
        return _like(text, self._encode_text(_tensor(text)))

    def __call__(
        self, image: Array, text: Tensor | NDArray[Any], alpha: Tensor | NDArray[Any] | None = None
    ) -> tuple[Array, Array]:
        """Return logits_per_image (B, N) and logits_per_text (N, B): cosines times ``logit_scale.exp()``."""
        image_features = F.normalize(self._encode_image(_tensor(image), _tensor(alpha)), dim=-1)
        text_features = F.normalize(self._encode_text(_tensor(text)), dim=-1)
        logits = self.logit_scale.exp() * image_features @ text_features.T
        return _like(image, logits), _like(image, logits.T)

    def _encode_image(self, image: Tensor, alpha: Tensor | None) -> Tensor:
        image, n = as_image_batch(image), self.input_resolution
        if tuple(image.shape[-2:]) != (n, n):
            raise ValueError(f"image is {tuple(image.shape)}, and this model was exported for {n} x {n} pixels: "
                             "use its `preprocess(image)`")  # fmt: skip
        alpha = self._whole if alpha is None else self._mask(alpha, image)
        return self._run(self._image, image=image.float(), alpha=alpha)

    def _mask(self, alpha: Tensor, image: Tensor) -> Tensor:
        alpha = as_alpha(alpha, image)
        if alpha.is_floating_point() and self._unseen and warn_if_not_normalised(alpha):
            self._unseen.clear()
        return normalised_alpha(alpha, torch.float32)

    def _encode_text(self, text: Tensor) -> Tensor:
        text = as_tokens(text, self.context_length)
        if not len(text):
            return torch.empty(0, self.description.features)
        if text.min() < 0 or text.max() >= self.description.vocab_size:
            raise IndexError(
                f"token ids from {text.min()} to {text.max()}, expected 0 to {self.description.vocab_size - 1}: "
                "use alpha_clip.tokenize(...)"
            )
        if self._unknown_words is not None:
            self._unknown_words.warn(text)
        longest = int(text.argmax(dim=1).max()) + 1  # the tower is causal: nothing behind the last end is read
        return self._run(self._text, text=text[:, :longest].int())

    def _run(self, session: Any, **inputs: Tensor) -> Tensor:
        if not all(len(x) for x in inputs.values()):
            return torch.empty(0, self.description.features)
        (features,) = session.run(None, {k: v.detach().cpu().contiguous().numpy() for k, v in inputs.items()})
        return torch.from_numpy(features)


def _tensor(value: Any) -> Any:
    """Return an array as a tensor of the same memory, and anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    return torch.from_numpy(np.require(value, requirements=["C", "W"]))  # neither its strides nor its locks pass


def _like(given: Array, result: Tensor) -> Any:
    return result.numpy() if isinstance(given, np.ndarray) else result
