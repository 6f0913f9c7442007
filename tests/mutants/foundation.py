"Mutants of the engine, the metrics and the first methods."
import copy
import math
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
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
import lotus_nb.task as task_module
import lotus_nb.train as train
from lotus_nb.core import changed
from lotus_nb.task import UnlearnTask, student_of
from mutants.common import default, refused, rewritten, swapped

ATTACK = dict(member=np.linspace(0, .2, 50), non_member=np.linspace(.3, .6, 20))


@lru_cache(1)
def with_norm():
    "A task whose network holds BatchNorm over maps, so that modes and statistics matter even for a single image."
    digits = train.digits(0)
    forget, retain = data_core.split_forget(digits.train, .1, 0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
    train.train(net, retain, train.recipe('digits', epochs=3))
    return UnlearnTask(net, forget, retain, digits.val, digits.test, gold=net, name='norm')


# Checks. Each takes the digits task and raises AssertionError, or the library's own error, when something is wrong.

def evaluation_leaves_the_model_alone(_):
    t = with_norm()
    model = student_of(t.model).train()
    before = copy.deepcopy(model.state_dict())
    metrics_core.evidence(model, t)
    assert not changed(before, model.state_dict()), 'weights or buffers moved'
    assert model.training, 'the mode was not given back'


def evaluation_ignores_batch_size_and_mode(_):
    t = with_norm()
    one, many = (loop.predict(student_of(t.model).train(), t.loader('forget', train=False, batch_size=b))[0] for b in (1, 40))
    assert torch.allclose(one, many, atol=1e-4)


def evaluation_ignores_augmentation(task):
    noisy = lambda d: replace(d, augment=lambda x: torch.randint_like(x, 256))
    t = UnlearnTask(task.model, noisy(task.forget), noisy(task.retain), task.val, task.test)
    a, b = (metrics_core.evidence(task.model, i) for i in (t, task))
    assert all(np.array_equal(a.logits[p], b.logits[p]) for p in a.parts)


def neggrad_ascends(task, contrast=None):
    model, b = student_of(task.model), next(iter(parts.join_batches(task.loader('retain'), task.loader('forget'))))
    torch.autograd.backward((contrast or neggrad.contrast)(model, b, 0.))                  # beta 0: ascent alone
    before = F.cross_entropy(model(b.x[b.forget]), b.y[b.forget])
    with torch.no_grad():
        for p in model.parameters(): p.sub_(.1*p.grad)
    assert F.cross_entropy(model(b.x[b.forget]), b.y[b.forget]) > before


def jsd_is_bounded_and_known(_):
    eye = np.eye(2)
    with np.errstate(all='ignore'): assert np.allclose(divergence.divergence(eye, eye[::-1]), math.log(2))
    p, q = np.array([[.1, .9]]), np.array([[.9, .1]])
    assert np.allclose(divergence.divergence(p, q), .3680642072)


def _probabilities(ev, part): return np.exp(ev.log_probs(part))


def jsd_ignores_the_number_of_images(task):
    original, gold = (metrics_core.reference(task, k) for k in ('original', 'gold'))
    twice = lambda e: metrics_core.Evidence(*({p: np.concatenate([a, a + far]) for p, a in d.items()} for d, far in ((e.logits, 0), (e.labels, 0), (e.ids, 10**6))))
    assert np.isclose(divergence.jsd(original, gold), divergence.jsd(twice(original), twice(gold)))


def rf_jsd_is_the_mean_over_classes(task):
    "Against SciPy, which gives the root."
    gold, original = (metrics_core.reference(task, k) for k in ('gold', 'original'))
    means = [[_probabilities(e, p)[e.labels[p] == c].mean(0) for c in np.unique(gold.labels['forget'])] for e, p in ((gold, 'forget'), (original, 'test'))]
    assert np.isclose(divergence.rf_jsd(gold, original), np.mean([jensenshannon(p, q)**2 for p, q in zip(*means)]))


def zrf_is_the_mean_over_images(task):
    gold, random = (metrics_core.reference(task, k) for k in ('gold', 'random'))
    js = [jensenshannon(p, q, base=2)**2 for p, q in zip(*(_probabilities(e, 'forget') for e in (gold, random)))]
    assert np.isclose(divergence.zrf(gold, random), 1 - np.mean(js))


def retain_targets_are_draws(_):
    torch.manual_seed(0)
    z = torch.tensor([[2., 1., 0.]]).expand(20_000, 3)
    assert torch.allclose(lotus.targets(z, torch.zeros(20_000).bool(), 5.).mean(0), z[0].softmax(0), atol=.02)


def a_hundredth_less_stops_wherever_it_lies(task):
    "LoTUS stops below the target: at .07 for .08 as well as at .57 for .58, though .07 - .08 > -.01 in floating point."
    for forget, val, stops in ((.57, .58, True), (.08, .07, False), (.571, .573, False), (.07, .08, True)):
        with patch.object(lotus, 'share_correct', side_effect=[val, forget]): new = methods_core.solve(task, 'lotus', epochs=1, decimals=2)
        assert (not new.log) == stops, (forget, val)


def _first_pass(t): return methods_core.solve(t, 'lotus', epochs=1, on_overshoot='sharpen').log[0]


def _share(t, part): return parts.share_correct(*loop.predict(t.model, t.loader(part, train=False)))


def temperature_sees_images_as_they_are(task):
    "A forget accuracy measured through augmentation steers the temperature."
    t = UnlearnTask(task.model, replace(task.forget, augment=torch.zeros_like), task.retain, task.val, task.test)
    assert _first_pass(t)['acc_forget'] == _share(task, 'forget')


def temperature_sees_whole_accuracies(task):
    "The target, of 400 images, counts in steps of .0025."
    held_out = task.val.take(range(397))
    t = UnlearnTask(task.model, task.forget, task.retain, held_out, task.test)
    assert _first_pass(t)['acc_val'] == _share(t, 'val') != round(_share(t, 'val'), 2)


def the_best_epoch_is_kept(task):
    "Accuracies are dictated, so that the second epoch is the best and the fourth the last, on any machine."
    net, seen = train.create_model('small_cnn', in_chans=1, seed=0), []
    def told(*_): seen.append(copy.deepcopy(net.state_dict())); return [.5, .9, .6, .7][len(seen) - 1]
    with patch.object(train, 'share_correct', told): train.train(net, task.retain, train.Recipe(9, .05, 64, patience=2, amp=False), val=task.val)
    assert len(seen) == 4 and not changed(seen[1], net.state_dict())


def members_look_like_members(_):
    assert mia.entropy_attack(target=ATTACK['member'], **ATTACK) > .9 and mia.entropy_attack(target=ATTACK['non_member'], **ATTACK) < .1


def small_sets_weigh_as_much_as_large_ones(_):
    rng = np.random.default_rng(0)
    member, other = rng.normal(1, .2, 20_000), rng.normal(1.4, .2, 500)
    assert abs(mia.entropy_attack(member, other, member) - .841) < .02


def gaps_are_of_whole_accuracies(task):
    new, gold = (metrics_core.reference(task, k) for k in ('original', 'gold'))
    right = lambda e, p: np.mean(e.logits[p].argmax(1) == e.labels[p])
    gaps = [abs(mia.mia_entropy(new) - mia.mia_entropy(gold)), *(abs(right(new, p) - right(gold, p)) for p in ('forget', 'retain', 'test'))]
    assert mia.avg_gap(new, gold) == pytest.approx(np.mean(gaps), abs=1e-12)


def masked_weights_stand_still(task):
    mask = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in task.model.named_parameters()}
    name = next(iter(mask)); mask[name] |= True
    new = methods_core.solve(task, methods_core.masked('finetune', mask), epochs=1, wd=.1)
    assert changed(task.model.state_dict(), new.model.state_dict()) == [name]


