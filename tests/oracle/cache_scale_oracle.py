"""Caches of several cores as dictionaries, for a few lines: which hit, what memory holds.

The same policy as ``ghcbcore.cache`` (private L1 and L2, a victim L3, oldest line leaves), in the
most obvious way: a set is a list, the one used last first. Written from the docstring of the module
and the fact sheet, 7.1.
"""

ALONE, SHARED = "alone", "shared"


class Line:
    def __init__(self, key, version=0, dirty=False, alone=True):
        self.key, self.version, self.dirty, self.alone = key, version, dirty, alone

    def __repr__(self):
        return f"{self.key} v{self.version}{' dirty' * self.dirty}{' alone' * self.alone}"


class Level:
    def __init__(self, n_sets, ways):
        self.n_sets, self.ways = n_sets, ways
        self.sets = [[] for _ in range(n_sets)]

    def of(self, key):
        return self.sets[key[0] % self.n_sets]

    def find(self, key):
        return next((one for one in self.of(key) if one.key == key), None)

    def use(self, one):
        self.of(one.key).remove(one)
        self.of(one.key).insert(0, one)

    def take(self, key):
        one = self.find(key)
        if one:
            self.of(key).remove(one)
        return one

    def put(self, one):
        """Put a line in; return the one that has to leave."""
        lines = self.of(one.key)
        out = lines.pop() if len(lines) == self.ways else None
        lines.insert(0, one)
        return out

    def all(self):
        return [one for lines in self.sets for one in lines]


class Caches:
    def __init__(self, levels, n_cores, cores_per_l3, coherent):
        self.n_levels, self.per, self.coherent = len(levels), cores_per_l3, coherent
        self.l1 = [Level(*levels[0]) for _ in range(n_cores)]
        self.l2 = [Level(*levels[1]) for _ in range(n_cores)] if len(levels) > 1 else []
        self.l3 = (
            [Level(*levels[2]) for _ in range(-(-n_cores // cores_per_l3))]
            if len(levels) > 2
            else []
        )
        self.memory, self.meant, self.n_versions = {}, {}, 0
        self.counts = dict.fromkeys(("l1", "l2", "l3", "other", "fill", "write_back"), 0)

    def reach(self, core):
        """The caches that a core reaches, the newest content first."""
        own = [self.l1[core]] + ([self.l2[core]] if self.l2 else [])
        return own + ([self.l3[core // self.per]] if self.l3 else [])

    def write_back(self, key, version):
        self.counts["write_back"] += 1
        self.memory[key[0]] = (key[1], version)

    def leave(self, core, one, level):
        """A line leaves a level: where does it go?"""
        if one is None:
            return
        if level == 1 and self.l2:
            if one.dirty:
                below = self.l2[core].find(one.key)
                below.dirty, below.version, below.alone = True, one.version, one.alone
            return
        if level == 2:
            above = self.l1[core].take(one.key)
            if above and above.dirty:
                one.dirty, one.version = True, above.version
            if above and above.dirty:
                one.alone = above.alone
            if self.l3:
                shared = self.l3[core // self.per]
                there = shared.find(one.key)
                if there is None:
                    self.leave(core, shared.put(Line(**vars(one))), 3)
                elif one.dirty:
                    shared.use(there)
                    there.dirty, there.version, there.alone = True, one.version, one.alone
                return
        if one.dirty:
            self.write_back(one.key, one.version)

    def drop(self, key):
        """Take a line out of all caches; return its newest dirty version, and if it was there."""
        everywhere = [level for group in (self.l1, self.l2, self.l3) for level in group]
        found = [one for one in (level.take(key) for level in everywhere) if one]
        versions = [one.version for one in found if one.dirty]
        return max(versions, default=None), bool(found)

    def access(self, core, line, slot, is_store):
        key = (line, slot)
        self.bring(core, key, is_store)
        one = self.l1[core].find(key)
        if is_store:
            if not one.alone:
                for other in range(len(self.l1)):
                    if other != core:
                        self.l1[other].take(key)
                        if self.l2:
                            self.l2[other].take(key)
                for shared in self.l3:
                    shared.take(key)
            self.n_versions += 1
            one.dirty, one.alone, one.version = True, True, self.n_versions
            self.meant[line] = (slot, self.n_versions)

    def bring(self, core, key, is_store):
        l1 = self.l1[core]
        one = l1.find(key)
        if one:
            self.counts["l1"] += 1
            l1.use(one)
            return
        below = self.l2[core].find(key) if self.l2 else None
        if below:
            self.counts["l2"] += 1
            self.l2[core].use(below)
            self.leave(core, l1.put(Line(key, alone=below.alone)), 1)
            return
        one = self.l3[core // self.per].take(key) if self.l3 else None
        if one:
            self.counts["l3"] += 1
        else:
            if self.coherent:
                self.expel(key)
            one = Line(key, alone=True)
            if self.others_have(core, key, is_store):
                self.counts["other"] += 1
                one.alone = is_store
            else:
                self.counts["fill"] += 1
        if self.l2:
            self.leave(core, self.l2[core].put(one), 2)
            one = Line(key, alone=one.alone)
        self.leave(core, l1.put(one), 1)

    def others_have(self, core, key, is_store):
        found = False
        for other in range(len(self.l1)):
            for level in self.reach(other):
                if other == core and level not in self.l3:
                    continue
                one = level.take(key) if is_store else level.find(key)
                if one:
                    one.alone = False
                    found = True
        return found

    def expel(self, key):
        for level in [level for group in (self.l1, self.l2, self.l3) for level in group]:
            for one in level.all():
                if one.key[0] == key[0] and one.key[1] != key[1]:
                    version, _ = self.drop(one.key)
                    if version is not None:
                        self.write_back(one.key, version)

    def clflush(self, line, slot):
        if self.coherent:
            self.expel((line, slot))
        version, _ = self.drop((line, slot))
        if version is not None:
            self.write_back((line, slot), version)

    def dirty(self, core=None):
        """{key: version} of what is dirty within reach of a core, or anywhere."""
        cores = range(len(self.l1)) if core is None else [core]
        found = {}
        for one in (one for c in cores for level in self.reach(c) for one in level.all()):
            if one.dirty:
                found[one.key] = max(one.version, found.get(one.key, 0))
        return found

    def flush(self, core, *, write, drop):
        """Return the lines that were written, by line: {line: set of (slot, version)}."""
        written = {}
        if write:
            for (line, slot), version in self.dirty(core).items():
                written.setdefault(line, set()).add((slot, version))
                self.counts["write_back"] += 1
        for c in range(len(self.l1)) if core is None else [core]:
            for level in self.reach(c):
                for one in level.all():
                    one.dirty = one.dirty and not write
                if drop:
                    level.sets = [[] for _ in range(level.n_sets)]
        return written

    def corrupted(self):
        """{line: (meant, in memory)} where the last store is lost."""
        waiting = set(self.dirty().values())
        return {
            line: (meant, self.memory.get(line, (0, 0)))
            for line, meant in self.meant.items()
            if self.memory.get(line) != meant and meant[1] not in waiting
        }
