"The committed results are of methods that exist, say where they come from, and can be made again: every setting in tools/results.py is one that its method takes."
import json
import sys

import pandas as pd
import pytest
from conftest import ROOT

from lotus_nb.methods.core import inner_method, list_methods

sys.path.insert(0, str(ROOT/'tools'))
import results


def test_settings_are_taken():
    for name, settings in results.CIFAR10.items(): inner_method(name, settings)
    with pytest.raises(TypeError, match="Did you mean 'steps'"): inner_method('sfron', {'stepss': 1})


def test_a_method_without_settings_runs_with_its_defaults(monkeypatch):
    monkeypatch.delitem(results.CIFAR10, 'lotus')
    plan = results.jobs('cifar10', None, 'cpu')['methods']
    assert set(plan) == set(list_methods()) and plan['lotus'] == ('lotus', {})


@pytest.mark.parametrize('name, seeds', [('digits', 10), ('digits-50', 10), ('digits-class-3', 10), ('cifar10', 1)])
def test_rows_and_their_source(name, seeds):
    rows = pd.read_csv(ROOT/'results'/name/'results.csv', dtype={'hparams': str})
    note = json.loads((ROOT/'results'/name/'provenance.json').read_text())
    assert set(rows.method) >= {'noop', 'gold', *results.CIFAR10} and rows.seed.nunique() == seeds == len(note['seeds'])
    counts = rows[rows.metric == 'avg_gap'].groupby('method').seed.nunique()
    assert (counts == seeds).all() and len(counts) == note['cells']//seeds
    assert all('+' not in m for m in note['made']) and len(note['forget_ids']) == seeds
    assert len(note['weights']) == (3 if 'gold2' in set(rows.method) else 2)*seeds
