"Every notebook, as one test case: all cells but those flagged in `tst_flags`, each notebook in a process of its own."
import os
import subprocess

import pytest
from conftest import ROOT
from fastcore.nbio import mk_cell, new_nb, write_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from processes import Python

CONFIG = get_config(ROOT)
FLAGS = CONFIG.tst_flags.split()
NOTEBOOKS = sorted(str(p) for p in nbglob(ROOT/'nbs', as_path=True))
NAMES = [os.path.relpath(n, ROOT/'nbs') for n in NOTEBOOKS]
SLOW = ('00_bench', 'index', 'fastai', 'cli', 'quickstart', 'methods', 'loop')          # these start first


def start(notebook):
    "Run a notebook in a new process: what it patches or registers reaches no other one. `conftest.py` says when."
    code = 'import sys\nfrom nbdev.test import test_nb\nsys.exit(not test_nb(sys.argv[1], skip_flags=sys.argv[3:], cell_timeout=int(sys.argv[2]))[0])'
    p = Python(code, notebook, CONFIG.cell_timeout, *FLAGS)
    out, err = p.communicate()
    return subprocess.CompletedProcess(notebook, p.returncode, out, err)


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=NAMES)
def test_notebook(notebook, runs):
    done = runs[notebook].result()
    assert done.returncode == 0, f'{done.stdout}\n{done.stderr}'


def test_every_notebook_is_tested():
    "Nothing but folders and files that begin with `_` or `.` is left out, and the flags are those that the pages use."
    found = {str(p) for p in (ROOT/'nbs').rglob('*.ipynb') if not any(d[0] in '_.' for d in p.relative_to(ROOT/'nbs').parts)}
    assert found == set(NOTEBOOKS) and found
    assert set(FLAGS) == {'notest', 'slow', 'gpu'}


def notebook(file, *cells):
    write_nb(new_nb([mk_cell(c, 'code') for c in cells]), file)
    return file


def test_a_broken_cell_is_seen_with_its_traceback(tmp_path):
    done = start(notebook(tmp_path/'broken.ipynb', 'x = 0', 'def f(): return 1/x', 'f()'))
    assert done.returncode == 1 and 'ZeroDivisionError' in done.stderr and 'return 1/x' in done.stderr


def test_flagged_cells_are_left_out(tmp_path):
    cells = [f'#| {flag}\n1/0' for flag in [*FLAGS, 'eval: false']]
    done = start(notebook(tmp_path/'flagged.ipynb', *cells))
    assert done.returncode == 0, done.stderr


def test_notebooks_do_not_see_each_other(tmp_path):
    "The first leaves a patched module behind, and the second finds the real one."
    first = start(notebook(tmp_path/'first.ipynb', 'import math; math.pi = 3'))
    second = start(notebook(tmp_path/'second.ipynb', 'import math, os\nassert math.pi > 3.14', "assert os.environ['IN_TEST'] == '1'"))
    assert first.returncode == second.returncode == 0, second.stderr
