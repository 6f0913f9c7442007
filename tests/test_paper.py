"""Published numbers are what was published, what is computed from them comes out, and numbers of different kinds do not meet: each such mix-up is put back, and a check fails."""
import ast
import base64
import csv
import io
import json
import re
import shutil
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from fastcore.nbio import read_nb
from scipy.stats import ttest_ind

import lotus_nb.paper as paper
from mutants.common import rewritten

SPEC = ROOT.parent/'shared'/'spec'/'paper_results.csv'
FOLDER = ROOT/'nbs'/'paper'
PAGES = sorted(FOLDER.glob('1[0-9]_*.ipynb'))                                          # tables, figures, sections
WITH_TABLES = [*(p for n in (1, 3, 4, 5, 6) for p in FOLDER.glob(f'{n:02}_*.ipynb')), *PAGES]
SETTING = dict(model='ResNet18', dataset='CIFAR-10', forget_fraction='0.1')
NOTEBOOK = dict(source='notebook', table='results.ipynb[2]')


# The file.

def test_numbers_are_those_of_the_specification():
    if not SPEC.exists(): pytest.skip('the specification is not beside this checkout')
    assert (ROOT/'results'/'published.csv').read_bytes() == SPEC.read_bytes()


def test_every_source_is_explained():
    said = (ROOT/'results'/'published.md').read_text(encoding='utf-8')
    assert all(f'`{s}`' in said for s in set(paper.published().source))
    lines = (ROOT/'results'/'published.csv').read_text(encoding='utf-8').count('\n') - 1
    assert lines == 4019 and '4,019' in said


def test_each_cell_once():
    df = paper.published()
    assert not df.duplicated(list(paper.FIELDS)).any() and len(df) == 4019 - 139       # printed twice in one notebook, with one value


@pytest.mark.parametrize('change, words', [
    (lambda t: t.replace('supplement,Table 4,ViT,CIFAR-100,0.1,Gold Std,mia_acc,0.72', 'supplement,Table 4,ViT,CIFAR-100,0.1,Gold Std,mia_acc,72'), 'Are they percent'),
    (lambda t: t.replace('forget_fraction', 'fraction', 1), 'has the columns'),
    (lambda t: t + 'supplement,Table 4,ViT,CIFAR-100,0.1,Gold Std,mia_acc,0.71,0.00\n', 'twice, with different values'),
    (lambda t: t.replace('Gold Std,mia_acc,0.72', 'Gold Std,mia_acc,', 1), 'no number')])
def test_a_spoilt_file_is_refused(tmp_path, change, words):
    (tmp_path/'published.csv').write_text(change((ROOT/'results'/'published.csv').read_text(encoding='utf-8')), encoding='utf-8')
    with pytest.raises(ValueError, match=words): paper.published(root=tmp_path)


def test_filters_name_what_was_probably_meant():
    for k, typo, right in (('source', 'suplement', 'supplement'), ('metric', 'jsd_4e', 'jsd_e4'), ('method', 'LOTUS', 'LoTUS'), ('dataset', 'CIFAR10', 'CIFAR-10')):
        with pytest.raises(ValueError, match=f"Did you mean '{right}'"): paper.published(**{k: typo})
    with pytest.raises(ValueError, match='name one as `source`'): paper.published(table='Table 4')


# What is computed from it.

def check_arithmetic(_=None):
    g = paper.gaps(paper.published(source='supplement', table='Table 4'))
    off = g[(g.printed - g.from_gaps).abs().gt(1e-9) | (g.printed - g.from_means).abs().gt(1e-9) | (g.off_gaps != '')]
    assert len(g) == 48 and len(off) == 10
    expected = {('ResNet18', 'CIFAR-10', 'LoTUS'): (.0375, .0300, .0375), ('ViT', 'CIFAR-10', 'Finetuning'): (.0075, .0050, .0050),
                ('ViT', 'CIFAR-10', 'Bad Teacher'): (.0375, .0400, .0400), ('ViT', 'CIFAR-10', 'SCRUB'): (.0050, .0050, .0025),
                ('ViT', 'MUFAC', 'NegGrad+'): (.0475, .0500, .0475)}
    for k, v in expected.items(): assert np.allclose(off.loc[k, ['printed', 'from_gaps', 'from_means']].astype(float), v), k


TABLE6 = {7: (.84, .0043), 6: (.92, .0005), 8: (.93, .0003), 12: (.94, .0001), 11: (.99, .0000), 3: (.97, .0000), 2: (.90, .0011), 4: (.88, .0018), 10: (.91, .0006), 9: (.89, .0013)}
WITHOUT = {7: .918, 3: .993, 4: .966, 9: .919}


