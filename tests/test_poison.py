"Poison and what is left of it: exactly what the record says is changed, and known mistakes in the stress metrics are noticed."
import inspect
import json
import pickle
import textwrap
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from scipy.stats import binom, kstest, norm
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader, TensorDataset

import lotus_nb.data.poison as poison
import lotus_nb.metrics.stress as stress
from lotus_nb.data.core import Images, split_forget
from lotus_nb.data.poison import Trigger, backdoor, confuse, gaussian_poison, known, mislabel, with_trigger
from lotus_nb.metrics.core import Evidence, list_metrics
from lotus_nb.models import create_model
from lotus_nb.task import UnlearnTask, _shared_ids


def images(n=60, k=4, channels=3, seed=0, **kw):
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n + 20, channels, 6, 6), generator=g, dtype=torch.uint8)
    return Images(pixels, torch.randint(0, k, (n + 20,), generator=g), ids=torch.randperm(n + 20, generator=g)[:n], classes=tuple('abcdefgh'[:k]), source='made', **kw)


MAKERS = {'mislabel': lambda d, seed=0: mislabel(d, 12, seed=seed), 'backdoor': lambda d, seed=0: backdoor(d, 2, 9, seed=seed),
          'confuse': lambda d, seed=0: confuse(d, 'a', 1, 4, seed=seed), 'gaussian': lambda d, seed=0: gaussian_poison(d, 10, seed=seed)}


@pytest.mark.parametrize('kind', MAKERS)
@pytest.mark.parametrize('stats', [{}, dict(mean=[.5, .4, .3], std=[.2, .3, .4])], ids=['plain', 'normalised'])
def test_exactly_the_recorded_rows_change(kind, stats):
    data = images(**stats)
    before = data.pixels.clone(), data.labels.clone(), data.ids.clone()
    bad, r = MAKERS[kind](data)
    assert all(torch.equal(a, b) for a, b in zip(before, (data.pixels, data.labels, data.ids)))           # what came in is untouched
    assert r.kind == kind and torch.equal(bad.ids, data.ids) and r.size == len(data)
    rows = torch.zeros(len(data.pixels), dtype=torch.bool)
    rows[data.ids[r.positions]] = True
    old = data.pixels if bad.pixels.dtype == torch.uint8 else data.pixels.float()/255
    assert torch.equal((bad.pixels != old).flatten(1).any(1), rows if kind in ('backdoor', 'gaussian') else torch.zeros_like(rows))
    assert torch.equal(bad.labels != data.labels, rows if kind != 'gaussian' else torch.zeros_like(rows))
    assert torch.equal(data.y[r.positions], r.old) and torch.equal(bad.y[r.positions], r.new)
    assert len(set(r.positions.tolist())) == len(r) and (r.positions.diff() > 0).all()


@pytest.mark.parametrize('kind', MAKERS)
def test_seeds_repeat_and_differ(kind):
    data = images()
    (a, ra), (b, rb), (c, rc) = (MAKERS[kind](data, s) for s in (0, 0, 1))
    assert torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels) and a.source == b.source
    assert not torch.equal(ra.positions, rc.positions) and a.source != c.source
    state = torch.get_rng_state()
    MAKERS[kind](data, 5)
    assert torch.equal(state, torch.get_rng_state())                                                     # the global generator stands still


@pytest.mark.parametrize('kind', MAKERS)
def test_ids_tell_poisoned_from_clean(kind):
    data = images()
    bad, r = MAKERS[kind](data)
    forget, retain = split_forget(bad, r.positions)
    assert len(_shared_ids(forget, retain)) == 0 and len(_shared_ids(forget, bad)) == len(r) and len(_shared_ids(forget, data)) == 0
    assert MAKERS[kind](data)[0].source != MAKERS[kind](bad)[0].source                                    # poisoned twice is another thing
    task = UnlearnTask(create_model('small_cnn', 4, seed=0), forget, retain, data.take(range(20)))
    assert len(task.forget) == len(r)


