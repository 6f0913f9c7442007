"Mutants of the methods that reset, turn or shrink weights, and of the one that erases a class from the answers."
from contextlib import contextmanager
from functools import lru_cache
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional as F

import lotus_nb.loop as loop
import lotus_nb.methods.core as methods_core
import lotus_nb.methods.ct as ct
import lotus_nb.methods.delete as delete
import lotus_nb.methods.l1_sparse as l1_sparse
import lotus_nb.methods.msg as msg
import lotus_nb.methods.no_t as no_t
import lotus_nb.task as task_module
from lotus_nb.core import changed, seeded
from lotus_nb.models import create_model
from lotus_nb.task import UnlearnTask, student_of
from mutants.common import default, refused, rewritten, swapped


def before_training(task, method, **hparams):
    "Weights of the original, and those with which a method starts to finetune."
    with patch.object(loop.Loop, 'run', lambda self, *a, **k: self.log.append({})):
        return task.model.state_dict(), methods_core.solve(task, method, epochs=1, **hparams).model.state_dict()


def same_weights(a, b): return all(torch.allclose(p, q, atol=1e-4) for p, q in zip(a.parameters(), b.parameters()))


def trained_by_hand(task, loader, loss, epochs, lr, wd):
    "Plain torch, from the original: SGD with momentum on `loss` of model, batch and epoch."
    with seeded(0):
        model = student_of(task.model).train()
        opt = torch.optim.SGD(model.parameters(), lr, momentum=.9, weight_decay=wd)
        for e in range(epochs):
            for b in loader():
                opt.zero_grad(); loss(model, b, e).backward(); opt.step()
    return model


# Checks. Each takes the digits task and raises AssertionError when something is wrong.

def the_penalty_falls_by_equal_steps(task):
    new = methods_core.solve(task, 'l1_sparse', epochs=4, alpha=4e-3, batch_size=180)
    assert torch.allclose(torch.tensor([e['strength'] for e in new.log]), torch.tensor([4e-3, 3e-3, 2e-3, 1e-3]))


def l1_sparse_is_the_method_by_hand(task):
    new = methods_core.solve(task, 'l1_sparse', epochs=3, alpha=5e-3, batch_size=64, amp=False)
    loss = lambda m, b, e: F.cross_entropy(m(b.x), b.y) + 5e-3*(3 - e)/3*sum(w.abs().sum() for w in m.parameters())
    assert same_weights(new.model, trained_by_hand(task, lambda: task.loader('retain', batch_size=64), loss, 3, 1e-2, 5e-4))


def the_penalty_pulls_all_weights_alike(_):
    net = nn.Linear(2, 1)
    with torch.no_grad(): net.weight.copy_(torch.tensor([[-3., .5]])); net.bias.fill_(2.)
    l1_sparse.l1_norm(net).backward()
    assert net.weight.grad.tolist() == [[-1., 1.]] and net.bias.grad is not None and net.bias.grad.tolist() == [1.]


def not_turns_the_first_layer_and_no_other(task):
    start, new = before_training(task, 'no_t')
    assert changed(start, new) == ['features.0.weight'] and torch.equal(new['features.0.weight'], -start['features.0.weight'])


def not_turns_what_the_layer_computes(_):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.randn(2, 1, 5, 5)
    was = net[0](x).detach()
    no_t.negate(net)
    assert torch.allclose(net[0](x), -was, atol=1e-6)


@lru_cache(1)
def scores_in_msg(task):
    "Those that `solve` computes from the same seed."
    with seeded(0): return msg.disagreement(student_of(task.model), task)


def msg_resets_a_share_of_each_kernel(task):
    start, new = before_training(task, 'msg')
    for n, w in student_of(task.model).named_parameters():
        moved = int((start[n] != new[n]).sum())
        assert moved == (round(.3*w.numel()) if w.dim() == 4 else 0), n


def msg_resets_the_smallest(task):
    start, new = before_training(task, 'msg')
    for n, s in scores_in_msg(task).items():
        moved = start[n] != new[n]
        assert s[moved].max() <= s[~moved].min()*1.001, n


def msg_ascends_on_forget_images(task):
    student, some = student_of(task.model), UnlearnTask(task.model, task.forget, task.retain.take(range(40)))
    r, f = (next(iter(some.loader(p, train=False))) for p in ('retain', 'forget'))
    grads = [torch.autograd.grad(F.cross_entropy(student(b.x), b.y), list(msg.kernels(student).values())) for b in (r, f)]
    for s, a, b in zip(msg.disagreement(student, some).values(), *grads): assert torch.allclose(s, (a - b).abs(), atol=1e-6)


def msg_weighs_both_sets_alike(task):
    with loop.running() as run: msg.disagreement(student_of(task.model), task)
    assert run.cost['backward'] == 2*len(task.forget)