def check_correlations(_=None):
    rows = lambda i: paper.published(table=f'results.ipynb[{i}]').query("method != 'LoTUS(CIFAKE)'")
    for i, (r, p) in TABLE6.items():
        c = paper.correlation(rows(i)).iloc[0]
        assert (round(c.pearson, 2), round(c.p, 4), c.n) == (r, p, 9), i
    for i, r in WITHOUT.items():
        c = paper.correlation(rows(i), leave=['Gold Std']).iloc[0]
        assert c.n == 8 and abs(c.pearson - r) < 6e-4, i
    c = paper.correlation(rows(9)).iloc[0]
    assert abs(c.spearman - .5105) < 1e-3 and c.p_spearman > .1


def check_nats(_=None):
    n = paper.mean_divergence(paper.published(source='cvpr2025_main', table='Table 1', model='ResNet18')).set_index(['dataset', 'method']).nats
    assert abs(n['CIFAR-100', 'Finetuning'] - 3.44) < 1e-9 and abs(n['MUFAC', 'LoTUS'] - .7328) < 1e-3       # METRICS.md 3.3


def test_arithmetic_of_table_4(): check_arithmetic()


def test_correlations_of_table_6(): check_correlations()


def test_divergence_per_image(): check_nats()


def check_differences(_=None):
    d = paper.differing(paper.published(source='cvpr2025_main'), paper.published(source='notebook').query("not table.str.startswith('tuning')"))
    assert len(d) == 7 and set(d.method) == {'LoTUS', 'Bad Teacher'}


def test_documents_differ_in_seven_cells(): check_differences()


def test_the_correction_is_the_row_of_another_data_set():
    s = paper.published(source='supplement', table='Sec. 14 (stated correction)').set_index('method')[['mean', 'std']]
    row = lambda i: paper.published(table=f'results.ipynb[{i}]', metric='jsd_e4').set_index('method').loc[s.index, ['mean', 'std']]
    assert s.equals(row(3)) and not (s == row(4)).any().any()
    printed = paper.published(source='cvpr2025_main', table='Table 1', model='ResNet18', dataset='MUFAC', metric='jsd_e4').set_index('method').loc[s.index, ['mean', 'std']]
    assert printed.equals(row(4))


# Our runs.

VALUES = {'mia_entropy': .8, 'forget_accuracy': .95, 'retain_accuracy': .98, 'test_accuracy': .9, 'avg_gap': .05, 'jsd_as_published': 4e-5, 'rf_jsd_as_published': 2e-3,
          'seconds': 90., 'jsd': .15}
UNITS = {m.ours: m.unit for m in paper.MEASURES.values()} | {'jsd': 'nats'}


def made(methods=('noop', 'gold', 'lotus', 'lotus-as-published'), seeds=(3407, 13, 12), n=5000):
    "Rows as `bench` writes them; those as published are a tenth higher where that is possible."
    return pd.DataFrame([dict(task='cifar10', method=m, seed=s, hparams='{}', metric=k, value=v*(1 + .01*i) - (.1 if m.endswith('published') and UNITS[k] == 'share' and v > .1 else 0),
                              unit=UNITS[k], n=n) for m in methods for i, s in enumerate(seeds) for k, v in VALUES.items()])


@pytest.fixture
def root(tmp_path):
    shutil.copy(ROOT/'results'/'published.csv', tmp_path)
    return tmp_path


def store(root, name, rows, note=True):
    (root/name).mkdir(exist_ok=True)
    rows.to_csv(root/name/'results.csv', index=False)
    if note: (root/name/'provenance.json').write_text(json.dumps(dict(device_name='a GPU', device='cuda')))


def filled(root):
    return paper.side_by_side(paper.published(**NOTEBOOK, method='LoTUS', root=root), root=root).set_index('metric')


def check_recipe(root):
    "Defective models that were evaluated rightly are in neither column, and kept."
    right = made(methods=['lotus-published-recipe', 'noop-published-recipe']).assign(value=lambda f: f.value/2)
    store(root, 'resnet18-cifar10-10', pd.concat([made(), right]))
    run = paper.stored('resnet18-cifar10-10', root)
    assert set(run.rows.method) == {'noop', 'gold', 'lotus'} and set(run.as_published.method) == {'lotus'}
    assert set(run.published_recipe.method) == {'lotus', 'noop'} and (run.published_recipe.query("metric == 'mia_entropy'").value < .5).all()
    assert abs(filled(root).described_mean['mia_acc'] - .808) < 1e-9


def vit(root): return paper.side_by_side(paper.published(source='supplement', table='Table 4', model='ViT', dataset='CIFAR-10', method='LoTUS', root=root), root=root)


