"""Published numbers are what was published, what is computed from them comes out, and numbers of different kinds do not meet: each such mix-up is put back, and a check fails."""
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

import lotus_nb.paper as paper
from mutants.common import rewritten

SPEC = ROOT.parent/'shared'/'spec'/'paper_results.csv'
PAGES = sorted((ROOT/'nbs'/'paper').glob('1[0-8]_*.ipynb'))
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


def test_a_stored_run_fills_the_columns(root):
    check_side(root)
    t = paper.shown(filled(root).reset_index())
    assert t['ours, as described (a GPU)', 'MIA'].item().endswith('(n=3)') and t['as described − printed', 'MIA'].item() == '-0.022'
    assert t['as described − printed', 'Time (min)'].item() == 'other device'
    assert paper.not_run(filled(root).reset_index(), 'table4') == 'All settings have been run.'


def test_what_has_not_run_says_so_and_how(root):
    side = paper.side_by_side(paper.published(source='supplement', table='Table 4', root=root), root=root)
    assert side.described_mean.isna().all() and side.published_mean.isna().all()
    said = paper.not_run(side, 'table4')
    assert 'resnet18-cifar10-10' in said and said.endswith('lotus-nb paper --item table4')
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
def test_pages_export_their_tables_and_name_the_command(page):
    cells = read_nb(page).cells
    text = '\n'.join(c.source for c in cells) + json.dumps([c.get('outputs') for c in cells if c.cell_type == 'code'])
    assert 'export(' in text and re.search(r'\*\*Which (table|tables|figure|section)\.\*\*', text)
    if not page.stem.startswith('18'): assert 'lotus-nb paper --item' in text and re.search('not run', text, re.I)     # 18 has nothing to run


def test_there_is_a_page_for_each_item(): assert [p.stem[:2] for p in PAGES] == [str(i) for i in range(10, 19)]


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
    'a difference of times of two devices': (lambda: rewritten(paper, 'side_by_side', ".where(fair)", ""), check_side),
    'the standard error for the deviation': (lambda: rewritten(paper, '_means', "sd=('value', 'std')", "sd=('value', 'sem')"), check_side),
    'divergences at another N': (lambda: rewritten(paper, '_cell', '> .01*n', '> 9*n'), check_refuses_other_size),
    'rows in percent': (lambda: rewritten(paper, 'check_rows', '.between(0, 1)', '.between(0, 100)'), check_refuses_percent),
    'Table 4 of either version': (lambda: rewritten(paper, 'published', '.gt(1).any()', '.gt(9).any()'), check_names_the_source),
    'a ResNet-20 in the row of a ResNet-18': (lambda: rewritten(paper, 'run_name', 'return f"', 'if dataset == "CIFAR-10": return "cifar10"\n    return f"'), check_no_other_network),
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
