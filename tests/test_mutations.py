"""Known bugs, put back (see the package `mutants`): a check passes on the library as it is, and fails on the broken one, for the reason that its row gives.

A check that cannot fail is no check.
"""
import pytest

import lotus_nb.methods.neggrad as neggrad
from mutants import MUTATIONS
from mutants.common import rewritten


@pytest.mark.parametrize('what, seen_in, broken, check, words', MUTATIONS, ids=[m[0] for m in MUTATIONS])
def test_a_check_notices(what, seen_in, broken, check, words, task):
    check(task)
    with broken():
        with pytest.raises((ValueError, RuntimeError) if words else AssertionError, match=words): check(task)
    check(task)                                                       # the defect is gone again


def test_a_mutation_that_changes_nothing_is_an_error():
    with pytest.raises(AssertionError, match='write this mutation anew'):
        with rewritten(neggrad, 'contrast', 'no such words', ''): pass
