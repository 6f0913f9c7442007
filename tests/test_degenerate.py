"""Evidence that hardly is any: every registered metric and every function of ensembles gives a value that it stands for, or says why there is none. Never a silent number.

One table of cases, run for all metrics that are registered, so that a new one is held to it too.
"""
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import lotus_nb.metrics.attacks as attacks
import lotus_nb.metrics.divergence as divergence
import lotus_nb.metrics.ensembles as ensembles
import lotus_nb.metrics.further as further
import lotus_nb.metrics.mia as mia
import lotus_nb.metrics.stats as stats
import lotus_nb.metrics.stress as stress
from lotus_nb.metrics.accuracy import check_same_images, per_image
from lotus_nb.metrics.core import Evidence, get_metric, list_metrics, measure

SIZES = dict(forget=30, retain=120, val=40, test=110)
K = 5
WHO = ('new', 'original', 'gold', 'random')
RUN = SimpleNamespace(seconds=1., cost=dict(forward=1, backward=1, steps=1, seen_forget=1, seen_retain=1), peak_bytes=1)
HALVES, ALARMS = (2, ('test',), 'needs at least 2'), (100, ('test',), 'cannot show a false alarm rate of 0.01')
NEED_IMAGES = {'mia_confidence': HALVES, 'mia_class_entropy': HALVES, 'mia_modified_entropy': HALVES, 'mia_kit': (6, ('forget', 'test'), 'needs at least 6'), 'mia_kit_unseen': (6, ('val', 'test'), 'needs at least 6'),
               'tpr_loss': ALARMS, 'tpr_entropy': ALARMS, 'tpr_modified_entropy': ALARMS, 'tpr_loss_unseen': ALARMS}   # least number of images, of which parts, and what is said below it
RF = {'rf_jsd', 'rf_jsd_as_published', 'rf_jsd_gap', 'rf_jsd_gap_as_published'}                # compare classes that occur both in forget and in test
BOUNDS = {'share': (0, 1), 'nats': (0, math.inf), 'bits': (0, 1), 'distance': (0, 2**.5)}


def evidence(seed, sizes=None, logits=None, label=None, k=K):
    "Random answers; `logits` is a function of random logits and labels, `label` a function of the part and random labels."
    r, other = np.random.default_rng(seed), np.random.default_rng(99)
    sizes = sizes or SIZES
    y = {p: other.integers(0, k, n) for p, n in sizes.items()}
    if label: y = {p: label(p, a) for p, a in y.items()}
    z = {p: r.normal(size=(n, k)) for p, n in sizes.items()}
    if logits: z = {p: logits(a, y[p]) for p, a in z.items()}
    return Evidence({p: a.astype(np.float32) for p, a in z.items()}, y, {p: np.arange(len(a)) for p, a in z.items()})


def four(**how): return {w: evidence(i, **how) for i, w in enumerate(WHO)}


def one_sided(**how): return {**four(), 'new': evidence(0, **how)}


EYE = np.eye(K)
CASES = {
    'ordinary': four(),
    'one image of each part': four(sizes=dict.fromkeys(SIZES, 1)),
    'two images of each part': four(sizes=dict.fromkeys(SIZES, 2)),
    'one image to forget': four(sizes={**SIZES, 'forget': 1}),
    'one class among the labels': four(label=lambda p, y: 0*y + 2),
    'one class among the test labels': four(label=lambda p, y: 0*y + 2 if p == 'test' else y),
    'forget and test of different classes': four(label=lambda p, y: 0*y + (p == 'forget')),
    'a whole class to forget': four(label=lambda p, y: 0*y if p == 'forget' else y % (K - 1) + 1 if p == 'retain' else y),
    'two classes': four(k=2),
    'constant logits': four(logits=lambda z, y: 0*z),
    'the same logits for all': four(logits=lambda z, y: 0*z + np.arange(K)),
    'constant logits of one model': one_sided(logits=lambda z, y: 0*z),
    'saturated and right': four(logits=lambda z, y: 1e4*EYE[y]),
    'saturated and wrong': four(logits=lambda z, y: 1e4*EYE[(y + 1) % K] - 1e4*EYE[y]),
    'saturated at random': four(logits=lambda z, y: 1e4*np.sign(z)),
    'saturated, one model': one_sided(logits=lambda z, y: 1e4*np.sign(z)),
    'the largest numbers of float32': four(logits=lambda z, y: 3e38*np.sign(z)),
    'the smallest numbers of float32': four(logits=lambda z, y: 1e-44*np.sign(z)),
    'the same model everywhere': dict.fromkeys(WHO, evidence(0)),
}


