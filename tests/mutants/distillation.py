"Mutants of the methods that teach wrong answers: Random Labeling, Bad Teacher and SCRUB."
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch

import lotus_nb.methods.bad_teacher as bad_teacher
import lotus_nb.methods.relabel as relabel
import lotus_nb.methods.scrub as scrub
from lotus_nb.core import changed
from lotus_nb.data.digits import digits
from lotus_nb.loop import Loop, predict
from lotus_nb.methods.core import check_method, solve
from lotus_nb.parts import distill_kl, share_correct
from lotus_nb.task import UnlearnTask, student_of
from mutants.common import default, rewritten, swapped
from mutants.foundation import with_norm


def passes(task, method, look, **settings):
    "What `look` says of the batches of each pass, in a run that takes no step."
    seen = []
    with patch.object(Loop, 'run', lambda loop, batches, loss, train=True: seen.append(look(batches))): solve(task, method, **settings)
    return seen


def forget_labels(batches): return torch.cat([b.y[b.forget] for b in replace(batches, train=False)])


def kinds(batches): return [(bool(b.forget.any()), bool((~b.forget).any())) for b in batches]


def wrong_labels_are_wrong(task):
    for seed in range(3): assert all((y != task.forget.y).all() for y in passes(task, 'relabel', forget_labels, seed=seed))


def wrong_labels_stay(task):
    first, *others = passes(task, 'relabel', forget_labels)
    assert others and all(torch.equal(first, o) for o in others)


def wrong_labels_are_learnt_among_right_ones(task):
    assert all(all(both) for both in sum(passes(task, 'relabel', kinds), []))


def teachers_share_each_batch(task):
    assert all(all(both) for both in sum(passes(task, 'bad_teacher', kinds), []))


def each_kind_has_its_teacher(task):
    "Retain images are taught what the original says, forget images what a network says that shares no tensor with it, and is right by chance."
    seen, real = [], bad_teacher.lesson
    def watch(competent, incompetent, x, forget):
        seen.append((incompetent, x, forget, real(competent, incompetent, x, forget)))
        return seen[-1][-1]
    with patch.object(bad_teacher, 'lesson', watch): solve(task, 'bad_teacher', amp=False)
    for incompetent, x, forget, taught in seen:
        assert torch.allclose(taught[~forget], task.model(x[~forget]), atol=1e-4)
        assert torch.allclose(taught[forget], incompetent(x[forget]), atol=1e-4)
    assert set(changed(task.model.state_dict(), incompetent.state_dict())) == set(task.model.state_dict())
    assert share_correct(*predict(incompetent, task.loader('test', train=False))) < .3


def scrub_returns_what_it_taught(task): check_method('scrub', task, epochs=1, lr=1e-2)


def scrub_ends_on_a_min_pass(task):
    for msteps in (2, 9): assert solve(task, 'scrub', msteps=msteps).log[-1]['what'] == 'min_pass'


def max_passes_come_first_and_end(task):
    assert [e['what'] for e in solve(task, 'scrub', msteps=1).log] == ['max_pass', 'min_pass', 'min_pass', 'min_pass']


def max_passes_lead_away(task):
    "After the same min pass, once with a max pass and once without."
    def distance(model): return float(distill_kl(*(predict(m, task.loader('forget', train=False))[0] for m in (model, task.model))))
    settings = dict(recipe='digits', epochs=1, order='min-max')
    away, here = (distance(solve(task, 'scrub', msteps=k, **settings).model) for k in (1, 0))
    assert away > 2*here


def the_teacher_of_scrub_stands_still(_): check_method('scrub', replace(with_norm()), epochs=1)     # a teacher of its own


def the_rate_of_scrub_falls(task):
    lrs = [e['lr'] for e in solve(task, 'scrub', recipe='official-small', batch_size=200, wd=0.).log if 'lr' in e]
    assert torch.allclose(torch.tensor(lrs)/lrs[0], torch.tensor([1, 1, 1, 1, 1, .1, .1, .1, .01, .001]))


PLUS = dict(recipe='digits', epochs=5, msteps=5, lr=1e-3)


def rewinding_returns_the_epoch_it_names(task):
    new = solve(task, 'scrub', rewind=True, **PLUS)
    chosen, errors, reference = (new.log[-1][k] for k in ('rewound_to', 'forget_errors', 'reference'))
    error = 1 - share_correct(*predict(new.model, task.loader('forget', train=False)))
    assert 0 < chosen < 5 and error == errors[chosen] and abs(error - reference) == min(abs(e - reference) for e in errors)
    assert not changed(solve(task, 'scrub', **{**PLUS, 'epochs': chosen}).model.state_dict(), new.model.state_dict())