@pytest.mark.parametrize('kind', MAKERS)
def test_map_style_data_sets_change_as_images_do(kind):
    data = images()
    plain = TensorDataset(*data.batch(torch.arange(len(data))))
    maker = {'confuse': lambda d, seed=0: confuse(d, 0, 1, 4, seed=seed)}.get(kind, MAKERS[kind])
    (bad, r), (same, s) = maker(plain), maker(data)
    assert torch.equal(r.positions, s.positions) and torch.equal(r.new, s.new)
    x, y = same.batch(torch.arange(len(data)))
    read = [bad[i] for i in range(len(bad))]
    assert torch.allclose(torch.stack([t for t, _ in read]), x, atol=1e-6) and [v for _, v in read] == y.tolist()
    assert torch.equal(bad.y, y) and torch.equal(plain.tensors[1], data.y)
    assert pickle.loads(pickle.dumps(bad))[int(r.positions[0])][1] == int(r.new[0])                       # workers need that
    assert len(next(iter(DataLoader(bad, batch_size=7)))[0]) == 7
    with pytest.raises(IndexError): bad[len(bad)]


def test_float_images_keep_their_scale():
    data = images()
    floats = Images(data.pixels.float()/255, data.labels, data.ids, source='floats')
    bad, r = backdoor(floats, 2, 5, trigger=Trigger(2, (1, 1), (.25, .5, 1.)))
    assert bad.batch(r.positions)[0][:, :, 1:3, 1:3].amax((0, 2, 3)).tolist() == [.25, .5, 1.]
    noisy, r = gaussian_poison(floats, 5)
    assert torch.equal(floats.pixels, data.pixels.float()/255) and torch.allclose((noisy.batch(r.positions)[0] - floats.batch(r.positions)[0]), r.noise(), atol=1e-6)


def test_noise_counts_in_the_units_of_the_model_and_is_not_clipped():
    data = images(400, std=[.2, .3, .4], mean=[.5, .4, .3])
    bad, r = gaussian_poison(data, 300, 2.)
    got = bad.batch(r.positions)[0] - data.batch(r.positions)[0]
    assert torch.allclose(got, r.noise(), atol=1e-5) and abs(float(got.std()) - 2) < .02
    assert kstest(r.noise().flatten().numpy()/2, 'norm').pvalue > .001
    assert bad.pixels.min() < 0 and bad.pixels.max() > 1
    assert not torch.equal(r.noise(), replace(r, seed=r.seed + 1).noise())
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    mixed = r.part(r.positions[order])
    assert torch.equal(mixed.noise(), r.noise()[order]) and torch.equal(mixed.part(r.positions).noise(), r.noise())


def test_wrong_labels_are_uniform_over_the_other_classes():
    data = Images(torch.zeros(6000, 1, 2, 2, dtype=torch.uint8), torch.arange(6000) % 3, classes=tuple('abcd'), source='z')
    _, r = mislabel(data, 1.)
    shift = torch.bincount((r.new - r.old) % 4, minlength=4)
    assert shift[0] == 0 and all(binom.cdf(int(s), 6000, 1/3) > 1e-4 and binom.sf(int(s), 6000, 1/3) > 1e-4 for s in shift[1:])


def test_only_the_classes_asked_for_and_never_the_target():
    data = images(200)
    assert set(mislabel(data, .5, classes=['b', 'c'])[1].old.tolist()) == {1, 2}
    _, r = backdoor(data, 'c', 1.)
    assert 2 not in r.old.tolist() and len(r) == int((data.y != 2).sum()) and set(r.new.tolist()) == {2}
    _, r = confuse(data, 0, 3, 6)
    assert sorted(zip(r.old.tolist(), r.new.tolist())) == [(0, 3)]*6 + [(3, 0)]*6


@pytest.mark.parametrize('share', [.1, .25, 1.])
def test_shares_are_of_what_can_be_poisoned(share):
    data = images(200)
    assert len(backdoor(data, 2, share)[1]) == round(share*int((data.y != 2).sum())) and len(mislabel(data, share)[1]) == round(200*share)


