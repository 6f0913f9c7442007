"No method runs at batch size 1, and none holds the data a second time."
import math
from functools import lru_cache

import pytest
import torch
from torch import nn

from lotus_nb.data.core import Images
from lotus_nb.methods.core import get_method, list_methods, recipes, solve
from lotus_nb.task import UnlearnTask, student_of
from lotus_nb.train import digits_task

SEEN = []                          # batch sizes; shared by all copies of a network


class Watched(nn.Module):
    "A network that notes how many images it is given."
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x): SEEN.append(len(x)); return self.net(x)


def settings(name, epochs=1):
    recipe = {k: v for k, v in recipes(name).get('digits', {}).items() if k in get_method(name).defaults}
    return {**recipe, **{k: v for k, v in dict(epochs=epochs, steps=20).items() if k in get_method(name).defaults}}


@lru_cache(1)
def watched():
    t = digits_task(0)
    return UnlearnTask(Watched(student_of(t.model)), t.forget, t.retain, t.val, batch_size=64)


@pytest.mark.parametrize('name', list_methods())
def test_images_come_in_batches(name):
    t = watched()
    SEEN.clear()
    solve(t, name, **settings(name))
    assert sum(SEEN)/len(SEEN) > 8, SEEN[:20]          # the last image of an attack, or the only one to forget in a mixed batch, may be alone


def test_a_single_image_would_be_seen():
    def slow(model, task):
        for b in task.loader('forget', train=False, batch_size=1): model(b.x)
        return model
    SEEN.clear()
    solve(watched(), slow)
    assert min(SEEN) == 1


@lru_cache(1)
def large():
    "A tiny network and 64 MiB of images: as float32 they would be 256 MiB."
    n, side = 5_600, 64
    pixels = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, torch.arange(n) % 10, source='noise')
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))
    part = lambda a, b: images.take(range(a, b))
    return UnlearnTask(net, part(0, 400), part(400, 5_200), part(5_200, 5_600), batch_size=32, twins='keep')


@lru_cache(1)
def few():
    "A tenth of these images."
    t = large()
    return UnlearnTask(t.model, *(p.take(range(len(p)//10)) for p in (t.forget, t.retain, t.val)), batch_size=32, twins='keep')


@pytest.mark.parametrize('name', list_methods())
def test_the_data_is_held_once(name):
    "AMUN makes one adversarial image for each forget image, as float32: 19 MiB here; JiT looks at 25 neighbours of each image of a batch: 37 MiB."
    extra = 2**20*dict(amun=20, jit=40).get(name, 0)
    solve(few(), name, **settings(name))                                          # what torch allocates once and keeps
    peak = solve(large(), name, **settings(name)).peak_bytes
    if math.isnan(peak): pytest.skip('this system does not tell how much memory was in use')
    assert peak < 40*2**20 + extra, f'{peak/2**20:.0f} MiB'


def test_a_second_copy_would_be_seen():
    def hoards(model, task):
        kept = [b.x for b in task.loader('retain', train=False, batch_size=1200)]      # 56 MiB each: never from memory that is held already
        return model if kept else None
    peak = solve(large(), hoards).peak_bytes
    assert math.isnan(peak) or peak > 150*2**20