def msg_holds_what_it_kept(task):
    "Without damping and decay, kept weights would learn as fast as new ones; with a factor of 0 they stand still."
    start, new = before_training(task, 'msg')
    after = methods_core.solve(task, 'msg', epochs=1, damp=0., wd=0.).model.state_dict()
    for n in scores_in_msg(task): assert torch.equal(after[n][start[n] == new[n]], start[n][start[n] == new[n]]), n


def msg_draws_as_its_authors(task):
    "Normal, as wide as the fan-out says: 64 channels and 3×3 taps."
    start, new = before_training(task, 'msg')
    drawn = new[n := 'features.6.weight'][start[n] != new[n]]
    assert abs(float(drawn.std())/(2/(64*9))**.5 - 1) < .05


def ct_turns_space_not_channels(_):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3)), torch.randn(2, 3, 9, 9)
    was = net(x).detach()
    ct.transpose(net)
    assert torch.allclose(net(x.transpose(2, 3)), was.transpose(2, 3), atol=1e-5)


def ct_turns_every_kernel(task):
    start, new = before_training(task, 'ct')
    assert changed(start, new) == ['features.0.weight', 'features.3.weight', 'features.6.weight']
    for n in changed(start, new): assert torch.equal(new[n], start[n].transpose(2, 3))


def ct_leaves_oblong_kernels(_):
    net = nn.Sequential(nn.Conv2d(1, 1, (1, 3), padding=(0, 1)), nn.Conv2d(1, 1, 3))
    ct.transpose(net)
    assert net[0].weight.shape == (1, 1, 1, 3) and net(torch.randn(1, 1, 5, 5)).shape == (1, 1, 3, 3)


def masks_hold_for_resets_too(task):
    "From the first forward pass on, not only once a step has put them back."
    mask = {'head.weight': torch.ones_like(task.model.head.weight, dtype=torch.bool)}
    for name in ('no_t', 'msg', 'ct'): assert changed(*before_training(task, methods_core.masked(name, mask))) == [], name


def the_erased_class_is_exactly_gone(_):
    p = delete.erased(torch.tensor([[.6, .3, .1]]).log(), torch.tensor([1]))
    assert p[0, 1] == 0 and torch.allclose(p, torch.tensor([[6/7, 0., 1/7]]))


def delete_lowers_the_true_class(task):
    b = next(iter(task.loader('forget', train=False)))
    z = task.model(b.x).detach().requires_grad_()
    delete.kl_from(delete.erased(z.detach(), b.y), z).backward()
    assert (z.grad.gather(1, b.y[:, None]) > 0).all()


def delete_is_the_method_by_hand(task):
    "The target is the original's, in every epoch."
    new = methods_core.solve(task, 'delete', epochs=4, batch_size=16, amp=False)
    def loss(m, b, _):
        others = torch.ones(len(b.y), 10).bool().scatter(1, b.y[:, None], False)
        drop = lambda t: t[others].view(-1, 9)
        return F.kl_div(drop(m(b.x).log_softmax(1)), drop(task.model(b.x)).softmax(1), reduction='batchmean')
    assert same_weights(new.model, trained_by_hand(task, lambda: task.loader('forget', batch_size=16), loss, 4, 1e-3, 0.))


def delete_reads_forget_images_only(task):
    assert methods_core.solve(task, 'delete', epochs=1).cost['seen_retain'] == 0
    refused(lambda: methods_core.solve(task, lambda model, task: task.loader('val')), 'declares needs')


@lru_cache(1)
def with_batch_norm(forget, retain): return UnlearnTask(create_model('small_cnn', 10, in_chans=1, norm='batch', seed=0), forget, retain)


def delete_can_keep_the_statistics(task):
    t = with_batch_norm(task.forget, task.retain)
    moved = changed(t.model.state_dict(), methods_core.solve(t, 'delete', epochs=1, keep_norm=True).model.state_dict())
    assert not any('running' in n or 'batches' in n for n in moved)


@contextmanager
def _undamped(model, free, damp): yield


def _forget_and_retain(real):
    "A loader that always takes all images."
    def loader(self, *parts, frac=1., **kwargs): return real(self, *parts, **kwargs)
    return loader


