"The switches of `paper/what_did_not_reproduce`: off is the library, on is the defect and nothing else; and stored rows are what their notes say."
import json
import math
import re
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from lotus_nb.core import digest
from lotus_nb.data.digits import digits
from lotus_nb.data.folder import read_forget
from lotus_nb.methods.core import get_method, list_methods, recipes
from lotus_nb.metrics.core import evidence, measure
from lotus_nb.metrics.divergence import divergence
from lotus_nb.protocol import load_set, measure_as_published
from lotus_nb.task import student_of

sys.path.insert(0, str(ROOT/'tools'))
import reproduce

STORED = ROOT/'results'/'reproduce'


@pytest.fixture(scope='module')
def norm_task():
    "Noisy digits and a network with BatchNorm, trained briefly."
    splits, task = reproduce.noisy(digits(0), .3), reproduce.digits_with_norm
    return task(0, splits=splits)


@pytest.fixture(scope='module')
def refs(norm_task): return reproduce.references(norm_task, False)[False]


# ---- Off is the library

def test_off_is_what_the_library_says(norm_task, refs):
    for model in (norm_task.model, norm_task.gold):
        off = reproduce.columns(reproduce.look(model, norm_task), *refs)
        see = dict(new=evidence(model, norm_task), gold=evidence(norm_task.gold, norm_task), original=evidence(norm_task.model, norm_task))
        rows, missing = measure(list(reproduce.COLUMNS), **see)
        assert not missing and off == dict(zip(rows.metric, rows.value))


def test_rows_start_from_the_library(norm_task, refs):
    rows = pd.DataFrame(reproduce.switch_evaluation(norm_task.model, 'finetune', norm_task, {False: refs}))
    want = reproduce.columns(reproduce.look(norm_task.model, norm_task), *refs)
    assert all(want[c] == v for c, v in zip(rows.column, rows.off))
    assert set(rows.defect) == {'train mode', 'reversed KL', 'divided by N', 'reversed KL and 1/N', 'rounding to .01', 'all of these'}
    assert 'train mode' not in set(pd.DataFrame(reproduce.switch_evaluation(norm_task.model, 'lotus', norm_task, {False: refs})).defect)


# ---- On is the defect

def singly(model, task, part, n=20):
    "Logits of the first images, one by one, in train mode."
    model = student_of(model).train()
    data = task.part(part)
    with torch.no_grad(): return torch.cat([model(data.batch(torch.tensor([i]))[0]) for i in range(n)]).numpy()


def check_train_mode(task):
    seen, plain = reproduce.look(task.model, task, train_mode=True), reproduce.look(task.model, task)
    for p in ('forget', 'test'): assert np.allclose(seen.attack.logits[p][:20], singly(task.model, task, p), atol=1e-4)
    assert not np.allclose(seen.rest.logits['forget'], plain.rest.logits['forget'], atol=.1)
    assert not np.allclose(seen.rest.logits['forget'], seen.attack.logits['forget'], atol=.1)


def test_train_mode_is_one_image_at_a_time_and_leaves_other_statistics(norm_task):
    before = digest(norm_task.model)
    check_train_mode(norm_task)
    assert digest(norm_task.model) == before


@pytest.mark.parametrize('name, broken', [('each_by_itself', lambda m: nullcontext()), ('overwrite_statistics', lambda m, d: None)])
def test_a_switch_that_switches_nothing_is_noticed(norm_task, monkeypatch, name, broken):
    monkeypatch.setattr(reproduce, name, broken)
    with pytest.raises(AssertionError): check_train_mode(norm_task)


