"""A property of one's own: a function over an array of states, in one line of numpy.

pysev check sev-es-kexec/jump-table --property examples/own_property.py:one_at_a_time
"""

from pysev import Machine, Property, check, find


def one_at_a_time(s):
    """at most one AP is between INIT and its arrival"""
    return (s.cpu.bring_up == 1).sum(axis=1) <= 1


def never_all_held(s):
    """there is no moment at which the hypervisor holds every AP"""
    return ~(s.cpu.mp_state == 9).all(axis=1)


if __name__ == "__main__":
    flow = find("sev-es-kexec/jump-table").build(Machine.of(3))
    own = [Property(f.__name__, "always", f, f.__doc__) for f in (one_at_a_time, never_all_held)]
    result = check(flow, 3, properties=own)
    print(result.verdict, result.violations)
    print(*(f"  {step.agent}: {step.op}" for step in result.counterexample), sep="\n")
