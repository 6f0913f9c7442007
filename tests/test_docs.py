"Every public name says what it is, every page keeps the house's order."
import ast
import inspect
import re
from importlib import import_module
from statistics import median

import pytest
from conftest import ROOT
from fastcore.nbio import read_nb
from nbdev.doclinks import nbglob

MODULES = sorted(p for p in (ROOT/'lotus_nb').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))
NAMES = ['lotus_nb.' + '.'.join(p.relative_to(ROOT/'lotus_nb').with_suffix('').parts) for p in MODULES]
PAGES = sorted(nbglob(ROOT/'nbs', as_path=True))
PLAIN = {'self', 'dl', 'dls', 'caption', 'alt', 'model', 'task', 'seed', 'device', 'lr', 'wd', 'momentum', 'epochs', 'n'}   # these say themselves what they are


def functions(tree): return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]


def own(module):
    "Public functions and classes that a module defines."
    return [o for n in getattr(module, '__all__', ()) if inspect.isfunction(o := getattr(module, n)) or inspect.isclass(o) if o.__module__ == module.__name__]


@pytest.mark.parametrize('name', [n for n in NAMES if n != 'lotus_nb.all'])
def test_public_names_are_documented(name):
    module = import_module(name)
    metrics = {m.fn for m in getattr(import_module('lotus_nb.metrics.core'), '_registry').values()}   # a metric's title says what it is
    for o in own(module):
        assert o in metrics or (o.__doc__ and '\n\n' not in o.__doc__.strip()) or name == 'lotus_nb.cli', f'{o.__qualname__} needs a docstring of one line'


@pytest.mark.parametrize('path', MODULES, ids=NAMES)
def test_parameters_have_comments(path):
    lines = path.read_text(encoding='utf-8').split('\n')
    for f in functions(ast.parse('\n'.join(lines))):
        if f.name.startswith('_') or f.lineno == f.body[0].lineno or f.args.args[:1] == ['self']: continue
        signature = lines[f.lineno - 1:f.body[0].lineno - 1]
        if not any('#' in l for l in signature): continue                # a short signature without comments, of plain names
        for a in [*f.args.args, *f.args.kwonlyargs]:
            line = lines[a.lineno - 1]
            assert '#' in line or a.arg in PLAIN or "'" in line or line.count(',') > 1 or 'help=' in line, f'{path.name}: {f.name}({a.arg})'


def lengths(): return {f'{p.name}:{f.name}': f.end_lineno - f.lineno + 1 for p in MODULES for f in functions(ast.parse(p.read_text(encoding='utf-8')))}


def test_functions_are_short():
    n = lengths()
    assert median(n.values()) <= 8
    assert sorted(n.values())[int(.9*len(n))] <= 25
    assert not {k: v for k, v in n.items() if v > 45}


@pytest.mark.parametrize('path', MODULES, ids=NAMES)
def test_lines_fit(path):
    lines = path.read_text(encoding='utf-8').split('\n')
    head = next(i for i, l in enumerate(lines) if l.startswith('# %% ../'))        # what stands before is generated
    long = [i + 1 for i, l in enumerate(lines) if i > head and len(l) > 120 and not l.startswith('# %%')]
    assert not long, f'{path.relative_to(ROOT)}: lines {long} are longer than 120 columns'


@pytest.mark.parametrize('path', MODULES, ids=NAMES)
def test_nothing_is_left_open(path):
    source = path.read_text(encoding='utf-8')
    for word in ('NotImpl' + 'ementedError', 'TO' + 'DO', 'FIX' + 'ME'): assert word not in source
    if path.name not in ('cli.py', 'core.py'):
        assert not [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'print'], 'the library prints nothing'


@pytest.mark.parametrize('page', PAGES, ids=[str(p.relative_to(ROOT/'nbs')) for p in PAGES])
def test_pages_keep_the_order(page):
    cells = read_nb(page).cells
    source = [c.source for c in cells]
    exported = 'default_exp' in source[0]
    title = next(c for c in cells if c.cell_type == 'markdown').source
    assert re.match(r'# .+\n> .+', title), 'a page begins with a title and one line that says what it is'
    if exported: assert 'nbdev.nbdev_export()' in source[-1]
    for c in cells:
        if c.cell_type == 'markdown' and re.search(r'^##+ ', c.source, re.M) and '```' not in c.source:
            assert '\n' not in c.source.strip(), f'a heading stands alone: {c.source[:60]!r}'
        if c.cell_type == 'code' and re.search(r'plt\.subplots|plot_\w+\(', c.source) and '#| export' not in c.source and 'plt.close' not in c.source:
            assert 'fig-cap' in c.source and 'fig-alt' in c.source, f'a figure needs a caption and words: {c.source[:80]!r}'


METHOD_PAGES = [p for p in PAGES if p.parent.name == 'methods' and not p.name.startswith('00')]


@pytest.mark.parametrize('page', METHOD_PAGES, ids=[p.stem for p in METHOD_PAGES])
def test_method_pages_have_six_sections(page):
    heads = [c.source[3:].strip() for c in read_nb(page).cells if c.cell_type == 'markdown' and c.source.startswith('## ')]
    assert heads == ['Idea', 'Pieces', 'The method', 'Contract', 'What it does to a model', 'Fidelity']


def test_nothing_names_the_place_it_was_made_in():
    "No path of somebody's machine in what is committed."
    import subprocess
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for f in map(ROOT.joinpath, tracked):
        if f.suffix in ('.py', '.ipynb', '.md', '.toml', '.ini', '.yml') and f.is_file():
            found = re.search(r'/(?:home|root|Users)/\w+|/tmp/tmp\w+', f.read_text(encoding='utf-8'))
            assert not found or f.name == 'test_docs.py', (f, found)
