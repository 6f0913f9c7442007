"Mutants of metrics from end to end: what reads answers, what draws and fits, what averages. They complete the rows of `foundation`, `attacks` and `ensembles`."
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch

import lotus_nb.loop as loop
import lotus_nb.metrics.accuracy as accuracy
import lotus_nb.metrics.attacks as attacks
import lotus_nb.metrics.core as metrics_core
import lotus_nb.metrics.divergence as divergence
import lotus_nb.metrics.ensembles as ensembles
import lotus_nb.metrics.further as further
import lotus_nb.metrics.mia as mia
import lotus_nb.metrics.stats as stats
from lotus_nb.data.core import Augment
from lotus_nb.metrics.core import Evidence
from lotus_nb.task import UnlearnTask, student_of
from mutants.attacks import sure_answers_are_told_apart
from mutants.common import refused, rewritten, swapped
from mutants.ensembles import halves
from mutants.foundation import jsd_ignores_the_number_of_images, with_norm

SPARTALIS = 'Spartalis et al. code'


def made(k=7, seed=0, **sizes):
    "Evidence of random answers."
    r = np.random.default_rng(seed)
    return Evidence({p: r.normal(size=(n, k)).astype(np.float32) for p, n in sizes.items()}, {p: np.arange(n) % k for p, n in sizes.items()}, {p: np.arange(n) for p, n in sizes.items()})


def of_margins(**margins):
    "Evidence of two classes, all images of the first, with these margins."
    z = {p: np.stack([m, np.zeros(len(m))], 1).astype(np.float32) for p, m in margins.items()}
    return Evidence(z, {p: np.zeros(len(a), int) for p, a in z.items()}, {p: np.arange(len(a)) for p, a in z.items()})


# Checks. Each takes the digits task and raises AssertionError, or the library's own error, when something is wrong.

def all_parts_are_seen_alike(task):
    "Images that move about when they are trained on: no part moves while evaluated, so none can be told by that."
    forget, retain = (replace(d, augment=Augment(3)) for d in (task.forget, task.retain))
    t = UnlearnTask(task.model, forget, retain, task.val, task.test)
    still, seen = (metrics_core.evidence(task.model, i) for i in (task, t))
    gaps = {p: float(np.abs(still.logits[p] - seen.logits[p]).max()) for p in seen.parts}
    assert max(gaps.values()) < 1e-4, gaps


