"Tools for mutants: ways to put a defect back, each a context manager, and a check that wants a refusal."
import inspect
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import lotus_nb.methods.core as methods_core


@contextmanager
def rewritten(module, name, old, new):
    "A function with `old`, which must stand in its source once, replaced by `new`."
    real, source = getattr(module, name), inspect.getsource(getattr(module, name))
    assert source.count(old) == 1, f'{old!r} is not in {module.__name__}.{name}: write this mutation anew'
    with patch.dict(methods_core._registry):                          # a method registers itself again
        try:
            exec(compile(source.replace(old, new), f'{name}, broken', 'exec'), vars(module))
            yield
        finally: setattr(module, name, real)


def swapped(owner, name, value): return partial(patch.object, owner, name, value)


def default(method, **values): return lambda: patch.dict(methods_core.get_method(method).fn.__kwdefaults__, values)


def refused(act, words):
    try: act()
    except ValueError as e: assert words in str(e), e
    else: raise AssertionError(f'nothing was said: {words}')
