"""What commands share: the refusal of arguments, and properties out of a user's file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ghcbcore.errors import SevError

if TYPE_CHECKING:
    from .flow import Property

__all__ = ["UsageError", "load_property"]


class UsageError(SevError):
    """The command was called in a way that it cannot be; the text says which argument."""


def load_property(text: str, kind: str = "always", option: str = "--property") -> Property:
    """Load ``FILE.py:FUNCTION``, a function over states; its docstring says what it means.

    Raises
    ------
    UsageError
        The file ends in an exception, or has no such function.
    OSError
        It cannot be read.
    """
    import runpy

    from .flow import Property

    path, colon, name = text.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise UsageError(f"{option} {text!r}: must be FILE.py:FUNCTION")
    try:
        found = runpy.run_path(path)
    except OSError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{option} {path}: {type(error).__name__}: {error}") from error
    if not callable(found.get(name)):
        raise UsageError(f"{option} {path}: no function {name!r}")
    return Property(name, kind, found[name], " ".join(str(found[name].__doc__ or "").split()))