def check_stand_ins(root):
    "What is nearly of a setting has lines of its own, and no difference to the printed number unless only the split is another."
    store(root, 'vit_random-cifar10-10', made())
    store(root, 'vit-cifar10-10-first-k', made().assign(value=lambda f: f.value.where(f.metric != 'mia_entropy', .9)))
    side = vit(root)
    lines = side[side.metric == 'mia_acc'].set_index('stand_in')
    assert list(lines.index) == ['', paper.FIXED_SPLIT, 'ViT from random weights']
    assert np.isnan(lines.described_mean['']) and lines.printed[''] == lines.printed[paper.FIXED_SPLIT] and np.isnan(lines.printed['ViT from random weights'])
    assert abs(lines.described_mean['ViT from random weights'] - .808) < 1e-9 and np.isnan(lines.described_minus_printed['ViT from random weights'])
    assert abs(lines.described_minus_printed[paper.FIXED_SPLIT] - (.9 - lines.printed[''])) < 1e-9
    assert abs(lines.published_minus_described['ViT from random weights'] + .1) < 1e-9
    t = paper.shown(side)
    assert list(t.index) == [(s, 'LoTUS') for s in ('ViT CIFAR-10', "ViT CIFAR-10 (the paper's fixed split)", 'ViT CIFAR-10 (ViT from random weights)')]
    ours = t['ours, as described (a GPU)', 'MIA']
    assert ours.iloc[0] == 'not run' and ours.iloc[2].startswith('0.808') and t['printed', 'MIA'].iloc[2] == '–' == t['as described − printed', 'MIA'].iloc[2]
    said = paper.not_run(side, 'table4')
    assert said.startswith('Not run either way: vit-cifar10-10.\n') and 'vit_random-cifar10-10 (ViT from random weights)' in said


def test_stand_ins_have_lines_of_their_own(root): check_stand_ins(root)


def test_a_run_of_the_published_recipe_is_no_method(root): check_recipe(root)


def test_names_of_stand_ins_are_those_that_runs_get():
    "Each name comes out of the protocol's cells, and nothing that the stated commands make is left out of the tables."
    from dataclasses import replace
    from lotus_nb.protocol import cells_of
    for scale in ('full', 'fast'):
        for split in ('random', 'first-k'):
            for c in cells_of(scale=scale, split=split):
                for d in (c, replace(c, model='vit_random')) if c.model == 'vit' else (c,):
                    assert d.name == c.base or d.name in paper.stand_ins(c.base), d.name


def check_side(root):
    "A stored run fills the columns, in the printed unit."
    store(root, 'resnet18-cifar10-10', made())
    s = filled(root)
    for metric, value in (('mia_acc', .808), ('jsd_e4', .404), ('rf_jsd_e4', 20.2), ('time_min', 1.515), ('test_acc', .909)):
        assert abs(s.described_mean[metric] - value) < 1e-9, metric
    assert (s.described_n == 3).all() and (s.published_n == 3).all() and set(s.described_device) == {'a GPU'}
    assert abs(s.published_mean['mia_acc'] - .708) < 1e-9
    assert abs(s.described_minus_printed['mia_acc'] + .022) < 1e-9 and abs(s.published_minus_printed['mia_acc'] + .122) < 1e-9
    assert np.isnan(s.described_minus_printed['time_min'])                       # another device
    sd = np.std([.8, .808, .816], ddof=1)
    assert abs(s.described_sd['mia_acc'] - sd) < 1e-9 and abs(s.described_high['mia_acc'] - .808 - 4.302653*sd/3**.5) < 1e-6
    half = s.described_high['mia_acc'] - .808
    assert abs(s.described_minus_printed_low['mia_acc'] + .022 + half) < 1e-9 and np.isnan(s.described_minus_printed_high['time_min'])
    welch = ttest_ind([.7, .708, .716], [.8, .808, .816], equal_var=False).confidence_interval()
    assert np.allclose((s.published_minus_described_low['mia_acc'], s.published_minus_described_high['mia_acc']), (welch.low, welch.high))


def test_a_stored_run_fills_the_columns(root):
    check_side(root)
    t = paper.shown(filled(root).reset_index())
    assert t['ours, as described (a GPU)', 'MIA'].item().endswith('(n=3)') and t['as described − printed', 'MIA'].item() == '-0.022 [-0.042, -0.002]'
    assert t['as described − printed', 'Time (min)'].item() == 'other device'
    assert paper.not_run(filled(root).reset_index(), 'table4') == 'All settings have been run.'


def test_what_has_not_run_says_so_and_how(root):
    side = paper.side_by_side(paper.published(source='supplement', table='Table 4', root=root), root=root)
    assert side.described_mean.isna().all() and side.published_mean.isna().all()
    said = paper.not_run(side, 'table4')
    assert 'resnet18-cifar10-10' in said and said.split('\n')[-1] == 'Command: lotus-nb paper --item table4' and max(map(len, said.split('\n'))) <= 100
    t = paper.shown(side)
    assert len(t) == 54 and all(set(t[c]) == {'not run'} for c in t if c[0] != 'printed')