def seeds_draw_different_forget_sets(task):
    drawn = [data_core.split_forget(task.retain, .1, seed)[0].ids for seed in (0, 1)]
    assert len(drawn[0]) == len(drawn[1]) == 36 and not torch.equal(*drawn)


def batches_mix_forget_and_retain(task):
    torch.manual_seed(0)
    assert all(0 < int(b.forget.sum()) < len(b.y) for b in task.loader('forget', 'retain', batch_size=100))


def seconds_are_seconds(task):
    def pause(model, task): time.sleep(.2); return model
    assert .2 <= methods_core.solve(task, pause).seconds < 5


def every_method_unlearns_its_own_copy(task):
    "The student whose weights the optimiser holds is the one that learns, and the one that comes back."
    methods_core.check_method('finetune', task, epochs=1)


def the_teacher_stands_still(_): methods_core.check_method('lotus', replace(with_norm()), epochs=1)      # a teacher of its own


def gold_never_sees_the_forgotten(_): train.digits_task(seed=0, epochs=1)


def copies_of_forgotten_images_are_found(task):
    d = task.forget
    again = data_core.Images(torch.cat([d.pixels, d.pixels[d.ids[:3]]]), torch.cat([d.labels, d.labels[d.ids[:3]]]), mean=d.mean, std=d.std)
    forget, retain = again.take(d.ids.tolist()), again.take([*task.retain.ids.tolist(), *range(len(d.pixels), len(d.pixels) + 3)])
    refused(lambda: UnlearnTask(task.model, forget, retain), '3 forget images stand in the retain set as well')