def check_divergences(task, refs):
    new = reproduce.look(task.model, task)
    c = {k: reproduce.columns(new, *refs, divergences=k) for k in ('proper', 'reversed', 'divided', 'published')}
    p, q = (torch.tensor(e.logits['forget']).double().softmax(1).numpy() for e in (new.rest, refs[0].rest))
    n = len(p)
    assert c['proper']['jsd'] == pytest.approx(divergence(p, q).mean())
    assert c['reversed']['jsd'] == pytest.approx(divergence(p.clip(1e-8), q.clip(1e-8), kind='ag').mean(), rel=1e-3)
    for k in ('jsd', 'rf_jsd'):
        rows = n if k == 'jsd' else 10
        assert c['divided'][k] == pytest.approx(c['proper'][k]/rows) and c['published'][k] == pytest.approx(c['reversed'][k]/rows)
    assert c['reversed']['jsd'] > c['proper']['jsd'] > 0
    assert all(c[k][s] == c['proper'][s] for k in c for s in reproduce.COLUMNS[:5])


def test_each_divergence_is_one_change(norm_task, refs): check_divergences(norm_task, refs)


def test_a_divergence_without_its_defect_is_noticed(norm_task, refs, monkeypatch):
    monkeypatch.setattr(reproduce, 'jsd_as_published', reproduce.jsd)
    with pytest.raises(AssertionError): check_divergences(norm_task, refs)


def test_rounding_rounds_each_number_and_no_more(norm_task, refs):
    new = reproduce.look(norm_task.model, norm_task)
    off, on = reproduce.columns(new, *refs), reproduce.columns(new, *refs, decimals=2)
    for c in reproduce.COLUMNS[:4]: assert on[c] == round(off[c], 2)
    ideal = reproduce.four(refs[0], 2)
    assert on['avg_gap'] == pytest.approx(np.mean([abs(on[c] - v) for c, v in zip(reproduce.COLUMNS[:4], ideal)]))
    assert abs(on['avg_gap'] - off['avg_gap']) <= .01


@pytest.mark.parametrize('method', ['finetune', 'lotus'])
def test_all_together_is_the_published_evaluation(norm_task, refs, method):
    "The protocol's own function, which was written by itself, says the same."
    rows = pd.DataFrame(reproduce.switch_evaluation(norm_task.gold, method, norm_task, {False: refs}))
    on = rows[rows.defect == 'all of these'].set_index('column').on
    want = measure_as_published(norm_task.gold, norm_task, train_mode=method == 'finetune')
    for c in reproduce.COLUMNS[:5]: assert on[c] == pytest.approx(want[c])
    for c in reproduce.COLUMNS[5:]: assert on[c] == pytest.approx(want[f'{c}_as_published'], abs=1.1e-6)
    found = reproduce.published_columns(norm_task.gold, method, norm_task, {False: refs})
    assert found == pytest.approx({c: want[c if c in want else f'{c}_as_published'] for c in reproduce.COLUMNS}, abs=1e-12)


def test_each_switch_of_a_method_is_off_by_default_and_in_its_recipe():
    for defect, (m, change) in reproduce.METHOD_DEFECTS.items():
        chosen = {**get_method(m).defaults, **recipes(m)['digits']}
        for k, v in change.items(): assert k in get_method(m).defaults and chosen[k] != v, defect
    assert set(reproduce.METHOD_DEFECTS) < set(reproduce.WHERE)


def test_augmentation_reaches_forget_and_retain_only():
    from lotus_nb.data.core import Augment
    task = reproduce.digits_with_norm(0)
    task = replace(task, **{p: replace(task.part(p), augment=Augment(1)) for p in ('forget', 'retain', 'val', 'test')})
    plain, crops = (reproduce.look(task.model, task, augmented=a).rest for a in (False, True))
    for p in ('forget', 'retain'): assert not np.allclose(plain.logits[p], crops.logits[p], atol=.1)
    for p in ('val', 'test'): assert np.allclose(plain.logits[p], crops.logits[p], atol=1e-4)


# ---- The fair comparison