@pytest.mark.parametrize('call, said', [
    (lambda d: mislabel(d, 0), 'makes 0 to poison'), (lambda d: mislabel(d, -1), 'makes -1 to poison'), (lambda d: mislabel(d, 61), 'at most 60'),
    (lambda d: mislabel(d, 0.), 'above 0 and at most 1'), (lambda d: mislabel(d, float('nan')), 'above 0 and at most 1'),
    (lambda d: backdoor(d, 9, 3), 'No image has the class 9'), (lambda d: backdoor(d, 'z', 3), "Unknown class 'z'"),
    (lambda d: backdoor(d, 1, 3, trigger=Trigger(7)), 'does not fit'), (lambda d: backdoor(d, 1, 3, trigger=Trigger(2, (5, 0))), 'does not fit'),
    (lambda d: confuse(d, 1, 1, 2), 'Both classes are 1'), (lambda d: gaussian_poison(d, 3, -1.), '`eps` is -1.0'), (lambda d: gaussian_poison(d, 3, float('nan')), '`eps` is nan'),
    (lambda d: known(mislabel(d, 5)[1], 1.2), '`gamma` is 1.2'), (lambda d: known(mislabel(d, 5)[1], .05), 'is none'),
    (lambda d: with_trigger(d, mislabel(d, 5)[1]), 'has no trigger'), (lambda d: mislabel(d, 5)[1].part([]), 'forget set is empty')])
def test_impossible_requests(call, said):
    with pytest.raises(ValueError, match=said): call(images())


def test_triggers_at_test_time():
    data = images()
    trigger = Trigger(2, 'top right', (1., 0., 0.))
    shown = with_trigger(data, trigger)
    assert torch.equal(shown.y, data.y) and torch.equal(shown.pixels[shown.ids], trigger.paint(data.pixels[data.ids])) and shown.source != data.source
    assert torch.equal(data.pixels, images().pixels)
    assert [Trigger(2, at).corner(6, 8) for at in ('top left', 'top right', 'bottom left', 'bottom right')] == [(0, 0), (0, 6), (4, 0), (4, 6)]


def test_larger_known_shares_hold_the_smaller():
    _, r = mislabel(images(), 40)
    drawn = [set(known(r, g, 3).tolist()) for g in (.1, .25, .5, .9, 1.)]
    assert all(a < b for a, b in zip(drawn, drawn[1:])) and [len(d) for d in drawn] == [4, 10, 20, 36, 40]


# Stress metrics.

def evidence_of(z, y, part='test', **more):
    parts = {part: (z, y), **more}
    return Evidence({p: np.asarray(z, np.float32) for p, (z, _) in parts.items()}, {p: np.asarray(y) for p, (_, y) in parts.items()},
                    {p: np.arange(len(y)) for p, (_, y) in parts.items()})


def answered(said, y, k=4, part='test'): return evidence_of(5*np.eye(k)[said], y, part)


def check_attack_success():
    rng = np.random.default_rng(0)
    said, y = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
    for target in range(4):
        by_hand = sum(s == target for s, t in zip(said, y) if t != target)/sum(t != target for t in y)
        assert stress.attack_success(answered(said, y), target) == pytest.approx(by_hand)
    assert stress.attack_success(answered([2, 2, 2, 0], [2, 2, 0, 0]), 2) == .5


def check_confusion():
    assert stress.confusion_error(answered([1, 0, 2, 0], [0, 0, 1, 1]), 0, 1) == .5
    assert stress.confusion_error(answered([0, 0, 0, 0], [0, 0, 1, 1]), 0, 1) == .5                      # only 1 → 0
    assert stress.confusion_error(answered([1, 1, 1, 1], [0, 0, 1, 1]), 0, 1) == .5                      # only 0 → 1
    assert stress.confusion_error(answered([2, 3], [0, 1]), 0, 1) == 0.                                  # wrong, but no confusion of the two


def check_canaries():
    ev = answered([1, 1, 0, 3], [1, 1, 1, 1], part='forget')
    got = stress.canaries(ev, [0, 2, 0, 0])
    assert (got.wrong, got.right, got.n) == (.5, .25, 4) and got.low < .5 < got.high
    with pytest.raises(ValueError, match='1 of 4 forget images carry their true label'): stress.canaries(ev, [0, 2, 1, 0])