def attack_on_unseen_images_is_blind(task):
    "Validation images in the place of the forget images of an untrained network: nothing can be told, whatever is done to images in training."
    net = student_of(task.model)
    torch.manual_seed(0)
    for p in net.parameters(): torch.nn.init.normal_(p, std=.3)
    darker = replace(task.val, augment=lambda x: x//4)
    ev = metrics_core.evidence(net, UnlearnTask(net, darker, task.retain, task.val, task.test), ['forget', 'test'])
    assert abs(attacks.auc_entropy(ev) - .5) < .06, attacks.auc_entropy(ev)


def answers_do_not_depend_on_company(_):
    "In eval mode, whatever the batch: one by one, and in batches of which the last is short."
    t = with_norm()
    one, some = (loop.predict(student_of(t.model).train(), t.loader('retain', train=False, batch_size=b))[0] for b in (1, 77))
    assert torch.allclose(one, some, atol=1e-4)


def raw_spreads_are_not_trusted(_):
    "Three models on a side: a raw spread of three is now and then next to nothing, and its ratios drown the others."
    found = np.mean([ensembles.likelihood_ratio(*halves(8, 300, 1., s), folds=4).auc() for s in range(6)])
    assert found > .66, found


def spreads_are_those_of_each_side(_):
    "Never known: spread 1. Forgotten: spread 3, same mean. Large distances on either side speak for the forgotten."
    rng = np.random.default_rng(0)
    _, side = halves(64, 200, 0., 0)
    phi = np.where(side == 1, 3., 1.)*rng.normal(size=side.shape)
    best = 1 - np.arctan(1/3)*2/np.pi                       # P(|3x| > |y|) of two standard normals
    found = ensembles.likelihood_ratio(phi, side).auc()
    assert abs(found - best) < .03, (found, best)


def one_half_is_one_half(_):
    "Both games of a perfect unlearner, on average over sixty ensembles."
    def both(s):
        rng = np.random.default_rng(s)
        inside = np.repeat(rng.random((8, 40)) < .5, 2, 0); inside[1::2] = ~inside[::2]
        mean = 3*rng.normal(size=40)
        phi, gold = mean + rng.normal(size=(2, 16, 40))
        keep = (inside.sum(0) > 5) & ((~inside).sum(0) > 5)
        phi, gold, inside = phi[:, keep], gold[:, keep], inside[:, keep]
        return ensembles.ulira_privacy(phi, inside, inside, folds=4).auc(), ensembles.ulira_efficacy(phi, gold, inside, folds=4).auc()
    found = np.array([both(s) for s in range(60)])
    error = found.std(0)/60**.5
    assert (np.abs(found.mean(0) - .5) < 3*error).all(), (found.mean(0), error)


def gold_has_the_floor_of_gold(_):
    "KLoM of equal normals at 100 models: .34 on average, by simulation of its definition."
    found = ensembles.klom(*np.random.default_rng(0).normal(size=(2, 100, 600))).mean()
    assert abs(found - .34) < .04, found


def every_model_is_counted(_):
    "Where all unlearned models lie beyond all of gold, hardly anything could be farther away."
    u, g = np.full((20, 1), 9.), np.linspace(-1, 1, 20)[:, None]
    assert np.allclose(ensembles.klom(u, g), np.log(1e5))


def members_are_called_members(_):
    "Every attack that says how many members there are, or how likely, says more of the surer images."
    r = np.random.default_rng(0)
    ev = lambda shift: of_margins(forget=r.normal(shift, 1, 900), retain=r.normal(3, 1, 900), val=r.normal(0, 1, 900), test=r.normal(0, 1, 900))
    known, strange = ev(3), ev(0)
    for f in (mia.mia_entropy, attacks.auc_loss, attacks.auc_modified_entropy, attacks.mia_loss, attacks.mia_confidence, attacks.mia_modified_entropy):
        assert f(known) > f(strange) + .1, f.__name__
    assert attacks.mia_svc(known) < attacks.mia_svc(strange) - .1                          # the one with the other sign


def the_mean_is_of_whole_gaps(task):
    "Avg Gap and ToW on counts that two decimals cannot hold."
    new, gold = (metrics_core.reference(task, k) for k in ('original', 'gold'))
    right = lambda e, p: float((e.logits[p].argmax(1) == e.labels[p]).mean())
    gaps = [abs(right(new, p) - right(gold, p)) for p in ('forget', 'retain', 'test')]
    mias = abs(mia.mia_entropy(new) - mia.mia_entropy(gold))
    assert np.isclose(mia.avg_gap(new, gold), np.mean([mias, *gaps]), atol=1e-12)


def rounding_is_not_ranked(_):
    "The same answer to every image: there is nothing to rank, whatever the labels."
    ev = made(forget=60, test=91)
    same = Evidence({p: np.zeros_like(z) for p, z in ev.logits.items()}, ev.labels, ev.ids)
    for f in (attacks.auc_loss, attacks.auc_entropy, attacks.auc_modified_entropy): assert f(same) == .5, (f.__name__, f(same))


def other_images_are_not_compared(_):
    ev = made(forget=12)
    turned = Evidence(*({p: v[::-1] for p, v in d.items()} for d in (ev.logits, ev.labels, ev.ids)))
    for f in (divergence.jsd, divergence.zrf, divergence.jsd_as_published, further.activation_distance): refused(lambda: f(ev, turned), 'different forget images')


def pieces_make_no_difference(_):
    "Rows one by one, and all at once."
    ev = made(retain=50)
    count = lambda at_most: accuracy.per_image(lambda p, y: p, 'retain', ev, at_most=at_most)
    assert np.array_equal(count(1), count(10**6)) and count(1).shape == (50, 7)


def never_seen_images_are_asked_by_strangers(_):
    "Each validation image is asked about once, by an attack that was fitted without it; every label on both sides."
    ev, calls, real = made(retain=90, val=41, test=30), [], attacks.entropy_attack
    keep = lambda member, non_member, target: calls.append((set(non_member.tolist()), target.tolist())) or real(member, non_member, target)
    with patch.object(attacks, 'entropy_attack', keep): found = attacks.mia_entropy_unseen(ev)
    h = {p: metrics_core.entropy(ev.log_probs(p)) for p in ('val', 'test')}
    assert sorted(t for _, target in calls for t in target) == sorted(h['val'].tolist())
    for known, target in calls: assert set(h['test'].tolist()) <= known and not known & set(target) and len(known) + len(target) == 71
    sides = [ev.labels['val'][np.isin(h['val'], target)] for _, target in calls]
    assert abs(np.bincount(sides[0], minlength=7) - np.bincount(sides[1], minlength=7)).max() <= 1 and 0 <= found <= 1


def distance_is_from_golds_own(_):
    "RF-JSD of gold is not 0: gold is at 0 of the gap, and what has an RF-JSD of 0 is not."
    gold, original = made(forget=70, seed=1), made(test=70, seed=2)
    perfect = Evidence({'forget': original.logits['test']}, {'forget': original.labels['test']}, {'forget': original.ids['test']})
    for gap, value in ((divergence.rf_jsd_gap, divergence.rf_jsd), (divergence.rf_jsd_gap_as_published, divergence.rf_jsd_as_published)):
        assert gap(gold, original, gold) == 0 and np.isclose(gap(perfect, original, gold), value(gold, original)) and value(gold, original) > 0


def zeros_and_ones_are_a_mask(_):
    "The same images never seen, as bool and as 0 and 1: the same shares, none above 1."
    r = np.random.default_rng(0)
    phi, references, never = r.normal(size=(3, 8)), r.normal(size=(2, 8)), np.tile(np.arange(8) < 5, (3, 1))
    out = np.ones((2, 8), bool)
    with_bool, with_int = (ensembles.rmia(phi, never.astype(t), references, out.astype(t)) for t in (bool, int))
    assert np.array_equal(with_bool, with_int) and with_int.max() <= 1


def a_rate_beyond_the_images_is_refused(_): refused(lambda: attacks.tpr_at(np.arange(9.), np.arange(48.), 1e-4), 'the smallest above 0 that they can show is 1/48')


def a_rate_beyond_the_pairs_is_refused(_):
    game = ensembles.Attack(np.arange(96.).reshape(2, 48), np.repeat([[1], [0]], 48, 1), np.zeros(2), np.arange(2))
    refused(lambda: game.tpr(1e-4), 'the smallest is 1/48')


def sameness_is_no_certainty(_):
    "Two seeds, the same difference: a test of two seeds cannot say less than one half."
    refused(lambda: stats.equivalence([.01, .01], .05), 'All 2 differences are 0.01')
    assert stats.paired_test([2, 3], [1, 2]).p == .5


def logits_are_no_probabilities(_): refused(lambda: divergence.ag_as_published(np.random.default_rng(0).normal(size=(9, 4)), np.full((9, 4), .25)), 'Did you pass logits')


def _over_the_matrix(new, gold):
    "Proper divergences, of matrices that were made to sum to 1 and then averaged over rows once more."
    p, q = (np.exp(e.log_probs('forget')) for e in (new, gold))
    p, q = p/p.sum(), q/q.sum()
    m = (p + q)/2
    return float(((p*(np.log(p) - np.log(m))).sum() + (q*(np.log(q) - np.log(m))).sum())/2/len(p))


def _clipped(log_p, y):
    p = np.clip(np.exp(log_p[np.arange(len(y)), y]), 1e-6, 1 - 1e-6)
    return np.log(p) - np.log(1 - p)


def _one_left_out(phi, side, *, group=None, folds=None):
    "Each model scored by fits to all others, and compared with all."
    own = np.arange(len(phi))
    return ensembles.Attack(RATIO(phi, side, group=own, folds=len(phi)).score, side, 0*own, own)


def _by_position(fn, part, *evidence):
    "Image by image, without asking which."
    return fn(*(e.log_probs(part) for e in evidence), evidence[0].labels[part])


def broken(module, name, old, new): return lambda: rewritten(module, name, old, new)


ACCURACY, AREA, RATIO = accuracy.accuracy, attacks.auc, ensembles.likelihood_ratio

MUTATIONS = [  # what; where it was seen; how it is put back; the check that notices; the library's own words, where its guard answers first
    ('JSD normalised over the matrix', f'{SPARTALIS}, JSDiv', swapped(divergence, 'jsd', _over_the_matrix), jsd_ignores_the_number_of_images, None),
    ('augmentation on one side, seen in the answers', f'{SPARTALIS}, ResNet on forget and retain images',
     broken(metrics_core, 'evidence', 'task.loader(p, train=False)', "task.loader(p, train=p in ('forget', 'retain'))"), all_parts_are_seen_alike, None),
    ('augmentation on one side, seen by an attack', f'{SPARTALIS}, ResNet on forget and retain images',
     broken(metrics_core, 'evidence', 'task.loader(p, train=False)', "task.loader(p, train=p in ('forget', 'retain'))"), attack_on_unseen_images_is_blind, None),
    ('batches that speak together', f'{SPARTALIS}, collect_prob', broken(loop, 'predict', 'with evaluating(model), _autocast', 'with torch.no_grad(), _autocast'),
     answers_do_not_depend_on_company, None),
    ('raw variance of each image, at few models', 'LiRA with few shadow models', broken(ensembles, 'likelihood_ratio', 'prior: float = 8.', 'prior: float = 0.'),
     raw_spreads_are_not_trusted, None),
    ('std_out = np.std(dat_in)', "LiRA's plot.py", broken(ensembles, 'likelihood_ratio', '- never.log_density(phi[fold == f])',
     '- Normals(never.mean, known.var, never.n).log_density(phi[fold == f])'), spreads_are_those_of_each_side, None),
    ('one model left out, both games', 'leave-one-out U-LiRA', swapped(ensembles, 'likelihood_ratio', _one_left_out), one_half_is_one_half, None),
    ('KLoM without its maximum, all models at it', 'KLoM, both repositories', broken(ensembles, '_histogram', 'if last: at', 'if False: at'), every_model_is_counted, None),
    ('KLoM in wide bins', 'TRAIL', broken(ensembles, '_klom', 'np.linspace(low, high, bins + 1, axis=1)', 'np.tile(np.linspace(-clip, clip, bins + 1), (len(low), 1))'),
     gold_has_the_floor_of_gold, None),
    ('entropy attack with its sign turned', 'two families of published attacks', broken(mia, 'entropy_attack', 'predict(target[:, None]).mean()', 'predict(-target[:, None]).mean()'),
     members_are_called_members, None),
    ('area with its sign turned, all attacks', 'two families of published attacks', swapped(attacks, 'auc', lambda a, b: AREA(b, a)), members_are_called_members, None),
    ('log odds from clipped probabilities, one model', 'LiRA copies', lambda: patch.dict(attacks.SIGNALS, margin=_clipped), sure_answers_are_told_apart, None),
    ('rounded before the mean', SPARTALIS, swapped(mia, 'accuracy', lambda ev, *p: round(ACCURACY(ev, *p), 2)), the_mean_is_of_whole_gaps, None),
    ('rounding that is ranked', 'any attack on exact ties', swapped(attacks, '_without_rounding', lambda x: x), rounding_is_not_ranked, None),
    ('images of another order', 'evidence by position', swapped(divergence, 'per_image', _by_position), other_images_are_not_compared, None),
    ('attack asked about images it was fitted to', 'validation images in the place of forget images', broken(attacks, '_by_strangers', "s['val'][~asked]", "s['val']"),
     never_seen_images_are_asked_by_strangers, None),
    ('halves by position', 'data sorted by class', swapped(attacks, '_every_other', lambda y, ids: np.argsort(np.argsort(y, kind='stable')) < len(y)//2), never_seen_images_are_asked_by_strangers, None),
    ('RF-JSD as though 0 were best', SPARTALIS, swapped(divergence, '_from_gold', lambda fn, new, original, gold: fn(new, original)), distance_is_from_golds_own, None),
    ('zeros and ones for positions', 'NumPy, with a mask of integers', swapped(ensembles, '_mask', lambda a, name: np.asarray(a)), zeros_and_ones_are_a_mask, None),
    ('a rate that no image can show', 'TPR at .1 % among few', broken(attacks, 'tpr_at', 'if fpr and not allowed', 'if False'), a_rate_beyond_the_images_is_refused, None),
    ('a rate that no pair can show', 'TPR at .1 % among few', swapped(ensembles.Attack, 'tpr', lambda self, fpr=.01, images=None: 0.), a_rate_beyond_the_pairs_is_refused, None),
    ('certainty from no spread', "Student's t, dividing by 0", swapped(stats, '_no_spread', lambda d: False), sameness_is_no_certainty, None),
    ('logits for probabilities', SPARTALIS, swapped(divergence, '_rows', lambda a, name, log=False: np.asarray(a, float)), logits_are_no_probabilities, None),
    ('pieces that overlap', 'reading in pieces', broken(accuracy, 'per_image', 'z[i:i + step]', 'z[i:i + step + 1]'), pieces_make_no_difference, None),
]