@pytest.mark.parametrize('case', CASES)
def test_every_metric_has_a_value_or_a_reason(case):
    seen = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter('error')                                                  # a division by zero would be one
        rows, missing = measure(None, **seen, run=RUN)
    values = dict(zip(rows.metric, rows.value))
    others = [n for n in list_metrics() if not set(get_metric(n).refs) <= {*WHO, 'run'}]            # need more than is here
    assert {*values, *missing} == set(list_metrics())
    assert all(len(m) > 15 for m in missing.values()), missing
    for name, v in values.items():
        m = get_metric(name)
        assert math.isfinite(v), (name, v)
        low, high = BOUNDS.get(m.unit, (-math.inf, math.inf))
        assert low - 1e-9 <= v <= high + 1e-9, (name, v, m.unit)
    refused, few = {n for n in missing if n not in others}, {n: words for n, (least, of, words) in NEED_IMAGES.items() if any(len(seen['new'].labels[p]) < least for p in of)}
    assert set(few) <= refused and all(words in missing[n] for n, words in few.items()), (case, missing)
    assert refused - set(few) <= (RF if case in ('forget and test of different classes', 'one image of each part') else set()), (case, missing)


@pytest.mark.parametrize('case, expected', [
    ('constant logits', dict(auc_loss=.5, auc_entropy=.5, auc_modified_entropy=.5, tpr_loss=0, tpr_entropy=0, tpr_modified_entropy=0, auc_loss_unseen=.5, mia_loss=.5, mia_confidence=.5,
                             mia_modified_entropy=.5, mia_kit=.5, mia_entropy=0, mia_entropy_unseen=0, jsd=0, zrf=1, avg_gap=0, rf_jsd_gap=0, tow=1, churn=0)),
    ('the same logits for all', dict(auc_entropy=.5, tpr_entropy=0, mia_class_entropy=.5, jsd=0, zrf=1)),
    ('saturated and right', dict(forget_accuracy=1, auc_loss=.5, auc_modified_entropy=.5, tpr_loss=0, mia_loss=.5, mia_kit=.5, mia_entropy=0, jsd=0, zrf=1)),
    ('saturated and wrong', dict(forget_accuracy=0, auc_loss=.5, auc_modified_entropy=.5, tpr_loss=0, mia_loss=.5, jsd=0)),
    ('one class among the labels', dict(mia_correctness=None, rf_jsd=None)),
    ('one image of each part', dict(auc_loss=None, mia_entropy_unseen=None)),
    ('the same model everywhere', dict(rf_jsd_gap=0, rf_jsd_gap_as_published=0, jsd=0, jsd_as_published=0, zrf=1, zrf_as_published=1, avg_gap=0, tow=1, tow_mia=1, churn=0, activation_distance=0)),
])
def test_values_where_the_limit_is_known(case, expected):
    rows, missing = measure(list(expected), **CASES[case], run=RUN)
    assert not missing or set(missing) <= RF, missing
    for name, v in zip(rows.metric, rows.value):
        if expected[name] is not None: assert v == pytest.approx(expected[name], abs=1e-12), (name, v)


def test_constant_answers_do_not_betray_classes():
    "Any number of classes, and forget images of one class only: sums over classes round differently, and must not be ranked."
    for k in range(2, 40):
        how = dict(k=k, label=lambda p, y: 0*y if p == 'forget' else y)
        for fill in (0., .1, 7.3):
            new = evidence(0, logits=lambda z, y: 0*z + fill, **how)
            for f in (attacks.auc_loss, attacks.auc_entropy, attacks.auc_modified_entropy): assert f(new) == .5, (k, fill, f.__name__)


def test_one_divergence_of_saturated_models_is_the_largest_there_is():
    a, b = (evidence(0, logits=lambda z, y, s=s: 1e4*EYE[(y + s) % K]) for s in (0, 1))
    assert divergence.jsd(a, b) == pytest.approx(math.log(2)) and divergence.zrf(a, b) == pytest.approx(0)
    assert divergence.jsd_as_published(a, b)*30 == pytest.approx(8.517193, abs=1e-4)                 # the clamp of the published code
    assert divergence.zrf_as_published(a, b) < -100                                                  # no clamp: no lower bound


