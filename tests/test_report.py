"What pages say first, what they mark, and what they may not hide."
import html
import re

import numpy as np
import pandas as pd
import pytest

import lotus_nb.report as rp
from lotus_nb.audit import AUDIT_MARGINS
from lotus_nb.evaluation import MARGINS
from lotus_nb.report import bench_page, conclusion, faults_line, pooled_checks, table, table_html, verdicts

AT = dict(within=0., undecided=.9, beyond=3.)       # in margins


def checks_of(seeds=3, **methods):
    "Checks of methods: one outcome each for all checks and seeds, or one for each check."
    rows = []
    for m, said in methods.items():
        for k, o in zip(MARGINS, said if isinstance(said, list) else [said]*len(MARGINS)):
            for s in range(seeds):
                v = AT[o]*MARGINS[k]*(-1 if k == 'utility' else 1) + (.5*MARGINS[k] if o == 'undecided' else 1e-4*MARGINS[k])*(s - 1)
                rows.append(('t', s, m, k, v, v - .01, v + .01, MARGINS[k], o, ''))
    return pd.DataFrame(rows, columns=['task', 'seed', 'method', 'check', 'value', 'low', 'high', 'margin', 'outcome', 'why'])


def rows_of(seeds=3, **mia):
    "Rows of a bench in which each method has one value."
    return pd.DataFrame([('t', m, s, '{}', k, v + .01*s, 'share', 40) for m, v in dict(noop=.95, gold=.62, gold2=.63, **mia).items()
                         for k in ('mia_entropy', 'avg_gap') for s in range(seeds)],
                        columns=['task', 'method', 'seed', 'hparams', 'metric', 'value', 'unit', 'n'])


def told(**methods): return verdicts(checks_of(**methods)).set_index('method').standing.to_dict()


def test_a_verdict_for_each_standing():
    assert told(a='within', b='undecided', c='beyond') == dict(a='within', b='undecided', c='beyond')
    assert told(a=['within']*4 + ['beyond']) == dict(a='beyond') and told(a=['within']*4 + ['undecided']) == dict(a='undecided')


def test_controls_get_no_verdict(): assert told(noop='beyond', gold2='within', destroyed='beyond', cheat='beyond', a='within') == dict(a='within')


def test_what_was_caught_least_stands_first():
    v = verdicts(checks_of(c='beyond', u='undecided', most=['beyond']*4 + ['within'], w='within'))
    assert list(v.method) == ['w', 'u', 'most', 'c']


def test_few_seeds_take_the_worst():
    one = checks_of(seeds=1, a='within', b='beyond')
    p = pooled_checks(one)
    assert list(p.outcome) == ['within']*5 + ['beyond']*5 and np.isfinite(p.low).all()      # one seed keeps its own interval
    two = pd.concat([checks_of(seeds=1, a='within'), checks_of(seeds=1, a='beyond').assign(seed=1)])
    p = pooled_checks(two)
    assert set(p.outcome) == {'beyond'} and p.low.isna().all()


def test_a_check_that_is_missing_is_not_passed():
    c = checks_of(a='within')
    c.loc[c.check == 'answers', ['value', 'outcome']] = [np.nan, 'none']
    assert verdicts(c).standing[0] == 'undecided' and 'answers' in verdicts(c).verdict[0]


def test_the_undecided_do_not_win():
    df, checks = rows_of(near=.62, far=.2), checks_of(near='undecided', far='beyond', noop='beyond')
    page, text = bench_page(df, 'T', checks=checks), conclusion(df, checks)
    assert 'nearest' not in text and text.startswith('Over 3 seeds, none of 2 methods is shown')
    assert 'class="best"' not in page and '<u>' in page
    good = bench_page(df, 'T', checks=checks_of(near='within', far='beyond', noop='beyond'))
    assert re.findall('<td class="best">([^<]*)', good) == ['0.630 ± 0.010']    # near's attack; far's gap stays underlined
    assert 'near stayed within the margins of gold in every check' in html.unescape(good)


