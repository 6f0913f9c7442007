"Mutants of ensembles and of the metrics that need them."
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import norm
from torch import nn

import lotus_nb.ensemble as ensemble
import lotus_nb.metrics.ensembles as ensembles
from lotus_nb.data.digits import digits
from lotus_nb.models import create_model
from lotus_nb.train import recipe, train
from mutants.common import refused, rewritten, swapped

SHORT = recipe('digits', epochs=2)


def new_mlp(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def halves(n, images, d, seed):
    "Log odds around very different means, shifted by d where a model was trained on the image; and the sides."
    rng = np.random.default_rng(seed)
    inside = np.repeat(rng.random((n//2, images)) < .5, 2, 0)
    inside[1::2] = ~inside[::2]
    return 3*rng.normal(size=images) + rng.normal(size=inside.shape) + d*inside, inside.astype(int)


# Checks. Each takes the digits task and raises AssertionError when something is wrong.

def one_of_the_stack_is_one_alone(_):
    pool = digits(0).train.take(range(150))
    members = ensemble.half_splits(4, 150)
    members[0, np.flatnonzero(members[0])[70:]] = False                      # 70 and 75 images: batches end differently
    stack = ensemble.gold_ensemble(pool, 4, new_mlp, SHORT, members=members)
    for i in (0, 1):
        alone = train(new_mlp(i), pool.take(np.flatnonzero(members[i])), SHORT, seed=i).model
        for k, v in alone.state_dict().items():
            assert torch.allclose(v, stack.weights[k][i], atol=1e-4), f'model {i} of the stack is not the one trained alone'


def what_is_left_out_has_no_influence(_):
    pool, i = digits(0).train.take(range(100)), 7
    forget = ensemble.forget_parts(np.ones((4, 100), bool), 2)[0]
    pixels = pool.pixels.clone()
    pixels[pool.ids[i]] = 255 - pixels[pool.ids[i]]
    a, b = (ensemble.gold_ensemble(d, 4, new_mlp, SHORT, members=np.ones((4, 100), bool), forget=forget)
            for d in (pool, replace(pool, pixels=pixels, source='turned')))
    moved = np.array([any(not torch.equal(v[m], b.weights[k][m]) for k, v in a.weights.items()) for m in range(4)])
    assert (moved == ~forget[:, i]).all() and 0 < moved.sum() < 4, 'an image that was left out taught'


def batch_statistics_are_refused(_):
    def new(seed): return create_model('small_cnn', in_chans=1, norm='batch', seed=seed)
    refused(lambda: ensemble.gold_ensemble(digits(0).train.take(range(40)), 2, new, SHORT), 'Use GroupNorm')


def log_odds_come_from_logits(_):
    z = torch.tensor([[30., 0., 0.], [-30., 0., 0.], [1., 2., 3.]])
    want = torch.tensor([30 - np.log(2), -30 - np.log(2), 1 - np.log(np.exp(2) + np.exp(3))]).float()
    assert torch.allclose(ensemble.logit_confidence(z, torch.zeros(3, dtype=torch.long)), want, atol=1e-4)


def spreads_are_shrunk(_):
    found = ensembles.shrunk_normals(np.array([[0., 5.], [2., 5.], [4., 5.]]))
    assert np.allclose(found.var, [2.4, 1.6]), 'by hand: (8·2 + 8)/10 and 8·2/10'


def images_that_differ_do_not_widen_spreads(_):
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(8, 400)) + 10*rng.normal(size=400)
    assert abs(ensembles.shrunk_normals(phi).var.mean() - 1) < .1


def each_side_has_its_own_spread(_):
    rng = np.random.default_rng(0)
    phi, side = halves(64, 200, 0., 0)
    phi = np.where(side == 1, phi.mean(0) + .3*rng.normal(size=phi.shape), phi)     # forgetting made them all alike
    assert ensembles.likelihood_ratio(phi, side).auc() > .75


def a_perfect_unlearner_scores_one_half(_):
    found = [ensembles.likelihood_ratio(*halves(16, 60, 0., i), folds=4).auc() for i in range(100)]
    assert abs(np.mean(found) - .5) < 3*np.std(found)/10, f'{np.mean(found):.4f} ± {np.std(found)/10:.4f}'


def known_normals_give_their_area(_):
    found, best = ensembles.likelihood_ratio(*halves(128, 150, 1., 0)).auc(), norm.cdf(1/2**.5)
    assert best - .02 < found < best + .01, (found, best)


def destruction_is_seen_by_one_game_only(_):
    phi, side = halves(64, 200, 0., 0)
    gold, forget = phi, side == 1
    ruined = np.random.default_rng(1).normal(-2, 1, phi.shape)
    privacy, efficacy = ensembles.ulira_privacy(ruined, forget, forget), ensembles.ulira_efficacy(ruined, gold, forget)
    assert abs(privacy.auc() - .5) < .03 and efficacy.auc() > .8


def intervals_hold_what_models_share(_):
    "A few models, whose answers to all images move together: a thousand images are no thousand observations."
    inside = []
    for i in range(40):
        rng = np.random.default_rng(i)
        side = np.repeat(np.arange(16)[:, None] % 2, 200, 1)
        phi = rng.normal(size=(16, 1)) + .3*rng.normal(size=side.shape)
        low, high = ensembles.Attack(phi, side, np.zeros(16), np.arange(16)).interval()
        inside.append(low <= .5 <= high)
    assert np.mean(inside) > .85, np.mean(inside)


def the_largest_sample_counts(_):
    u, g = np.array([[0.], [0.], [0.], [50.]]), np.zeros((4, 1))
    assert np.allclose(ensembles.klom(u, g), .75*np.log(.75) + .25*np.log(.25/1e-5))


def the_published_value_loses_it(_):
    u, g = np.array([[0.], [1.], [1.], [20.]]), np.array([[0.], [0.], [1.], [20.]])
    assert np.allclose(ensembles.klom_as_published(u, g), np.log(1/2)/3 + np.log(2)*2/3)


def klom_has_its_direction_and_its_clamp(_):
    u, g = np.array([[0.], [0.], [0.], [200.]]), np.array([[0.], [0.], [100.], [100.]])
    assert np.allclose(ensembles.klom(u, g), .75*np.log(.75/.5) + .25*np.log(.25/.5)), 'by hand'


def normals_have_their_divergence(_):
    rng = np.random.default_rng(0)
    u, g = rng.normal(1, 2, (20_000, 1)), rng.normal(0, 1, (20_000, 1))
    assert np.allclose(ensembles.klom_normal(u, g), -np.log(2) + (4 + 1)/2 - .5, atol=.1)


def shift_has_its_sign(_):
    u, g = np.full((4, 1), 3.), np.array([[-1.], [1.], [-1.], [1.]])
    assert ensembles.signed_shift(u, g) > 2


def rmia_asks_strangers(_):
    p, q = np.array([[.6, .5, .6, .4]]), np.array([[.3, .5, .8, .2], [.99, .9, .4, .1]])
    out, never = np.array([[1, 1, 1, 1], [0, 0, 1, 1]], bool), np.array([[False, True, True, True]])
    logit = lambda p: np.log(p/(1 - p))
    assert np.allclose(ensembles.rmia(logit(p), never, logit(q), out), [[1, 1/3, 2/3, 1]]), 'by hand'


def certainty_is_not_claimed_of_nothing(_):
    rng = np.random.default_rng(0)
    found = ensembles.epsilon_certified(rng.normal(size=(64, 150)), rng.normal(size=(64, 150)))
    assert (found > 0).mean() < .08, (found > 0).mean()


def certified_reaches_its_ceiling(_):
    u, g = np.random.default_rng(0).normal([[[0.]], [[100.]]], 1, (2, 64, 1))
    assert np.allclose(ensembles.epsilon_certified(u, g, delta=0.), 2.10, atol=.01)


def published_epsilon_by_hand(_):
    u, g = np.arange(4.)[:, None], np.arange(4.)[:, None] + 1.5
    assert np.allclose(ensembles.epsilon_as_published(u, g), np.log(3), atol=1e-3)


def memorised_is_what_members_alone_know(_):
    correct = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 0, 1]], bool)
    trained = np.array([[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]], bool)
    assert ensembles.memorisation(correct, trained).tolist() == [0, 1, -1]