def test_a_run_with_only_some_methods_leaves_holes(root):
    store(root, 'resnet18-cifar10-10', made(methods=['noop', 'gold', 'lotus']))
    side = paper.side_by_side(paper.published(source='supplement', table='Table 4', root=root), root=root)
    t = paper.shown(side)
    ours = t['ours, as described (a GPU)', 'MIA']
    assert ours['ResNet18 CIFAR-10', 'LoTUS'].startswith('0.808') and ours['ResNet18 CIFAR-10', 'SSD'] == 'not run' == ours['ViT CIFAR-10', 'LoTUS']
    assert 'Not run as published: ' in paper.not_run(side, 'table4')


def check_no_other_network(root):
    "CIFAR-10 with a ResNet-20 and digits are stored, and no cell of the paper's tables is filled by them."
    for name in ('cifar10', 'digits'): shutil.copytree(ROOT/'results'/name, root/name, dirs_exist_ok=True)
    side = paper.side_by_side(paper.published(source='supplement', table='Table 4', root=root), root=root)
    assert side.described_mean.isna().all()
    assert all('ResNet-20' in c[0] for c in paper.elsewhere('cifar10', root=root))
    assert not {n for n in paper.ELSEWHERE} & {paper.run_name('ResNet18', 'CIFAR-10', '0.1'), *paper.stand_ins('resnet18-cifar10-10')}


def test_no_other_network_fills_a_cell(root): check_no_other_network(root)


@pytest.mark.parametrize('spoil, words', [
    (lambda r: r.assign(value=r.value.where(r.metric != 'test_accuracy', r.value*100)), 'Is it percent'),
    (lambda r: r.assign(unit=r.unit.replace({'nats/N': 'nats'})), "must be in 'nats/N'"),
    (lambda r: r.assign(unit=r.unit.replace({'s': 'min'})), "must be in 's'"),
    (lambda r: pd.concat([r, r.tail(1)]), 'two values'),
    (lambda r: r.assign(task=['a', *['b']*(len(r) - 1)]), 'mixes the tasks'),
    (lambda r: r.drop(columns='unit'), 'no column unit'),
    (lambda r: r.assign(value=r.value.where(r.metric != 'avg_gap')), 'finite'),
    (lambda r: r.assign(n=1000), 'forgets 1,000 images')])
def test_rows_of_another_kind_are_refused(root, spoil, words):
    store(root, 'resnet18-cifar10-10', spoil(made()))
    with pytest.raises(ValueError, match=words): filled(root)


def test_rows_without_provenance_are_refused(root):
    store(root, 'resnet18-cifar10-10', made(), note=False)
    with pytest.raises(ValueError, match='no provenance'): filled(root)


def test_names_of_runs():
    df = paper.published(source=['supplement', 'cvpr2025_main', 'arxiv_v2_supp'], model=list(paper._SLUGS))
    names = {paper.run_name(*k) for k in zip(df.model, df.dataset, df.forget_fraction)}
    assert {'resnet18-cifar10-10', 'vit-cifar100-50', 'resnet18-mufac', 'vit-b16-imagenet1k', 'resnet18-cifar100-beaver'} <= names
    assert len(names) == len(set(zip(df.model, df.dataset, df.forget_fraction))) and all(re.fullmatch('[a-z0-9-]+', n) for n in names)


# Another network, another data set.

COLUMNS = ('mia_entropy', 'forget_accuracy', 'retain_accuracy', 'test_accuracy', 'avg_gap', 'jsd', 'rf_jsd')
REGISTERED = [m for m in paper.METHODS.values()]


def switches(methods=REGISTERED, seeds=range(10), **change):
    "Rows as `tools/reproduce.py` writes them, of all defects; and one of a single defect, which no column of these tables holds."
    small = {'jsd': 1e-3, 'rf_jsd': 1e-2}
    rows = [dict(defect='as published', method=m, column=k, off=.5 + .01*s, on=small.get(k, .4 + .02*s), seed=s) for m in methods for s in seeds for k in COLUMNS]
    return pd.DataFrame([*rows, dict(defect='train mode', method='lotus', column='mia_entropy', off=.9, on=.9, seed=0)]).assign(**change)


def switch(root, name, rows, note=True):
    (root/'reproduce').mkdir(exist_ok=True)
    rows.to_csv(root/'reproduce'/f'{name}.csv', index=False)
    if note: (root/'reproduce'/f'{name}.json').write_text(json.dumps(dict(device_name='a processor')))


