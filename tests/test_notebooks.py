"Every notebook, as one test case: all cells but those flagged in `tst_flags`, each notebook in a process of its own. What pages of the paper show is what they give."
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT
from fastcore.nbio import mk_cell, new_nb, read_nb, write_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from processes import Python

CONFIG = get_config(ROOT)
FLAGS = CONFIG.tst_flags.split()
NOTEBOOKS = sorted(str(p) for p in nbglob(ROOT/'nbs', as_path=True))
NAMES = [os.path.relpath(n, ROOT/'nbs') for n in NOTEBOOKS]
FROM_RESULTS = [n for n, name in zip(NOTEBOOKS, NAMES) if re.match(r'paper/(?!00|02|15)', name)]          # these three train, too, and depend on the processor
EXECUTED = tempfile.TemporaryDirectory()
SLOW = ('00_bench', 'index', 'fastai', 'cli', 'quickstart', 'methods', 'loop')          # these start first


def executed(notebook): return Path(EXECUTED.name)/'-'.join(Path(notebook).parts[-2:])


def start(notebook):
    "Run a notebook in a new process: what it patches or registers reaches no other one. `conftest.py` says when. Its outputs go to a copy."
    code = """import sys
from nbdev import test
write, copy = test.write_nb, sys.argv[2]
test.write_nb = lambda nb, _: write(nb, copy)
sys.exit(not test.test_nb(sys.argv[1], skip_flags=sys.argv[4:], cell_timeout=int(sys.argv[3]), save=True)[0])"""
    p = Python(code, notebook, executed(notebook), CONFIG.cell_timeout, *FLAGS)
    out, err = p.communicate()
    return subprocess.CompletedProcess(notebook, p.returncode, out, err)


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=NAMES)
def test_notebook(notebook, runs):
    done = runs[notebook].result()
    assert done.returncode == 0, f'{done.stdout}\n{done.stderr}'


def shown(notebook):
    "Cell → the words and numbers that it shows, without markup."
    def words(output):
        data = output.get('data', {'text/plain': output.get('text', '')})
        return re.sub('<[^>]*>', ' ', ''.join(data.get('text/html') or data.get('text/plain') or '')).split()
    return {c.id: [words(o) for o in c.get('outputs') or ()] for c in read_nb(notebook).cells if c.cell_type == 'code'}


@pytest.mark.parametrize('notebook', FROM_RESULTS, ids=lambda n: os.path.relpath(n, ROOT/'nbs'))
def test_shown_is_what_a_new_run_gives(notebook, runs):
    "Pages that read `results/` are not older than what lies there."
    assert runs[notebook].result().returncode == 0
    stored, new = shown(notebook), shown(executed(notebook))
    assert {k: (v, new[k]) for k, v in stored.items() if v != new[k]} == {} and sum(map(bool, sum(stored.values(), []))) > 3


def test_a_stale_page_is_seen(tmp_path):
    page = notebook(tmp_path/'stale.ipynb', "import pandas as pd\npd.DataFrame({'a': [1]})", 'print(2)')
    start(page)
    new = read_nb(executed(page))
    for was, now in (('<td>1</td>', '<td>3</td>'), ('2\n', '4\n')):
        write_nb(new, page)
        assert shown(page) == shown(executed(page))
        page.write_text(text := page.read_text().replace(was.replace('\n', '\\n'), now.replace('\n', '\\n')))
        assert now[:-1] in text and shown(page) != shown(executed(page))


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