def test_all_methods_have_the_same_budget_within_stated_ranges():
    for m in list_methods():
        mid = reproduce.drawn(m, 0)
        assert {k: v for k, v in recipes(m)['digits'].items() if k not in ('source', 'batch_size')}.items() <= mid.items()
        for j in range(1, reproduce.BUDGET):
            s = reproduce.drawn(m, j)
            assert s == reproduce.drawn(m, j) and set(s) == set(mid)
            moved = [k for k in s if s[k] != mid[k]]
            assert moved, (m, j)
            for k in moved:
                if k == 'settings': continue
                a, b, f = (1 - mid[k], 1 - s[k], 'one minus beta') if k == 'beta' else (mid[k], s[k], k)
                most = reproduce.FACTORS[f]
                slack = .5/min(a, b) if f in reproduce.WHOLE else .01*most
                assert 1/most - slack <= b/a <= most + slack, (m, k, a, b)


def test_tuning_sees_no_test_image(norm_task):
    ev = evidence(norm_task.model, norm_task)
    seen = reproduce.on_val(ev)
    for k in ('logits', 'labels', 'ids'): assert np.array_equal(getattr(seen, k)['test'], getattr(ev, k)['val'])
    assert not np.isin(seen.ids['test'], ev.ids['test']).any()
    assert not set(reproduce.TUNED_ON) & set(reproduce.JUDGED_ON)


def test_the_gap_is_that_of_the_library(norm_task, refs):
    a, b = refs[1].rest, refs[0].rest
    assert reproduce.gap(a, b, reproduce.mia_entropy) == pytest.approx(measure(['avg_gap'], new=a, gold=b)[0].value[0])
    assert reproduce.gap(b, b, reproduce.mia_svc) == 0


class Asked:
    "What a command is called with."
    minutes, root, kept, share, budget = 1e6, None, ROOT/'nowhere', 1., 2


@pytest.fixture
def small_cifar(norm_task, tmp_path, monkeypatch):
    "Digits in the place of CIFAR-10, and folders of their own."
    for k, v in dict(RETAIN=180, WORK=tmp_path/'work', OUT=tmp_path/'out', cifar_task=lambda *a, **k: replace(norm_task, gold2=norm_task.gold)).items(): monkeypatch.setattr(reproduce, k, v)
    monkeypatch.setattr(reproduce.Pieces.__init__, '__defaults__', (tmp_path/'work',))
    return tmp_path


def test_the_comparison_on_cifar_judges_what_it_chose(small_cifar, monkeypatch):
    for k, v in dict(BUDGET=2, CIFAR_SEEDS=((105,), (0,)), list_methods=lambda: ['finetune', 'ssd']).items(): monkeypatch.setattr(reproduce, k, v)
    reproduce.run_fair_cifar10(Asked)
    frame = pd.read_csv(small_cifar/'out'/'fair-cifar10.csv')
    assert len(frame) == 2*2*2 + 2*2 + 2*2 and set(frame.protocol) == {'paper', 'SalUn and CoUn'}
    assert (frame[frame.method == 'gold2'].gap == 0).all() and (frame[frame.method == 'noop'].gap > 0).all()       # gold stands for the second gold here
    for _, g in frame[~frame.method.isin(['noop', 'gold2'])].groupby(['protocol', 'method']):
        tuned = g[g.role == 'tuned'].set_index('setting').gap
        assert tuned[g[g.role == 'judged'].setting.item()] == tuned.min()


@pytest.fixture
def run(tmp_path, monkeypatch):
    "Runs the tool with these arguments, on 1,000 images at most, a network of 4 channels and few seeds; pieces and rows go to `work` and `out`."
    def few(cell, seed, root, device):
        splits, source = load_set(cell, seed, root, device)
        return type(splits)(*(reproduce.take(d, torch.arange(1000)) for d in splits)), source
    for k, v in dict(NARROW=dict(width=4, epochs=6), CIFAR_SEEDS=((105,), (0,)), list_methods=lambda: ['finetune', 'delete'], OUT=tmp_path/'out', load_set=few).items():
        monkeypatch.setattr(reproduce, k, v)
    monkeypatch.setattr(reproduce.Pieces.__init__, '__defaults__', (tmp_path/'work',))
    def run(*argv):
        monkeypatch.setattr(sys, 'argv', ['reproduce.py', *argv])
        reproduce.main()
    return run


