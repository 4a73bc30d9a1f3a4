"""A signal in the middle of a round: nobody works on when the call has ended."""

import concurrent.futures
import gc
import signal
import threading

import pytest

from ghcbcore.explorer import Explorer
from pysev.flow import Flow, add, op


def grid(n):
    flow = Flow("grid")
    flow.globals(a=0, b=0, c=0)
    for name in ("a", "b", "c"):
        word = getattr(flow.g, name)
        flow.agent(name).at(
            "count", op(f"{name} + 1", when=[word < n], do=[add(word, 1)], to="."), ends=True
        )
    return flow.compile(1)


def pool_of_threads():
    pools = [o for o in gc.get_objects() if isinstance(o, concurrent.futures.ThreadPoolExecutor)]
    (pool,) = [p for p in pools if p._thread_name_prefix == "explorer"]
    return pool


def wide(n_threads):
    """Return a search up to a level that is wide enough for a full round, and where that begins."""
    compiled = grid(100)
    record = compiled.initial_record()
    ex = Explorer(compiled.program, record, global_bytes=4, n_threads=n_threads)
    low = 0
    while ex.n_states - low < 5120:
        high = ex.n_states
        for at in range(low, high, 512):  # too few for threads
            ex.expand(at, min(at + 512, high))
        low = high
    return ex, low


def test_pieces_of_a_round_that_a_signal_has_ended_are_not_worked_on_any_more():
    ex, low = wide(2)
    ex.expand(low, low + 1024)  # the threads are there from now on
    pool, release = pool_of_threads(), threading.Event()
    busy = [pool.submit(release.wait, 60) for _ in range(2)]

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            ex.expand(low + 1024, low + 5120)
        n_states, n_bytes = ex.n_states, ex.n_bytes
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        release.set()
    assert all(b.result() for b in busy)
    for _ in range(2):  # behind all that was queued
        pool.submit(int).result()
    assert (ex.n_states, ex.n_bytes) == (n_states, n_bytes)
    ex.expand(low + 1024, low + 5120)
    alone, at = wide(1)
    alone.expand(at, at + 5120)
    assert (ex.n_states, ex.n_transitions) == (alone.n_states, alone.n_transitions)