def check_elsewhere_absent(root):
    "Nothing is there; then only the methods as described. What is missing says so, and names the command."
    for name in ('digits', 'cifar10', 'reproduce'): shutil.rmtree(root/name, ignore_errors=True)
    t = paper.elsewhere('digits', root=root)
    assert set(t.values.ravel()) == {'not run'}
    assert [c[1] for c in t] == ['as described (to run: python tools/results.py digits)', 'as published (to run: python tools/reproduce.py digits)', 'as published − as described']
    for name in ('digits', 'cifar10'): shutil.copytree(ROOT/'results'/name, root/name, dirs_exist_ok=True)
    for name, command in (('digits', 'python tools/reproduce.py digits'), ('cifar10', 'python tools/reproduce.py cifar10 --root FOLDER')):
        if name == 'cifar10': switch(root, name, switches().query("defect != 'as published'"))           # a file without these rows
        t = paper.elsewhere(name, root=root)
        assert [c[1] for c in t] == ['as described', f'as published (to run: {command})', 'as published − as described'], name
        assert set(t.iloc[:, 1]) == set(t.iloc[:, 2]) == {'not run'} and 'not run' not in set(t.iloc[:, 0])
    assert paper.elsewhere('digits', root=root).loc[('MIA', 'LoTUS')].iloc[0].count('[') == 1 and '(n=10)' in paper.elsewhere('digits', root=root).iloc[0, 0]
    assert '[' not in paper.elsewhere('cifar10', root=root).iloc[0, 0]                                   # one seed has no interval


def check_elsewhere_present(root):
    "Both kinds, their difference by pairs, interval, seeds, device; other models' rows do not come in."
    shutil.copytree(ROOT/'results'/'digits', root/'digits', dirs_exist_ok=True)
    switch(root, 'digits', switches())
    printed = paper.published(source='supplement', table='Table 4', model='ResNet18', dataset='CIFAR-10', root=root)
    t = paper.elsewhere('digits', printed=printed, root=root)
    assert [c[1] for c in t] == ['', 'as described', 'as published', 'as published − as described']
    assert t.columns[0][0] == 'printed: ResNet18, CIFAR-10, 10 % to forget' and all('BatchNorm' in c[0] and c[0].endswith('; a processor') for c in t.columns[1:])
    assert t.loc[('MIA', 'LoTUS')].tolist() == ['0.83 ± 0.01', '0.545 ± 0.030 [0.523, 0.567] (n=10)', '0.490 ± 0.061 [0.447, 0.533] (n=10)', '-0.055 ± 0.030 [-0.077, -0.033] (n=10)']
    assert t.loc[('JSD', 'LoTUS')].tolist()[2:] == ['10.00 ± 0.00 [10.00, 10.00] e-4 nats/N (n=10)', 'another quantity']
    switch(root, 'digits', switches(methods=['noop', 'gold', 'lotus'], seeds=[0, 1]))
    t = paper.elsewhere('digits', root=root)
    assert t.loc[('MIA', 'LoTUS')].iloc[0] == '0.505 ± 0.007 (n=2)' and set(t.loc[('MIA', 'SSD')]) == {'not run'}
    assert [c[1] for c in t][:2] == [f'{k} (to run: python tools/reproduce.py digits)' for k in ('as described', 'as published')]


def check_same_models(root):
    "CIFAR-10 is of the same models, so that a method that is only there as described is shown; what is never measured as published is a dash."
    shutil.copytree(ROOT/'results'/'cifar10', root/'cifar10', dirs_exist_ok=True)
    switch(root, 'cifar10', switches(methods=['noop', 'gold', 'lotus'], seeds=[0]))
    t = paper.elsewhere('cifar10', ['mia_entropy', 'seconds'], root=root)
    assert t.loc[('MIA', 'LoTUS')].tolist() == ['0.500 (n=1)', '0.400 (n=1)', '-0.100 (n=1)']
    assert t.loc[('MIA', 'SSD')].iloc[0] != 'not run' == t.loc[('MIA', 'SSD')].iloc[1]
    assert t.loc[('Seconds', 'SSD')].tolist()[1:] == ['–', '–'] and [c[1] for c in t][0] == 'as described'


def test_what_is_absent_elsewhere(root): check_elsewhere_absent(root)


def test_what_is_present_elsewhere(root): check_elsewhere_present(root)


def test_the_same_models_elsewhere(root): check_same_models(root)


@pytest.mark.parametrize('rows, note, words', [
    (lambda: switches().drop(columns='seed'), True, 'no column seed'), (switches, False, 'nobody can say'),
    (lambda: pd.concat([switches()]*2), True, 'two values'), (lambda: switches(on=50.), True, 'A share lies in'), (lambda: switches(off=np.nan), True, 'cannot be')])
def test_spoilt_switches_are_refused(root, rows, note, words):
    switch(root, 'digits', rows(), note)
    with pytest.raises(ValueError, match=words): paper.elsewhere('digits', root=root)


def test_titles_of_stored_switches_are_true():
    "What the headings say about the models in `results/reproduce` is what its notes say."
    for name, p in paper.ELSEWHERE.items():
        file = ROOT/'results'/'reproduce'/f'{name}.json'
        if paper.switched(name) is None: continue
        note = json.loads(file.read_text())
        assert note['command'].removesuffix(' --root FOLDER') == p.switch.removesuffix(' --root FOLDER')
        assert ('ResNet-20' if name == 'cifar10' else 'BatchNorm') in note['model'] and ('BatchNorm' in p.switched) == name.startswith('digits')
        if 'retain_images' in note: assert f"{note['retain_images']:,} images to retain" in p.switched
        assert set(paper.switched(name).metric) >= {'mia_entropy', 'avg_gap'}


