"Each module imports only from its left (the arrows of the architecture), and only what it may."
import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import lotus_nb

# Room: the rooms it is built upon. It may import these, and all that they are built upon; `a.*` are the pages beside `a.core`.
ARROWS = {
    'core': '', 'loop': 'core', 'task': 'loop', 'parts': 'task', 'data.core': 'parts', 'data.*': 'data.core cleaning', 'models': 'data.*', 'train': 'models', 'ensemble': 'train',
    'methods.core': 'train', 'methods.*': 'methods.core', 'metrics.core': 'methods.core', 'metrics.*': 'metrics.core', 'evaluation': 'metrics.*', 'audit': 'evaluation', 'traces': 'metrics.* train',
    'bench': 'train methods.core evaluation', 'figures': 'bench', 'report': 'figures audit', 'paper': 'report metrics.*',
    'neighbours': 'models cleaning', 'clean_report': 'cleaning report', 'planning': 'core', 'protocol': 'bench train data.*',
    'cli': 'report metrics.* protocol paper clean_report neighbours',
    'fastai_bridge': 'methods.core evaluation', 'cleaning': 'core', 'all': 'report metrics.* neighbours traces clean_report'}
IN_ORDER = ('data', 'metrics')                   # pages that may import pages before them on the site; methods never do
ON_DEMAND = {('evaluation', 'report'), ('audit', 'report')}   # `Report.to_html` draws a page; drawing is a room further right
AT_LOAD = {'torch', 'timm', 'pandas', 'sklearn', 'scipy', 'numpy', 'matplotlib', 'safetensors'}
IN_FUNCTIONS = {'torchvision', 'PIL'}
OWN = {'cli': {'typer', 'rich'}, 'fastai_bridge': {'fastai', 'fastcore'}, 'cleaning': {'imagehash'}}
PATHS = sorted(p for p in (ROOT/'lotus_nb').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))


def module_name(path): return '.'.join(path.relative_to(ROOT/'lotus_nb').with_suffix('').parts)


NAMES = [module_name(p) for p in PATHS]
PAGES = {f'{p.parent.name}.{re.sub(r"^[0-9]+_", "", p.stem)}': p.stem for a in IN_ORDER for p in (ROOT/'nbs'/a).glob('*.ipynb')}


def room(name):
    "The entry of ARROWS that a module belongs to."
    found = next((r for r in (name, name.split('.')[0] + '.*') if r in ARROWS), None)
    assert found, f"'{name}' has no place in ARROWS yet: give it one, and say so in the architecture."
    return found


def left_of(r):
    "All rooms that a room is built upon."
    below = ARROWS[r].split()
    return set(below).union(*map(left_of, below))


def may(name, target):
    "Whether a module may import another one of the package."
    a, b = room(name), room(target)
    if a == b and name != target: return name.split('.')[0] in IN_ORDER and PAGES.get(target, '~') < PAGES.get(name, '')
    return b in left_of(a)


def deferred(tree):
    "Nodes that run only when a function is called."
    return {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for part in (f.body if isinstance(f.body, list) else [f.body]) for n in ast.walk(part)}


def targets(node, package):
    "Absolute names of the modules that an import, or a call of `import_module` with a plain string, loads."
    if isinstance(node, ast.Import): return [a.name for a in node.names]
    if isinstance(node, ast.ImportFrom):
        base = '.'.join([*package[:len(package) - node.level + 1], *([node.module] if node.module else [])]) if node.level else node.module
        return [resolve(base, a.name) for a in node.names]
    called = isinstance(node, ast.Call) and (getattr(node.func, 'id', '') or getattr(node.func, 'attr', ''))
    if called in ('import_module', '__import__') and node.args and isinstance(node.args[0], ast.Constant): return [node.args[0].value]
    return []


def resolve(base, name):
    "What `from base import name` loads: a module below a package, the home of a public name, or the base itself."
    if base == 'lotus_nb' and name in lotus_nb._PUBLIC: return f'lotus_nb.{lotus_nb._PUBLIC[name]}'
    packages = {'lotus_nb', *(f'lotus_nb.{n.rpartition(".")[0]}' for n in NAMES if '.' in n)}
    if base not in packages: return base
    return 'lotus_nb.core' if base == 'lotus_nb' and name.startswith('__') else f'{base}.{name}'


def faults(name, source):
    "What a module imports and should not."
    tree, out = ast.parse(source), []
    later = deferred(tree)
    for node in ast.walk(tree):
        for target in targets(node, ['lotus_nb', *name.split('.')[:-1]]):
            head, _, inner = target.partition('.')
            at_load = id(node) not in later
            if head == 'lotus_nb':
                if inner == name.split('.')[0] and isinstance(node, ast.Call): continue          # a registry that looks for its own pages
                if not inner: out.append(f'{name} imports the package as a whole')
                elif not may(name, inner) and (at_load or (name, inner) not in ON_DEMAND): out.append(f'{name} imports {inner}')
            elif head in sys.stdlib_module_names: continue
            elif head not in AT_LOAD | OWN.get(name, set()) | (set() if at_load else IN_FUNCTIONS):
                out.append(f"{name} imports {head}{' at load' if at_load else ''}")
            if name == 'figures' and head == 'torch': out.append('figures imports torch')
    return out


@pytest.mark.parametrize('path', PATHS, ids=NAMES)
def test_arrows(path): assert faults(module_name(path), path.read_text(encoding='utf-8')) == []


