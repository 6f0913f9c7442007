"Ensembles: of a task, moved once, compiled once; and what would go wrong."
import copy
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import lotus_nb.ensemble as en
from lotus_nb.data.core import Augment
from lotus_nb.data.digits import digits
from lotus_nb.ensemble import fresh_copies, gold_ensemble, half_splits
from lotus_nb.models import create_model
from lotus_nb.task import UnlearnTask
from lotus_nb.train import digits_task, recipe, train

SHORT = recipe('digits', epochs=2)


@pytest.fixture(scope='module')
def pool(): return digits(0).train


@pytest.fixture(scope='module')
def task(): return digits_task(seed=0, epochs=2)


def new_cnn(seed): return create_model('small_cnn', in_chans=1, seed=seed)


def new_mlp(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def same(a, b): return all(torch.equal(v, b.weights[k]) for k, v in a.weights.items())


def near(a, b, eps=1e-3): return all(torch.allclose(v, b.weights[k], atol=eps) for k, v in a.weights.items())


def is_gold_of_the_task(task):
    golds = gold_ensemble(task, 2, recipe=SHORT)
    assert golds.phi.shape == (2, 400) and golds.phi.dtype == np.float16
    assert (golds.forget == (np.arange(400) < 40)).all() and golds.members.all()
    assert all(torch.allclose(v, golds.weights[k][0], atol=1e-3) for k, v in task.gold.state_dict().items())
    assert not all(torch.allclose(v, golds.weights[k][1], atol=1e-3) for k, v in task.gold.state_dict().items())


def test_a_task_is_enough(task): is_gold_of_the_task(task)


def test_a_task_with_masks(task):
    members = half_splits(4, 400)
    assert not gold_ensemble(task, 4, recipe=SHORT, members=members).forget.any()
    forget = members & (np.arange(400) < 40)
    got = gold_ensemble(task, 4, recipe=SHORT, members=members, forget=forget)
    assert (got.forget == forget).all() and (got.trained == (members & ~forget)).all()
    assert gold_ensemble(task, 2, recipe=SHORT, forget=[5]).trained.sum() == 2*399


def test_new_model_of_ones_own(task):
    assert '3.weight' in gold_ensemble(task, 2, new_mlp, SHORT).weights


def test_a_task_of_files(task):
    "Map-style data, augmented by the task: refused in a stack, and augmented one after another."
    lists = replace(task, forget=[*task.forget.take(range(8))], retain=[*task.retain.take(range(40))], val=None, test=None, gold=None, gold2=None)
    with pytest.raises(ValueError, match='as one tensor'): gold_ensemble(lists, 2, recipe=SHORT)
    still = gold_ensemble(lists, 2, recipe=SHORT, vectorised=False)
    assert still.phi.shape == (2, 48) and still.trained.sum() == 80
    moving = replace(lists, augment=Augment(2))
    with pytest.raises(ValueError, match='augmented at random'): gold_ensemble(moving, 2, recipe=SHORT)
    assert not same(still, gold_ensemble(moving, 2, recipe=SHORT, vectorised=False))


def test_two_sources_are_put_below_each_other(task, pool):
    other = replace(pool.take(range(60)), source='elsewhere')
    mixed = UnlearnTask(task.model, task.forget, other, twins='keep')
    got = gold_ensemble(mixed, 1, recipe=SHORT, vectorised=False)
    assert got.phi.shape == (1, 100) and got.trained.sum() == 60
    with pytest.raises(ValueError, match='as one tensor'): gold_ensemble(mixed, 1, recipe=SHORT)


def test_copies_begin_by_their_own_rule():
    model = new_cnn(3)
    before = copy.deepcopy(model.state_dict())
    make = fresh_copies(model)
    assert all(torch.equal(v, make(7).state_dict()[k]) for k, v in new_cnn(7).state_dict().items())
    assert not torch.equal(make(7).head.weight, make(8).head.weight)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())         # the model itself stays
    normed = create_model('small_cnn', in_chans=1, norm='batch', seed=0)
    normed.features[1].running_mean += 1
    assert not fresh_copies(normed)(0).features[1].running_mean.any()


def test_copies_that_would_be_other_models(task):
    with pytest.raises(ValueError, match='cls_token.*Pass `new_model`'):
        fresh_copies(create_model('vit_tiny_patch16_224', 10, img_size=32, seed=0))
    held = new_cnn(0); held.head.weight.requires_grad_(False)
    with pytest.raises(ValueError, match='head.weight.*are frozen|are frozen .head.weight'): gold_ensemble(replace(task, model=held), 2)
    with pytest.raises(TypeError, match='`new_model` is missing. With Images'): gold_ensemble(task.forget, 2)


def counting():
    torch._dynamo.reset()
    graphs, seen = [], []
    def backend(graph, inputs): graphs.append(graph); return graph.forward
    def new(seed): seen.append(len(graphs)); return new_cnn(seed)
    return graphs, seen, dict(new_model=new, vectorised=False, compile=backend)


