"Mutants of finetuning, NegGrad+, AMUN and the controls."
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional as F

import lotus_nb.methods.amun as amun
import lotus_nb.methods.core as methods_core
import lotus_nb.methods.finetune as finetune
import lotus_nb.methods.neggrad as neggrad
import lotus_nb.methods.retrain as retrain
import lotus_nb.train as train
from lotus_nb.core import changed
from lotus_nb.loop import predict
from lotus_nb.task import UnlearnTask, student_of
from mutants.common import default, rewritten, swapped

ONE_STEP = dict(epochs=1, batch_size=400, amp=False)       # all 400 digits in it


def _weights(task, method, **kwargs): return methods_core.solve(task, method, **kwargs).model.state_dict()


def _forget_loss(model, task):
    z, y = predict(model, task.loader('forget', train=False))
    return F.cross_entropy(z, y).item()


# Checks. Each takes the digits task and raises AssertionError, or the library's own error, when something is wrong.

def retraining_knows_nothing_of_the_original(task):
    other = UnlearnTask(train.create_model('small_cnn', 10, in_chans=1, seed=9), task.forget, task.retain)
    assert not changed(*(_weights(t, 'retrain', recipe='digits', epochs=1) for t in (task, other)))


def retraining_knows_nothing_of_the_forgotten(task):
    inverted = replace(task.forget, pixels=255 - task.forget.pixels, source='inverted')
    other = UnlearnTask(task.model, inverted, task.retain, batch_size=task.batch_size)
    assert not changed(*(_weights(t, 'retrain', recipe='digits', epochs=1) for t in (task, other)))


def retraining_follows_its_schedule(task):
    "Two epochs of one step, at half the rate and at none: one step at half the rate."
    plain = dict(batch_size=400, amp=False, opt='sgd', momentum=0., wd=0., warmup=0)
    falling, once = (_weights(task, 'retrain', **plain, **h) for h in (dict(epochs=2, lr=.1, schedule='linear'), dict(epochs=1, lr=.05, schedule='constant')))
    assert all(torch.allclose(falling[k], once[k], atol=1e-6) for k in once)


def neggrad_forgets(task):
    "The forget loss of a network that has memorised its images rises."
    new = methods_core.solve(task, 'neggrad', beta=.8, lr=.05, epochs=10)
    assert _forget_loss(new.model, task) > _forget_loss(task.model, task)


def neggrad_takes_one_step_for_both(task):
    new = methods_core.solve(task, 'neggrad', **ONE_STEP)
    assert (new.cost['steps'], new.cost['seen_forget'], new.cost['seen_retain']) == (1, 40, 360)


def neggrad_steps_along_the_difference(task):
    "β·∇CE(retain) − (1 − β)·∇CE(forget), computed by hand."
    model, new = student_of(task.model), methods_core.solve(task, 'neggrad', **ONE_STEP, beta=.7, lr=.05).model

    def grads(part):
        b = next(iter(task.loader(part, train=False, batch_size=400)))
        return torch.autograd.grad(F.cross_entropy(model(b.x), b.y), list(model.parameters()))
    for p, q, r, f in zip(new.parameters(), model.parameters(), grads('retain'), grads('forget')):
        assert torch.allclose(p, q - .05*(.7*r - .3*f), atol=1e-6)


def adversarial_images_fool_the_original(task):
    made = amun.adversarial_set(task)
    said = task.model(made.batch(torch.arange(len(made)))[0]).argmax(1)
    assert len(made) == len(task.forget) and (made.y != task.forget.y).all() and torch.equal(said, made.y)


def images_that_could_not_be_moved_are_left_out(task):
    "With a radius of 1.28 at most, some images stay right; they are no adversarial examples."
    with patch.object(amun, '_DOUBLINGS', 5): made = amun.adversarial_set(task)
    kept = task.forget.y[made.ids]
    said = task.model(made.batch(torch.arange(len(made)))[0]).argmax(1)
    assert 0 < len(made) < len(task.forget) and (said != kept).all()


def certain_networks_can_be_attacked(_):
    "Margins of 60: cross-entropy has gradient 0 in float32."
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad(): net.weight.copy_(torch.tensor([[60., 0.], [0., 60.]]))
    x, y = torch.tensor([[1.1, -.1]]), torch.tensor([0])
    adv, label, _ = amun.nearest_wrong(net, x, y)
    assert label == 1 and (adv - x).norm() <= 1.2*1.2/2**.5 + 1e-4


def the_nearest_is_taken(_):
    "Straight across the boundary of a linear model."
    torch.manual_seed(0)
    net, x = nn.Linear(20, 2), 3*torch.randn(100, 20)
    y, (w, v), b = net(x).argmax(1), net.weight.detach(), net.bias.detach()
    exact = (x @ (w - v) + b[0] - b[1]).abs()/(w - v).norm()
    found = (amun.nearest_wrong(net, x, y, eps=1e-3)[0] - x).norm(dim=1)
    assert (found >= exact*(1 - 1e-4)).all() and (found <= 1.2*exact + 1e-4).all()