# What is no evidence, said when it is made

def parts(**change):
    z, y, ids = np.zeros((4, 3), np.float32), np.arange(4) % 3, np.arange(4)
    d = dict(logits=z, labels=y, ids=ids) | change
    return Evidence(*({'forget': d[k]} for k in ('logits', 'labels', 'ids')))


@pytest.mark.parametrize('change, words', [
    (dict(logits=np.full((4, 3), np.nan)), '4 of 4 answers about the forget part are not finite'),
    (dict(logits=np.where(np.eye(4, 3) > 0, np.inf, 0)), '3 of 4 answers about the forget part are not finite'),
    (dict(logits=np.zeros((0, 3)), labels=np.zeros(0, int), ids=np.zeros(0, int)), 'at least one row'),
    (dict(logits=np.zeros(4)), r'must be \(N, K\)'),
    (dict(labels=np.arange(3)), '4 rows of logits, 3 labels'),
    (dict(ids=np.array([7, 8, 7, 7])), '2 of 4 ids of the forget part stand there a second time'),
    (dict(logits=np.zeros((4, 1)), labels=np.zeros(4, int)), 'two classes'),
    (dict(ids=np.arange(3)), '3 ids'),
    (dict(labels=np.full(4, 3)), 'they must lie in 0…2'),
    (dict(labels=np.full(4, -1)), 'they must lie in 0…2'),
])
def test_evidence_refuses(change, words):
    with pytest.raises(ValueError, match=words): parts(**change)


# Two models that were asked about different images

def turned(ev, part): return Evidence(*({**d, part: d[part][::-1]} for d in (ev.logits, ev.labels, ev.ids)))


def elsewhere(ev, part): return Evidence(ev.logits, ev.labels, {**ev.ids, part: ev.ids[part] + 1})


def without(ev, part): return Evidence(*({p: v for p, v in d.items() if p != part} for d in (ev.logits, ev.labels, ev.ids)))


def compared(part):
    "Metrics that set another model's answers about a part beside the new one's."
    only = {'rf_jsd': (), 'rf_jsd_as_published': (), 'rf_jsd_gap': ('forget',), 'rf_jsd_gap_as_published': ('forget',), 'aus': ('test',)}   # RF-JSD: forget images of one, test images of the other, meant to differ
    return [n for n in list_metrics() if part in only.get(n, get_metric(n).parts) and {'new'} < set(get_metric(n).refs) <= set(WHO)]


@pytest.mark.parametrize('spoilt', [turned, elsewhere, without])
@pytest.mark.parametrize('part', SIZES)
def test_misaligned_evidence_is_not_compared(part, spoilt):
    assert len(compared('forget')) >= 9 and 'avg_gap' in compared(part)
    for name in compared(part):
        refs = [r for r in get_metric(name).refs if r != 'new']
        seen = {**CASES['ordinary'], **{r: spoilt(CASES['ordinary'][r], part) for r in refs}}
        with pytest.raises(ValueError, match=f'different {part} images'): get_metric(name).fn(**{r: seen[r] for r in get_metric(name).refs})
        rows, missing = measure([name], **seen)
        assert rows.empty and f'different {part} images' in missing[name]


def test_rf_jsd_without_test_images_of_the_original():
    seen = {**CASES['ordinary'], 'original': without(CASES['ordinary']['original'], 'test')}
    rows, missing = measure(sorted(RF), **seen)
    assert rows.empty and all('no test images' in m for m in missing.values())


def test_other_numbers_of_classes_or_images():
    a, b = (evidence(0, k=k, label=lambda p, y: 0*y) for k in (K, 4))
    for f in (divergence.jsd, divergence.zrf):
        with pytest.raises(ValueError, match=r'`q` is \(\d+, 4\)'): f(a, b)
    with pytest.raises(ValueError, match='different retain images'): check_same_images('retain', a, evidence(1, sizes={**SIZES, 'retain': 5}))
    with pytest.raises(ValueError, match='different forget images'): per_image(lambda p, q, y: p, 'forget', a, evidence(1, sizes={**SIZES, 'forget': 1}))


# Functions of ensembles

R = np.random.default_rng(0)
M, N = 16, 6


def phi(m=M, n=N): return R.normal(size=(m, n))


