"The package is what the notebooks export, the notebooks are clean, and no fact is written down twice in different ways."
import configparser
import json
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module

import pytest
from conftest import ROOT

EXPORT = """
import nbdev
from nbdev.clean import nbdev_clean
from nbdev.quarto import refresh_quarto_yml
nbdev_clean()
nbdev.nbdev_export()
refresh_quarto_yml()
"""


def copy_tree(tree, work):
    "What export and clean need."
    for name in ('nbs', 'lotus_nb'): shutil.copytree(tree/name, work/name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'settings.ini', '_quarto.yml'): shutil.copy(tree/name, work/name)
    return work


def files(root):
    found = {str(p.relative_to(root)): p.read_bytes() for d in ('nbs', 'lotus_nb') for p in (root/d).rglob('*')
             if p.suffix in ('.py', '.ipynb') and not {'__pycache__', '.ipynb_checkpoints'} & set(p.parts)}
    return {**found, 'nbs/nbdev.yml': (root/'nbs'/'nbdev.yml').read_bytes()}


def mend(name, before, after):
    "What to do about a file that differs from a fresh export."
    if name not in after: return f'{name}: its notebook is gone. Delete it, and run `nbdev-export`.'
    if name.endswith('.ipynb'): return f'{name}: holds outputs or facts of one session. Run `nbdev-clean`.'
    if name.endswith('.yml'): return f'{name}: differs from pyproject.toml. Run `python tools/proc_nbs.py`.'
    return f"{name}: {'differs from its notebook' if name in before else 'was not exported'}. Edit the notebook, and run `nbdev-export`."


def out_of_sync(tree, work):
    "What differs in `tree` from a clean, fresh export of its notebooks, each with the command that mends it. Needs no git."
    copy = copy_tree(tree, work)
    for p in (copy/'lotus_nb').rglob('*.py'):
        if p.name != '__init__.py': p.unlink()
    done = subprocess.run([sys.executable, '-c', EXPORT], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = files(tree), files(copy)
    return [mend(n, before, after) for n in sorted({**before, **after}) if before.get(n) != after.get(n)]


def test_package_and_notebooks_agree(tmp_path):
    bad = out_of_sync(ROOT, tmp_path)
    assert not bad, '\n' + '\n'.join(bad)


# Each defect, made in a copy. It gives the beginning of what must be said about it, and the command.

def edited_module(tree):
    p = tree/'lotus_nb'/'parts.py'
    p.write_text(p.read_text(encoding='utf-8') + '\n# edited by hand\n', encoding='utf-8')
    return 'lotus_nb/parts.py: differs from its notebook', 'nbdev-export'


def missing_module(tree):
    (tree/'lotus_nb'/'parts.py').unlink()
    return 'lotus_nb/parts.py: was not exported', 'nbdev-export'


def stale_module(tree):
    (tree/'nbs'/'data'/'01_digits.ipynb').unlink()
    return 'lotus_nb/data/digits.py: its notebook is gone', 'Delete it'


def stale_index(tree):
    p = tree/'lotus_nb'/'_modidx.py'
    p.write_text(p.read_text(encoding='utf-8').replace('lotus_nb.parts.sgd', 'lotus_nb.parts.sdg'), encoding='utf-8')
    return 'lotus_nb/_modidx.py: differs from its notebook', 'nbdev-export'


def unexported_cell(tree):
    change_cell(tree, lambda c: c.update(source=[*c['source'], '\n\nleft_over = 1']), '#| export')
    return 'lotus_nb/parts.py: differs from its notebook', 'nbdev-export'


def dirty_notebook(tree):
    change_cell(tree, lambda c: c.update(execution_count=7))
    return 'nbs/engine/03_parts.ipynb: holds outputs', 'nbdev-clean'


def dirty_metadata(tree):
    change_cell(tree, lambda c: c['metadata'].update(scrolled=True))
    return 'nbs/engine/03_parts.ipynb: holds outputs', 'nbdev-clean'


def stale_settings(tree):
    p = tree/'pyproject.toml'
    p.write_text(p.read_text(encoding='utf-8').replace('Machine unlearning', 'Unlearning'), encoding='utf-8')
    return 'nbs/nbdev.yml: differs from pyproject', 'proc_nbs.py'


def change_cell(tree, change, having=''):
    p = tree/'nbs'/'engine'/'03_parts.ipynb'
    nb = json.loads(p.read_text(encoding='utf-8'))
    change(next(c for c in nb['cells'] if c['cell_type'] == 'code' and having in ''.join(c['source'])))
    p.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


@pytest.fixture(scope='module')
def in_sync(tmp_path_factory):
    "A tree that agrees with itself, whatever state the checkout is in, so that each defect below is the only one."
    tree = copy_tree(ROOT, tmp_path_factory.mktemp('tree'))
    for p in (tree/'lotus_nb').rglob('*.py'):
        if p.name != '__init__.py': p.unlink()
    subprocess.run([sys.executable, '-c', EXPORT], cwd=tree, capture_output=True, check=True)
    return tree


@pytest.mark.parametrize('spoil', [edited_module, missing_module, stale_module, stale_index, unexported_cell, dirty_notebook, dirty_metadata,
                                   stale_settings])
def test_each_defect_is_seen_with_its_remedy(spoil, in_sync, tmp_path):
    (tmp_path/'tree').mkdir(); (tmp_path/'work').mkdir()
    tree = copy_tree(in_sync, tmp_path/'tree')
    said, command = spoil(tree)
    assert [b for b in out_of_sync(tree, tmp_path/'work') if b.startswith(said) and command in b]


def test_what_is_in_sync_is_left_alone(in_sync, tmp_path): assert out_of_sync(in_sync, tmp_path) == []


# Packaging facts, written in two files.

SISTERS = {'nbdev', 'fastcore', 'execnb', 'ghapi', 'fastgit', 'fastspec', 'fasttransport'}      # they move together, and break one another


def ini(root=ROOT):
    c = configparser.ConfigParser(delimiters=['='])
    c.read(root/'settings.ini', encoding='utf-8')
    return dict(c['DEFAULT'])


def pyproject(): return tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))


