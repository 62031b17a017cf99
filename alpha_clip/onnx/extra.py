"""Import the optional packages that ONNX models need."""

from importlib import import_module
from typing import Any


def optional(name: str) -> Any:
    """Import a module of a package that the extra ``onnx`` installs.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f'ONNX models need {error.name}: pip install "alpha-clip[onnx]"') from error
