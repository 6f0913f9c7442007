"""Known bugs, put back. Each row of MUTATIONS breaks one thing that published code got wrong, and names the check that must notice.

The check passes on the library as it is, and fails on the broken one: a check that cannot fail is no check.
"""
import copy
import math
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lotus_nb.data.core as data_core
import lotus_nb.loop as loop
import lotus_nb.methods.core as methods_core
import lotus_nb.methods.lotus as lotus
import lotus_nb.methods.neggrad as neggrad
import lotus_nb.metrics.accuracy as accuracy
import lotus_nb.metrics.core as metrics_core
import lotus_nb.metrics.divergence as divergence
import lotus_nb.metrics.mia as mia
import lotus_nb.parts as parts
import lotus_nb.train as train
from lotus_nb.core import Batch, changed
from lotus_nb.task import UnlearnTask, student_of

ATTACK = dict(member=np.linspace(0, .2, 50), non_member=np.linspace(.3, .6, 20))


def with_norm(task):
    "The task with a network that holds BatchNorm, so that modes and statistics matter."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    train.train(net, task.retain, train.recipe('digits', epochs=2))
    return UnlearnTask(net, task.forget, task.retain, task.val, task.test, gold=net, name='norm')


# Checks. Each takes the digits task and raises AssertionError, or the library's own error, when something is wrong.

def evaluation_leaves_the_model_alone(task):
    t = with_norm(task)
    model = student_of(t.model).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    metrics_core.evidence(model, t)
    assert not changed(before, model.state_dict()) and model.training


def evaluation_ignores_batch_size_and_mode(task):
    t = with_norm(task)
    one, many = (loop.predict(student_of(t.model).train(), t.loader('forget', train=False, batch_size=b))[0] for b in (1, 40))
    assert torch.allclose(one, many, atol=1e-4)


def evaluation_ignores_augmentation(task):
    noisy = lambda d: replace(d, augment=lambda x: torch.randint_like(x, 256))
    t = UnlearnTask(task.model, noisy(task.forget), noisy(task.retain), task.val, task.test)
    a, b = (metrics_core.evidence(task.model, i) for i in (t, task))
    assert all(np.array_equal(a.logits[p], b.logits[p]) for p in a.parts)


def neggrad_ascends(task):
    model, b = student_of(task.model), next(iter(parts.side_by_side(task.loader('retain'), task.loader('forget'))))
    torch.autograd.backward(neggrad.contrast(model, b, 0.))                  # beta 0: ascent alone
    before = F.cross_entropy(model(b.x[b.forget]), b.y[b.forget])
    with torch.no_grad():
        for p in model.parameters(): p.sub_(.1*p.grad)
    assert F.cross_entropy(model(b.x[b.forget]), b.y[b.forget]) > before


def jsd_is_bounded_and_known(task):
    eye = np.eye(2)
    assert np.allclose(divergence.divergence(eye, eye[::-1]), math.log(2))
    p, q = np.array([[.1, .9]]), np.array([[.9, .1]])
    assert np.allclose(divergence.divergence(p, q), .3680642072)


def jsd_ignores_the_number_of_images(task):
    original, gold = (metrics_core.reference(task, k) for k in ('original', 'gold'))
    twice = lambda e: metrics_core.Evidence(*({p: np.concatenate([a, a]) for p, a in d.items()} for d in (e.logits, e.labels, e.ids)))
    assert np.isclose(divergence.jsd(original, gold), divergence.jsd(twice(original), twice(gold)))


def retain_targets_are_draws(task):
    torch.manual_seed(0)
    z = torch.tensor([[2., 1., 0.]]).expand(20_000, 3)
    assert torch.allclose(lotus.targets(z, torch.zeros(20_000).bool(), 5.).mean(0), z[0].softmax(0), atol=.02)


def accuracies_compare_as_hundredths(task):
    "At .07 against .08, rounded, the authors' float comparison goes on where .57 against .58 stops."
    for low in (.07, .57): assert lotus._gap(low, low + .01, 2)[0] < lotus._gap(low, low + .01, 2)[1]
    for low in (.071, .571): assert lotus._gap(low, low + .002, 2)[0] == lotus._gap(low, low + .002, 2)[1]


def temperature_sees_images_as_they_are(task):
    "A forget accuracy measured through augmentation steers the temperature."
    t = UnlearnTask(task.model, replace(task.forget, augment=lambda x: torch.zeros_like(x)), task.retain, task.val, task.test)
    assert methods_core.solve(t, 'lotus', epochs=1, on_overshoot='sharpen').log[0]['acc_forget'] == parts.share_correct(*loop.predict(t.model, task.loader('forget', train=False)))


