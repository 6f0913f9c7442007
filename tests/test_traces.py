"Traces read what they should on networks whose answer is known, leave networks as they are, and each known mistake is seen."
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import lotus_nb.metrics.further as further
import lotus_nb.traces as traces
from lotus_nb.core import Batch, digest
from lotus_nb.data.digits import digits
from lotus_nb.metrics.ensembles import likelihood_ratio
from lotus_nb.loop import predict
from lotus_nb.methods.core import solve
from lotus_nb.models import create_model
from lotus_nb.task import UnlearnTask
from lotus_nb.train import digits_task, make_task, recipe


def new_model(seed, norm='group'): return create_model('small_cnn', 10, in_chans=1, seed=seed, norm=norm)


@pytest.fixture(scope='module')
def task(): return digits_task(seed=0, forget=.2, epochs=10)


@pytest.fixture(scope='module')
def wrong():
    "A task whose forget images have labels drawn at random: who has not seen them cannot know them."
    splits, rng = digits(0), np.random.default_rng(0)
    train = splits.train
    at = rng.permutation(len(train))[:60]
    labels = train.labels.clone()
    labels[train.ids[at]] = (labels[train.ids[at]] + torch.as_tensor(rng.integers(1, 10, 60))) % 10
    return make_task(splits._replace(train=replace(train, labels=labels, source='wrong')), at, new_model, recipe('digits', epochs=60), batch_size=64)


# Features.

class Normed(nn.Module):
    "Layers that behave differently in training, and an activation that writes over its input."
    def __init__(self, layers=nn.BatchNorm2d):
        super().__init__()
        self.conv, self.norm, self.drop, self.flat = nn.Conv2d(1, 6, 3), layers(6), nn.Dropout(.5), nn.Flatten()
        self.linear, self.act, self.head = nn.Linear(6*36, 12), nn.ReLU(inplace=True), nn.Linear(12, 10)
    def forward(self, x): return self.head(self.act(self.linear(self.drop(self.flat(self.norm(self.conv(x)))))))


LAYERS = ['norm', 'drop', 'linear', 'head']


def check_features(task, mode=True):
    "Features do not depend on the batch, nothing of the model changes, modes come back, and are what a forward pass in eval mode gives."
    torch.manual_seed(0)
    model = Normed().train(mode)
    model.norm.eval()                                     # a mode of its own, which must come back as well
    modes, before, hooks = [m.training for m in model.modules()], digest(model), [len(m._forward_hooks) for m in model.modules()]
    many, few = (traces.layer_features(model, task.loader('forget', train=False, batch_size=n), LAYERS) for n in (64, 3))
    assert [m.training for m in model.modules()] == modes and digest(model) == before
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    for n in LAYERS: np.testing.assert_allclose(many[n], few[n], atol=1e-5, err_msg=n)
    x = torch.cat([b.x for b in task.loader('forget', train=False)])
    model.eval()
    with torch.no_grad():
        maps = model.norm(model.conv(x)); by_hand = dict(norm=maps.mean((2, 3)), drop=maps.flatten(1), linear=model.linear(maps.flatten(1)))
    for n, v in by_hand.items(): np.testing.assert_allclose(many[n], v.numpy(), atol=1e-5, err_msg=n)


def test_features(task): check_features(task); check_features(task, mode=False)


def test_features_in_train_mode_are_seen(task, monkeypatch):
    def in_training(model, batches):
        model.train()
        got = [(model(b.x), b.y) for b in batches]
        return tuple(map(torch.cat, zip(*got)))
    monkeypatch.setattr(traces, 'predict', in_training)
    with pytest.raises(AssertionError): check_features(task)


def test_kept_without_a_copy_is_seen(task, monkeypatch):
    monkeypatch.setattr(traces, '_pooled', lambda out, n: out.detach().mean((-2, -1)).numpy() if out.dim() == 4 else out.detach().numpy())
    with pytest.raises(AssertionError, match='linear'): check_features(task)


def test_hooks_go_after_an_error(task):
    model = Normed()
    with pytest.raises(ValueError, match='no batches'): traces.layer_features(model, [], LAYERS)
    assert not any(m._forward_hooks for m in model.modules())


