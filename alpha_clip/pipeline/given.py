"""Models as users give them: by name, as an object, or as a function that makes one."""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")

_EXPECTED = "expected a name, an object with an `identity`, or a function without arguments that makes such an object"
_REMEDY = "define it at the top of a module, or pass a function there that makes it in each worker"


def check(role: str, given: Any) -> None:
    """Refuse what is neither a name, nor an object with an `identity`, nor a function that can make one.

    Raises:
        TypeError: it is something else, or a function that needs arguments.
    """
    if isinstance(given, str) or _is_object(given):
        return
    try:
        inspect.signature(given).bind()
    except (TypeError, ValueError) as error:
        raise TypeError(f"the {role} is {given!r:.60}, {_EXPECTED} ({error})") from error


def made(role: str, given: str | _T | Callable[[], _T], find: Callable[[str], _T]) -> _T:
    """Return the model: `find` loads it by its name, and a function makes it.

    Raises:
        TypeError: what the function made has no `identity`.
        Other errors: as `find`, and as the function.
    """
    if isinstance(given, str):
        return find(given)
    if _is_object(given):
        return given  # type: ignore[return-value]
    found: _T = given()  # type: ignore[operator]
    if not _is_object(found):
        raise TypeError(f"the {role} that {described(given)} made is {found!r:.60}, without an `identity`: add one")
    return found


def described(given: Any) -> str:
    """Return what stands for a model in the settings: its name, its identity, or the name of what makes it."""
    if isinstance(given, str):
        return given
    if _is_object(given):
        identity: str = given.identity
        return identity
    maker = getattr(given, "func", given)  # of a functools.partial
    return f"{maker.__module__}.{getattr(maker, '__qualname__', type(maker).__qualname__)}"


def _is_object(given: Any) -> bool:
    """Whether it is a model, and not a class of such."""
    return not isinstance(given, type) and callable(given) and isinstance(getattr(given, "identity", None), str)


def check_can_be_sent(work: Any, pickled: Callable[[Any], bytes] = pickle.dumps) -> None:
    """Refuse work that cannot go to other processes.

    Raises:
        TypeError: a model of it cannot be pickled, or is of a class that other processes do not find.
    """
    try:
        data = pickled(work)
    except Exception as error:  # of whatever kind the object raises
        raise TypeError(f"a model of the work cannot be sent to workers ({error}): {_REMEDY}") from error
    if pickled is pickle.dumps and b"__main__" in data and not hasattr(sys.modules["__main__"], "__file__"):
        raise TypeError(f"a model of the work is of a notebook or prompt, where workers do not find it: {_REMEDY}")
