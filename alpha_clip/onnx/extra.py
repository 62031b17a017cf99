"""The optional packages behind this one."""

from importlib import import_module
from typing import Any


def optional(name: str) -> Any:
    """The module `name`, of a package that the extra ``onnx`` installs.

    Raises:
        ImportError: it is not installed; how to.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f'ONNX models need {error.name}: pip install "alpha-clip[onnx]"') from error