def test_means_alone_are_called_that():
    text = conclusion(rows_of(near=.62, far=.2))
    assert 'by means alone, near comes nearest to gold' in text and 'was not tested' in text


def test_without_gold_nothing_is_within():
    df = rows_of(a=.6, b=.6); df = df[~df.method.isin(['gold', 'gold2'])]
    checks = checks_of(a='within', b='beyond')
    page = bench_page(df, 'T', checks=checks)
    assert 'Tier T0' in page and 'cannot be said' in page and 'within the margins<' not in page and 'class="best"' not in page
    assert 'Something is wrong already with b.' in conclusion(df, checks)


@pytest.mark.parametrize('place', ['<title>INVALID: T<', '<h1>INVALID: T<', '<b>INVALID for t seed 2: Gold saw it.'])
def test_invalid_comes_first(place):
    checks = checks_of(a='within')
    wrong = pd.concat([checks, checks.head(1).assign(seed=2, check='controls', outcome='INVALID', why='Gold saw it.')])
    page = bench_page(rows_of(a=.6), 'T', checks=wrong)
    assert place in page and place not in bench_page(rows_of(a=.6), 'T', checks=checks)
    assert 'All controls behaved' not in page and 'class="best"' not in page and '<h2>Verdict' not in page
    assert faults_line(wrong) and 'within the margins' not in conclusion(rows_of(a=.6), wrong)


def test_intervals_of_means():
    df = rows_of(a=.6)
    cell = table(df, interval=True).loc['a', 'MIA'].strip().rstrip('*')
    half = 4.302653*.01/3**.5
    assert cell == f'0.610 ± 0.010 [{.61 - half:.3f}, {.61 + half:.3f}]'
    assert '[' not in table(df[df.seed < 2], interval=True).loc['a', 'MIA']          # two seeds give none
    assert '[' not in table(df.assign(value=1.), interval=True).loc['a', 'MIA']      # nor do seeds that agree: it would be too narrow
    assert '[' not in table(df).loc['a', 'MIA']
    high = df.assign(value=df.value.where(df.method != 'a', [.95 + .025*s for s in df.seed]))
    assert high.value.max() == 1. and table(high, interval=True).loc['a', 'MIA'].strip('* ').endswith(', 1.000]')   # no share above 1


def test_text_is_escaped():
    evil = '<script>alert(1)</script>'
    df = rows_of(**{evil: .6})
    page = bench_page(df, evil, {}, {'when': evil}, checks_of(**{evil: 'beyond'}))
    assert '<script' not in page
    assert '<script' not in table_html(pd.DataFrame({evil: [f'{evil} [1, 2]']}, index=[evil]), under={evil: evil})


def test_every_check_is_explained():
    for known in AUDIT_MARGINS.values(): assert set(known) <= set(rp._AUDITED)
    assert set(MARGINS) == set(rp._CHECKED)


def test_tasks_are_not_mixed():
    df = pd.concat([rows_of(a=.6), rows_of(a=.6).assign(task='u')])
    with pytest.raises(ValueError, match='a page is about one'): bench_page(df, 'T')


MISTAKES = [('undecided called within', 'pooled_checks', lambda f: lambda c: f(c).assign(outcome=lambda p: p.outcome.replace('undecided', 'within'))),
            ('the best seed counts', 'pooled_checks', lambda f: lambda c: f(c).assign(outcome='within'))]


@pytest.mark.parametrize('name, fn, wrong', MISTAKES, ids=[m[0] for m in MISTAKES])
def test_mistakes_are_caught(name, fn, wrong, monkeypatch):
    monkeypatch.setattr(rp, fn, wrong(getattr(rp, fn)))
    with pytest.raises(AssertionError): test_the_undecided_do_not_win()
    with pytest.raises(AssertionError): test_a_verdict_for_each_standing()
