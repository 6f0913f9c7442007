"Mutants of the methods that choose their weights, or the optimiser of a step: SalUn, SFR-on, DualOptim."
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional as F

import lotus_nb.loop as loop
import lotus_nb.methods.core as methods_core
import lotus_nb.methods.dual_optim as dual_optim
import lotus_nb.methods.salun as salun
import lotus_nb.methods.sfron as sfron
import lotus_nb.parts as parts
import lotus_nb.task as task_module
from lotus_nb.core import Batch, changed
from lotus_nb.task import UnlearnTask, student_of
from mutants.common import default, refused, rewritten, swapped
from mutants.foundation import with_norm


class TwoLayers(nn.Module):
    "One layer reaches the answer a million times weaker than the other."
    def __init__(self):
        super().__init__()
        self.weak, self.strong = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x): return 1e-3*self.weak(x.flatten(1)) + 1e3*self.strong(x.flatten(1))


class Bias(nn.Module):
    "Three logits that start at nothing."
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x): return self.bias.expand(len(x), 3)


def _batch(*labels): return Batch(torch.zeros(len(labels), 1), torch.tensor(labels), torch.ones(len(labels)).bool())


def _moved(task, new): return {n: p != q for (n, p), q in zip(new.model.named_parameters(), task.model.parameters())}


def _share(moved): return float(torch.cat([m.flatten() for m in moved.values()]).float().mean())


def _loss(task, new, part='forget'): return float(F.cross_entropy(*loop.predict(new.model, task.loader(part, train=False))))


# SalUn.

def layers_compete(task):
    torch.manual_seed(0)
    mask = salun.saliency(TwoLayers(), task.loader('forget', train=False), .25)
    assert not mask['weak.weight'].any() and mask['strong.weight'].any()


def opposite_wishes_cancel(_): assert salun.saliency(Bias(), [_batch(0), _batch(1)], 1/3)['bias'].tolist() == [False, False, True]


def salient_weights_alone_move(task, **kwargs):
    "The mask is made anew by hand: a gradient of the forget loss, in eval mode."
    model, b = student_of(task.model).eval(), next(iter(task.loader('forget', train=False, batch_size=64)))
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(F.cross_entropy(model(b.x), b.y), list(named.values()))
    flat = torch.cat([g.flatten() for g in grads]).abs()
    least = flat.topk(round(.1*len(flat))).values[-1]
    went = _moved(task, methods_core.solve(task, 'salun', rho=.1, batch_size=64, epochs=2, wd=.1, amp=False, **kwargs))
    for g, m in zip(grads, went.values()): assert not (m & (g.abs() < .99*least)).any(), 'a weight outside of the mask has moved'
    assert .05 < _share(went) < .102


def the_mask_is_made_in_eval_mode(_): salient_weights_alone_move(with_norm())


def _shifts(task):
    "The shifts of labels, epoch by epoch."
    seen, real = [], UnlearnTask.loader
    def spy(self, *parts, **kwargs):
        if 'forget' in parts and kwargs.get('shift') is not None: seen.append(kwargs['shift'].clone())
        return real(self, *parts, **kwargs)
    with patch.object(task_module.UnlearnTask, 'loader', spy): methods_core.solve(task, 'salun', epochs=4)
    return torch.stack(seen)                                          # (epochs, n_forget)


def true_labels_are_drawn_too(task): assert (_shifts(task) == 0).any()


def labels_are_drawn_anew(task):
    s = _shifts(task)
    assert len(s) == 4 and not any(torch.equal(s[0], t) for t in s[1:])


def the_mask_is_paid_for(task): assert methods_core.solve(task, 'salun', epochs=1).cost['backward'] == 2*len(task.forget) + len(task.retain)


# SFR-on.

QUICK = dict(steps=10, batch_size=64)


def weights_that_do_not_matter_do_not_ascend(task):
    a, b = (methods_core.solve(task, 'sfron', **QUICK, **k) for k in (dict(gamma=1e30), dict(alpha=0.)))
    assert not changed(a.model.state_dict(), b.model.state_dict())


def retain_steps_move_everything(task): assert _share(_moved(task, methods_core.solve(task, 'sfron', gamma=1e30, wd=0., **QUICK))) > .99