@pytest.mark.parametrize('name, source, said', [
    ('loop', 'from lotus_nb.task import UnlearnTask', 'loop imports task'),
    ('task', 'from .methods.core import solve', 'task imports methods.core'),
    ('parts', 'from .data.core import Images', 'parts imports data.core'),
    ('train', 'from .methods.core import solve', 'train imports methods.core'),
    ('core', 'from lotus_nb import report', 'core imports report'),
    ('core', 'from . import report', 'core imports report'),
    ('core', 'import lotus_nb.report as r', 'core imports report'),
    ('core', 'import lotus_nb', 'core imports the package as a whole'),
    ('core', 'from lotus_nb import unlearn', 'core imports methods.core'),
    ('core', 'def f():\n    from lotus_nb.loop import Loop', 'core imports loop'),
    ('core', "from importlib import import_module\nimport_module('lotus_nb.loop')", 'core imports loop'),
    ('methods.scrub', 'from .finetune import finetune', 'methods.scrub imports methods.finetune'),
    ('methods.scrub', 'from . import finetune', 'methods.scrub imports methods.finetune'),
    ('methods.scrub', 'def f():\n    from lotus_nb.methods.lotus import targets', 'methods.scrub imports methods.lotus'),
    ('methods.scrub', 'from ..metrics.mia import mia_entropy', 'methods.scrub imports metrics.mia'),
    ('methods.core', 'from ..metrics.core import evaluate', 'methods.core imports metrics.core'),
    ('methods.core', 'from .lotus import lotus', 'methods.core imports methods.lotus'),
    ('metrics.mia', 'from lotus_nb.methods.lotus import lotus', 'metrics.mia imports methods.lotus'),
    ('metrics.mia', 'from ..methods import lotus', 'metrics.mia imports methods.lotus'),
    ('metrics.accuracy', 'from .divergence import jsd', 'metrics.accuracy imports metrics.divergence'),
    ('metrics.core', 'from .accuracy import accuracy', 'metrics.core imports metrics.accuracy'),
    ('metrics.core', 'from lotus_nb.report import page', 'metrics.core imports report'),
    ('evaluation', 'class A:\n    from lotus_nb.report import page', 'evaluation imports report'),
    ('metrics.core', 'def f():\n    from lotus_nb.bench import bench', 'metrics.core imports bench'),
    ('data.core', 'from .cifar import cifar', 'data.core imports data.cifar'),
    ('data.cifar', 'from ..models import create_model', 'data.cifar imports models'),
    ('bench', 'from .figures import plot_bars', 'bench imports figures'),
    ('bench', 'from .methods.lotus import lotus', 'bench imports methods.lotus'),
    ('fastai_bridge', 'from .cli import app', 'fastai_bridge imports cli'),
    ('all', 'from .fastai_bridge import task_from_dls', 'all imports fastai_bridge'),
    ('figures', 'def f():\n    import torch', 'figures imports torch'),
    ('parts', 'import fastai', 'parts imports fastai at load'),
    ('parts', 'try:\n    import fastai\nexcept ImportError: fastai = None', 'parts imports fastai at load'),
    ('parts', 'def f():\n    import fastcore.all', 'parts imports fastcore'),
    ('parts', 'import nbdev.showdoc', 'parts imports nbdev at load'),
    ('cli', 'def f():\n    import nbdev', 'cli imports nbdev'),
    ('report', 'def f():\n    import typer', 'report imports typer'),
    ('data.cifar', 'import torchvision', 'data.cifar imports torchvision at load'),
    ('data.cifar', 'if True:\n    from PIL import Image', 'data.cifar imports PIL at load'),
    ('core', 'import requests', 'core imports requests at load'),
    ('core', 'def f():\n    import requests', 'core imports requests')])
def test_a_wrong_arrow_is_seen(name, source, said): assert said in faults(name, source)


@pytest.mark.parametrize('name, source', [
    ('evaluation', 'def f():\n    from lotus_nb.report import page'), ('metrics.core', 'from ..methods.core import Unlearned'),
    ('metrics.mia', 'from .accuracy import accuracy'), ('methods.scrub', 'from ..parts import distill_kl\nfrom .core import method'),
    ('methods.core', "import_module('lotus_nb.methods')"), ('data.cifar', 'def f():\n    from PIL import Image'), ('cli', 'import typer'),
    ('fastai_bridge', 'from fastai.learner import Learner'), ('bench', 'import json, torch\nfrom .models import save_weights'),
    ('cli', 'def f():\n    from lotus_nb import __version__')])
def test_a_right_arrow_is_let_through(name, source): assert faults(name, source) == []


def test_a_module_without_a_place_is_seen():
    with pytest.raises(AssertionError, match='no place in ARROWS'): faults('attic', 'from .core import Batch')


def loaded(code, module):
    done = subprocess.run([sys.executable, '-c', f'import sys\n{code}\nprint({module!r} in sys.modules)'], capture_output=True, text=True, check=True)
    return done.stdout.strip() == 'True'


@pytest.mark.parametrize('code', ['import lotus_nb', 'import lotus_nb.cli', 'import lotus_nb.figures'])
def test_torch_is_not_loaded_by(code): assert not loaded(code, 'torch')


def test_torch_is_loaded_when_it_is_asked_for(): assert loaded('import lotus_nb; lotus_nb.UnlearnTask', 'torch')


@pytest.mark.skipif('all' not in NAMES, reason='there is no lotus_nb.all')
def test_all_leaves_fastai_alone(): assert not loaded('import lotus_nb.all', 'fastai')