@pytest.mark.parametrize('name, share', [('digits-50', 200), ('digits-class-3', None)])
def test_more_to_forget(name, share):
    rows, note = paper.stored(name).rows, paper.stored(name).note
    assert rows.seed.nunique() == 10 and len(set(note['forget_ids'].values())) == 10 and all('+' not in m for m in note['made'])
    assert set(rows.method) == set(paper.stored('digits').rows.method) and note['command'].startswith('python tools/results.py digits --forget')
    if share: assert (rows[rows.metric == 'jsd'].n == share).all()
    else: assert (rows[(rows.metric == 'forget_accuracy') & (rows.method == 'gold')].value == 0).all()


# Export.

def read_markdown(text):
    rows = [re.split(r'(?<!\\)(?:\\\\)*\|', l.strip())[1:-1] for l in text.strip().split('\n')]
    assert set(''.join(rows[1]).replace(' ', '')) == {'-'} and len({len(r) for r in rows}) == 1
    return [[re.sub(r'\\([\\|])', r'\1', c[1:-1]) for c in r] for i, r in enumerate(rows) if i != 1]


LATEX = [(r'\textbackslash{}', '\\'), (r'\textasciitilde{}', '~'), (r'\textasciicircum{}', '^'), (r'$\pm$', '±'), ('$-$', '−'), (r'$\times$', '×'), (r'\ldots{}', '…'),
         (r'$\le$', '≤'), (r'$\alpha$', 'α'), (r'$\to$', '→'), (r'\&', '&'), (r'\%', '%'), (r'\$', '$'), (r'\#', '#'), (r'\_', '_'), (r'\{', '{'), (r'\}', '}'), ('--', '–')]


def read_latex(text):
    body = re.search(r'\\toprule\n(.*)\n\\bottomrule', text, re.S)[1].replace('\\midrule\n', '')
    assert not re.search(r'(?<!\\)[%#]', body), 'a comment or a parameter'
    token = re.compile('|'.join(re.escape(a) for a, _ in LATEX))
    assert not re.search(r'[$\\{}_^~]', token.sub('', body).replace('\\\\', '')), 'something is not escaped'
    assert len({len(re.findall(r'(?<!\\)&', l)) for l in body.split('\n')} | {text.count('l', text.index('tabular}{') + 9, text.index('}\n', text.index('tabular}{') + 9)) - 1}) == 1
    return [[token.sub(lambda m: dict(LATEX)[m[0]], c.strip()) for c in re.split(r'(?<!\\)&', l.removesuffix(r'\\'))] for l in body.split('\n')]


def check_export(_=None):
    odd = pd.DataFrame({'a_b & c': ['50 % | x', '1 ± 2', 'x−1'], 'set {1}': ['back\\slash', None, '#3 $4 ~^'], 'α → ×': ['a–b', '≤ 1…', 'p|q']})
    tables = [odd, odd.set_index('a_b & c'), paper.elsewhere('digits'), paper.gaps(paper.published(source='supplement', table='Table 4'))]
    for s, t in (('supplement', 'Table 4'), ('supplement', 'Table 5'), ('cvpr2025_main', 'Table 1'), ('cvpr2025_main', 'Table 2'), ('cvpr2025_main', 'Table 3'), ('cvpr2025_main', 'Table 4')):
        tables.append(paper.shown(paper.side_by_side(paper.published(source=s, table=t))))
    for t in tables:
        f = paper.flat(t)
        expected = [list(f.columns), *f.values.tolist()]
        assert [[c for c in r] for r in csv.reader(io.StringIO(paper.to_csv(t)))] == expected
        assert read_markdown(paper.to_markdown(t)) == expected
        assert read_latex(paper.to_latex(t, 'Costs 3 %')) == [[c.strip() for c in r] for r in expected]


def test_exports_are_read_back(): check_export()


def test_downloads_hold_the_same_text(tmp_path):
    d = paper.export(pd.DataFrame({'a': [1]}), 'x', 'c')
    page = d._repr_html_()
    texts = [base64.b64decode(b).decode() for b in re.findall(r'base64,([^"]+)"', page)]
    assert texts == list(d.files.values()) == [p.read_text(encoding='utf-8') for p in d.save(tmp_path)]
    assert r'\begin{table}' in d.files['tex'] and r'\caption{c}' in d.files['tex']


@pytest.mark.parametrize('page', PAGES, ids=[p.stem for p in PAGES])
def test_pages_name_the_table_and_the_command(page):
    cells = read_nb(page).cells
    text = '\n'.join(c.source for c in cells) + json.dumps([c.get('outputs') for c in cells if c.cell_type == 'code'])
    assert re.search(r'\*\*Which (table|tables|figure|section)\.\*\*', text)
    assert 'lotus-nb paper --item' in text and re.search('not run|have been run', text, re.I)


