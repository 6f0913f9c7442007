"What every method of the registry does where the input is unusual: it runs, or says what is wrong."
from contextlib import nullcontext
from functools import lru_cache

import pytest
import torch
from conftest import quick
from torch import nn

from lotus_nb.data.core import split_forget
from lotus_nb.data.digits import digits
from lotus_nb.loop import predict
from lotus_nb.methods.core import get_method, list_methods, solve
from lotus_nb.task import UnlearnTask
from lotus_nb.train import recipe, train

METHODS = list_methods(controls=True)
RAW = 'Expected more than 1 value per channel'        # torch's words for a batch of one under BatchNorm


class Counted(nn.Sequential):
    "Layers in a row that count how often any copy of them is called."
    calls = 0

    def forward(self, x):
        Counted.calls += 1
        return super().forward(x)


def conv_net():
    "BatchNorm over maps, where one image is a batch, and over vectors, where it is none."
    return Counted(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def plain_net():
    "Neither convolutions nor norms."
    return Counted(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@lru_cache(4)
def trained(make):
    "The network after three epochs on all 400 digits."
    torch.manual_seed(0)
    return train(make(), digits(0).train, recipe('digits', epochs=3)).model


def run(name, task, **kwargs):
    new = solve(task, name, **{**quick(name, 1), **kwargs})
    assert all(v.isfinite().all() for v in new.model.state_dict().values() if v.is_floating_point())
    assert predict(new.model, task.loader('retain', train=False))[0].isfinite().all()
    return new


@pytest.mark.parametrize('name', METHODS)
def test_more_to_forget_than_to_retain(name):
    data = digits(0)
    few, many = split_forget(data.train.take(range(120)), .25, 0)
    run(name, UnlearnTask(trained(conv_net), many, few, data.val, batch_size=16))


@pytest.mark.parametrize('n', [17, 1])
@pytest.mark.parametrize('name', METHODS)
def test_a_batch_of_one_image(name, n):
    "A last batch of one joins its neighbour. A forget set of one has none: whatever cannot be trained on it says so in the library's words."
    data = digits(0)
    forget, retain = split_forget(data.train.take(range(n + 33)), range(n), 0)
    task = UnlearnTask(trained(conv_net), forget, retain, data.val, batch_size=16)
    try: run(name, task)
    except ValueError as e:
        assert n == 1 and RAW not in str(e), e


@pytest.mark.parametrize('name', METHODS)
def test_a_network_without_convolutions_or_norms(name):
    data = digits(0)
    task = UnlearnTask(trained(plain_net), *split_forget(data.train, .1, 0), data.val, batch_size=64)
    try: run(name, task)
    except ValueError as e:
        assert any(layer in str(e).lower() for layer in ('conv', 'norm')), e


@pytest.mark.parametrize('name', METHODS)
def test_no_validation_images(name):
    task = UnlearnTask(trained(conv_net), *split_forget(digits(0).train, .1, 0), batch_size=64)
    Counted.calls = 0
    if 'val' in get_method(name).parts():
        with pytest.raises(ValueError, match='This task has no `val` data'): run(name, task)
        assert Counted.calls == 0
    else: run(name, task)


@pytest.mark.parametrize('name', METHODS)
def test_a_whole_class(name):
    "None of its images is left to retain."
    data = digits(0)
    forget, retain = split_forget(data.train, (data.train.y == 3).nonzero()[:, 0], 0)
    assert not (retain.y == 3).any()
    run(name, UnlearnTask(trained(conv_net), forget, retain, data.val, batch_size=64))


@pytest.mark.parametrize('make', [conv_net, plain_net])
def test_the_networks_are_what_these_tests_need(make):
    "One row in training mode is refused by torch where there is BatchNorm over vectors, and only there."
    with pytest.raises(ValueError, match=RAW) if make is conv_net else nullcontext(): make().train()(torch.randn(1, 1, 8, 8))
