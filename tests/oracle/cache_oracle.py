"""Caches that know a line by address and key, as slow and obvious Python.

Written from the fact sheet (SNP host, 6.2, 6.4 and 7.1), with rules of its own: caches are a
dictionary, flushes are done as a whole, in each order of their write-backs. ``outcomes`` follows
every order of events by recursion.

A machine is ``(caches, memory, queue, expected)``:

* ``caches``: {(cpu, line, domain): (what, dirty)}; ``what`` is a value or None, which is noise;
* ``memory``: {line: (domain, value, readable)}; ``queue``: the same for writes on their way;
* ``expected``: {line: (domain, value)}.

A statement is ``(kind, cpu, line, domain, value)``, kind a word. A program is a list of blocks,
each a list of statements; in a block each CPU keeps its order.
"""

from itertools import permutations
from typing import NamedTuple


class Machine(NamedTuple):
    caches: frozenset
    memory: frozenset
    queue: frozenset
    expected: frozenset

    @classmethod
    def of(cls, caches, memory, queue, expected):
        return cls(*(frozenset(part.items()) for part in (caches, memory, queue, expected)))

    def parts(self):
        return tuple(dict(part) for part in self)


def decrypt(content, domain):
    """What a read under a domain makes of what is in memory: a value, or None for noise."""
    if content is None:
        return None
    written_under, value, readable = content
    return value if readable and written_under == domain else None


def write_back(caches, queue, key, *, keep):
    _, line, domain = key
    what, dirty = caches[key]
    if dirty:
        queue[line] = (domain, what, True)
    if keep:
        caches[key] = (what, False)
    else:
        del caches[key]


def expel(caches, queue, line, domain):
    for key in sorted(key for key in caches if key[1] == line and key[2] != domain):
        write_back(caches, queue, key, keep=False)


def load(machine, cpu, line, domain, coherent):
    """Return (what was read, machine after it)."""
    caches, memory, queue, expected = machine.parts()
    if coherent:
        expel(caches, queue, line, domain)
    if (cpu, line, domain) not in caches:
        others = [what for key, (what, _) in caches.items() if key[1:] == (line, domain)]
        fresh = decrypt(queue.get(line, memory.get(line)), domain)
        caches[cpu, line, domain] = (others[0] if others else fresh, False)
    return caches[cpu, line, domain][0], Machine.of(caches, memory, queue, expected)


def execute(machine, statement, coherent):
    """Yield (what a load read or None, machine) for each way in which a statement can end."""
    kind, cpu, line, domain, value = statement
    if kind == "load":
        yield load(machine, cpu, line, domain, coherent)
        return
    caches, memory, queue, expected = machine.parts()
    own = [key for key in caches if key[0] == cpu]
    if kind in ("wbinvd", "wbnoinvd"):
        dirty = [key for key in own if caches[key][1]]
        for order in permutations(dirty):
            after, written = dict(caches), dict(queue)
            for key in order:
                write_back(after, written, key, keep=True)
            if kind == "wbinvd":
                after = {key: one for key, one in after.items() if key[0] != cpu}
            yield None, Machine.of(after, memory, written, expected)
        return
    if kind == "store":
        if coherent:
            expel(caches, queue, line, domain)
        caches = {key: one for key, one in caches.items() if key[1:] != (line, domain)}
        caches[cpu, line, domain] = (value, True)
        expected[line] = (domain, value)
    elif kind in ("clflush", "page_flush"):
        for key in sorted(caches):
            is_hit = key[2] == domain or (coherent and kind == "clflush")
            if key[1] == line and is_hit:
                write_back(caches, queue, key, keep=False)
    elif kind == "invd":
        caches = {key: one for key, one in caches.items() if key[0] != cpu}
    elif kind == "df_flush":
        memory, queue = memory | queue, {}
    elif kind == "rekey":
        for at, (written_under, content, readable) in memory.items():
            memory[at] = (written_under, content, readable and written_under != domain)
        expected = {at: one for at, one in expected.items() if one[0] != domain}
    elif kind == "convert":
        expected.pop(line, None)
    elif kind == "kexec":
        expected = {}
    elif kind != "halt":
        raise AssertionError(kind)
    yield None, Machine.of(caches, memory, queue, expected)


def by_itself(machine):
    """Yield what hardware may do without being asked."""
    caches, memory, queue, expected = machine.parts()
    for key in caches:
        after, written = dict(caches), dict(queue)
        write_back(after, written, key, keep=False)
        yield Machine.of(after, memory, written, expected)
    for line in queue:
        rest = {at: one for at, one in queue.items() if at != line}
        yield Machine.of(caches, memory | {line: queue[line]}, rest, expected)


def outcomes(blocks, memory, *, coherent=False):
    """Return ``(results, reads)`` of a program.

    ``results``: set of (memory, expected), as frozensets of items. ``reads``: set of (block, index
    in the block, what was read) of loads that do not get the last store in their domain.
    """
    results, reads, seen = set(), set(), set()
    todo = [(0, frozenset(), Machine.of({}, memory, {}, {}))]
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        at, done, machine = state
        while at < len(blocks) and len(done) == len(blocks[at]):
            at, done = at + 1, frozenset()
        todo += [(at, done, after) for after in by_itself(machine)]
        caches, _, queue, expected = machine.parts()
        if at == len(blocks):
            if not queue and not any(dirty for _, dirty in caches.values()):
                results.add((machine.memory, machine.expected))
            continue
        for i, statement in enumerate(blocks[at]):
            earlier = [j for j in range(i) if blocks[at][j][1] == statement[1]]
            if i in done or not done.issuperset(earlier):
                continue
            for what, after in execute(machine, statement, coherent):
                wanted = expected.get(statement[2])
                is_judged = statement[0] == "load" and wanted and wanted[0] == statement[3]
                if is_judged and what != wanted[1]:
                    reads.add((at, i, what))
                todo.append((at, done | {i}, after))
    return results, reads