def root_of(node):
    "What an expression is a view of: a name without the methods, attributes and indices behind it, or a call with its arguments."
    while isinstance(node, (ast.Attribute, ast.Subscript)) or isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        node = node.func.value if isinstance(node, ast.Call) else node.value
    return ast.unparse(node)


def calls(tree, name): return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == name]


def shows_table(cell): return any('<table' in ''.join(o.get('data', {}).get('text/html', '')) for o in cell.get('outputs') or [])


def parsed(source):
    "The syntax of a cell, without what only IPython understands."
    return ast.parse(re.sub(r'^[%!].*$', '', source, flags=re.M))


def not_exported(cells):
    "Displayed tables that cannot be taken along; and the number of displayed ones."
    code = [(c, parsed(c.source)) for c in cells if c.cell_type == 'code' and c.source.strip()]
    taken = {root_of(n.args[0]) for _, tree in code for n in calls(tree, 'export')}
    shown = [(c, tree) for c, tree in code if shows_table(c)]
    views = [v for c, tree in shown for v in ([a for n in calls(tree, 'display') for a in n.args] or [tree.body[-1].value])]
    return [ast.unparse(v) for v in views if root_of(v) not in taken], len(views)


@pytest.mark.parametrize('page', WITH_TABLES, ids=[p.stem for p in WITH_TABLES])
def test_every_displayed_table_is_exported(page):
    left, shown = not_exported(read_nb(page).cells)
    assert left == [] and shown > 0


def test_a_table_without_export_is_seen():
    for page in WITH_TABLES:
        cells = read_nb(page).cells
        last = [c for c in cells if c.cell_type == 'code' and c.source.startswith('export(')][-1]
        gone = {root_of(n.args[0]) for n in calls(parsed(last.source), 'export')}
        again = {root_of(n.args[0]) for c in cells if c is not last and c.cell_type == 'code' for n in calls(parsed(c.source), 'export')}
        left, _ = not_exported([c for c in cells if c is not last])
        assert {root_of(ast.parse(v).body[0].value) for v in left} == gone - again and gone - again, page.stem


def test_exports_have_names_of_their_own():
    names = [ast.unparse(n.args[1]) for p in WITH_TABLES for c in read_nb(p).cells if c.cell_type == 'code' for n in calls(parsed(c.source), 'export')]
    assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)


def test_there_is_a_page_for_each_item():
    from lotus_nb.protocol import ITEMS
    assert [p.stem[:2] for p in PAGES] == [str(i) for i in range(10, 20)]
    text = ''.join(p.read_text(encoding='utf-8') for p in sorted(FOLDER.glob('*.ipynb')))
    assert [i for i in ITEMS if f'--item {i}' not in text] == []


def test_one_order_of_methods():
    "Registered methods stand in the order of the figures, wherever they are rows."
    from lotus_nb.figures import method_order
    for t in (paper.shown(paper.side_by_side(paper.published(source='cvpr2025_main', table='Table 1'))), paper.elsewhere('digits'), paper.elsewhere('cifar10')):
        for _, part in t.groupby(level=0, sort=False):
            ours = [paper.METHODS[m] for m in part.index.get_level_values(1) if m in paper.METHODS]
            assert ours == method_order(ours) and len(ours) > 8
    assert paper.in_order(['LoTUS', 'SalUn', 'Original', 'Finetuning']) == ['Original', 'Finetuning', 'SalUn', 'LoTUS']


# Mix-ups, put back.

def measure(metric, **change): return patch.dict(paper.MEASURES, {metric: paper.MEASURES[metric]._replace(**change)})


@contextmanager
def both(a, b):
    with a, b: yield


def check_refuses_other_size(root):
    store(root, 'resnet18-cifar10-10', made(n=25000))
    with pytest.raises(ValueError, match='forgets 25,000'): filled(root)


def check_refuses_percent(root):
    with pytest.raises(ValueError, match='Is it percent'): paper.check_rows(made().assign(value=lambda f: f.value.where(f.metric != 'test_accuracy', f.value*100)))


def check_names_the_source(root):
    with pytest.raises(ValueError, match='name one as `source`'): paper.published(table='Table 4')


def check_percent_of_the_source(root):
    assert abs(paper.published(table='results.ipynb[5]', method='Original', metric='test_acc')['mean'].item() - .6041) < 1e-9