def sfron_ascends(task):
    up, none = (methods_core.solve(task, 'sfron', steps=20, batch_size=64, alpha=a) for a in (50., 0.))
    assert _loss(task, up) > 2*_loss(task, none)


def weights_matter_by_their_ratio(_):
    f, r = {'w': torch.tensor([1., 2., 8.])}, {'w': torch.tensor([2., 1., 10.])}
    assert sfron.balance(f, r, 1.)['w'].tolist() == [False, True, False]


def known_images_lead(_):
    z = torch.tensor([[3., 0.], [0., 0.]], requires_grad=True)
    plain, ours = (torch.autograd.grad(sfron.adaptive_ce(z, torch.zeros(2).long(), lam), z)[0] for lam in (0., 1.))
    assert ours[0, 0].abs() > plain[0, 0].abs() and ours[1, 0].abs() < plain[1, 0].abs()


def one_known_image_stops_no_ascent(_):
    z = torch.tensor([[200., 0.], [2., 0.]], requires_grad=True)
    assert torch.autograd.grad(sfron.adaptive_ce(z, torch.zeros(2).long(), .5), z)[0].abs().max() > 1e-6


def slow_weights_go_a_share_of_the_way(task):
    whole, quarter = (methods_core.solve(task, 'sfron', steps=5, batch_size=64, slow=s).model for s in (1., .25))
    for p, w, q in zip(task.model.parameters(), whole.parameters(), quarter.parameters()): assert torch.allclose(q, p + .25*(w - p), atol=1e-6)


# DualOptim.

def _in_turns(seen, **turns):
    def in_turns(model, task, *, lr=1e-9):
        seen.append(own := loop.Loop(model, parts.sgd(model, lr, momentum=.9)))
        ce = lambda m, b: F.cross_entropy(m(b.x), b.y)
        own.run(task.loader('forget'), lambda m, b: -ce(m, b))
        if turns.get('repair', True): own.run(task.loader('retain'), ce)
        return model
    return in_turns


def forget_steps_have_a_momentum_of_their_own(task):
    with loop.running(forget_opt=lambda m: parts.adamw(m, 1e-3)):
        _in_turns(seen := [], repair=False)(student_of(task.model), task)
    assert not seen[0].opt.state and seen[0].forget_opt.state


def forget_steps_are_as_long_as_their_rate(task):
    "Each weight goes that far at AdamW's first step, and the method's own rate is next to nothing."
    new = methods_core.solve(task, 'dual_optim', base=_in_turns([]), forget_lr=1e-3, forget_wd=0., batch_size=64, amp=False)
    way = torch.cat([(p - q).detach().abs().flatten() for p, q in zip(new.model.parameters(), task.model.parameters())])
    assert abs(float(way.median()) - 1e-3) < 1e-5 and float(way.max()) < 1.001e-3


def forget_steps_are_told_apart(task): methods_core.solve(task, 'dual_optim', base='salun', settings=dict(epochs=1))


def mixed_batches_have_no_owner(task):
    refused(lambda: methods_core.solve(task, 'dual_optim', base='lotus', settings=dict(epochs=1)), 'this batch holds retain images as well')


TOP_SHARE, GRADIENTS = parts.top_share, loop.batch_gradients
HUANG, SPARTALIS, FAN = 'Huang et al. code', 'SalUn in Spartalis et al. code', 'Fan et al. code'


def _share_of_each_tensor(scores, share): return {n: TOP_SHARE({n: s}, share)[n] for n, s in scores.items()}


def _uncounted(*args):
    with loop.running(cost=dict(forward=0, backward=0)): return list(GRADIENTS(*args))


@contextmanager
def _labels_once():
    first = {}
    real = salun.random_shifts
    with patch.object(salun, 'random_shifts', lambda *a: first.setdefault(0, real(*a))): yield