def test_the_comparison_on_a_share_of_cifar(real_data, run, tmp_path, monkeypatch, capsys):
    asked = ['fair', '--data', 'cifar10', '--root', str(real_data), '--share', '.1', '--budget']
    sizes, real = set(), reproduce.unlearned
    monkeypatch.setattr(reproduce, 'unlearned', lambda task, m, how, seed, size, few: sizes.add((m, size)) or real(task, m, how, seed, size, few))
    run(*asked, '1')
    assert sizes == {('finetune', 13), ('delete', 13)}                                   # batches of a method shrink too, from 128
    note = json.loads((tmp_path/'out'/'fair-cifar10-share-0.1.json').read_text())
    assert note['command'] == 'python tools/reproduce.py fair --data cifar10 --root FOLDER --share 0.1 --budget 1' and (note['width'], note['epochs']) == (4, 6)
    made = {f: f.stat().st_mtime_ns for f in (tmp_path/'work').rglob('*.json')}
    comparison = lambda: reproduce.FairCifar(SimpleNamespace(share=.1, root=real_data, minutes=1, kept=None))
    with monkeypatch.context() as m:                                                     # other settings, and other models, are other pieces
        m.setattr(reproduce, 'drawn', lambda m, j, mid: dict(mid, lr=.001))
        assert comparison().gaps('finetune', 0, 105)['val'] and len(made) < len(list((tmp_path/'work').rglob('*.json')))
        m.setattr(reproduce.Pieces, 'get', lambda self, name, make, of: (name, digest(of)))
        keys = lambda: {comparison().gaps('finetune', 0, 105), comparison().references(0)}
        ours = keys()
        m.setattr(reproduce, 'drawn', lambda m, j, mid: dict(mid, lr=.001, epochs=9))
        assert len(ours | keys()) == 3                                                   # the references are the same
        ours = keys()
        m.setattr(reproduce, 'NARROW', dict(width=4, epochs=7))
        assert not ours & keys()
    run(*asked, '2')                                                                     # goes on from the smaller budget
    rows = pd.read_csv(tmp_path/'out'/'fair-cifar10-share-0.1.csv')
    assert (rows.role == 'tuned').sum() == 2*2*2 and not {f: t for f, t in made.items() if f.stat().st_mtime_ns != t}
    task = comparison().task(0)[0]
    assert (len(task.forget), len(task.retain), task.batch_size) == (10, 90, 13) and task.gold2 is not None
    wrongs = {'--share is for': ['digits', '--share', '.1'], '--budget is for': ['split', '--budget', '4'], '--budget is 0; it must be at least 1': [*asked, '0'], 'at most 1': ['fair', '--data', 'cifar10', '--share', '2'],
              '--seeds is 0': ['split', '--seeds', '0'], '--seeds is for': ['fair', '--seeds', '2'], '--data is for': ['cifar10', '--data', 'digits'], 'is for a share of the images': ['split', '--data', 'cifar10', '--root', str(real_data)]}
    for said, wrong in wrongs.items():
        with pytest.raises(SystemExit): run(*wrong)
        assert said in capsys.readouterr().err


