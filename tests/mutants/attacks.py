"Mutants of the attacks, the statistics and the further measures."
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
from scipy.stats import bootstrap, norm, rankdata, skew, ttest_rel
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import LeaveOneOut, StratifiedShuffleSplit, cross_val_score

import lotus_nb.metrics.attacks as attacks
import lotus_nb.metrics.further as further
import lotus_nb.metrics.stats as stats
from lotus_nb.metrics.core import Evidence, confidence, reference
from mutants.common import rewritten, swapped


def _evidence(**parts):
    "Evidence from part → (logits, labels)."
    return Evidence({p: np.asarray(z, np.float32) for p, (z, _) in parts.items()}, {p: np.asarray(y) for p, (_, y) in parts.items()},
                    {p: np.arange(len(y)) for p, (_, y) in parts.items()})


def _random(n, seed, k=5):
    r = np.random.default_rng(seed)
    return 2*r.normal(size=(n, k)), r.integers(0, k, n)


def _coarse(n, seed): return np.random.default_rng(seed).normal(size=n).round(1)       # with many ties


def _both(a, b): return np.r_[np.ones(len(a)), np.zeros(len(b))], np.r_[a, b]


# Checks. Each takes the digits task and raises AssertionError, or the library's own error, when something is wrong.

def modified_entropy_knows_the_label(_):
    "Against the formula, term by term."
    z, y = _random(80, 0)
    p = np.exp(z)/np.exp(z).sum(1, keepdims=True)
    by_hand = [-(1 - r[k])*np.log(r[k]) - sum(q*np.log(1 - q) for j, q in enumerate(r) if j != k) for r, k in zip(p, y)]
    assert np.allclose(attacks.signal(_evidence(forget=(z, y)), 'modified_entropy', 'forget'), np.negative(by_hand), atol=1e-5)


def sure_answers_are_told_apart(_):
    "Margins of 60 and 50, whose confidences are both 1 in 64 bits."
    surer, sure = (np.array([[m, 0.]]*20) for m in (60., 50.))
    assert attacks.auc_loss(_evidence(forget=(surer, [0]*20), test=(sure, [0]*20))) == 1


def members_have_the_larger_area(_): assert attacks.auc([2., 3., 4.], [0., 1., 2.5]) > .8 > .2 > attacks.auc([0., 1., 2.5], [2., 3., 4.])


def areas_agree_with_scikit_learn(_):
    a, b = _coarse(90, 0) + .5, _coarse(140, 1)
    assert np.isclose(attacks.auc(a, b), roc_auc_score(*_both(a, b)))


def false_alarms_are_counted_among_the_unseen(_):
    a, b = np.random.default_rng(0).normal(1, 1, 900), np.random.default_rng(1).normal(0, 1, 700)
    fpr, tpr, _ = roc_curve(*_both(a, b), drop_intermediate=False)
    assert np.isclose(attacks.tpr_at(a, b), tpr[fpr <= .01].max())


def equal_signals_find_nobody(_): assert attacks.tpr_at(np.ones(50), np.ones(200)) == 0


def thresholds_find_nothing_in_noise(_):
    "Ten images of each of ten classes, on average over forty draws."
    one = lambda s: _evidence(**{p: (np.random.default_rng((s, i)).normal(size=(100, 10)), np.arange(100) % 10) for i, p in enumerate(('forget', 'retain', 'test'))})
    assert abs(np.mean([attacks.mia_confidence(one(s)) for s in range(40)]) - .5) < .03


def regression_is_the_starting_kits(_):
    "Against scikit-learn, called as the kit calls it."
    a, b = np.random.default_rng(1).normal(1, 1, 40), np.random.default_rng(2).normal(0, 1, 90)
    r = np.random.default_rng(0)
    x, folds = np.r_[r.permutation(b)[:40], r.permutation(a)][:, None], StratifiedShuffleSplit(10, random_state=0)
    assert np.isclose(attacks.kit_attack(a, b), cross_val_score(LogisticRegression(), x, np.repeat([0, 1], 40), cv=folds).mean())


SURE, UNSURE = np.linspace(.9, 1, 600), np.linspace(.2, .8, 400)


def high_means_forgotten_for_the_classifier(_): assert attacks.svc_attack(SURE, UNSURE, UNSURE) > .9 > .1 > attacks.svc_attack(SURE, UNSURE, SURE)


def few_members_are_not_outvoted(_):
    r = np.random.default_rng(0)
    few, many = (1/(1 + np.exp(-r.normal(m, 2, n))) for m, n in ((5, 200), (4, 1000)))
    assert attacks.svc_attack(few, many, few) < .8