def no_method_sees_what_judges_it(task):
    def peeks(model, task): task.test; return model
    refused(lambda: methods_core.solve(task, peeks), 'for judging')


def distillation_is_a_mean_over_images(_):
    a, b = torch.tensor([[0., 1.], [2., 0.]]), torch.tensor([[1., 0.], [0., 0.]])
    p, q = b.softmax(1), a.softmax(1)
    assert torch.allclose(parts.distill_kl(a, b), (p*(p/q).log()).sum()/2)


def method_becomes(fn):
    "The library's finetuning, with another body."
    def broken():
        def finetune(model, task, *, epochs=1): return fn(model, task)
        return patch.dict(methods_core._registry, finetune=replace(methods_core.get_method('finetune'), fn=finetune, recipes={}))
    return broken


@contextmanager
def _train_mode(model):
    model.train()
    with torch.no_grad(): yield model


def _ce(other=None): return lambda m, b: F.cross_entropy((other or m)(b.x), b.y)


def _drops_its_student(model, task):
    student = student_of(model)
    loop.Loop(student, parts.sgd(student, .1)).run(task.loader('retain'), _ce())
    return model


def _loss_of_another_copy(model, task):
    loop.Loop(model, parts.sgd(model, .1)).run(task.loader('retain'), _ce(student_of(model)))
    return model


def _optimiser_of_another_copy(model, task):
    student = student_of(model)
    loop.Loop(student, parts.sgd(model, .1)).run(task.loader('retain'), _ce())
    return student


class _Unbalanced(mia.LogisticRegression):
    def __init__(self, class_weight=None): super().__init__()


def _first_of_each_class(y, frac, seed):
    y = torch.as_tensor(y)
    rows = torch.cat([(y == c).nonzero()[:, 0][:math.ceil(frac*int((y == c).sum()))] for c in y.unique()])
    return rows[:round(frac*len(y))].sort()[0]


def _teacher_in_training(view):
    view._task.model.train()
    return view._task.model


def _overlapping(data, forget, seed): return data_core.split_forget(data, forget, seed)[0], data


BATCH, CHUNKS, ATTACKS, TARGETS, ACCURACY = (data_core.Images.batch, task_module._chunks, mia.entropy_attack, lotus.targets, accuracy.accuracy)
SPARTALIS = 'Spartalis et al. code'