def check_scores():
    "Standard normal whatever gradients and ε, one by hand, and larger where a linear model has taken in the noise."
    rng = np.random.default_rng(1)
    for eps in (.3, 2.):
        xi, g = eps*rng.normal(size=(3000, 2, 3, 3)), rng.gamma(.5, size=(3000, 2, 3, 3))*rng.gamma(.3, size=(3000, 1, 1, 1))
        assert kstest(stress.gus_scores(xi, g, eps), 'norm').pvalue > .001
    assert stress.gus_scores([[3., 4.]], [[0., 2.]], .5) == pytest.approx([8.])
    remembers, base, xi, eps = linear_memory()
    assert stress.gus(stress.gus_scores(xi, stress.margin_gradients(remembers, base), eps)).z > 4


def linear_memory(p=60, side=8):
    "A linear classifier of two classes, one gradient step long, on images with noise; the clean images; the noise."
    data = Images(torch.full((p, 1, side, side), .5), torch.arange(p) % 2, source='grey', classes=('0', '1'))
    bad, r = gaussian_poison(data, p, .5)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(side*side, 2))
    torch.nn.init.zeros_(model[1].weight); torch.nn.init.zeros_(model[1].bias)
    x, y = bad.batch(torch.arange(p))
    loss = torch.nn.functional.cross_entropy(model(x), y)
    grad, = torch.autograd.grad(loss, model[1].weight)
    with torch.no_grad(): model[1].weight -= 100*grad
    return model, data.take(r.positions), r.noise(), r.eps


class Prototype(torch.nn.Module):
    "A model that is the surer of class 0 the nearer an image is to grey; it has never seen any noise."
    def __init__(self):
        super().__init__()
        self.grey = torch.nn.Parameter(torch.tensor(.5))
    def forward(self, x):
        d = -((x - self.grey)**2).flatten(1).sum(1)
        return torch.stack([d, torch.zeros_like(d)], 1)


def check_clean_gradient():
    "A model that never saw the noise has scores around zero."
    data = images(300, channels=1)
    data = replace(data, labels=torch.zeros_like(data.labels), classes=('a', 'b'))
    r = gaussian_poison(data, 300, .5)[1]
    assert abs(stress.gus(stress.gus_scores(r.noise(), stress.margin_gradients(Prototype(), data.take(r.positions)), r.eps)).z) < 4



MUTANTS = [
    ('attack success counts images of the target class', 'attack_success', '(said[others] == target)', '(said == target)', check_attack_success),
    ('attack success counts any wrong answer', 'attack_success', '(said[others] == target)', '(said[others] != y[others])', check_attack_success),
    ('confusion is counted one way', 'confusion_error', 'of := (y == a) | (y == b)', 'of := (y == a)', check_confusion),
    ('confusion is any wrong answer', 'confusion_error', 'said[of] == a + b - y[of]', 'said[of] != y[of]', check_confusion),
    ('canaries whose wrong label is the right one count', '_wrong', 'if same :=', 'if 0 and', check_canaries),
    ('canaries are answered rightly where they are wrong', 'canaries', '(said == truth).mean()', '(said != ev.labels[part]).mean()', check_canaries),
    ('the score divides by the length of the noise', 'gus_scores', '(eps*length)', '(np.linalg.norm(noise, axis=1)*length/np.sqrt(2*g.shape[1]))', check_scores),
    ('the score divides by the variance', 'gus_scores', '(eps*length)', '(eps**2*length)', check_scores),
    ('the score divides by the squared length', 'gus_scores', '(eps*length)', '(eps*length**2)', check_scores),
    ('the score takes the sum of absolute values', 'gus_scores', 'np.linalg.norm(g, axis=1)', 'np.abs(g).sum(1)', check_scores),
    ('the sign is turned', 'gus_scores', '(noise*g).sum(1)', '-(noise*g).sum(1)', check_scores),
    ('the gradient is that of the loss', 'margin_gradients', 'logsumexp(1)).sum()', 'logsumexp(1)).neg().sum()', check_scores),
    ('the gradient is taken at the noisy image', 'margin_gradients', 'input_gradient(model, x, margins)', 'input_gradient(model, x + _noise(data)[at], margins)', check_clean_gradient)]


@pytest.mark.parametrize('what, name, old, new, check', MUTANTS, ids=[m[0] for m in MUTANTS])
def test_a_mistake_is_noticed(what, name, old, new, check, monkeypatch):
    check()
    text = textwrap.dedent(inspect.getsource(getattr(stress, name)))
    assert text.count(old) == 1, f'write this mutation anew: {what}'
    def _noise(data):                                        # what was added to all 300 of them
        return gaussian_poison(data, len(data), .5)[1].noise()
    space = {**vars(stress), '_noise': _noise}
    exec(text.replace(old, new), space)
    monkeypatch.setattr(stress, name, space[name])
    with pytest.raises((AssertionError, pytest.fail.Exception)): check()