MUTATIONS = [
    ('salient weights layer by layer', 'a share of each tensor, in several copies', swapped(salun, 'top_share', _share_of_each_tensor), layers_compete, None),
    ('the least salient weights', f'{FAN}, first public generate_mask.py', lambda: rewritten(salun, 'saliency', 'g.abs()', '-g.abs()'),
     salient_weights_alone_move, None),
    ('magnitudes taken before they are summed', 'a sum over batches of absolute gradients',
     lambda: rewritten(salun, 'saliency', 'in grads.items(): total', 'in ((n, g.abs()) for n, g in grads.items()): total'), opposite_wishes_cancel, None),
    ('a mask in the forget pass only', SPARTALIS, default('salun', mask='forget'), salient_weights_alone_move, None),
    ('weight decay on weights that SalUn froze', f'{FAN} before pull request 33',
     lambda: rewritten(loop, '_step', 'loop.restore()', 'pass'), salient_weights_alone_move, None),
    ('a mask from the retain images', 'the wrong loader',
     lambda: rewritten(salun, 'salun', "task.loader('forget', train=False", "task.loader('retain', train=False"), salient_weights_alone_move, None),
    ('a mask made in training mode', 'BatchNorm of the batch, not of the training', lambda: rewritten(loop, '_in_eval', 'model.eval()', 'model.train()'),
     the_mask_is_made_in_eval_mode, None),
    ('labels that are never the true ones', SPARTALIS, default('salun', labels='other'), true_labels_are_drawn_too, None),
    ('random labels drawn once', 'Amnesiac unlearning taken for random labelling', _labels_once, labels_are_drawn_anew, None),
    ('a mask that costs nothing', f'{SPARTALIS}: its seconds go among minutes',
     swapped(salun, 'batch_gradients', _uncounted), the_mask_is_paid_for, None),
    ('ascent without its mask', 'SFR-on without saliency', lambda: rewritten(sfron, '_trim', 'p.grad.mul_(mask[n])', 'pass'),
     weights_that_do_not_matter_do_not_ascend, None),
    ('a mask on retain steps as well', 'SFR-on in torchunlearn masks the sum of both gradients',
     lambda: rewritten(sfron, 'before_steps', 'finally: handle.remove()', 'finally: pass'), retain_steps_move_everything, None),
    ('SFR-on that descends', 'a sign', lambda: rewritten(sfron, 'sfron', 'return -alpha', 'return alpha'), sfron_ascends, None),
    ('importance for the forget images alone', 'no division by that for the retain images',
     lambda: rewritten(sfron, 'balance', 'gamma*(retain[n] + 1e-15)', 'gamma*(0*retain[n] + 1e-15)'), weights_matter_by_their_ratio, None),
    ('images that are known worst lead', 'λ without its minus', lambda: rewritten(sfron, 'adaptive_ce', '**-lam', '**lam'), known_images_lead, None),
    ('one known image that stops the ascent of its batch', f'{HUANG}, AdaptiveLoss',
     lambda: rewritten(sfron, 'adaptive_ce', '.clamp(min=torch.finfo(torch.float32).eps)**-lam', '.pow(lam).add(1e-15).reciprocal()'),
     one_known_image_stops_no_ascent, None),
    ('slow weights that are never left behind', f'{HUANG}: a share of 1', lambda: rewritten(sfron, 'sfron', 's.lerp(p.data, slow)', 'p.data'),
     slow_weights_go_a_share_of_the_way, None),
    ('one optimiser for both', 'every method without DualOptim', swapped(loop, '_optimiser_for', lambda own, batch: own.opt),
     forget_steps_have_a_momentum_of_their_own, None),
    ('DualOptim without its second optimiser', 'a wrapper that wraps nothing', lambda: rewritten(dual_optim, 'dual_optim', 'running(forget_opt=own)', 'running()'),
     forget_steps_are_told_apart, "made no step on forget images"),
    ('forget steps that adapt to nothing', 'SGD for both, an ablation of Zhong et al.', swapped(dual_optim, 'adamw', lambda m, lr, wd: parts.sgd(m, lr, .9, wd)),
     forget_steps_are_as_long_as_their_rate, None),
    ('mixed batches for the forget optimiser', 'relabelling on CIFAR-100 and TinyImageNet, in one stream',
     swapped(loop, '_optimiser_for', lambda own, batch: own.forget_opt if own.forget_opt and batch.forget.any() else own.opt), mixed_batches_have_no_owner, None),
]
