"""CLIP that looks wherever you point it.

>>> import alpha_clip
>>> model, preprocess = alpha_clip.load("tiny", device="cpu")
>>> tokens = alpha_clip.tokenize(["a dog", "a cat"])

The public names are imported on first use, so that ``import alpha_clip`` costs next to nothing.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import available_models as available_models
    from .api import load as load
    from .catalogue import available_alpha_weights as available_alpha_weights
    from .errors import AlphaWeightsNotFound as AlphaWeightsNotFound
    from .errors import HashMismatch as HashMismatch
    from .errors import IncompatibleCheckpoint as IncompatibleCheckpoint
    from .errors import WeightsError as WeightsError
    from .model import build_model as build_model
    from .regions import embed_regions as embed_regions
    from .sharing import push_to_hub as push_to_hub
    from .sharing import save as save
    from .tokenizer import tokenize as tokenize
    from .transforms import Preprocess as Preprocess
    from .transforms import box_mask as box_mask
    from .zero_shot import zero_shot_classifier as zero_shot_classifier

_HOME = {
    "available_models": "api",
    "load": "api",
    "available_alpha_weights": "catalogue",
    "AlphaWeightsNotFound": "errors",
    "HashMismatch": "errors",
    "IncompatibleCheckpoint": "errors",
    "WeightsError": "errors",
    "build_model": "model",
    "embed_regions": "regions",
    "push_to_hub": "sharing",
    "save": "sharing",
    "tokenize": "tokenizer",
    "Preprocess": "transforms",
    "box_mask": "transforms",
    "zero_shot_classifier": "zero_shot",
}
_MODULES = {  # alpha_clip.model works, as in clip
    "api",
    "catalogue",
    "checkpoints",
    "errors",
    "hashes",
    "model",
    "onnx",
    "regions",
    "scenes",
    "sharing",
    "sources",
    "tokenizer",
    "towers",
    "transformer",
    "transforms",
    "weights",
    "zero_shot",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES:
        return import_module(f".{name}", __name__)
    elif name == "__version__":
        value = metadata.version("alpha-clip")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
