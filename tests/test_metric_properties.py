"""Divergences on answers that hypothesis makes up: identities, bounds, other people's code, and what must not matter (precision, order, repetition). Holm and equivalence against statsmodels.
"""
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon
from torchmetrics.functional.regression import jensen_shannon_divergence

import lotus_nb.metrics.divergence as divergence
import lotus_nb.metrics.stats as stats
from lotus_nb.metrics.core import Evidence, log_probs

KINDS = ('js', 'ag', 'jeffreys')
HOW = settings(max_examples=150, deadline=None, derandomize=True)
LOG_CLAMP = math.log(1e-8)


@st.composite
def two_models(draw, at_most=12.):
    "Logits of two models about the same images, (N, K) each, some of them equal."
    n, k = draw(st.integers(1, 9)), draw(st.integers(2, 8))
    one = arrays(np.float64, (n, k), elements=st.floats(-at_most, at_most, width=32))
    a, b = draw(one), draw(one)
    return a, (np.where(draw(arrays(bool, (n, 1))), a, b))


def three(a, b): return [divergence.divergence(log_probs(a), log_probs(b), k, log=True) for k in KINDS]


def shown(z, ids=None):
    return Evidence({'forget': z}, {'forget': np.zeros(len(z), int)}, {'forget': np.arange(len(z)) if ids is None else ids})


SATURATED = (np.array([[1e4, -1e4, 0.]]), np.array([[-1e4, 1e4, 0.]]))


@HOW
@given(two_models())
@example(SATURATED)
def test_identities_and_bounds(models):
    js, ag, j = three(*models)
    close = lambda x, y: np.allclose(x, y, rtol=1e-9, atol=1e-12)
    assert np.isfinite([js, ag, j]).all() and close(js + ag, j/4)
    assert (js >= 0).all() and (js <= math.log(2) + 1e-12).all() and (js <= j/8 + 1e-12).all() and (j/8 <= ag + 1e-12*(1 + ag)).all()
    for x, y in zip(three(*models[::-1]), (js, ag, j)): assert close(x, y)
    for x in three(models[0], models[0]): assert (x == 0).all()
    assert close(divergence.divergence(*map(log_probs, models), base='bits', log=True)*math.log(2), js)


@HOW
@given(two_models())
def test_jensen_shannon_is_scipys_and_torchmetrics(models):
    p, q = (np.exp(log_probs(z)) for z in models)
    js = divergence.divergence(p, q)
    assert np.allclose(js, [jensenshannon(x, y)**2 for x, y in zip(p, q)], atol=1e-9)
    assert np.allclose(js, jensen_shannon_divergence(torch.tensor(p), torch.tensor(q), reduction='none').numpy(), atol=1e-9)


@HOW
@given(two_models(at_most=7.))                    # no probability near the clamp
def test_published_values_are_means_divided_once_more(models):
    (_, ag, _), (n, k) = three(*models), models[0].shape
    p, q = (np.exp(log_probs(z)) for z in models)
    new, other = map(shown, models)
    for v in (divergence.ag_as_published(p, q), divergence.jsd_as_published(new, other)): assert np.isclose(v, ag.mean()/n, rtol=1e-6, atol=1e-9)
    assert np.isclose(divergence.zrf_as_published(new, other), 1 - ag.mean()/k, rtol=1e-9)


@HOW
@given(two_models(), st.integers(2, 4))
def test_twice_the_images_is_half_the_published_value_and_the_same_proper_one(models, times):
    new, other = map(shown, models)
    news, others = (shown(np.tile(z, (times, 1))) for z in models)
    assert np.isclose(divergence.jsd(news, others), divergence.jsd(new, other), rtol=1e-9, atol=1e-12)
    assert np.isclose(divergence.jsd_as_published(news, others)*times, divergence.jsd_as_published(new, other), rtol=1e-9, atol=1e-12)


@HOW
@given(two_models(), st.randoms(use_true_random=False))
def test_rows_stand_for_themselves(models, chance):
    "Permuted rows: the same values, permuted; means, published ones too, do not change."
    order = list(range(len(models[0])))
    chance.shuffle(order)
    for x, y in zip(three(*models), three(*(z[order] for z in models))): assert np.array_equal(x[order], y)
    new, other, new2, other2 = *map(shown, models), *(shown(z[order], np.array(order)) for z in models)
    for f in (divergence.jsd, divergence.jsd_as_published, divergence.zrf, divergence.zrf_as_published):
        assert np.isclose(f(new2, other2), f(new, other), rtol=1e-12, atol=1e-14), f.__name__
    p, q = (np.exp(log_probs(z)) for z in models)
    assert np.isclose(divergence.ag_as_published(p[order], q[order]), divergence.ag_as_published(p, q), rtol=1e-12, atol=1e-14)


