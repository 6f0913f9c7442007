"Mutants of the methods that dampen weights and of those that learn from noise: SSD, UNSIR, JiT."
import torch
from torch import nn
from torch.nn import functional as F

import lotus_nb.loop as loop
import lotus_nb.methods.core as methods_core
import lotus_nb.methods.jit as jit
import lotus_nb.methods.ssd as ssd
import lotus_nb.methods.unsir as unsir
from lotus_nb.core import Batch, changed
from lotus_nb.task import student_of
from mutants.common import default, rewritten
from mutants.foundation import SPARTALIS, with_norm


def squared_gradients(task, *parts):
    "Importances without the library: mean over batches of squared gradients of the batch's mean loss, in eval mode."
    model = student_of(task.model).eval()
    squares = []
    for b in task.loader(*parts, train=False, batch_size=64):
        g = torch.autograd.grad(F.cross_entropy(model(b.x), b.y), list(model.parameters()))
        squares.append([v.square() for v in g])
    return [torch.stack(v).mean(0) for v in zip(*squares)]


def ssd_is_its_formula_applied_once(task):
    forget, everything = squared_gradients(task, 'forget'), squared_gradients(task, 'retain', 'forget')
    new, n = methods_core.solve(task, 'ssd', alpha=5, batch_size=64), 0
    for p, w, f, e in zip(student_of(task.model).parameters(), new.model.parameters(), forget, everything):
        n += int((f > 5*e).sum())
        assert torch.allclose(w, torch.where(f > 5*e, p*e/f, p), rtol=1e-3, atol=1e-8), 'a weight is not what the formula says'
    assert n and sum(e['dampened'] for e in new.log) == n


def no_weight_grows(task):
    new = methods_core.solve(task, 'ssd', alpha=1, lam=20, batch_size=64)
    assert all((w.abs() <= p.abs()).all() for w, p in zip(new.model.parameters(), task.model.parameters()))


def importances_do_not_depend_on_the_mode(_):
    t = with_norm()
    batches = t.loader('forget', train=False, batch_size=20)
    model = student_of(t.model).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    got = ssd.importances(model, batches)
    eval_model, squares = student_of(t.model).eval(), []
    for b in batches: squares.append(torch.autograd.grad(F.cross_entropy(eval_model(b.x), b.y), list(eval_model.parameters())))
    for a, b in zip(got.values(), zip(*squares)): assert torch.allclose(a, torch.stack(b).square().mean(0), rtol=1e-3, atol=1e-7), 'other gradients'
    assert not changed(before, model.state_dict()), 'buffers moved'


def label_free_importances_are_absolute(_):
    linear, x = nn.Linear(3, 2, bias=False), torch.tensor([[1., -2., 0.], [.5, 1., 3.]])
    got = ssd.importances(linear, [Batch(x[i:i+1], torch.zeros(1).long(), torch.zeros(1).bool()) for i in (0, 1)], 'output')['weight']
    hand = torch.stack([2*torch.outer(linear.weight.detach() @ v, v) for v in x]).abs().mean(0)
    assert torch.allclose(got, hand)


def _answers(model, x):
    with torch.no_grad(): return model.eval()(x)


def noise_moves_away_from_its_images(task):
    model, x = student_of(task.model), next(iter(task.loader('forget', train=False))).x
    def distance(steps):
        torch.manual_seed(0)
        return float((_answers(model, unsir.unlike_images(model, x, steps, .01)) - _answers(model, x)).square().mean())
    assert distance(5) > distance(0)


def each_noise_is_learned_in_five_steps(task):
    new = methods_core.solve(task, 'unsir', batch_size=20)
    assert new.cost['backward'] == 2*40*5 + new.cost['seen_forget'] + new.cost['seen_retain']


def noise_carries_the_class_that_it_denies(task):
    model, x = student_of(task.model), next(iter(task.loader('forget', train=False))).x
    torch.manual_seed(0)
    noise = unsir.noise_of_classes(model, torch.tensor([3, 5]), x, n=8, copies=2, steps=40, lr=.1, decay=.1)
    assert noise.y.tolist() == [3]*8 + [5]*8
    assert _answers(model, noise.x).softmax(1).gather(1, noise.y[:, None]).max() < .02


def the_network_stands_still_while_noise_is_learned(_):
    t = with_norm()
    model, x = student_of(t.model).train(), next(iter(t.loader('forget', train=False))).x
    before = {k: v.clone() for k, v in model.state_dict().items()}
    unsir.unlike_class(model, torch.randn_like(x), torch.tensor(3), 3, .1, .1)
    assert not changed(before, model.state_dict()) and model.training and all(p.grad is None for p in model.parameters())


def repair_ends_the_run(task):
    assert [e['what'] for e in methods_core.solve(task, 'unsir').log] == ['impair', 'impair', 'repair']


def replayed_images_are_drawn(task):
    def of(seed):
        torch.manual_seed(seed)
        return unsir.some_of_each_class(task, 5).parts[0][1].sort()[0]
    assert len(of(0)) == 50 and not torch.equal(of(0), of(1))