def test_tokens_are_averaged():
    class Tokens(nn.Module):
        def __init__(self): super().__init__(); self.part, self.head = nn.Linear(4, 7), nn.Linear(7, 3)
        def forward(self, x): return self.head(self.part(x.flatten(1).view(-1, 5, 4)).mean(1))
    x, model = torch.randn(6, 1, 4, 5), Tokens()
    got = traces.layer_features(model, [Batch(x, torch.zeros(6).long(), torch.zeros(6).bool())])
    assert list(got) == ['part', 'head'] and got['part'].shape == (6, 7)
    np.testing.assert_allclose(model.head(torch.as_tensor(got['part'])).detach(), got['head'], atol=1e-6)


def test_map_style_data_give_the_same(task):
    class Plain(torch.utils.data.Dataset):
        def __init__(self, data): self.data = data
        def __len__(self): return len(self.data)
        def __getitem__(self, i): x, y = self.data.batch(torch.tensor([i]), train=False); return x[0], int(y)
    plain = UnlearnTask(task.model, *(Plain(getattr(task, p)) for p in ('forget', 'retain', 'val', 'test')), task.gold, batch_size=64, twins='keep')
    a, b = (traces.cka_table(task.gold, t, layers='head') for t in (task, plain))
    np.testing.assert_allclose(a, b, atol=1e-6)
    a, b = (traces.relearn(task.gold, t, steps=3, batch_size=16).curves for t in (task, plain))
    np.testing.assert_allclose(a[['loss', 'accuracy']], b[['loss', 'accuracy']], atol=1e-4)


# CKA.