def disagreements(settings, project):
    "Facts that settings.ini and [project] state differently, and pins that are not exact."
    pins = dict(r.split('==') for r in settings['dev_requirements'].split() if '==' in r)
    checks = {'name': settings['lib_name'] == project['name'], 'description': settings['description'] == project['description'],
              'python': project['requires-python'] == f">={settings['min_python']}", 'pins': set(pins) == SISTERS,
              'package': (ROOT/settings['lib_name']/'__init__.py').is_file()}
    return [k for k, good in checks.items() if not good]


def test_settings_and_pyproject_agree(): assert disagreements(ini(), pyproject()['project']) == []


@pytest.mark.parametrize('changes, seen', [
    (dict(lib_name='lotus'), {'name', 'package'}), (dict(description='Other words'), {'description'}), (dict(min_python='3.10'), {'python'}),
    (dict(dev_requirements='nbdev>=3.3 fastcore==2.2.39'), {'pins'})])
def test_each_disagreement_is_seen(changes, seen): assert set(disagreements({**ini(), **changes}, pyproject()['project'])) == seen


def test_public_names_resolve():
    import lotus_nb
    assert set(lotus_nb.__all__) == set(lotus_nb._PUBLIC) <= set(dir(lotus_nb))
    for name, module in lotus_nb._PUBLIC.items():
        assert getattr(lotus_nb, name) is getattr(import_module(f'lotus_nb.{module}'), name) and callable(getattr(lotus_nb, name)), name
    with pytest.raises(AttributeError, match='no_such_name'): lotus_nb.no_such_name


# The repository's address stands in pyproject; nbdev.yml, README, _modidx and the first lines of modules are generated from it.

GENERATED = {'pyproject.toml', 'README.md', 'nbs/nbdev.yml', 'lotus_nb/_modidx.py'}
FOLDERS = ('nbs', 'lotus_nb', 'tools', 'tests', '.github', '.ci')


def texts(root):
    "Files somebody wrote, by name; no git is asked."
    for p in [*root.glob('*'), *(p for d in FOLDERS for p in (root/d).rglob('*'))]:
        if p.is_file() and not {'__pycache__', '.ipynb_checkpoints'} & set(p.parts):
            try: yield p.relative_to(root).as_posix(), p.read_text(encoding='utf-8')
            except UnicodeDecodeError: pass


def addresses(root, urls):
    "Files that name the repository or its site on their own account."
    for name, text in texts(root):
        if name in GENERATED: continue
        if 'AUTOGENERATED' in text: text = '\n'.join(l for l in text.split('\n') if not l.startswith('Docs: '))
        if any(u.split('//')[1].removeprefix('github.com/').rstrip('/') in text for u in urls.values()): yield name


def test_the_address_stands_in_one_place():
    assert list(addresses(ROOT, pyproject()['project']['urls'])) == []
    assert len(list(texts(ROOT))) > 80


@pytest.mark.parametrize('file, text', [
    ('nbs/page.ipynb', '"source": ["See [the code](https://{repo}/blob/main/x.py)."]'), ('tools/build.py', 'SITE = "https://{site}/"'),
    ('lotus_nb/x.py', '"""AUTOGENERATED\nDocs: https://{site}/x.html"""\nURL = "git@{repo}"'), ('.github/workflows/test.yml', 'clone {repo}')])
def test_a_second_address_is_seen(file, text, tmp_path):
    urls = pyproject()['project']['urls']
    repo, site = (urls[k].split('//')[1] for k in ('Repository', 'Documentation'))
    (tmp_path/file).parent.mkdir(parents=True); (tmp_path/file).write_text(text.format(repo=repo, site=site))
    (tmp_path/'README.md').write_text(repo)
    assert list(addresses(tmp_path, urls)) == [file]