def test_a_trigger_that_moves_no_pixel_is_noticed(monkeypatch):
    monkeypatch.setattr(Trigger, 'paint', lambda self, x: x)
    with pytest.raises(AssertionError): test_exactly_the_recorded_rows_change('backdoor', {})


def test_a_poisoned_original_is_noticed(monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'clone', lambda self: self)
    with pytest.raises(AssertionError): test_exactly_the_recorded_rows_change('mislabel', {})


def test_canary_area_agrees_with_sklearn():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 80), rng.integers(0, 4, 50)
    z = rng.normal(size=(80, 4)), rng.normal(size=(50, 4))
    ev = evidence_of(z[0], y[0], 'forget', val=(z[1], y[1]))
    def odds(z, y):
        p = np.exp(z)/np.exp(z).sum(1, keepdims=True)
        return np.log(p[np.arange(len(y)), y]/(1 - p[np.arange(len(y)), y]))
    got = stress.canary_auc(ev, {'forget': (y[0] + 1) % 4, 'val': (y[1] + 1) % 4})
    assert got == pytest.approx(roc_auc_score(np.r_[np.ones(80), np.zeros(50)], np.r_[odds(z[0], y[0]), odds(z[1], y[1])]), abs=1e-6)


def test_gus_summary():
    rng = np.random.default_rng(0)
    null = [stress.gus(rng.normal(size=100)) for _ in range(500)]
    assert kstest([g.p for g in null], 'uniform').pvalue > .001 and kstest([g.z for g in null], 'norm').pvalue > .001
    assert np.mean([g.tpr for g in null]) == pytest.approx(.01, abs=.002)
    shifted = stress.gus(rng.normal(1, 1, 100_000))
    assert shifted.mean == pytest.approx(1, abs=.02) and shifted.tpr == pytest.approx(norm.sf(norm.isf(.01) - 1), abs=.005)


def test_saturated_networks_have_margin_gradients():
    model, base, xi, eps = linear_memory()
    with torch.no_grad(): model[1].weight.mul_(1e5)
    x, y = base.batch(torch.arange(len(base)))
    g = stress.margin_gradients(model, base, batch_size=7)
    assert (g.flatten(1).norm(dim=1) > 0).all() and len(stress.gus_scores(xi, g, eps)) == len(base)
    x.requires_grad_()
    loss, = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y, reduction='sum'), x)
    assert (loss.flatten(1).norm(dim=1) == 0).any()                                                      # the loss of some has none left
    with pytest.raises(ValueError, match='gradients are zero or not finite'): stress.gus_scores(xi, loss, eps)


def test_stress_metrics_are_not_in_every_report(): assert not {n for n in list_metrics() if n in stress.__all__}


# Stored results.

def test_stored_results_of_photographs():
    folder = ROOT/'results'/'poison'
    rows, note = pd.read_csv(folder/'results.csv'), json.loads((folder/'provenance.json').read_text())
    assert not rows.duplicated(['method', 'gamma']).any() and {'noop', 'gold'} <= set(rows.method) and {1.} < set(rows.gamma)
    assert all(len(g) == rows.method.nunique() for _, g in rows.groupby('gamma'))
    shares = rows[['attack_success', 'test_accuracy', 'triggered_accuracy', 'forget_corrected']]
    assert shares.ge(0).all().all() and shares.le(1).all().all()
    assert (rows.forget + rows.retain == note['images']).all() and (rows.forget == (rows.gamma*note['poisoned']).round()).all()
    assert {f'{m} {g:g}' for m, g in zip(rows.method, rows.gamma)} == set(note['weights'])
    at = rows.set_index(['method', 'gamma'])
    assert at.attack_success['noop'].nunique() == 1 and at.attack_success['noop', 1.] > .9 > .1 > at.attack_success['gold', 1.]
    assert at.attack_success['gold', rows.gamma.min()] > .5                                              # retraining without the few that are known
