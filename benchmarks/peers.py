"""One random ViT-B/16 in every library: with the same weights, all must give the same features.

The tokenizer of transformers is built from our vocabulary; the others have OpenAI's own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import alpha_clip
from alpha_clip.errors import MasksIgnored
from alpha_clip.model import CLIP, convert_weights

from .load import in_transformers_names, transformers_clip

VIT_B_16 = (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)  # in the order of CLIP's arguments
SHIMS = Path(__file__).with_name("shims")
PIP = 'pip install -e ".[bench]"'
PACKAGES = ("open_clip", "transformers", "clip", "onnxruntime", "onnx", "onnxscript")  # names of their modules


@dataclass(frozen=True)
class Peer:
    """The model in one library, and how its users call it."""

    name: str
    image: Callable[[Tensor], Tensor]  # (B, 3, 224, 224) to (B, 512)
    text: Callable[[Tensor], Tensor]  # (N, 77) int64 to (N, 512)
    tokenize: Callable[[list[str]], Tensor]  # to (N, 77)
    cast: Callable[[torch.dtype], Any]


def require() -> None:
    """Exit and say what to install unless every peer is installed."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        sys.exit(f"not installed: {', '.join(missing)}. {PIP}")
    sys.path.insert(0, str(SHIMS))


@cache
def ours() -> CLIP:
    """The model whose weights all others have. Its alpha weights are zero, so that it is plain CLIP."""
    torch.manual_seed(0)
    return CLIP(*VIT_B_16).eval()


def plain_weights() -> dict[str, Tensor]:
    return {name: value for name, value in ours().state_dict().items() if "conv1_alpha" not in name}


def torch_peers() -> list[Peer]:
    """Ours first, then open_clip, transformers with either attention, and OpenAI's."""
    return [with_ours(), with_open_clip(), with_transformers("sdpa"), with_transformers("eager"), with_openai_clip()]


def with_ours() -> Peer:
    model = ours()
    return Peer("alpha_clip", model.encode_image, model.encode_text, alpha_clip.tokenize, model.to)


@cache
def open_clip_model() -> Any:
    import open_clip

    model = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None).eval()
    model.load_state_dict(plain_weights())
    return model


def with_open_clip() -> Peer:
    import open_clip

    model = open_clip_model()
    return Peer("open_clip", model.encode_image, model.encode_text, open_clip.tokenize, model.to)


def with_transformers(attention: str) -> Peer:
    model = transformers_clip(VIT_B_16, attention)
    model.load_state_dict(in_transformers_names(plain_weights()))
    tokenizer = _transformers_tokenizer()

    def features(output: Any) -> Tensor:
        return getattr(output, "pooler_output", output)  # before transformers 5, the tensor itself

    def tokenize(texts: list[str]) -> Tensor:
        return tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids

    return Peer(
        f"transformers, {attention}",
        lambda image: features(model.get_image_features(image)),
        lambda tokens: features(model.get_text_features(tokens)),
        tokenize,
        model.to,
    )


@cache
def _transformers_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    own = alpha_clip.tokenizer.shared_tokenizer()
    spelling = list(own.encoder)
    merges = [f"{spelling[pair >> 16]} {spelling[pair & 0xFFFF]}" for pair in own._merges]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(own.encoder))
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def with_openai_clip() -> Peer:
    import clip
    from clip.model import CLIP as Theirs

    model = Theirs(*VIT_B_16).eval()
    model.load_state_dict(plain_weights())

    def cast(dtype: torch.dtype) -> None:
        convert_weights(model, dtype)  # their layer norms stay in float32

    return Peer("openai-clip", model.encode_image, model.encode_text, clip.tokenize, cast)


# --- ONNX Runtime, for the serving table ---


def onnx_peers(folder: Path, threads: int) -> list[Peer]:
    """Our export, if this version has one, and plain CLIP, open_clip's modules exported as they are."""
    peers = [with_plain_onnx(folder / "plain", threads)]
    if find_spec("alpha_clip.onnx") is not None:
        peers.insert(0, with_our_onnx(folder / "ours", threads))
    return peers


def with_our_onnx(folder: Path, threads: int) -> Peer:
    from importlib import import_module

    onnx = import_module("alpha_clip.onnx")
    onnx.export(ours(), folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MasksIgnored)  # it is plain CLIP, as the peers are
        served = onnx.load(folder, threads=threads)
    return Peer("alpha_clip ONNX", served.encode_image, served.encode_text, alpha_clip.tokenize, float32_only)


def with_plain_onnx(folder: Path, threads: int) -> Peer:
    import onnxruntime

    folder.mkdir(parents=True, exist_ok=True)
    model = open_clip_model()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def session(name: str, encode: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        path = folder / f"{name}.onnx"
        batch = {0: torch.export.Dim("batch")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(encode, (example,), path, dynamo=True, dynamic_shapes=(batch,), verbose=False)
        run = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (put,) = run.get_inputs()
        return lambda x: torch.from_numpy(run.run(None, {put.name: x.numpy()})[0])

    image = session("image", _Verb(model, "encode_image"), torch.randn(2, 3, 224, 224))
    text = session("text", _Verb(model, "encode_text"), torch.full((2, 77), 49407))
    return Peer("ONNX Runtime, plain CLIP", image, text, alpha_clip.tokenize, float32_only)


class _Verb(nn.Module):
    """One method of a model as a module, since the exporter takes modules."""

    def __init__(self, model: nn.Module, verb: str) -> None:
        super().__init__()
        self.model, self.verb = model, verb

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.model, self.verb)(x)


def float32_only(dtype: torch.dtype) -> None:
    assert dtype == torch.float32, dtype


def assert_equal(features: Sequence[Tensor], names: Sequence[str], tolerance: float) -> None:
    """Assert that all features, scaled by the norm of the first, agree to `tolerance`; name the one that does not."""
    first = features[0].float()
    scale = first.norm(dim=-1, keepdim=True)
    for other, name in zip(features[1:], names[1:], strict=True):
        assert other.shape == first.shape, f"{name} gives {tuple(other.shape)}, {names[0]} {tuple(first.shape)}"
        apart = ((other.float() - first) / scale).norm(dim=-1).max().item()
        assert apart <= tolerance, f"{name} differs from {names[0]} by {apart:.1e} of the norm, allowed {tolerance:.0e}"
