"""The compiled core of pysev: numbers, codecs, host, machine step and explorer.

No I/O, no clock, no randomness, no logging. Layer rule: ``pysev`` -> ``ghcbcore`` -> ``include``.
"""

from pathlib import Path as _Path

__all__ = ["get_include"]


def get_include() -> str:
    """Return the folder to pass to the compiler with ``-I`` for ``<ghcbcore/...>``."""
    return str(_Path(__file__).parent / "include")