TWO = {'klom': ensembles.klom, 'klom_as_published': ensembles.klom_as_published, 'klom_normal': ensembles.klom_normal, 'signed_shift': ensembles.signed_shift,
       'epsilon_as_published': ensembles.epsilon_as_published, 'epsilon_certified': ensembles.epsilon_certified,
       'beside_floor': lambda u, g: np.concatenate(ensembles.beside_floor(ensembles.klom_normal, u, g))}
NAN, CONST, SATURATED = np.where(phi() > 0, np.nan, 0.), np.ones((M, N)), np.full((M, N), 1e4)
REFUSED = {
    'NaN': (NAN, phi(), 'not finite'), 'NaN in gold': (phi(), NAN, '`gold` are not finite'), 'infinite': (phi()*np.inf, phi(), 'not finite'),
    'too large to square': (phi()*1e200, phi(), 'not finite'), 'no images': (np.zeros((M, 0)), np.zeros((M, 0)), 'must be'), 'no models': (np.zeros((0, N)), phi(), 'must be'),
    'one row without its axis': (phi()[0], phi()[0], 'must be'), 'more images in gold': (phi(), phi(n=N + 1), 'columns must be the same images'),
    'one image in gold, which NumPy would repeat': (phi(), phi(n=1), 'columns must be the same images'), 'one gold model': (phi(), phi(1), 'at least|equal numbers'),
    'one model on each side': (phi(1), phi(1), 'at least'),
}
TAKEN = {'one image': (phi(n=1), phi(n=1)), 'all alike': (CONST, CONST), 'alike on each side': (CONST, 2*CONST), 'saturated apart': (SATURATED, -SATURATED),
         'saturated together': (SATURATED + phi(), SATURATED + phi()), 'half precision': (phi().astype(np.float16), phi().astype(np.float16)),
         'whole numbers': (np.ones((M, N), int), np.arange(M*N).reshape(M, N))}


@pytest.mark.parametrize('case', REFUSED)
@pytest.mark.parametrize('name', TWO)
def test_comparisons_of_ensembles_refuse(name, case):
    u, g, words = REFUSED[case]
    with pytest.raises(ValueError, match=words): TWO[name](u, g)


@pytest.mark.parametrize('case', TAKEN)
@pytest.mark.parametrize('name', TWO)
def test_comparisons_of_ensembles_give_finite_values(name, case):
    u, g = TAKEN[case]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = TWO[name](u, g)
    assert np.isfinite(found).all() and found.size in (u.shape[1], 2*u.shape[1])
    assert name == 'signed_shift' or (found >= 0).all()
    if case == 'all alike': assert (found == 0).all()
    if case == 'saturated apart': assert (found == {'klom': math.log(1e5), 'klom_as_published': 0, 'epsilon_as_published': 50, 'epsilon_certified': found}.get(name, found)).all()


def test_one_unlearned_model_has_a_distance_from_gold(): assert np.isfinite(ensembles.signed_shift(phi(1), phi())).all()


MEMBERS = np.zeros((M, N), bool)
MEMBERS[::2] = True


