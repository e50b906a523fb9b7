"""Tables of cases, and which of them are slow."""

import pytest


def first_of_each(cases, of=2):
    """Cases of one name and the same arguments but for the first are slow: of other shapes, they say the same again.

    Args:
        cases: `pytest.param` of a name, its arguments and more.
        of: How many values must be the same: 1 for the name alone, whatever its arguments.
    """
    seen, marked = set(), []
    for case in cases:
        key = str(case.values[:of])
        marks = [pytest.mark.slow] if key in seen else []
        seen.add(key)
        marked.append(pytest.param(*case.values, id=case.id, marks=marks))
    return marked