def check_cka(cka):
    "Unrelated features of many units read 0, the same features turned and scaled 1, noise in between; images in another order the same."
    r = np.random.default_rng(0)
    a, b = r.normal(size=(2, 100, 400))
    assert abs(cka(a, b)) < .05
    turn = np.linalg.qr(r.normal(size=(400, 400)))[0]
    np.testing.assert_allclose([cka(a, 3*a @ turn - 1), cka(a @ turn, b), cka(a, b)], [1, cka(a, b), cka(b, a)], atol=1e-9)
    values = [cka(a, a + s*b) for s in (0, .5, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(cka(a, a + b), .5, atol=.03)          # half of the variance is shared: 1/√(1·4)·…


def test_cka(): check_cka(traces.linear_cka)


def test_biased_hsic_is_seen():
    with pytest.raises(AssertionError): check_cka(lambda x, y: traces.linear_cka(x, y, debiased=False))


def test_uncentred_features_are_seen(monkeypatch):
    monkeypatch.setattr(traces, '_centred', lambda x, n: np.asarray(x, float))
    with pytest.raises(AssertionError): check_cka(traces.linear_cka)


def test_debiased_cka_is_unbiased_over_draws():
    r = np.random.default_rng(1)
    draws = np.array([traces.linear_cka(*r.normal(size=(2, 12, 6))) for _ in range(400)])
    assert abs(draws.mean()) < 4*draws.std()/20 and draws.min() < 0
    shared = []
    for _ in range(200):
        z = r.normal(size=(40, 6)); shared.append(traces.linear_cka(z + r.normal(size=(40, 6)), z + r.normal(size=(40, 6))))
    assert abs(np.mean(shared) - .25) < .03                            # by hand: tr(Σxy Σyx)/‖Σxx‖‖Σyy‖ = 6/(6·4)


def test_large_and_tiny_numbers():
    x, y = np.random.default_rng(2).normal(size=(2, 30, 4))
    for s in (1e-150, 1e-20, 1e20, 1e150): np.testing.assert_allclose(traces.linear_cka(s*x, y), traces.linear_cka(x, y), rtol=1e-9)
    with pytest.raises(ValueError, match='1 of 30 rows of `x` are not finite'): traces.linear_cka(np.where(np.arange(30)[:, None] == 3, np.nan, x), y)


def test_cka_table_of_golds(task):
    table = traces.cka_table(task.gold, task, golds=[task.gold, task.model])
    np.testing.assert_allclose(table.gold, 1, atol=1e-9)
    np.testing.assert_allclose(table.ceiling, (1 + 2*table.noop)/3, atol=1e-9)          # three pairs: equal, and twice the original
    np.testing.assert_allclose(table.ceiling_low, table.noop, atol=1e-9)
    assert (table.n == len(task.forget)).all()


# Membership.

def null_areas(n=12):
    "Probes of features that have nothing to do with membership."
    r = np.random.default_rng(0)
    return [traces.probe_membership(r.normal(size=(60, 32)), r.normal(size=(90, 32)), repeats=2) for _ in range(n)]


def check_null(): assert abs(np.mean([p.auc for p in null_areas()]) - .5) < .05


def test_the_null_reads_one_half():
    check_null()
    assert sum(p.low < .5 < p.high for p in null_areas()) >= 11


def test_a_probe_judged_on_its_own_images_is_seen(monkeypatch):
    class Same:
        def __init__(self, n_splits, n_repeats, random_state): self.k = n_splits*n_repeats
        def split(self, x, y): return [(np.arange(len(x)),)*2]*self.k
    monkeypatch.setattr(traces, 'RepeatedStratifiedKFold', Same)
    assert min(p.auc for p in null_areas(3)) > .7
    with pytest.raises(AssertionError): check_null()


def test_naive_intervals_are_seen(monkeypatch):
    "The standard error over folds, as if they shared no images, misses one half far too often."
    monkeypatch.setattr(traces, '_over_folds', lambda v, folds, level: (v.mean() - 1.96*v.std(ddof=1)/len(v)**.5, v.mean() + 1.96*v.std(ddof=1)/len(v)**.5))
    assert sum(p.low < .5 < p.high for p in null_areas()) < 11


def test_probe_of_known_normals():
    r = np.random.default_rng(3)
    a, b = r.normal(size=(300, 4)), r.normal(size=(300, 4))
    a[:, 2] += 1.
    p, q = traces.probe_membership(a, b), traces.probe_membership(b, a)
    assert abs(p.auc - .760) < .04 and abs(p.auc - q.auc) < .02 and p.n == (300, 300) and len(p.areas) == 20     # Φ(1/√2)
    assert traces.probe_membership(a, b, seed=1).auc != p.auc == traces.probe_membership(a, b).auc
    for bad in (dict(folds=1), dict(folds=200)):
        with pytest.raises(ValueError, match='two images for each fold'): traces.probe_membership(a, b, **bad)
    with pytest.raises(ValueError, match='of one layer'): traces.probe_membership(a, b[:, :3])


def test_probe_table_finds_classes_that_are_remembered():
    splits = digits(0)
    two = make_task(splits, torch.isin(splits.train.y, torch.tensor([3, 8])).nonzero()[:, 0], new_model, 'digits', batch_size=64)
    noop, gold = (traces.probe_table(m, two, layers='features', repeats=2).iloc[0] for m in (two.model, two.gold))
    assert noop.difference > .1 and noop.low > 0 and gold.difference == 0 and noop.gold == gold.auc
    assert noop.null_low < .5 < noop.null_high
    assert noop.members == 80 and 200 < noop.unseen <= sum(torch.isin(d.y, torch.tensor([3, 8])).sum() for d in (two.val, two.test))


def test_never_seen_images_have_the_classes_of_the_forgotten_ones():
    r = np.random.default_rng(0)
    y, unseen = np.repeat([1, 4], [30, 10]), r.integers(0, 5, 1000)
    drawn = unseen[traces._in_proportion(y, unseen, 0)]
    assert set(drawn) == {1, 4} and abs((drawn == 1).mean() - .75) < .01


# Relearning.

def check_relearn(task, model):
    "Who never knew random labels cannot relearn the other half of them; who knows them need not."
    got = traces.relearn(model, task, steps=80, lr=.05, batch_size=16)
    assert got.steps()['original'] == 0 and got.steps()['gold'] is None
    s = got.summary()
    assert s.steps['gold'] == '>80' and s['index']['original'] == '0.00' and s['index']['gold'] == '–'


def test_relearning(wrong): check_relearn(wrong, wrong.gold)


def test_relearning_measured_on_its_training_half_is_seen(wrong, monkeypatch):
    halves = traces._halves
    def same(task, size, seed): fit, held = halves(task, size, seed); return fit, replace(held, parts=fit.parts)
    monkeypatch.setattr(traces, '_halves', same)
    with pytest.raises(AssertionError): check_relearn(wrong, wrong.gold)


def test_halves_share_nothing_and_leave_nothing_out(task):
    fit, held = traces._halves(task, 16, 0)
    a, b = (set(l.parts[0][1].tolist()) for l in (fit, held))
    assert not a & b and a | b == set(range(len(task.forget))) and abs(len(a) - len(b)) <= 1 and fit.train and not held.train


def models_of(task):
    frozen = new_model(0)
    for p in frozen.features.parameters(): p.requires_grad_(False)
    return dict(solved=solve(task, 'finetune', epochs=1), frozen=frozen, normed=new_model(1, 'batch').train(), dropping=Normed(nn.BatchNorm2d).eval())


def state(u):
    m = getattr(u, 'model', u)
    return digest(m), [x.training for x in m.modules()], [p.requires_grad for p in m.parameters()], [len(x._forward_hooks) for x in m.modules()], \
        [p.grad for p in m.parameters()], [p.is_contiguous() for p in m.parameters()]


def check_untouched(task):
    models = models_of(task)
    before = {k: state(m) for k, m in [*models.items(), ('original', task.model), ('gold', task.gold)]}
    torch.manual_seed(7); generator = torch.get_rng_state()
    got = traces.relearn(models, task, steps=3, batch_size=16)
    assert torch.equal(generator, torch.get_rng_state())
    assert {k: state(m) for k, m in [*models.items(), ('original', task.model), ('gold', task.gold)]} == before
    assert set(got.curves.model) == {'original', 'gold', *models} and (got.curves.groupby('model').loss.nunique() == 4).all()
    again = traces.relearn(models, task, steps=3, batch_size=16)
    assert got.curves.equals(again.curves) and not got.curves.equals(traces.relearn(models, task, steps=3, batch_size=16, seed=1).curves)


def test_models_stay_as_they_are_and_the_seed_decides(task): check_untouched(task)


def test_training_the_model_itself_is_seen(task, monkeypatch):
    monkeypatch.setattr(traces, 'student_of', lambda m: m)
    with pytest.raises((AssertionError, ValueError, RuntimeError)): check_untouched(task)


def test_one_order_of_images_for_all(task):
    twice = traces.relearn({'a': task.gold, 'b': task.gold}, task, steps=5, batch_size=16).curves
    a, b, gold = (twice[twice.model == k][['step', 'loss', 'accuracy']].values for k in ('a', 'b', 'gold'))
    assert (a == b).all() and (a == gold).all()


def test_first_point_is_what_the_model_answers(task):
    fit, held = traces._halves(task, 16, 0)
    z, y = predict(task.gold, held)
    first = traces.relearn_curve(task.gold, fit, held, steps=1).iloc[0]
    assert first.step == 0 and abs(first.accuracy - (z.argmax(1) == y).float().mean().item()) < 1e-6
    assert abs(first.loss - nn.functional.cross_entropy(z, y).item()) < 1e-6


def test_bad_requests(task):
    with pytest.raises(ValueError, match='`steps` 0'): traces.relearn(task.model, task, steps=0)
    with pytest.raises(ValueError, match='Traces mean nothing without it'): traces.relearn(task.model, replace(task, gold=None))
    few = replace(task, forget=task.forget.take(torch.arange(3)))
    with pytest.raises(ValueError, match='There are 3 forget images'): traces.relearn(task.model, few)
    with pytest.raises(FloatingPointError, match='Lower the learning rate'): traces.relearn(task.model, task, lr=1e30, steps=20)


# Further.

def check_by_seed(by_seed):
    assert np.allclose(by_seed([[.604, .5, 1, 1], [.396, .5, 1, 1]], [[.5]*2 + [1]*2]*2), [.026, .026], atol=1e-12)


def test_gaps_by_seed(): check_by_seed(further.avg_gap_by_seed)


def test_rounding_and_averaging_first_is_seen():
    with pytest.raises(AssertionError): check_by_seed(lambda a, b: np.abs(np.round(a, 2) - np.round(b, 2)).mean(1))
    with pytest.raises(AssertionError): check_by_seed(lambda a, b: np.full(2, further.avg_gap_as_published(a, b)))
    with pytest.raises(AssertionError): check_by_seed(lambda a, b: np.full(2, np.abs(np.mean(a, 0) - np.mean(b, 0)).mean()))


def test_kernels_attack_as_normals_do_where_these_are_right():
    r = np.random.default_rng(0)
    side = (np.arange(96)[:, None] % 2).repeat(150, 1)
    shifted = r.normal(size=(96, 150))*r.uniform(.2, 5, 150) + side*r.uniform(.2, 5, 150)
    for phi, low, high in ((shifted, .6, .9), (r.normal(size=(96, 150)), .47, .53)):
        a, b = (likelihood_ratio(phi, side, density=d).auc() for d in ('normal', 'kernel'))
        assert low < b < high and abs(a - b) < .03
    two = np.where(side == 1, np.where(r.random((96, 150)) < .5, -3., 3.), 0) + r.normal(0, .5, (96, 150))   # two humps around one mean
    assert likelihood_ratio(two, side, density='kernel').auc() > .95
    low, high = likelihood_ratio(shifted, side, density='kernel').interval(blocks=4)
    assert low < high < 1
    with pytest.raises(ValueError, match="Did you mean 'kernel'"): likelihood_ratio(two, side, density='kernels')