def the_best_epoch_is_kept(task):
    net = train.create_model('small_cnn', in_chans=1, seed=0)
    got = train.train(net, task.retain, train.Recipe(25, .15, 64, schedule='constant', patience=3, amp=False), val=task.val)
    kept = parts.share_correct(*loop.predict(got.model, task.loader('val', train=False)))
    assert kept == max(e['val_accuracy'] for e in got.log) > got.log[-1]['val_accuracy']


def members_look_like_members(task):
    assert mia.entropy_attack(target=ATTACK['member'], **ATTACK) > .9 and mia.entropy_attack(target=ATTACK['non_member'], **ATTACK) < .1


def small_sets_weigh_as_much_as_large_ones(task):
    rng = np.random.default_rng(0)
    member, other = rng.normal(1, .2, 20_000), rng.normal(1.4, .2, 500)
    assert abs(mia.entropy_attack(member, other, member) - .841) < .02


def masked_weights_stand_still(task):
    mask = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in task.model.named_parameters()}
    name = next(iter(mask)); mask[name] |= True
    new = methods_core.solve(task, methods_core.masked('finetune', mask), epochs=1, wd=.1)
    moved = [n for n in changed(task.model.state_dict(), new.model.state_dict())]
    assert moved == [name]


def seeds_draw_different_forget_sets(task):
    y = torch.arange(200) % 10
    assert not torch.equal(data_core.draw_stratified(y, .1, 0), data_core.draw_stratified(y, .1, 1))


def accuracy_is_not_rounded(task):
    logits, y = np.eye(3, dtype=np.float32), np.array([0, 1, 0])
    assert accuracy.accuracy(metrics_core.Evidence({'forget': logits}, {'forget': y}, {'forget': np.arange(3)}), 'forget') == 2/3


def every_method_unlearns_its_own_copy(task):
    "The student whose weights the optimiser holds is the one that comes back."
    methods_core.check_method('finetune', task, epochs=1)


def the_teacher_stands_still(task): methods_core.check_method('lotus', with_norm(task), epochs=1)


def distillation_is_a_mean_over_images(task):
    a, b = torch.tensor([[0., 1.], [2., 0.]]), torch.tensor([[1., 0.], [0., 0.]])
    p, q = b.softmax(1), a.softmax(1)
    assert torch.allclose(parts.distill_kl(a, b), (p*(p/q).log()).sum()/2)


# Defects. Each is a context manager that puts one back.

@contextmanager
def _train_mode(model):
    model.train()
    with torch.no_grad(): yield model


def _descend(model, b, beta):
    ce = lambda rows: F.cross_entropy(model(b.x[rows]), b.y[rows])
    return beta*ce(~b.forget) + (1 - beta)*ce(b.forget)


def _reversed(p, q, kind='js', base='nats', log=False): return ORIGINAL_DIVERGENCE(p, q, 'ag', base, log)


def _argmax(teacher, forget, tau, retain_target='sample'): return ORIGINAL_TARGETS(teacher, forget, tau, 'argmax')


def _reference_not_copy(self): self.state = self.loop.model.state_dict()


def _flipped(member, non_member, target): return 1 - ORIGINAL_ATTACK(member, non_member, target)


class _Unbalanced(mia.LogisticRegression):
    def __init__(self, class_weight=None): super().__init__()


def _unrestored(lp, batch, loss):
    "A step that masks gradients only: weight decay moves the rest."
    loss(lp.wrapped, batch).backward()
    for p, may, _ in lp.masked: p.grad.mul_(may)
    lp.opt.step(); lp.opt.zero_grad()
    return torch.zeros(())


def _first_of_each_class(y, frac, seed):
    y = torch.as_tensor(y)
    return torch.cat([(y == c).nonzero()[:, 0][:int(frac*int((y == c).sum()))] for c in y.unique()]).sort()[0]


def _no_op(model, task, **hparams):
    student = student_of(model)                       # trained, and dropped
    opt = parts.sgd(student, .1)
    loop.Loop(student, opt).run(task.loader('retain'), lambda m, b: F.cross_entropy(m(b.x), b.y))
    return model


def _teacher_in_training(self):
    self._task.model.train()
    return self._task.model


def _mean_over_everything(student, teacher, t=1.): return F.kl_div((student/t).log_softmax(1), (teacher/t).softmax(1), reduction='mean')*t**2


