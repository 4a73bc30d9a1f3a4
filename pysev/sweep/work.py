"""The processes that run the points of a sweep.

Workers are spawned: nothing of the parent but the plan reaches them. They leave Ctrl-C to the
parent and end when it is gone, however it went. What a point gives follows from the point alone,
so it does not matter who runs it, or when.
"""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from .journal import Journal
from .plan import Plan, Row, SweepError
from .point import Runner

__all__ = ["MAX_WORKERS", "default_workers", "sweep"]

MAX_WORKERS = 1024
AHEAD = 2  # points that wait for each worker

Told = Callable[[Row], None]


def default_workers() -> int:
    """One for each CPU that this process may use."""
    return len(os.sched_getaffinity(0))


def sweep(plan: Plan, journal: Journal, *, n_workers: int = 1, told: Told | None = None) -> None:
    """Run all points that the journal does not have; each row is on disk before ``told`` sees it.

    Raises
    ------
    SweepError
        The number of workers is not possible; a row cannot be written; a worker died.
    """
    if not 1 <= n_workers <= MAX_WORKERS:
        raise SweepError(f"--workers {n_workers}: 1 to {MAX_WORKERS} can be")
    todo = journal.todo()
    n = min(n_workers, plan.n_points - journal.n_done)
    for row in _here(plan, todo) if n <= 1 else _beside(plan, todo, n, journal):
        journal.add(row)
        if told is not None:
            told(row)


def _here(plan: Plan, todo: Iterator[int]) -> Iterator[Row]:
    runner = Runner(plan)
    for i in todo:
        yield runner.row(i)


def _beside(plan: Plan, todo: Iterator[int], n: int, journal: Journal) -> Iterator[Row]:
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n, mp_context=context, initializer=_begin, initargs=(plan,))
    running: set[Future[Row]] = set()
    try:
        running |= {pool.submit(_row, i) for i in itertools.islice(todo, AHEAD * n)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(_row, i) for i in itertools.islice(todo, len(done))}
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise SweepError(f"a worker died, of too little memory say: {journal.progress()}") from None
    finally:
        mine = set(multiprocessing.active_children()) - before
        pool.shutdown(wait=False, cancel_futures=True)
        if running:  # not to the end: nobody waits for what they are at
            for process in mine:
                process.terminate()
        for process in mine:
            process.join()


_runner: Runner | None = None


def _begin(plan: Plan) -> None:
    global _runner
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _runner = Runner(plan)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _row(i: int) -> Row:
    assert _runner is not None
    return _runner.row(i)
