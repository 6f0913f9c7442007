"Every notebook, as one test case: all cells but those flagged in `tst_flags`, each notebook in a process of its own."
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT
from nbdev.doclinks import nbglob

NOTEBOOKS = sorted(str(p) for p in nbglob(ROOT/'nbs', as_path=True))
CODE = 'import sys\nfrom nbdev.test import test_nb as run\nok, seconds = run(sys.argv[1], do_print=False)\nsys.exit(0 if ok else 1)'


def start(notebook):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg', 'IN_TEST': '1'}
    return subprocess.run([sys.executable, '-c', CODE, notebook], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope='session')
def runs(request):
    "The notebooks that were asked for, two at a time; slow ones first."
    wanted = [i.callspec.params['notebook'] for i in request.session.items if 'notebook' in getattr(getattr(i, 'callspec', None), 'params', {})]
    wanted.sort(key=lambda n: not any(k in n for k in ('bench', 'tutorials', 'index', 'finetune')))
    with ThreadPoolExecutor(2) as pool: yield {n: pool.submit(start, n) for n in wanted}


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=[os.path.relpath(n, ROOT/'nbs') for n in NOTEBOOKS])
def test_notebook(notebook, runs):
    done = runs[notebook].result()
    assert done.returncode == 0, f'{done.stdout}\n{done.stderr}'


def test_a_broken_cell_is_seen(tmp_path):
    "The runner itself fails when a cell does."
    from fastcore.nbio import mk_cell, new_nb, write_nb
    write_nb(new_nb([mk_cell('1/0', 'code')]), tmp_path/'broken.ipynb')
    done = start(str(tmp_path/'broken.ipynb'))
    assert done.returncode == 1 and 'ZeroDivisionError' in done.stderr


def test_every_page_was_found():
    assert len(NOTEBOOKS) >= 28