ORIGINAL_DIVERGENCE, ORIGINAL_TARGETS, ORIGINAL_ATTACK = divergence.divergence, lotus.targets, mia.entropy_attack
ORIGINAL_LOADER = UnlearnTask.loader
_lotus_method = methods_core.get_method('finetune')

MUTATIONS = [  # what, where it was seen, how it is put back, the check that notices
    ('evaluation in training mode', 'LoTUS harness, unlearn.py', lambda: patch.object(loop, 'evaluating', _train_mode), evaluation_leaves_the_model_alone),
    ('answers that depend on the batch', 'LoTUS harness, eval.py', lambda: patch.object(loop, 'evaluating', _train_mode), evaluation_ignores_batch_size_and_mode),
    ('augmentation while evaluating', 'LoTUS harness, data_utils.py', lambda: patch.object(UnlearnTask, 'loader', lambda self, *p, **k: ORIGINAL_LOADER(self, *p, **{**k, 'train': True})),
     evaluation_ignores_augmentation),
    ('NegGrad+ that descends', 'LoTUS harness, naive_unlearning_class.py', lambda: patch.object(neggrad, 'contrast', _descend), neggrad_ascends),
    ('reversed KL in JS', 'six code bases', lambda: patch.object(divergence, 'divergence', _reversed), jsd_is_bounded_and_known),
    ('JSD divided by N twice', 'LoTUS harness, eval.py', lambda: patch.object(divergence, 'jsd', divergence.jsd_as_published), jsd_ignores_the_number_of_images),
    ('argmax where a draw is meant', 'softmax option of the LoTUS code', lambda: patch.object(lotus, 'targets', _argmax), retain_targets_are_draws),
    ('hundredths compared as floats', 'LoTUS, lotus_class.py', lambda: patch.object(lotus, '_gap', lambda a, v, d: (round(a, d) - round(v, d), -.01 + 1e-17)), accuracies_compare_as_hundredths),
    ('forget accuracy through augmentation', 'LoTUS, lotus_class.py', lambda: patch.dict(methods_core.get_method('lotus').fn.__kwdefaults__, augmented_accuracy=True),
     temperature_sees_images_as_they_are),
    ('best weights kept by reference', 'LoTUS harness, retrain.py', lambda: patch.object(train._Best, 'take', _reference_not_copy), the_best_epoch_is_kept),
    ('attack with its sign turned', 'two families of published attacks', lambda: patch.object(mia, 'entropy_attack', _flipped), members_look_like_members),
    ('attack that follows the larger set', 'unbalanced logistic regression', lambda: patch.object(mia, 'LogisticRegression', _Unbalanced), small_sets_weigh_as_much_as_large_ones),
    ('weight decay on masked weights', 'SalUn before its pull request 33', lambda: patch.object(loop, '_step', _unrestored), masked_weights_stand_still),
    ('one forget set for all seeds', 'LoTUS harness, data_utils.py', lambda: patch.object(data_core, 'draw_stratified', _first_of_each_class), seeds_draw_different_forget_sets),
    ('rounded accuracy', 'LoTUS harness, eval.py', lambda: patch.object(accuracy, 'accuracy', lambda ev, *p: round(2/3, 2)), accuracy_is_not_rounded),
    ('optimiser and returned model differ', 'LoTUS harness, scrub_class.py', lambda: patch.dict(methods_core._registry, finetune=replace(_lotus_method, fn=_named(_no_op, 'finetune'))),
     every_method_unlearns_its_own_copy),
    ('teacher whose BatchNorm drifts', 'LoTUS harness, scrub_class.py', lambda: patch.object(methods_core.TaskView, 'model', property(_teacher_in_training)), the_teacher_stands_still),
    ("torch's mean reduction in distillation", 'Bad Teacher, SSD', lambda: patch.object(parts, 'distill_kl', _mean_over_everything), distillation_is_a_mean_over_images),
]


def _named(fn, name):
    def wrapped(model, task, *, epochs=1, lr=.1, momentum=0., wd=0.): return fn(model, task)
    wrapped.__name__ = name
    return wrapped


@pytest.mark.parametrize('what, seen_in, broken, check', MUTATIONS, ids=[m[0] for m in MUTATIONS])
def test_a_check_notices(what, seen_in, broken, check, task):
    check(task)
    with broken(), pytest.raises((AssertionError, ValueError, RuntimeError)): check(task)