@pytest.mark.parametrize('game, words', [
    (lambda: ensembles.ulira_privacy(NAN, MEMBERS, MEMBERS), 'not finite'),
    (lambda: ensembles.ulira_privacy(phi(4), MEMBERS[:4], MEMBERS[:4], folds=2), 'fewer than 2 models that forgot them'),
    (lambda: ensembles.ulira_privacy(phi(2), MEMBERS[:2], MEMBERS[:2]), 'at most the 1 groups'),
    (lambda: ensembles.ulira_privacy(phi(), MEMBERS, 0*MEMBERS), 'models that forgot them'),
    (lambda: ensembles.ulira_privacy(phi(), MEMBERS | True, MEMBERS | True), 'never knew them'),
    (lambda: ensembles.ulira_privacy(phi(), ~MEMBERS, MEMBERS), 'Did you swap'),
    (lambda: ensembles.ulira_privacy(phi(), MEMBERS[:, :1], MEMBERS), 'must match'),
    (lambda: ensembles.ulira_privacy(phi(), MEMBERS[:, :1], MEMBERS[:, :1]), 'must match'),
    (lambda: ensembles.ulira_efficacy(phi(), phi(8), MEMBERS), 'rows must match'),
    (lambda: ensembles.ulira_efficacy(phi(), phi(), MEMBERS[:, :1]), 'must match'),
    (lambda: ensembles.ulira_efficacy(phi(), NAN, MEMBERS), '`gold` are not finite'),
    (lambda: ensembles.likelihood_ratio(phi(), MEMBERS.astype(int), group=[0, 1]), 'one for each model'),
    (lambda: ensembles.likelihood_ratio(phi(), MEMBERS.astype(int), folds=1), 'at least 2'),
    (lambda: ensembles.ulira_privacy(phi(), MEMBERS, MEMBERS).auc(np.zeros(N, bool)), 'No fold has pairs of both sides'),
    (lambda: ensembles.ulira_privacy(phi(), MEMBERS, MEMBERS).tpr(0), 'between 0 and 1'),
    (lambda: ensembles.ulira_privacy(phi(), MEMBERS, MEMBERS).interval(level=95), 'as .95 does'),
    (lambda: ensembles.ulira_privacy(phi(), MEMBERS, MEMBERS).interval(blocks=2), 'at least 3'),
    (lambda: ensembles.shrunk_normals(phi(1)), 'one of them 2'),
    (lambda: ensembles.shrunk_normals(phi(), MEMBERS[:, :1]), 'must match'),
    (lambda: ensembles.rmia(phi(), ~MEMBERS[:4], phi(), ~MEMBERS), 'all must be about the same images'),
    (lambda: ensembles.rmia(phi(), ~MEMBERS, phi(n=1), ~MEMBERS[:, :1]), 'all must be about the same images'),
    (lambda: ensembles.rmia(phi(), ~MEMBERS, phi(), 0*MEMBERS), 'no reference that was not trained'),
    (lambda: ensembles.rmia(phi(), 0*MEMBERS, phi(), ~MEMBERS), 'has seen all images'),
    (lambda: ensembles.rmia(phi(), 2*(~MEMBERS).astype(int), phi(), ~MEMBERS), '`never` must hold nothing but True and False'),
    (lambda: ensembles.rmia(phi(), ~MEMBERS, phi(), np.where(MEMBERS, np.nan, 1)), '`out` must hold nothing but True and False'),
    (lambda: ensembles.rmia(phi(), ~MEMBERS, phi(), ~MEMBERS | True, a=1.5), '`a` is 1.5'), (lambda: ensembles.rmia(phi(), ~MEMBERS, phi(), ~MEMBERS | True, gamma=np.nan), '`gamma` is nan'),
    (lambda: ensembles.ulira_privacy(phi(), np.where(MEMBERS, 1, np.nan), MEMBERS), '`members` must hold nothing'), (lambda: ensembles.ulira_efficacy(phi(), phi(), 3*MEMBERS), '`forget` must hold nothing'),
    (lambda: ensembles.likelihood_ratio(phi(), 5*MEMBERS.astype(int)), 'nothing but 1, 0 and -1'), (lambda: ensembles.kernel_densities(phi(), 2*MEMBERS), '`where` must hold nothing'),
    (lambda: ensembles.ulira_privacy(phi(), MEMBERS, MEMBERS, folds=4).tpr(.0001), 'A fold has 12 pairs never known, which cannot show a false alarm rate of 0.0001; the smallest is 1/12'),
    (lambda: ensembles.shrunk_normals(phi(), prior=-1), '`prior` is -1'), (lambda: ensembles.klom_normal(phi(), phi(), prior=-1.), '`prior` is -1'), (lambda: ensembles.klom(phi(), phi(), bins=0), '`bins` is 0'),
    (lambda: ensembles.epsilon_certified(phi(), phi(), alpha=0), '`alpha` is 0'), (lambda: ensembles.epsilon_certified(phi(), phi(), alpha=1.), '`alpha` is 1'),
    (lambda: ensembles.epsilon_certified(phi(), phi(), delta=2), '`delta` is 2'), (lambda: ensembles.epsilon_as_published(phi(), phi(), delta=np.nan), '`delta` is nan'),
    (lambda: ensembles.completeness(phi(), phi(), phi(), least=np.nan), '`least` is nan'), (lambda: ensembles.beside_floor(ensembles.klom, phi(), phi(), repeats=0), '`repeats` is 0'),
    (lambda: ensembles.memorisation(np.full((M, N), np.nan), MEMBERS), 'True and False'), (lambda: ensembles.memorisation(MEMBERS, np.where(MEMBERS, np.nan, 1)), '`trained` must hold nothing'),
    (lambda: ensembles.memorisation(MEMBERS, MEMBERS | True), 'for all models or for none'),
    (lambda: ensembles.memorisation(MEMBERS[:, 0], MEMBERS[:, 0]), 'must be'),
    (lambda: ensembles.strata(np.array([1, 2, np.nan, 4]), 1), '1 of 4 scores are NaN'),
    (lambda: ensembles.strata(np.ones(2), 1), 'at most a third'),
    (lambda: ensembles.forgetting_quality([], 64), 'N at least 1'),
    (lambda: ensembles.forgetting_quality([-1.], 64), 'at least 0'),
    (lambda: ensembles.forgetting_quality([1.], 1), 'at least 2'),
])
def test_games_and_scores_refuse(game, words):
    with pytest.raises(ValueError, match=words): game()


