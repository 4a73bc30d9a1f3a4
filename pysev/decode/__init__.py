"""Values and pages in words, for people: what one says and which rule it breaks.

``explain_msr`` takes a value and returns an ``Explanation``; ``main_decode`` is the body of
``pysev decode``. ``kinds()`` has everything that can be decoded; ``kind_of(name).explain`` takes
one value, page or buffer. ``pysev.decode.vendors`` takes codes that the protocol does not define.
Arrays for programs: the codecs of ``ghcbcore``.
"""

from .command import main_decode
from .explanation import ExplainedField, Explanation
from .kinds import Kind, kind_of, kinds
from .msr import explain_msr
from .reading import parse_value

__all__ = [
    "ExplainedField",
    "Explanation",
    "Kind",
    "explain_msr",
    "kind_of",
    "kinds",
    "main_decode",
    "parse_value",
]