def finetuning_renews_the_statistics(task):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    new = methods_core.solve(UnlearnTask(net, task.forget, task.retain), 'finetune', epochs=1).model
    assert {'1.running_mean', '1.running_var'} <= set(changed(net.state_dict(), new.state_dict()))


def finetuning_is_free_to_move(task):
    "The published penalty holds the weights where they were."
    far = lambda **h: finetune.squared_distance(methods_core.solve(task, 'finetune', epochs=2, lr=.01, **h).model, task.model).item()
    assert far() > 1.5*far(l2_to_init=10.)


def a_no_op_is_no_method(task):
    try: methods_core.check_method('noop', task)
    except ValueError as e: assert 'no weight of the returned model differs' in str(e), e
    else: raise AssertionError('a model that was not changed passes for unlearned')


def _top_layers_reset(model, seed):
    new = student_of(model)
    for layer in new.children():
        if hasattr(layer, 'reset_parameters'): layer.reset_parameters()
    return new


def _alternating(): return rewritten(
    neggrad, 'neggrad', "loop.run(join_batches(task.loader('retain'), task.loader('forget')), lambda m, b: contrast(m, b, beta))",
    "[loop.run(task.loader(p), lambda m, b: s*F.cross_entropy(m(b.x), b.y)) for p, s in (('forget', beta - 1), ('retain', beta))]")


@contextmanager
def _cross_entropy():
    with patch.object(amun, 'log_odds', lambda z, y: F.cross_entropy(z, y, reduction='sum')): yield


SPARTALIS = 'Spartalis et al. code'

MUTATIONS = [  # what; where it was seen; how it is put back; the check that notices; the library's own words, where its guard answers first
    ("retraining from the original's weights", 'imagined: the new model forgotten',
     lambda: rewritten(retrain, 'retrain', 'reinit(model, None)', 'model'), retraining_knows_nothing_of_the_original, None),
    ('retraining that resets the top of the network only', 'SSD, forget_random_strategies.py', swapped(retrain, 'reinit', _top_layers_reset),
     retraining_knows_nothing_of_the_original, None),
    ('retraining on the forget images as well', 'imagined: a loader of the whole training set',
     lambda: rewritten(retrain, 'retrain', "task.loader('retain')", "task._task.loader('forget', 'retain', batch_size=task.batch_size)"),
     retraining_knows_nothing_of_the_forgotten, None),
    ('retraining without its schedule', 'imagined: a scheduler built and not passed on', lambda: rewritten(retrain, 'retrain', ', sched=sched', ''),
     retraining_follows_its_schedule, None),
    ('NegGrad+ as published by default', f'{SPARTALIS}, naive_unlearning_class.py', default('neggrad', as_published=True), neggrad_forgets, None),
    ('NegGrad+ in alternating passes', f'{SPARTALIS}, naive_unlearning_class.py', _alternating, neggrad_takes_one_step_for_both, None),
    ('NegGrad+ without the weight of its ascent', "MUFAC's loss at the paper's learning rate",
     lambda: rewritten(neggrad, 'contrast', 'beta*ce(~b.forget) - (1 - beta)*ce(b.forget)', 'ce(~b.forget) - ce(b.forget)'),
     neggrad_steps_along_the_difference, None),
    ('adversarial examples under their true labels', 'imagined: the labels of adversarial training',
     lambda: rewritten(amun, 'adversarial_set', '= adv, label, label != b.y', '= adv, b.y, label != b.y'), adversarial_images_fool_the_original, None),
    ('adversarial examples that fool nobody', 'a copy of AMUN with one fixed radius, which keeps its failures',
     lambda: rewritten(amun, 'adversarial_set', 'label != b.y', 'torch.ones_like(b.y)'), images_that_could_not_be_moved_are_left_out, None),
    ('steps beyond the radius', 'imagined: an ascent without its projection', lambda: rewritten(amun, 'nearest_wrong', 'r/10*grad', '9*r*grad'), the_nearest_is_taken, None),
    ('an attack that follows cross-entropy', 'Ali-E/AMUN, pgdl2_modified.py', _cross_entropy, certain_networks_can_be_attacked, None),
    ('finetuning in eval mode', 'MUFAC notebook, after an evaluation; SCRUB, small-scale notebook', default('finetune', frozen_norm=True),
     finetuning_renews_the_statistics, None),
    ('finetuning held at the original', 'SCRUB, small-scale notebook', default('finetune', l2_to_init=10.), finetuning_is_free_to_move, None),
    ('an unchanged model that passes', f'SCRUB in {SPARTALIS}: a row of its tables is a no-op',
     lambda: rewritten(methods_core, 'check_method', "if not set(changed(start, state)) & {n for n, _ in first.model.named_parameters()}:", 'if False:'),
     a_no_op_is_no_method, None),
]
