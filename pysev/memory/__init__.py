"""What everybody thinks about each page of a guest: who changes it, who disagrees, since when.

``Memory`` holds the views of a whole guest apart (page tables, validation, RMP, the host's list,
the key
of the content), moves them by the rules of the hardware, and answers questions.
``pysev.memory.kexec``
is the page side of a kexec. The ledger below it is ``ghcbcore.ledger``.
"""

from __future__ import annotations

from .memory import Memory
from .records import Disagreement, Event, Outcome, Page, Run
from .words import explain_result

__all__ = ["Disagreement", "Event", "Memory", "Outcome", "Page", "Run", "explain_result"]