def tow_is_of_whole_accuracies(task):
    original, gold = (reference(task, k) for k in ('original', 'gold'))
    right = lambda e, p: np.mean(e.logits[p].argmax(1) == e.labels[p])
    assert np.isclose(further.tow(original, gold), np.prod([1 - abs(right(original, p) - right(gold, p)) for p in ('forget', 'retain', 'test')]), atol=1e-12)


def churn_sees_equal_accuracies(_):
    a, b = (_evidence(forget=(np.eye(2)[said], [0]*4)) for said in ([0, 0, 1, 1], [1, 1, 0, 0]))
    assert further.churn(a, b) == 1


def rare_classes_count(_): assert further.balanced_test_accuracy(_evidence(test=(np.eye(2)[[0]*10], [0]*9 + [1]))) == .5


def holm_steps_down(_): assert np.allclose(stats.holm([.01, .04, .03, .005]), [.03, .06, .06, .02])


def pairs_are_of_one_seed(_):
    r = np.random.default_rng(0)
    luck = r.normal(size=8)
    a, b = luck + r.normal(.2, .1, 8), luck + r.normal(0, .1, 8)
    assert np.isclose(stats.paired_test(a, b).p, ttest_rel(a, b).pvalue)


def intervals_are_accelerated(_):
    "Against Efron's formula with the acceleration that a mean has, a sixth of the skewness over √n."
    x = np.random.default_rng(3).exponential(size=20)
    draws = x[np.random.default_rng(4).integers(0, 20, (40_000, 20))].mean(1)
    z0, a = norm.ppf((draws < x.mean()).mean()), skew(x)/6/np.sqrt(20)
    ends = [np.quantile(draws, norm.cdf(z0 + (z0 + z)/(1 - a*(z0 + z)))) for z in norm.ppf([.025, .975])]
    assert np.allclose(stats.interval(np.mean, x, resamples=8000)[1:], ends, atol=.04)


def models_are_drawn_and_not_images(_):
    "Hundred images about which a model always says the same are worth one."
    x = np.random.default_rng(0).normal(size=12)
    assert np.allclose(stats.interval(np.mean, np.repeat(x[:, None], 100, 1), resamples=300), stats.interval(np.mean, x, resamples=300))


def silence_is_not_equivalence(_): assert not stats.equivalence([.06, -.04, .05], .05).equivalent


def too_low_is_not_equivalent(_): assert not stats.equivalence([-2., -2.1, -1.9], 1.).equivalent


def nothing_of_ten_may_be_a_third(_): assert np.isclose(stats.share_interval(0, 10)[1], 1 - .025**.1)


def _label_free(log_p, labels):
    p = np.exp(log_p)
    mixed = p.copy()
    mixed[:, labels] = 1 - p[:, labels]
    return -(mixed*log_p).sum(1)


def _log_of_p(log_p, y):
    "Knows the label, but takes log p where log(1 - p) is meant."
    p = np.exp(log_p)
    p[np.arange(len(y)), y] = 1 - p[np.arange(len(y)), y]
    return -(p*log_p).sum(1)


def _of_all(member, non_member, fpr=.01): return float((member > np.quantile(np.r_[member, non_member], 1 - fpr)).mean())


def _without_acceleration(rows, stat, *, n_resamples, confidence_level, rng, **_):
    "Bias-corrected percentiles."
    draws = bootstrap(rows, stat, n_resamples=n_resamples, vectorized=False, method='percentile', rng=rng).bootstrap_distribution
    z0, tail = norm.ppf((draws < stat(*rows)).mean()), (1 - confidence_level)/2
    return SimpleNamespace(confidence_interval=np.quantile(draws, norm.cdf(2*z0 + norm.ppf([tail, 1 - tail]))))


def _not_significant(e):
    "No difference that three seeds could show."
    return e.low < 0 < e.high


AUC, ACCURACY = attacks.auc, further.accuracy
SALUN, SPARTALIS = 'SalUn, SVC_MIA.py', 'Spartalis et al. code'