MIXUPS = {
    'a percentage read as a share': (lambda: rewritten(paper, '_read_published', "/= 100", "/= 1"), check_percent_of_the_source),
    'JSD not scaled by 1e4': (lambda: measure('jsd_e4', factor=1.), check_side),
    'RF-JSD scaled by 1e-4': (lambda: measure('rf_jsd_e4', factor=1e-4), check_side),
    'the proper JSD in the column of the published one': (lambda: measure('jsd_e4', ours='jsd', unit='nats'), check_side),
    'seconds as minutes': (lambda: measure('time_min', factor=1.), check_side),
    'retain and test accuracy swapped': (lambda: both(measure('retain_acc', ours='test_accuracy'), measure('test_acc', ours='retain_accuracy')), check_side),
    'another method in the row of LoTUS': (lambda: patch.dict(paper.METHODS, {'LoTUS': 'noop', 'Original': 'lotus'}), check_side),
    'as published in the described column': (lambda: rewritten(paper, 'our_runs', "join('rows'), join('as_published')", "join('as_published'), join('rows')"), check_side),
    'a difference of times of two devices': (lambda: rewritten(paper, 'side_by_side', ".where(no_time)", ""), check_side),
    'the standard error for the deviation': (lambda: rewritten(paper, '_means', "sd=('value', 'std')", "sd=('value', 'sem')"), check_side),
    'divergences at another N': (lambda: rewritten(paper, '_cell', '> .01*n', '> 9*n'), check_refuses_other_size),
    'rows in percent': (lambda: rewritten(paper, 'check_rows', '.between(0, 1)', '.between(0, 100)'), check_refuses_percent),
    'Table 4 of either version': (lambda: rewritten(paper, 'published', '.gt(1).any()', '.gt(9).any()'), check_names_the_source),
    'a ResNet-20 in the row of a ResNet-18': (lambda: rewritten(paper, 'run_name', 'return f"', 'if dataset == "CIFAR-10": return "cifar10"\n    return f"'), check_no_other_network),
    'defective models, rightly evaluated, as methods': (lambda: patch.object(paper, 'PUBLISHED_RECIPE', '-no such label'), check_recipe),
    'a ViT from random weights beside the printed number': (lambda: rewritten(paper, '_lines', "if other == FIXED_SPLIT", "if other"), check_stand_ins),
    'stand-ins overlooked': (lambda: rewritten(paper, 'our_runs', "(name, *stand_ins(name))", "(name,)"), check_stand_ins),
    'on and off swapped': (lambda: rewritten(paper, '_three', "rows.on - rows.off", "rows.off - rows.on"), check_elsewhere_present),
    'the column of the other': (lambda: rewritten(paper, '_three', "_over_seeds(rows.off, digits)", "_over_seeds(rows.on, digits)"), check_elsewhere_present),
    'nats minus nats over N': (lambda: rewritten(paper, '_three', "'another quantity' if metric in _THEIRS else ", ""), check_elsewhere_present),
    'one defect for all of them': (lambda: rewritten(paper, 'switched', "rows.defect == 'as published'", "rows.defect != 'as published'"), check_elsewhere_present),
    'rows of another network beside': (lambda: rewritten(paper, 'elsewhere', "(place.same or both is None)", "True"), check_elsewhere_present),
    'an interval from two seeds': (lambda: rewritten(paper, '_over_seeds', "if n > 2", "if n > 1"), check_elsewhere_present),
    'not run without a command': (lambda: rewritten(paper, 'elsewhere', "(f' (to run: {command})' if 'not run' in texts else '')", "''"), check_elsewhere_absent),
    'signed gaps': (lambda: rewritten(paper, 'gaps', '.abs().round(2)', '.round(2)'), check_arithmetic),
    'gaps from printed gaps only': (lambda: rewritten(paper, 'gaps', "by_mean.mean(axis=1)", "by_gap.mean(axis=1)"), check_arithmetic),
    'gold always among the points': (lambda: rewritten(paper, 'correlation', 'w.drop([m for m in leave if m in w.index])', 'w'), check_correlations),
    'ranks for values': (lambda: rewritten(paper, 'correlation', 'pearsonr(w[x], w[y]), spearmanr', 'spearmanr(w[x], w[y]), spearmanr'), check_correlations),
    'N of CIFAR for MUFAC': (lambda: patch.dict(paper.N_FORGET, {('MUFAC', 'fixed(~0.16)'): 5000}), check_nats),
    'differences of deviations overlooked': (lambda: rewritten(paper, 'differing', ' | other(both.std_a, both.std_b)', ''), check_differences),
    'a bare % in LaTeX': (lambda: patch.dict(paper._LATEX, {'%': '%'}), check_export),
    'a bare & in LaTeX': (lambda: patch.dict(paper._LATEX, {'&': '&'}), check_export),
    'a bare | in Markdown': (lambda: rewritten(paper, 'to_markdown', ".replace('|', '\\\\|')", ''), check_export),
}


@pytest.mark.parametrize('what', MIXUPS)
def test_a_mixup_is_noticed(what, root):
    broken, check = MIXUPS[what]
    check(root)
    with broken():
        with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)): check(root)
    check(root)