MUTATIONS = [  # what; where it was seen; how it is put back; the check that notices; the library's own words, where its guard answers first
    ('evaluation in training mode', f'{SPARTALIS}, unlearn.py', swapped(loop, 'evaluating', _train_mode), evaluation_leaves_the_model_alone, None),
    ('evaluation in training mode, seen by the guard', f'{SPARTALIS}, unlearn.py', lambda: rewritten(loop, '_in_eval', 'model.eval()', 'model.train()'),
     evaluation_leaves_the_model_alone, 'Evaluating changed'),
    ('answers that depend on the batch', f'{SPARTALIS}, collect_prob', swapped(loop, 'evaluating', _train_mode), evaluation_ignores_batch_size_and_mode, None),
    ('augmentation while evaluating', f'{SPARTALIS}, on forget and retain images', swapped(data_core.Images, 'batch', lambda d, i, train=False: BATCH(d, i, True)),
     evaluation_ignores_augmentation, None),
    ('NegGrad+ that descends', f'{SPARTALIS}, naive_unlearning_class.py', lambda: rewritten(neggrad, 'contrast', '- (1 - beta)', '+ (1 - beta)'),
     neggrad_ascends, None),
    ('reversed KL in JS', f'Bad Teacher, SSD, JiT, SUPREME, {SPARTALIS}', lambda: rewritten(divergence, 'divergence', '(_expect(p, p - m) + _expect(q, q - m))/2',
                                                              '(_expect(m, m - p) + _expect(m, m - q))/2'), jsd_is_bounded_and_known, None),
    ('JSD divided by N twice', f'{SPARTALIS}, JSDiv', swapped(divergence, 'jsd', divergence.jsd_as_published), jsd_ignores_the_number_of_images, None),
    ('RF-JSD divided by the classes twice', f'{SPARTALIS}, JSDiv', swapped(divergence, 'rf_jsd', divergence.rf_jsd_as_published),
     rf_jsd_is_the_mean_over_classes, None),
    ("ZRF with torch's mean reduction", 'Bad Teacher, SSD', swapped(divergence, 'zrf', divergence.zrf_as_published), zrf_is_the_mean_over_images, None),
    ('argmax where a draw is meant', f"the softmax option of {SPARTALIS}", swapped(lotus, 'targets', lambda z, f, tau, _='': TARGETS(z, f, tau, 'argmax')),
     retain_targets_are_draws, None),
    ('hundredths compared as floats', f'LoTUS in {SPARTALIS}',
     lambda: rewritten(lotus, 'lotus', 'acc_forget < target and', 'acc_forget - target <= -.01 and'), a_hundredth_less_stops_wherever_it_lies, None),
    ('forget accuracy through augmentation', f'LoTUS in {SPARTALIS}', default('lotus', augmented_accuracy=True),
     temperature_sees_images_as_they_are, None),
    ('temperature from rounded accuracies', f'LoTUS in {SPARTALIS}', default('lotus', decimals=2), temperature_sees_whole_accuracies, None),
    ('best weights kept by reference', f'{SPARTALIS}, retrain.py',
     swapped(train._Best, 'take', lambda best: setattr(best, 'state', best.loop.model.state_dict())), the_best_epoch_is_kept, None),
    ('attack with its sign turned', 'two families of published attacks, of opposite signs',
     swapped(mia, 'entropy_attack', lambda *a, **k: 1 - ATTACKS(*a, **k)), members_look_like_members, None),
    ('attack that follows the larger set', 'unbalanced logistic regression', swapped(mia, 'LogisticRegression', _Unbalanced),
     small_sets_weigh_as_much_as_large_ones, None),
    ('accuracies rounded before their gaps', SPARTALIS, swapped(mia, 'accuracy', lambda ev, *p: round(ACCURACY(ev, *p), 2)),
     gaps_are_of_whole_accuracies, None),
    ('weight decay on masked weights', 'SalUn before its pull request 33',
     lambda: rewritten(loop, '_step', 'loop.restore()', 'pass'), masked_weights_stand_still, None),
    ('one forget set for all seeds', f'{SPARTALIS}, _split_data_forget_retain', swapped(data_core, 'draw_stratified', _first_of_each_class),
     seeds_draw_different_forget_sets, None),
    ('all forget batches, then all others', f'Bad Teacher in {SPARTALIS}', swapped(task_module, '_chunks', lambda n, size, _: CHUNKS(n, size, False)),
     batches_mix_forget_and_retain, None),
    ('minutes among seconds', f'SalUn and Bad Teacher in {SPARTALIS}', lambda: rewritten(methods_core, 'solve', 'run.seconds, peak()', 'run.seconds/60, peak()'),
     seconds_are_seconds, None),
    ('student trained and dropped', f'a variant of {SPARTALIS}, scrub_class.py', method_becomes(_drops_its_student), every_method_unlearns_its_own_copy,
     'no weight of the returned model differs'),
    ('loss of one copy, optimiser of another', f'{SPARTALIS}, scrub_class.py', method_becomes(_loss_of_another_copy), every_method_unlearns_its_own_copy,
     'The loss left no gradient'),
    ('optimiser over another copy', f'a variant of {SPARTALIS}, scrub_class.py', method_becomes(_optimiser_of_another_copy), every_method_unlearns_its_own_copy,
     "holds none of the model's parameters"),
    ('teacher whose BatchNorm drifts', f'{SPARTALIS}, scrub_class.py', swapped(methods_core.TaskView, 'model', property(_teacher_in_training)),
     the_teacher_stands_still, 'it changed the original model'),
    ('images both forgotten and kept', 'a split that overlaps', swapped(train, 'split_forget', _overlapping),
     gold_never_sees_the_forgotten, 'Forget and retain share'),
    ('copies under other names', 'MUFAC before its cleaning', swapped(task_module, 'twins', lambda a, b: []),
     copies_of_forgotten_images_are_found, None),
    ('methods that read the test images', 'a strength chosen by an Avg Gap that holds test accuracy',
     swapped(methods_core.TaskView, '__getattr__', lambda v, k: getattr(v._task, k)),
     no_method_sees_what_judges_it, None),
    ("torch's mean reduction in distillation", 'Bad Teacher, SSD',
     lambda: rewritten(parts, 'distill_kl', '.sum(1).mean()', '.mean()'), distillation_is_a_mean_over_images, None),
]
