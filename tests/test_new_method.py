"The tutorial 'A new method', followed to the letter in a copy of the repository: one notebook is added, no other file is touched, and there is a row."
import os
import shutil
import subprocess
import sys

from conftest import ROOT
from fastcore.nbio import mk_cell, new_nb, read_nb, write_nb

TUTORIAL = ROOT/'nbs'/'tutorials'/'03_new_method.ipynb'


def cells_under(heading):
    "Code cells of a section of the tutorial."
    inside, found = False, []
    for c in read_nb(TUTORIAL).cells:
        if c.cell_type == 'markdown' and c.source.startswith('## '): inside = c.source == f'## {heading}'
        elif inside and c.cell_type == 'code': found.append(c.source)
    return found


def run(copy, *command):
    env = {**os.environ, 'PYTHONPATH': str(copy), 'OMP_NUM_THREADS': '1', 'PATH': f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'}
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_notebook_is_enough(tmp_path):
    copy = tmp_path/'repo'
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns('.git', '_docs', '_proc', '.cache', '.venv', '*.egg-info', 'lotus-demo'))
    before = {p: p.read_bytes() for p in copy.rglob('*') if p.is_file() and p.suffix in ('.py', '.ipynb', '.yml', '.toml')}
    imports, method = cells_under('The method')
    page = ['#| default_exp methods.blur', '# Blur\n> Make the network unsure of what it should forget.',
            f'#| export\n{imports}', f'#| export\n{method}', *cells_under('Does it do what it says?')[:1]]
    notebook = copy/'nbs'/'methods'/'21_blur.ipynb'
    write_nb(new_nb([mk_cell(s, 'markdown' if s.startswith('# ') else 'code') for s in page]), notebook)
    run(copy, 'nbdev-export')
    written = {p.relative_to(copy).as_posix() for p, b in before.items() if p.read_bytes() != b}
    assert written <= {'lotus_nb/_modidx.py', 'lotus_nb/__init__.py'}, written              # the index of names, by nbdev-export
    assert (copy/'lotus_nb'/'methods'/'blur.py').exists()
    listed = run(copy, sys.executable, '-c', "from lotus_nb.cli import main; import sys; sys.argv = ['lotus-nb', 'methods']; main()")
    assert 'Raise the entropy of the answers on forget images' in listed
    rows = run(copy, sys.executable, '-c', '''
from functools import partial
from lotus_nb.bench import bench
from lotus_nb.report import table, text_table
from lotus_nb.train import digits_task
print(text_table(table(bench({'digits': partial(digits_task, epochs=5)}, ['blur'], [0], 'out', recipe='digits'))))
''')
    assert [line.split()[0] for line in rows.splitlines()[1:]] == ['noop', 'gold', 'blur']
