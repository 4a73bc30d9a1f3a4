"""Values and pages in words, for people: what one says and which rule it breaks.

``explain_msr`` takes a value and returns an ``Explanation``; ``main_decode`` is the body of
``pysev decode``. Arrays for programs: the codecs of ``ghcbcore``.
"""

from .command import main_decode
from .explanation import ExplainedField, Explanation
from .msr import explain_msr
from .reading import parse_value

__all__ = ["ExplainedField", "Explanation", "explain_msr", "main_decode", "parse_value"]
