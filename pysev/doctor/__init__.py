"""What a kernel log says about SEV on day one: facts, findings, advice.

``diagnose`` reads a log of a host or a guest; ``main_doctor`` is the body of ``pysev doctor``.
Which lines mean what is data, in ``pysev.tables.doctor*``; what the numbers in them mean is
decoded as ``pysev decode`` does.
"""

from .command import main_doctor
from .diagnosis import BootFacts, Diagnosis, Found, diagnose
from .log import BadLog

__all__ = ["BadLog", "BootFacts", "Diagnosis", "Found", "diagnose", "main_doctor"]