def floors_have_as_many_models(_):
    rng, seen = np.random.default_rng(0), []
    def spy(a, b):
        seen.append((len(a), len(b)))
        return ensembles.klom_normal(a, b)
    ensembles.beside_floor(spy, rng.normal(size=(40, 3)), rng.normal(size=(40, 3)))
    assert set(seen) == {(20, 20)}


def broken(module, name, old, new): return lambda: rewritten(module, name, old, new)


def as_independent_parts(attack, fpr=None, images=None, level=.95, blocks=16):
    "An interval as if parts of the pairs, whatever their models, were independent of each other."
    rng, values = np.random.default_rng(0), []
    for part in range(blocks):
        side = np.where(rng.permutation(attack.side.size).reshape(attack.side.shape) % blocks == part, attack.side, -1)
        values.append(replace(attack, side=side).auc())
    half = norm.ppf((1 + level)/2)*np.std(values)/blocks**.5
    return attack.auc() - half, attack.auc() + half


MUTATIONS = [
    ('fill of short batches counts', 'masked training', broken(ensemble, '_train_stack', 'weight = (at >= 0).float()', 'weight = torch.ones_like(at, dtype=torch.float)'),
     one_of_the_stack_is_one_alone, None),
    ('one order for all models', 'masked training', broken(ensemble, '_train_stack', '_order(own, r.batch_size, r.epochs, s)', '_order(own, r.batch_size, r.epochs, 0)'),
     one_of_the_stack_is_one_alone, None),
    ('gold sees the forget set', 'preparation from all images', broken(ensemble, 'gold_ensemble', 'members & ~forget', 'members'),
     what_is_left_out_has_no_influence, None),
    ('BatchNorm in masked training', 'METRICS.md §5', broken(ensemble, '_check_stackable', 'if odd := [', 'if odd := [] and ['), batch_statistics_are_refused, None),
    ('log odds from clipped probabilities', 'LiRA copies', broken(ensemble, 'logit_confidence', 'return z.gather(-1, at)[..., 0] - z.scatter(-1, at, -torch.inf).logsumexp(-1)',
     'return z.softmax(-1).gather(-1, at)[..., 0].clamp(1e-6, 1 - 1e-6).logit()'), log_odds_come_from_logits, None),
    ('raw variance of each image', 'LiRA with few shadow models', broken(ensembles, 'shrunk_normals', 'prior: float = 8.', 'prior: float = 0.'), spreads_are_shrunk, None),
    ('total variance', "LiRA's fix_variance, TRAIL", broken(ensembles, 'shrunk_normals', 'squares.sum()/np.maximum(n - 1, 0).sum()', 'phi.var()'),
     images_that_differ_do_not_widen_spreads, None),
    ('one spread for both sides', "LiRA's std_out = np.std(dat_in)", broken(ensembles, 'likelihood_ratio', 'known.log_density(phi[fold == f]) -',
     'Normals(known.mean, never.var, known.n).log_density(phi[fold == f]) -'), each_side_has_its_own_spread, None),
    ('one model left out', 'leave-one-out U-LiRA', broken(ensembles, 'likelihood_ratio', 'fold, score = at % folds,', 'fold, folds, score = np.arange(len(phi)), len(phi),'),
     a_perfect_unlearner_scores_one_half, None),
    ('scored by its own fit', 'LiRA without folds', broken(ensembles, 'likelihood_ratio', 'rest = (fold != f)[:, None]', 'rest = (fold >= 0)[:, None]'),
     a_perfect_unlearner_scores_one_half, None),
    ('sign of the ratio', 'sign-flipped attacks', broken(ensembles, 'likelihood_ratio', 'score[fold == f] = known', 'score[fold == f] = -known'), known_normals_give_their_area, None),
    ('efficacy game without gold', 'one game under two names', broken(ensembles, 'ulira_efficacy', 'np.concatenate([phi, gold])', 'np.concatenate([phi, phi[::-1]])'),
     destruction_is_seen_by_one_game_only, None),
    ('images as observations', 'bootstrap of examples', swapped(ensembles.Attack, 'interval', as_independent_parts), intervals_hold_what_models_share, None),
    ('the largest sample is dropped', 'KLoM, both repositories', broken(ensembles, '_histogram', 'if last: at', 'if False: at'), the_largest_sample_counts, None),
    ('published KLoM mended', 'a compatible version that is not', broken(ensembles, 'klom_as_published', 'last=False', 'last=True'), the_published_value_loses_it, None),
    ('KLoM turned round', 'TRAIL', broken(ensembles, '_klom', '(p[seen]*np.log(p[seen]/np.maximum(q[seen], eps)))', '(q[q > 0]*np.log(q[q > 0]/np.maximum(p[q > 0], eps)))'),
     klom_has_its_direction_and_its_clamp, None),
    ('KLoM without its clamp', 'KLoM copies', broken(ensembles, '_klom', 'np.clip(_checked(t, n), -clip, clip)', '_checked(t, n)'), klom_has_its_direction_and_its_clamp, None),
    ('normal KL turned round', 'TRAIL', broken(ensembles, 'klom_normal', 'u, g = shrunk', 'g, u = shrunk'), normals_have_their_divergence, None),
    ('shift without sign', 'Streisand effect unseen', broken(ensembles, 'signed_shift', 'return (', 'return -('), shift_has_its_sign, None),
    ('members among the references', 'RMIA copies', broken(ensembles, 'rmia', '(q*out).sum(0)/out.sum(0)', 'q.mean(0)'), rmia_asks_strangers, None),
    ('event and counts from the same models', 'plug-in ε', broken(ensembles, 'epsilon_certified', "(t[::2], t[1::2])", "(t, t)"), certainty_is_not_claimed_of_nothing, None),
    ('ratio without a bound', 'plug-in ε', broken(ensembles, '_clopper_pearson', 'k = np.arange(n + 1)', 'k = np.arange(n + 1); return k/n, np.maximum(k, 1e-9)/n'),
     certified_reaches_its_ceiling, None),
    ('sides of the errors', 'ε of the competition', broken(ensembles, '_published', "[1 - share(neg, cut, 'left')]", "[share(neg, cut, 'left')]"), published_epsilon_by_hand, None),
    ('memorisation turned round', 'Feldman copies', broken(ensembles, 'memorisation', '(c*s).sum(0)/s.sum(0) - (c*~s).sum(0)/(~s).sum(0)', '(c*~s).sum(0)/(~s).sum(0) - (c*s).sum(0)/s.sum(0)'),
     memorised_is_what_members_alone_know, None),
    ('a floor of more models', 'floors from all of gold', broken(ensembles, 'beside_floor', 'rng.permutation(u)[:half], b)', 'u, g)'), floors_have_as_many_models, None),
]
