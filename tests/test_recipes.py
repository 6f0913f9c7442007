"The paper's recipe and the fast one, side by side: run at the smallest size, and what is stored."
import json
import sys

import pandas as pd
import pytest
from conftest import ROOT

from lotus_nb.core import digest
from lotus_nb.train import RECIPES

sys.path.insert(0, str(ROOT/'tools'))
import recipes


def run(monkeypatch, *options):
    monkeypatch.setattr(sys, 'argv', ['recipes.py', '--seeds', '0', '--epochs', '1', *map(str, options)])
    recipes.main()


def test_two_recipes_on_few_images(real_data, tmp_path, monkeypatch):
    where = ['--root', real_data, '--share', .01, '--width', 8, '--work', tmp_path/'work', '--out', tmp_path/'out']
    with pytest.raises(SystemExit, match='Stopped before lotus-resnet18, seed 0'): run(monkeypatch, *where, '--minutes', -1)
    assert not (tmp_path/'out').exists()                                             # no rows, no file
    run(monkeypatch, *where)
    name = 'cifar10-share-0.01-width-8-epochs-1'
    rows = pd.read_csv(tmp_path/'out'/f'{name}.csv')
    assert rows.recipe.to_list() == list(recipes.SCALES) and (rows.images == 500).all() and rows.steps.to_list() == [100, 167]    # batches of 5 and of 3
    made = {f: f.stat().st_mtime_ns for f in (tmp_path/'work').rglob('original-*')}
    run(monkeypatch, *where)
    assert {f: f.stat().st_mtime_ns for f in (tmp_path/'work').rglob('original-*')} == made                  # nothing is trained twice
    pd.testing.assert_frame_equal(rows, pd.read_csv(tmp_path/'out'/f'{name}.csv'))
    assert json.loads((tmp_path/'out'/f'{name}.json').read_text())['not_run'] == []


def test_two_recipes_on_digits(tmp_path, monkeypatch):
    run(monkeypatch, '--data', 'digits', '--work', tmp_path/'work', '--out', tmp_path/'out')
    rows, note = pd.read_csv(tmp_path/'out'/'digits-epochs-1.csv'), json.loads((tmp_path/'out'/'digits-epochs-1.json').read_text())
    assert rows.recipe.to_list() == list(recipes.SCALES) and rows.steps.to_list() == [13, 25]               # 400 images in batches of 32 and of 16
    assert note['command'] == 'python tools/recipes.py --data digits --epochs 1 --seeds 0'


@pytest.mark.parametrize('given, said', [(['--share', 1.5], '--share is 1.5; it must be above 0 and at most 1'),
                                         (['--data', 'digits', '--share', .1], '--share and --width are for CIFAR')])
def test_what_cannot_be_run_is_refused(given, said, monkeypatch, capsys):
    with pytest.raises(SystemExit): run(monkeypatch, *given)
    assert said in capsys.readouterr().err


def test_the_fast_recipe_has_a_fraction_of_the_images():
    long, fast = (RECIPES[r] for r in recipes.SCALES)
    assert fast.epochs*2 <= long.epochs and (long.opt, long.wd, long.momentum) == (fast.opt, fast.wd, fast.momentum)


@pytest.mark.parametrize('file', sorted((ROOT/'results'/'recipes').glob('*.csv')), ids=lambda f: f.stem)
def test_stored_rows_are_by_committed_code(file):
    note, rows = json.loads(file.with_suffix('.json').read_text()), pd.read_csv(file)
    assert digest(file.read_text()) == note['digest'] and '+' not in ''.join(note['made'])
    asked = note['command'].split('--seeds ')[1].split()
    assert len(rows) + len(note['not_run']) == 2*len(asked) and not rows.duplicated(['recipe', 'seed']).any()