MUTATIONS = [  # what; where it was seen; how it is put back; the check that notices; the library's own words, where its guard answers first
    ('modified entropy without labels', SALUN, swapped(attacks, 'modified_entropy', _label_free), modified_entropy_knows_the_label, None),
    ('modified entropy with log p for log(1 - p)', SALUN, swapped(attacks, 'modified_entropy', _log_of_p), modified_entropy_knows_the_label, None),
    ('confidences that are all 1', 'attacks on probabilities in place of logits',
     lambda: patch.dict(attacks.SIGNALS, margin=confidence), sure_answers_are_told_apart, None),
    ('area with its sign turned', 'two families of published attacks, of opposite signs', swapped(attacks, 'auc', lambda a, b: 1 - AUC(a, b)),
     members_have_the_larger_area, None),
    ('area in which ties are won', 'ranks without ties', swapped(attacks, 'rankdata', lambda x: rankdata(x[::-1], 'ordinal')[::-1]),
     areas_agree_with_scikit_learn, None),
    ('1 % of all images for 1 % of the unseen', 'a threshold from both kinds together', swapped(attacks, 'tpr_at', _of_all),
     false_alarms_are_counted_among_the_unseen, None),
    ('ties that count as found', 'a threshold that its own false alarms reach',
     lambda: rewritten(attacks, 'tpr_at', 'member > non_member', 'member >= non_member'), equal_signals_find_nobody, None),
    ('thresholds judged on what they were fitted to', 'Song and Mittal without a shadow model',
     lambda: rewritten(attacks, 'song_mittal', '(order[:n//2], order[n//2:]), (order[n//2:], order[:n//2])', '(order, order), (order, order)'),
     thresholds_find_nothing_in_noise, None),
    ('regression judged on what it was fitted to', 'an attack without cross-validation',
     lambda: rewritten(attacks, 'kit_attack', 'predict(x[b]) == y[b]', 'predict(x[a]) == y[a]'), regression_is_the_starting_kits, None),
    ('regression that leaves one out', 'leave-one-out, which leaves the other kind in the majority',
     swapped(attacks, 'StratifiedShuffleSplit', lambda *_, **__: LeaveOneOut()), regression_is_the_starting_kits, None),
    ("SalUn's classifier with the other sign", 'tables of LoTUS and of SalUn side by side',
     lambda: rewritten(attacks, 'svc_attack', '1 - fit.predict', 'fit.predict'), high_means_forgotten_for_the_classifier, None),
    ("SalUn's classifier on unequal sides", f'{SALUN}, with fewer retain than test images',
     lambda: rewritten(attacks, 'svc_attack', 'rng.permutation(a)[:n]', 'a'), few_members_are_not_outvoted, None),
    ('ToW of rounded accuracies', f'rounding as in {SPARTALIS}', swapped(further, 'accuracy', lambda ev, *p: round(ACCURACY(ev, *p), 2)),
     tow_is_of_whole_accuracies, None),
    ('churn as a gap of accuracies', 'comparisons by accuracy alone',
     swapped(further, 'disagreement', lambda a, b, p: abs(ACCURACY(a, p) - ACCURACY(b, p))), churn_sees_equal_accuracies, None),
    ('accuracy of the large classes', 'accuracy on imbalanced data', swapped(further, 'balanced_accuracy', ACCURACY), rare_classes_count, None),
    ('Holm without steps', 'Bonferroni', lambda: rewritten(stats, 'holm', 'np.arange(len(p), 0, -1)', 'len(p)'), holm_steps_down, None),
    ('Holm that goes back', 'steps without a running maximum', lambda: rewritten(stats, 'holm', 'np.maximum.accumulate', 'np.asarray'), holm_steps_down, None),
    ('pairs of different seeds', 'methods run in another order of seeds', lambda: rewritten(stats, 'paired_test', 'd = a - b', 'd = a - np.sort(b)'),
     pairs_are_of_one_seed, None),
    ('standard deviation that divides by n', "NumPy's default", lambda: rewritten(stats, 'paired_test', 'ddof=1', 'ddof=0'), pairs_are_of_one_seed, None),
    ('BCa without acceleration', 'bias-corrected percentiles', swapped(stats, 'bootstrap', _without_acceleration), intervals_are_accelerated, None),
    ('plain percentiles', "another method of SciPy's bootstrap", lambda: rewritten(stats, 'interval', "method='BCa'", "method='percentile'"),
     intervals_are_accelerated, None),
    ('images drawn for models', 'TRAIL, example bootstrap',
     lambda: rewritten(stats, 'interval', '_rows(statistic, samples)', '_rows(statistic, [np.ravel(s) for s in samples])'), models_are_drawn_and_not_images, None),
    ('no significant difference called equivalence', 'tables over three seeds', swapped(stats.Equivalence, 'equivalent', property(_not_significant)),
     silence_is_not_equivalence, None),
    ('equivalence on one side', 'one of two one-sided tests', lambda: rewritten(stats, 'equivalence', 'band - abs(mean)', 'band - mean'),
     too_low_is_not_equivalent, None),
    ('0 ± 0 for a share', 'mean ± standard error of a share',
     swapped(stats, 'share_interval', lambda k, n: tuple(k/n + s*1.96*np.sqrt(k/n*(1 - k/n)/n) for s in (-1, 1))), nothing_of_ten_may_be_a_third, None),
]
