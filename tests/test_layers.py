"Each module imports only from its left (the arrows of the architecture), and only what it may."
import ast
import subprocess
import sys

import pytest
from conftest import ROOT

ORDER = ['core', 'loop', 'task', 'parts', 'data.core', 'data', 'models', 'train', 'methods.core', 'methods', 'metrics.core', 'metrics',
         'bench', 'figures', 'report', 'cli', 'fastai_bridge', 'all']
ALLOWED = {'torch', 'timm', 'pandas', 'sklearn', 'scipy', 'numpy', 'matplotlib', 'safetensors'}
EXTRA = {'cli': {'typer'}, 'fastai_bridge': {'fastai', 'fastcore'}}
ON_DEMAND = {('metrics.core', 'report')}         # `Report.to_html` draws a page; drawing is a room further right


def module_name(path): return '.'.join(path.relative_to(ROOT/'lotus_nb').with_suffix('').parts)


def rank(name):
    "Place in the order; a whole package shares one place, except for its core."
    known = [o for o in ORDER if name == o or name.startswith(o + '.')]
    return ORDER.index(max(known, key=len))


def imports(source, package):
    "Pairs (imported module, whether at module level); relative names made absolute."
    tree = ast.parse(source)
    top = {id(n) for n in tree.body}
    for n in ast.walk(tree):
        level = id(n) in top
        if isinstance(n, ast.Import): yield from ((a.name, level) for a in n.names)
        elif isinstance(n, ast.ImportFrom):
            base = '.'.join([*package[:len(package) - n.level + 1], *([n.module] if n.module else [])]) if n.level else n.module
            yield base, level


def faults(name, source):
    "What a module imports and should not."
    out = []
    for target, level in imports(source, ['lotus_nb', *name.split('.')[:-1]]):
        head = target.split('.')[0]
        if head == 'lotus_nb':
            inner = target.partition('.')[2]
            if not inner: continue
            same_package = name.split('.')[0] == inner.split('.')[0] == 'methods' and inner != 'methods.core'
            if (rank(inner) > rank(name) or same_package) and not (not level and (name, inner) in ON_DEMAND): out.append(f'{name} imports {inner}')
        elif head in sys.stdlib_module_names: continue
        elif level and head not in ALLOWED | EXTRA.get(name, set()): out.append(f'{name} imports {head} at module level')
        elif head in ('nbdev', 'execnb') or head in ('fastai', 'fastcore') and name != 'fastai_bridge': out.append(f'{name} imports {head}')
        if name == 'figures' and head == 'torch': out.append('figures imports torch')
    return out


MODULES = sorted(p for p in (ROOT/'lotus_nb').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))


@pytest.mark.parametrize('path', MODULES, ids=[module_name(p) for p in MODULES])
def test_arrows(path): assert faults(module_name(path), path.read_text(encoding='utf-8')) == []


@pytest.mark.parametrize('name, source, words', [
    ('loop', 'from lotus_nb.task import UnlearnTask', 'loop imports task'),
    ('task', 'from .methods.core import solve', 'task imports methods.core'),
    ('methods.scrub', 'from .finetune import finetune', 'methods.scrub imports methods.finetune'),
    ('methods.core', 'from ..metrics.core import evaluate', 'methods.core imports metrics.core'),
    ('metrics.mia', 'from lotus_nb.methods.lotus import lotus', None),
    ('metrics.core', 'def f():\n    from lotus_nb.report import page', None),
    ('metrics.core', 'from lotus_nb.report import page', 'metrics.core imports report'),
    ('parts', 'import fastai', 'parts imports fastai at module level'),
    ('parts', 'def f():\n    import fastcore.all', 'parts imports fastcore'),
    ('figures', 'def f():\n    import torch', 'figures imports torch'),
    ('core', 'import requests', 'core imports requests at module level')])
def test_a_wrong_arrow_is_seen(name, source, words):
    found = faults(name, source)
    assert (words in found) if words else True


def test_metrics_know_no_method():
    for p in MODULES:
        if module_name(p).startswith('metrics'):
            targets = [t for t, _ in imports(p.read_text(encoding='utf-8'), ['lotus_nb', 'metrics'])]
            assert not [t for t in targets if t.startswith('lotus_nb.methods.') and t != 'lotus_nb.methods.core'], p


def loaded(code, module):
    done = subprocess.run([sys.executable, '-c', f'import sys\n{code}\nprint({module!r} in sys.modules)'], capture_output=True, text=True, check=True)
    return done.stdout.strip() == 'True'


def test_bare_import_is_light(): assert not loaded('import lotus_nb, lotus_nb.cli', 'torch')


def test_all_leaves_fastai_alone(): assert not loaded('import lotus_nb.all', 'fastai')