@pytest.mark.parametrize('case, want', [(CONST, .5), (np.where(MEMBERS, 1e4, -1e4), 1.), (np.where(MEMBERS, -1e4, 1e4), 1.)])
def test_games_on_constant_and_saturated_answers(case, want):
    "Nothing to tell is one half, with an interval of no width; everything, in either direction, is 1."
    game = ensembles.ulira_privacy(case, MEMBERS, MEMBERS, folds=4)
    assert game.auc() == want and game.interval() == (want, want)
    assert ensembles.ulira_efficacy(case, case, MEMBERS, folds=4).auc() == .5


def test_rmia_of_constant_and_saturated_answers():
    never = np.tile(np.arange(N) < 3, (M, 1))
    for v in (0., 1e4, -1e4): assert (ensembles.rmia(np.full((M, N), v), never, np.full((M, N), v), never | True) == 1).all()         # ties count, as published


def test_masks_of_zeros_and_ones_are_masks():
    never, other = np.tile(np.arange(N) < 3, (M, 1)), phi()
    own, references = phi(), phi()
    as_bool = ensembles.rmia(own, never, references, never | True)
    assert (ensembles.rmia(own, never.astype(int), references, (never | True).astype(float)) == as_bool).all() and as_bool.max() <= 1
    assert ensembles.ulira_privacy(other, MEMBERS.astype(np.int8), MEMBERS.astype(float), folds=4).auc() == ensembles.ulira_privacy(other, MEMBERS, MEMBERS, folds=4).auc()


def test_a_rate_that_few_pairs_can_show():
    game = ensembles.ulira_privacy(phi(), MEMBERS, MEMBERS, folds=4)              # 12 pairs of a fold were never known
    assert 0 <= game.tpr(1/12) <= 1
    with pytest.raises(ValueError, match='1/12 = 0.0833'): game.tpr(1/12 - 1e-6)
    with pytest.raises(ValueError, match='1/6'): game.tpr(.1, images=range(3))


def test_the_table_of_attacks_says_what_it_has():
    ev = CASES['one image of each part']['new']
    table = attacks.attacks(ev)
    assert table.index[0] == 'entropy (paper)' and table[['n_forget', 'n_unseen', 'n_test']].eq(1).all(axis=None)
    assert table[['tpr', 'tpr_unseen']].isna().all(axis=None) and table.loc['kit', ['published', 'unseen']].isna().all() and table[['auc', 'auc_unseen']].notna().all(axis=None)
    table = attacks.attacks(CASES['ordinary']['new'])
    assert table.notna().all(axis=None) and table.loc['loss', ['n_forget', 'n_unseen', 'n_test']].tolist() == [30, 40, 110]


# Numbers, in place of evidence

