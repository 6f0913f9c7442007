"Every notebook, as one test case: all cells but those flagged in `tst_flags`, each notebook in a process of its own."
import json
import os
import subprocess
import sys
from tempfile import NamedTemporaryFile
from threading import local

import pytest
from conftest import ROOT
from fastcore.nbio import mk_cell, new_nb, write_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob

CONFIG = get_config(ROOT)
FLAGS = CONFIG.tst_flags.split()
NOTEBOOKS = sorted(str(p) for p in nbglob(ROOT/'nbs', as_path=True))
NAMES = [os.path.relpath(n, ROOT/'nbs') for n in NOTEBOOKS]
SLOW = ('00_bench', 'index', 'fastai', 'cli', 'quickstart', 'methods', 'loop')          # these start first
# A process that imports what all pages import, and then becomes a copy of itself for each notebook: it reads notebooks and files for their output, and answers with exit statuses.
# Nothing of this library is imported beforehand.
FORKS = """
import json, os, sys
import matplotlib.pyplot, pandas, scipy.stats, sklearn.linear_model, timm, torch
from nbdev.test import test_nb as run
seconds, *flags = sys.argv[1:]
for line in iter(sys.stdin.readline, ''):
    name, *files = json.loads(line)
    child = os.fork()
    if not child:
        for n, file in enumerate(['/dev/null', *files]): os.dup2(os.open(file, os.O_RDWR), n)
        ok, _ = run(name, skip_flags=flags, cell_timeout=int(seconds))
        sys.exit(0 if ok else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
LOCAL = local()


def start(notebook):
    "Run a notebook in a new process: what it patches or registers reaches no other one. `conftest.py` says when."
    if not hasattr(LOCAL, 'forks'):
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg'}
        LOCAL.forks = subprocess.Popen([sys.executable, '-c', FORKS, str(CONFIG.cell_timeout), *FLAGS], cwd=ROOT, env=env, text=True,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with NamedTemporaryFile('r') as out, NamedTemporaryFile('r') as err:
        print(json.dumps([str(notebook), out.name, err.name]), file=LOCAL.forks.stdin, flush=True)
        status = LOCAL.forks.stdout.readline()
        return subprocess.CompletedProcess(notebook, int(status or -1), out.read(), err.read())


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
