"""Known bugs, put back. Each row of a module's MUTATIONS breaks one thing that published code got wrong, and names the check that must notice.

A row: what; where it was seen; how it is put back (a context manager); the check that notices, a function of the digits task; and the library's own words, where its guard answers first.
"""
import pkgutil
from importlib import import_module

MUTATIONS = [row for m in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name)
             for row in getattr(import_module(f'{__name__}.{m.name}'), 'MUTATIONS', [])]