@HOW
@given(two_models(), st.randoms(use_true_random=False))
def test_classes_have_no_order(models, chance):
    order = list(range(models[0].shape[1]))
    chance.shuffle(order)
    for x, y in zip(three(*models), three(*(z[:, order] for z in models))): assert np.allclose(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('n, k', [(40, 3), (200, 10), (60, 100)])
@pytest.mark.parametrize('scale', [.5, 2., 8.])
def test_single_and_double_precision_agree_to_five_digits(n, k, scale):
    "Logits in 32 bits, as evidence holds them, against the same in 64: relative difference of every row, and of every metric, below 1e-5."
    r = np.random.default_rng([n, k])
    a, b = scale*r.normal(size=(2, n, k))
    for x, y in zip(three(a.astype(np.float32), b.astype(np.float32)), three(a, b)): assert np.allclose(x, y, rtol=1e-5, atol=0)
    new, other, new2, other2 = *map(shown, (a, b)), *(shown(z.astype(np.float32)) for z in (a, b))
    for f in (divergence.jsd, divergence.jsd_as_published, divergence.zrf, divergence.zrf_as_published):
        assert np.isclose(f(new2, other2), f(new, other), rtol=1e-5, atol=0), f.__name__
    p, q = (np.exp(log_probs(z)) for z in (a, b))
    assert np.isclose(divergence.ag_as_published(p.astype(np.float32), q.astype(np.float32)), divergence.ag_as_published(p, q), rtol=1e-5, atol=0)


@HOW
@given(st.integers(2, 60), st.floats(.01, 30.))
def test_the_clamp_is_the_ceiling(k, scale):
    "However sure and however wrong: T of the published code is at most ln(1/2) + ln(1e8)/2."
    r = np.random.default_rng(k)
    p, q = (np.exp(log_probs(scale*r.normal(size=(1, k)))) for _ in range(2))
    assert divergence.ag_as_published(p, q) <= -math.log(2) - LOG_CLAMP/2 + k*1e-7


def _rf(seed, of, k=4, n=60, turned=False):
    r = np.random.default_rng(seed)
    z, y, ids = 2*r.normal(size=(n, k)), np.arange(n) % k, np.arange(n)
    if turned: z, y, ids = z[::-1], y[::-1], ids[::-1]
    return Evidence({p: z for p in of}, {p: y for p in of}, {p: ids for p in of})


def test_the_gap_of_rf_jsd_is_taken_from_golds_own():
    new, gold, original = _rf(0, ['forget']), _rf(1, ['forget']), _rf(2, ['test'])
    for gap, value in ((divergence.rf_jsd_gap, divergence.rf_jsd), (divergence.rf_jsd_gap_as_published, divergence.rf_jsd_as_published)):
        a, b = value(new, original), value(gold, original)
        assert a != b and np.isclose(gap(new, original, gold), abs(a - b), rtol=1e-12) and gap(new, original, gold) == gap(gold, original, new) > 0
        assert gap(gold, original, gold) == 0
        assert np.isclose(gap(_rf(0, ['forget'], turned=True), _rf(2, ['test'], turned=True), _rf(1, ['forget'], turned=True)), gap(new, original, gold), rtol=1e-9)
        with pytest.raises(ValueError, match='different forget images'): gap(new, original, _rf(1, ['forget'], turned=True))


# Statistics, against statsmodels

p_values = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0., .01, .01, .05, 1.])), min_size=1, max_size=25)


@HOW
@given(p_values)
def test_holm_is_its_definition(p):
    "The largest, over all p-values that are no larger, of each times the number that is not smaller in order."
    order = np.argsort(p, kind='stable')
    for i, j in enumerate(order): assert np.isclose(stats.holm(p)[j], min(1, max(p[order[k]]*(len(p) - k) for k in range(i + 1))), rtol=1e-12, atol=0)


@settings(HOW, max_examples=12)                                       # a call of theirs takes a while
@given(p_values)
@example([.01, .04, .03, .005])
def test_holm_is_statsmodels(p):
    multipletests = pytest.importorskip('statsmodels.stats.multitest').multipletests
    assert np.allclose(stats.holm(p), multipletests(p, method='holm')[1], rtol=1e-12, atol=0)


@HOW
@given(arrays(np.float64, st.integers(2, 20), elements=st.floats(-1, 1, width=16)).filter(lambda d: np.ptp(d) > 1e-3), st.floats(.001, 2))
def test_equivalence_is_statsmodels(d, band):
    DescrStatsW = pytest.importorskip('statsmodels.stats.weightstats').DescrStatsW
    weighed = DescrStatsW(d)
    found = stats.equivalence(d, band)
    assert np.isclose(found.p, weighed.ttost_mean(-band, band)[0], rtol=1e-9, atol=1e-15)
    assert np.allclose((found.low, found.high), weighed.tconfint_mean(.1), rtol=1e-9, atol=1e-12)


@HOW
@given(arrays(np.float64, st.integers(2, 20), elements=st.floats(-1, 1, width=16)).filter(lambda d: np.ptp(d) > 1e-3), st.sampled_from([.8, .95, .99]))
def test_paired_test_is_statsmodels(d, level):
    DescrStatsW = pytest.importorskip('statsmodels.stats.weightstats').DescrStatsW
    weighed = DescrStatsW(d)
    found = stats.paired_test(d, 0*d, level=level)
    assert np.isclose(found.p, weighed.ttest_mean()[1], rtol=1e-9, atol=1e-15) and np.allclose((found.low, found.high), weighed.tconfint_mean(1 - level), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('n', [2, 3, 6, 9])
def test_the_same_difference_in_every_seed_is_what_the_flip_test_makes_of_it(n):
    a = np.random.default_rng(n).random(n)
    t, flip = (stats.paired_test(a + .1, a, kind) for kind in ('t', 'flip'))
    assert t.p == 2.**(1 - n) and np.isclose(flip.p, t.p) and np.isnan([t.low, t.high]).all() and t.effect == math.inf
    assert stats.paired_test(a, a).p == 1 and stats.paired_test(a, a).effect == 0