@pytest.mark.parametrize('act, words', [
    (lambda: attacks.auc([], [1.]), 'N at least 1'), (lambda: attacks.auc([np.nan], [1.]), 'NaN'), (lambda: attacks.auc(np.ones((2, 2)), [1.]), 'must be'),
    (lambda: attacks.tpr_at([1.], []), 'N at least 1'), (lambda: attacks.best_threshold([np.nan], [1.]), 'NaN'), (lambda: attacks.kit_attack(np.ones(5), np.ones(9)), 'at least 6'),
    (lambda: attacks.svc_attack(np.ones(5), np.ones(5), np.full(3, 2.)), 'no confidence'), (lambda: mia.entropy_attack(np.full(5, np.nan), np.ones(5), np.ones(5)), 'NaN'),
    (lambda: divergence.divergence(np.full((2, 2), np.nan), np.full((2, 2), .5)), 'must sum to 1'), (lambda: divergence.ag_as_published(np.ones((4, 2))/2, np.ones((1, 2))/2), 'both must be'),
    (lambda: divergence.class_means(CASES['one class among the labels']['new'], 'forget', [0]), 'no forget image of class 0'),
    (lambda: stats.paired_test([1.], [1.]), 'at least 2'), (lambda: stats.paired_test([1., np.nan], [1., 2.]), 'not finite'), (lambda: stats.holm([np.nan]), 'not finite'),
    (lambda: stats.interval(np.mean, np.ones(9)), 'no spread'), (lambda: stats.interval(np.mean, np.array([1, np.nan, 2])), 'not a number'), (lambda: stats.interval(np.mean, np.ones(1)), 'at least 2'),
    (lambda: stats.crossed_interval(np.mean, np.ones((4, 4)), resamples=9), 'no spread'), (lambda: stats.crossed_interval(np.mean, np.full((4, 4), np.nan), resamples=9), 'no spread'),
    (lambda: stats.gold_band([1., 2.]), 'at least 3'), (lambda: stats.equivalence([0., .1], np.nan), 'above 0'), (lambda: stats.equivalence([0., .1], np.inf), 'finite'),
    (lambda: attacks.tpr_at(np.ones(5), np.ones(5)), '5 images never seen cannot show a false alarm rate of 0.01; the smallest above 0 that they can show is 1/5 = 0.2'),
    (lambda: attacks.tpr_at([1.], [1.]), '1 image never seen'), (lambda: attacks.svc_attack(np.ones(5), np.ones(5), np.ones(5), bins=0), '`bins` is 0'),
    (lambda: attacks.song_mittal(CASES['one image of each part']['new'], 'margin'), 'needs at least 2'), (lambda: attacks.mia_kit(CASES['two images of each part']['new']), 'are 2 images of one kind'),
    (lambda: divergence.ag_as_published(R.normal(size=(9, 4)), np.full((9, 4), .25)), 'Did you pass logits'), (lambda: divergence.ag_as_published(np.full((9, 4), .25), np.full((9, 4), np.nan)), 'Rows of `q` must sum to 1'),
    (lambda: divergence.ag_as_published(np.zeros((0, 4)), np.zeros((0, 4))), 'at least one row'), (lambda: divergence.divergence(np.zeros((0, 4)), np.zeros((0, 4))), 'at least one row'),
    (lambda: divergence.ag_as_published(np.full((9, 4), .25), np.full((9, 4), .25), eps=0), '`eps` is 0'),
    (lambda: further.avg_gap_as_published(np.full((2, 3), .5), np.full((2, 3), .5)), r'must be \(seeds, 4\)'), (lambda: further.avg_gap_as_published([[.5, .5, .5, np.nan]], [[.5]*4]), '1 of 4 values of `new` are no shares'),
    (lambda: further.avg_gap_as_published([[.5]*4], [[50.]*4]), '4 of 4 values of `gold` are no shares'), (lambda: further.avg_gap_by_seed([[.5, .5, .5, np.inf]], [[.5]*4]), 'no shares'),
    (lambda: further.avg_gap_by_seed(np.zeros((0, 4)), np.zeros((0, 4))), 'must be'), (lambda: further.avg_gap_as_published([[.5]*4], [[.5]*4], -1), '`decimals` is -1'),
    (lambda: stress.gus_scores(np.ones((2, 3)), np.ones((2, 3)), -1), '`eps` is -1'), (lambda: stress.gus_scores(np.array([[1, np.nan]]), np.ones((1, 2)), 1.), '1 of 2 values of `noise` are not finite'),
    (lambda: stats.equivalence([.01, .01], .05), 'All 2 differences are 0.01'), (lambda: stats.equivalence([0.]*5, .05), 'All 5 differences are 0'), (lambda: stats.equivalence([.3 - .2, .2 - .1], .5), 'All 2 differences'),
    (lambda: stats.share_interval(0, 0), 'no count'), (lambda: stats.share_interval(np.nan, 3), 'no count'),
])
def test_numbers_refuse(act, words):
    with pytest.raises(ValueError, match=words): act()
