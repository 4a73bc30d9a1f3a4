"""The compiled core of pysev: numbers, codecs, host, machine step and explorer.

No I/O, no clock, no randomness, no logging. Layer rule: ``pysev`` -> ``ghcbcore`` -> ``include``.
"""

from pathlib import Path as _Path

try:
    import ghcbcore._cffi as _cffi  # noqa: F401
except ModuleNotFoundError as _error:
    raise ImportError(
        f"{_Path(__file__).parent} is the source, not compiled: start Python from another folder "
        "or as `python -P`, and tests as `pytest`, so that the installed package is found"
    ) from _error

__all__ = ["get_include"]


def get_include() -> str:
    """Return the folder to pass to the compiler with ``-I`` for ``<ghcbcore/...>``."""
    return str(_Path(__file__).parent / "include")