def test_compiled_once(pool):
    graphs, seen, how = counting()
    made = gold_ensemble(pool, 4, recipe=SHORT, chunk=1, **how)
    assert seen[0] == 0 < seen[1] and set(seen[1:]) == {len(graphs)}
    assert same(made, gold_ensemble(pool, 4, new_cnn, SHORT, vectorised=False))


@pytest.mark.parametrize('c_in, as_it_came', [(4, True), (8, False)])
def test_layout_of_the_compiled_network(c_in, as_it_came):
    "Narrow networks with strided 1x1 convolutions stay out of channels-last, as in `Loop`."
    net = nn.Sequential(nn.Conv2d(c_in, 8, 1, 2), nn.Conv2d(8, 8, 3))
    assert en._Turns('eager')._put(net)[1].weight.is_contiguous() == as_it_came


def test_weights_that_are_not_put_in(pool, monkeypatch):
    "The bug that one compiled module invites: the second model goes on from the first."
    def careless(self, model):
        self.held = self.held or model
        return self.held
    monkeypatch.setattr(en._Turns, '_put', careless)
    with pytest.raises(AssertionError): test_compiled_once(pool)


@pytest.mark.skipif(not shutil.which('g++'), reason='no C++ compiler')
def test_a_real_compiler(pool):
    torch._dynamo.reset()
    how = dict(recipe=SHORT, vectorised=False, members=half_splits(2, 400))
    assert near(gold_ensemble(pool, 2, new_mlp, compile=True, **how), gold_ensemble(pool, 2, new_mlp, **how))


BARE = """
import torch
from torch import nn
from lotus_nb.data.digits import digits
from lotus_nb.ensemble import gold_ensemble
from lotus_nb.train import recipe
new = lambda seed: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softplus())
try: gold_ensemble(digits(0).train, 2, new, recipe('digits', epochs=1), vectorised=False, compile=True)
except ValueError as e: print(e)
"""


def test_no_compiler(tmp_path):
    "On a machine without a C++ compiler, and without what one has left in a cache, a sentence says what is missing."
    env = {**os.environ, 'CXX': str(tmp_path/'no-such-compiler'), 'TORCHINDUCTOR_CACHE_DIR': str(tmp_path/'cache')}
    said = subprocess.run([sys.executable, '-c', BARE], env=env, capture_output=True, text=True, timeout=300).stdout
    assert 'The model cannot be compiled here' in said and 'needs a C++ compiler' in said and 'leave out `compile`' in said


def test_compile_needs_turns(pool):
    with pytest.raises(ValueError, match='Add `vectorised=False`'): gold_ensemble(pool, 2, new_cnn, SHORT, compile=True)


def test_images_move_once(pool, monkeypatch):
    moved = []
    monkeypatch.setattr(en.Images, 'to', lambda images, device: moved.append(device) or images)
    gold_ensemble(pool, 4, new_cnn, SHORT, vectorised=False, chunk=1)
    assert moved == [torch.device('cpu')]


def test_one_model_at_a_time(pool):
    "A large model is not there twice over: each is let go before the one after the next is made."
    import gc, weakref
    alive, most = [], []
    def new(seed):
        gc.collect(); most.append(sum(r() is not None for r in alive))
        model = new_mlp(seed)
        alive.append(weakref.ref(model))
        return model
    gold_ensemble(pool, 6, new, recipe('digits', epochs=1), vectorised=False, chunk=6)
    assert max(most) <= 1


def test_kept_chunks_tell_ways_apart(pool, tmp_path):
    for how in ({}, dict(vectorised=False), dict(vectorised=False, compile='eager')):
        gold_ensemble(pool, 2, new_mlp, SHORT, folder=tmp_path, **how)
    assert len(list(tmp_path.iterdir())) == 3
    before = {f: f.stat().st_mtime_ns for f in tmp_path.iterdir()}
    for how in ({}, dict(vectorised=False)): gold_ensemble(pool, 2, new_mlp, SHORT, folder=tmp_path, **how)
    assert before == {f: f.stat().st_mtime_ns for f in tmp_path.iterdir()}


def test_one_in_turn_is_one_alone(pool):
    turns = gold_ensemble(pool, 2, new_cnn, SHORT, vectorised=False)
    alone = train(new_cnn(1), pool.take(np.flatnonzero(turns.members[1])), SHORT, seed=1).model
    assert all(torch.equal(v, turns.weights[k][1]) for k, v in alone.state_dict().items())


def test_a_stack_takes_one_step_for_all(pool, monkeypatch):
    calls, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, 'step', lambda self, *a, **k: calls.append(1) or step(self, *a, **k))
    gold_ensemble(pool, 16, new_mlp, SHORT)
    together = len(calls); calls.clear()
    gold_ensemble(pool, 16, new_mlp, SHORT, vectorised=False)
    assert len(calls) == 16*together
