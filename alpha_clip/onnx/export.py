"""Export a model to a folder of ONNX graphs."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MasksIgnored, WordsNeverRead
from ..model import CLIP
from . import folder as folders
from .extra import optional
from .folder import Description
from .serving import OnnxCLIP, load

PARITY = 1e-4  # how far features may be from the model's, relative to the length of those


def export(model: CLIP, folder: str | os.PathLike[str], *, name: str = "", int8: bool = False) -> dict[str, float]:
    """Write both towers of `model` to `folder`, from where `load` takes them.

    The graphs are compared with the model before they are put in place, and the folder appears whole or not at all.

    Args:
        model: one of ours, in float32.
        folder: a new or an empty folder.
        name: of the model, for the description.
        int8: 8-bit weights, with a scale for each output, in place of float32. Smaller and, where the processor has
            instructions for it, faster; the features move, so measure on your own data.

    Returns:
        For each tower, "image" and "text", the lowest cosine similarity between its features and the model's, on
        random pixels, masks and tokens.

    Raises:
        ImportError: the extra ``onnx`` is not installed.
        TypeError: `model` is not one of ours, or not in float32.
        FileExistsError: `folder` is not empty, or is a file.
        ValueError: the graphs compute something else than the model, because it was changed in more than its weights;
            or they cannot be made, because a module was replaced.
    """
    folder = Path(folder)
    _check(model, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        made = Path(temporary, "float32")
        description = _describe(model, name)
        try:
            _write_graphs(model, made)
        except AttributeError as error:
            raise ValueError(f"a module of the model was replaced ({error}): put the original back") from error
        folders.write(description, made)
        samples = _Samples(model)
        if (difference := samples.difference(_load_quietly(made))) > PARITY:
            raise ValueError(
                f"the graphs' features are off the model's by {difference:.1g} of their length, expected {PARITY:g} at "
                "most. Graphs hold weights alone, no hooks, adapters or replaced modules: merge those into the weights."
            )
        if int8:
            plain, made = made, Path(temporary, "int8")
            _quantise(plain, made)
            folders.write(replace(description, weights="int8"), made)
        similarities = samples.similarities(_load_quietly(made))
        if folder.exists():
            folder.rmdir()
        for file in made.iterdir():  # some come as the owner's alone
            shutil.copymode(made / "model.json", file)
        made.replace(folder)
    return similarities


def _load_quietly(folder: Path) -> OnnxCLIP:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MasksIgnored)  # whoever loaded the model knows that
        return load(folder)


def _check(model: CLIP, folder: Path) -> None:
    if not isinstance(model, CLIP):
        raise TypeError(f"model is {type(model).__name__}, expected what alpha_clip.load returns (a CLIP)")
    if dtypes := {str(p.dtype) for p in model.parameters()} - {"torch.float32"}:
        raise TypeError(f"the model has weights in {', '.join(sorted(dtypes))}: load it with dtype=torch.float32")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} already exists, and is not empty: choose another folder, or delete it")
    for package in ("onnx", "onnxruntime"):
        optional(package)


def _describe(model: CLIP, name: str) -> Description:
    known = None if model.known_tokens is None else sorted(model.known_tokens.tolist())
    return Description(
        name=name,
        version=metadata.version("alpha-clip"),
        weights="float32",
        input_resolution=model.visual.input_resolution,
        context_length=model.context_length,
        vocab_size=model.vocab_size,
        features=model.text_projection.shape[1],
        logit_scale=model.logit_scale.item(),
        sees_masks=bool(model.visual.conv1_alpha.weight.any()),
        known_tokens=known,
    )


def _write_graphs(model: CLIP, folder: Path) -> None:
    import onnx

    from . import graph

    folder.mkdir()
    for tower, proto in (("image", graph.image_tower(model.visual)), ("text", graph.text_tower(model))):
        # Or the quantiser warns that its own fusions were not run first, of which there are none here.
        onnx.helper.set_model_props(proto, {"onnx.quant.pre_process": "onnxruntime.quant"})
        # Weights go into a file beside the graph, for one of protobuf's holds at most 2 GB.
        onnx.save_model(proto, folder / f"{tower}.onnx", save_as_external_data=True, location=f"{tower}.onnx.data")


def _quantise(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target.mkdir()
    for tower in folders.TOWERS:
        quantize_dynamic(
            source / f"{tower}.onnx",
            target / f"{tower}.onnx",
            op_types_to_quantize=["MatMul"],  # those with a weight: activations are multiplied as they are
            per_channel=True,
            weight_type=QuantType.QInt8,  # QUInt8 is slower than float32
            use_external_data_format=True,
        )


class _Samples:
    """Random inputs of a model, and its features for them."""

    def __init__(self, model: CLIP) -> None:
        n, length, generator = model.visual.input_resolution, model.context_length, torch.Generator().manual_seed(0)
        self.image = torch.randn(1, 3, n, n, generator=generator)
        self.mask = torch.rand(2, n, n, generator=generator) > 0.5
        self.text = torch.randint(1, model.vocab_size - 1, (2, length), generator=generator)
        for row, end in zip(self.text, (length - 1, length // 2), strict=True):
            row[end] = model.vocab_size - 1  # the end-of-text token has the highest id of all
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore", MasksIgnored)  # the inputs are noise
            warnings.simplefilter("ignore", WordsNeverRead)
            self.features = [x.cpu() for x in (model.encode_image(self.image, self.mask), model.encode_text(self.text))]

    def difference(self, served: OnnxCLIP) -> float:
        """Return the largest distance from the model's features, relative to their length."""
        pairs = zip(self._of(served), self.features, strict=True)
        return max(float(((a - b).norm(dim=1) / b.norm(dim=1)).max()) for a, b in pairs)

    def similarities(self, served: OnnxCLIP) -> dict[str, float]:
        pairs = zip(folders.TOWERS, self._of(served), self.features, strict=True)
        return {tower: float(F.cosine_similarity(a, b).min()) for tower, a, b in pairs}

    def _of(self, served: OnnxCLIP) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WordsNeverRead)
            return [served.encode_image(self.image, self.mask), served.encode_text(self.text)]
