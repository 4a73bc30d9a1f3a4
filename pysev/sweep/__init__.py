"""One scenario over many machines: CPUs by memory by seed, in parallel, into one table.

grid     what `2..4096` and `1G..16T*4` mean
plan     the points of a sweep, what it is known by, and the columns of its rows
point    one run, as one row
journal  rows on disk as they come; what is left after a kill is continued
table    the finished file: Parquet or CSV, in the order of the points
work     the processes that run the points
summary  what is printed
plot     modelled time against CPUs
command  `pysev sweep`
"""

from __future__ import annotations

from .grid import parse_counts, parse_sizes
from .plan import Plan, SweepError
from .work import sweep

__all__ = ["Plan", "SweepError", "parse_counts", "parse_sizes", "sweep"]