def rewinding_aims_at_the_classes_to_forget(task):
    "Of a task that forgets all threes, the final model's error on unseen threes, not on everything unseen."
    train_set, val, _ = digits(0)
    three = lambda d, yes: d.take(((d.y == 3) == yes).nonzero()[:, 0])
    t = UnlearnTask(task.model, three(train_set, True), three(train_set, False), val)
    settings = {**PLUS, 'lr': 2e-3}
    z, y = predict(solve(t, 'scrub', **settings).model, t.loader('val', train=False))
    assert abs(solve(t, 'scrub', rewind=True, **settings).log[-1]['reference'] - float((z.argmax(1) != y)[y == 3].float().mean())) < 1e-6


def _head_only(model, seed=0):
    "A copy whose classifier alone is random."
    new = student_of(model)
    new.get_classifier().reset_parameters()
    return new.eval()


@contextmanager
def _swapped_lesson():
    real = bad_teacher.lesson
    with patch.object(bad_teacher, 'lesson', lambda competent, incompetent, x, forget: real(incompetent, competent, x, forget)): yield


SPARTALIS = 'Spartalis et al. code'


def scrub_with(old, new, name='scrub'): return lambda: rewritten(scrub, name, old, new)


MUTATIONS = [
    ('wrong labels that may be right', 'draws over all classes, as in SalUn', lambda: rewritten(relabel, 'wrong_shifts', 'randint(1, k', 'randint(0, k'),
     wrong_labels_are_wrong, None),
    ('wrong labels drawn in every epoch', f'Random Labeling in {SPARTALIS}', default('relabel', redraw=True), wrong_labels_stay, None),
    ('a forget pass, then a retain pass', f'Random Labeling in {SPARTALIS}', default('relabel', separate=True), wrong_labels_are_learnt_among_right_ones, None),
    ('Bad Teacher not shuffled', f'Bad Teacher in {SPARTALIS}', default('bad_teacher', shuffle=False), teachers_share_each_batch, None),
    ('incompetent teacher that is the original', 'a copy of the trained network in place of a new one',
     lambda: rewritten(bad_teacher, 'bad_teacher', 'teacher_of(reinit(model, None))', 'task.model'), each_kind_has_its_teacher, None),
    ('incompetent teacher with a trained backbone', 'Bad Teacher, ViT', swapped(bad_teacher, 'reinit', _head_only), each_kind_has_its_teacher, None),
    ('teachers that change places', 'labels 0 and 1 taken the other way round', _swapped_lesson, each_kind_has_its_teacher, None),
    ('SCRUB returns the original', f'SCRUB in {SPARTALIS}', scrub_with('return model', 'return teacher'), scrub_returns_what_it_taught,
     'no weight of the returned model differs'),
    ('SCRUB as published, by default', f'SCRUB in {SPARTALIS}', default('scrub', as_published=True), scrub_returns_what_it_taught,
     'no weight of the returned model differs'),
    ('SCRUB that ends on a max pass', f'the MUFAC notebook and {SPARTALIS}', default('scrub', order='min-max'), scrub_ends_on_a_min_pass, None),
    ('a max pass in every epoch', f'the MUFAC notebook and {SPARTALIS}', scrub_with('(epoch < msteps)', '1'), max_passes_come_first_and_end, None),
    ('a max pass of the wrong sign', 'a minimiser fed with the divergence', scrub_with('return -distill_kl', 'return distill_kl'), max_passes_lead_away, None),
    ("SCRUB's teacher in training mode", f'SCRUB in {SPARTALIS}', scrub_with('teacher, loop = task.model,', 'teacher, loop = task.model.train(),'),
     the_teacher_of_scrub_stands_still, 'it changed the original model'),
    ('SCRUB at a constant rate', f'SCRUB in {SPARTALIS}', scrub_with('decayed(lr, epoch + 1, decay_epochs, decay_rate)', 'lr'), the_rate_of_scrub_falls, None),
    ('rewinding to the epoch before', "SCRUB's notebooks, whose errors count from 0 and whose files from 1",
     scrub_with('self.state(epoch)', 'self.state(epoch - 1)', '_Rewind'), rewinding_returns_the_epoch_it_names, None),
    ('rewinding without the original among the errors', 'the same lists, cut at the other end',
     scrub_with('errors = [self.first, *(', 'errors = [*(', '_Rewind'), rewinding_returns_the_epoch_it_names, None),
    ('rewinding to the error on all of validation', 'a reference over all classes', scrub_with("'val', self.rows", "'val'", '_Rewind'),
     rewinding_aims_at_the_classes_to_forget, None),
]