def a_stretch_is_as_rough_as_it_stretches(_):
    torch.manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(16, 16))
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 16, bias=False)), torch.randn(6, 1, 4, 4)*torch.tensor([1., 5.]).repeat(3)[:, None, None, None]
    net[1].weight.data = 3*turn
    for sigma in (.1, 2.): assert torch.allclose(jit.roughness(net, x, 2, sigma), torch.full((6,), 3.), rtol=1e-3)


def smoothing_leaves_batchnorm_alone(_):
    t = with_norm()
    new = methods_core.solve(t, 'jit', lr=1e-4)
    assert not changed(dict(t.model.named_buffers()), dict(new.model.named_buffers())), 'buffers moved'


def the_formula_shortens_a_linear_map(_):
    "The ratio is homogeneous in the weights: along them its whole gradient is the ratio itself."
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 4, bias=False)), torch.randn(5, 1, 4, 4)
    kappa = jit.roughness(net, x, 3, .1, through_both=True).sum()
    g, = torch.autograd.grad(kappa, net[1].weight)
    assert torch.isclose((g*net[1].weight).sum(), kappa, rtol=1e-3)


MUTATIONS = [
    ('SSD in a loop of epochs', f'{SPARTALIS}, ssd_class.py', default('ssd', passes=10), ssd_is_its_formula_applied_once, None),
    ('importance of all images from the retain set alone', 'a reading of SSD', lambda: rewritten(ssd, 'ssd', "('retain', 'forget')", "('retain',)"),
     ssd_is_its_formula_applied_once, None),
    ('weights selected by the layer', 'a reading of SSD', lambda: rewritten(ssd, 'dampening', 'forget > alpha*everything', 'forget.mean() > alpha*everything.mean()'),
     ssd_is_its_formula_applied_once, None),
    ('gradients averaged before they are squared', 'a reading of SSD',
     lambda: rewritten(ssd, 'importances', '{k: t/n for k, t in total.items()}', '{k: (t.sqrt()/n).square() for k, t in total.items()}'),
     ssd_is_its_formula_applied_once, None),
    ('dampening that amplifies', 'SSD without its bound of 1', lambda: rewritten(ssd, 'dampening', '.clamp(max=1)', ''), no_weight_grows, None),
    ('importances in training mode', f'a variant of {SPARTALIS}', lambda: rewritten(loop, '_in_eval', 'model.eval()', 'model.train()'),
     importances_do_not_depend_on_the_mode, None),
    ('label-free importances squared', 'a reading of LFSSD', lambda: rewritten(ssd, 'importances', 'torch.abs', 'torch.square'), label_free_importances_are_absolute, None),
    ('one noise step after the loop', f'UNSIR in {SPARTALIS}', default('unsir', noise_steps=1), each_noise_is_learned_in_five_steps, None),
    ('noise drawn towards its images', "the comment in MUFAC's UNSIR", lambda: rewritten(unsir, 'unlike_images', '-F.mse_loss', 'F.mse_loss'),
     noise_moves_away_from_its_images, None),
    ('all noise labelled class 0', "UNSIR authors' notebook",
     lambda: rewritten(unsir, 'noise_of_classes', 'classes.repeat_interleave(n)', 'torch.zeros(n*len(classes), dtype=torch.long)'), noise_carries_the_class_that_it_denies, None),
    ('noise learned in training mode', f"UNSIR authors' notebook, {SPARTALIS}", lambda: rewritten(loop, '_in_eval', 'model.eval()', 'model.train()'),
     the_network_stands_still_while_noise_is_learned, None),
    ('the network learns with its noise', 'a variant of UNSIR',
     lambda: rewritten(unsir, 'learned', 'torch.optim.Adam([noise], lr)', 'torch.optim.Adam([noise, *model.parameters()], lr, weight_decay=.1); [p.sum().backward() for p in model.parameters()]'),
     the_network_stands_still_while_noise_is_learned, None),
    ('impairing comes last', 'a variant of UNSIR', default('unsir', repair_epochs=0), repair_ends_the_run, None),
    ('the first images of each class', f'UNSIR in {SPARTALIS}', lambda: rewritten(unsir, 'some_of_each_class', 'r[torch.randperm(len(r))[:k]]', 'r[:k]'),
     replayed_images_are_drawn, None),
    ('divided by σ instead of the step', 'a reading of JiT', lambda: rewritten(jit, 'roughness', '.norm(dim=1)/step', '.norm(dim=1)/sigma'),
     a_stretch_is_as_rough_as_it_stretches, None),
    ('divided by the step before clamping', 'a variant of JiT', lambda: rewritten(jit, 'roughness', 'step = (near - x)', 'step = sigma*torch.randn_like(x)'),
     a_stretch_is_as_rough_as_it_stretches, None),
    ('divided after the mean over the batch', 'a reading of JiT', lambda: rewritten(jit, 'roughness', '.flatten(1).norm(dim=1).clamp', '.flatten(1).norm(dim=1).mean().clamp'),
     a_stretch_is_as_rough_as_it_stretches, None),
    ('smoothing in training mode', "JiT authors' code", lambda: rewritten(jit, 'jit', ', train=False)\n    return', ')\n    return'), smoothing_leaves_batchnorm_alone, None),
    ('neighbours without a gradient', "JiT authors' code, against its formula", lambda: rewritten(jit, 'roughness', 'torch.set_grad_enabled(through_both)', 'torch.no_grad()'),
     the_formula_shortens_a_linear_map, None),
]