MUTATIONS = [
    ('L1 strength that does not fall', 'torchunlearn, l1sparse.py', lambda: rewritten(l1_sparse, 'strength', 'alpha*max(0., 1 - epoch/(epochs - free_epochs))', 'alpha'),
     the_penalty_falls_by_equal_steps, None),
    ('L1 strength that does not fall, in the weights', 'torchunlearn, l1sparse.py', lambda: rewritten(l1_sparse, 'l1_sparse', '+ gamma*l1_norm(m)', '+ alpha*l1_norm(m)'),
     l1_sparse_is_the_method_by_hand, None),
    ('L1 strength that rises', 'a line left in comments in Unlearn-Sparse, FT.py',
     lambda: rewritten(l1_sparse, 'strength', 'max(0., 1 - epoch/(epochs - free_epochs))', 'epoch/(epochs - free_epochs)'), the_penalty_falls_by_equal_steps, None),
    ('penalty on squares', 'l2_regularization in Unlearn-Sparse, FT.py', lambda: rewritten(l1_sparse, 'l1_norm', 'p.abs().sum()', 'p.square().sum()'),
     the_penalty_pulls_all_weights_alike, None),
    ('penalty on matrices only', 'a habit from weight decay', lambda: rewritten(l1_sparse, 'l1_norm', 'if p.requires_grad', 'if p.requires_grad and p.dim() > 1'),
     the_penalty_pulls_all_weights_alike, None),
    ('NoT that turns every layer', 'an ablation of the paper',
     lambda: rewritten(no_t, 'no_t', 'negate(model, layer, bias)', '[negate(model, n, bias) for n in layers(model)]'), not_turns_the_first_layer_and_no_other, None),
    ('NoT that turns no layer', 'plain finetuning under its name', lambda: rewritten(no_t, 'no_t', 'negate(model, layer, bias)', 'pass'),
     not_turns_the_first_layer_and_no_other, None),
    ('NoT that turns norm layers', 'every module with a weight', lambda: rewritten(no_t, 'layers', 'held(m).dim() > 1', 'n == "features.1"'),
     not_turns_the_first_layer_and_no_other, None),
    ('NoT that leaves the bias', 'a re-implementation, fednot.py', lambda: rewritten(no_t, 'negate', 'bias and m', 'False and m'), not_turns_what_the_layer_computes, None),
    ('MSG that resets the largest gradients', 'the sign of a top-k', lambda: rewritten(msg, 'lowest', 'n: -s for', 'n: s for'), msg_resets_the_smallest, None),
    ('MSG share over all kernels together', 'what the code of deepunlearn, kgltop2.py, says of itself', default('msg', scope='all'), msg_resets_a_share_of_each_kernel, None),
    ('MSG that descends on forget images', 'a sign lost', lambda: rewritten(msg, 'disagreement', "('forget', -1)", "('forget', 1)"), msg_ascends_on_forget_images, None),
    ('MSG scored on all retain images', 'unequal sums of gradients', swapped(task_module.UnlearnTask, 'loader', _forget_and_retain(task_module.UnlearnTask.loader)),
     msg_weighs_both_sets_alike, None),
    ('MSG without damping', 'finetuning all weights alike', swapped(msg, 'damped', _undamped), msg_holds_what_it_kept, None),
    ("MSG with torch's default draw", 'reset_parameters', default('msg', init='layer'), msg_draws_as_its_authors, None),
    ('CT that exchanges channels', 'axes counted wrongly', lambda: rewritten(ct, 'transpose', 'w.transpose(2, 3)', 'w.transpose(0, 1)'), ct_turns_space_not_channels, None),
    ('CT that flips kernels', 'a rotation by name', lambda: rewritten(ct, 'transpose', 'w.transpose(2, 3)', 'w.flip(2)'), ct_turns_space_not_channels, None),
    ('CT of the first kernel only', 'top-level modules searched', lambda: rewritten(ct, 'transpose', 'in square.values()', 'in list(square.values())[:1]'), ct_turns_every_kernel, None),
    ('CT of oblong kernels', 'deepunlearn, kgltop5.py', lambda: rewritten(ct, 'transpose', 'for w in square.values(): w.copy_(w.transpose(2, 3).clone())',
                                                                         'for m in model: m.weight.data = m.weight.data.transpose(2, 3)'), ct_leaves_oblong_kernels, None),
    *[(f'a reset that goes behind the mask, {name}', 'weights set without asking', lambda m=module, n=name: rewritten(m, n, 'loop.restore()', 'pass'), masks_hold_for_resets_too, None)
      for name, module in (('no_t', no_t), ('msg', msg), ('ct', ct))],
    ('DELETE that leaves the true class in', 'plain distillation', lambda: rewritten(delete, 'erased', '.scatter(1, y[:, None], -torch.inf)', ''),
     the_erased_class_is_exactly_gone, None),
    ('DELETE that masks with 0', 'a logit of 0 is no mask', lambda: rewritten(delete, 'erased', '-torch.inf', '0.'), the_erased_class_is_exactly_gone, None),
    ('DELETE that raises the true class', 'a sign lost', lambda: rewritten(delete, 'kl_from', '- target*logits', '+ target*logits'), delete_lowers_the_true_class, None),
    ('DELETE taught by itself', 'a teacher that moves', lambda: rewritten(delete, 'delete', 'task.model(b.x)', 'm(b.x).detach()'), delete_is_the_method_by_hand, None),
    ('DELETE that averages over classes', "torch's mean reduction", lambda: rewritten(delete, 'kl_from', '.sum(1).mean()', '.mean()'), delete_is_the_method_by_hand, None),
    ('DELETE whose BatchNorm drifts', 'training mode throughout', lambda: rewritten(delete, 'delete', 'train=not keep_norm', 'train=True'), delete_can_keep_the_statistics, None),
]