def test_one_forget_set_or_many_on_a_share_of_cifar(real_data, run, tmp_path, monkeypatch):
    models, tasks, real = tmp_path/'work'/'fair-cifar10-share-0.1'/'models', [], reproduce.split_rows
    kept = reproduce.few_images_task(0, models, real_data, .1)                            # as the fair comparison leaves them
    monkeypatch.setattr(reproduce, 'split_rows', lambda how, task, go: tasks.append((how, task)) or real(how, task, go))
    run('split', '--data', 'cifar10', '--root', str(real_data), '--share', '.1', '--seeds', '2')
    assert len(list(models.glob('original-*.safetensors'))) == 2 and len(list(models.glob('gold-*.safetensors'))) == 4      # a gold for each forget set, one original for both
    rows, note = pd.read_csv(tmp_path/'out'/'split-cifar10-share-0.1.csv'), json.loads((tmp_path/'out'/'split-cifar10-share-0.1.json').read_text())
    assert note['command'].endswith('split --data cifar10 --root FOLDER --share 0.1 --seeds 2') and len(rows) == 2*2*4*len(reproduce.COLUMNS)
    assert rows.groupby('split').forget_ids.nunique().to_dict() == {'first': 1, 'random': 2}
    for how, task in tasks:
        y, ids = (torch.cat([getattr(task.forget, k), getattr(task.retain, k)]) for k in ('y', 'ids'))
        first = torch.cat([ids[y == c].sort()[0][:max(1, int((y == c).sum())//10)] for c in y.unique()]).sort()[0]
        assert torch.equal(task.forget.ids.sort()[0], first) == (how == 'first')
        trained = {json.loads(f.read_text())['images'] for f in models.glob('gold-*.json')}
        assert digest(task.retain.ids) in trained                                         # gold has not seen what is forgotten
    drawn = next(t for how, t in tasks if how == 'random')
    assert digest(drawn.model) == digest(kept.model) and digest(drawn.gold) == digest(kept.gold)
    lotus = rows[(rows.method == 'lotus') & (rows.column == 'jsd')]
    assert (lotus.value > 0).all() and lotus.value.nunique() == 4


def test_what_digits_forget(norm_task, monkeypatch):
    asked, nothing = [], lambda *a, **k: {}
    ran = lambda task, m, **how: asked.append((m, how)) or SimpleNamespace(model=task.model, seconds=1., cost={'backward': 1})
    given = dict(solve=ran, digits_with_norm=lambda seed, splits, forget: asked.append(forget) or norm_task, references=lambda *a: {False: (None, None)}, columns=lambda *a: {'jsd': 0.})
    for k, v in {**dict.fromkeys(('look', 'published_columns', 'switch_evaluation', 'time_units'), nothing), **given}.items(): monkeypatch.setattr(reproduce, k, v)
    y = digits(0).train.y
    for forget, want in ((None, .1), ('.5', .5), ('class:3', (y == 3).nonzero()[:, 0])):
        asked.clear()
        reproduce.switch_digits(0, forget)
        assert torch.equal(torch.as_tensor(asked[0]), torch.as_tensor(want))
        recipe = {m: {how['recipe'] for k, how in asked[1:] if k == m} for m in reproduce.PAPER}
        assert recipe == {m: {'class' if forget == 'class:3' and m in ('lotus', 'unsir') else 'digits'} for m in reproduce.PAPER}


def test_the_stored_command_is_the_one_that_was_given(run, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, 'switch_digits', lambda seed, forget: reproduce.pairs('none', 'noop', {'jsd': seed}, {'jsd': seed}))
    for asked, seeds in (([], 10), (['--seeds', '2'], 2), (['--forget', 'class:3', '--seeds', '3'], 3)):
        run('digits', *asked)
        stem = 'digits-class-3' if 'class:3' in asked else 'digits'
        rows, note = pd.read_csv(tmp_path/'out'/f'{stem}.csv'), json.loads((tmp_path/'out'/f'{stem}.json').read_text())
        assert note['command'] == ' '.join(['python tools/reproduce.py digits', *asked]) and rows.seed.to_list() == note['seeds'] == [*range(seeds)]


def test_a_gold_for_the_first_of_each_class(norm_task, small_cifar, monkeypatch):
    asked = []
    monkeypatch.setattr(reproduce, 'cifar', lambda *a: digits(0))
    monkeypatch.setattr(reproduce, 'cifar_task', lambda seed, folder, root, forget: asked.append(forget) or norm_task)
    class C: root, kept, task, off = None, small_cifar, norm_task, staticmethod(lambda m: dict.fromkeys(reproduce.COLUMNS, 0.))
    found = reproduce.cifar_first(C, reproduce.Pieces('cifar10', 1, small_cifar))
    first = reproduce.forget_first(digits(0).train, .1).positions(digits(0).train)
    assert torch.equal(read_forget(asked[0], digits(0).train), first)
    rows = pd.DataFrame(found['rows'])
    assert (rows[(rows.method == 'gold, own gold') & (rows.column == 'avg_gap')].on == 0).all() and len(rows) == 2*len(reproduce.COLUMNS)


# ---- What is stored

def stored(name):
    note = json.loads((STORED/f'{name}.json').read_text())
    text = (STORED/f'{name}.csv').read_text()
    assert note['digest'] == digest(text), f'{name}.csv is not what its note was written for'
    frame = pd.read_csv(STORED/f'{name}.csv')
    assert note['rows'] == len(frame) and note['command'].startswith('python tools/reproduce.py ') and note['made'] and note['pieces']
    return frame, note


def test_cifar_rows_are_about_the_stored_models():
    frame, note = stored('cifar10')
    rows = pd.read_csv(ROOT/'results'/'cifar10'/'results.csv').set_index(['method', 'metric']).value
    kept = json.loads((ROOT/'results'/'cifar10'/'provenance.json').read_text())
    assert note['forget_ids'] == kept['forget_ids']['cifar10 seed 0']
    whole = ('forget_accuracy', 'test_accuracy', 'jsd', 'rf_jsd')                    # the other columns are of fewer retain images
    for who in ('noop', 'gold'):
        own = frame[(frame.defect == 'none') & (frame.method == who)].set_index('column')
        assert (own.off == own.on).all()
        for c in whole: assert own.off[c] == pytest.approx(rows[who, c], abs=1e-7), (who, c)
    for d, (m, _) in reproduce.METHOD_DEFECTS.items():
        own = frame[(frame.defect == d)].drop_duplicates('column').set_index('column').off
        for c in set(whole) & set(own.index): assert own[c] == pytest.approx(rows[m, c], abs=1e-7), (d, c)
    scrub = frame[frame.defect == 'SCRUB returns the original'].set_index('column').on
    assert (scrub == frame[(frame.defect == 'none') & (frame.method == 'noop')].set_index('column').on[scrub.index]).all()


def test_cifar_rows_are_whole():
    frame, note = stored('cifar10')
    assert not frame.duplicated(['defect', 'method', 'column']).any() and np.isfinite(frame[['off', 'on']]).all().all()
    done = set(reproduce.RUNS) - set(note['not_run'])
    assert done <= set(note['runs'])
    for label in done:
        m, how, defect = reproduce.RUNS[label]
        for k, v in {**how, **(reproduce.METHOD_DEFECTS[defect][1] if defect else {})}.items():
            if k != 'recipe': assert note['runs'][label]['settings'][k] == v
    same = [v['differs_from_stored_logits_by'] for v in note['runs'].values() if v.get('differs_from_stored_logits_by') is not None]
    assert same and max(same) < 1e-3                                                  # what was run again is what was stored


def as_published(frame):
    "Rows with all defects on, checked."
    rows = frame[frame.defect == 'as published']
    assert set(rows.column) == set(reproduce.COLUMNS) and not rows.duplicated(['method', 'column', 'seed']).any()
    by = rows.groupby(['method', 'seed']).size()
    assert (by == len(reproduce.COLUMNS)).all() and len(by) == rows.method.nunique()*frame.seed.nunique()
    on = rows.set_index(['method', 'seed', 'column']).on.unstack()
    assert (on.loc['scrub'] == on.loc['noop']).all().all() and (on.loc['gold'][['avg_gap', 'jsd']] == 0).all().all()
    cents = on[list(reproduce.COLUMNS[:4])]*100
    assert np.allclose(cents, cents.round())
    gold = on.xs('gold').reindex(on.index.get_level_values('seed'))[list(reproduce.COLUMNS[:4])].to_numpy()
    assert np.allclose(on.avg_gap, abs(on[list(reproduce.COLUMNS[:4])] - gold).mean(axis=1))
    return rows


DIGITS = ('digits', 'digits-50', 'digits-class-3')


@pytest.mark.parametrize('name', DIGITS)
def test_digits_rows(name):
    frame, note = stored(name)
    assert sorted(frame.seed.unique()) == note['seeds'] and len(note['seeds']) >= 10
    rows, known = as_published(frame), {'gold', 'noop', *reproduce.PAPER}
    assert set(rows.method) == known and set(reproduce.METHOD_DEFECTS) <= set(frame.defect)
    off = frame[frame.defect.isin(reproduce.METHOD_DEFECTS) & frame.column.isin(reproduce.COLUMNS)].merge(rows, on=['method', 'column', 'seed'])
    assert len(off) == len(reproduce.METHOD_DEFECTS)*len(reproduce.COLUMNS)*len(note['seeds']) and (off.off_x == off.off_y).all()      # one 'off' for each method
    ruined = frame[(frame.defect == 'train mode') & (frame.column == 'mia_entropy')]
    assert set(ruined.method) == set(reproduce.TRAIN_MODE_AT_END) and ruined.on.mean() < ruined.off.mean()/2
    work = frame[(frame.defect == 'SSD ten times') & (frame.column == 'images backward')]
    assert (work.on == 10*work.off).all()


def test_cifar_says_what_is_as_published():
    frame, note = stored('cifar10')
    rows, left = as_published(frame), set(note['not_run'])
    lack = {reproduce.RUNS[k][0] for k in left & set(reproduce.RUNS) if k.endswith('as published') or k == 'finetune'}
    assert set(rows.method) == {'gold', 'noop', *reproduce.PAPER} - lack - ({'ssd'} if 'ssd, pass 3' in left else set())
    seen = set(frame.defect) | {reproduce.RUNS[k][2] for k in left & set(reproduce.RUNS)} | ({'SSD ten times'} if 'ssd, pass 3' in left else set())
    assert set(reproduce.METHOD_DEFECTS) <= seen                                       # each is there, or said to be not run
    if 'finetune' in note['runs']: assert note['runs']['finetune']['settings']['epochs'] == 3


STORED_RUNS = ('cifar10', *DIGITS, 'split', 'split-cifar10-share-0.1', 'fair', 'fair-cifar10-share-0.1')


@pytest.mark.parametrize('name', STORED_RUNS)
def test_results_are_of_committed_code(name):
    note = stored(name)[1]
    assert note['commit'] and not [c for c in (note['commit'], *note['made']) if '+' in c.split(' on ')[0]]


@pytest.mark.parametrize('name, seeds', [('split', 20), ('split-cifar10-share-0.1', 6)])
def test_split_rows(name, seeds):
    frame, note = stored(name)
    assert len(note['seeds']) == seeds
    ids = frame.groupby('split').forget_ids.nunique()
    assert ids['first'] == 1 and ids['random'] == len(note['seeds']) == frame.seed.nunique()
    assert (frame.groupby(['split', 'method', 'column']).seed.nunique() == len(note['seeds'])).all()
    first = frame[(frame.method == 'gold') & (frame.column == 'avg_gap')]
    assert (first.value == 0).all()


def judges_what_it_chose(name, seeds, centre):
    "Rows and note of a fair comparison: equal budget, settings as they are drawn, the best on the seeds for tuning is the one judged, and on others."
    frame, note = stored(name)
    assert [note['tuned_on'], note['judged_on']] == list(map(list, seeds)) and note['budget'] == reproduce.BUDGET and note['factors'] == reproduce.FACTORS
    assert not set(note['tuned_on']) & {*note['judged_on'], *range(100, 105)}         # those that recipes for digits were found on
    for (p, m), g in frame.groupby(['protocol', 'method']):
        judged = g[g.role == 'judged']
        assert sorted(judged.seed) == note['judged_on']
        if m in ('noop', 'gold2'): continue
        assert note['settings'][m] == json.loads(json.dumps([reproduce.drawn(m, j, centre(m)) for j in range(note['budget'])])), m
        tuned = g[g.role == 'tuned'].pivot(index='setting', columns='seed', values='gap')
        assert tuned.shape == (note['budget'], len(note['tuned_on']))
        score = tuned.mean(axis=1, skipna=False).fillna(math.inf)
        assert judged.setting.unique().tolist() == [note['best'][p][m]] and score[note['best'][p][m]] <= score.min() + 1e-8      # files keep nine digits
    return frame, note


def test_fair_rows_on_images():
    frame, note = judges_what_it_chose('fair-cifar10-share-0.1', reproduce.CIFAR_SEEDS, lambda m: reproduce.cifar_centre(m)[0])
    assert {p: set(g.method) for p, g in frame.groupby('protocol')} == dict.fromkeys(reproduce.CIFAR_ATTACKS, {'noop', 'gold2', *list_methods()})
    assert (note['share'], note['width'], note['epochs']) == (.1, *reproduce.NARROW.values())
    assert all(v['train'] > v['test'] + .15 for v in note['originals'].values())         # there is something to forget


def test_fair_rows():
    frame, note = judges_what_it_chose('fair', (reproduce.TUNED_ON, reproduce.JUDGED_ON), reproduce.centre)
    ran = {f'{p}, {m}' for p, m in frame.groupby(['protocol', 'method']).groups}
    assert {f'{p}, {m}' for p in reproduce.PROTOCOLS for m in list_methods()} - ran == set(note['not_run'])
    want = {p: float(p.split(',')[1].strip(' %'))/100 for p in note['originals']}
    for p, o in note['originals'].items():
        assert np.mean([v['train'] for v in o.values()]) > .99 and abs(np.mean([v['test'] for v in o.values()]) - want[p]) < .03


@pytest.mark.parametrize('name', STORED_RUNS)
def test_a_changed_row_is_noticed(name, tmp_path, monkeypatch):
    for end in ('csv', 'json'): (tmp_path/f'{name}.{end}').write_bytes((STORED/f'{name}.{end}').read_bytes())
    monkeypatch.setattr(sys.modules[__name__], 'STORED', tmp_path)
    stored(name)
    text = (tmp_path/f'{name}.csv').read_text()
    (tmp_path/f'{name}.csv').write_text(text[:-3] + ('1' if text[-3] != '1' else '2') + text[-2:])
    with pytest.raises(AssertionError, match='not what its note'): stored(name)


# ---- The page

PAGE = ROOT/'nbs'/'paper'/'02_what_did_not_reproduce.ipynb'


def code_cells(): return [c for c in json.loads(PAGE.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
def html_of(cell): return ''.join(''.join(o.get('data', {}).get('text/html', '')) for o in cell['outputs'])
def said(cell): return ''.join(''.join(o.get('text', '')) for o in cell['outputs'])


def test_every_table_of_the_page_can_be_taken_along():
    tables = [c for c in code_cells() if '<table' in html_of(c)]
    names = [n for c in tables for n in re.findall(r'download="(reproduce-[a-z0-9-]+)\.csv"', html_of(c))]
    assert len(tables) > 20 and len(names) == len(tables) == len(set(names))
    assert all(''.join(c['source']).rstrip().split('\n')[-1].startswith('Shown(') for c in tables)


def test_the_page_says_what_was_not_run_and_how_to_run_it():
    text = ''.join(map(said, code_cells()))
    for name in ('cifar10', 'fair'):
        note = stored(name)[1]
        assert all(k in text for k in note['not_run']) and (note['command'] in text or not note['not_run'])
    assert (STORED/'fair-cifar10.csv').exists() or 'Command: python tools/reproduce.py fair --data cifar10 --root FOLDER\n' in text


def test_figures_of_the_page_fit_on_a_phone():
    source = '\n'.join(''.join(c['source']) for c in code_cells())
    widths = [float(w) for w in re.findall(r'figsize=\(([\d.]+)', source)]
    assert widths and max(widths) <= 7
    assert min(map(float, re.findall(r'(?:fontsize=|labelsize\W+)([\d.]+)', source))) >= 8
