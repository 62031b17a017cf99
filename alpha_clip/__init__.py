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
    from .model import build_model as build_model
    from .tokenizer import tokenize as tokenize
    from .transforms import Preprocess as Preprocess
    from .transforms import box_mask as box_mask
    from .weights import WeightsError as WeightsError

_HOME = {
    "available_models": "api",
    "load": "api",
    "build_model": "model",
    "tokenize": "tokenizer",
    "Preprocess": "transforms",
    "box_mask": "transforms",
    "WeightsError": "weights",
}
_MODULES = {"api", "model", "scenes", "tokenizer", "transforms", "weights"}  # alpha_clip.model works, as in clip

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
